r"""Exact values of numbers as people and models write them.

1,000 and 1 000, 1/2 and \frac12, 3 1/2, 50%, $18, 1e6, 2.5 \times 10^{-3},
5 million, 0.\overline{3}: each has one value, a fraction, and is compared
exactly. This is the path of most verdicts, so it loads nothing.
"""

import functools
import re
from fractions import Fraction

from rlzero.tasks import notation, units

MAX_CHARS = 500  # of an answer; a longer one is equal to nothing
_MAX_EXPONENT = 300

# The comma form first, or 1,000 would be read as 1.
DIGITS = r'(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)'
DECIMAL = rf'(?:{DIGITS}(?:\.\d+)?|\.\d+)'
_FRACTION = r'\\frac\{-?\d[\d.,]*\}\{\d[\d.,]*\}'
_EXPONENT = r'(?:[eE][-+]?\d+|\s*(?:\\times|\\cdot|\*|x)\s*10\^\{[-+]?\d+\})'
_SCALES = {
  'hundred': 100,
  'thousand': 10**3,
  'million': 10**6,
  'billion': 10**9,
  'trillion': 10**12,
  'dozen': 12,
}
_NUMBER = re.compile(
  # A sign belongs to the number unless it stands between two operands.
  r'(?P<sign>(?<![\w)}.])[-+]\s?)?(?:'
  rf'(?P<frac>{_FRACTION})'
  rf'|(?P<whole>\d+)\s*(?P<part>\\frac\{{\d+\}}\{{\d+\}}|(?<=\s)\d+/\d+(?![\d.]))'
  rf'|(?P<above>{DECIMAL})\s?/\s?(?P<below>{DECIMAL})(?![\d.]*[eE^])'
  r'|(?P<start>\d*\.\d*)\\overline\{(?P<repeated>\d+)\}'
  rf'|(?P<decimal>\d{{1,3}}(?:\s\d{{3}})+(?!\d)(?:\.\d+)?|{DECIMAL})'
  rf'(?P<exponent>{_EXPONENT})?'
  rf'(?P<scale>\s(?:{"|".join(_SCALES)})(?![A-Za-z]))?'
  r')'
)
# Not x + y = 5: that is an equation, and x and y may be anything.
_NAMED = re.compile(
  r'^(?:(?!\\(?:cdot|times|frac|sqrt|pm|mp|div|sum|binom)(?![A-Za-z]))'
  r'[^=<>\d+*/^|-]|(?<=[A-Za-z]{2})-(?=[A-Za-z]{2}))*(?<![<>!:])=\s*'
)
_HYPHEN = '(?<=[A-Za-z])-(?=[A-Za-z])'
_BEFORE = re.compile(rf'(?:(?:[A-Za-z\'",.:;()\s]|{_HYPHEN})*[\s(:"\'])?')
_AFTER = re.compile(r'(?:[\s.,;:)"\'?][A-Za-z\'",.:;()?\s-]*)?')
_ENCLOSED = re.compile(r'(?:\[\s*([^\[\]]+?)\s*\]|\\?\{\s*([^{}]+?)\s*\\?\})')
_LETTER_ALONE = re.compile(r'(?<![A-Za-z\'])[B-HJ-Zb-z](?![A-Za-z\'.])')


@functools.lru_cache(maxsize=8192)
def number(text: str) -> Fraction | None:
  """The value of a text that is a number and nothing else, or None.

  A currency sign, a percent sign and a unit are left out: 50% is 50.
  """
  if len(text) > MAX_CHARS:
    return None
  value, _ = units.split(notation.tidy(text))
  return exact(value)


def exact(text: str) -> Fraction | None:
  """`number` of a tidy text without a unit."""
  if text.isascii() and text.isdigit():  # most answers; the rest is slower
    return Fraction(int(text))
  found = _NUMBER.fullmatch(text)
  return _value(found) if found else None


@functools.lru_cache(maxsize=8192)
def only_number(text: str) -> Fraction | None:
  """The value of the one number that a text states, or None.

  Words may stand beside it, but none that change it ('not 5', '5 million')
  and no mathematics: sqrt(5), 5!, x^5 and 5 pi are other numbers. An answer
  that hedges ('3 or 4') or leaves the sum to the verifier ('1+2') holds two.
  """
  if len(text) > MAX_CHARS:
    return None
  text = notation.tidy(text)
  if enclosed := _ENCLOSED.fullmatch(text):
    text = enclosed[1] or enclosed[2]
  if (value := exact(units.split(text)[0])) is not None:
    return value
  text = _NAMED.sub(_without_name, text)
  text = re.sub(r'\\text\{([^{}]*)\}', r' \1 ', text).replace('\\approx', ' ')
  text, _ = units.split(' '.join(text.split()))
  found = list(_NUMBER.finditer(text))
  if len(found) != 1:
    return None
  before, after = text[: found[0].start()], text[found[0].end() :]
  before = before.rstrip('$€£¥')
  after = after.lstrip('$€£¥%')
  if not _BEFORE.fullmatch(before) or not _AFTER.fullmatch(after):
    return None
  if not units.is_harmless(before) or not units.is_harmless(after):
    return None
  if _LETTER_ALONE.search(before + ' # ' + after):
    return None
  return _value(found[0])


def _without_name(found: re.Match) -> str:
  """Nothing for 'x =', the words for 'so the sum ='."""
  words = found[0].rstrip('= ').split()
  return '' if len(words) < 2 else ' '.join(words[:-1]) + ' '


def _value(found: re.Match) -> Fraction | None:
  """The value of a match of `_NUMBER`; None for what has none."""
  sign = -1 if (found['sign'] or '').startswith('-') else 1
  if found['frac']:
    value = _quotient(*re.findall(r'\{([^{}]*)\}', found['frac']))
  elif found['part']:
    above, below = re.findall(r'\d+', found['part'])
    part = _quotient(above, below)
    # 3 5/2 is no mixed number; who reads it as 3 * 5/2 may be right.
    if part is None or part >= 1:
      return None
    value = int(found['whole']) + part
  elif found['below']:
    value = _quotient(found['above'], found['below'])
  elif found['repeated']:
    value = _repeating(found['start'], found['repeated'])
  else:
    value = _decimal(found['decimal'])
    if found['exponent']:
      exponent = int(re.findall(r'[-+]?\d+(?=\}?$)', found['exponent'])[0])
      if abs(exponent) > _MAX_EXPONENT:
        return None
      value *= Fraction(10) ** exponent
    if found['scale']:
      value *= _SCALES[found['scale'].strip()]
  return -value if value and sign < 0 else value


def _quotient(above: str, below: str) -> Fraction | None:
  try:
    return _decimal(above) / _decimal(below)
  except (ZeroDivisionError, ValueError):
    return None


def _decimal(text: str) -> Fraction:
  return Fraction(re.sub(r'[\s,]', '', text))


def _repeating(start: str, repeated: str) -> Fraction:
  """0.1 and 6 for 0.1666..."""
  digits = len(start.partition('.')[2])
  begun = Fraction(start + '0' if start != '.' else 0)
  period = Fraction(int(repeated), 10 ** len(repeated) - 1)
  return begun + period / 10**digits
