"""The equations, each in one function with the paper's symbols.

Arrays only: no model and no text is known here. A loss is a sum of terms and
a count, divided once when every microbatch has been added.
"""

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int


def logprobs_and_entropy(
    hidden: Float[Array, 'M D'],
    head: Float[Array, 'D V'],
    targets: Int[Array, 'M'],
    temperature: float = 1.0,
    chunk: int = 1024,
) -> tuple[Float[Array, 'M'], Float[Array, 'M']]:
  """Log-prob of each target and entropy, in nats, of softmax(logits / T).

  Logits exist for `chunk` tokens at a time and are computed again in the
  backward pass, so that [M, V] is never held.
  """

  @jax.checkpoint
  def of_chunk(part):
    h, t = part
    logits = jnp.einsum('md,dv->mv', h, head, preferred_element_type=jnp.float32)
    logits = logits / temperature
    log_z = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, t[:, None], axis=-1)[:, 0]
    mean = jnp.sum(jax.nn.softmax(logits, axis=-1) * logits, axis=-1)
    return chosen - log_z, log_z - mean

  size = hidden.shape[0]
  if size <= chunk:
    return of_chunk((hidden, targets))
  padding = -size % chunk
  parts = (
      jnp.pad(hidden, ((0, padding), (0, 0))).reshape(-1, chunk, hidden.shape[1]),
      jnp.pad(targets, (0, padding)).reshape(-1, chunk),
  )
  logprobs, entropy = jax.lax.map(of_chunk, parts)
  return logprobs.reshape(-1)[:size], entropy.reshape(-1)[:size]
