"""Gates: how far a ratio may move a token, as a gain to be maximised.

A gate takes the log of the ratio, l = log(pi / pi_old), and the advantage A,
and returns the gain and whether it limits the gradient there. Where the paper
writes log pi, the log-ratio stands here: pi_old is constant, so the gradient
is the same, and the gain is 0 where the policies are equal.
"""

import functools

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

from rlzero.rl.objective import Objective
from rlzero.rl.objectives.piece import Piece
from rlzero.runtime import functions
from rlzero.types import AnyArray

Values = Float[AnyArray, '*B']
Gated = tuple[Values, Bool[Array, '*B']]


def gain(objective: Objective, log_ratio: Values, advantage: Values) -> Gated:
  """The gain by the gate that the settings choose, and where it limits."""
  if objective.function:
    gate = functools.partial(own, functions.load(objective.function))
    return gate(log_ratio, advantage)
  return GATES[objective.gate](objective, log_ratio, advantage)


def clip(
  log_ratio: Values, advantage: Values, clip_low: float, clip_high: float
) -> Gated:
  """min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A).

  PPO's clip (arXiv 2501.12948, eq. 1); with two epsilons, DAPO's clip-higher
  (arXiv 2503.14476, eq. 8).
  """
  ratio = jnp.exp(log_ratio)
  clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
  least = jnp.minimum(ratio * advantage, clipped * advantage)
  return least, least < ratio * advantage


def dual_clip(
  log_ratio: Values,
  advantage: Values,
  clip_low: float,
  clip_high: float,
  dual_clip: float,
) -> Gated:
  """max(clip(...), c A) where A < 0, else clip(...) (arXiv 1912.09729, eq. 5).

  PPO's clip lets the ratio of a bad token grow without bound; here it stops
  at c.
  """
  least, limited = clip(log_ratio, advantage, clip_low, clip_high)
  floor = dual_clip * advantage
  beyond = (advantage < 0) & (least < floor)
  return jnp.where(beyond, floor, least), limited | beyond


def cispo(
  log_ratio: Values, advantage: Values, clip_low: float, clip_high: float
) -> Gated:
  """sg(clip(rho, 1 - eps_low, 1 + eps_high)) A log pi.

  CISPO (arXiv 2506.13585, eq. 4): the weight is clipped, and no token loses
  its gradient. eps_low = 1 leaves the weight without a lower bound.
  """
  ratio = jnp.exp(log_ratio)
  weight = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
  limited = (weight != ratio) & (advantage != 0)
  return jax.lax.stop_gradient(weight) * advantage * log_ratio, limited


def soft(
  log_ratio: Values,
  advantage: Values,
  soft_positive: float,
  soft_negative: float,
) -> Gated:
  """4 / tau * sigmoid(tau (rho - 1)) A; tau by the sign of A.

  SAPO (arXiv 2511.20347): the slope falls smoothly as the ratio leaves 1,
  faster for A <= 0 where that tau is larger. It limits no token outright.
  """
  tau = jnp.where(advantage > 0, soft_positive, soft_negative)
  gate = jax.nn.sigmoid(tau * (jnp.exp(log_ratio) - 1)) * 4 / tau
  return gate * advantage, jnp.zeros(advantage.shape, bool)


def mirror_descent(
  log_ratio: Values, advantage: Values, regularization: float
) -> Gated:
  """A l - tau / 2 l^2 (Kimi k1.5, arXiv 2501.12599, eq. 3).

  Half of -(A - tau l)^2 / tau without its constant: the squared error of the
  optimum of A under a relative entropy of weight tau to pi_old. The paper's l
  is of a whole completion: ratio = 'trajectory'.
  """
  value = advantage * log_ratio - regularization / 2 * log_ratio**2
  return value, jnp.zeros(advantage.shape, bool)


def reinforce(log_ratio: Values, advantage: Values) -> Gated:
  """A log pi (Williams 1992; GPG, arXiv 2504.02546): the ratio has no say."""
  return advantage * log_ratio, jnp.zeros(advantage.shape, bool)


def no_gate(log_ratio: Values, advantage: Values) -> Gated:
  """rho A: importance sampling without a bound."""
  return jnp.exp(log_ratio) * advantage, jnp.zeros(advantage.shape, bool)


def own(
  gate: functions.Function, log_ratio: Values, advantage: Values
) -> Gated:
  """A user's gate; it limits where its slope is 0.

  Args:
    gate: (log-ratio, advantage) -> gain, elementwise, differentiable by JAX.
    log_ratio: of tokens, or of their completions.
    advantage: of the same shape.
  """
  value, slope = jax.jvp(
    lambda x: gate(x, advantage), (log_ratio,), (jnp.ones_like(log_ratio),)
  )
  limited = (jax.lax.stop_gradient(slope) == 0) & (advantage != 0)
  return value, limited


_CLIP = 'clip(ρ, 1 − {clip_low:g}, 1 + {clip_high:g})'

GATES = {
  'clip': Piece(
    function=clip,
    formula=f'min(ρ A, {_CLIP} A)',
    source='arXiv 2501.12948, eq. 1; arXiv 2503.14476, eq. 8',
    numbers=('clip_low', 'clip_high'),
  ),
  'dual_clip': Piece(
    function=dual_clip,
    formula=f'max(min(ρ A, {_CLIP} A), {{dual_clip:g}} A where A < 0)',
    source='arXiv 1912.09729, eq. 5',
    numbers=('clip_low', 'clip_high', 'dual_clip'),
  ),
  'cispo': Piece(
    function=cispo,
    formula=f'sg({_CLIP}) A log π',
    source='arXiv 2506.13585, eq. 4',
    numbers=('clip_low', 'clip_high'),
  ),
  'soft': Piece(
    function=soft,
    formula='4/τ sigmoid(τ (ρ − 1)) A with '
    'τ = {soft_positive:g} if A > 0 else {soft_negative:g}',
    source='arXiv 2511.20347',
    numbers=('soft_positive', 'soft_negative'),
  ),
  'mirror_descent': Piece(
    function=mirror_descent,
    formula='(A log ρ − {regularization:g}/2 (log ρ)²)',
    source='arXiv 2501.12599, eq. 3',
    numbers=('regularization',),
  ),
  'reinforce': Piece(
    function=reinforce,
    formula='A log π',
    source='Williams 1992; arXiv 2504.02546',
  ),
  'none': Piece(function=no_gate, formula='ρ A', source='importance sampling'),
}
