"""Behaviour weights: from the policy that sampled to the one that learns.

Both have the same parameters, but not always the same numbers: another
precision, another program. w = pi_old / mu, where mu is what the sampler said
and pi_old the learner's log-probs of the same policy (`old_logprobs =
'recomputed'`), so that w times the ratio is pi / mu. A weight is a constant of
the rollout, computed on the host; the gain of a token is multiplied with it,
its KL term and entropy are not.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlzero.rl.objective import Objective
from rlzero.rl.objectives.piece import Piece
from rlzero.train.packing import RolloutBatch


class Mismatch(NamedTuple):
  """How far two sets of log-probs of the same tokens are apart, in nats."""

  mean: float  # of |d|, d = pi_old's minus the sampler's
  max: float
  kl: float  # mean of exp(d) - d - 1, an estimate of D_KL(mu || pi_old)


def corrected(
  objective: Objective, batch: RolloutBatch, old: Sequence[np.ndarray]
) -> tuple[RolloutBatch, dict[str, float]]:
  """The batch with recomputed log-probs and weights, and its mismatch.

  Args:
    objective: the settings.
    batch: whose old log-probs are the sampler's.
    old: the learner's log-probs of the policy that sampled.
  """
  sampler = batch.old_logprobs
  masks = batch.masks or [None] * len(sampler)
  gap = mismatch(old, sampler, masks)
  measured = {
    'policy/sampler_learner_mean': gap.mean,
    'policy/sampler_learner_max': gap.max,
    'policy/sampler_learner_kl': gap.kl,
  }
  batch = batch._replace(old_logprobs=old)
  if objective.behaviour != 'none':
    found, limited = weights(objective, old, sampler, masks)
    batch = batch._replace(weights=found)
    measured['policy/behaviour_limited'] = limited
  return batch, measured


def mismatch(
  old: Sequence[np.ndarray],
  sampler: Sequence[np.ndarray],
  masks: Sequence[np.ndarray | None],
) -> Mismatch:
  """Compares log-probs of completions; tokens outside the masks do not count.

  Args:
    old: the learner's, of each completion.
    sampler: the sampler's.
    masks: whether a token counts; None counts all of a completion.
  """
  gaps = np.concatenate(_gaps(old, sampler, masks)).astype(np.float64)
  if not gaps.size:
    return Mismatch(np.nan, np.nan, np.nan)
  return Mismatch(
    float(np.abs(gaps).mean()),
    float(np.abs(gaps).max()),
    float(np.mean(np.expm1(gaps) - gaps)),
  )


def weights(
  objective: Objective,
  old: Sequence[np.ndarray],
  sampler: Sequence[np.ndarray],
  masks: Sequence[np.ndarray | None],
) -> tuple[list[np.ndarray], float]:
  """The weight of each token, and the share of tokens that it limits.

  Args:
    objective: the settings.
    old: the learner's log-probs, of each completion.
    sampler: the sampler's.
    masks: whether a token counts; None counts all of a completion.
  """
  out, limited, total = [], 0, 0
  for own, theirs, mask in zip(old, sampler, masks, strict=True):
    gap = own if mask is None else np.where(mask, own, 0)
    gap = gap - (theirs if mask is None else np.where(mask, theirs, 0))
    if objective.behaviour_level == 'sequence':
      gap = np.full_like(gap, gap.sum())
    with np.errstate(over='ignore'):  # infinite weights are limited
      raw = np.exp(gap)
    weight = BEHAVIOUR[objective.behaviour](objective, raw)
    counted = np.ones(len(raw), bool) if mask is None else mask
    limited += int(np.sum((weight != raw) & counted))
    total += int(np.sum(counted))
    out.append(np.float32(weight))
  return out, limited / max(total, 1)


def truncated(
  raw: np.ndarray, behaviour_low: float, behaviour_high: float
) -> np.ndarray:
  """clip(w, low, high); low = 0 is truncated importance sampling."""
  return np.clip(raw, behaviour_low, behaviour_high)


def masked(
  raw: np.ndarray, behaviour_low: float, behaviour_high: float
) -> np.ndarray:
  """w inside [low, high], else 0 (IcePop, arXiv 2510.18855)."""
  inside = (raw >= behaviour_low) & (raw <= behaviour_high)
  return np.where(inside, raw, 0)


def _gaps(old, sampler, masks):
  return [
    own - theirs if mask is None else (own - theirs)[mask]
    for own, theirs, mask in zip(old, sampler, masks, strict=True)
  ]


BEHAVIOUR = {
  'truncated': Piece(
    function=truncated,
    formula='clip(v, {behaviour_low:g}, {behaviour_high:g})',
    source='Yao et al. 2025, "Your efficient RL framework secretly brings '
    'you off-policy RL training"',
    numbers=('behaviour_low', 'behaviour_high'),
  ),
  'masked': Piece(
    function=masked,
    formula='v if {behaviour_low:g} ≤ v ≤ {behaviour_high:g}, else 0',
    source='arXiv 2510.18855',
    numbers=('behaviour_low', 'behaviour_high'),
  ),
}
