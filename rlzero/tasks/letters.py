r"""Letters of multiple choice, as models state them.

`Answer: $D$`, `\boxed{\textbf{D}}`, `(D)`, `D) 5 eV` and `The correct choice
is D` are D. The article in `Answer: a safe choice` is not A, and whoever names
two letters has chosen none.
"""

import re
import unicodedata

from rlzero.tasks import answers, notation

_MARKS = re.compile(
  r'\\(?:text(?:bf|rm|it|normal|sf|tt)?|math(?:rm|bf|it|sf|tt)|mbox'
  r'|operatorname)\s*\{([^{}]*)\}|\\(?:bf|rm|it|sf|tt)(?![A-Za-z])'
  r'|\$|\\[()\[\],;! ]|~|\*+|_{2,}|[`"“”{}]'
  r"|(?<![A-Za-z])['‘](?=[A-Z]['’])|(?<=\b[A-Z])['’](?![A-Za-z])"
)
_IS = (
  r'(?:(?:(?:is|(?:should|must|would|will|has\s+to)\s+be)\b|[:=]|\s[–—-](?=\s))'
  r'(?:\s*:?\s+(?:(?:most\s+)?likely|probably|clearly|obviously|definitely'
  r'|therefore|thus|hence|then|indeed|simply|the\s+letter)\b)*)'
)
_STATED = re.compile(
  rf'\b(?:answer|choice|option|solution|letter)\s*{_IS}\s*:?\s*'
  r'|\bans\b\.?\s*[:=]?\s*|^[ \t]*####\s*|^[ #>]*(?:final\s+)?answer\s*\n'
  r'|^[ \t]*answer\s+(?=\W*[A-Z]\W*$)|答案\s*[是为為:]?\s*'
  r'|[选選]\s*(?=\W*[A-Z])',
  re.I | re.M,
)
# Where nothing is called the answer.
_CHOSEN = re.compile(
  r'^.*?\b(?:(?:i|we)(?:\s+would|\s+will|[’\']d|[’\']ll)?\s+'
  r'(?:choose|pick|select|go\s+with|say)|(?:choose|pick|select)'
  r'|it\s*(?:is|[’\']s|must\s+be))'
  r'\s*:?\s+(?=(?:(?:option|choice|answer|letter)\s+)?[(\[]?(?-i:[A-Z])\b)'
  r'|\b(?=option\s+[(\[]?(?-i:[A-Z])\b)',
  re.I | re.M,
)
_LEAD = (
  r'(?P<so>(?:(?:so|thus|hence|therefore)\s*,?\s+|[=-]>\s*)?)'
  r'(?:(?:(?:the|my)\s+)?(?:(?:final|correct|right|best)\s+)*'
  r'(?:answer|option|choice|letter)'
  rf'\s*{_IS}?\s*(?:(?:option|choice|letter)\s+)?)?'
)
_DENIED = re.compile(
  r'\s*(?:(?:is|was|seems|looks)\s+(?:not|wrong|false|incorrect|impossible'
  r"|unlikely|eliminated|ruled)\b|(?:is|was|does|can)n[o']t\b|cannot\b)",
  re.I,
)
_MAX_CHARS = 200  # of a statement
_MAX_STATEMENTS = 20  # of a text; the last ones
_MAX_COUNT = 1000  # of statements, where they are counted
_MAX_TEXT = 20_000  # characters at the end of one
_NOT = re.compile(
  r"\b(?:not|never|cannot|nor|neither)\b|n[o']t\b"
  r'|\b(?:option|choice)\s+[(\[]?[A-J]\b.*(?:\b(?:or|and)\b|[,/&|])',
  re.I,
)
_GOES_ON = (
  r'(?i:because|since|as|which|due|for|so|given|based|therefore|thus|hence'
  r'|is\s+(?:the\s+)?(?:right|correct|best|answer))'
)


def choice(text: str, letters: str = 'ABCD') -> str | None:
  r"""The letter that an answer states, or None.

  Args:
    text: a short answer (`D`, `D) 5 eV`), or a completion with a \boxed{}, with
      <answer> tags, or with words such as 'answer is'. The last one counts.
    letters: of the choices.
  """
  text = answers.squeeze(text)
  if (boxed := answers.last_boxes(text)) is not None:
    return _letter(boxed, letters)
  if '<answer>' in text:
    text = text.rsplit('<answer>', 1)[1].split('</answer>')[0]
  plain = _plain(text)[-_MAX_TEXT:]
  if (letter := _letter(plain, letters)) is not None:
    return letter
  for statement in reversed(_statements(plain, _STATED)):
    if (letter := _letter(statement, letters)) is not None:
      return letter
  # One may be called right and another one too.
  chosen = {_letter(s, letters) for s in _statements(plain, _CHOSEN)} - {None}
  if chosen:
    return chosen.pop() if len(chosen) == 1 else None
  return _alone(plain, letters)


