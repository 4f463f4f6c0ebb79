"""Functions of a user as rewards, in either of two forms.

One judges a completion:

    def score(completion, target, **columns): return 0.5

One judges the completions of a problem, as functions do that were written for
TRL's GRPOTrainer: texts, or messages where the prompt is a conversation.

    def score(prompts, completions, **columns): return [0.5] * len(completions)

Each completion gets a number or a bool, or None where the function does not
apply. Columns of the table are passed by name, the target under its own and as
`target`. A function may be `async`.
"""

import asyncio
import functools
import inspect
import math
import numbers
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rlzero.runtime import functions
from rlzero.tasks import base

SCORE = 'score'  # the entry of a dict that is the completion's score
# Rewards that every run logs: no score of a user has their names.
RESERVED = frozenset(
  'mean accuracy correct format language model rule gap'.split()
) | {'kl_penalty', 'length_penalty'}
_OF_LISTS = {'prompts', 'completions', 'completion_ids'}  # who names one
_LOGGERS = {'log_extra', 'log_metric'}
# TRL passes these too; reward processes do not have them.
_REFUSED = {
  'trainer_state': 'a reward here is a function of the completion alone, the '
  'same at every step and in every evaluation',
  'environments': 'there are no environments here',
}
_MAX_TRACEBACK, _MAX_LINE, _MAX_NOTE = 2000, 300, 2000  # characters
_NAME = re.compile(r'[\w./@-]{1,100}')


class InvalidScore(ValueError):
  """A value that is no score, in words that follow 'it gave'."""


class Plan(NamedTuple):
  """The needs of a function; found without running anything of it."""

  is_list: bool = False
  needed: frozenset[str] = frozenset()  # columns
  wanted: frozenset[str] = frozenset()  # columns, where the table has them
  takes_token_ids: bool = False
  needs_token_ids: bool = False


def plan(spec: str) -> Plan:
  """Finds what a function needs, by its `def`.

  One that is imported or made by a call has no `def` in its file. It is taken
  to be of the list form, and to need what is passed to all.

  Raises:
    ValueError: no such function, or one that needs what is not there.
  """
  stated = functions.signature(spec)
  if stated is None:
    return Plan(is_list=True, takes_token_ids=True)
  form = _Form(spec, stated.parameters)
  names = form.needed | stated.needed
  wanted = (form.names | stated.wanted) - names
  _check_known(spec, names)
  passed = _OF_LISTS | _LOGGERS | {'target', 'prompt', form.first}
  unknown = _REFUSED.keys()
  return Plan(
    is_list=form.is_list,
    needed=names - passed,
    wanted=wanted - passed - unknown,
    takes_token_ids='completion_ids' in names | wanted,
    needs_token_ids='completion_ids' in names,
  )


