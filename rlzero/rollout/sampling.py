"""Drawing tokens on the device with counted keys."""

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

_BLOCK = 256  # tokens a block; the vocabulary is searched in two levels


def row_keys(
    seed: int, draws: Int[Array, 'B'], samples: Int[Array, 'B']
) -> UInt32[Array, 'B 2']:
  """Key data of rows: of (seed, draw of the prompt, index in the group).

  Slots, batches, hosts and restarts have no part in it.
  """

  def of_row(draw, sample):
    key = jax.random.fold_in(jax.random.key(seed), draw)
    return jax.random.key_data(jax.random.fold_in(key, sample))

  return jax.vmap(of_row)(draws, samples)


def sample(
    logits: Float[Array, 'B V'],
    keys: UInt32[Array, 'B 2'],
    positions: Int[Array, 'B'],
    temperature: float,
    top_p: float = 1.0,
) -> tuple[Int[Array, 'B'], Float[Array, 'B']]:
  """Draws a token a row; greedy at temperature 0.

  Inverse transform sampling on two levels, a block of the vocabulary and
  then a token inside it, each with a uniform number of its own: two random
  numbers a row instead of one for each entry of the vocabulary, and no long
  float32 sum that would lose the tail.

  Args:
    logits: [B, V].
    keys: from `row_keys`.
    positions: index of the token in its completion, mixed into the key.
    temperature: divides the logits; static.
    top_p: nucleus (arXiv 1904.09751); 1 keeps all tokens; static.

  Returns:
    tokens [B], and their log-probs, in nats, under softmax(logits / T)
    before the nucleus is cut. Under T = 0 those of T = 1.
  """
  logits = logits.astype(jnp.float32)
  if temperature == 0:
    tokens = jnp.argmax(logits, axis=-1)
    return tokens, _logprob(logits, tokens)
  logits = logits / temperature
  probs = jax.nn.softmax(logits, axis=-1)
  if top_p < 1:
    probs = _nucleus(probs, top_p)

  def uniforms(key, position):
    key = jax.random.fold_in(jax.random.wrap_key_data(key), position)
    return jax.random.uniform(key, (2,))

  coarse, fine = jnp.moveaxis(jax.vmap(uniforms)(keys, positions), -1, 0)
  size = probs.shape[-1]
  blocks = jnp.pad(probs, ((0, 0), (0, -size % _BLOCK)))
  blocks = blocks.reshape(probs.shape[0], -1, _BLOCK)
  block = _invert(jnp.sum(blocks, axis=-1), coarse)
  inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
  tokens = block * _BLOCK + _invert(inside, fine)
  return tokens, _logprob(logits, tokens)


def _invert(weights: Float[Array, 'B K'], uniform: Float[Array, 'B']):
  """Index whose share of the cumulative sum the uniform number falls in."""
  upper = jnp.cumsum(weights, axis=-1)
  # The number is below 1, so what it is compared with is below the total,
  # and an entry without weight is never the first one above it.
  threshold = uniform[:, None] * upper[:, -1:]
  index = jnp.sum(upper <= threshold, axis=-1)
  last = weights.shape[-1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)
  return jnp.minimum(index, last)  # rounding may reach the total


def _nucleus(probs, top_p):
  """Zeroes all but the smallest set of tokens that holds `top_p`."""
  order = jnp.sort(probs, axis=-1, descending=True)
  before = jnp.cumsum(order, axis=-1) - order
  kept = jnp.sum(before < top_p, axis=-1)
  least = jnp.take_along_axis(order, kept[:, None] - 1, axis=-1)
  return jnp.where(probs >= least, probs, 0.0)


def _logprob(logits, tokens):
  chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
  return chosen - jax.nn.logsumexp(logits, axis=-1)
