"""Sampling where every row has settings of its own, which are not compiled."""

from typing import NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from rlzero.rollout import sampling
from rlzero.rollout.slots import Slots, Tops

# Below this temperature logits that are divided by it may overflow.
_GREEDY = 1e-3


class RowDistribution(NamedTuple):
  """The distributions of B rows.

  A row's tokens are those that `sampling.Distribution` of its numbers draws.
  """

  temperature: Float[Array, 'B']
  top_p: Float[Array, 'B']
  asks_top: Bool[Array, 'B']  # whether the row's `Tops` will be read

  def sample(
    self,
    logits: Float[Array, 'B V'],
    keys: UInt32[Array, 'B 2'],
    positions: Int[Array, 'B'],
  ) -> tuple[Int[Array, 'B'], Float[Array, 'B']]:
    """Draws a token a row, as `sampling.Distribution.sample` does."""
    temperature, top_p, _ = map(jnp.asarray, self)
    logits = logits.astype(jnp.float32)
    greedy = temperature < _GREEDY
    scaled = self._scaled(logits)
    probs = jax.nn.softmax(scaled, axis=-1)
    # Nobody pays for a nucleus while no row has one.
    probs = jax.lax.cond(
      jnp.any(~greedy & (top_p < 1)),
      lambda: jnp.where(
        (top_p < 1)[:, None], sampling.nucleus(probs, top_p), probs
      ),
      lambda: probs,
    )
    tokens = jnp.where(
      greedy,
      jnp.argmax(logits, axis=-1),
      sampling.draw(probs, keys, positions),
    )
    return tokens, sampling.logprob(scaled, tokens)

  def write_tops(
    self, slots: Slots, step: Int[Array, ''], logits: Float[Array, 'B V']
  ) -> Slots:
    """Writes the most likely tokens of a step, if a row asks for them."""
    tops = slots.tops
    assert tops is not None
    scaled = self._scaled(logits)

    def written():
      found, ids = jax.lax.top_k(scaled, tops.ids.shape[-1])
      total = jax.nn.logsumexp(scaled, axis=-1, keepdims=True)
      at_step = jax.lax.dynamic_update_slice_in_dim
      return Tops(
        at_step(tops.ids, ids[:, None], step, 1),
        at_step(tops.logprobs, (found - total)[:, None], step, 1),
      )

    # As with a nucleus, nobody pays for what no row asks for.
    asked = jnp.any(jnp.asarray(self.asks_top))
    return slots._replace(tops=jax.lax.cond(asked, written, lambda: tops))

  def _scaled(self, logits):
    """Logits divided by the temperatures; a greedy row's as they are."""
    temperature = jnp.asarray(self.temperature)
    divisor = jnp.where(temperature < _GREEDY, 1.0, temperature)
    return logits.astype(jnp.float32) / divisor[:, None]
