"""Whether two answers are mathematically the same.

Answers are written in one notation (`notation`), read as what they are
(`reading`), and compared part by part: numbers exactly (`numeric`), formulas
by their values (`formulas`). docs/explanation/answers.md tells what is equal
and why.
"""

import dataclasses
import functools
import re
import string
from collections.abc import Sequence
from typing import Any

from rlzero.tasks import (
  answers,
  base,
  letters,
  notation,
  numeric,
  reading,
  units,
)
from rlzero.tasks.answers import count_results, last_answer, last_number
from rlzero.tasks.numeric import MAX_CHARS, number, only_number

__all__ = [
  'MAX_CHARS',
  'Formulas',
  'Numbers',
  'count_results',
  'equal',
  'last_answer',
  'last_number',
  'number',
  'only_number',
  'warm_up',
]

_CHOICE = re.compile(r'(?:\\text\{)?\s*\(?([A-J])\)?\s*\}?')
_DECIMAL = re.compile(r'-?[\d.,\s]+')
_APPROXIMATELY = re.compile(r'\\approx(?![A-Za-z])')
_MAX_SIDES = 6  # of an equation
_WORDS = re.compile(r"[A-Za-z][A-Za-z\s'.:-]*[A-Za-z]")


@functools.lru_cache(maxsize=8192)
def equal(first: str, second: str) -> bool:
  """Whether two answers are equal; symmetric.

  Numbers are equal if they are exactly so: 1/2 and 0.5, 1,000 and 1000. A
  currency or percent sign and a unit are left out where the other answer has
  none, so 50% is 50 and not 0.5. Text is equal if its words are.
  """
  if max(len(first), len(second)) > MAX_CHARS:
    return False
  first, second = notation.tidy(first), notation.tidy(second)
  if not first or not second:
    return False
  if _literal(first) == _literal(second) != '':
    return True
  return _same(reading.read(first), reading.read(second))


def warm_up() -> None:
  """Loads the parser, so that no deadline has to include it."""
  equal('x + 1', '1 + x')


def _same(first: reading.Tree, second: reading.Tree) -> bool:
  if first == second:
    return True
  match first, second:
    case reading.Leaf(), reading.Leaf():
      return _same_leaf(first, second)
    case reading.Items(), reading.Items():
      if first.brackets == second.brackets != '':
        return _same_each(first.items, second.items)
      if first.brackets or second.brackets:
        return _same_named(first, second) or _same_named(second, first)
      return _same_list(first.items, second.items)
    case reading.Matrix(), reading.Matrix():
      return (
        first.kind == second.kind
        and len(first.rows) == len(second.rows)
        and all(map(_same_each, first.rows, second.rows))
      )
    case reading.Named(), reading.Named():
      if _literal(first.name) == _literal(second.name):
        if _same(first.value, second.value):
          return True
      return _same_relation(first, second)
    case reading.Matrix(), reading.Items():
      return _same_point(second, first)
    case reading.Items(), reading.Matrix():
      return _same_point(first, second)
    case reading.Items(brackets=''), reading.Leaf():
      other = reading.as_list(second)
      return other is not None and _same(first, other)
    case reading.Leaf(), reading.Items(brackets=''):
      return _same(second, first)
    case reading.Relation(), _:
      return _same_relation(first, second)
    case _, reading.Relation():
      return _same_relation(second, first)
    case reading.Named(), _:
      return _same(first.value, second)
    case _, reading.Named():
      return _same(first, second.value)
  return False


def _same_point(point: reading.Items, vector: reading.Matrix) -> bool:
  """Whether (1, 2) is the vector of a matrix with one row or one column."""
  if point.brackets not in ('()', '[]') or vector.kind:
    return False
  rows = vector.rows
  entries = rows[0] if len(rows) == 1 else [row[0] for row in rows]
  return sum(map(len, rows)) == len(entries) and _same_each(
    point.items, entries
  )


def _same_named(named: reading.Items, point: reading.Items) -> bool:
  """Whether x = 1, y = 2 is the point (1, 2)."""
  if point.brackets != '()' or named.brackets:
    return False
  values = {
    item.name: item.value
    for item in named.items
    if isinstance(item, reading.Named)
  }
  if len(values) != len(named.items):
    return False
  names = sorted(values) if values.keys() <= {'x', 'y', 'z'} else values
  return _same_each([values[name] for name in names], point.items)


def _same_each(
  first: Sequence[reading.Tree], second: Sequence[reading.Tree]
) -> bool:
  return len(first) == len(second) and all(map(_same, first, second))


def _same_list(
  first: Sequence[reading.Tree], second: Sequence[reading.Tree]
) -> bool:
  """Whether both hold the same answers; the order tells nothing.

  It does where one gives names that the other does not: 1, 2 for x = 1, y = 2.
  """
  names = [set(map(_root_name, items)) for items in (first, second)]
  if {None} in names and any(len(n - {None}) > 1 for n in names):
    return _same_each(first, second)
  left = list(second)
  for item in first:
    found = next((i for i, one in enumerate(left) if _same(item, one)), None)
    if found is None:
      return False
    del left[found]
  return not left


def _root_name(item: reading.Tree) -> str | None:
  """The name of a value; x for x_1 and x_2, whose numbers say nothing."""
  name = getattr(item, 'name', None)
  return name and re.sub(r'^([xz]|\\lambda ?)_\{\d\}$', r'\1', name)


