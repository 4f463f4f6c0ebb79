"""Which keys each token of a forward pass may look at.

A mask is a `Mask`, one number for each query and key, or, where a fused kernel
runs, the `SegmentIds` from which that kernel makes it (`attention.fuses`).
"""

from jax import numpy as jnp
from jaxtyping import Int

from rlzero.models import attention
from rlzero.models.attention import Mask, SegmentIds
from rlzero.models.config import ModelConfig
from rlzero.types import AnyArray, CachedContext, Prompts, Tokens


def make_mask(
  config: ModelConfig,
  ids: SegmentIds,
  query_positions: Int[AnyArray, 'B T'],
  key_positions: Int[AnyArray, 'B S'],
  causal: bool = False,
) -> Mask | SegmentIds:
  """The mask in the form that attention takes for rows of this length.

  Args:
    config: of the model; its window limits local layers.
    ids: a query looks at keys of its own id.
    query_positions: of the queries in their sequences.
    key_positions: of the keys in theirs.
    causal: whether a query looks at no key that stands behind it in the row.
  """
  if attention.fuses(config, ids.query.shape[1]):
    return ids
  return attention.sliding_window(
    ids.mask(causal), query_positions, key_positions, config.window
  )


def own_mask(config: ModelConfig, tokens: Tokens) -> Mask | SegmentIds:
  """Mask of rows over their own tokens: the same sequence, and not ahead."""
  ids = SegmentIds(tokens.segments, tokens.segments)
  return make_mask(config, ids, tokens.positions, tokens.positions, causal=True)


def prompt_mask(
  config: ModelConfig, rows: Tokens, prompts: Prompts
) -> Mask | SegmentIds:
  """Mask of rows over the M prompts each continues, [B, T, M * Tp].

  A token looks at the real tokens of the one prompt that it continues.
  """
  positions = prompts.tokens.positions[prompts.index]
  positions = positions.reshape(positions.shape[0], -1)
  real = (prompts.tokens.segments > 0)[prompts.index]
  slots = jnp.arange(prompts.index.shape[1])[None, :, None]
  slots = jnp.where(real, slots, -1)
  ids = SegmentIds(prompts.which, slots.reshape(slots.shape[0], -1))
  return make_mask(config, ids, rows.positions, positions)


def prefix_mask(
  config: ModelConfig, queries: Tokens, shared_prefix: Tokens
) -> Mask | SegmentIds:
  """Mask over the shared prefix, all of which every token may look at."""
  positions = jnp.broadcast_to(
    shared_prefix.positions[:1],
    (queries.ids.shape[0], shared_prefix.ids.shape[1]),
  )
  ids = SegmentIds(jnp.ones_like(queries.ids), jnp.ones_like(positions))
  return make_mask(config, ids, queries.positions, positions)


def context_masks(
  config: ModelConfig, rows: Tokens, context: CachedContext
) -> list[Mask | SegmentIds]:
  """Masks over each piece of a cached context."""
  query = jnp.zeros_like(rows.ids)
  return [
    make_mask(
      config,
      SegmentIds(query, jnp.where(valid, 0, -1)),
      rows.positions,
      positions,
    )
    for valid, positions in zip(context.valid, context.positions, strict=True)
  ]
