r"""Where a text states its answer.

A box wins, then what <answer> tags hold, then 'the answer is' and '####', then
the last number or the last line. What follows a stated answer is talk.
"""

import re
from fractions import Fraction

from rlzero.tasks import arithmetic, notation, units
from rlzero.tasks.numeric import DECIMAL, MAX_CHARS, number, only_number

_SAID = re.compile(r'\\text\s*\{([^{}]*\banswers?\b[^{}]*)\}', re.I)
_STATED = re.compile(
  r'\banswers?\s*(?:\*\*|__|\$)?\s*(?:(?:is|are|equals?|(?:should|must|would'
  r'|will)\s+be|(?:comes|turns)\s+out\s+to\s+be)\b|[:=]|\s[–—-](?=\s))'
  r'|\bans\.?\s*[:=]|^\s*####|^[ #*_]*(?:final\s+)?answers?[ #*_:]*$',
  re.I | re.M,
)
# Words between 'is' and the answer.
_FILLER = re.compile(
  r'(?:(?:therefore|thus|hence|then|indeed|simply|just|exactly|clearly|also'
  r'|equal\s+to|given\s+by|the\s+(?:number|value|point|interval))\b[\s,:]*)+',
  re.I,
)
# A formula on lines of its own.
_DISPLAY = re.compile(
  r'\\\[\s*((?:(?!\\\[).){1,500}?)\s*\\\]|\$\$\s*((?:(?!\$\$).){1,500}?)\s*\$\$',
  re.S,
)
_FORMULA = re.compile(r'\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]')
_CONNECTIVE = r'\s*(?:[Ss]o|[Tt]hus|[Hh]ence|[Tt]herefore|[Tt]hen)\b[\s,:]*'
_PREDICATE = re.compile(
  r'(?P<front>[A-Za-z$\\].*?)\b(?:is|are|equals)\s+'
  r'(?P<tail>(?:(?!\b(?:is|are|equals)\b).)+)'
)
_SUBJECT = re.compile(
  r'\s+(?:is|are)\s+(?:the|our|my)\s+(?:\w+\s+)?(?:answer|solution|result)s?'
  r'\.?$'
)
_LABEL = re.compile(r'[A-Za-z][A-Za-z ]{1,30}:\s+(?=\S)')
_SENTENCES = re.compile(
  r'(?<=[.!?])\s+(?=[A-Z$\\])|(?<=[$)\]])\s+(?=(?:Therefore|Thus|Hence|So)\b)'
)
_AFTERWORD = re.compile(
  r'(?i)\s*(?:i hope it is correct\.?)?\s*(?:<\|\w+\|>.*)?$'
)
_PROSE = re.compile(r'[A-Za-z]{2,}\s+[A-Za-z]{2,}')
_MATHEMATICS = re.compile(r'[\\^_=<>{}|]')
_RESULT = re.compile(rf'=\s*\$?\s*[-+]?{DECIMAL}')
_BETWEEN = re.compile(
  r'(?:\s|\$|\\[()\[\],;:! ]|\\q?quad(?![A-Za-z])|,|;|\b(?:and|or)\b'
  r'|\\text\s*\{\s*(?:and|or)\s*\}'
  r'|\b[A-Za-z](?:_\{?\w\}?)?\s*=)*'
)
_TEXT = re.compile(r'\\text\s*\{([^{}]*)\}')
_NUMBER = re.compile(rf'(?:(?<![\w)}}.])[-+])?{DECIMAL}(?:/{DECIMAL})?')
# Nothing but mathematics; a variable has one letter.
_TERMS = (
  r'(?:[\s\d.,;$+*/^(){}-]|(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])|_\{?\w'
  r'|\\(?:times|cdot|div|frac|sqrt|theta|alpha|beta|pi)(?![A-Za-z]))*'
)
_EQUATION = re.compile(rf'{_TERMS}(?:={_TERMS})+')
_VARIABLE = re.compile(r'[A-Za-z](?:_\{?\w\}?)?|\\[a-z]+')
_FINAL = re.compile(r'\bfinal\s+answer\s*(?:is\b|:)', re.I)
_MAX_LINE = 2000  # characters at the end of one
_MAX_STATEMENTS = 20  # of a text; the last ones
# Where the answer ends and talk begins.
_TALK = re.compile(
  r'(?<!\bMr)(?<!\bDr)(?<!\bSt)(?:(?<!\b[A-Za-z])[.!?](?=\s|$)'
  r'|[.!?](?=\s+[A-Z][a-z]|\s*$))'
  r'|\s*,?\s*\(?\b(?:because|since|therefore|hence|thus)\b'
  r'|\s*\(\s*(?:as|so|check|which|note)\b'
  r'|\s+(?:as|so)\s+(?=(?:we|it|the|this)\b|[\d$\\(])'
  r'|\s*,\s*(?:as|so|which|where|for|when|but|if|not|with|giving|obtained'
  r'|approximately)\b|;\s+(?:this|it|that|note|check|since|as|the|we|see)\b'
  r'|\s+[-–—]\s+(?=[A-Za-z]{2})|\s*—'
)
_SENTENCE = re.compile(r'\n|[.!?]\s')
# Of several numbers none is the last if they are offered, or one expression.
_HEDGE = re.compile(r'\b(?:or|maybe|perhaps)\b', re.I)
_JOINED = re.compile(
  r'(?:[\s,;/&|()\[\]{}?<>*+^x.~–—…-]|(?<!\s):(?!\s)|\b(?:and|to)\b|\\[a-z]+)+'
)
_COMPARED = re.compile(r'(?:[<>≠≤≥!~]=?|\\(?:ne|le|ge|lt|gt)q?)\s*$')
_FRACTION = re.compile(r'\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}')


