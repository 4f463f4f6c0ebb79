"""Qwen2, Qwen2.5 and Qwen2.5-Math; Qwen3, dense and of experts."""

from typing import Any

from rlzero.models.config import Experts, ModelConfig
from rlzero.weights.families import deepseek, llama
from rlzero.weights.metadata import Metadata
from rlzero.weights.rows import Row, layer_rows

SKIPPED = llama.SKIPPED
RENAMES = llama.RENAMES
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


def config_from_hf(metadata: Metadata) -> ModelConfig:
  """The model a config.json describes; absent keys are those of its class."""
  kind = metadata.get('model_type')
  if kind != 'qwen2':  # Qwen2 has a bias on q, k and v whatever it says
    metadata.require('attention_bias', False)
  head_dim = 128 if kind == 'qwen3' else None
  return ModelConfig(
    **llama.dense(metadata, head_dim, 32768),
    qkv_bias=kind == 'qwen2',
    qk_norm=kind != 'qwen2',
    experts=_experts(metadata) if kind == 'qwen3_moe' else None,
    family=kind,
  )


def _experts(metadata: Metadata) -> Experts:
  metadata.require('decoder_sparse_step', 1)
  # Those with an MLP are the first, or they are not implemented.
  dense = metadata.get('mlp_only_layers', [])
  metadata.require('mlp_only_layers', list(range(len(dense))), dense)
  return Experts(
    num_experts=metadata.size(
      'num_experts', metadata.get('num_local_experts', 128)
    ),
    num_chosen=metadata.size('num_experts_per_tok', 8),
    width=metadata.size('moe_intermediate_size', 768),
    num_dense_layers=len(dense),
    normalize=bool(metadata.get('norm_topk_prob', False)),
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


def config_from_gguf(metadata: Metadata) -> ModelConfig:
  """The model the head of a GGUF file describes."""
  metadata.require('attention.sliding_window', 0)
  kind = metadata.values['general.architecture']
  return ModelConfig(
    **llama.gguf_dense(metadata),
    qkv_bias=kind == 'qwen2',
    qk_norm=kind != 'qwen2',
    family=kind,
  )


def gguf_from_config(config: ModelConfig) -> dict[str, Any]:
  """`config_from_gguf`, inverted."""
  return llama.gguf_described(config)
