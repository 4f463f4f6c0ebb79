"""Ratios pi / pi_old: of a token, or of the completion that it is of.

A completion stands in one row, next to itself, whatever the packing, the
microbatch, the mesh or `pmap`. So a sum over it needs one row and no other
device, and does not depend on what else is there.
"""

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from rlzero.rl.objectives.piece import Piece

Values = Float[Array, 'B T']
_FARTHEST = 20.0  # nats; exp() of a longer way is of no use, and may overflow


def token(log_ratio: Values, mask: Values, completions: object) -> Values:
  """log rho_t = log pi(o_t) - log pi_old(o_t) (arXiv 2402.03300, eq. 3)."""
  del mask, completions
  return log_ratio


def sequence(
  log_ratio: Values, mask: Values, completions: Int[Array, 'B T']
) -> Values:
  """Mean of log rho_t over the completion (GSPO, arXiv 2507.18071)."""
  sums = completion_sums(mask * log_ratio, completions)
  return sums / jnp.maximum(completion_sums(mask, completions), 1)


def trajectory(
  log_ratio: Values, mask: Values, completions: Int[Array, 'B T']
) -> Values:
  """Sum of log rho_t: the ratio of a whole completion (2501.12948, eq. 1)."""
  sums = completion_sums(mask * log_ratio, completions)
  return jnp.clip(sums, -_FARTHEST, _FARTHEST)


@jax.custom_vjp
def completion_sums(x: Values, completions: Int[Array, 'B T']) -> Values:
  """At each token, the sum of x over its completion.

  A scan adds up along the row and begins anew where a completion does; each
  token then takes the sum at its completion's end. Nothing is added that is of
  another completion, so there is no rounding by what shares the row.

  Args:
    x: of the tokens.
    completions: ids; equal ids of a row are next to each other.
  """

  def add(before, after):
    (sum_before, begins_before), (sum_after, begins) = before, after
    total = jnp.where(begins, sum_after, sum_before + sum_after)
    return total, begins_before | begins

  border = completions[:, 1:] != completions[:, :-1]
  begins = jnp.pad(border, ((0, 0), (1, 0)), constant_values=True)
  ends = jnp.pad(border, ((0, 0), (0, 1)), constant_values=True)
  sums, _ = jax.lax.associative_scan(add, (x, begins), axis=1)
  places = jnp.where(ends, jnp.arange(x.shape[1]), x.shape[1])
  end = jax.lax.cummin(places, axis=1, reverse=True)
  return jnp.take_along_axis(sums, end, axis=1)


# It maps x by a symmetric matrix of zeros and ones.
completion_sums.defvjp(
  lambda x, completions: (completion_sums(x, completions), completions),
  lambda completions, slope: (completion_sums(slope, completions), None),
)


RATIOS = {
  'token': Piece(
    function=token,
    formula='π(o_t) / π_old(o_t)',
    source='arXiv 2402.03300, eq. 3',
  ),
  'sequence': Piece(
    function=sequence,
    formula='(π(o_i) / π_old(o_i))^(1/|o_i|)',
    source='arXiv 2507.18071',
  ),
  'trajectory': Piece(
    function=trajectory,
    formula='π(o_i) / π_old(o_i)',
    source='arXiv 2501.12948, eq. 1',
  ),
}
