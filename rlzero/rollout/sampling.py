"""Samples tokens on the device, with counted keys."""

import dataclasses
import enum
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from rlzero.runtime import fields, naming
from rlzero.runtime.fields import above, at_least, mutable_on_resume

# Short flags of a stage that has a `sampling`.
SHORT_FLAGS = naming.flags_of(
  'sampling',
  'max_len',
  'max_prompt_len',
  'temperature',
  'top_p',
  'num_slots',
  'decode_steps',
)

_BLOCK = 256  # tokens a block; the vocabulary is searched in two levels


class Distribution(NamedTuple):
  """The distribution that tokens are sampled from, given their logits."""

  temperature: float = 1.0  # divides the logits; 0 is greedy
  top_p: float = 1.0  # nucleus (arXiv 1904.09751); 1 keeps every token

  def sample(
    self,
    logits: Float[Array, 'B V'],
    keys: UInt32[Array, 'B 2'],
    positions: Int[Array, 'B'],
  ) -> tuple[Int[Array, 'B'], Float[Array, 'B']]:
    """Draws a token a row; greedy at temperature 0.

    Args:
      logits: [B, V].
      keys: from `row_keys`.
      positions: index of the token in its completion, mixed into the key.

    Returns:
      tokens [B], and their log-probs, in nats, under softmax(logits / T)
      before the nucleus is cut. Under T = 0 those of T = 1.
    """
    logits = logits.astype(jnp.float32)
    if self.temperature == 0:
      tokens = jnp.argmax(logits, axis=-1)
      return tokens, logprob(logits, tokens)
    logits = logits / self.temperature
    probs = jax.nn.softmax(logits, axis=-1)
    if self.top_p < 1:
      probs = nucleus(probs, self.top_p)
    tokens = draw(probs, keys, positions)
    return tokens, logprob(logits, tokens)


def row_keys(
  seed: int, draws: Int[Array, 'B'], samples: Int[Array, 'B']
) -> UInt32[Array, 'B 2']:
  """Key data of rows, made of seed, draw of the prompt and index in its group.

  Slots, batches, hosts and restarts have no part in them.
  """

  def of_row(draw, sample):
    key = jax.random.fold_in(jax.random.key(seed), draw)
    return jax.random.key_data(jax.random.fold_in(key, sample))

  return jax.vmap(of_row)(draws, samples)


def draw(
  probs: Float[Array, 'B V'],
  keys: UInt32[Array, 'B 2'],
  positions: Int[Array, 'B'],
) -> Int[Array, 'B']:
  """Draws a token a row, given probabilities that need not sum to 1.

  Inverse transform sampling on two levels, a block of the vocabulary and
  then a token inside it, each with a uniform number of its own: two random
  numbers a row instead of one for each entry of the vocabulary, and no long
  float32 sum that would lose the tail.
  """

  def uniforms(key, position):
    key = jax.random.fold_in(jax.random.wrap_key_data(key), position)
    return jax.random.uniform(key, (2,))

  coarse, fine = jnp.moveaxis(jax.vmap(uniforms)(keys, positions), -1, 0)
  size = probs.shape[-1]
  blocks = jnp.pad(probs, ((0, 0), (0, -size % _BLOCK)))
  blocks = blocks.reshape(probs.shape[0], -1, _BLOCK)
  block = _invert(jnp.sum(blocks, axis=-1), coarse)
  inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
  return block * _BLOCK + _invert(inside, fine)


def _invert(weights: Float[Array, 'B K'], uniform: Float[Array, 'B']):
  """Index whose share of the cumulative sum the uniform number falls in."""
  upper = jnp.cumsum(weights, axis=-1)
  threshold = uniform[:, None] * upper[:, -1:]
  # Sums made in parallel may grow by a rounding where there is no weight, and
  # rounding may reach the total: such entries are left out by name.
  found = (upper > threshold) & (weights > 0)
  last = weights.shape[-1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)
  index = jnp.arange(weights.shape[-1])[None]
  return jnp.min(jnp.where(found, index, last[:, None]), axis=-1)


def nucleus(
  probs: Float[Array, 'B V'], top_p: float | Float[Array, 'B']
) -> Float[Array, 'B V']:
  """Zeroes all but the smallest set of tokens that holds `top_p`.

  The set is all tokens of at least some probability. Positive floats are
  ordered as their bits are, so bisection over the bits finds the largest one
  exactly, in 31 sums instead of a sort of the vocabulary.
  """
  bits = jax.lax.bitcast_convert_type(probs, jnp.int32)

  def narrow(_, bounds):
    low, high = bounds  # `low` holds enough, `high` does not
    middle = low + (high - low) // 2
    kept = jnp.where(bits >= middle[:, None], probs, 0.0)
    enough = jnp.sum(kept, axis=-1) >= top_p
    return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

  zeros = jnp.zeros(probs.shape[0], jnp.int32)
  above_one = jax.lax.bitcast_convert_type(jnp.float32(2), jnp.int32)
  low, _ = jax.lax.fori_loop(0, 31, narrow, (zeros, zeros + above_one))
  return jnp.where(bits >= low[:, None], probs, 0.0)


def logprob(
  logits: Float[Array, 'B V'], tokens: Int[Array, 'B']
) -> Float[Array, 'B']:
  """Log-probs of tokens under softmax(logits), in nats."""
  chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
  return chosen - jax.nn.logsumexp(logits, axis=-1)


class Finish(enum.Enum):
  """Why a completion ended."""

  EOS = 'eos'
  LENGTH = 'length'


class StopCriteria(NamedTuple):
  """Tokens that end a completion before it is `Sampling.max_len` long."""

  eos_ids: tuple[int, ...]  # each is part of the completion that it ends

  def finish(self, tokens: Int[np.ndarray, 'T']) -> Finish:
    """Says why a completion of these tokens ended."""
    return Finish.EOS if tokens[-1] in self.eos_ids else Finish.LENGTH


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """Settings of how completions are sampled.

  Raises:
    ValueError: a setting out of range.
  """

  max_len: int = 1024  # tokens a completion, EOS included
  max_prompt_len: int = 256  # tokens; a longer prompt is an error
  temperature: float = 1.0  # 0 is greedy
  top_p: float = 1.0  # nucleus; 1 keeps every token
  num_slots: int = mutable_on_resume(64)  # completions decoded at a time
  # Tokens between two looks at what has finished.
  decode_steps: int = mutable_on_resume(16)
  keep_routes: bool = False  # the experts of each token, with the completion

  def __post_init__(self):
    fields.check(
      self,
      max_len=at_least(1),
      max_prompt_len=at_least(1),
      temperature=at_least(0).because('0 is greedy'),
      top_p=above(0).at_most(1),
      num_slots=at_least(1),
      decode_steps=at_least(1),
    )

  @property
  def distribution(self) -> Distribution:
    """The distribution that tokens are sampled from."""
    return Distribution(temperature=self.temperature, top_p=self.top_p)

  def about(self) -> dict[str, Any]:
    """Describes what is sampled, for the record.

    Two evaluations are comparable if these settings agree, and samples that
    are kept go with new ones only then. The other settings change the speed.
    """
    return {**self.distribution._asdict(), 'max_len': self.max_len}
