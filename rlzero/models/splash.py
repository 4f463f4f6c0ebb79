"""Pallas splash attention on a TPU, over prompts that rows share.

A completion looks at two sets of keys: its prompt's and its own past. Each is
a call of the kernel with segment ids and a static mask; the two results are
merged by their log-sum-exps (arXiv 2205.14135, section 3.1). The kernel has no
gradient for a log-sum-exp, but none is needed: going back, each part takes the
merged output and the merged log-sum-exp, since with these its softmax weights
are those of the whole.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as masks,
)
from jaxtyping import Array, Float, Int

from rlzero.types import AnyArray

_BLOCKS = (512, 256, 128)  # tokens; sizes are padded to a multiple of the last


class Keys(NamedTuple):
  """Keys of rows; a query sees those of equal id, and causal ones its past."""

  key: Float[Array, 'B K S H']
  value: Float[Array, 'B K S Hv']
  query_ids: Int[AnyArray, 'B T']
  key_ids: Int[AnyArray, 'B S']
  causal: bool


def attend(
  query: Float[Array, 'B N T H'], parts: Sequence[Keys], interpret: bool = False
) -> Float[Array, 'B N T Hv']:
  """softmax(q k^T) v over the keys of all parts together; q is scaled.

  Args:
    query: times 1 / sqrt(H); N is a multiple of K.
    parts: each query sees at least one key of one of them.
    interpret: runs the kernels as plain JAX, on any device.
  """
  length = query.shape[2]
  causal = tuple(part.causal for part in parts)
  arrays = tuple(
    (
      _pad(part.key, 2),
      _pad(part.value, 2),
      _pad(part.query_ids, 1),
      # What pads is seen by queries that pad, and by no other.
      _pad(part.key_ids, 1, 0 if part.causal else -1),
    )
    for part in parts
  )
  out = _attend(causal, interpret, _pad(query, 2), arrays)
  return out[:, :, :length]


def _pad(x: AnyArray, axis: int, value: int = 0) -> Array:
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, -x.shape[axis] % _BLOCKS[-1])
  return jnp.pad(x, widths, constant_values=value)


# Padded `Keys`, but for `causal`.
_Arrays = tuple[Array, Array, Array, Array]


def _attend_whole(
  causal: tuple[bool, ...],
  interpret: bool,
  query: Float[Array, 'B N T H'],
  parts: tuple[_Arrays, ...],
) -> Float[Array, 'B N T Hv']:
  return _attend_forward(causal, interpret, query, parts)[0]


_attend = jax.custom_vjp(_attend_whole, nondiff_argnums=(0, 1))


def _attend_forward(
  causal: tuple[bool, ...],
  interpret: bool,
  query: Float[Array, 'B N T H'],
  parts: tuple[_Arrays, ...],
) -> tuple[Float[Array, 'B N T Hv'], tuple[Any, ...]]:
  outs, log_sums = [], []
  for is_causal, part in zip(causal, parts, strict=True):
    run = _kernel(is_causal, interpret, query, part, save_residuals=True)
    out, (log_sum,) = jax.vmap(run)(query, *part[:2], _ids(part))
    outs.append(out)
    log_sums.append(log_sum)
  whole = functools.reduce(jnp.logaddexp, log_sums)
  merged = jnp.zeros((), jnp.float32)
  for log_sum, out in zip(log_sums, outs, strict=True):
    merged += jnp.exp(log_sum - whole)[..., None] * out.astype(jnp.float32)
  merged = merged.astype(query.dtype)
  merged = checkpoint_name(merged, 'attention_output')
  whole = checkpoint_name(whole, 'attention_output')
  return merged, (query, parts, merged, whole)


def _attend_backward(
  causal: tuple[bool, ...],
  interpret: bool,
  saved: tuple[Array, tuple[_Arrays, ...], Array, Array],
  cotangent: Float[Array, 'B N T Hv'],
) -> tuple[Array, tuple[tuple[Array | None, ...], ...]]:
  query, parts, merged, whole = saved
  dquery, dparts = jnp.zeros((), jnp.float32), []
  for is_causal, part in zip(causal, parts, strict=True):
    run = _kernel(is_causal, interpret, query, part, save_residuals=False)

    def back(q, k, v, ids, out, log_sum, do, run=run):
      saved = q, k, v, ids, None, out, log_sum, run.dq_mask_info
      options = {'save_residuals': False, **run.kwargs}
      grads = kernel._splash_attention_bwd(
        **options, res=(*saved, run.dkv_mask_info), do=do
      )
      return grads[3:6]

    dq, dk, dv = jax.vmap(back)(
      query, *part[:2], _ids(part), merged, whole, cotangent
    )
    dquery += dq.astype(jnp.float32)
    dparts.append((dk, dv, None, None))
  return dquery.astype(query.dtype), tuple(dparts)


_attend.defvjp(_attend_forward, _attend_backward)


def _ids(part: _Arrays) -> kernel.SegmentIds:
  return kernel.SegmentIds(part[2], part[3])


def _kernel(causal, interpret, query, part, save_residuals):
  """The kernel of these shapes, with the largest blocks that divide them."""
  num_heads, length, size = query.shape[1], query.shape[2], part[0].shape[2]
  mask = masks.CausalMask if causal else masks.FullMask
  q, kv = (next(b for b in _BLOCKS if n % b == 0) for n in (length, size))
  return kernel.make_splash_mha(
    masks.MultiHeadMask([mask((length, size))] * num_heads),
    head_shards=1,
    q_seq_shards=1,
    block_sizes=kernel.BlockSizes(
      block_q=q,
      block_kv=kv,
      block_q_dkv=q,
      block_kv_dkv=kv,
      block_kv_dkv_compute=kv,
      block_q_dq=q,
      block_kv_dq=kv,
    ),
    save_residuals=save_residuals,
    interpret=interpret,
  )
