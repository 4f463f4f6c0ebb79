"""Grouped-query attention over a row's own keys and a shared prefix."""

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def rotate(
    x: Float[Array, 'B *K T H'],
    positions: Int[Array, 'B T'],
    theta: float,
) -> Float[Array, 'B *K T H']:
  """Rotary position embedding, halves paired (arXiv 2104.09864, eq. 34)."""
  half = x.shape[-1] // 2
  frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angles = positions[..., None].astype(jnp.float32) * frequencies[None, None]
  angles = angles.reshape(
      angles.shape[0], *([1] * (x.ndim - 3)), *angles.shape[1:]
  )
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate(
      [first * cos - second * sin, second * cos + first * sin], axis=-1
  ).astype(x.dtype)


def causal_mask(segments: Int[Array, 'B T']) -> Bool[Array, 'B T T']:
  """Who may look at whom inside a row: the past of the same segment."""
  length = segments.shape[1]
  past = jnp.tril(jnp.ones((length, length), bool))
  return past[None] & (segments[:, :, None] == segments[:, None, :])


def attend(
    query: Float[Array, 'B K R T H'],
    key: Float[Array, 'B K T H'],
    value: Float[Array, 'B K T H'],
    mask: Bool[Array, 'B T T'],
    prefix_key: Float[Array, 'B K S H'] | None = None,
    prefix_value: Float[Array, 'B K S H'] | None = None,
    prefix_valid: Bool[Array, 'B S'] | None = None,
) -> Float[Array, 'B K R T H']:
  """softmax(q k^T / sqrt(H)) v over the prefix and the row's own past.

  One softmax runs over the scores of both parts, while keys and values stay
  where they are: joining them would copy the whole cache for each token that
  is decoded. Scores and weights are float32. R = N / K queries share a key.
  """
  scale = query.shape[-1] ** -0.5
  own = jnp.einsum(
      'bkrth,bksh->bkrts', query, key, preferred_element_type=jnp.float32
  )
  scores = jnp.where(mask[:, None, None], own * scale, -jnp.inf)
  if prefix_key is not None:
    prefix = jnp.einsum(
        'bkrth,bksh->bkrts',
        query,
        prefix_key,
        preferred_element_type=jnp.float32,
    )
    prefix = jnp.where(
        prefix_valid[:, None, None, None], prefix * scale, -jnp.inf
    )
    scores = jnp.concatenate([prefix, scores], axis=-1)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  if prefix_key is None:
    return jnp.einsum('bkrts,bksh->bkrth', weights, value)
  split = prefix_key.shape[2]
  return jnp.einsum(
      'bkrts,bksh->bkrth', weights[..., :split], prefix_value
  ) + jnp.einsum('bkrts,bksh->bkrth', weights[..., split:], value)
