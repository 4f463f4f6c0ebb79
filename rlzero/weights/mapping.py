"""What Llama, Qwen2 and Qwen3 files call our parameters: one table.

Parameters are nested dicts of float32 arrays, layers stacked on axis L; the
letters are those of `rlzero/types.py`. All names are checked both ways.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rlzero.models.config import ModelConfig, RopeScaling
from rlzero.types import Params


class WeightsError(ValueError):
  """A weight file that is damaged or is not the model it says it is."""


@dataclasses.dataclass(frozen=True)
class Row:
  """One parameter: where it lives here, and its name and layout in files.

  `axes` reads 'axes of the file -> our axes'; file axes written together
  are one dimension there. The layer number replaces {} and is axis L here.
  """

  path: str
  hf: str
  gguf: str
  axes: str

  @property
  def stacked(self) -> bool:
    return '{}' in self.hf

  def names(self, naming: str, num_layers: int) -> list[str]:
    """Names in a file, one a layer, for naming 'hf' or 'gguf'."""
    name = getattr(self, naming)
    if not self.stacked:
      return [name]
    return [name.format(layer) for layer in range(num_layers)]

  def file_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
    dims = self.axes.split(' -> ')[0].split()
    return tuple(math.prod(sizes[a] for a in dim) for dim in dims)

  def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
    ours = ('L' if self.stacked else '') + self._orders()[1]
    return tuple(sizes[a] for a in ours)

  def from_file(
    self, array: np.ndarray, sizes: Mapping[str, int]
  ) -> np.ndarray:
    theirs, ours = self._orders()
    split = array.reshape([sizes[a] for a in theirs])
    return split.transpose([theirs.index(a) for a in ours])

  def to_file(self, array: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
    theirs, ours = self._orders()
    split = array.transpose([ours.index(a) for a in theirs])
    return np.ascontiguousarray(split.reshape(self.file_shape(sizes)))

  def _orders(self) -> list[str]:
    return self.axes.replace(' ', '').split('->')


def _layer(path: str, hf: str, gguf: str, axes: str) -> Row:
  kind = '.bias' if path.endswith('_bias') else '.weight'
  return Row(
    f'layers/{path}',
    'model.layers.{}.' + hf + kind,
    'blk.{}.' + gguf + kind,
    axes,
  )


_EVERY = (
  Row(
    'embed/embedding',
    'model.embed_tokens.weight',
    'token_embd.weight',
    'V D -> VD',
  ),
  _layer('attention_norm/scale', 'input_layernorm', 'attn_norm', 'D -> D'),
  _layer('attention/query', 'self_attn.q_proj', 'attn_q', 'NH D -> DNH'),
  _layer('attention/key', 'self_attn.k_proj', 'attn_k', 'KH D -> DKH'),
  _layer('attention/value', 'self_attn.v_proj', 'attn_v', 'KH D -> DKH'),
  _layer('attention/output', 'self_attn.o_proj', 'attn_output', 'D NH -> NHD'),
  _layer('mlp_norm/scale', 'post_attention_layernorm', 'ffn_norm', 'D -> D'),
  _layer('mlp/gate', 'mlp.gate_proj', 'ffn_gate', 'F D -> DF'),
  _layer('mlp/up', 'mlp.up_proj', 'ffn_up', 'F D -> DF'),
  _layer('mlp/down', 'mlp.down_proj', 'ffn_down', 'D F -> FD'),
  Row('final_norm/scale', 'model.norm.weight', 'output_norm.weight', 'D -> D'),
)
_QKV_BIAS = (
  _layer('attention/query_bias', 'self_attn.q_proj', 'attn_q', 'NH -> NH'),
  _layer('attention/key_bias', 'self_attn.k_proj', 'attn_k', 'KH -> KH'),
  _layer('attention/value_bias', 'self_attn.v_proj', 'attn_v', 'KH -> KH'),
)
_QK_NORM = (
  _layer('attention/query_norm', 'self_attn.q_norm', 'attn_q_norm', 'H -> H'),
  _layer('attention/key_norm', 'self_attn.k_norm', 'attn_k_norm', 'H -> H'),
)
_HEAD = Row('head/kernel', 'lm_head.weight', 'output.weight', 'V D -> DV')


def table(config: ModelConfig) -> tuple[Row, ...]:
  """The rows of a model: every parameter it has and no other."""
  return (
    *_EVERY,
    *(_QKV_BIAS if config.qkv_bias else ()),
    *(_QK_NORM if config.qk_norm else ()),
    *(() if config.tied_embedding else (_HEAD,)),
  )


def params_from_tensors(
  config: ModelConfig,
  tensors: Iterable[tuple[str, str, np.ndarray]],
  naming: str,
  source: str,
) -> Params:
  """Parameters from the tensors of a model's files, read one at a time.

  Args:
    config: the model they must be.
    tensors: (file, name in the file, array of a floating type) each.
    naming: 'hf' or 'gguf'.
    source: what an error calls the whole, usually a path.

  Raises:
    WeightsError: names every tensor that is unknown, missing, there twice,
      of a wrong shape, or an untied head in a tied model.
  """
  sizes = _sizes(config)
  rows = table(config)
  targets = {
    name: (row, layer)
    for row in rows
    for layer, name in enumerate(row.names(naming, config.num_layers))
  }
  flat = {row.path: np.empty(row.shape(sizes), np.float32) for row in rows}
  unknown, twice, shapes, seen, head = [], [], [], set(), None
  for file, name, array in tensors:
    if name.endswith('rotary_emb.inv_freq'):
      continue  # old files store this constant
    if name in seen:
      twice.append(f'{name} ({file})')
      continue
    seen.add(name)
    if name not in targets:
      # Some tied models ship the head all the same.
      if config.tied_embedding and name == getattr(_HEAD, naming):
        head = array
      else:
        unknown.append(f'{name} ({file})')
      continue
    row, layer = targets[name]
    if array.shape != row.file_shape(sizes):
      shapes.append(
        f'{name} ({file}) is {list(array.shape)} and should be '
        f'{list(row.file_shape(sizes))}'
      )
      continue
    target = flat[row.path][layer] if row.stacked else flat[row.path]
    target[...] = row.from_file(array, sizes)
  untied = []
  if head is not None and not np.array_equal(head, flat['embed/embedding']):
    untied.append(getattr(_HEAD, naming))
  _raise_all(
    source,
    {
      'unknown': unknown,
      'missing': [name for name in targets if name not in seen],
      'there twice': twice,
      'of a wrong shape': shapes,
      'not the embedding, though the config ties them': untied,
    },
  )
  params: Params = {}
  for path, array in flat.items():
    *parents, leaf = path.split('/')
    node = params
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = array
  return params


def tensors_from_params(
  config: ModelConfig, params: Params, naming: str = 'hf'
) -> dict[str, np.ndarray]:
  """The tensors of a file from parameters: `params_from_tensors`, inverted.

  Args:
    config: the model.
    params: nested dicts of arrays of any floating type.
    naming: 'hf' or 'gguf'.

  Raises:
    WeightsError: names every parameter the config does not expect, lacks,
      or expects in another shape.
  """
  sizes = _sizes(config)
  rows = {row.path: row for row in table(config)}
  flat = dict(_flatten(params))
  _raise_all(
    'The parameter tree',
    {
      'unknown': [path for path in flat if path not in rows],
      'missing': [path for path in rows if path not in flat],
      'of a wrong shape': [
        f'{path} is {list(flat[path].shape)} and should be '
        f'{list(row.shape(sizes))}'
        for path, row in rows.items()
        if path in flat and flat[path].shape != row.shape(sizes)
      ],
    },
  )
  tensors = {}
  for path, row in rows.items():
    array = np.asarray(flat[path], np.float32)
    parts = array if row.stacked else [array]
    for name, part in zip(
      row.names(naming, config.num_layers), parts, strict=True
    ):
      tensors[name] = row.to_file(part, sizes)
  return tensors


def model_config_from_hf(
  hf: Mapping[str, Any], source: str = 'config.json'
) -> ModelConfig:
  """The model a Hugging Face config.json describes.

  Args:
    hf: the file's object.
    source: what an error calls it, usually its path.

  Raises:
    WeightsError: an architecture or option that is not implemented, or a
      size that is missing.
  """
  kind = hf.get('model_type')
  if kind not in ('llama', 'qwen2', 'qwen3'):
    raise WeightsError(
      f'{source} has model_type {kind!r}, but only llama, qwen2 and qwen3 '
      'are implemented; choose a model of one of these.'
    )
  # Older files keep theta and the scaling apart; newer ones have one dict.
  rope = hf.get('rope_parameters') or hf.get('rope_scaling') or {}
  rope_type = rope.get('rope_type', rope.get('type', 'default'))
  if rope_type not in ('default', 'llama3'):
    raise WeightsError(
      f"{source} has rope_type = {rope_type!r}, but only 'default' and "
      "'llama3' are implemented; choose another model."
    )
  sliding = sorted(set(hf.get('layer_types') or ()) - {'full_attention'})
  # In these two, attention_bias also puts one on the output projection.
  output_bias = kind != 'qwen2' and bool(hf.get('attention_bias'))
  for key, value, wanted in (
    ('hidden_act', hf.get('hidden_act', 'silu'), 'silu'),
    (
      'partial_rotary_factor',
      hf.get('partial_rotary_factor', rope.get('partial_rotary_factor', 1)),
      1,
    ),
    ('use_sliding_window', bool(hf.get('use_sliding_window')), False),
    ('layer_types', sliding, []),
    ('attention_bias', output_bias, False),
    ('mlp_bias', bool(hf.get('mlp_bias')), False),
    ('quantization_config', hf.get('quantization_config'), None),
  ):
    if value != wanted:
      raise WeightsError(
        f'{source} has {key} = {value!r}, but only {wanted!r} is implemented; '
        'choose another model.'
      )

  def size(key: str, default: int | None = None) -> int:
    value = hf.get(key)
    if value is None:
      value = default
    if not isinstance(value, int):
      raise WeightsError(
        f'{source} has {key} = {value!r}, but a whole number is needed; '
        "restore the model's own file."
      )
    return value

  width, heads = size('hidden_size'), size('num_attention_heads')
  # Where a key may be absent, the default is that of the model's class.
  return ModelConfig(
    vocab_size=size('vocab_size'),
    num_layers=size('num_hidden_layers'),
    width=width,
    mlp_width=size('intermediate_size'),
    num_heads=heads,
    num_kv_heads=size('num_key_value_heads', heads),
    head_dim=size('head_dim', 128 if kind == 'qwen3' else width // heads),
    rope_theta=float(rope.get('rope_theta') or hf.get('rope_theta') or 1e4),
    rope_scaling=_llama3(rope, source) if rope_type == 'llama3' else None,
    rms_norm_eps=float(hf.get('rms_norm_eps', 1e-6)),
    tied_embedding=bool(hf.get('tie_word_embeddings', False)),
    qkv_bias=kind == 'qwen2',
    qk_norm=kind == 'qwen3',
    max_position=size(
      'max_position_embeddings', 2048 if kind == 'llama' else 32768
    ),
  )


# Names of the fields of RopeScaling in a config.json.
_LLAMA3 = {
  'factor': 'factor',
  'low_freq_factor': 'low_freq_factor',
  'high_freq_factor': 'high_freq_factor',
  'original_max_position': 'original_max_position_embeddings',
}


def _llama3(rope: Mapping[str, Any], source: str) -> RopeScaling:
  missing = [name for name in _LLAMA3.values() if name not in rope]
  if missing:
    raise WeightsError(
      f"{source} has rope_type 'llama3' without {', '.join(missing)}; restore "
      "the model's own file."
    )
  return RopeScaling(**{ours: rope[name] for ours, name in _LLAMA3.items()})


def hf_config(
  config: ModelConfig,
  eos_ids: Sequence[int],
  bos_id: int | None = None,
  dtype: str = 'float32',
) -> dict[str, Any]:
  """The config.json with which transformers loads our weights.

  Args:
    config: the model.
    eos_ids: ids that end a completion.
    bos_id: id a text starts with, or None.
    dtype: of the weights in the files.

  Raises:
    WeightsError: options that no one architecture has together.
  """
  if config.qkv_bias and config.qk_norm:
    raise WeightsError(
      'ModelConfig has both qkv_bias and qk_norm, which no Hugging Face '
      'architecture of this kind has; turn one off to export.'
    )
  kind, name = 'llama', 'Llama'
  if config.qkv_bias:
    kind, name = 'qwen2', 'Qwen2'
  elif config.qk_norm:
    kind, name = 'qwen3', 'Qwen3'
  scaling = {}
  if config.rope_scaling:
    scaling['rope_scaling'] = {
      'rope_type': 'llama3',
      **{n: getattr(config.rope_scaling, o) for o, n in _LLAMA3.items()},
    }
  return {
    'architectures': [f'{name}ForCausalLM'],
    'model_type': kind,
    'vocab_size': config.vocab_size,
    'num_hidden_layers': config.num_layers,
    'hidden_size': config.width,
    'intermediate_size': config.mlp_width,
    'num_attention_heads': config.num_heads,
    'num_key_value_heads': config.num_kv_heads,
    'head_dim': config.head_dim,
    'hidden_act': 'silu',
    'rope_theta': config.rope_theta,
    **scaling,
    'rms_norm_eps': config.rms_norm_eps,
    'tie_word_embeddings': config.tied_embedding,
    'max_position_embeddings': config.max_position,
    'eos_token_id': list(eos_ids),
    'bos_token_id': bos_id,
    'torch_dtype': dtype,
  }


def _sizes(config: ModelConfig) -> dict[str, int]:
  return {
    'V': config.vocab_size,
    'L': config.num_layers,
    'D': config.width,
    'F': config.mlp_width,
    'N': config.num_heads,
    'K': config.num_kv_heads,
    'H': config.head_dim,
  }


def _flatten(tree: Params, path: str = '') -> Iterator[tuple[str, Any]]:
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from _flatten(value, f'{path}{key}/')
    else:
      yield f'{path}{key}', value


def _raise_all(source: str, problems: Mapping[str, Sequence[str]]) -> None:
  found = [f'{k}: {", ".join(v)}' for k, v in problems.items() if v]
  if found:
    raise WeightsError(
      f'{source} does not match its config: {"; ".join(found)}. Use the '
      'weights and the config of one and the same model.'
    )
