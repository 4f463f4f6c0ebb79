"""A curriculum: problems are drawn more often if their pass rate is near 1/2.

A group of completions teaches by their difference, and verdicts differ most
where half are right: with a pass rate of p their variance is p (1 - p).
So when a problem's turn comes in the shuffled epochs of the stream, it is taken
with the probability

  floor + (1 - floor) 4 p (1 - p),   p = (r + 1) / (n + 2),

where r of the n completions of its class were right, and is passed over
otherwise. An observation counts half after `half_life` rollouts, since the
policy is another by then. Nothing is known of a class at first, nor after a
long time: p is 1/2 and it is taken for certain.

A class is a problem, where the same problems come again and again; or those as
hard as it, where there are so many that few come twice.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

from rlzero.runtime import fields
from rlzero.runtime.fields import above
from rlzero.tasks import base


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curriculum:
  """How often problems are drawn, by the pass rate of their class."""

  # Problems of a class: one, those of one level of difficulty (the `level` or
  # the `rating` of the task), or all of a task; `none` draws all alike.
  by: Literal['none', 'problem', 'level', 'task'] = 'none'
  floor: float = 0.1  # probability to take a problem that teaches nothing
  half_life: float = 64.0  # rollouts until an observation counts half

  def __post_init__(self):
    fields.check(self, floor=above(0).at_most(1), half_life=above(0))


class Observation(NamedTuple):
  """Verdicts on completions of a problem."""

  example: base.Example
  right: float
  count: int


class PassRates:
  """Estimated pass rates of classes; decides which problems are taken.

  It forgets a class whose observations have faded to less than a completion,
  so that it holds a few half-lives of rollouts however many problems there are.

  Args:
    settings: of the curriculum.
    class_of: the name of a problem's class.
    seed: of the run; which problems are taken depends on it, the number of the
      draw and the pass rates.
  """

  def __init__(
    self,
    settings: Curriculum,
    class_of: Callable[[base.Example], str],
    seed: int,
  ):
    self._settings, self._class_of, self._seed = settings, class_of, seed
    self._rollouts = 0
    # Right ones, all, and the rollouts before they were counted.
    self._counts: dict[str, tuple[float, float, int]] = {}

  @property
  def num_classes(self) -> int:
    """Classes that something is known of."""
    return len(self._counts)

  def estimate(self, example: base.Example) -> float:
    """p, the pass rate of the problem's class."""
    right, count = self._faded(self._class_of(example))
    return (right + 1) / (count + 2)

  def takes(self, example: base.Example, draw: int) -> bool:
    """Whether the problem of this draw is taken, or passed over."""
    p, floor = self.estimate(example), self._settings.floor
    text = f'curriculum {self._seed} {draw}'
    digest = hashlib.sha256(text.encode()).digest()
    chance = int.from_bytes(digest[:8], 'big') / 2**64
    return chance < floor + (1 - floor) * 4 * p * (1 - p)

  def observe(self, observations: Iterable[Observation]) -> None:
    """Counts the verdicts of a rollout."""
    self._rollouts += 1
    found: dict[str, tuple[float, float]] = {}
    for example, right, count in observations:
      name = self._class_of(example)
      before, total = found.get(name) or self._faded(name)
      found[name] = before + right, total + count
    self._counts |= {name: (*c, self._rollouts) for name, c in found.items()}
    for name in [n for n in self._counts if self._faded(n)[1] < 1]:
      del self._counts[name]

  def get_state(self) -> dict[str, Any]:
    """The pass rates that it knows, as plain values."""
    return {
      'rollouts': self._rollouts,
      'counts': {name: list(c) for name, c in self._counts.items()},
    }

  def set_state(self, state: dict[str, Any]) -> None:
    """Takes the place of one that had this state."""
    self._rollouts = state['rollouts']
    self._counts = {name: tuple(c) for name, c in state['counts'].items()}

  def _faded(self, name: str) -> tuple[float, float]:
    right, count, rollouts = self._counts.get(name, (0.0, 0.0, self._rollouts))
    age = self._rollouts - rollouts
    weight = 0.5 ** (age / self._settings.half_life)
    return right * weight, count * weight


def classes(
  by: str, tasks: Iterable[base.Task]
) -> Callable[[base.Example], str]:
  """Names the class of a problem; see `Curriculum.by`.

  Args:
    by: 'problem', 'level' or 'task'.
    tasks: that the problems are of; their examples name them.

  Raises:
    ValueError: levels are wanted of a task that has none.
  """
  if by == 'task':
    return lambda example: example.task
  if by == 'problem':
    return lambda example: f'{example.task} {example.uid}'
  levels = {}
  for task in tasks:
    methods = (getattr(task, name, None) for name in ('level', 'rating'))
    level = next(filter(callable, methods), None)
    if level is None:
      raise ValueError(
        f"curriculum.Curriculum.by is 'level', but the task {task.name!r} has "
        "no levels of difficulty; choose 'problem' or 'task', or give it a "
        'method level(target).'
      )
    levels[task.name] = level
  return lambda e: f'{e.task} {levels[e.task](e.target)}'
