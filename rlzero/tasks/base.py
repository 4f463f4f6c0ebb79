"""The interface of a task; no JAX here, for rewards run in workers."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

ACCEPTED = 'accepted'  # the outcome of a right answer


@dataclasses.dataclass(frozen=True)
class Example:
  """One problem. The target is for the verifier; no model ever sees it."""

  uid: str  # stable name, unique within the task
  question: str
  target: str  # what the verifier needs; a task may write JSON here
  task: str = ''  # name of its task, where several are mixed


@runtime_checkable
class Task(Protocol):
  """A source of problems and the judge of their answers.

  Tasks are frozen dataclasses: they are pickled to the reward workers, so
  they hold settings, not data. `examples` is deterministic.

  A task may also have `parts(text, target)`, further scores of a completion
  by their names, for rewards beside that of a right answer; `rating(target)`,
  how hard a problem is; `warm_up()`, which loads what judging needs;
  `notice()`, a sentence about judging that is said once; `deadline_s`, the
  seconds that a verdict may take, if they are more than usual; and
  `outcome(answer, target)`, how an answer did in one word, ACCEPTED if and
  only if `verify` is true.
  """

  @property
  def name(self) -> str: ...

  def examples(self, split: str) -> Sequence[Example]:
    """All problems of a split: 'train', 'validation' or 'test'."""
    ...

  def extract(self, text: str) -> str | None:
    """The last answer stated anywhere in `text`, or None."""
    ...

  def verify(self, answer: str, target: str) -> bool:
    """Whether `answer` (the text of an answer, no tags) is right."""
    ...

  def same(self, first: str, second: str) -> bool:
    """Whether two answers are mathematically the same (cons@k's classes)."""
    ...

  def count_tries(self, text: str) -> int:
    """Number of attempts at a solution that the text goes through."""
    ...


@dataclasses.dataclass(frozen=True)
class Wrapper:
  """Hands out problems in another way; `task` still judges answers."""

  task: Task

  @property
  def name(self) -> str:
    return self.task.name

  def extract(self, text: str) -> str | None:
    return self.task.extract(text)

  def verify(self, answer: str, target: str) -> bool:
    return self.task.verify(answer, target)

  def same(self, first: str, second: str) -> bool:
    return self.task.same(first, second)

  def count_tries(self, text: str) -> int:
    return self.task.count_tries(text)

  def __getattr__(self, name: str) -> Any:
    # What not every task has, this one has if the judging one does.
    if name in (
      'parts',
      'rating',
      'warm_up',
      'notice',
      'outcome',
      'deadline_s',
    ):
      return getattr(self.task, name)
    raise AttributeError(f'{type(self).__name__} has no {name!r}.')


def bucket(text: str, num_buckets: int = 100) -> int:
  """Bucket of a text by SHA-256, equal on every machine and Python."""
  digest = hashlib.sha256(text.encode()).digest()
  return int.from_bytes(digest[:8], 'big') % num_buckets
