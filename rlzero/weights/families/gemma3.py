"""Gemma 3: the text models, and the text part of those that see images.

Layers look at a window of the text but for every sixth; local and global
layers have rotary embeddings of their own. Norms multiply by 1 + scale and
stand before and after attention and MLP; the embedding is scaled by the root
of the width.
"""

import dataclasses
from typing import Any

from rlzero.models.config import LinearScaling, ModelConfig
from rlzero.weights.families import llama, qwen, rope
from rlzero.weights.metadata import Metadata
from rlzero.weights.rows import Row, layer_rows

SKIPPED = {
  **llama.SKIPPED,
  '*vision_tower.*': 'the part that sees images',
  '*multi_modal_projector.*': 'the part that sees images',
}
# Checkpoints that see images have their text model one level down.
RENAMES = {
  'language_model.model.': 'model.',
  'language_model.lm_head.': 'lm_head.',
  'model.language_model.': 'model.',
}
# Text models without its row have it in their tokenizer all the same.
EXTRA_TOKENS = ('<image_soft_token>',)
_NORMS = (
  ('attention_norm/scale', 'input_layernorm', 'attn_norm'),
  (
    'attention_post_norm/scale',
    'post_attention_layernorm',
    'post_attention_norm',
  ),
  ('mlp_norm/scale', 'pre_feedforward_layernorm', 'ffn_norm'),
  (
    'mlp_post_norm/scale',
    'post_feedforward_layernorm',
    'post_ffw_norm',
  ),
)
_LOCAL, _GLOBAL = 'sliding_attention', 'full_attention'


def table(config: ModelConfig) -> tuple[Row, ...]:
  """The rows of a model: every parameter it has and no other."""
  layers = range(config.num_layers)
  rows = (
    llama.EMBEDDING,
    *layer_rows(layers, llama.ATTENTION + qwen.QK_NORM + _NORMS + llama.MLP),
    llama.NORM,
    *(() if config.tied_embedding else (llama.HEAD,)),
  )
  return tuple(
    dataclasses.replace(row, from_gguf=_without_one, to_gguf=_with_one)
    if row.path.endswith(('/scale', '_norm'))
    else row
    for row in rows
  )


def config_from_hf(metadata: Metadata) -> ModelConfig:
  """The model a config.json describes; absent keys are those of its class."""
  if metadata.get('model_type') == 'gemma3':
    text = rope.section(metadata, 'text_config')
    metadata = Metadata(text, f'{metadata.source} (text_config)')
  metadata.require('hidden_activation', 'gelu_pytorch_tanh')
  for key in ('attention_bias', 'use_bidirectional_attention'):
    metadata.require(key, False)
  for key in (
    'attn_logit_softcapping',
    'final_logit_softcapping',
    'quantization_config',
  ):
    metadata.require(key, None)
  # Newer files have a rotary embedding for each kind of layer.
  both = rope.section(metadata, 'rope_parameters')
  kinds = Metadata(both, f'{metadata.source} (rope_parameters)')
  if both and not both.keys() <= {_LOCAL, _GLOBAL}:
    raise kinds.refusal(', '.join(both), f'{_LOCAL} and {_GLOBAL}')
  near = rope.section(kinds, _LOCAL)
  far = rope.section(kinds, _GLOBAL) or rope.section(metadata, 'rope_scaling')
  if rope.scaling(near, metadata) is not None:
    raise metadata.refusal(f'a stretch of {_LOCAL}', 'one of full_attention')
  num_layers = metadata.size('num_hidden_layers', 26)
  return ModelConfig(
    vocab_size=metadata.size('vocab_size', 262_208),
    num_layers=num_layers,
    width=metadata.size('hidden_size', 2304),
    mlp_width=metadata.size('intermediate_size', 9216),
    num_heads=metadata.size('num_attention_heads', 8),
    num_kv_heads=metadata.size('num_key_value_heads', 4),
    head_dim=metadata.size('head_dim', 256),
    rope_theta=rope.base(far, metadata, metadata.number('rope_theta', 1e6)),
    rope_scaling=rope.scaling(far, metadata),
    local_rope_theta=rope.base(
      near, metadata, metadata.number('rope_local_base_freq', 1e4)
    ),
    rms_norm_eps=metadata.number('rms_norm_eps', 1e-6),
    tied_embedding=bool(metadata.get('tie_word_embeddings', True)),
    query_scalar=metadata.size('query_pre_attn_scalar', 256),
    window=metadata.size('sliding_window', 4096),
    global_every=_global_every(metadata, num_layers),
    max_position=metadata.size('max_position_embeddings', 131_072),
    **_OPTIONS,
  )


def hf_from_config(config: ModelConfig) -> dict[str, Any]:
  """`config_from_hf`, inverted."""
  hf = llama.described(config)
  del hf['hidden_act']
  return {
    'architectures': ['Gemma3ForCausalLM'],
    **hf,
    'hidden_activation': 'gelu_pytorch_tanh',
    'rope_local_base_freq': config.local_rope_theta,
    'query_pre_attn_scalar': config.query_scalar,
    'sliding_window': config.window,
    'sliding_window_pattern': config.global_every,
    'layer_types': [_LOCAL if x else _GLOBAL for x in config.local_layers],
  }


def config_from_gguf(metadata: Metadata) -> ModelConfig:
  """The model the head of a GGUF file describes.

  It leaves unsaid what llama.cpp knows by heart: the pattern of layers, the
  local rotary base, and that scores are divided by the root of head_dim, or
  of width / heads in the 27B model.
  """
  kind = metadata.get('rope.scaling.type', 'none')
  if kind not in ('none', 'linear'):
    raise metadata.refusal(
      f'rope.scaling.type = {kind!r}', "'none' and 'linear'"
    )
  values = llama.gguf_dense(metadata, scalings=('none', 'linear'))
  stretch = {'rope_type': 'default'}
  if kind == 'linear':
    stretch = {
      'rope_type': kind,
      'factor': metadata.number('rope.scaling.factor'),
    }
  large = values['num_layers'] == 62
  return ModelConfig(
    **values,
    rope_scaling=rope.scaling(stretch, metadata),
    query_scalar=values['width'] // values['num_heads']
    if large
    else values['head_dim'],
    window=metadata.size('attention.sliding_window'),
    global_every=6,
    **_OPTIONS,
  )


def gguf_from_config(config: ModelConfig) -> dict[str, Any]:
  """`config_from_gguf`, inverted."""
  values = llama.gguf_described(config)
  values['attention.sliding_window'] = config.window
  if isinstance(config.rope_scaling, LinearScaling):
    values['rope.scaling.type'] = 'linear'
    values['rope.scaling.factor'] = config.rope_scaling.factor
  return values


_OPTIONS = {
  'family': 'gemma3_text',
  'activation': 'gelu_tanh',
  'qk_norm': True,
  'scaled_embedding': True,
  'unit_offset_norm': True,
  'post_norms': True,
}


def _global_every(metadata: Metadata, num_layers: int) -> int:
  """One layer in how many is global; any other order is refused."""
  every = metadata.size('sliding_window_pattern', 6)
  types = metadata.get('layer_types')
  if types is None:
    return every
  if _GLOBAL in types:
    every = types.index(_GLOBAL) + 1
  elif every <= num_layers:
    every = num_layers + 1
  regular = [
    _LOCAL if layer % every else _GLOBAL for layer in range(1, num_layers + 1)
  ]
  metadata.require('layer_types', regular, list(types))
  return every


def _without_one(scale):
  """GGUF files of this family hold 1 + scale."""
  return scale - 1


def _with_one(scale):
  return scale + 1
