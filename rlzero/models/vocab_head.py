"""The vocabulary head: log-probs and losses in chunks of tokens.

Logits exist for a chunk of tokens at a time, so [B, T, V] is never held.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from rlzero.models import padding
from rlzero.runtime import sharding
from rlzero.types import AnyArray


def logprobs_and_entropy(
  hidden: Float[Array, 'B T D'],
  head: Float[Array, 'D V'],
  targets: Int[AnyArray, 'B T'],
  temperature: float = 1.0,
  chunk: int = 512,
) -> tuple[Float[Array, 'B T'], Float[Array, 'B T']]:
  """Log-prob of each target and entropy, in nats, of softmax(logits / T).

  Logits exist for at most `chunk` tokens at a time, in parts of one size, and
  are computed again in the backward pass, so that [B, T, V] is never held.
  A mesh shards the rows of every chunk; `chunk` counts a device's tokens.
  """

  @jax.checkpoint
  def of_chunk(part):
    return _logprobs_and_entropy(head, temperature, *part)

  parts = split_chunks((hidden, targets), chunk)
  logprobs, entropy = jax.lax.map(of_chunk, parts)
  return merge_chunks(logprobs, targets), merge_chunks(entropy, targets)


def _fused_logprob_loss(
  terms: Callable[..., tuple[Float[Array, ''], Any]],
  temperature: float,
  chunk: int,
  of_entropy: bool,
  hidden: Float[Array, 'B T D'],
  head: Float[Array, 'D V'],
  targets: Int[Array, 'B T'],
  extras: Any,
) -> tuple[Float[Array, ''], Any]:
  """A sum of terms of each token's log-prob, differentiated in one pass.

  Value and gradient of a chunk are computed together, while its logits are
  there: three products with the head instead of the four of computing them
  again going back, and [B, T, V] is never held.

  Args:
    terms: (log-probs, entropies, extras), [B, C] each, of a chunk -> (their
      summed value, totals that can be added). Padding has extras of zero.
    temperature: T of softmax(logits / T).
    chunk: tokens a device, at most.
    of_entropy: whether the value depends on the entropies; else their gradient
      is not computed.
    hidden: that predict the targets.
    head: to the logits.
    targets: token ids.
    extras: pytree of [B, T].

  Returns:
    the sum over all tokens, with a gradient in `hidden` and `head` alone, and
    the totals, without one.
  """

  def of_chunk(part):
    h, t, extra = part
    return terms(*_logprobs_and_entropy(head, temperature, h, t), extra), ()

  parts = split_chunks((hidden, targets, extras), chunk)
  return scan_sum(of_chunk, parts)[0]


fused_logprob_loss = jax.custom_vjp(
  _fused_logprob_loss, nondiff_argnums=(0, 1, 2, 3)
)


def _fused_logprob_loss_forward(
  terms, temperature, chunk, of_entropy, hidden, head, targets, extras
):
  def of_chunk(part):
    h, t, extra = part
    shares, logprobs, entropy, surprise = _softmax(head, temperature, h, t)
    (value, totals), slopes = jax.value_and_grad(
      terms, argnums=(0, 1) if of_entropy else (0,), has_aux=True
    )(logprobs, entropy, extra)
    # d log p(t) / d logits = (1 at t) - softmax, over T.
    chosen = jnp.arange(head.shape[1])[None, None] == t[..., None]
    slope, *rest = (s[..., None] / temperature for s in slopes)
    dlogits = jnp.where(chosen, slope, 0.0) - slope * shares
    for slope in rest:  # d H / d logits = softmax * (-log softmax - H), over T
      dlogits += slope * shares * surprise
    dlogits = sharding.constrain(dlogits.astype(head.dtype), 'BTV')
    flat = dlogits.reshape(-1, head.shape[1])
    product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    dh = product(flat, head.T).astype(h.dtype)
    dhead = product(h.reshape(-1, h.shape[-1]).T, flat)
    return (value, totals, dhead), dh.reshape(h.shape)

  parts = split_chunks((hidden, targets, extras), chunk)
  (value, totals, dhead), dhidden = scan_sum(of_chunk, parts)
  dhidden = merge_chunks(dhidden, targets)
  return (value, totals), (dhidden, dhead.astype(head.dtype))


def _fused_logprob_loss_backward(
  terms, temperature, chunk, of_entropy, gradients, cotangents
):
  scale = cotangents[0]  # of the sum; the totals have no gradient
  dhidden, dhead = (g * scale.astype(g.dtype) for g in gradients)
  return dhidden, dhead, None, None


fused_logprob_loss.defvjp(
  _fused_logprob_loss_forward, _fused_logprob_loss_backward
)


def distillation_kl(
  hidden: Float[Array, 'B T D'],
  head: Float[Array, 'D V'],
  teacher_hidden: Float[Array, 'B T Dt'],
  teacher_head: Float[Array, 'Dt V'],
  direction: Literal['forward', 'reverse'],
  chunk: int = 512,
) -> Float[Array, 'B T']:
  """KL between teacher p and student q at each token, nats, >= 0.

  'forward' is KL(p || q) = sum p log(p / q) (arXiv 1503.02531, at T = 1), which
  makes the student cover all that the teacher may say; 'reverse' KL(q || p)
  (arXiv 2306.08543, eq. 1), which makes it say only what the teacher would.
  Logits of both exist for at most `chunk` tokens a device at a time, and are
  computed again going back. The teacher has no gradient.
  """

  @jax.checkpoint
  def of_chunk(part):
    ours = jax.nn.log_softmax(_logits(head, part[0]))
    theirs = jax.nn.log_softmax(_logits(teacher_head, part[1]))
    theirs = jax.lax.stop_gradient(theirs)
    first, second = ours, theirs
    if direction == 'forward':
      first, second = theirs, ours
    return jnp.sum(jnp.exp(first) * (first - second), axis=-1)

  parts = split_chunks((hidden, teacher_hidden), chunk)
  return merge_chunks(jax.lax.map(of_chunk, parts), hidden)


def scan_sum(
  of_chunk: Callable[[Any], tuple[tuple[Any, ...], Any]], parts: Any
) -> tuple[tuple[Any, ...], Any]:
  """Applies a function to one chunk after the other.

  Args:
    of_chunk: chunk -> (arrays to add up over chunks, arrays to stack).
    parts: pytree of arrays with the axis of chunks first.

  Returns:
    the sums, and the stacks with the axis of chunks first.
  """
  first = jax.tree.map(lambda x: x[0], parts)
  sums, _ = jax.eval_shape(of_chunk, first)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums)

  def add(sums, part):
    new, out = of_chunk(part)
    return tuple(a + b for a, b in zip(sums, new, strict=True)), out

  return jax.lax.scan(add, zeros, parts)


def _logits(head, hidden):
  # One matrix of all tokens: see `layers.multiply`.
  flat = hidden.reshape(-1, hidden.shape[-1])
  logits = jnp.matmul(flat, head, preferred_element_type=jnp.float32)
  logits = logits.reshape(*hidden.shape[:-1], -1)
  return sharding.constrain(logits, 'BTV')


def _logprobs_and_entropy(head, temperature, hidden, targets):
  return _softmax(head, temperature, hidden, targets)[1:3]


def _softmax(head, temperature, hidden, targets):
  """softmax(logits / T), targets' log-probs, entropies H, -log softmax - H.

  The exponentials, which take longer than the sums, are made once for all.
  """
  logits = _logits(head, hidden) / temperature
  top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  powers = jnp.exp(logits - top)
  total = jnp.sum(powers, axis=-1, keepdims=True)
  log_z = (top + jnp.log(total))[..., 0]
  chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  mean = jnp.sum(powers * logits, axis=-1) / total[..., 0]
  surprise = mean[..., None] - logits
  return powers / total, chosen - log_z, log_z - mean, surprise


def split_chunks(tree: Any, chunk: int) -> Any:
  """Splits [B, T, ...] into [chunks, B, C, ...], padded with zeros.

  C is a multiple of the shards of T, so that a mesh can shard it.

  Args:
    tree: pytree of arrays that agree in B and T.
    chunk: tokens a device; B * C is about as many at most.
  """
  rows, length = jax.tree.leaves(tree)[0].shape[:2]
  shards = sharding.axis_size('T')
  tokens = chunk * sharding.axis_size('B') * shards
  number = min(-(-rows * length // tokens), length)
  width = padding.round_up(-(-length // number), shards)

  def split(x):
    pads = [(0, 0), (0, number * width - length)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, pads).reshape(rows, number, width, *x.shape[2:])
    return x.swapaxes(0, 1)

  return jax.tree.map(split, tree)


def merge_chunks(
  chunks: Float[Array, 'chunks B C *rest'], like: AnyArray
) -> Float[Array, 'B T *rest']:
  """Undoes `split_chunks`; T is the length of `like`, [B, T, ...]."""
  chunks = chunks.swapaxes(0, 1)
  chunks = chunks.reshape(chunks.shape[0], -1, *chunks.shape[3:])
  return chunks[:, : like.shape[1]]
