"""Advantages: rewards minus a baseline, divided by a scale.

A function of the rewards of a whole rollout, [P, G]: G completions of each of
P prompts. What "batch" means here is that rollout, not one of its minibatches.
A completion that no reward function judges has the reward NaN: baselines and
scales are of the others, and its advantage is 0.
"""

import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

from rlzero.rl.objectives.piece import Piece

Rewards = Float[Array | np.ndarray, 'P G']
Judged = Bool[Array | np.ndarray, 'P G']  # rewards elsewhere are 0 here


def of_rewards(
  rewards: Rewards, baseline: str = 'group_mean', scale: str = 'group_std'
) -> Float[Array, 'P G']:
  """A_i = (r_i - b_i) / s, unitless; by default GRPO's.

  Where all rewards that a baseline is the mean of are equal, the advantage is
  0, whatever rounding has left.

  Args:
    rewards: of G completions of each of P prompts; NaN where nothing judges.
    baseline: a key of BASELINES.
    scale: a key of SCALES.
  """
  judged = ~jnp.isnan(rewards)
  rewards = jnp.where(judged, rewards, 0.0)
  centred = rewards - BASELINES[baseline].function(rewards, judged)
  scaled = centred / SCALES[scale].function(rewards, centred, judged)
  if baseline == 'none':
    return jnp.where(judged, scaled, 0.0)
  flat = _equal(rewards, judged, None if baseline == 'batch_mean' else 1)
  return jnp.where(flat | ~judged, 0.0, scaled)


def _equal(
  values: Rewards, judged: Judged, axis: int | None
) -> Bool[Array, '_ _']:
  """Whether values along an axis, or all of them, differ by rounding alone.

  Their rounded mean leaves a spread that is no signal, whatever their size.
  """
  along = {'axis': axis, 'where': judged, 'keepdims': True}
  # Where nothing is judged there is no lowest and no highest value: -inf.
  spread = jnp.max(values, initial=-jnp.inf, **along) - jnp.min(
    values, initial=jnp.inf, **along
  )
  largest = jnp.max(jnp.abs(values), initial=0.0, **along)
  rounding = 4 * jnp.finfo(values.dtype).eps * largest
  std = jnp.std(values, **along)
  return (spread <= rounding) | (std == 0)


def group_mean(rewards: Rewards, judged: Judged) -> Float[Array, 'P 1']:
  """b = mean of the group (arXiv 2402.03300, section 4.1.2)."""
  return jnp.mean(rewards, axis=1, where=judged, keepdims=True)


def leave_one_out(rewards: Rewards, judged: Judged) -> Float[Array, 'P G']:
  """b_i = mean of the group's other rewards (RLOO, arXiv 2402.14740)."""
  others = jnp.sum(rewards, axis=1, keepdims=True) - rewards
  count = jnp.sum(judged, axis=1, keepdims=True) - 1
  return others / jnp.maximum(count, 1)


def batch_mean(rewards: Rewards, judged: Judged) -> Float[Array, '']:
  """b = mean of all rewards of the rollout (arXiv 2501.03262, REINFORCE++)."""
  return jnp.mean(rewards, where=judged)


def no_baseline(rewards: Rewards, judged: Judged) -> Float[Array, '']:
  """b = 0 (Williams 1992: plain REINFORCE)."""
  del judged
  return jnp.zeros((), rewards.dtype)


def group_std(
  rewards: Rewards, centred: Rewards, judged: Judged
) -> Float[Array, 'P 1']:
  """s = population standard deviation of the group (arXiv 2402.03300)."""
  del centred
  std = jnp.std(rewards, axis=1, where=judged, keepdims=True)
  return jnp.where(_equal(rewards, judged, 1), 1.0, std)


def batch_std(
  rewards: Rewards, centred: Rewards, judged: Judged
) -> Float[Array, '1 1']:
  """s = standard deviation of r - b over the rollout (arXiv 2501.03262).

  Of centred rewards, so that how hard prompts are is no part of it.
  """
  del rewards
  std = jnp.std(centred, where=judged, keepdims=True)
  return jnp.where(_equal(centred, judged, None), 1.0, std)


def group_mean_scale(
  rewards: Rewards, centred: Rewards, judged: Judged
) -> Float[Array, 'P 1']:
  """s = mean reward of the group (MaxRL, arXiv 2602.02710).

  With rewards of 0 and 1 and the group's mean as baseline, this follows the
  gradient of log p(right) where GRPO follows that of p(right). A group that
  earned nothing has advantage 0.
  """
  del centred
  mean = jnp.mean(rewards, axis=1, where=judged, keepdims=True)
  return jnp.where(mean > 0, mean, jnp.inf)


def signal_share(
  rewards: Rewards, centred: Rewards, judged: Judged
) -> Float[Array, '']:
  """s = share of groups whose rewards differ (GPG, arXiv 2504.02546).

  Its inverse is the paper's alpha = B / (B - M): groups without a signal count
  in the mean over the batch and add nothing to it.
  """
  del centred
  share = jnp.mean(~_equal(rewards, judged, 1), dtype=rewards.dtype)
  return jnp.where(share > 0, share, 1.0)


def no_scale(
  rewards: Rewards, centred: Rewards, judged: Judged
) -> Float[Array, '']:
  """s = 1 (Dr. GRPO, arXiv 2503.20783, section 3.2)."""
  del centred, judged
  return jnp.ones((), rewards.dtype)


BASELINES = {
  'group_mean': Piece(
    function=group_mean,
    formula='mean of the group',
    source='arXiv 2402.03300, section 4.1.2',
  ),
  'leave_one_out': Piece(
    function=leave_one_out,
    formula='mean of the others of the group',
    source='arXiv 2402.14740',
  ),
  'batch_mean': Piece(
    function=batch_mean,
    formula='mean of the rollout',
    source='arXiv 2501.03262, REINFORCE++',
  ),
  'none': Piece(function=no_baseline, formula='0', source='Williams 1992'),
}
SCALES = {
  'group_std': Piece(
    function=group_std,
    formula='std of the group',
    source='arXiv 2402.03300, section 4.1.2',
  ),
  'batch_std': Piece(
    function=batch_std,
    formula='std of r − b over the rollout',
    source='arXiv 2501.03262, REINFORCE++',
  ),
  'mean': Piece(
    function=group_mean_scale,
    formula='mean of the group',
    source='arXiv 2602.02710',
  ),
  'signal_share': Piece(
    function=signal_share,
    formula='share of groups whose rewards differ',
    source='arXiv 2504.02546',
  ),
  'none': Piece(
    function=no_scale, formula='1', source='arXiv 2503.20783, section 3.2'
  ),
}
