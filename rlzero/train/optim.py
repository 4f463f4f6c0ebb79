"""Optimisers: AdamW, and Muon for the matrices of a model made from nothing."""

import dataclasses
from typing import Literal

import jax
import optax

from rlzero.models import parameters
from rlzero.models.lora import Adapter
from rlzero.runtime import fields, naming
from rlzero.runtime.fields import above, at_least
from rlzero.types import Params

# Short flags of a stage that has an `optimizer`.
SHORT_FLAGS = naming.flags_of(
  'optimizer',
  'learning_rate',
  'warmup_steps',
  'schedule',
  'b2',
  'weight_decay',
  'max_grad_norm',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  """Optimiser, schedule and clipping.

  Raises:
    ValueError: a setting out of range.
  """

  kind: Literal['adamw', 'muon'] = 'adamw'
  learning_rate: float = 1e-6
  warmup_steps: int = 0  # updates, linear from 0
  schedule: Literal['constant', 'cosine', 'linear'] = 'constant'
  final_fraction: float = 0.1  # of learning_rate, where a schedule ends
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.0
  max_grad_norm: float = 1.0  # global norm; larger gradients are scaled down

  def __post_init__(self):
    fields.check(
      self,
      learning_rate=at_least(0),
      warmup_steps=at_least(0),
      final_fraction=at_least(0).at_most(1),
      b1=at_least(0).below(1),
      b2=at_least(0).below(1),
      eps=above(0),
      weight_decay=at_least(0),
      max_grad_norm=above(0),
    )

  def rate(self, num_steps: int) -> optax.Schedule:
    """Learning rate by update."""
    peak, rest = self.learning_rate, max(num_steps - self.warmup_steps, 1)
    match self.schedule:
      case 'constant':
        after = optax.constant_schedule(peak)
      case 'linear':
        after = optax.linear_schedule(peak, peak * self.final_fraction, rest)
      case 'cosine':
        after = optax.cosine_decay_schedule(peak, rest, self.final_fraction)
    if not self.warmup_steps:
      return after
    # The first update has a rate above 0: a step that does nothing is wasted.
    warmup = optax.linear_schedule(
      peak / self.warmup_steps, peak, self.warmup_steps - 1
    )
    return optax.join_schedules([warmup, after], [self.warmup_steps])

  def transform(self, num_steps: int) -> optax.GradientTransformation:
    """Clipping and the update rule, for a run of `num_steps` updates."""
    rate = self.rate(num_steps)
    if self.kind == 'muon':
      rule = optax.contrib.muon(
        rate,
        weight_decay=self.weight_decay,
        adam_b1=self.b1,
        adam_b2=self.b2,
        adam_weight_decay=self.weight_decay,
        muon_weight_dimension_numbers=muon_matrices,
        consistent_rms=0.2,  # Adam's update size (arXiv 2502.16982)
      )
    else:
      rule = optax.adamw(
        rate, self.b1, self.b2, self.eps, weight_decay=self.weight_decay
      )
    return optax.chain(optax.clip_by_global_norm(self.max_grad_norm), rule)


def check_adapter(adapter: Adapter | None, optimizer: Optimizer) -> None:
  """Refuses an optimiser that is not for adapters.

  Raises:
    ValueError: it is Muon, whose steps are as long in A as in B.
  """
  if adapter and optimizer.kind == 'muon':
    raise ValueError(
      "optim.Optimizer.kind is 'muon' with an adapter; it is for the whole "
      "matrices of a model made from nothing, so use 'adamw'."
    )


def muon_matrices(params: Params) -> Params:
  """Input and output axes of each matrix that Muon updates, else None.

  Raises:
    ValueError: a parameter that `models/parameters.py` does not declare.
  """

  def of_one(path, leaf):
    param = parameters.of_path(path)
    if not param.muon:
      return None
    first = leaf.ndim - len(param.outputs)
    return optax.contrib.MuonDimensionNumbers(
      tuple(range(first - len(param.inputs), first)),
      tuple(range(first, leaf.ndim)),
    )

  return jax.tree_util.tree_map_with_path(of_one, params)
