"""Sampling where every row has settings of its own, which are not compiled."""

import inspect

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from rlzero.rollout import engine, sampling

# Below this temperature logits that are divided by it may overflow.
_GREEDY = 1e-3


class RowDistribution(sampling.Distribution):
  """The distributions of B rows: `temperature` and `top_p` are arrays, [B].

  A row's tokens are those that `sampling.Distribution` of its numbers draws.
  """

  def sample(
    self,
    logits: Float[Array, 'B V'],
    keys: UInt32[Array, 'B 2'],
    positions: Int[Array, 'B'],
  ) -> tuple[Int[Array, 'B'], Float[Array, 'B']]:
    """Draws a token a row; arguments and result as of the base class."""
    temperature, top_p = map(jnp.asarray, self)
    logits = logits.astype(jnp.float32)
    greedy = temperature < _GREEDY
    scaled = logits / jnp.where(greedy, 1.0, temperature)[:, None]
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


# The function that training compiles; here settings of rows are arguments.
decode = jax.jit(
  inspect.unwrap(engine.decode),
  static_argnames=('config', 'eos_ids', 'num_steps'),
  donate_argnames='slots',
)
