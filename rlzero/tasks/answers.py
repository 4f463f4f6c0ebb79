r"""Where a text states its answer.

A box wins, then what <answer> tags hold, then 'the answer is' and '####', then
the last number or the last line. What follows a stated answer is talk.
"""

import re
from fractions import Fraction

from rlzero.tasks import arithmetic, notation, units
from rlzero.tasks.numeric import DECIMAL, MAX_CHARS, number, only_number

_STATED = re.compile(
  r'\banswer\s*(?:\*\*|__|\$)?\s*(?:is\b|:|=)|^\s*####'
  r'|^[ #*_]*(?:final\s+)?answer[ #*_:]*$',
  re.I | re.M,
)
_RESULT = re.compile(rf'=\s*\$?\s*[-+]?{DECIMAL}')
_BETWEEN = re.compile(
  r'(?:\s|\$|\\[()\[\]]|,|;|\b(?:and|or)\b|\\text\s*\{\s*(?:and|or)\s*\}'
  r'|\b[A-Za-z](?:_\{?\w\}?)?\s*=)*'
)
_NUMBER = re.compile(rf'(?:(?<![\w)}}.])[-+])?{DECIMAL}(?:/{DECIMAL})?')
# Nothing but mathematics; a variable has one letter.
_TERMS = (
  r'(?:[\s\d.,;$+*/^(){}-]|(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])|_\{?\w'
  r'|\\(?:times|cdot|div|frac|sqrt|theta|alpha|beta|pi)(?![A-Za-z]))*'
)
_EQUATION = re.compile(rf'{_TERMS}(?:={_TERMS})+')
_VARIABLE = re.compile(r'[A-Za-z](?:_\{?\w\}?)?|\\[a-z]+')
_MAX_STATEMENTS = 20  # of a text; the last ones
# Where the answer ends and talk begins.
_TALK = re.compile(
  r'(?<!\bMr)(?<!\bDr)(?<!\bSt)(?:(?<!\b[A-Za-z])[.!?](?=\s|$)'
  r'|[.!?](?=\s+[A-Z][a-z]|\s*$))'
  r'|\s*,?\s*\(?\b(?:because|since|therefore|hence|thus)\b'
  r'|\s*,\s*(?:as|so|which|where|for|when|but|if|not|with|giving|obtained'
  r'|approximately)\b|;\s+(?:this|it|that|note|check|since|as|the|we|see)\b'
  r'|\s+[-–—]\s+(?=[A-Za-z]{2})|\s*—'
)
_SENTENCE = re.compile(r'\n|[.!?]\s')
# Of several numbers none is the last if they are offered, or one expression.
_HEDGE = re.compile(r'\b(?:or|maybe|perhaps)\b', re.I)
_JOINED = re.compile(
  r'(?:[\s,;/&|()\[\]{}?<>*+^x.-]|(?<!\s):(?!\s)|\band\b|\bto\b|\\[a-z]+)+'
)
_COMPARED = re.compile(r'(?:[<>≠≤≥]|\\(?:ne|le|ge|lt|gt)q?)\s*$')
_FRACTION = re.compile(r'\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}')


def last_answer(text: str, numeric: bool = True) -> str | None:
  r"""The last answer stated in a text, or None.

  The last \boxed{}, with those that stand next to it; else what follows the
  last <answer>; else what follows the last 'answer is' or '####'; else the
  last number if `numeric`, otherwise the last line.
  """
  text = squeeze(text)
  if (stated := last_boxes(text)) is None:
    if '<answer>' in text:
      inside = text.rsplit('<answer>', 1)[1].split('</answer>')[0]
      stated = _after_words(inside, numeric) or inside
    else:
      stated = _after_words(text, numeric)
  if numeric:
    return last_number(text) if stated is None else _one_number(stated)
  if stated is None:
    stated = (text.strip().splitlines() or [''])[-1]
  return stated.strip().rstrip('.').strip() or None


def squeeze(text: str) -> str:
  """The text with one space or new line for many; patterns are slow on them."""
  return re.sub(r'\n\s*\n', '\n\n', re.sub(r'[^\S\n]+', ' ', text))


