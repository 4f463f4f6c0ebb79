"""Finds completions in which a self-correction led to the right answer.

The rule, in plain words. A completion belongs into the gallery if

1. its answer is right;
2. its thought has a *wrong line*: a sum whose two sides differ, an attempt
   whose last sum misses the value of the right answer, or an answer that is
   stated and is not the right one;
3. a reflective word ('wait', 'but', 'check', ...; `text/template.py`) follows;
4. behind that word stands the *right line*: the same sum with its true result,
   a true sum that has the answer's value, or the right answer itself.

Two things are no corrections. If the answer's value was reached before the
word, nothing was wrong. If the first sum behind the word goes on with the
result of the last one before it, that was a step and no wrong line.

Only sums of whole numbers with + - * / and brackets are judged; a formula or a
decimal is neither right nor wrong here.
"""

import bisect
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from rlzero.tasks import arithmetic
from rlzero.text import template

# What each kind means, for the page.
KINDS = {
  'recalculated': 'A false sum, done again with its true result.',
  'another way': 'An attempt that misses the answer, then one that reaches it.',
  'answer taken back': 'A stated answer is given up for the right one.',
}

Span = tuple[int, int]

# A thought is read so far; what a model writes does not end by itself.
_MAX_CHARS = 200_000
_MAX_SUMS = 2000
_MAX_WORDS = 200
_MAX_LEFT = 120  # characters of the left side of a sum
_MAX_CUTS = 12  # numbers before it that are no part of it
_LEFT = re.compile(r'[\d(][\d() \t+\-*/×·⋅÷−]*$')
# A number that no sign goes on from: in a = b + c the b is no result.
_RIGHT = re.compile(
  r'[ \t]*([-−]?\d{1,12})(?![\d.]*\d)(?![ \t]*[-+*/×·⋅÷−][ \t]*\d)'
)
_PAIR = re.compile(r'(0|[1-9]\d{0,11}) *([-+*]) *(0|[1-9]\d{0,11}) *')
_OPERATOR = re.compile(r'[-+*/×·⋅÷−]')
# What may not stand before the left side: it would be part of it.
_GOES_ON = re.compile(r'(?:[-+*/×·⋅÷−][ \t]*|[\w.,])$')
_STATED = re.compile(
  r'\\boxed\{([^{}\n]{1,60})\}'
  r'|(?i:\banswer(?: is| should be|:| =))[ \t]*\$?([-−]?\d[\d./]*|\([A-E]\))'
)


class Correction(NamedTuple):
  """A self-correction; spans are places in the completion."""

  kind: str  # one of KINDS
  word: str  # the reflective word, in lower case
  wrong: Span
  turn: Span  # of the word
  right: Span


class Sum(NamedTuple):
  """`left = result`, as it stands in a text."""

  span: Span
  left: str  # without spaces
  numbers: list[int]  # of the left side
  value: Fraction | int  # of the left side
  result: int

  @property
  def holds(self) -> bool:
    """Whether both sides are equal."""
    return self.value == self.result


def find(record: Mapping[str, Any]) -> Correction | None:
  """The first self-correction of a graded completion; None without one.

  Args:
    record: a line of `completions/`: `correct`, `completion` and `answer`.
  """
  text = record.get('completion')
  if not record.get('correct') or not isinstance(text, str):
    return None
  thought = text[: _end_of_thought(text)]
  words = template.reflective_spans(thought)[:_MAX_WORDS]
  if not words:
    return None
  answer = str(record.get('answer') or '').strip(' \t\n$.')
  goal = _value(answer)
  sums = list_sums(thought)
  starts = [s.span[0] for s in sums]
  # The first true sum that has the answer's value.
  reached = next(
    (i for i, s in enumerate(sums) if s.result == goal and s.holds), None
  )
  stated = [
    (match.span(), (match[1] or match[2]).strip(' .()'))
    for match in _STATED.finditer(thought)
  ]
  for turn in words:
    place = bisect.bisect(starts, turn[0])
    found = (
      _recalculated(sums, place)
      or _taken_back([s for s in stated if s[0][1] <= turn[0]], answer, goal)
      or _another_way(sums, place, reached)
    )
    if found is None:
      continue
    kind, wrong, right = found
    if right is None:
      place = text.rfind(answer)
      right = place, place + len(answer)
    if right[0] >= turn[1]:
      word = thought[slice(*turn)].lower()
      return Correction(kind, word, wrong, turn, right)
  return None


def list_sums(text: str) -> list[Sum]:
  """The sums of a text, in order; what cannot be evaluated is left out."""
  found: list[Sum] = []
  free = 0  # where the last result ended
  place = text.find('=')
  while place >= 0 and len(found) < _MAX_SUMS:
    right = _RIGHT.match(text, place + 1)
    if right:
      start = max(free, place - _MAX_LEFT)
      left = _LEFT.search(text[start:place])
      begin = start + left.start() if left else place
      if left and not _GOES_ON.search(text[max(free, begin - 4) : begin]):
        if made := _sum(left.group(), place, right):
          found.append(made)
      free = right.end()
    place = text.find('=', place + 1)
  return found


def _sum(left: str, place: int, right: re.Match[str]) -> Sum | None:
  """The longest end of `left` that is an expression, as a sum."""
  for _ in range(_MAX_CUTS):
    if not _OPERATOR.search(left):
      break
    if evaluated := _evaluate(left):
      value, numbers = evaluated
      result = int(right[1].replace('−', '-'))
      span = place - len(left), right.end()
      return Sum(span, ''.join(left.split()), numbers, value, result)
    # In '9 9 6 9 + 9 = 18' the first numbers are no part of it.
    left = left.lstrip().partition(' ')[2].lstrip()
  return None


def _evaluate(left: str) -> tuple[Fraction | int, list[int]] | None:
  """`arithmetic.evaluate`, quickly for two numbers, as most sums are."""
  if match := _PAIR.fullmatch(left):
    a, sign, b = int(match[1]), match[2], int(match[3])
    value = a + b if sign == '+' else a - b if sign == '-' else a * b
    return value, [a, b]
  return arithmetic.evaluate(left)


_Found = tuple[str, Span, Span | None] | None  # None: the final answer


def _recalculated(sums: Sequence[Sum], place: int) -> _Found:
  if not place or sums[place - 1].holds:
    return None
  wrong = sums[place - 1]
  for later in sums[place:]:
    if later.left == wrong.left and later.holds:
      return 'recalculated', wrong.span, later.span
  return None


def _another_way(
  sums: Sequence[Sum], place: int, reached: int | None
) -> _Found:
  if not place or reached is None or reached < place:
    return None  # it was never right, or was already
  last = sums[place - 1]
  if last.holds and last.result in sums[place].numbers:
    return None  # a step, which the next sum goes on from
  return 'another way', last.span, sums[reached].span


def _taken_back(
  earlier: Sequence[tuple[Span, str]], answer: str, goal: Fraction | None
) -> _Found:
  if not earlier or not answer:
    return None
  for _, value in earlier:
    same = value.casefold() == answer.casefold()
    if same or (goal is not None and _value(value) == goal):
      return None  # it was right already
  return 'answer taken back', earlier[-1][0], None


def _value(text: str) -> Fraction | None:
  """The value of an answer that is a sum or a number."""
  evaluated = arithmetic.evaluate(text)
  return None if evaluated is None else evaluated[0]


def _end_of_thought(text: str) -> int:
  for name, start, _ in template.tags(text):
    if name in ('</think>', '<answer>'):
      return min(start, _MAX_CHARS)
  return min(len(text), _MAX_CHARS)
