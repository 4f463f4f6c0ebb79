"""The settings of the GRPO loss."""

import dataclasses
from typing import Literal

from rlzero.runtime import fields, naming
from rlzero.runtime.fields import above, at_least

# Short flags of a stage that has an `objective`.
SHORT_FLAGS = naming.flags_of(
  'objective',
  'kl_coef',
  'clip_low',
  'clip_high',
  'normalize_std',
  'aggregation',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """The objective that the update maximises; by default the paper's GRPO.

  Raises:
    ValueError: a coefficient out of range.
  """

  kl_coef: float = 0.001  # beta, of the k3 KL in the loss
  clip_low: float = 0.2  # epsilon below 1
  clip_high: float = 0.2  # epsilon above 1
  normalize_std: bool = True  # divide advantages by the group's std
  # How a completion's tokens are summed: divided by its length, or by max_len.
  aggregation: Literal['sequence_mean', 'constant'] = 'sequence_mean'

  def __post_init__(self):
    fields.check(
      self, kl_coef=at_least(0), clip_low=above(0), clip_high=above(0)
    )
