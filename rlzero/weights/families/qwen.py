"""Qwen2, Qwen2.5 and Qwen2.5-Math; Qwen3, dense and of experts."""

from typing import Any

from rlzero.models.config import Experts, ModelConfig
from rlzero.weights.facts import Facts
from rlzero.weights.families import deepseek, llama
from rlzero.weights.rows import Row, layer_rows

LEFT_OUT = llama.LEFT_OUT
RENAMED = llama.RENAMED
EXTRA_TOKENS = llama.EXTRA_TOKENS

_BIAS = (
  ('attention/query_bias', 'self_attn.q_proj', 'attn_q'),
  ('attention/key_bias', 'self_attn.k_proj', 'attn_k'),
  ('attention/value_bias', 'self_attn.v_proj', 'attn_v'),
)
QK_NORM = (
  ('attention/query_norm', 'self_attn.q_norm', 'attn_q_norm'),
  ('attention/key_norm', 'self_attn.k_norm', 'attn_k_norm'),
)


def table(config: ModelConfig) -> tuple[Row, ...]:
  """The rows of a model: every parameter it has and no other."""
  rows = (
    *llama.ATTENTION,
    *llama.NORMS,
    *(_BIAS if config.qkv_bias else ()),
    *(QK_NORM if config.qk_norm else ()),
  )
  dense = range(config.num_dense_layers)
  stacks = layer_rows(dense, rows + llama.MLP)
  if config.experts:
    routed = range(config.num_dense_layers, config.num_layers)
    stacks = (
      *(layer_rows(dense, rows + llama.MLP, 'dense_layers') if dense else ()),
      *layer_rows(routed, rows + deepseek.EXPERTS),
    )
  return (
    llama.EMBEDDING,
    *stacks,
    llama.NORM,
    *(() if config.tied_embedding else (llama.HEAD,)),
  )


def config_from_hf(facts: Facts) -> ModelConfig:
  """The model a config.json describes; absent keys are those of its class."""
  kind = facts.get('model_type')
  if kind != 'qwen2':  # Qwen2 has a bias on q, k and v whatever it says
    facts.only('attention_bias', False)
  head_dim = 128 if kind == 'qwen3' else None
  return ModelConfig(
    **llama.dense(facts, head_dim, 32768),
    **_options(kind),
    experts=_experts(facts) if kind == 'qwen3_moe' else None,
    family=kind,
  )


def _experts(facts: Facts) -> Experts:
  facts.only('decoder_sparse_step', 1)
  # Those with an MLP are the first, or they are not implemented.
  dense = facts.get('mlp_only_layers', [])
  facts.only('mlp_only_layers', list(range(len(dense))), dense)
  return Experts(
    num_experts=facts.size('num_experts', facts.get('num_local_experts', 128)),
    num_chosen=facts.size('num_experts_per_tok', 8),
    width=facts.size('moe_intermediate_size', 768),
    num_dense_layers=len(dense),
    normalize=bool(facts.get('norm_topk_prob', False)),
  )


def hf_from_config(config: ModelConfig) -> dict[str, Any]:
  """`config_from_hf`, inverted."""
  name = config.family.title().replace('_', '')
  return {
    'architectures': [f'{name}ForCausalLM'],
    **llama.described(config),
    'use_sliding_window': False,
    **(_described_experts(config.experts) if config.experts else {}),
  }


def _described_experts(experts: Experts) -> dict[str, Any]:
  return {
    'decoder_sparse_step': 1,
    'mlp_only_layers': list(range(experts.num_dense_layers)),
    'num_experts': experts.num_experts,
    'num_experts_per_tok': experts.num_chosen,
    'moe_intermediate_size': experts.width,
    'norm_topk_prob': experts.normalize,
  }


def config_from_gguf(facts: Facts) -> ModelConfig:
  """The model the head of a GGUF file describes."""
  facts.only('attention.sliding_window', 0)
  kind = facts.values['general.architecture']
  return ModelConfig(**llama.gguf_dense(facts), **_options(kind), family=kind)


def _options(kind: str) -> dict[str, bool]:
  return {'qkv_bias': kind == 'qwen2', 'qk_norm': kind != 'qwen2'}
