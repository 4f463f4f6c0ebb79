"""Attention of a decoded token over the live part of a cache, on a TPU.

The cache is as long as its longest row, and most rows are shorter. A Pallas
kernel reads of each row only the blocks in which there is something to look at.
It goes through a list of these blocks, which is made once for all tokens and
layers of a call. What it returns can be joined with other keys: a softmax over
parts needs of each the largest score and the sum (arXiv 2205.14135, section
3.1).

It reads the whole cache where it lies, with the layer as an index. The paged
kernels that JAX ships take the cache of one layer, which would have to be
copied out of the others for every token, and they return no sums.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from rlzero.models import kv_cache
from rlzero.models.config import ModelConfig
from rlzero.runtime import sharding
from rlzero.types import KeyValues, LiveCache, LiveRange

_MOST = 1024  # positions of a block: longer ones hold more that is not live

_LEAST = 128  # what a TPU reads at once along the last axis

_BLOCK_BYTES = 2**20  # of keys; they, values and the next of both fit a TPU

_LOWEST = -1e30  # below every score, and finite


class Sums(NamedTuple):
  """A softmax over some keys, before it is divided by its sum; float32."""

  out: Float[Array, 'B K R U']
  top: Float[Array, 'B K R']  # the largest score
  total: Float[Array, 'B K R']  # of exp(score - top)


def serves(config: ModelConfig, cache_len: int) -> bool:
  """Whether decoding over a cache of this length uses the kernel, here."""
  return (
    sharding.platform() == 'tpu'
    and config.fused_attention
    and cache_len % _LEAST == 0
  )


def block_len(config: ModelConfig, cache_len: int) -> int:
  """Positions of a block of the cache on the current mesh."""
  num_heads, width = config.num_kv_heads, config.head_dim
  if config.latent:
    num_heads, width = 1, config.latent.kv_rank + config.latent.rope_dim
  else:
    num_heads = max(num_heads // sharding.axis_size('K'), 1)
  size = _MOST
  while size > _LEAST and (
    size * num_heads * width * jnp.dtype(config.dtype).itemsize > _BLOCK_BYTES
  ):
    size //= 2
  return min(size, cache_len)


def live_positions(
  config: ModelConfig, end: Int[np.ndarray, 'B'], cache_len: int
) -> Int[np.ndarray, 'B']:
  """Positions of each row that the kernel reads: those of whole blocks.

  Args:
    config: of the model.
    end: entries that are live, from the first on; of models with windows too,
      though local layers read fewer.
    cache_len: positions of a row.
  """
  size = block_len(config, cache_len)
  return np.minimum(np.maximum(-(-end // size), 1) * size, cache_len)


def live_range(
  first: Int[Array, 'B'], end: Int[Array, 'B'], size: int, cache_len: int
) -> LiveRange:
  """Lists the blocks that hold positions `first` to `end` - 1 of each row.

  A row without any has one block, since the kernel must write its sums.

  Args:
    first: position of each row.
    end: position behind the last.
    size: positions of a block.
    cache_len: positions of a row.
  """
  most = -(-cache_len // size)

  def local(first, end):
    begin = jnp.clip(first // size, 0, most - 1)
    stop = jnp.maximum((end + size - 1) // size, begin + 1)
    stops = jnp.cumsum(stop - begin)
    index = jnp.arange(len(first) * most)
    row = jnp.sum(index[:, None] >= stops[None], axis=1)
    row = jnp.minimum(row, len(first) - 1)  # of what is behind the last block
    block = index - jnp.where(row > 0, stops[row - 1], 0) + begin[row]
    block = jnp.minimum(block, most - 1)
    return row.astype(jnp.int32), block.astype(jnp.int32), stops[-1:]

  if sharding.on_mesh():
    rows = sharding.spec('B', first.shape, 'The rows of a cache')
    local = jax.shard_map(
      local,
      in_specs=(rows, rows),
      out_specs=rows,
      check_vma=False,  # rows are numbered on each device
    )
  return LiveRange(first, end, *local(first, end))


def live_cache(
  config: ModelConfig, cache: KeyValues, end: Int[Array, 'B']
) -> LiveCache:
  """A cache with the ranges that a kernel reads in a call of decoding.

  Args:
    config: of the model.
    cache: does not change during the call.
    end: entries of each row that are live, from the first on.
  """
  cache_len = kv_cache.capacity(config, cache)
  size = block_len(config, cache_len)
  ranges = [live_range(jnp.zeros_like(end), end, size, cache_len), None]
  if config.window:
    first = jnp.maximum(end - config.window + 1, 0)
    ranges[1] = live_range(first, end, size, cache_len)
  return LiveCache(cache, *ranges)


def at_step(
  config: ModelConfig, live: LiveCache, step: Int[Array, '']
) -> LiveCache:
  """Moves the window on by the tokens that a call has decoded."""
  if live.window is None:
    return live
  first = jnp.maximum(live.window.end + step - config.window + 1, 0)
  return live._replace(window=live.window._replace(first=first))


def of_layer(
  live: LiveCache, local: Bool[Array, ''] | bool | None
) -> LiveRange:
  """The range of a layer that is local or not."""
  if local is None or live.window is None:
    return live.everywhere
  return jax.tree.map(
    functools.partial(jnp.where, local), live.window, live.everywhere
  )


def attend(
  query: Float[Array, 'B K R H'],
  cache: KeyValues,
  layer: Int[Array, ''],
  live: LiveRange,
  size: int,
  scale: float,
  interpret: bool = False,
) -> Sums:
  """softmax(q k^T scale) v over the live positions; devices do their rows.

  Args:
    query: of the one token of each row.
    cache: of all layers; without values, these are the keys.
    layer: whose keys and values they are.
    live: from `live_range`.
    size: positions of a block, as `live_range` had it.
    scale: of the scores.
    interpret: runs the kernel as plain JAX, on any device.
  """
  key, value = cache
  assert isinstance(key, Array) and not isinstance(value, tuple)  # stacked
  kernel = functools.partial(_run, size=size, scale=scale, interpret=interpret)
  arrays = jnp.reshape(layer, 1), live, query, key, value
  if not sharding.on_mesh():
    return kernel(*arrays)

  def spec(axes, x):
    return sharding.spec(axes, x.shape, 'Attention')

  # One head of keys is on every device, and queries are split instead.
  of_cache, of_query = (
    ('LBK__', 'BK__') if key.shape[2] > 1 else ('LB___', 'B_N_')
  )
  whole, of_query = spec('_', arrays[0]), spec(of_query, query)
  of_row = jax.sharding.PartitionSpec(*of_query[:3])
  across = jax.shard_map(
    kernel,
    in_specs=(
      whole,
      jax.tree.map(lambda x: spec('B', x), live),
      of_query,
      spec(of_cache, key),
      None if value is None else spec(of_cache, value),
    ),
    out_specs=Sums._make((of_query, of_row, of_row)),
    check_vma=False,  # the kernel does not say along what its results vary
  )
  return across(*arrays)


def _run(layer, live, query, key, value, *, size, scale, interpret):
  """`attend` on one device."""
  num_rows, k, r, h = query.shape
  first, end, rows, blocks, number = live
  caches = [_positions_last(key) if value is None else (key, True)]
  if value is not None:
    caches.append(_positions_last(value))
  length = key.shape[3 if value is None else 4]
  width = h if value is None else value.shape[4]

  def of_row(step, layer, rows, *_):
    return rows[step], 0, 0, 0

  def of_block(step, layer, rows, blocks, *_, last):
    place = (0, blocks[step]) if last else (blocks[step], 0)
    return layer[0], rows[step], 0, *place

  specs = [pl.BlockSpec((1, k, r, h), of_row)]
  for array, last in caches:
    shape = (array.shape[3], size) if last else (size, array.shape[4])
    specs.append(
      pl.BlockSpec((1, 1, k, *shape), functools.partial(of_block, last=last))
    )
  out_shapes = [
    jax.ShapeDtypeStruct((num_rows, k, r, n), jnp.float32)
    for n in (width, _LEAST, _LEAST)
  ]
  # A call at its fullest, by which plans count it: every block of a layer.
  elements = sum(array.size // array.shape[0] for array, _ in caches)
  out, top, total = pl.pallas_call(
    functools.partial(
      _kernel,
      scale=scale,
      size=size,
      length=length,
      last=[last for _, last in caches],
    ),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=5,
      grid=(number[0],),
      in_specs=specs,
      out_specs=[
        pl.BlockSpec((1, *shape.shape[1:]), of_row) for shape in out_shapes
      ],
    ),
    out_shape=out_shapes,
    cost_estimate=pl.CostEstimate(
      flops=2 * r * elements,
      transcendentals=num_rows * k * r * length,
      bytes_accessed=elements * key.dtype.itemsize,
    ),
    interpret=interpret,
  )(layer, rows, blocks, first, end, query, *(array for array, _ in caches))
  return Sums(out, top[..., 0], total[..., 0])


def _positions_last(x):
  """Cached values, [L, B, K, S, U], as a TPU has them; are positions last?

  Where U would leave lanes empty and S does not, XLA has S there, and this
  transposition moves nothing.
  """
  last = x.shape[4] % _LEAST > 0
  return (x.swapaxes(3, 4) if last else x), last


def _kernel(
  layer, rows, blocks, first, end, query, *refs, scale, size, length, last
):
  """One block of one row, whose results stay where they are for the next."""
  del layer
  *caches, out, top, total = refs
  step = pl.program_id(0)
  row = rows[step]

  @pl.when((step == 0) | (rows[jnp.maximum(step - 1, 0)] != row))
  def _():
    out[...] = jnp.zeros_like(out)
    top[...] = jnp.full_like(top, _LOWEST)
    total[...] = jnp.zeros_like(total)

  key, value = caches[0][0, 0], caches[-1][0, 0]
  start = blocks[step] * size
  if length % size:  # what is behind the end of the cache may be no number
    inside = jax.lax.broadcasted_iota(jnp.int32, value.shape, 1 + last[-1])
    inside = inside < length - start
    value = jnp.where(inside, value, jnp.zeros_like(value))
  axes = 'krh,khs->krs' if last[0] else 'krh,ksh->krs'
  scores = _product(axes, query[0], key) * scale
  place = start + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 2)
  seen = (place >= first[row]) & (place < end[row])
  scores = jnp.where(seen, scores, _LOWEST)
  old = top[0][..., :1]
  new = jnp.maximum(old, jnp.max(scores, axis=-1, keepdims=True))
  weights = jnp.where(seen, jnp.exp(scores - new), 0.0)
  shrink = jnp.exp(old - new)
  more = jnp.sum(weights, axis=-1, keepdims=True)
  total[0] = total[0] * shrink + more
  axes = 'krs,kus->kru' if last[-1] else 'krs,ksu->kru'
  out[0] = out[0] * shrink + _product(axes, weights.astype(value.dtype), value)
  top[0] = jnp.broadcast_to(new, top.shape[1:])


def _product(axes, x, y):
  return jnp.einsum(axes, x, y, preferred_element_type=jnp.float32)
