r"""Letters of multiple choice, as models state them.

`Answer: $D$`, `\boxed{\textbf{D}}`, `(D)`, `D) 5 eV` and `The correct choice
is D` are D. The article in `Answer: a safe choice` is not A, and whoever names
two letters has chosen none.
"""

import re

from rlzero.tasks import answers, notation

_MARKS = re.compile(
  r'\\(?:text(?:bf|rm|it|normal|sf)?|math(?:rm|bf|it|sf)|mbox|operatorname)'
  r'\s*\{([^{}]*)\}|\$|\\[()\[\],;! ]|\*+|_{2,}|[`"“”{}]'
  r"|(?<![A-Za-z])['‘](?=[A-Z]['’])|(?<=\b[A-Z])['’](?![A-Za-z])"
)
_STATED = re.compile(
  r'\b(?:answer|choice|option)\s*(?:is|:|=)\s*:?\s*|^\s*answer\s+(?=\W*[A-Z]\W*$)',
  re.I | re.M,
)
_LEAD = (
  r'(?:(?:the\s+)?(?:correct\s+)?(?:answer|option|choice)\s*(?:is|:)?\s*)?'
)
_MAX_CHARS = 200  # of a statement
_GOES_ON = (
  r'because|since|as|which|due|for|so|given|based|is\s+(?:right|correct)'
  r'|therefore|thus|hence'
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
  plain = _plain(text)
  if (letter := _letter(plain, letters)) is not None:
    return letter
  for statement in reversed(_statements(plain)):
    if (letter := _letter(statement, letters)) is not None:
      return letter
  return None


def count(text: str, letters: str = 'ABCD') -> int:
  """How often a text states a choice."""
  found = _statements(_plain(answers.squeeze(text)))
  stated = sum(_letter(one, letters) is not None for one in found)
  return stated + len(notation.boxes(text))


def _statements(text: str) -> list[str]:
  """The lines behind 'answer is' and the like."""
  rests = (text[found.end() :][:_MAX_CHARS] for found in _STATED.finditer(text))
  return [rest.lstrip().split('\n', 1)[0] for rest in rests]


def _plain(text: str) -> str:
  """The text without the marks of type; full-width letters as usual ones."""
  for _ in range(2):
    text = _MARKS.sub(lambda m: m[1] or '', text)
  return text.translate({ord(c) + 0xFEE0: c for c in 'ABCDEFGHIJ().:'})


def _letter(text: str, letters: str) -> str | None:
  """The letter that a statement begins with, if it names no other."""
  text = ' '.join(_plain(text).split())
  capital, small = f'[{letters}]', f'[{letters}{letters.lower()}]'
  found = re.match(
    rf'(?i:{_LEAD})(?:[(\[]\s*(?P<bracketed>{small})\s*[)\]]\s*[.:,]?(?P<a>.*)'
    rf'|(?P<marked>{small})\s*[).:](?P<b>.*)'
    rf'|(?P<alone>{small})\s*[!,;]?$'
    rf'|(?P<talk>{capital})(?=[,;]?\s+(?:{_GOES_ON})\b|\s*[,;—–-]\s)(?P<c>.*))',
    text,
  )
  if found is None:
    return None
  letter = next(
    filter(None, found.group('bracketed', 'marked', 'alone', 'talk'))
  )
  letter = letter.upper()
  rest = next((r for r in found.group('a', 'b', 'c') if r is not None), '')
  others = ''.join(c for c in letters if c != letter)
  # "B or C", "B) or C)", "B, C": two letters are no choice.
  hedge = (
    rf'(?:\b(?:or|and|nor|not)|[,;/&|])\s*(?:option\s+|choice\s+)?[(\[]?'
    rf'(?:[{others}]|[{others.lower()}][).:])(?![A-Za-z])'
    rf'|(?<![A-Za-z])[(\[]?[{others}][).\]:](?!\w)'
    rf'|\b(?i:answer|choice|option)\s*(?:is|:)'
  )
  # Reasons may name the others.
  rest = re.split(r'\b(?:because|since)\b', rest, maxsplit=1)[0]
  return None if re.search(hedge, rest) else letter
