"""A gate of one's own: no token gains more than a tenth of its advantage."""

import jax
from jax import numpy as jnp


def gate(log_ratio: jax.Array, advantage: jax.Array) -> jax.Array:
  """The gain of each token, which is maximised."""
  return jnp.clip(log_ratio, -0.1, 0.1) * advantage
