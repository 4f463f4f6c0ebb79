"""The settings of the GRPO loss."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """What the update maximises; the paper's GRPO by default.

  Raises:
    ValueError: a coefficient out of range.
  """

  kl_coef: float = 0.001  # beta, of the k3 KL in the loss
  clip_low: float = 0.2  # epsilon below 1
  clip_high: float = 0.2  # epsilon above 1
  normalize_std: bool = True  # divide advantages by the group's std
  aggregation: Literal['sequence_mean', 'constant'] = 'sequence_mean'
  temperature: float = 1.0  # of the policy whose log-probs are taken
  max_len: int = 1024  # divisor of 'constant', in tokens

  def __post_init__(self):
    if self.kl_coef < 0:
      raise ValueError(
        f'Objective.kl_coef is {self.kl_coef}; it must be at least 0.'
      )
    for name in ('clip_low', 'clip_high'):
      if getattr(self, name) <= 0:
        raise ValueError(
          f'Objective.{name} is {getattr(self, name)}; it must be above 0.'
        )
