"""Writes a call's new keys and values into the cache.

Every row has its new ones at the same index of a buffer and wants them behind
its own last position. There are two ways with equal results for rows that have
room: one pass over the whole cache, and one small write a row in place.
"""

import jax
from jax import numpy as jnp
from jaxtyping import Array, Int

from rlzero.models import kv_cache
from rlzero.models.config import ModelConfig
from rlzero.rollout.slots import constrain_part
from rlzero.runtime import sharding
from rlzero.types import KeyValues


def merge(
  config: ModelConfig,
  cache: KeyValues,
  new: KeyValues,
  start: Int[Array, 'B'],
) -> KeyValues:
  """The cache with new keys and values behind those that it had.

  On a CPU one pass takes as long as a write a row (docs/results/not_faster.md).
  Elsewhere it would need room for the cache twice.

  Args:
    config: of the model.
    cache: given away.
    new: of `num_steps` positions a row.
    start: positions that each row had.
  """
  by_row = sharding.platform() != 'cpu'
  return (merge_by_rows if by_row else merge_at_once)(config, cache, new, start)


def merge_at_once(
  config: ModelConfig,
  cache: KeyValues,
  new: KeyValues,
  start: Int[Array, 'B'],
) -> KeyValues:
  """`merge` in one pass over the cache, which makes a new one."""
  num_steps = kv_cache.capacity(config, new)
  # Position s of a slot was written at step s - start of the call.
  age = jnp.arange(kv_cache.capacity(config, cache))[None] - start[:, None]
  is_new = (age >= 0) & (age < num_steps)
  index = jnp.clip(age, 0, num_steps - 1)

  def of_part(axis, old, buffer):
    others = [i for i in range(5) if i not in (1, axis)]
    moved = jnp.take_along_axis(
      buffer, jnp.expand_dims(index, others), axis=axis
    )
    return jnp.where(jnp.expand_dims(is_new, others), moved, old)

  return kv_cache.map_cache(of_part, config, cache, new)


def merge_by_rows(
  config: ModelConfig,
  cache: KeyValues,
  new: KeyValues,
  start: Int[Array, 'B'],
) -> KeyValues:
  """`merge` row by row, in place where the cache is given away.

  In a row without room for all new positions the last ones it has are
  overwritten: nothing may run in it. Each device writes its own rows.
  """

  def of_part(axis, old, buffer):
    def write(cache, row):
      index, new, first = row
      place = [0, index, 0, 0, 0]
      place[axis] = first
      return jax.lax.dynamic_update_slice(cache, new[:, None], place), None

    # A loop over rows as inputs; XLA:TPU of libtpu 0.0.42 does not compile one
    # that takes a slice of all rows at each turn.
    def local(old, buffer, start):
      rows = jnp.arange(old.shape[1]), jnp.moveaxis(buffer, 1, 0), start
      return jax.lax.scan(write, old, rows)[0]

    if not sharding.on_mesh():
      return local(old, buffer, start)
    of_rows = sharding.spec('B', start.shape, 'The rows of a cache')
    of_cache, of_new = (
      constrain_part(
        part, lambda x, axes: sharding.spec(axes, x.shape, 'A cache')
      )
      for part in (old, buffer)
    )
    return jax.shard_map(
      local,
      in_specs=(of_cache, of_new, of_rows),
      out_specs=of_cache,
      check_vma=False,  # the index of a row is one of each device
    )(old, buffer, start)

  return kv_cache.map_cache(of_part, config, cache, new)
