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


class Part(NamedTuple):
  """Keys that a row's queries may look at, and which of them exist."""

  key: Float[Array, 'B K S H']
  value: Float[Array, 'B K S H']
  visible: Bool[Array, 'B T S'] | Bool[Array, 'B 1 S']


def attend(
  query: Float[Array, 'B K R T H'], parts: Sequence[Part]
) -> Float[Array, 'B K R T H']:
  """softmax(q k^T / sqrt(H)) v over the keys of all parts together.

  One softmax runs over the scores of the parts (a shared prompt or a cache,
  and the row's own past), while keys and values stay where they are: joining
  them would copy the whole cache for each token that is decoded. Scores and
  weights are float32. R = N / K queries share a key.
  """
  scale = query.shape[-1] ** -0.5
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
