"""Grouped-query attention over a row's own keys and a shared prefix.

There are two ways with equal results: plain, which holds all scores, and the
fused kernels that JAX has for TPUs (Pallas splash attention) and GPUs (cuDNN),
which do not.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import jax
from jax import numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from rlzero.models import live_attention, splash
from rlzero.models.config import ModelConfig
from rlzero.runtime import sharding
from rlzero.types import AnyArray, KeyValues, LiveRange

_SHORTEST = 128  # tokens; what the kernels' blocks hold
_WIDEST = 128  # numbers of a head, of those that cuDNN has on every GPU


class SegmentIds(NamedTuple):
  """The mask as ids: a query may look at the keys of its own id."""

  query: Int[AnyArray, 'B T']
  key: Int[AnyArray, 'B S']

  def mask(self, causal: bool) -> Bool[Array, 'B T S']:
    """The mask for each query and key; causal: and not ahead in the row."""
    same = self.query[:, :, None] == self.key[:, None]
    if not causal:
      return same
    length = self.query.shape[1]
    return same & jnp.tril(jnp.ones((length, length), bool))[None]

  def of(self, local: Bool[Array, ''] | bool | None) -> 'SegmentIds':
    """As `Mask.of`; kernels are not used for models with windows."""
    del local
    return self


class Mask(NamedTuple):
  """Which keys a query may look at, in global layers and in local ones."""

  global_mask: Bool[Array, 'B T S'] | Bool[Array, 'B 1 S']
  window_mask: Bool[Array, 'B T S'] | None  # None: the model has no windows

  def of(self, local: Bool[Array, ''] | bool | None) -> Bool[Array, 'B _ S']:
    """The mask of a layer that is local or not."""
    if local is None or self.window_mask is None:
      return self.global_mask
    return jnp.where(local, self.window_mask, self.global_mask)


def sliding_window(
  visible: Bool[Array, 'B T S'] | Bool[Array, 'B 1 S'],
  positions: Int[AnyArray, 'B T'],
  keys: Int[AnyArray, 'B S'],
  window: int,
) -> Mask:
  """Adds to a mask the one of local layers, which look back `window` tokens.

  Args:
    visible: the mask of global layers.
    positions: of the queries.
    keys: positions of the keys.
    window: tokens, the query's own included; 0 for a model without windows.
  """
  if not window:
    return Mask(visible, None)
  near = positions[:, :, None] - keys[:, None, :] < window
  return Mask(visible, visible & near)


class KeyValueHeads(NamedTuple):
  """Keys and values of heads, as attention takes them."""

  key: Float[Array, 'B K S H']
  value: Float[Array, 'B K S U']


class Part(NamedTuple):
  """Keys that a row's queries may look at, and which of them exist.

  Those that all rows of a device look at alike are there once for it.
  """

  key: Float[Array, 'B K S H']
  value: Float[Array, 'B K S U']
  visible: Bool[Array, 'B T S'] | Bool[Array, 'B 1 S'] | SegmentIds


class LivePart(NamedTuple):
  """One layer of a cache, of which a kernel reads what is live."""

  cache: KeyValues  # of all layers
  layer: Int[Array, '']
  live: LiveRange
  block_len: int


def attend(
  query: Float[Array, 'B K R T H'],
  parts: Sequence[Part],
  scale: float,
  live: LivePart | None = None,
) -> Float[Array, 'B K R T U']:
  """softmax(q k^T scale) v over the keys of all parts together.

  One softmax runs over the scores of the parts (a shared prompt or a cache,
  and the row's own past). For the one query of a row that is decoded, keys and
  values stay where they are: joining them would copy the whole cache. For many
  queries it is their scores that are larger. Scores and weights are float32.
  R = N / K queries share a key. The last part is the row's own past; where
  `fuses` says so, parts are visible by ids. `live` is one more part, of one
  query a row.
  """
  if query.shape[3] > 1:
    parts = [_of_each_row(part, query.shape[0]) for part in parts]
    if isinstance(parts[-1].visible, SegmentIds):
      return _fused(query, parts, scale)
    keys, values, visible = zip(*parts, strict=True)
    parts = [
      Part(
        jnp.concatenate(keys, axis=2),
        jnp.concatenate(values, axis=2),
        jnp.concatenate(visible, axis=2),
      )
    ]
  scores = []
  for part in parts:
    score = _product('bkrth,bksh->bkrts', query, part.key, jnp.float32)
    assert not isinstance(part.visible, SegmentIds)  # of kernels alone
    visible = part.visible[:, None, None]
    scores.append(jnp.where(visible, score * scale, -jnp.inf))
  joint = sharding.platform() == 'cpu' or query.shape[3] > 1
  out = 0
  if live is not None:
    read = live_attention.attend(query[:, :, :, 0], *live, scale)
    weights, out = _weights_beside(read, scores, query.dtype)
  else:
    weights = (_weights if joint else _weights_apart)(scores, query.dtype)
  for weight, part in zip(weights, parts, strict=True):
    out += _product('bkrts,bksh->bkrth', weight, part.value)
  return checkpoint_name(out, 'attention_output')


def _weights(scores: Sequence[Array], dtype: DTypeLike) -> Iterator[Array]:
  """One softmax over the last axes of all parts, taken apart again."""
  weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
  weights, start = weights.astype(dtype), 0
  for score in scores:
    end = start + score.shape[-1]
    yield weights[..., start:end]
    start = end


def _weights_apart(
  scores: Sequence[Array], dtype: DTypeLike
) -> Iterator[Array]:
  """`_weights` of parts that are never joined; sums are in another order.

  Accelerators then find the largest score as they make them, and make the
  weights as they use them: scores are written once and read twice.
  """
  top = functools.reduce(
    jnp.maximum, [jnp.max(score, axis=-1, keepdims=True) for score in scores]
  )
  weights = [jnp.exp(score - top) for score in scores]
  total = sum(jnp.sum(weight, axis=-1, keepdims=True) for weight in weights)
  return ((weight / total).astype(dtype) for weight in weights)


def _weights_beside(
  read: live_attention.Sums, scores: Sequence[Array], dtype: DTypeLike
) -> tuple[list[Array], Array]:
  """`_weights_apart` beside keys that a kernel has read, and their part."""
  top, total = read.top[..., None, None], read.total[..., None, None]
  highest = functools.reduce(
    jnp.maximum, [jnp.max(score, axis=-1, keepdims=True) for score in scores]
  )
  highest = jnp.maximum(highest, top)
  weights = [jnp.exp(score - highest) for score in scores]
  shrink = jnp.exp(top - highest)
  total = total * shrink + sum(
    jnp.sum(weight, axis=-1, keepdims=True) for weight in weights
  )
  out = (read.out[:, :, :, None] * (shrink / total)).astype(dtype)
  return [(weight / total).astype(dtype) for weight in weights], out


def _product(axes, x, of_rows, dtype=None):
  """An einsum with keys or values; as one product where all rows share them."""
  if of_rows.shape[0] == 1 < x.shape[0]:
    axes, of_rows = axes.replace('bksh', 'ksh'), of_rows[0]
  return jnp.einsum(axes, x, of_rows, preferred_element_type=dtype)


def _of_each_row(part, rows):
  """Keys that rows share, copied for each."""

  def spread(x):
    return jnp.repeat(x, rows // x.shape[0], axis=0)

  return Part(spread(part.key), spread(part.value), part.visible)


def fuses(config: ModelConfig, length: int) -> bool:
  """Whether a kernel serves rows of this many tokens, here."""
  return has_kernel(config, length, sharding.platform())


def has_kernel(config: ModelConfig, length: int, platform: str) -> bool:
  """Whether a kernel serves rows of this many tokens on such devices."""
  if config.window or length < _SHORTEST or not config.fused_attention:
    return False
  # cuDNN has 16 bits alone, heads of few sizes, and values as wide as keys.
  served = (
    config.dtype == 'bfloat16'
    and config.latent is None
    and config.head_dim % 8 == 0
    and config.head_dim <= _WIDEST
  )
  return platform == 'tpu' or (platform in ('gpu', 'cuda') and served)


# Keys, values and ids of queries and keys, of a part.
_Arrays = tuple[Array, Array, AnyArray, AnyArray]


def _fused(query: Array, parts: Sequence[Part], scale: float) -> Array:
  """`attend` by a kernel; on a mesh, each device does its rows and heads."""
  kernel = _splash if sharding.platform() == 'tpu' else _cudnn
  arrays: list[_Arrays] = []
  for part in parts:
    assert isinstance(part.visible, SegmentIds)  # as `fuses` says
    arrays.append((part.key, part.value, part.visible.query, part.visible.key))
  if not sharding.on_mesh():
    return kernel(query, arrays, scale)

  def spec(axes, x):
    return sharding.spec(axes, x.shape, 'Attention')

  each = [
    tuple(map(spec, ('BKSH', 'BKSU', 'BT', 'BS'), part)) for part in arrays
  ]
  across = jax.shard_map(
    lambda query, arrays: kernel(query, arrays, scale),
    in_specs=(spec('BKRTH', query), each),
    out_specs=spec('BKRTU', query),
    check_vma=False,  # the kernels do not say along what they vary
  )
  return across(query, arrays)


def _splash(query: Array, arrays: Sequence[_Arrays], scale: float) -> Array:
  b, k, r, t, h = query.shape
  own = len(arrays) - 1
  parts = [splash.Keys(*part, i == own) for i, part in enumerate(arrays)]
  out = splash.attend((query * scale).reshape(b, k * r, t, h), parts)
  return out.reshape(b, k, r, t, -1)


def _cudnn(
  query: Array,
  arrays: Sequence[_Arrays],
  scale: float,
  implementation: Literal['cudnn', 'xla'] = 'cudnn',
) -> Array:
  b, k, r, t, h = query.shape
  keys, values = (
    jnp.concatenate([part[i] for part in arrays], axis=2).swapaxes(1, 2)
    for i in range(2)
  )
  own = len(arrays) - 1
  mask = [
    SegmentIds(query_ids, key_ids).mask(i == own)
    for i, (_, _, query_ids, key_ids) in enumerate(arrays)
  ]
  out = jax.nn.dot_product_attention(
    query.reshape(b, k * r, t, h).swapaxes(1, 2),
    keys,
    values,
    mask=jnp.concatenate(mask, axis=-1)[:, None],
    scale=scale,
    implementation=implementation,
  )
  return out.swapaxes(1, 2).reshape(query.shape)
