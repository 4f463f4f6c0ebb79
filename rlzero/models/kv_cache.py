"""Caches of keys and values, as `KeyValues` lays them out."""

from jax import numpy as jnp

from rlzero.models.config import ModelConfig
from rlzero.types import KeyValues


def empty_cache(
  config: ModelConfig, num_rows: int, span: int, unstacked: bool = False
) -> KeyValues:
  """Room for the keys and values of rows of `span` tokens."""
  k, h = config.num_kv_heads, config.head_dim
  if config.latent:
    k, h = 1, config.latent.kv_rank + config.latent.rope_dim
  dtype = jnp.dtype(config.dtype)

  def part(axis):
    shape = [num_rows, k, h]
    shape.insert(axis - 1, span)
    if unstacked:
      return (jnp.zeros((1, *shape), dtype),) * config.num_layers
    return jnp.zeros((config.num_layers, *shape), dtype)

  axes = position_axes(config)
  return KeyValues(part(axes.key), None if config.latent else part(axes.value))


def position_axes(config: ModelConfig) -> KeyValues:
  """Which axes of cached keys and of cached values the positions are."""
  return KeyValues(3 if config.latent else 4, 3)
