"""Caches of keys and values, as `KeyValues` lays them out."""

import functools
from collections.abc import Callable

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Int

from rlzero.models.config import ModelConfig
from rlzero.types import CachedContext, KeyValues


def empty_cache(
  config: ModelConfig, num_rows: int, cache_len: int, unstacked: bool = False
) -> KeyValues:
  """Room for the keys and values of rows of `cache_len` tokens."""
  k, h = config.num_kv_heads, config.head_dim
  if config.latent:
    k, h = 1, config.latent.kv_rank + config.latent.rope_dim
  dtype = jnp.dtype(config.dtype)

  def part(axis):
    shape = [num_rows, k, h]
    shape.insert(axis - 1, cache_len)
    if unstacked:
      return (jnp.zeros((1, *shape), dtype),) * config.num_layers
    return jnp.zeros((config.num_layers, *shape), dtype)

  key_axis, value_axis = position_axes(config)
  return KeyValues(part(key_axis), None if config.latent else part(value_axis))


def position_axes(config: ModelConfig) -> tuple[int, int]:
  """Which axes of cached keys and of cached values the positions are."""
  return 3 if config.latent else 4, 3


def capacity(config: ModelConfig, cache: KeyValues) -> int:
  """Tokens that a row of the cache has room for."""
  one = jax.tree.leaves(cache.key)[0]
  return one.shape[position_axes(config)[0]]


def map_cache(
  function: Callable[..., Array], config: ModelConfig, *caches: KeyValues
) -> KeyValues:
  """Maps `function(position_axis, *arrays)` over the keys and the values."""
  axes = position_axes(config)
  return KeyValues(
    *(
      jax.tree.map(functools.partial(function, axis), *parts)
      for axis, *parts in zip(axes, *caches, strict=True)
    )
  )


def prefix_context(
  config: ModelConfig, shared_prefix: KeyValues | None, num_rows: int
) -> CachedContext:
  """The shared prefix, if any, as rows look at it."""
  if shared_prefix is None:
    return CachedContext((), (), ())
  length = capacity(config, shared_prefix)
  positions = jnp.broadcast_to(jnp.arange(length), (num_rows, length))
  return CachedContext(
    (shared_prefix,), (jnp.ones_like(positions, bool),), (positions,)
  )


def with_piece(
  context: CachedContext,
  cache: KeyValues,
  valid: Bool[Array, 'B S'],
  positions: Int[Array, 'B S'],
) -> CachedContext:
  """A context with one more piece."""
  return context._replace(
    cache=(*context.cache, cache),
    valid=(*context.valid, valid),
    positions=(*context.positions, positions),
  )
