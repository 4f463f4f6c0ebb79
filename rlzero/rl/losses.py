"""The equations, each in one function with the paper's symbols.

Arrays only: no model and no text is known here. A loss is a sum of terms and
a count, divided once when every microbatch has been added.
"""

import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Float


def group_advantages(
  rewards: Float[Array | np.ndarray, 'P G'], normalize_std: bool = True
) -> Float[Array, 'P G']:
  """A_i = (r_i - mean(r)) / std(r) over each group; unitless.

  DeepSeekMath, arXiv 2402.03300, section 4.1.2. Without the division by the
  standard deviation it is Dr. GRPO's (arXiv 2503.20783, section 3.2). A group
  whose rewards are all equal has advantage 0.

  Args:
    rewards: of G completions of each of P prompts.
    normalize_std: whether to divide by the population standard deviation.
  """
  centred = rewards - jnp.mean(rewards, axis=1, keepdims=True)
  std = jnp.std(rewards, axis=1, keepdims=True)
  # Rewards that differ by rounding alone are equal, whatever their size. Their
  # rounded mean leaves a spread that is no signal.
  largest = jnp.max(jnp.abs(rewards), axis=1, keepdims=True)
  spread = jnp.ptp(rewards, axis=1, keepdims=True)
  flat = (spread <= 4 * jnp.finfo(rewards.dtype).eps * largest) | (std == 0)
  if normalize_std:
    centred = centred / jnp.where(flat, 1.0, std)
  return jnp.where(flat, 0.0, centred)


def clipped_surrogate(
  ratio: Float[Array, '*B'],
  advantage: Float[Array, '*B'],
  clip_low: float,
  clip_high: float,
) -> Float[Array, '*B']:
  """min(rho A, clip(rho, 1 - eps, 1 + eps) A), to be maximised.

  arXiv 2501.12948, eq. 1; with two epsilons, DAPO's clip-higher (arXiv
  2503.14476, eq. 8).
  """
  clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
  return jnp.minimum(ratio * advantage, clipped * advantage)


def kl_k3(
  logprobs: Float[Array, '*B'], ref_logprobs: Float[Array, '*B']
) -> Float[Array, '*B']:
  """D_KL(pi || ref) = ref/pi - log(ref/pi) - 1 per token, nats, >= 0.

  arXiv 2501.12948, eq. 2. Unlike log(pi/ref) its gradient, taken inside the
  loss, pulls the policy to the reference.
  """
  difference = ref_logprobs - logprobs
  return jnp.exp(difference) - difference - 1


def token_weights(
  mask: Float[Array, '*B'],
  counts: Float[Array, '*B'],
  aggregation: str,
  max_len: int,
) -> Float[Array, '*B']:
  """Weight of a token in the sum over its completion.

  Args:
    mask: 1 on the tokens that count in the loss, EOS included, else 0.
    counts: |o|, how many tokens count in the completion that a token is of.
    aggregation: 'sequence_mean' is GRPO's 1 / |o| (arXiv 2402.03300, eq. 3);
      'constant' is Dr. GRPO's 1 / max_len (arXiv 2503.20783).
    max_len: the longest a completion may be.
  """
  if aggregation == 'sequence_mean':
    return mask / jnp.maximum(counts, 1)
  return mask / max_len
