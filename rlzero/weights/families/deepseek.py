"""DeepSeek-V2 and V3; R1-Zero and R1 are V3."""

from typing import Any

from rlzero.models.config import Experts, Latent, ModelConfig
from rlzero.weights.families import llama
from rlzero.weights.metadata import Metadata
from rlzero.weights.rows import Row, layer_rows

SKIPPED = llama.SKIPPED | {
  # The layer after the last; V3 is trained with it and generates without.
  'model.layers.{after}.*': (
    'the layer that predicts a second token, which no stage here trains or uses'
  )
}
RENAMES = llama.RENAMES
EXTRA_TOKENS = llama.EXTRA_TOKENS

_ATTENTION = (
  (
    'attention/latent_down',
    'self_attn.kv_a_proj_with_mqa',
    '',
  ),
  ('attention/latent_norm', 'self_attn.kv_a_layernorm', ''),
  ('attention/latent_up', 'self_attn.kv_b_proj', ''),
  ('attention/latent_output', 'self_attn.o_proj', ''),
)
_QUERY = (('attention/query', 'self_attn.q_proj', ''),)
_QUERY_RANK = (
  ('attention/query_down', 'self_attn.q_a_proj', ''),
  ('attention/query_down_norm', 'self_attn.q_a_layernorm', ''),
  ('attention/query_up', 'self_attn.q_b_proj', ''),
)
_SHARED = (
  ('moe/shared_gate', 'mlp.shared_experts.gate_proj', ''),
  ('moe/shared_up', 'mlp.shared_experts.up_proj', ''),
  ('moe/shared_down', 'mlp.shared_experts.down_proj', ''),
)
EXPERTS = (
  ('moe/router', 'mlp.gate', ''),
  ('moe/expert_gate', 'mlp.experts.{E}.gate_proj', ''),
  ('moe/expert_up', 'mlp.experts.{E}.up_proj', ''),
  ('moe/expert_down', 'mlp.experts.{E}.down_proj', ''),
)


def table(config: ModelConfig) -> tuple[Row, ...]:
  """The rows of a model: every parameter it has and no other."""
  assert config.latent and config.experts
  dense = range(config.num_dense_layers)
  routed = range(config.num_dense_layers, config.num_layers)
  attention = llama.NORMS + _ATTENTION
  attention += _QUERY_RANK if config.latent.query_rank else _QUERY
  experts = EXPERTS + (_SHARED if config.experts.shared_width else ())
  stack = layer_rows(dense, attention + llama.MLP, 'dense_layers')
  bias = Row(
    'layers/moe/router_bias',
    'model.layers.{L}.mlp.gate.e_score_correction_bias',
    layers=routed,
  )
  return (
    llama.EMBEDDING,
    *(stack if dense else ()),
    *layer_rows(routed, attention + experts),
    *((bias,) if config.experts.scores == 'sigmoid' else ()),
    llama.NORM,
    *(() if config.tied_embedding else (llama.HEAD,)),
  )


def config_from_hf(metadata: Metadata) -> ModelConfig:
  """The model a config.json describes; absent keys are those of its class."""
  third = metadata.get('model_type') == 'deepseek_v3'
  for key, wanted in (
    ('attention_bias', False),
    ('mlp_bias', False),
    ('rope_interleave', True),
    ('moe_layer_freq', 1),
    ('scoring_func', 'sigmoid' if third else 'softmax'),
    ('rms_norm_eps', 1e-6),  # transformers' norms of latents have no other
  ):
    metadata.require(key, wanted)
  rope_dim = metadata.size('qk_rope_head_dim', 64)
  fields = llama.dense(metadata, max_position=4096 if third else 2048)
  fields['head_dim'] = metadata.size('qk_nope_head_dim', 128) + rope_dim
  metadata.require('num_key_value_heads', fields['num_heads'])
  return ModelConfig(
    **fields,
    latent=Latent(
      kv_rank=metadata.size('kv_lora_rank', 512),
      rope_dim=rope_dim,
      value_dim=metadata.size('v_head_dim', 128),
      # Here null says that there is none.
      query_rank=metadata.values.get('q_lora_rank', 1536) or 0,
    ),
    experts=_experts(metadata, third),
    family=metadata.get('model_type'),
  )


def _experts(metadata: Metadata, third: bool) -> Experts:
  groups = metadata.size('n_group', 8 if third else 1)
  chosen = metadata.size('topk_group', 4 if third else 1)
  if third:
    metadata.require('topk_method', 'noaux_tc')
  else:
    # transformers' router knows no other; so do the published models.
    metadata.require('norm_topk_prob', False)
    method = metadata.get('topk_method', 'greedy')
    if method == 'greedy':
      groups = chosen = 1
    elif method != 'group_limited_greedy':
      raise metadata.refusal(
        f'topk_method = {method!r}', "'greedy' and 'group_limited_greedy'"
      )
  width = metadata.size('moe_intermediate_size', 2048 if third else 1407)
  return Experts(
    num_experts=metadata.size('n_routed_experts', 256 if third else 64),
    num_chosen=metadata.size('num_experts_per_tok', 8 if third else None),
    width=width,
    shared_width=width * metadata.size('n_shared_experts', 1 if third else 2),
    num_dense_layers=metadata.size('first_k_dense_replace', 3 if third else 0),
    scores='sigmoid' if third else 'softmax',
    num_groups=groups,
    num_chosen_groups=chosen,
    normalize=bool(metadata.get('norm_topk_prob', third)),
    scale=metadata.number('routed_scaling_factor', 2.5 if third else 1.0),
  )


def hf_from_config(config: ModelConfig) -> dict[str, Any]:
  """`config_from_hf`, inverted."""
  third = config.family == 'deepseek_v3'
  a, e = config.latent, config.experts
  assert a and e
  described = llama.described(config)
  del described['head_dim']
  if third:
    method = 'noaux_tc'
  else:
    method = 'group_limited_greedy' if e.num_groups > 1 else 'greedy'
  return {
    'architectures': [f'DeepseekV{3 if third else 2}ForCausalLM'],
    **described,
    'q_lora_rank': a.query_rank or None,
    'kv_lora_rank': a.kv_rank,
    'qk_nope_head_dim': config.head_dim - a.rope_dim,
    'qk_rope_head_dim': a.rope_dim,
    'v_head_dim': a.value_dim,
    'n_routed_experts': e.num_experts,
    'n_shared_experts': e.shared_width // e.width,
    'num_experts_per_tok': e.num_chosen,
    'moe_intermediate_size': e.width,
    'first_k_dense_replace': e.num_dense_layers,
    'n_group': e.num_groups,
    'topk_group': e.num_chosen_groups,
    'topk_method': method,
    'scoring_func': e.scores,
    'norm_topk_prob': e.normalize,
    'routed_scaling_factor': e.scale,
    # The layer that predicts a second token is not among the weights.
    **({'num_nextn_predict_layers': 0} if third else {}),
  }
