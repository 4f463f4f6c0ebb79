"""GGUF files: every quantised type the gguf library can undo, to float32."""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

import gguf
import numpy as np

from rlzero.models.config import ModelConfig
from rlzero.tokenizer import Tokenizer
from rlzero.types import Params
from rlzero.weights import mapping


def read_gguf(
  path: str | os.PathLike[str],
) -> tuple[ModelConfig, Params, Tokenizer]:
  """Reads a model and its tokenizer, dequantised to float32.

  Args:
    path: a .gguf file of architecture llama, qwen2 or qwen3.

  Raises:
    FileNotFoundError: no such file.
    WeightsError: a damaged file, an architecture, option or type that is
      not implemented, or tensors that do not match the metadata.
    ValueError: a tokenizer that is not implemented.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(
      f'{path} does not exist; give the path of a .gguf file.'
    )
  try:
    reader = gguf.GGUFReader(path)
    metadata = {k: field.contents() for k, field in reader.fields.items()}
  except Exception as error:  # what is raised depends on where the cut is
    raise mapping.WeightsError(
      f'{path} is damaged or cut short ({error}); copy or download it again.'
    ) from error
  tied = all(tensor.name != 'output.weight' for tensor in reader.tensors)
  config = _model_config(metadata, tied, str(path))
  interleaved = metadata['general.architecture'] == 'llama'
  params = mapping.params_from_tensors(
    config, _tensors(reader, config, interleaved, path), 'gguf', str(path)
  )
  return config, params, Tokenizer.from_gguf(metadata, str(path))


def unpermute(weight: np.ndarray, num_heads: int) -> np.ndarray:
  """Rows of a projection from interleaved pairs to two halves per head.

  Llama files in GGUF pair rotary dimensions (0, 1), (2, 3), ...; we, like
  Hugging Face, pair (0, H/2), (1, H/2 + 1), ...

  Args:
    weight: [heads * H, D].
    num_heads: heads of this projection.
  """
  pairs = weight.reshape(num_heads, -1, 2, weight.shape[-1])
  return pairs.swapaxes(1, 2).reshape(weight.shape)


def _tensors(
  reader: gguf.GGUFReader,
  config: ModelConfig,
  interleaved: bool,
  path: pathlib.Path,
) -> Iterator[tuple[str, str, np.ndarray]]:
  heads = {'attn_q': config.num_heads, 'attn_k': config.num_kv_heads}
  for tensor in reader.tensors:
    try:
      array = gguf.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
      raise mapping.WeightsError(
        f'{path} stores {tensor.name} as {tensor.tensor_type.name}, which '
        'the gguf library cannot dequantise; use a file of another type, '
        'such as Q8_0.'
      ) from error
    count = heads.get(tensor.name.split('.')[-2])
    # A wrong shape goes through as it is: it is reported with all others.
    if interleaved and count and len(array) == count * config.head_dim:
      array = unpermute(array, count)
    yield path.name, tensor.name, array


def _model_config(
  metadata: dict[str, Any], tied: bool, source: str
) -> ModelConfig:
  kind = metadata.get('general.architecture')
  if kind not in ('llama', 'qwen2', 'qwen3'):
    raise mapping.WeightsError(
      f'{source} has architecture {kind!r}, but only llama, qwen2 and qwen3 '
      'are implemented; choose a model of one of these.'
    )

  def get(key: str, default: Any = None) -> Any:
    value = metadata.get(f'{kind}.{key}', default)
    if not isinstance(value, (int, float)):
      raise mapping.WeightsError(
        f'{source} has {kind}.{key} = {value!r}, but a number is needed; '
        'convert the model again.'
      )
    return value

  width, heads = get('embedding_length'), get('attention.head_count')
  head_dim = get('attention.key_length', width // heads)
  for key, wanted in (
    ('expert_count', 0),
    ('attention.sliding_window', 0),
    ('rope.scaling.type', 'none'),
    ('rope.dimension_count', head_dim),
    ('attention.value_length', head_dim),
  ):
    value = metadata.get(f'{kind}.{key}', wanted)
    if value != wanted:
      raise mapping.WeightsError(
        f'{source} has {kind}.{key} = {value!r}, but only {wanted!r} is '
        'implemented; choose another model.'
      )
  return ModelConfig(
    vocab_size=get(
      'vocab_size', len(metadata.get('tokenizer.ggml.tokens', ()))
    ),
    num_layers=get('block_count'),
    width=width,
    mlp_width=get('feed_forward_length'),
    num_heads=heads,
    num_kv_heads=get('attention.head_count_kv', heads),
    head_dim=head_dim,
    rope_theta=_shortest(get('rope.freq_base', 1e4)),
    rms_norm_eps=_shortest(get('attention.layer_norm_rms_epsilon')),
    tied_embedding=tied,
    qkv_bias=kind == 'qwen2',
    qk_norm=kind == 'qwen3',
    max_position=get('context_length'),
  )


def _shortest(value: float) -> float:
  """1e-5 and not 9.999999747378752e-06: the file holds float32."""
  return float(str(np.float32(value)))
