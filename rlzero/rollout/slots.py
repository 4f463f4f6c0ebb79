"""Slots: the arrays of completions under way, and how they change size.

The cache has room for as many tokens as its rows are about to reach, not for
as many as they ever may, since attention reads all of it, or on a TPU all that
is live. It grows and shrinks between calls of `engine.decode`, and so does the
batch, in few sizes (`buckets.py`), since decoding is compiled for each.

A slot belongs to a device: where the mesh splits the rows in W shards, slots
are chosen shard by shard, and none moves to another device.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from rlzero.models import kv_cache
from rlzero.models.config import ModelConfig
from rlzero.runtime import sharding
from rlzero.types import KeyValues

PAGE_LEN = 64  # tokens that are read back together

NUM_PAGES = 8  # of each shard, in a call


class Tops(NamedTuple):
  """The K most likely tokens at each of T steps of a call, the first first.

  Without meaning where no row asked for them, and at steps that a row did not
  run.
  """

  ids: Int[Array, 'B T K']
  logprobs: Float[Array, 'B T K']  # in nats, under softmax(logits / T)


class Slots(NamedTuple):
  """State of B slots, each with room for S tokens, prompt included."""

  # Index s of a row is position s behind the shared prefix.
  cache: KeyValues | None
  cached: Int[Array, 'B']  # tokens in the cache
  token: Int[Array, 'B']  # sampled last, not in the cache yet
  key: UInt32[Array, 'B 2']
  tokens: Int[Array, 'B T']  # the completion so far
  logprobs: Float[Array, 'B T']
  length: Int[Array, 'B']  # tokens of the completion so far
  running: Bool[Array, 'B']
  # Experts of the completion's tokens, -1 where none were chosen yet.
  routes: Int[Array, 'L B T C'] | None = None
  tops: Tops | None = None  # inside of a call alone


# Fields that are not one array with the rows first.
_OTHER_FIELDS = ('cache', 'routes', 'tops')


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def empty_slots(
  config: ModelConfig,
  num_slots: int,
  cache_len: int,
  max_len: int,
  keep_routes: bool = False,
  unstacked: bool = False,
) -> Slots:
  """Slots in which nothing runs, with a cache of `cache_len` tokens each."""
  zeros = functools.partial(jnp.zeros, (num_slots,), jnp.int32)
  routes = None
  if keep_routes:
    assert config.experts is not None  # as a scheduler has checked
    routed = config.num_layers - config.num_dense_layers
    shape = routed, num_slots, max_len, config.experts.num_chosen
    routes = jnp.full(shape, -1, jnp.int16)
  slots = Slots(
    cache=kv_cache.empty_cache(config, num_slots, cache_len, unstacked),
    cached=zeros(),
    token=zeros(),
    key=jnp.zeros((num_slots, 2), jnp.uint32),
    tokens=jnp.zeros((num_slots, max_len), jnp.int32),
    logprobs=jnp.zeros((num_slots, max_len), jnp.float32),
    length=zeros(),
    running=jnp.zeros((num_slots,), bool),
    routes=routes,
  )
  return constrain_slots(slots)


def constrain_slots(
  slots: Slots, constrain: Callable[..., Any] = sharding.constrain
) -> Slots:
  """Shards slots over the mesh: rows, and heads where the mesh splits them.

  Args:
    slots: arrays, or their shapes.
    constrain: what is done with an array and the letters of its axes.
  """
  routes = slots.routes
  return Slots(
    cache=None
    if slots.cache is None
    else constrain_cache(slots.cache, constrain),
    routes=None if routes is None else constrain(routes, 'LBT_'),
    tops=jax.tree.map(lambda part: constrain(part, 'B__'), slots.tops),
    **{
      name: constrain(value, 'BT'[: value.ndim])
      for name, value in slots._asdict().items()
      if name not in _OTHER_FIELDS
    },
  )


def constrain_cache(
  cache: KeyValues, constrain: Callable[..., Any] = sharding.constrain
) -> KeyValues:
  """Shards cached keys and values by rows and heads."""
  return jax.tree.map(lambda part: constrain_part(part, constrain), cache)


def constrain_part(
  part: Any, constrain: Callable[..., Any] = sharding.constrain
) -> Any:
  """Shards one array of cached keys or values by rows and heads."""
  # Latent attention has one key for all heads, which every device needs.
  return constrain(part, 'LB___' if part.shape[2] == 1 else 'LBK__')


@functools.partial(jax.jit, static_argnames=('axis', 'cache_len'))
def resize_part(
  part: Array,
  chosen: Int[Array, 'W C'] | None,
  *,
  axis: int,
  cache_len: int,
) -> Array:
  """`Device.resize` of one array of the cache; `axis` is the positions'."""
  if chosen is not None and sharding.platform() != 'cpu':
    return constrain_part(_copy_rows(part, chosen, axis, cache_len))
  if chosen is not None:
    part = _take_rows(part, chosen, 1)
  more = max(cache_len - part.shape[axis], 0)
  size = min(cache_len, part.shape[axis])
  part = jax.lax.slice_in_dim(part, 0, size, axis=axis)
  part = jnp.pad(part, [(0, more if i == axis else 0) for i in range(5)])
  return constrain_part(part)


