"""Rotary position embedding and its stretches to longer texts."""

import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from rlzero.models.config import LinearScaling, RopeScaling


def frequencies(
  head_dim: int, theta: float, scaling: RopeScaling | LinearScaling | None
) -> np.ndarray:
  """Radians a position, [H / 2] float32 (arXiv 2104.09864, eq. 15).

  With Llama 3's scaling as its report (arXiv 2407.21783) and code have it.
  """
  half = head_dim // 2
  plain = theta ** (-np.arange(half) / half)
  if scaling is None:
    return plain.astype(np.float32)
  if isinstance(scaling, LinearScaling):
    return (plain / scaling.factor).astype(np.float32)
  turns = scaling.original_max_position * plain / (2 * np.pi)
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  kept = np.clip((turns - low) / (high - low), 0, 1)
  scaled = kept * plain + (1 - kept) * plain / scaling.factor
  return scaled.astype(np.float32)


def rotate(
  x: Float[Array, 'B *K T H'],
  positions: Int[Array, 'B T'],
  frequencies: Float[np.ndarray, 'half'] | Float[Array, 'half'],
) -> Float[Array, 'B *K T H']:
  """Rotary position embedding, halves paired (arXiv 2104.09864, eq. 34)."""
  angles = positions[..., None].astype(jnp.float32) * frequencies[None, None]
  angles = angles.reshape(
    angles.shape[0], *([1] * (x.ndim - 3)), *angles.shape[1:]
  )
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  ).astype(x.dtype)
