"""The objective, put together from its pieces (`rl/objectives`).

Arrays only: no model and no text is known here. An objective is a sum of terms
of tokens, divided once when every microbatch has been added.
"""

from typing import NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlzero.rl.objective import Objective
from rlzero.rl.objectives import aggregation, gates, kl, ratios
from rlzero.train.packing import Microbatch
from rlzero.types import AnyArray

Values = Float[Array, 'B T']
Inputs = Float[AnyArray, 'B T']


class TokenInputs(NamedTuple):
  """All that the objective knows of each token; zeros on padding."""

  mask: Bool[AnyArray, 'B T']  # whether the token counts in the loss
  counts: Int[AnyArray, 'B T']  # by what its term is divided
  old_logprobs: Inputs
  ref_logprobs: Inputs
  advantages: Inputs
  weights: Inputs | None  # between sampler and learner; None is 1
  completions: Int[AnyArray, 'B T'] | None  # ids within a row; None: not needed


class Totals(NamedTuple):
  """Sums over the tokens that count in the microbatches so far."""

  objective: Float[Array, '']
  kl: Float[Array, '']
  entropy: Float[Array, '']
  clipped: Float[Array, '']
  tokens: Float[Array, '']  # how many count in the loss
  padded_tokens: Float[Array, '']  # tokens of any kind, padding included
  mismatch: Float[Array, '']  # sum of |learner - old| log-prob
  mismatch_kl: Float[Array, '']  # sum of pi/old - log(pi/old) - 1
  mismatch_max: Float[Array, '']
  # Tokens, of prompts too, that each expert got; () in a model without.
  loads: Float[Array, 'L E'] | tuple[()] = ()

  def __add__(self, other: 'Totals') -> 'Totals':
    sums = jax.tree.map(jnp.add, self, other)
    largest = jnp.maximum(self.mismatch_max, other.mismatch_max)
    return sums._replace(mismatch_max=largest)

  def psum(self, axis_name: str) -> 'Totals':
    """Adds up the totals of all devices."""
    sums = jax.tree.map(lambda x: jax.lax.psum(x, axis_name), self)
    largest = jax.lax.pmax(self.mismatch_max, axis_name)
    return sums._replace(mismatch_max=largest)


def inputs(objective: Objective, micro: Microbatch) -> TokenInputs:
  """Picks from a microbatch what `terms` takes."""
  whole = objective.takes_whole_completions
  return TokenInputs(
    micro.mask,
    micro.counts,
    micro.old_logprobs,
    micro.ref_logprobs,
    micro.advantages,
    micro.weights,
    micro.tokens.segments if whole else None,
  )


def terms(
  objective: Objective, logprobs: Values, entropy: Values, of: TokenInputs
) -> tuple[Float[Array, ''], Totals]:
  """Sums the objective over tokens, and counts their totals.

  weight * (behaviour weight * gate(ratio, A) - beta KL + entropy bonus); GRPO
  by default (arXiv 2501.12948, eq. 1).

  Args:
    objective: the settings.
    logprobs: of the policy that is updated.
    entropy: of its next tokens, in nats.
    of: the tokens. Rows hold whole completions if the objective takes them.
  """
  mask = jnp.asarray(of.mask, jnp.float32)
  # What does not count has old log-probs of 0; 0 here keeps exp() finite.
  logprobs = jnp.where(mask > 0, logprobs, 0.0)
  of_token = logprobs - of.old_logprobs
  log_ratio = ratios.RATIOS[objective.ratio](
    objective, of_token, mask, of.completions
  )
  gain, clipped = gates.gain(objective, log_ratio, of.advantages)
  if of.weights is not None:
    gain = of.weights * gain
  divergence = kl.KL[objective.kl_estimator](
    objective, logprobs, of.ref_logprobs
  )
  each = gain
  if objective.kl_in == 'loss':
    each = gain - objective.kl_coef * divergence
  elif objective.kl_in == 'weighted_loss':
    each = gain - objective.kl_coef * jnp.exp(of_token) * divergence
  if objective.entropy_coef:
    each += objective.entropy_coef * entropy
  counts = jnp.asarray(of.counts, jnp.float32)
  weights = aggregation.token_weights(mask, counts)
  value = jnp.sum(weights * each)
  mismatch = jnp.abs(of_token)
  return value, Totals(
    objective=value,
    kl=jnp.sum(mask * divergence),
    entropy=jnp.sum(mask * entropy),
    clipped=jnp.sum(mask * clipped),
    tokens=jnp.sum(mask),
    padded_tokens=jnp.zeros(()),  # of the whole microbatch
    mismatch=jnp.sum(mask * mismatch),
    mismatch_kl=jnp.sum(mask * (jnp.exp(of_token) - of_token - 1)),
    mismatch_max=jnp.max(mismatch),
  )
