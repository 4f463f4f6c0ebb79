"""Whether two answers are mathematically the same, and where they stand.

Numbers are compared exactly by a fast path of our own; expressions and LaTeX
by the math-verify library, which is loaded at the first use. It may take for
ever on a hostile answer: call it where a deadline is kept (`sandbox`).
"""

import functools
import logging
import re
from fractions import Fraction

MAX_CHARS = 500  # of an answer; a longer one is never equal to another

# The comma form first, or 1,000 would be read as 1.
_DIGITS = r'(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)'
_DECIMAL = rf'(?:{_DIGITS}(?:\.\d+)?|\.\d+)'
# A sign belongs to the number unless it stands between two operands.
_NUMBER = re.compile(rf'(?:(?<![\w)}}.])[-+])?{_DECIMAL}(?:/{_DECIMAL})?')
_FRACTION = re.compile(r'\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}')
_PI = re.compile(r'(?<![a-zA-Z\\])pi(?![a-zA-Z])')
_TEXT = re.compile(r'\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}')
_BOXED = re.compile(r'\\(?:boxed|fbox)\s*\{')
_STATED = re.compile(r'(?:\banswer\s*(?:is\b|:)|\banswer\s*=)(.*)', re.I)
_RESULT = re.compile(rf'=\s*\$?\s*[-+]?{_DECIMAL}')
# Words after a number are taken for its unit, unless they are a function.
_UNIT = re.compile(
  r'(?<=\d)\s*(?!\s*(?:sin|cos|tan|log|exp|sqrt)\b)[A-Za-z]{3,}[A-Za-z ]*$'
)
_WORD = re.compile(
  r'(?<![\\A-Za-z])(?!(?:sqrt|sin|cos|tan|log|exp)\b)[A-Za-z]{3,}'
)


def equal(first: str, second: str) -> bool:
  """Whether two answers are equal; symmetric.

  Numbers are equal if they are exactly so: 1/2 and 0.5, 1,000 and 1000. A
  dollar or percent sign and a unit after a number are left out, so 50% is 50
  and not 0.5. Text is equal if its words are.
  """
  if max(len(first), len(second)) > MAX_CHARS:
    return False
  first, second = _clean(first), _clean(second)
  if not first or not second:
    return False
  if first.casefold() == second.casefold():
    return True
  numbers = number(first), number(second)
  if None not in numbers:
    return numbers[0] == numbers[1]
  # math-verify reads words as products of letters, and 'listen' would be
  # 'silent'; it also adds numbers that only stand side by side.
  if any(_WORD.search(t) or re.search(r'\d\s+\d', t) for t in (first, second)):
    return False
  return _compare(*sorted((first, second)))


def number(text: str) -> Fraction | None:
  """The value of a text that is a number and nothing else, or None."""
  if len(text) > MAX_CHARS:
    return None
  text = _clean(text)
  return _value(text) if _NUMBER.fullmatch(text) else None


def only_number(text: str) -> Fraction | None:
  """The value of the one number in a text, or None if there is not one.

  An answer that hedges ('3 or 4') or leaves the sum to the verifier ('1+2')
  holds two.
  """
  if len(text) > MAX_CHARS:
    return None
  found = _NUMBER.findall(_clean(text))
  return _value(found[0]) if len(found) == 1 else None


def last_number(text: str) -> str | None:
  """The last number in a text, as it is written there."""
  found = _NUMBER.findall(_FRACTION.sub(r'\1/\2', text))
  return found[-1] if found else None


def last_answer(text: str, numeric: bool = True) -> str | None:
  r"""The last answer stated in a text, or None.

  The last \boxed{}; else what follows the last <answer>; else the last
  number if `numeric`, otherwise what follows the last 'answer is', or the
  last line.
  """
  stated = _last_boxed(text)
  if stated is None and '<answer>' in text:
    stated = text.rsplit('<answer>', 1)[1].split('</answer>')[0]
  if numeric:
    return last_number(text if stated is None else stated)
  if stated is None:
    lines = text.strip().splitlines() or ['']
    found = _STATED.findall(text)
    stated = found[-1] if found else lines[-1]
  return stated.strip().rstrip('.') or None


def count_results(text: str) -> int:
  """How often a text states a result, '= number': the tries at a sum."""
  return len(_RESULT.findall(text))


def warm_up() -> None:
  """Loads math-verify, so that no deadline has to include it."""
  equal('x + 1', '1 + x')


def _clean(text: str) -> str:
  """An answer without the signs, boxes and units around its value."""
  stated = _last_boxed(text)
  text = text if stated is None else stated
  text = _FRACTION.sub(r'\1/\2', _TEXT.sub(r' \1', text)).replace('{,}', ',')
  for mark in ('\\$', '\\%', '\\(', '\\)', '\\[', '\\]', '$', '%', '\\!'):
    text = text.replace(mark, '')
  text = ' '.join(text.split()).rstrip('. ')
  return _UNIT.sub('', text)


def _value(text: str) -> Fraction | None:
  above, _, below = text.replace(',', '').partition('/')
  below = Fraction(below or 1)
  return Fraction(above) / below if below else None


def _last_boxed(text: str) -> str | None:
  starts = list(_BOXED.finditer(text))
  if not starts:
    return None
  start, depth = starts[-1].end(), 1
  for i in range(start, len(text)):
    depth += {'{': 1, '}': -1}.get(text[i], 0)
    if not depth:
      return text[start:i]
  return None


@functools.lru_cache(maxsize=4096)
def _compare(first: str, second: str) -> bool:
  # Its warning that no alarm is set is of no use: the caller has a deadline,
  # and an alarm would not work in threads.
  logging.getLogger('math_verify').setLevel(logging.ERROR)
  import math_verify

  parsed = [
    math_verify.parse(
      '\\boxed{' + _PI.sub(r'\\pi', text) + '}',
      fallback_mode='no_fallback',
      parsing_timeout=None,
    )
    for text in (first, second)
  ]
  # It is lenient to the answer and not to the target; either order will do.
  return any(
    math_verify.verify(*pair, timeout_seconds=None)
    for pair in (parsed, parsed[::-1])
  )


class Formulas:
  """Judging of tasks whose answers are compared as mathematics."""

  def extract(self, text: str) -> str | None:
    return last_answer(text, numeric=False)

  def verify(self, answer: str, target: str) -> bool:
    return equal(answer, target)

  def same(self, first: str, second: str) -> bool:
    return equal(first, second)

  def count_tries(self, text: str) -> int:
    return count_results(text)

  def warm_up(self) -> None:
    """Loads math-verify."""
    warm_up()


class Numbers(Formulas):
  """Judging of tasks whose answers are one number."""

  def extract(self, text: str) -> str | None:
    return last_answer(text)

  def verify(self, answer: str, target: str) -> bool:
    """Whether the answer holds one number, and it is the target's."""
    found = only_number(answer)
    return found is not None and found == number(target)
