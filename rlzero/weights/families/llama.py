"""Llama 2, 3, 3.1, 3.2 and 3.3, and SmolLM2."""

import dataclasses
import functools
from typing import Any

import numpy as np

from rlzero.models.config import ModelConfig, RopeScaling
from rlzero.models.rope import frequencies
from rlzero.weights import fp8
from rlzero.weights.families import rope
from rlzero.weights.metadata import Metadata, WeightsError
from rlzero.weights.rows import Row, layer_rows

GGUF_STRETCH = 'rope_freqs.weight'  # what each frequency is divided by
SKIPPED = {'*.rotary_emb.inv_freq': 'a constant that is computed'}
RENAMES: dict[str, str] = {}
EXTRA_TOKENS: tuple[str, ...] = ()

EMBEDDING = Row(
  'embed/embedding',
  'model.embed_tokens.weight',
  'token_embd.weight',
)
NORM = Row('final_norm/scale', 'model.norm.weight', 'output_norm.weight')
HEAD = Row('head/kernel', 'lm_head.weight', 'output.weight')
ATTENTION = (
  ('attention/query', 'self_attn.q_proj', 'attn_q'),
  ('attention/key', 'self_attn.k_proj', 'attn_k'),
  ('attention/value', 'self_attn.v_proj', 'attn_v'),
  ('attention/output', 'self_attn.o_proj', 'attn_output'),
)
NORMS = (
  ('attention_norm/scale', 'input_layernorm', 'attn_norm'),
  ('mlp_norm/scale', 'post_attention_layernorm', 'ffn_norm'),
)
MLP = (
  ('mlp/gate', 'mlp.gate_proj', 'ffn_gate'),
  ('mlp/up', 'mlp.up_proj', 'ffn_up'),
  ('mlp/down', 'mlp.down_proj', 'ffn_down'),
)


def table(config: ModelConfig) -> tuple[Row, ...]:
  """The rows of a model: every parameter it has and no other."""
  rows = layer_rows(range(config.num_layers), ATTENTION + NORMS + MLP)
  heads = {
    'layers/attention/query': config.num_heads,
    'layers/attention/key': config.num_kv_heads,
  }
  return (
    EMBEDDING,
    *(_paired(row, heads.get(row.path)) for row in rows),
    NORM,
    *(() if config.tied_embedding else (HEAD,)),
  )


def config_from_hf(metadata: Metadata) -> ModelConfig:
  """The model a config.json describes; absent keys are those of its class."""
  for key in ('attention_bias', 'mlp_bias'):
    metadata.require(key, False)
  return ModelConfig(**dense(metadata), family='llama')


def hf_from_config(config: ModelConfig) -> dict[str, Any]:
  """`config_from_hf`, inverted."""
  return {'architectures': ['LlamaForCausalLM'], **described(config)}


def config_from_gguf(metadata: Metadata) -> ModelConfig:
  """The model the head of a GGUF file describes."""
  values = gguf_dense(metadata)
  divisors = metadata.values.get(GGUF_STRETCH)
  if divisors is not None:
    values['rope_scaling'] = _stretch(
      divisors, values['head_dim'], values['rope_theta'], metadata
    )
  return ModelConfig(**values, family='llama')


def gguf_from_config(config: ModelConfig) -> dict[str, Any]:
  """`config_from_gguf`, inverted."""
  values = gguf_described(config)
  if isinstance(config.rope_scaling, RopeScaling):
    plain, stretched = (
      frequencies(config.head_dim, config.rope_theta, scaling)
      for scaling in (None, config.rope_scaling)
    )
    values[GGUF_STRETCH] = np.float32(plain / stretched)
  return values