def last_answer(text: str, numeric: bool = True) -> str | None:
  r"""The last answer stated in a text, or None.

  The last \boxed{}, with those that stand next to it; else what follows the
  last <answer>; else what follows the last 'answer is' or '####'; else the
  last number if `numeric`, otherwise the last line.
  """
  text = _DISPLAY.sub(_on_one_line, squeeze(text))
  text = _SAID.sub(r'\1', text)
  if (stated := _after_boxes(text, numeric) or last_boxes(text)) is not None:
    plain = _TEXT.sub(r'\1', stated)
    stated = _after_words(plain, numeric) or stated
  elif '<answer>' in text:
    inside = text.rsplit('<answer>', 1)[1].split('</answer>')[0]
    stated = _after_words(inside, numeric) or inside
  else:
    stated = _after_words(text, numeric)
  if numeric:
    return last_number(text) if stated is None else _one_number(stated)
  if stated is None:
    stated = _from_prose((text.strip().splitlines() or [''])[-1])
  stated = stated.strip()
  if not stated.endswith('...'):  # a decimal that goes on
    stated = stated.rstrip('.').strip()
  return stated or None


def _on_one_line(display: re.Match) -> str:
  return f'${" ".join((display[1] or display[2]).split())}$'


def _from_prose(line: str) -> str:
  """Finds what the last sentence states: a formula, a number or words.

  All of it where it offers several, or denies one.
  """
  line = _TEXT.sub(r' \1 ', _AFTERWORD.sub('', line[-_MAX_LINE:])).strip()
  sentence = _SENTENCES.split(line)[-1]
  sentence = re.sub(rf'^{_CONNECTIVE}', '', sentence)
  sentence = _SUBJECT.sub('', sentence)
  label = _LABEL.match(sentence)
  if label and not _is_hedged(label[0]):
    sentence = sentence[label.end() :]
  stated = _PREDICATE.fullmatch(sentence)
  if stated and not _is_hedged(_FORMULA.sub(' ', stated['front'])):
    tail = _statement(stated['tail'])
    if not _PROSE.search(tail) or not re.search(r'[\d$\\]', tail):
      return tail
  if found := list(_FORMULA.finditer(sentence)):
    return _last_formula(sentence, found) or line
  is_prose = _PROSE.search(sentence) and not _MATHEMATICS.search(sentence)
  return (last_number(sentence) if is_prose else None) or sentence


