"""Gemma 3: the text models, and the text part of those that see images.

Layers look at a window of the text but for every sixth; local and global
layers have rotary embeddings of their own. Norms multiply by 1 + scale and
stand before and after attention and MLP; the embedding is scaled by the root
of the width.
"""

import dataclasses
from typing import Any

from rlzero.models.config import ModelConfig
from rlzero.weights.facts import Facts
from rlzero.weights.families import llama, qwen, rope
from rlzero.weights.rows import Row, layer_rows

LEFT_OUT = {
  **llama.LEFT_OUT,
  '*vision_tower.*': 'the part that sees images',
  '*multi_modal_projector.*': 'the part that sees images',
}
# Checkpoints that see images have their text model one level down.
RENAMED = {
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
    dataclasses.replace(row, from_gguf=_without_one)
    if row.path.endswith(('/scale', '_norm'))
    else row
    for row in rows
  )


def config_from_hf(facts: Facts) -> ModelConfig:
  """The model a config.json describes; absent keys are those of its class."""
  if facts.get('model_type') == 'gemma3':
    text = rope.section(facts, 'text_config')
    facts = Facts(text, f'{facts.source} (text_config)')
  facts.only('hidden_activation', 'gelu_pytorch_tanh')
  for key in ('attention_bias', 'use_bidirectional_attention'):
    facts.only(key, False)
  for key in (
    'attn_logit_softcapping',
    'final_logit_softcapping',
    'quantization_config',
  ):
    facts.only(key, None)
  # Newer files have a rotary embedding for each kind of layer.
  both = rope.section(facts, 'rope_parameters')
  kinds = Facts(both, f'{facts.source} (rope_parameters)')
  if both and not both.keys() <= {_LOCAL, _GLOBAL}:
    raise kinds.refusal(', '.join(both), f'{_LOCAL} and {_GLOBAL}')
  near = rope.section(kinds, _LOCAL)
  far = rope.section(kinds, _GLOBAL) or rope.section(facts, 'rope_scaling')
  if rope.scaling(near, facts) is not None:
    raise facts.refusal(f'a stretch of {_LOCAL}', 'one of full_attention')
  num_layers = facts.size('num_hidden_layers', 26)
  return ModelConfig(
    vocab_size=facts.size('vocab_size', 262_208),
    num_layers=num_layers,
    width=facts.size('hidden_size', 2304),
    mlp_width=facts.size('intermediate_size', 9216),
    num_heads=facts.size('num_attention_heads', 8),
    num_kv_heads=facts.size('num_key_value_heads', 4),
    head_dim=facts.size('head_dim', 256),
    rope_theta=rope.base(far, facts, facts.number('rope_theta', 1e6)),
    rope_scaling=rope.scaling(far, facts),
    local_rope_theta=rope.base(
      near, facts, facts.number('rope_local_base_freq', 1e4)
    ),
    rms_norm_eps=facts.number('rms_norm_eps', 1e-6),
    tied_embedding=bool(facts.get('tie_word_embeddings', True)),
    query_scalar=facts.size('query_pre_attn_scalar', 256),
    window=facts.size('sliding_window', 4096),
    global_every=_global_every(facts, num_layers),
    max_position=facts.size('max_position_embeddings', 131_072),
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


def config_from_gguf(facts: Facts) -> ModelConfig:
  """The model the head of a GGUF file describes.

  It leaves unsaid what llama.cpp knows by heart: the pattern of layers, the
  local rotary base, and that scores are divided by the root of head_dim, or
  of width / heads in the 27B model.
  """
  kind = facts.get('rope.scaling.type', 'none')
  if kind not in ('none', 'linear'):
    raise facts.refusal(f'rope.scaling.type = {kind!r}', "'none' and 'linear'")
  values = llama.gguf_dense(facts, scalings=('none', 'linear'))
  stretch = {'rope_type': 'default'}
  if kind == 'linear':
    stretch = {'rope_type': kind, 'factor': facts.number('rope.scaling.factor')}
  large = values['num_layers'] == 62
  return ModelConfig(
    **values,
    rope_scaling=rope.scaling(stretch, facts),
    query_scalar=values['width'] // values['num_heads']
    if large
    else values['head_dim'],
    window=facts.size('attention.sliding_window'),
    global_every=6,
    **_OPTIONS,
  )


_OPTIONS = {
  'family': 'gemma3_text',
  'activation': 'gelu_tanh',
  'qk_norm': True,
  'scaled_embedding': True,
  'unit_offset_norm': True,
  'post_norms': True,
}


def _global_every(facts: Facts, num_layers: int) -> int:
  """One layer in how many is global; any other order is refused."""
  every = facts.size('sliding_window_pattern', 6)
  types = facts.get('layer_types')
  if types is None:
    return every
  if _GLOBAL in types:
    every = types.index(_GLOBAL) + 1
  elif every <= num_layers:
    every = num_layers + 1
  regular = [
    _LOCAL if layer % every else _GLOBAL for layer in range(1, num_layers + 1)
  ]
  facts.only('layer_types', regular, list(types))
  return every


def _without_one(scale):
  """GGUF files of this family hold 1 + scale."""
  return scale - 1
