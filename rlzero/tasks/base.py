"""The interface of a task; no JAX here, for rewards run in workers."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, overload, runtime_checkable

ACCEPTED = 'accepted'  # the outcome of a right answer


@dataclasses.dataclass(frozen=True)
class Example:
  """One problem. The target is for the verifier; no model ever sees it."""

  uid: str  # stable name, unique within the task
  question: str  # a `template.Chat` where it has several messages
  target: str  # what the verifier needs; a task may write JSON here
  task: str = ''  # name of its task, where several are mixed


class Response(NamedTuple):
  """A completion, for who judges all of it."""

  text: str
  token_ids: Sequence[int] | None = None  # where they are asked for
  in_thought: bool = False  # its prompt has begun the thought


class Problem(NamedTuple):
  """A problem, as those are told who judge completions."""

  prompt: str | list[dict[str, str]]  # the question: text, or messages
  target: Any
  columns: Mapping[str, Any]  # of a table by name, the target's among them


class Judgement(NamedTuple):
  """The worth of a completion, or why nobody can say it.

  `correct` is None where no score was given, and `Task.verify` decides.
  """

  score: float | None = None  # None: does not apply
  correct: bool | None = None
  parts: Mapping[str, float | None] = {}  # further scores, by name
  error: str = ''  # a line, and a traceback behind it if there is one
  logged: Mapping[str, float] = {}  # metrics, by their whole names
  notes: Mapping[str, Any] = {}  # kept with the completion; JSON


@runtime_checkable
class Verifier(Protocol):
  """The judge of answers.

  It may also have `target_of(value)`, which makes the target of a column of a
  table, and raises ValueError (in words that follow the column's name) where
  it cannot; and, of the methods that a task may have, `warm_up`, `notice`,
  `deadline_s` and `outcome`.

  One that judges whole completions has `judge(responses, problem)`, with a
  Judgement of each of one problem's responses, and `plan`, what it needs for
  that (`reward_functions.Plan`).
  """

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


@runtime_checkable
class Task(Verifier, Protocol):
  """A source of problems and the judge of their answers.

  Tasks are frozen dataclasses: they are pickled to the reward workers, so
  they hold settings, not data. `examples` is deterministic.

  A task may also have `parts(text, target)`, further scores of a completion
  by their names, for rewards beside that of a right answer; `part_names`, all
  names that these can have, or None; `rating(target)`,
  how hard a problem is; `level(target)`, the name of the problems that are as
  hard as it; `warm_up()`, which loads what judging needs;
  `notice()`, a sentence about judging that is said once; `deadline_s`, the
  seconds that a verdict may take, if they are more than usual; and
  `outcome(answer, target)`, how an answer did in one word, ACCEPTED if and
  only if `verify` is true.

  One whose completions are judged whole has `judge(responses, target)`, a
  Judgement of each of one problem's responses; `judges_groups`, whether it
  wants all of them at once; `takes_token_ids`, whether it reads those, and
  `needs_token_ids`, whether it cannot do without; and `parallel`, of how many
  it judges at once, which share one `deadline_s`.
  """

  @property
  def name(self) -> str: ...

  def examples(self, split: str) -> Sequence[Example]:
    """All problems of a split: 'train', 'validation' or 'test'.

    They may be read from disk one by one; nobody makes a list of them all.
    """
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
      'part_names',
      'rating',
      'level',
      'warm_up',
      'notice',
      'outcome',
      'deadline_s',
      'judge',
      'judges_groups',
      'takes_token_ids',
      'needs_token_ids',
      'parallel',
    ):
      return getattr(self.task, name)
    raise AttributeError(f'{type(self).__name__} has no {name!r}.')


class View(Sequence[Example]):
  """Problems of a sequence, changed or chosen as they are read.

  Args:
    examples: where they come from.
    change: of each problem.
    places: those that are in the view, in their order; None takes all.
  """

  def __init__(
    self,
    examples: Sequence[Example],
    change: Callable[[Example], Example] = lambda example: example,
    places: Sequence[int] | None = None,
  ):
    self._examples, self._change, self._places = examples, change, places

  @property
  def fingerprint(self) -> str:
    """Names the content, where the sequence does; else ''."""
    return getattr(self._examples, 'fingerprint', '')

  def __len__(self) -> int:
    return len(self._examples if self._places is None else self._places)

  @overload
  def __getitem__(self, index: int) -> Example: ...
  @overload
  def __getitem__(self, index: slice) -> list[Example]: ...

  def __getitem__(self, index: int | slice) -> Example | list[Example]:
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    place = index if self._places is None else int(self._places[index])
    return self._change(self._examples[place])


def plain_text(value: Any) -> str:
  """Text that is not empty; a number is the text it is written as.

  Raises:
    ValueError: neither; in words that follow the name of a column.
  """
  if isinstance(value, (list, tuple)) and len(value) == 1:
    value = value[0]  # some data sets keep a list of one answer
  if isinstance(value, (int, float)) and not isinstance(value, bool):
    if math.isfinite(value):
      return str(value)
  if value is None or value == []:
    raise ValueError('is empty')
  if not isinstance(value, str):
    raise ValueError('is neither text nor a number')
  if not (text := value.strip()):
    raise ValueError('is empty')
  return text


def bucket(text: str, num_buckets: int = 100) -> int:
  """Bucket of a text by SHA-256, equal on every machine and Python."""
  digest = hashlib.sha256(text.encode()).digest()
  return int.from_bytes(digest[:8], 'big') % num_buckets