def _same_leaf(first: reading.Leaf, second: reading.Leaf) -> bool:
  if units.conflict(first.unit, second.unit):
    return False
  if not first.text or not second.text:
    return False
  if _literal(first.text) == _literal(second.text):
    return True
  exact, other = numeric.exact(first.text), numeric.exact(second.text)
  if exact is not None and other is not None:
    return exact == other
  # The letters of words are no factors: listen is not silent.
  if all(_WORDS.fullmatch(_literal(leaf.text)) for leaf in (first, second)):
    return False
  from rlzero.tasks import formulas

  left, right = _values(first.text), _values(second.text)
  return left is not None and right is not None and formulas.same(left, right)


def _values(text: str):
  from rlzero.tasks import formulas

  exact = numeric.exact(text)
  if exact is not None:
    return (exact,) * formulas.NUM_POINTS
  return formulas.values(text)


def _same_relation(first: reading.Tree, second: reading.Tree) -> bool:
  """Whether one equation or inequality is a multiple of the other.

  A solution, x = 5, is not: else 2x = 10 would do, the question itself.
  """
  from rlzero.tasks import formulas

  one, other = reading.as_relation(first), reading.as_relation(second)
  if one is None or other is None or one.sign != other.sign:
    return False
  sides = []
  for relation in (one, other):
    left, right = _values(relation.left), _values(relation.right)
    if left is None or right is None:
      return False
    is_solution = reading.is_name(relation.left) and len(set(right)) == 1
    if is_solution and relation.sign == '=':
      return False
    side = formulas.values(f'({relation.left})-({relation.right})')
    if side is None:
      return False
    sides.append(side)
  factor = formulas.factor(sides[0], sides[1])
  if factor is None:
    return False
  return one.sign == '=' or (factor.imag == 0 and factor.real > 0)


def _results(answer: str) -> list[str]:
  """The values that working ends in, if it agrees: 5/2 of 10/4 = 5/2.

  Where it ends in a rounded number, that one and the exact one. None for an
  equation with unknowns, or with one number twice.
  """
  exact, *rounded = _APPROXIMATELY.split(notation.tidy(answer))
  sides = [side.strip() for side in exact.split('=')]
  if len(sides) > 1 and reading.is_name(sides[0]):
    del sides[0]
  bare = [units.split(side.strip())[0] for side in [*sides, *rounded]]
  if not 1 < len(set(bare)) == len(bare) <= _MAX_SIDES or len(rounded) > 1:
    return []
  if sum(bool(_DECIMAL.fullmatch(side)) for side in bare[: len(sides)]) > 1:
    return []
  from rlzero.tasks import formulas

  found = [values for side in bare if (values := _values(side)) is not None]
  if len(found) < len(bare) or any(len(set(values)) > 1 for values in found):
    return []
  *same, last = found[: len(sides)]
  if not all(formulas.same(values, last) for values in same):
    return []
  if not rounded:
    return [sides[-1]]
  if not formulas.rounds_to(last[0], bare[-1]):
    return []
  return [sides[-1], rounded[0]]


@functools.lru_cache(maxsize=8192)
def _literal(text: str) -> str:
  """A text by which words are compared: no case, no spaces but between words.

  The case of a formula's letters stays: R is no r.
  """
  text = re.sub(r'\\text\{([^{}]*)\}', r'\1', text)
  text = re.sub(r'(?<![A-Za-z\d]) | (?![A-Za-z\d])', '', text).strip()
  text = re.sub(
    r'^(?:an?|the)\s+(?=[a-z]{2})', '', text.rstrip('.'), flags=re.I
  )
  return text.casefold() if _WORDS.fullmatch(text) or len(text) == 1 else text


@dataclasses.dataclass(frozen=True)
class Formulas:
  """Judging of tasks whose answers are compared as mathematics."""

  def target_of(self, value: Any) -> str:
    r"""The answer that a column holds or its worked solution states.

    A solution states it in a \boxed{} or in answer tags, or after '####'.

    Raises:
      ValueError: there is none; in words that follow the column's name.
    """
    text = base.plain_text(value)
    if '\\boxed' in text or '<answer>' in text:
      text = answers.last_answer(text, numeric=False) or ''
    elif '####' in text:
      text = text.rpartition('####')[2].strip()
    if not text:
      raise ValueError('states no answer')
    if len(text) > MAX_CHARS:
      raise ValueError(f'has an answer of more than {MAX_CHARS} characters')
    return text

  def extract(self, text: str) -> str | None:
    return answers.last_answer(text, numeric=False)

  def verify(self, answer: str, target: str) -> bool:
    if equal(answer, target):
      return True
    if letter := _CHOICE.fullmatch(notation.tidy(target)):
      return letters.choice(answer, string.ascii_uppercase[:10]) == letter[1]
    return any(equal(result, target) for result in _results(answer))

  def same(self, first: str, second: str) -> bool:
    return equal(first, second)

  def count_tries(self, text: str) -> int:
    return count_results(text)

  def warm_up(self) -> None:
    """Loads the parser of formulas."""
    warm_up()


@dataclasses.dataclass(frozen=True)
class Numbers(Formulas):
  """Judging of tasks whose answers are one number."""

  def target_of(self, value: Any) -> str:
    """The number that a column holds or its worked solution states.

    Raises:
      ValueError: there is none; in words that follow the column's name.
    """
    text = super().target_of(value)
    if not text.isdigit() and number(text) is None:
      raise ValueError('states no number')
    return text

  def extract(self, text: str) -> str | None:
    return answers.last_answer(text)

  def verify(self, answer: str, target: str) -> bool:
    """Whether the answer holds one number, and it is the target's."""
    found = only_number(answer)
    return found is not None and found == number(target)
