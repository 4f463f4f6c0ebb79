"""Estimates of D_KL(pi || ref) at the tokens that were sampled.

From a sampled token's log-probs; d = log(ref / pi). "Approximating KL
divergence" (J. Schulman, 2020) compares the three.
"""

import numpy as np
from jax import numpy as jnp
from jaxtyping import Float

from rlzero.models import padding
from rlzero.rl.objective import Objective
from rlzero.rl.objectives.piece import Piece
from rlzero.train.packing import RolloutBatch
from rlzero.types import AnyArray

Values = Float[AnyArray, '*B']


def k1(logprobs: Values, ref_logprobs: Values) -> Values:
  """-d: unbiased, of either sign, and with no expected gradient in a loss."""
  return logprobs - ref_logprobs


def k2(logprobs: Values, ref_logprobs: Values) -> Values:
  """d^2 / 2: biased, >= 0; on policy its gradient is that of the KL.

  REINFORCE++ with baseline takes it (arXiv 2501.03262).
  """
  return (ref_logprobs - logprobs) ** 2 / 2


def k3(logprobs: Values, ref_logprobs: Values) -> Values:
  """exp(d) - d - 1: unbiased and >= 0 (arXiv 2501.12948, eq. 2).

  Its gradient, taken inside the loss, is that of D_KL(ref || pi), which pulls
  the policy to the reference as well.
  """
  difference = ref_logprobs - logprobs
  return jnp.exp(difference) - difference - 1


def of_completions(objective: Objective, batch: RolloutBatch) -> np.ndarray:
  """The estimates under pi_old, summed over each completion, [B], in nats.

  Tokens outside the masks do not count.
  """

  def joined(values):
    flat = np.concatenate([*values, np.zeros(0, np.float32)])
    # Few sizes, so that few programs are compiled.
    size = padding.round_up(max(flat.size, 1), 1 << 14)
    flat = np.where(counted, flat, 0)
    return jnp.asarray(np.pad(flat, (0, size - flat.size)))

  masks = batch.masks or [None] * len(batch.completions)
  counted = np.concatenate(
    [
      np.ones(len(tokens), bool) if mask is None else mask
      for tokens, mask in zip(batch.completions, masks, strict=True)
    ]
  )
  estimates = KL[objective.kl_estimator](
    objective, joined(batch.old_logprobs), joined(batch.ref_logprobs)
  )
  lengths = [len(tokens) for tokens in batch.completions]
  parts = np.split(np.asarray(estimates), np.cumsum(lengths))[:-1]
  return np.array([part.sum() for part in parts], np.float32)


KL = {
  'k1': Piece(function=k1, formula='log(π/π_ref)', source='Schulman 2020'),
  'k2': Piece(function=k2, formula='(log(π/π_ref))²/2', source='Schulman 2020'),
  'k3': Piece(
    function=k3,
    formula='π_ref/π − log(π_ref/π) − 1',
    source='arXiv 2501.12948, eq. 2',
  ),
}