class RewardFunction:
  """A function of either form, loaded; `load` makes it.

  Args:
    spec: 'my_rewards.py:score'.
    function: itself.
  """

  def __init__(self, spec: str, function: Callable[..., Any]):
    self._spec, self._function = spec, function
    try:
      parameters = inspect.signature(function)
    except (TypeError, ValueError) as error:
      raise ValueError(f'{spec} is no function ({error}).') from None
    self._form = _Form(spec, parameters)
    _check_known(spec, self._form.needed)

  def judge(
    self, responses: Sequence[base.Response], problem: base.Problem
  ) -> list[base.Judgement]:
    """A judgement of each response: its score, and a dict's other entries.

    Whatever is wrong with the function or its values is said in `error`.
    """
    if self._form.is_list:
      return self._judge_list(responses, problem)
    return [self._judge_one(response, problem) for response in responses]

  def _judge_one(
    self, response: base.Response, problem: base.Problem
  ) -> base.Judgement:
    form = self._form
    known = {**problem.columns, 'prompt': problem.prompt}
    known['target'] = problem.target
    if form.is_positional:
      call = functools.partial(self._function, response.text)
    else:
      call = functools.partial(self._function, **{form.first: response.text})
    known.pop(form.first, None)
    try:
      return self._judgement(_result(call(**form.chosen(known))))
    except Exception as error:
      return self._failed(error)

  def _judge_list(
    self, responses: Sequence[base.Response], problem: base.Problem
  ) -> list[base.Judgement]:
    count = len(responses)
    log = _Log(count)
    known: dict[str, Any] = {
      name: [value] * count
      for name, value in {**problem.columns, 'target': problem.target}.items()
    }
    completions: list[Any] = [response.text for response in responses]
    if not isinstance(problem.prompt, str):
      completions = [
        [{'role': 'assistant', 'content': text}] for text in completions
      ]
    known |= {
      'prompts': [problem.prompt] * count,
      'completions': completions,
      'log_extra': log.extra,
      'log_metric': log.metric,
    }
    if all(response.token_ids is not None for response in responses):
      known['completion_ids'] = [list(r.token_ids or ()) for r in responses]
    try:
      values = _result(self._function(**self._form.chosen(known)))
      values = _listed(values, count)
    except Exception as error:
      return [self._failed(error)] * count
    return [
      self._judged(value)._replace(logged=log.metrics, notes=notes)
      for value, notes in zip(values, log.notes, strict=True)
    ]

  def _judged(self, value: Any) -> base.Judgement:
    try:
      return self._judgement(value)
    except Exception as error:  # the value may be an object of the user's
      return self._failed(error)

  def _judgement(self, value: Any) -> base.Judgement:
    if not isinstance(value, Mapping):
      return base.Judgement(score=_number(value))
    if SCORE not in value:
      raise InvalidScore(
        f'a dict without {SCORE!r}; that entry is the score of the completion'
      )
    parts = {}
    for name, one in value.items():
      if name != SCORE:
        parts[check_name(name)] = _number(one)
    return base.Judgement(score=_number(value[SCORE]), parts=parts)

  def _failed(self, error: Exception) -> base.Judgement:
    kind = f'{type(error).__name__} in {self._spec}'
    if isinstance(error, InvalidScore):
      return base.Judgement(error=_plain(f'{kind}: it gave {error}'))
    try:
      lines = [f'{kind}: {error}']
      trace = error.__traceback__
      # From the user's own frames on.
      told = traceback.format_exception(
        type(error), error, trace.tb_next if trace else None
      )
      lines += ''.join(told)[-_MAX_TRACEBACK:].splitlines()
    except Exception:  # its own __str__ may raise
      lines = [kind]
    return base.Judgement(error='\n'.join(map(_plain, lines)))


@functools.cache
def load(spec: str, digest: str) -> RewardFunction:
  """The function, for reward processes.

  Args:
    spec: 'my_rewards.py:score'.
    digest: of its file as the run began.

  Raises:
    ValueError: the file has changed, or `RewardFunction` refuses it.
  """
  if functions.digest(spec) != digest:
    raise ValueError(
      f'The file of {spec} has changed since the run began, and reward '
      'processes that start now would judge by another function; set it back, '
      'or begin another run.'
    )
  return RewardFunction(spec, functions.load(spec))


def check_name(name: Any) -> str:
  """A score's name, which is that of a metric too.

  Raises:
    InvalidScore: it cannot be one.
  """
  if not isinstance(name, str) or not re.fullmatch(r'\w+', name):
    raise InvalidScore(
      f'a score with the name {name!r:.80}; a name is letters, digits and _'
    )
  if name in RESERVED:
    raise InvalidScore(
      f'a score with the name {name!r}, which every run logs as '
      f'reward/{name} already; choose another'
    )
  return name


