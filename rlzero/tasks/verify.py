"""Whether two answers are mathematically the same.

Answers are written in one notation (`notation`), read as what they are
(`reading`), and compared part by part: numbers exactly (`numeric`), formulas
by their values (`formulas`). docs/explanation/answers.md tells what is equal
and why.
"""

import functools
import re
from collections.abc import Sequence

from rlzero.tasks import answers, notation, numeric, reading, units
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
      if first.brackets or second.brackets:
        return first.brackets == second.brackets and _same_each(
          first.items, second.items
        )
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
  names = [
    {getattr(item, 'name', None) for item in items} for items in (first, second)
  ]
  if {None} in names and any(len(n - {None}) > 1 for n in names):
    return _same_each(first, second)
  left = list(second)
  for item in first:
    found = next((i for i, one in enumerate(left) if _same(item, one)), None)
    if found is None:
      return False
    del left[found]
  return not left


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


@functools.lru_cache(maxsize=8192)
def _literal(text: str) -> str:
  """A text by which words are compared: no case, no spaces but between words.

  The case of a formula's letters stays: R is no r.
  """
  text = re.sub(r'\\text\{([^{}]*)\}', r'\1', text)
  text = re.sub(r'(?<![A-Za-z\d]) | (?![A-Za-z\d])', '', text).strip()
  text = text.rstrip('.')
  return text.casefold() if _WORDS.fullmatch(text) or len(text) == 1 else text


class Formulas:
  """Judging of tasks whose answers are compared as mathematics."""

  def extract(self, text: str) -> str | None:
    return answers.last_answer(text, numeric=False)

  def verify(self, answer: str, target: str) -> bool:
    return equal(answer, target)

  def same(self, first: str, second: str) -> bool:
    return equal(first, second)

  def count_tries(self, text: str) -> int:
    return count_results(text)

  def warm_up(self) -> None:
    """Loads the parser of formulas."""
    warm_up()


class Numbers(Formulas):
  """Judging of tasks whose answers are one number."""

  def extract(self, text: str) -> str | None:
    return answers.last_answer(text)

  def verify(self, answer: str, target: str) -> bool:
    """Whether the answer holds one number, and it is the target's."""
    found = only_number(answer)
    return found is not None and found == number(target)