def _last_formula(sentence: str, found: list[re.Match]) -> str | None:
  """The last formula with those beside it; None where it may be none."""
  start, end = found[-1].span()
  for before in found[-2::-1]:
    if not _BETWEEN.fullmatch(sentence[before.end() : start]):
      break
    start = before.start()
  words = re.search(r"(?:[A-Za-z']+\s+){0,3}$", sentence[:start])
  talk = re.match(r'(?:\s+[A-Za-z]+){0,3}', sentence[end:])
  assert words and talk  # both may be empty
  if _HEDGE.search(sentence[:start] + sentence[end:]):
    return None
  if _is_hedged(words[0]) or _is_hedged(talk[0]):
    return None
  unit = re.match(r'\s*[A-Za-z]+(?:\^?\d)?\s*\.?$', sentence[end:])
  return sentence[start : end + unit.end() if unit else end]


def _is_hedged(words: str) -> bool:
  """Whether words before a value offer another one, or change it."""
  words = re.sub(r'\broots?\s*$', '', words)
  if _HEDGE.search(words):
    return True
  return not units.is_harmless(words, in_prose=True)


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
  text = _FRACTION.sub(r'(\1/\2)', text)
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
    equation, _ = units.split(_FRACTION.sub(r'\1/\2', stated).strip('$ .'))
    return (
      (_EQUATION.fullmatch(equation) and _result(equation)) or stated or None
    )
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
  contents = [_signed(text, boxes[-1])]
  for before, after in zip(boxes[-2::-1], boxes[:0:-1], strict=True):
    if not _BETWEEN.fullmatch(text[before[1] : after[0]]):
      break
    if before[2].strip() != contents[0].strip():
      contents.insert(0, _signed(text, before))
  return ' and '.join(contents)


def _signed(text: str, box: tuple[int, int, str]) -> str:
  """The content of a box, with a minus sign that stands before it."""
  start, _, content = box
  if not re.search(r'(?:^|[=({\[,$]\s*|\s)[-−]$', text[:start]):
    return content
  return f'-{content}' if number(content) is not None else f'-({content})'


def _after_boxes(text: str, numeric: bool) -> str | None:
  """Finds what is called the final answer behind the last box."""
  found = notation.boxes(text)
  behind = text[found[-1][1] :] if found else ''
  if not (final := _FINAL.search(behind)):
    return None
  return _after_words(behind[final.start() :], numeric)


def _after_words(text: str, numeric: bool) -> str | None:
  """Finds the text behind the last 'answer is', to the statement's end."""
  for found in list(_STATED.finditer(text))[: -_MAX_STATEMENTS - 1 : -1]:
    rest = text[found.end() :]
    said = re.sub(r'^\s*(?:\*+|_+)(?=[\s:])', '', rest.split('\n', 1)[0])
    if not said.strip(' *_:'):
      said = (rest.strip().splitlines() or [''])[0]
    said = _statement(said)
    if not numeric and _PROSE.search(_FORMULA.sub(' ', said)):
      said = _from_prose(said)
    # A number is stated with digits: 'the answer is clear' is talk.
    if said and (not numeric or re.search(r'\d', said)):
      return said
  return None


def _statement(said: str) -> str:
  """The first sentence, without the marks of bold type."""
  said = _FILLER.sub('', said.strip().lstrip(':').strip(), count=1)
  if bold := re.match(r'(\*\*|__)(.+?)\1', said):
    return bold[2].strip().rstrip('.')
  talk = _TALK.search(said)
  if talk and talk.start():
    said = said[: talk.start()]
  return said.strip().rstrip('*').strip()
