"""Rotary position embedding and its stretches to longer texts."""

from typing import NamedTuple

import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlzero.models.config import LinearScaling, ModelConfig, RopeScaling, Yarn
from rlzero.types import AnyArray

Scaling = RopeScaling | LinearScaling | Yarn


def frequencies(
  head_dim: int, theta: float, scaling: Scaling | None
) -> np.ndarray:
  """Radians a position, [H / 2] float32 (arXiv 2104.09864, eq. 15).

  With Llama 3's scaling as its report (arXiv 2407.21783) and code have it, or
  YaRN's (arXiv 2309.00071, section 3.2) with whole dimensions as its bounds.
  """
  half = head_dim // 2
  plain = theta ** (-np.arange(half) / half)
  if scaling is None:
    return plain.astype(np.float32)
  if isinstance(scaling, LinearScaling):
    return (plain / scaling.factor).astype(np.float32)
  if isinstance(scaling, Yarn):
    low, high = (
      half
      * np.log(scaling.original_max_position / (2 * np.pi * rotations))
      / np.log(theta)
      for rotations in (scaling.beta_fast, scaling.beta_slow)
    )
    low, high = max(np.floor(low), 0), min(np.ceil(high), head_dim - 1)
    # A step where the bounds meet, as the paper's code has it.
    kept = 1 - np.clip((np.arange(half) - low) / max(high - low, 1e-3), 0, 1)
    scaled = kept * plain + (1 - kept) * plain / scaling.factor
    return scaled.astype(np.float32)
  rotations = scaling.original_max_position * plain / (2 * np.pi)
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  kept = np.clip((rotations - low) / (high - low), 0, 1)
  scaled = kept * plain + (1 - kept) * plain / scaling.factor
  return scaled.astype(np.float32)


def amplitude(scaling: Scaling | None) -> float:
  """The factor of rotated queries and keys.

  sqrt(1/t) of YaRN (arXiv 2309.00071, eq. 22), as DeepSeek weights it.
  """
  if not isinstance(scaling, Yarn):
    return 1.0
  if scaling.mscale and scaling.mscale_all_dim:
    return _mscale(scaling.factor, scaling.mscale) / _mscale(
      scaling.factor, scaling.mscale_all_dim
    )
  return _mscale(scaling.factor, 1.0)


def score_scale(scaling: Scaling | None) -> float:
  """The factor of all scores of latent attention under DeepSeek's YaRN."""
  if not isinstance(scaling, Yarn) or not scaling.mscale_all_dim:
    return 1.0
  return _mscale(scaling.factor, scaling.mscale_all_dim) ** 2


def _mscale(factor: float, weight: float) -> float:
  return 0.1 * weight * float(np.log(factor)) + 1.0


# Cosines and sines of positions.
CosSin = tuple[Float[Array, 'B T half'], Float[Array, 'B T half']]


class RopeTable(NamedTuple):
  """Cosines and sines of positions, [B, T, H / 2]; made once for all layers.

  Left to each layer, a compiler would take them again for every head.
  """

  global_layers: CosSin
  local_layers: CosSin | None  # None: the model has no windows

  def of(self, local: Bool[Array, ''] | bool | None) -> CosSin:
    """The cosines and sines of a layer that is local or not."""
    if local is None or self.local_layers is None:
      return self.global_layers
    cos, sin = (
      jnp.where(local, near, far)
      for near, far in zip(self.local_layers, self.global_layers, strict=True)
    )
    return cos, sin


def make_table(
  config: ModelConfig, positions: Int[AnyArray, 'B T']
) -> RopeTable:
  """RoPE cosines and sines for these positions."""
  width = config.latent.rope_dim if config.latent else config.head_dim
  size = amplitude(config.rope_scaling)

  def table(theta, scaling):
    each = frequencies(width, theta, scaling)
    radians = positions[..., None].astype(jnp.float32) * each[None, None]
    return jnp.cos(radians) * size, jnp.sin(radians) * size

  return RopeTable(
    table(config.rope_theta, config.rope_scaling),
    table(config.local_rope_theta, None) if config.window else None,
  )


def rotate(
  x: Float[Array, 'B *K T H'],
  cos_sin: CosSin,
  interleaved: bool = False,
) -> Float[Array, 'B *K T H']:
  """Rotary position embedding (arXiv 2104.09864, eq. 34).

  Args:
    x: queries or keys.
    cos_sin: cosines and sines, of `RopeTable`.
    interleaved: whether dimensions 2i and 2i + 1 are a pair, else i and
      i + H / 2. The result has the halves one after the other either way.
  """
  cos, sin = (jnp.expand_dims(part, range(1, x.ndim - 2)) for part in cos_sin)
  x32 = x.astype(jnp.float32)
  if interleaved:
    first, second = x32[..., 0::2], x32[..., 1::2]
  else:
    first, second = jnp.split(x32, 2, axis=-1)
  return jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  ).astype(x.dtype)