def last_number(text: str) -> str | None:
  r"""The last number in a text, as it is written there.

  With what makes it another number or none, if anything does: \sqrt{5}, 5!
  and '4 or 5' are given whole, for they are not 5.
  """
  text = _FRACTION.sub(r'\1/\2', squeeze(text))
  line = text.strip().rsplit('\n', 1)[-1]
  line = text if line.startswith('=') else line
  if '=' in line and len(line) <= MAX_CHARS:
    equation, _ = units.split(line)
    if _EQUATION.fullmatch(equation):
      return _result(equation)
  found = list(_NUMBER.finditer(text))
  if not found:
    return None
  start, end = found[-1].span()
  ends = [m.end() for m in _SENTENCE.finditer(text, 0, start)]
  sentence = text[ends[-1] if ends else 0 :]
  between = text[found[-2].end() : start] if len(found) > 1 else ''
  numbers = len(_NUMBER.findall(sentence))
  if numbers > 1 and (_HEDGE.search(sentence) or _JOINED.fullmatch(between)):
    return sentence.strip()
  while start and text[start - 1] not in ' \n\t=:,;$':
    start -= 1
  while end < len(text) and text[end] not in ' \n\t=:,;$':
    end += 1
  before = re.search(r"(?:[A-Za-z']+\s+){0,3}$", text[:start])
  after = re.match(r'(?:\s+[A-Za-z]+){0,3}', text[end:])
  assert before and after  # both patterns match no words as well
  if not units.is_harmless(before[0], in_prose=True):
    start = before.start()
  if compared := _COMPARED.search(text[:start]):
    start = compared.start()
  is_hedged = re.match(r'\s*or\b', after[0])
  if is_hedged or not units.is_harmless(after[0], in_prose=True):
    end += after.end()
  return _one_number(text[start:end], found[-1][0])


def _result(equation: str) -> str:
  """The number that an equation gives: x = 5, 2 + 3 = 5; else all of it.

  5 = 5 and x + y = 5 hold for a question too, so they answer none.
  """
  sides = [side.strip(' \n$.') for side in equation.split('=')]
  written = next((s for s in reversed(sides) if number(s) is not None), None)
  names = [s for s in sides if s in ('', written) or _VARIABLE.fullmatch(s)]
  working = [s for s in sides if s not in names]
  if written is None or sides.count(written) > 1 or '' in sides[1:]:
    return equation.strip()
  agree = all(_sum(side) == number(written) for side in working)
  return written if agree else equation.strip()


def _sum(text: str) -> Fraction | None:
  """The value of working such as 2.5 \\times 2; None for a mere number."""
  if number(text) is not None and '/' not in text:
    return None
  text = re.sub(r'\\(?:times|cdot)', '*', text.replace('\\div', '/'))
  text = re.sub(
    r'(\d+)\.(\d+)', lambda m: f'({m[1]}{m[2]}/{10 ** len(m[2])})', text
  )
  found = arithmetic.evaluate(text)
  return found[0] if found else None


def count_results(text: str) -> int:
  """How often a text states a result, '= number': the tries at a sum."""
  return len(_RESULT.findall(squeeze(text)))


def _one_number(stated: str, written: str | None = None) -> str | None:
  """The number as it is written, if it is all that is stated; else all."""
  stated = stated.strip()
  value = only_number(stated)
  if value is None:
    return stated or None
  shown = [_FRACTION.sub(r'\1/\2', stated)]
  candidates = [written] if written else _NUMBER.findall(shown[0])
  for one in candidates:
    if number(one) == value:
      return one
  return stated


def last_boxes(text: str) -> str | None:
  """The content of the last box, and of those with only 'and' between."""
  boxes = notation.boxes(text)
  if not boxes:
    return None
  contents = [boxes[-1][2]]
  for before, after in zip(boxes[-2::-1], boxes[:0:-1], strict=True):
    if not _BETWEEN.fullmatch(text[before[1] : after[0]]):
      break
    if before[2].strip() != contents[0].strip():
      contents.insert(0, before[2])
  return ' and '.join(contents)


def _after_words(text: str, numeric: bool) -> str | None:
  """Finds the text behind the last 'answer is', to the statement's end."""
  for found in list(_STATED.finditer(text))[: -_MAX_STATEMENTS - 1 : -1]:
    rest = text[found.end() :]
    said = re.sub(r'^\s*(?:\*+|_+)(?=[\s:])', '', rest.split('\n', 1)[0])
    if not said.strip(' *_:'):
      said = (rest.strip().splitlines() or [''])[0]
    said = _statement(said)
    # A number is stated with digits: 'the answer is clear' is talk.
    if said and (not numeric or re.search(r'\d', said)):
      return said
  return None


def _statement(said: str) -> str:
  """The first sentence, without the marks of bold type."""
  said = said.strip().lstrip(':').strip()
  if bold := re.match(r'(\*\*|__)(.+?)\1', said):
    return bold[2].strip().rstrip('.')
  talk = _TALK.search(said)
  if talk and talk.start():
    said = said[: talk.start()]
  return said.strip().rstrip('*').strip()