class _Form:
  """How a function is called.

  Attributes:
    names: of its parameters, without `*` and `**`.
    needed: those without a default, but for the first.
    first: the parameter that takes the completion; '' in the list form.
  """

  def __init__(self, spec: str, signature: inspect.Signature):
    kinds = inspect.Parameter
    found = list(signature.parameters.values())
    named = [
      p
      for p in found
      if p.kind not in (kinds.VAR_KEYWORD, kinds.VAR_POSITIONAL)
    ]
    self._takes_all = any(p.kind is kinds.VAR_KEYWORD for p in found)
    self.names = frozenset(p.name for p in named)
    self.is_list = bool(self.names & _OF_LISTS) or not named
    self.first, self.is_positional = '', False
    if not self.is_list:
      first = next((p for p in named if p.name == 'completion'), named[0])
      self.first = first.name
      self.is_positional = first.kind is not kinds.KEYWORD_ONLY and (
        first is named[0]
      )
    fixed = [
      p.name
      for p in named
      if p.kind is kinds.POSITIONAL_ONLY
      and not (self.is_positional and p.name == self.first)
    ]
    if fixed:
      raise ValueError(
        f'{spec} takes {fixed[0]!r} by position alone; columns are passed by '
        'name, so move the / in front of it.'
      )
    self.needed = frozenset(
      p.name for p in named if p.default is kinds.empty and p.name != self.first
    )

  def chosen(self, known: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, of all that is known."""
    if self._takes_all:
      return dict(known)
    return {name: value for name, value in known.items() if name in self.names}


class _Log:
  """Takes what a function says beside its scores, as TRL does."""

  def __init__(self, count: int):
    self.metrics: dict[str, float] = {}
    self.notes: list[dict[str, Any]] = [{} for _ in range(count)]

  def metric(self, name: str, value: float) -> None:
    """Takes a number of this call."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
      raise InvalidScore(f'log_metric the name {name!r:.80}, which is none')
    number = _number(value)
    if number is None:
      raise InvalidScore(f'log_metric None as {name!r}')
    self.metrics[f'logged/{name}'] = number

  def extra(self, column: str, values: Sequence[Any]) -> None:
    """Takes a value for each completion; text, if long, is cut."""
    values = list(values)
    if len(values) != len(self.notes):
      raise InvalidScore(
        f'log_extra {len(values)} values of {column!r:.80} for '
        f'{len(self.notes)} completions'
      )
    for notes, value in zip(self.notes, values, strict=True):
      plain = value is None or isinstance(value, (bool, int, float))
      notes[str(column)] = value if plain else str(value)[:_MAX_NOTE]


def _check_known(spec: str, names: frozenset[str]) -> None:
  for name in sorted(names & _REFUSED.keys()):
    raise ValueError(
      f'{spec} asks for {name!r}, and {_REFUSED[name]}; leave the parameter '
      'out, or give it a default.'
    )


def _result(value: Any) -> Any:
  """The value that was returned; one of `async def` is waited for."""
  return asyncio.run(value) if inspect.iscoroutine(value) else value


def _listed(values: Any, count: int) -> list[Any]:
  if isinstance(values, (str, bytes, Mapping)):
    raise InvalidScore(f'{values!r:.80}; it must give a list')
  try:
    values = list(values)
  except TypeError:
    raise InvalidScore(f'{values!r:.80}; it must give a list') from None
  if len(values) != count:
    raise InvalidScore(f'{len(values)} values for {count} completions')
  return values


def _number(value: Any) -> float | None:
  if hasattr(value, 'item') and getattr(value, 'ndim', None) == 0:
    value = value.item()  # of NumPy or Torch
  if value is None:
    return None
  if not isinstance(value, numbers.Real):
    raise InvalidScore(
      f'{value!r:.80}, of type {type(value).__name__}; it must give a number, '
      'a bool or None'
    )
  try:
    number = float(value)
  except OverflowError:
    number = math.inf
  if not math.isfinite(number):
    raise InvalidScore(f'{number}; it must give a finite number')
  return number


def _plain(line: str) -> str:
  """A line that can be shown: what a model wrote may be in it."""
  return ascii(line)[1:-1][:_MAX_LINE]