def dense(
  metadata: Metadata, head_dim: int | None = None, max_position: int = 2048
) -> dict[str, Any]:
  """Fields of ModelConfig that all dense decoders have in their config.json.

  Args:
    metadata: of the file.
    head_dim: where the file has none, if not width / heads.
    max_position: where the file has none.
  """
  metadata.require('hidden_act', 'silu')
  fp8.quantised(metadata)
  metadata.require('use_sliding_window', False)
  types = set(metadata.get('layer_types', ())) - {'full_attention'}
  metadata.require('layer_types', [], sorted(types))
  theta, scaling = rope.read(metadata)
  width, heads = (
    metadata.size('hidden_size'),
    metadata.size('num_attention_heads'),
  )
  return {
    'vocab_size': metadata.size('vocab_size'),
    'num_layers': metadata.size('num_hidden_layers'),
    'width': width,
    'mlp_width': metadata.size('intermediate_size'),
    'num_heads': heads,
    'num_kv_heads': metadata.size('num_key_value_heads', heads),
    'head_dim': metadata.size('head_dim', head_dim or width // heads),
    'rope_theta': theta,
    'rope_scaling': scaling,
    'rms_norm_eps': metadata.number('rms_norm_eps', 1e-6),
    'tied_embedding': bool(metadata.get('tie_word_embeddings', False)),
    'max_position': metadata.size('max_position_embeddings', max_position),
  }


def described(config: ModelConfig) -> dict[str, Any]:
  """`dense`, inverted."""
  scaling = rope.write(config.rope_scaling)
  return {
    'vocab_size': config.vocab_size,
    'num_hidden_layers': config.num_layers,
    'hidden_size': config.width,
    'intermediate_size': config.mlp_width,
    'num_attention_heads': config.num_heads,
    'num_key_value_heads': config.num_kv_heads,
    'head_dim': config.head_dim,
    'hidden_act': 'silu',
    'rope_theta': config.rope_theta,
    **({'rope_scaling': scaling} if scaling else {}),
    'rms_norm_eps': config.rms_norm_eps,
    'tie_word_embeddings': config.tied_embedding,
    'max_position_embeddings': config.max_position,
  }


def gguf_dense(
  metadata: Metadata, scalings: tuple[str, ...] = ('none',)
) -> dict[str, Any]:
  """Fields of ModelConfig that all dense decoders have in a GGUF file.

  Whether the embedding is tied shows in the tensors alone.

  Args:
    metadata: of the file.
    scalings: kinds of stretch that the family reads by itself.
  """
  width = metadata.size('embedding_length')
  heads = metadata.size('attention.head_count')
  head_dim = metadata.size('attention.key_length', width // heads)
  metadata.require('expert_count', 0)
  if metadata.get('rope.scaling.type') not in scalings:
    metadata.require('rope.scaling.type', 'none')
  if metadata.get('rope.scaling.type') is None:
    # 0 and 1 say that there is none.
    stretched = [
      key
      for key in ('rope.scaling.factor', 'rope.scale_linear')
      if metadata.number(key, 0.0) not in (0.0, 1.0)
    ]
    if stretched:
      raise rope.untyped(metadata, stretched)
  metadata.require('rope.dimension_count', head_dim)
  metadata.require('attention.value_length', head_dim)
  tokens = metadata.values.get('tokenizer.ggml.tokens', ())
  return {
    'vocab_size': metadata.size('vocab_size', len(tokens)),
    'num_layers': metadata.size('block_count'),
    'width': width,
    'mlp_width': metadata.size('feed_forward_length'),
    'num_heads': heads,
    'num_kv_heads': metadata.size('attention.head_count_kv', heads),
    'head_dim': head_dim,
    'rope_theta': shortest(metadata.number('rope.freq_base', 1e4)),
    'rms_norm_eps': shortest(
      metadata.number('attention.layer_norm_rms_epsilon')
    ),
    'max_position': metadata.size('context_length'),
  }


def gguf_described(config: ModelConfig) -> dict[str, Any]:
  """`gguf_dense`, inverted."""
  return {
    'block_count': config.num_layers,
    'context_length': config.max_position,
    'embedding_length': config.width,
    'feed_forward_length': config.mlp_width,
    'attention.head_count': config.num_heads,
    'attention.head_count_kv': config.num_kv_heads,
    'attention.key_length': config.head_dim,
    'attention.value_length': config.head_dim,
    'attention.layer_norm_rms_epsilon': config.rms_norm_eps,
    'rope.dimension_count': config.head_dim,
    'rope.freq_base': config.rope_theta,
    'vocab_size': config.vocab_size,
  }


def shortest(value: float) -> float:
  """1e-5 and not 9.999999747378752e-06: a GGUF file holds float32."""
  return float(str(np.float32(value)))


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


def permute(weight: np.ndarray, num_heads: int) -> np.ndarray:
  """`unpermute`, inverted."""
  halves = weight.reshape(num_heads, 2, -1, weight.shape[-1])
  return halves.swapaxes(1, 2).reshape(weight.shape)


def _stretch(
  divisors: np.ndarray, head_dim: int, theta: float, metadata: Metadata
) -> RopeScaling:
  """Which of Llama 3's stretches divides the frequencies by these numbers."""
  plain = frequencies(head_dim, theta, None)
  for factor in (8.0, 32.0):  # of 3.1 and 3.3, and of 3.2
    scaling = RopeScaling(factor=factor)
    expected = plain / frequencies(head_dim, theta, scaling)
    if divisors.shape == plain.shape and np.allclose(
      divisors, expected, rtol=1e-4
    ):
      return scaling
  raise WeightsError(
    f'{metadata.source} stretches the rotary embedding by {GGUF_STRETCH} in a '
    "way that is neither Llama 3.1's nor 3.2's; use the model's Hugging Face "
    'folder instead.'
  )


def _paired(row: Row, num_heads: int | None) -> Row:
  if num_heads is None:
    return row
  return dataclasses.replace(
    row,
    from_gguf=functools.partial(unpermute, num_heads=num_heads),
    to_gguf=functools.partial(permute, num_heads=num_heads),
  )
