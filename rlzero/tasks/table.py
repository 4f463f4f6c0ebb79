"""A table of questions and targets as a task: bring your own data.

table.Table(path='train.jsonl', question='problem', target='answer',
            verifier=verifiers.Numbers())
"""

import dataclasses
import inspect
import json
from collections.abc import Sequence
from typing import Any

from rlzero.runtime import fields
from rlzero.runtime.fields import at_least
from rlzero.tasks import base, verify
from rlzero.tasks.datasets import locate, table_rows, table_store

_FORMULAS = verify.Formulas()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """Problems from the rows of a table, and a verifier that judges answers.

  A column is named by its name or by a path into it, as in
  `reward_model.ground_truth`. A question is text, or a list of messages with
  `role` and `content`; what follows the last one of the user is left out.

  The splits are those of the source: files named train and test, splits of
  TFDS, a column. If it has none for validation or testing, some of the training
  rows are held out, by hash of the question.

  Rows that cannot be used are left out, and counted in a warning. The table is
  read once, into the cache, and again only if it has changed.

  Raises:
    ValueError: a setting out of range.
  """

  # A .jsonl, .parquet or .csv file, a folder of these or a pattern;
  # hf://org/name[@revision][/pattern]; tfds://name[/config][:version].
  path: str
  # Rows of these are for validation and for testing alone.
  validation_path: str = ''
  test_path: str = ''
  question: str = 'question'  # column
  target: str = 'answer'  # column
  verifier: base.Verifier = _FORMULAS
  system: str = ''  # a message put first, in place of the question's own
  split_column: str = ''
  # Percent of the training rows, where there is no such split.
  validation_percent: float = 5.0
  test_percent: float = 5.0
  min_chars: int = 1  # of a question; rows outside are left out
  max_chars: int = 100_000
  name: str = 'table'

  def __post_init__(self):
    fields.check(
      self,
      validation_percent=at_least(0).below(100),
      test_percent=at_least(0).below(100),
      min_chars=at_least(1),
      max_chars=at_least(1),
    )
    if self.validation_percent + self.test_percent >= 100:
      raise ValueError(
        f'Table.validation_percent is {self.validation_percent} and '
        f'test_percent {self.test_percent}; they must leave some rows to train '
        'on.'
      )

  def examples(self, split: str) -> Sequence[base.Example]:
    """The problems of a split, in the order of the source.

    Raises:
      FileNotFoundError: no data there.
      ValueError: no such split, a damaged file, or no row that can be used.
    """
    if split not in locate.SPLITS:
      raise ValueError(
        f'{self.name} has no split {split!r}; choose one of '
        f'{", ".join(locate.SPLITS)}.'
      )
    store = table_store.open_store(self._source())
    places = store.places(split, self.validation_percent, self.test_percent)
    return table_store.Rows(store, places, self.name, self.system)

  def extract(self, text: str) -> str | None:
    return self.verifier.extract(text)

  def verify(self, answer: str, target: str) -> bool:
    return self.verifier.verify(answer, _target(target))

  def same(self, first: str, second: str) -> bool:
    return self.verifier.same(first, second)

  def count_tries(self, text: str) -> int:
    return self.verifier.count_tries(text)

  def __getattr__(self, name: str) -> Any:
    # What not every verifier has.
    if name in ('warm_up', 'notice', 'deadline_s', 'outcome'):
      found = getattr(self.verifier, name)
      if name != 'outcome':
        return found
      return lambda answer, target: found(answer, _target(target))
    raise AttributeError(f'{type(self).__name__} has no {name!r}.')

  def _source(self) -> table_store.Source:
    parts = locate.locate(self.path)
    for split, path in (
      ('validation', self.validation_path),
      ('test', self.test_path),
    ):
      if path:
        found = locate.locate(path)
        parts[split] = found.get(split) or found['train']
    columns = table_rows.Columns(
      self.question,
      self.target,
      split=self.split_column,
      min_chars=self.min_chars,
      max_chars=self.max_chars,
    )
    return table_store.Source(
      parts={s: parts[s] for s in locate.SPLITS if s in parts},
      columns=columns,
      target_of=getattr(self.verifier, 'target_of', base.plain_text),
      key=repr((self.verifier, _code_of(self.verifier))),
      name=self.path,
    )


def _target(target: str) -> Any:
  return json.loads(target)['target']


def _code_of(verifier: base.Verifier) -> str:
  """The source of the verifier's class: other code makes other targets."""
  try:
    return inspect.getsource(type(verifier))
  except (OSError, TypeError):  # typed in, say
    return ''
