"""Grouped-query attention over a row's own keys and a shared prefix."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def causal_mask(segments: Int[Array, 'B T']) -> Bool[Array, 'B T T']:
  """Who may look at whom inside a row: the past of the same segment."""
  length = segments.shape[1]
  past = jnp.tril(jnp.ones((length, length), bool))
  return past[None] & (segments[:, :, None] == segments[:, None, :])


class Visible(NamedTuple):
  """Which keys exist for a query: in global layers, and in local ones."""

  everywhere: Bool[Array, 'B T S'] | Bool[Array, 'B 1 S']
  windowed: Bool[Array, 'B T S'] | None  # None: the model has no windows

  def of(self, local: Bool[Array, ''] | None) -> Bool[Array, 'B _ S']:
    """In a layer that is local or not."""
    if local is None or self.windowed is None:
      return self.everywhere
    return jnp.where(local, self.windowed, self.everywhere)


def windows(
  visible: Bool[Array, 'B T S'] | Bool[Array, 'B 1 S'],
  positions: Int[Array, 'B T'],
  keys: Int[Array, 'B S'],
  window: int,
) -> Visible:
  """Who is seen at all, and who of them from less than `window` tokens away.

  Args:
    visible: in global layers.
    positions: of the queries.
    keys: positions of the keys.
    window: tokens, the query's own included; 0 for a model without windows.
  """
  if not window:
    return Visible(visible, None)
  near = positions[:, :, None] - keys[:, None, :] < window
  return Visible(visible, visible & near)


class Part(NamedTuple):
  """Keys that a row's queries may look at, and which of them exist."""

  key: Float[Array, 'B K S H']
  value: Float[Array, 'B K S U']
  visible: Bool[Array, 'B T S'] | Bool[Array, 'B 1 S']


def attend(
  query: Float[Array, 'B K R T H'], parts: Sequence[Part], scale: float
) -> Float[Array, 'B K R T U']:
  """softmax(q k^T scale) v over the keys of all parts together.

  One softmax runs over the scores of the parts (a shared prompt or a cache,
  and the row's own past), while keys and values stay where they are: joining
  them would copy the whole cache for each token that is decoded. Scores and
  weights are float32. R = N / K queries share a key.
  """
  scores = []
  for part in parts:
    score = jnp.einsum(
      'bkrth,bksh->bkrts',
      query,
      part.key,
      preferred_element_type=jnp.float32,
    )
    visible = part.visible[:, None, None]
    scores.append(jnp.where(visible, score * scale, -jnp.inf))
  weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
  weights = weights.astype(query.dtype)
  out, start = 0, 0
  for part in parts:
    end = start + part.key.shape[2]
    out += jnp.einsum('bkrts,bksh->bkrth', weights[..., start:end], part.value)
    start = end
  return out
