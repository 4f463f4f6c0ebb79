"""Verifiers of tables: how an answer is read, and when it is right.

`Numbers` and `Formulas` compare mathematics (`verify`), `Choice` the letters of
multiple choice, `Contains` short texts; `Code` runs programs against tests.
`Function` is a function of yours, and `Judge` a model; they score completions
as a whole. `Unjudged` leaves them to reward models.
"""

import ast
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlzero.runtime import fields, functions
from rlzero.runtime.fields import above, at_least
from rlzero.tasks import (
  answers,
  base,
  completion_verifier,
  execute,
  fences,
  isolation,
  letters,
  reward_functions,
)
from rlzero.tasks.judge import Judge
from rlzero.tasks.verify import Formulas, Numbers

__all__ = [
  'Choice',
  'Code',
  'Contains',
  'Formulas',
  'Function',
  'Judge',
  'Numbers',
  'Programs',
  'Unjudged',
]

# Between the answers of a list.
_OFFERS = frozenset({',', ';', '/', '|', '&', 'or', 'and', '、', '或'})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
  """Judges the letter of a choice; whoever names two has chosen none.

  Raises:
    ValueError: letters that are none.
  """

  letters: str = 'ABCD'  # of the choices

  def __post_init__(self):
    if not re.fullmatch('[A-Z]+', self.letters):
      raise ValueError(
        f"Choice.letters is {self.letters!r}; give capitals, as in 'ABCD'."
      )

  def target_of(self, value: Any) -> str:
    """The letter that a column holds, or that its number from 0 stands for.

    Raises:
      ValueError: neither; in words that follow the column's name.
    """
    if isinstance(value, int) and not isinstance(value, bool):
      if not 0 <= value < len(self.letters):
        raise ValueError(f'is no number from 0 to {len(self.letters) - 1}')
      return self.letters[value]
    letter = letters.choice(base.plain_text(value), self.letters)
    if letter is None:
      raise ValueError(f'names none of {self.letters}')
    return letter

  def extract(self, text: str) -> str | None:
    return letters.choice(text, self.letters)

  def verify(self, answer: str, target: str) -> bool:
    return letters.choice(answer, self.letters) == target

  def same(self, first: str, second: str) -> bool:
    chosen = [letters.choice(text, self.letters) for text in (first, second)]
    return first == second if None in chosen else chosen[0] == chosen[1]

  def count_tries(self, text: str) -> int:
    return letters.count(text, self.letters)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contains:
  """Judges an answer by whether it contains the target, as whole words.

  Case and white space make no difference. A column may hold a list of texts,
  one of which is enough. A policy can list many answers, so an answer is
  right only if it is short, offers nothing else before the target, and no
  other number where the target is one.
  """

  max_words: int = 10  # of an answer, beyond those of the target

  def __post_init__(self):
    fields.check(self, max_words=at_least(0))

  def target_of(self, value: Any) -> str:
    """The texts that a column holds, as JSON.

    Raises:
      ValueError: there are none; in words that follow the column's name.
    """
    values = value if isinstance(value, list) else [value]
    if not values:
      raise ValueError('is empty')
    return json.dumps([base.plain_text(v) for v in values], ensure_ascii=False)

  def extract(self, text: str) -> str | None:
    return answers.last_answer(text, numeric=False)

  def verify(self, answer: str, target: str) -> bool:
    """Whether one of the target's texts stands in a short enough answer."""
    found = _words(answer)
    return any(
      len(found) <= len(wanted) + self.max_words and _states(found, wanted)
      for wanted in map(_words, json.loads(target))
    )

  def same(self, first: str, second: str) -> bool:
    return _words(first) == _words(second)

  def count_tries(self, text: str) -> int:
    return answers.count_results(text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Function(completion_verifier.CompletionVerifier):
  """Scores whole completions by a function of yours; see `reward_functions`.

  The score is the reward in the place of that of a right answer, whatever the
  format. A dict's entry `score` is, and the others are further rewards.

  Raises:
    ValueError: no such function, or one that needs what there is not.
  """

  function: str = fields.code(dataclasses.MISSING)  # 'my_rewards.py:score'
  passing: float = 1.0  # the least score of a completion that counts as right
  # Of the function's file as the run begins.
  digest: str = dataclasses.field(init=False, repr=False, default='')

  def __post_init__(self):
    fields.check(self)
    reward_functions.plan(self.function)
    object.__setattr__(self, 'digest', functions.digest(self.function))

  @property
  def plan(self) -> reward_functions.Plan:
    """The needs of the function."""
    return reward_functions.plan(self.function)

  def judge(
    self, responses: Sequence[base.Response], problem: base.Problem
  ) -> list[base.Judgement]:
    """A judgement of each response of a problem."""
    function = reward_functions.load(self.function, self.digest)
    return [
      found._replace(
        correct=found.score is not None and found.score >= self.passing
      )
      for found in function.judge(responses, problem)
    ]

  def warm_up(self) -> None:
    """Loads the function."""
    reward_functions.load(self.function, self.digest)

  def same(self, first: str, second: str) -> bool:
    return _words(first) == _words(second)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unjudged(completion_verifier.CompletionVerifier):
  """Judges nothing: for prompts whose answers no rule can judge.

  Reward models and further rewards do (`rewards.Scenario.preferences`,
  `table.Table.rewards`). A table of prompts alone has `target = ''`.
  """

  def judge(
    self, responses: Sequence[base.Response], problem: base.Problem
  ) -> list[base.Judgement]:
    """A judgement of each response: that none applies."""
    del problem
    return [base.Judgement(correct=False) for _ in responses]

  def same(self, first: str, second: str) -> bool:
    return _words(first) == _words(second)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Programs:
  """Judges programs by tests, in the sandbox of `isolation`.

  A target is JSON: `tests` (pairs of input and output), `function` (its name,
  or '' for programs that read standard input), `limit_s` and `memory` in bytes
  for each test.
  """

  # Run programs with limits alone where no sandbox works; see `isolation`.
  allow_unsandboxed: bool = False
  language: str = 'python'  # one of fences.LANGUAGES

  def __post_init__(self):
    if self.language not in fences.LANGUAGES:
      raise ValueError(
        f'{type(self).__name__}.language is {self.language!r}; choose one of '
        f'{", ".join(fences.LANGUAGES)}.'
      )

  @property
  def deadline_s(self) -> float:
    """Seconds that a verdict may take: all tests of a program."""
    return execute.DEADLINE_S

  def notice(self) -> str:
    """Which sandbox programs run in.

    Raises:
      RuntimeError: there is none, and that is not allowed.
    """
    return isolation.describe(self.allow_unsandboxed)

  def warm_up(self) -> None:
    """Finds the sandbox before the first program does; raises as `notice`."""
    self.notice()

  def extract(self, text: str) -> str | None:
    return execute.program(text, self.language)

  def verify(self, answer: str, target: str) -> bool:
    """Whether the program passes every test."""
    return self.outcome(answer, target) == execute.Verdict.ACCEPTED

  def outcome(self, answer: str, target: str) -> str:
    """How the program did: one of `execute.Verdict`.

    Args:
      answer: the program, fenced or not.
      target: of the example.
    """
    facts = json.loads(target)
    source = fences.stated(answer, self.language)
    if source is None:
      return execute.Verdict.CRASH
    return execute.run(
      source,
      self.tests(facts),
      facts['function'],
      facts['limit_s'],
      facts['memory'],
      language=self.language,
      allow_unsandboxed=self.allow_unsandboxed,
    )

  def tests(self, facts: Mapping[str, Any]) -> list[execute.Test]:
    """The tests of a target."""
    return [execute.Test(*test) for test in facts['tests']]

  def same(self, first: str, second: str) -> bool:
    """The same text; that two programs do the same is not decided here."""
    return first.strip() == second.strip()

  def count_tries(self, text: str) -> int:
    names = fences.LANGUAGES[self.language]
    return sum(block.language in names for block in fences.blocks(text))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Code(Programs):
  """Judges programs by the tests that a column of a table holds.

  The column is one of these, or JSON of one of these:

    {'inputs': [...], 'outputs': [...], 'fn_name': ...}   as APPS and TACO have
    [{'input': ..., 'output': ...}, ...]                  as Codeforces has
    ['assert f(1) == 2', ...]                             as MBPP has
  """

  limit_s: float = 6.0  # seconds a test
  memory: int = 1 << 30  # bytes

  def __post_init__(self):
    super().__post_init__()
    fields.check(self, limit_s=above(0), memory=at_least(1 << 24))

  def target_of(self, value: Any) -> str:
    """The tests of a column, as `Programs` wants them.

    Raises:
      ValueError: there are none; in words that follow the column's name.
    """
    if isinstance(value, str):
      try:
        value = json.loads(value)
      except (ValueError, RecursionError):
        raise ValueError('is no JSON of tests') from None
    function, tests = _tests(value)
    if not tests:
      raise ValueError('holds no tests')
    if function and self.language != 'python':
      raise ValueError(f'calls a function, which {self.language} cannot')
    return json.dumps(
      {
        'tests': tests,
        'function': function,
        'limit_s': self.limit_s,
        'memory': self.memory,
      }
    )


def _states(found: Sequence[str], wanted: Sequence[str]) -> bool:
  """Whether the wanted words stand in an answer as the first that it offers."""
  size = len(wanted)
  places = [
    i for i in range(len(found) - size + 1) if found[i : i + size] == wanted
  ]
  if not places or not _OFFERS.isdisjoint(found[: places[0]]):
    return False
  numbers = {word for word in found if word.isdecimal()}
  return not (size == 1 and wanted[0].isdecimal() and len(numbers) > 1)


def _words(text: str) -> list[str]:
  return re.findall(r'\w+|[^\w\s]', text.casefold())


def _tests(value: Any) -> tuple[str, list[tuple[str, str]]]:
  """The function that is called, or '', and pairs of input and output."""
  if isinstance(value, Mapping):
    function = str(value.get('fn_name') or '')
    inputs, outputs = value.get('inputs'), value.get('outputs')
    if not isinstance(inputs, list) or not isinstance(outputs, list):
      raise ValueError("has no lists 'inputs' and 'outputs'")
    if len(inputs) != len(outputs):
      raise ValueError('has not as many inputs as outputs')
    if not function:
      return '', list(zip(map(_text, inputs), map(_text, outputs), strict=True))
    # APPS has each value in a list of its own.
    if all(isinstance(wanted, list) and len(wanted) == 1 for wanted in outputs):
      outputs = [wanted for (wanted,) in outputs]
    values = map(json.dumps, outputs)
    return function, list(zip(map(_arguments, inputs), values, strict=True))
  if not isinstance(value, Sequence) or isinstance(value, str):
    raise ValueError('is neither an object nor a list of tests')
  if all(isinstance(test, str) for test in value):
    calls = [_call(test) for test in value]
    names = {name for name, _, _ in calls}
    if len(names) > 1:
      raise ValueError('tests several functions')
    return ''.join(names), [(given, wanted) for _, given, wanted in calls]
  if not all(isinstance(test, Mapping) for test in value):
    raise ValueError('is no list of tests')
  return '', [
    (_text(test.get('input')), _text(test.get('output'))) for test in value
  ]


def _text(value: Any) -> str:
  """Text that a program reads or writes; lines may come as a list."""
  if isinstance(value, list) and all(isinstance(v, str) for v in value):
    return '\n'.join(value)
  if not isinstance(value, str):
    raise ValueError('has an input or output that is no text')
  return value


def _arguments(given: Any) -> str:
  if not isinstance(given, list):
    raise ValueError('has arguments that are no list')
  return '\n'.join(json.dumps(argument) for argument in given)


def _call(test: str) -> tuple[str, str, str]:
  """Function, arguments and value of 'assert f(1) == 2'; nothing is run.

  Raises:
    ValueError: another kind of assertion, or values that JSON lacks.
  """
  problem = ValueError("has a test that is not 'assert f(...) == value'")
  try:
    (node,) = ast.parse(test.strip()).body
    comparison = getattr(node, 'test', None)
    if not isinstance(comparison, ast.Compare):
      raise problem
    call, (wanted,) = comparison.left, comparison.comparators
    if (
      not isinstance(node, ast.Assert)
      or not isinstance(comparison.ops[0], ast.Eq)
      or not isinstance(call, ast.Call)
      or not isinstance(call.func, ast.Name)
      or call.keywords
    ):
      raise problem
    arguments = [json.dumps(ast.literal_eval(a)) for a in call.args]
    return (
      call.func.id,
      '\n'.join(arguments),
      json.dumps(ast.literal_eval(wanted), allow_nan=False),
    )
  except (SyntaxError, TypeError, RecursionError, MemoryError, ValueError):
    raise problem from None