def count(text: str, letters: str = 'ABCD') -> int:
  """How often a text states a choice."""
  plain = _plain(answers.squeeze(text))
  found = _statements(plain, _STATED, _MAX_COUNT)
  stated = sum(_letter(one, letters) is not None for one in found)
  return stated + len(notation.boxes(text))


def _statements(
  text: str, pattern: re.Pattern, most: int = _MAX_STATEMENTS
) -> list[str]:
  """The lines behind 'answer is' and the like."""
  ends = [found.end() for found in pattern.finditer(text)]
  rests = (
    text[end : end + _MAX_CHARS]
    for end in ends[-most:]
    if pattern is _STATED or not _is_denied(text, end)
  )
  return [rest.lstrip().split('\n', 1)[0] for rest in rests]


def _is_denied(text: str, end: int) -> bool:
  """Whether the sentence before a place says not, or names another."""
  return bool(_NOT.search(re.split(r'[.\n]', text[max(end - 80, 0) : end])[-1]))


def _plain(text: str) -> str:
  """The text without the marks of type; full-width letters as usual ones."""
  for _ in range(2):
    text = _MARKS.sub(lambda m: m[1] or '', text)
  return text if text.isascii() else unicodedata.normalize('NFKC', text)


def _alone(text: str, letters: str) -> str | None:
  """The letter that is all of the first or the last line, if one is."""
  lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
  if len(lines) < 2:
    return None
  words = set(re.findall(rf'(?<![A-Za-z])[{letters}](?![A-Za-z])', text))
  marked = [
    re.match(rf'[(\[]?[{letters}](?:[)\].:]|$)', line) for line in lines
  ]
  joined = re.search(r'(?:\b(?:or|and|nor|not)|[,;/&|])$', lines[-2])
  first, last = (
    re.fullmatch(rf'[(\[]?([{letters}])[)\].:]*', lines[i]) for i in (0, -1)
  )
  if first and len(words) == 1:
    return first[1]
  # A list of the choices ends in a letter too.
  return last[1] if last and not joined and not any(marked[:-1]) else None


def _letter(text: str, letters: str) -> str | None:
  """The letter that a statement begins with, if it names no other."""
  text = ' '.join(_plain(text).split())
  capital, small = f'[{letters}]', f'[{letters}{letters.lower()}]'
  found = re.match(
    rf'(?i:{_LEAD})(?:[(\[]\s*(?P<bracketed>{small})\s*[)\]]\s*[.:,]?(?P<a>.*)'
    rf'|(?P<marked>{small})\s*[).:](?P<b>.*)'
    rf'|(?P<alone>{small})\s*[!,;]?$'
    rf'|(?P<talk>{capital})'
    rf'(?=[,;]?\s+(?:{_GOES_ON})\b|\s*[,;—–-]\s|\s+[(\[])(?P<c>.*))',
    text,
  )
  if found is None:
    return None
  letter = next(
    filter(None, found.group('bracketed', 'marked', 'alone', 'talk'))
  )
  if found['so'] and letter.islower():
    return None
  letter = letter.upper()
  rest = next((r for r in found.group('a', 'b', 'c') if r is not None), '')
  if _DENIED.match(rest):
    return None
  others = ''.join(c for c in letters if c != letter)
  # "B or C", "B) or C)", "B, C": two letters are no choice.
  hedge = (
    r'(?:\b(?:or|and|nor|not|but|maybe|perhaps|possibly|probably)|[,;/&|])'
    r'\s*(?:rather\s+|else\s+)?(?:option\s+|choice\s+)?[(\[]?'
    rf'(?:[{others}]|[{others.lower()}][).:])(?![A-Za-z])'
    rf'|(?<![A-Za-z])[(\[]?[{others}][).\]:](?!\w)'
    rf'|\b(?i:answer|choice|option)\s*(?:is|:)'
  )
  # Reasons may name the others.
  rest = re.split(r'\b(?:because|since)\b', rest, maxsplit=1)[0]
  return None if re.search(hedge, rest) else letter
