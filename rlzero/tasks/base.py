"""The interface of a task; no JAX here, for rewards run in workers."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable


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
  by their names, for rewards beside that of a right answer.
  """

  @property
  def name(self) -> str: ...

  def examples(self, split: str) -> Sequence[Example]:
    """All problems of a split: 'train', 'validation' or 'test'."""

  def extract(self, text: str) -> str | None:
    """The last answer stated anywhere in `text`, or None."""

  def verify(self, answer: str, target: str) -> bool:
    """Whether `answer` (the text of an answer, no tags) is right."""

  def same(self, first: str, second: str) -> bool:
    """Whether two answers are mathematically the same (cons@k's classes)."""

  def count_tries(self, text: str) -> int:
    """Number of attempts at a solution that the text goes through."""


def bucket(text: str, num_buckets: int = 100) -> int:
  """Bucket of a text by SHA-256, equal on every machine and Python."""
  digest = hashlib.sha256(text.encode()).digest()
  return int.from_bytes(digest[:8], 'big') % num_buckets