def _copy_rows(part, chosen, axis, cache_len):
  """The chosen rows of a part of the cache, copied one by one.

  Each device copies its own. XLA:TPU would need room for them several times to
  take them at once, which is faster on a CPU.
  """

  def local(part, chosen):
    sizes = list(part.shape)
    sizes[1], sizes[axis] = 1, min(cache_len, sizes[axis])

    def copy(new, place):
      to, row = place
      start = [row if i == 1 else 0 for i in range(5)]
      old = jax.lax.dynamic_slice(part, start, sizes)
      return jax.lax.dynamic_update_slice_in_dim(new, old, to, 1), None

    shape = list(part.shape)
    shape[1], shape[axis] = chosen.size, cache_len
    places = jnp.arange(chosen.size), chosen.reshape(-1)
    return jax.lax.scan(copy, jnp.zeros(shape, part.dtype), places)[0]

  if not sharding.on_mesh():
    return local(part, chosen)
  of_part = constrain_part(
    part, lambda x, axes: sharding.spec(axes, x.shape, 'A cache')
  )
  of_rows = sharding.spec('B_', chosen.shape, 'The rows of a cache')
  return jax.shard_map(
    local,
    in_specs=(of_part, of_rows),
    out_specs=of_part,
    check_vma=False,  # the index of a row is one of each device
  )(part, chosen)


@jax.jit
def choose_rows(slots: Slots, chosen: Int[Array, 'W C']) -> Slots:
  """`Device.resize` of everything but the cache, which must be None."""
  rows = {
    name: _take_rows(value, chosen, 0)
    for name, value in slots._asdict().items()
    if name not in _OTHER_FIELDS
  }
  rows['running'] &= chosen.reshape(-1) >= 0
  routes = slots.routes
  if routes is not None:
    routes = _take_rows(routes, chosen, 1)
  return constrain_slots(slots._replace(routes=routes, **rows))


class Pages(NamedTuple):
  """Pieces of completions: for each of W shards P pages of T tokens."""

  tokens: Int[Array, 'W P T']
  logprobs: Float[Array, 'W P T']
  routes: Int[Array, 'W P L T C'] | None


@functools.partial(jax.jit, static_argnames='page_len')
def read_pages(
  slots: Slots, where: Int[Array, 'W P 2'], *, page_len: int
) -> Pages:
  """Reads pieces of completions, so that the host need not fetch all slots.

  Args:
    slots: without the cache.
    where: the slot in its shard, and the first token, of each page.
    page_len: tokens of a page.
  """

  def read(x, axis):
    """Pages of an array [..., B, T, ...] whose rows are along the axis."""
    shards = x.reshape(
      *x.shape[:axis], where.shape[0], -1, *x.shape[axis + 1 :]
    )

    def one(shard, place):
      starts, sizes = [0] * shard.ndim, list(shard.shape)
      starts[axis], starts[axis + 1] = place
      sizes[axis], sizes[axis + 1] = 1, page_len
      return jax.lax.dynamic_slice(shard, starts, sizes).squeeze(axis)

    pages = jax.vmap(jax.vmap(one, (None, 0)), (axis, 0))(shards, where)
    return sharding.constrain(pages, 'B' + '_' * (pages.ndim - 1))

  routes = slots.routes
  return Pages(
    read(slots.tokens, 0),
    read(slots.logprobs, 0),
    None if routes is None else read(routes, 1),
  )


@functools.partial(jax.jit, static_argnames='count')
def read_last(
  slots: Slots, *, count: int
) -> tuple[Int[Array, 'B T'], Float[Array, 'B T']]:
  """The last T = `count` tokens of each completion, and their log-probs.

  Of one that is shorter, its tokens come first.
  """
  first = jnp.maximum(slots.length - count, 0)
  index = first[:, None] + jnp.arange(count)[None]
  return (
    jnp.take_along_axis(slots.tokens, index, axis=1, mode='clip'),
    jnp.take_along_axis(slots.logprobs, index, axis=1, mode='clip'),
  )


def _take_rows(x, chosen, axis):
  """Rows along an axis, [..., B, ...], by their indices in each of W shards.

  One index over all rows would gather them all on every device.
  """
  num_shards = chosen.shape[0]
  shards = x.reshape(*x.shape[:axis], num_shards, -1, *x.shape[axis + 1 :])
  taken = jax.vmap(
    lambda rows, index: rows[(slice(None),) * axis + (index,)], (axis, 0), axis
  )(shards, chosen)
  return taken.reshape(*x.shape[:axis], chosen.size, *x.shape[axis + 1 :])
