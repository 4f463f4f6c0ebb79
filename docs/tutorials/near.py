"""A task of your own: reach a target with three numbers, or come near it.

`3_your_own_task.md` explains it.
"""

import dataclasses
import itertools

from rlzero.tasks import arithmetic, base

OPERATORS = '+-*'


@dataclasses.dataclass(frozen=True)
class Near:
  """Three numbers, and a target that an answer may miss by a little.

  Raises:
    ValueError: a negative distance.
  """

  distance: int = 5  # an answer is right if it is at most so far off
  name: str = 'near'

  def __post_init__(self):
    if self.distance < 0:
      raise ValueError(
        f'Near.distance is {self.distance}; it must be at least 0.'
      )

  def examples(self, split: str) -> list[base.Example]:
    """All problems of a split, in a fixed order."""
    found = []
    for numbers in itertools.combinations(range(2, 11), 3):
      for target in range(20, 80, 5):
        question = f'{" ".join(map(str, numbers))} make {target}'
        if split_of(question) == split:
          found.append(base.Example(question, question, question))
    return found

  def extract(self, text: str) -> str | None:
    """The text in the last answer tags."""
    _, tag, stated = text.rpartition('<answer>')
    return stated.split('<')[0].strip() or None if tag else None

  def verify(self, answer: str, target: str) -> bool:
    """Whether the expression uses each number once and comes near."""
    numbers, _, value = target.partition(' make ')
    found = arithmetic.evaluate(answer, OPERATORS)
    if found is None or found[1] != sorted(map(int, numbers.split())):
      return False
    return abs(found[0] - int(value)) <= self.distance

  def same(self, first: str, second: str) -> bool:
    """Answers are the same if their values are."""
    found = arithmetic.evaluate(first, OPERATORS)
    if found is None:
      return first == second
    return found == arithmetic.evaluate(second, OPERATORS)

  def count_tries(self, text: str) -> int:
    """The results that the thought writes down."""
    return text.partition('</think>')[0].count('=')


def split_of(question: str) -> str:
  """10% validation, 15% test, the rest train, by hash of the question."""
  place = base.bucket(question)
  return 'validation' if place < 10 else 'test' if place < 25 else 'train'
