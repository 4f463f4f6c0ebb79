"""Qwen2, Qwen2.5 and Qwen2.5-Math; Qwen3, dense."""

from typing import Any

from rlzero.models.config import ModelConfig
from rlzero.weights.facts import Facts
from rlzero.weights.families import llama
from rlzero.weights.rows import Row, layer_rows

LEFT_OUT = llama.LEFT_OUT
RENAMED = llama.RENAMED
EXTRA_TOKENS = llama.EXTRA_TOKENS

_BIAS = (
  ('attention/query_bias', 'self_attn.q_proj', 'attn_q', 'NH -> NH'),
  ('attention/key_bias', 'self_attn.k_proj', 'attn_k', 'KH -> KH'),
  ('attention/value_bias', 'self_attn.v_proj', 'attn_v', 'KH -> KH'),
)
QK_NORM = (
  ('attention/query_norm', 'self_attn.q_norm', 'attn_q_norm', 'H -> H'),
  ('attention/key_norm', 'self_attn.k_norm', 'attn_k_norm', 'H -> H'),
)


def table(config: ModelConfig) -> tuple[Row, ...]:
  """The rows of a model: every parameter it has and no other."""
  rows = (
    *llama.ATTENTION,
    *llama.NORMS,
    *llama.MLP,
    *(_BIAS if config.qkv_bias else ()),
    *(QK_NORM if config.qk_norm else ()),
  )
  return (
    llama.EMBEDDING,
    *layer_rows(range(config.num_layers), rows),
    llama.NORM,
    *(() if config.tied_embedding else (llama.HEAD,)),
  )


def config_from_hf(facts: Facts) -> ModelConfig:
  """The model a config.json describes; absent keys are those of its class."""
  kind = facts.get('model_type')
  if kind == 'qwen3':  # Qwen2 has a bias on q, k and v whatever it says
    facts.only('attention_bias', False)
  head_dim = 128 if kind == 'qwen3' else None
  return ModelConfig(
    **llama.dense(facts, head_dim, 32768), **_options(kind), family=kind
  )


def hf_from_config(config: ModelConfig) -> dict[str, Any]:
  """`config_from_hf`, inverted."""
  name = config.family.capitalize()
  return {
    'architectures': [f'{name}ForCausalLM'],
    **llama.described(config),
    'use_sliding_window': False,
  }


def config_from_gguf(facts: Facts) -> ModelConfig:
  """The model the head of a GGUF file describes."""
  facts.only('attention.sliding_window', 0)
  kind = facts.values['general.architecture']
  return ModelConfig(**llama.gguf_dense(facts), **_options(kind), family=kind)


def _options(kind: str) -> dict[str, bool]:
  return {'qkv_bias': kind == 'qwen2', 'qk_norm': kind == 'qwen3'}
