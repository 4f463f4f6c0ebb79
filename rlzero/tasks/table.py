"""A table of questions and targets as a task: bring your own data.

table.Table(path='train.jsonl', question='problem', target='answer',
            verifier=verifiers.Numbers())
"""

import dataclasses
import inspect
import json
from collections.abc import Sequence
from typing import Any

from rlzero.runtime import fields, functions
from rlzero.runtime.fields import at_least
from rlzero.tasks import base, reward_functions, verify
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
  target: str = 'answer'  # column; '' has none, for functions that need none
  verifier: base.Verifier = _FORMULAS
  # Further rewards, each a function of yours by the name that `part_rewards`
  # weighs: {'brevity': 'my_rewards.py:brevity'}.
  rewards: dict[str, str] = fields.code(dict)
  # Columns that functions are passed beside those that they name.
  columns: tuple[str, ...] = ()
  system: str = ''  # a message put first, in place of the question's own
  split_column: str = ''
  level_column: str = ''  # how hard a problem is, for a curriculum
  # Percent of the training rows, where there is no such split.
  validation_percent: float = 5.0
  test_percent: float = 5.0
  min_chars: int = 1  # of a question; rows outside are left out
  max_chars: int = 100_000
  name: str = 'table'
  # Of the files of `rewards` as the run begins, in their order.
  digests: tuple[str, ...] = dataclasses.field(
    init=False, repr=False, default=()
  )

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
    short = [_short(name) for name in (*self._columns, self.target)]
    if len({*short}) < len(short):
      raise ValueError(
        f'Table.columns is {self.columns} and target {self.target!r}; '
        'functions are passed columns by the last part of their names, so '
        'these must differ.'
      )
    for name, spec in self.rewards.items():
      try:
        reward_functions.check_name(name)
      except reward_functions.InvalidScore as error:
        raise ValueError(f'Table.rewards has {error}.') from None
      reward_functions.plan(spec)
    digests = tuple(map(functions.digest, self.rewards.values()))
    object.__setattr__(self, 'digests', digests)

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
    return table_store.Rows(
      store, places, self.name, self.system, with_prompt=bool(self._plans)
    )

  def extract(self, text: str) -> str | None:
    return self.verifier.extract(text)

  def verify(self, answer: str, target: str) -> bool:
    if hasattr(self.verifier, 'judge'):
      return bool(self._judge([base.Response(answer)], target)[0].correct)
    return self.verifier.verify(answer, _target(target))

  def same(self, first: str, second: str) -> bool:
    return self.verifier.same(first, second)

  def count_tries(self, text: str) -> int:
    return self.verifier.count_tries(text)

  @property
  def part_names(self) -> tuple[str, ...] | None:
    """Names of the further scores; None where a function may give others."""
    return None if hasattr(self.verifier, 'function') else tuple(self.rewards)

  @property
  def judges_groups(self) -> bool:
    """Whether a function judges all completions of a problem at once."""
    return any(plan.is_list for plan in self._plans)

  @property
  def takes_token_ids(self) -> bool:
    """Whether a function may read the tokens of completions."""
    return any(plan.takes_token_ids for plan in self._plans)

  @property
  def needs_token_ids(self) -> bool:
    """Whether a function cannot judge without the tokens of completions."""
    return any(plan.needs_token_ids for plan in self._plans)

  def __getattr__(self, name: str) -> Any:
    # What not every verifier has.
    if name in ('notice', 'deadline_s', 'parallel'):
      return getattr(self.verifier, name)
    if name == 'level' and self.level_column:
      return self._level
    if name == 'outcome':
      found = self.verifier.outcome  # pyright: ignore[reportAttributeAccessIssue]
      return lambda answer, target: found(answer, _target(target))
    own = {'judge': self._judge, 'warm_up': self._warm_up}
    if name in own and (self.rewards or hasattr(self.verifier, name)):
      return own[name]
    raise AttributeError(f'{type(self).__name__} has no {name!r}.')

  @property
  def _columns(self) -> tuple[str, ...]:
    """The columns that are kept beside question and target, each once."""
    level = (self.level_column,) if self.level_column else ()
    return tuple(dict.fromkeys((*self.columns, *level)))

  def _level(self, target: str) -> str:
    return str(json.loads(target)['columns'][_short(self.level_column)])

  def _warm_up(self) -> None:
    if warm_up := getattr(self.verifier, 'warm_up', None):
      warm_up()
    self._functions()

  def _judge(
    self, responses: Sequence[base.Response], target: str
  ) -> list[base.Judgement]:
    """Judges by the verifier, if it judges completions, and by `rewards`."""
    held = json.loads(target)
    columns = {_short(self.target): held['target'], **held.get('columns', {})}
    own = columns[_short(self.target)]
    columns.pop('', None)  # of a table without targets
    problem = base.Problem(held.get('prompt', ''), own, columns)
    found = [base.Judgement() for _ in responses]
    if judge := getattr(self.verifier, 'judge', None):
      found = judge(responses, problem)
    for name, function in self._functions().items():
      further = function.judge(responses, problem)
      found = [
        _joined(one, name, other)
        for one, other in zip(found, further, strict=True)
      ]
    return found

  def _functions(self) -> dict[str, reward_functions.RewardFunction]:
    return {
      name: reward_functions.load(spec, digest)
      for (name, spec), digest in zip(
        self.rewards.items(), self.digests, strict=True
      )
    }

  @property
  def _plans(self) -> list[reward_functions.Plan]:
    """The needs of those who judge whole completions."""
    own = getattr(self.verifier, 'plan', None)
    plans = [] if own is None else [own]
    return plans + list(map(reward_functions.plan, self.rewards.values()))

  def _source(self) -> table_store.Source:
    parts = locate.locate(self.path)
    for split, path in (
      ('validation', self.validation_path),
      ('test', self.test_path),
    ):
      if path:
        found = locate.locate(path)
        parts[split] = found.get(split) or found['train']
    plans = self._plans
    needed = frozenset[str]().union(*(plan.needed for plan in plans))
    wanted = frozenset[str]().union(*(plan.wanted for plan in plans))
    named = {_short(name) for name in (*self._columns, self.target)}
    others = (*self._columns, *sorted(needed - named))
    if plans and self.target and not hasattr(self.verifier, 'judge'):
      # Functions are passed what the column holds, not what the verifier
      # makes of it.
      others = (*others, self.target)
    columns = table_rows.Columns(
      self.question,
      self.target,
      others=others,
      optional=tuple(sorted(wanted - needed - named)),
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


def _short(column: str) -> str:
  """A column's name for functions: the last part of a path."""
  return column.rpartition('.')[2]


def _joined(
  own: base.Judgement, name: str, further: base.Judgement
) -> base.Judgement:
  """A judgement with the score of one more function."""
  error = own.error or further.error
  if further.parts:
    error = error or (
      f'InvalidScore in the reward {name!r}: it gave a dict; a further reward '
      'is a number'
    )
  if name in own.parts:
    error = error or (
      f'InvalidScore in the reward {name!r}: the verifier gives a score of '
      'that name too; rename one of them'
    )
  return own._replace(
    parts={**own.parts, name: further.score},
    error=error,
    logged={**own.logged, **further.logged},
    notes={**own.notes, **further.notes},
  )


def _target(target: str) -> Any:
  return json.loads(target)['target']


def _code_of(verifier: base.Verifier) -> str:
  """The source of the verifier's class: other code makes other targets."""
  try:
    return inspect.getsource(type(verifier))
  except (OSError, TypeError):  # typed in, say
    return ''
