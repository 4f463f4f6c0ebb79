r"""Writes an answer in one notation: LaTeX as math-verify's parser reads it.

People and models write 3½, $3\frac12$ and \boxed{3\tfrac{1}{2}} for one
number. Here all of these become `3\frac{1}{2}`. Nothing is computed. TeX's own
rules say what an argument is: `\frac12x` is `\frac{1}{2}x`, and `\sqrt12` is
`\sqrt{1}2`.
"""

import functools
import re
import unicodedata

MAX_DEPTH = 10  # of brackets; the parser's time grows steeply with it

_SYMBOLS = {
  **dict.fromkeys('−–—‐‑‒﹣', '-'),
  **dict.fromkeys('×✕✖', r'\times '),
  **dict.fromkeys('·⋅∙', r'\cdot '),
  **dict.fromkeys('÷∕⁄', '/'),
  **dict.fromkeys('≤⩽', r'\le '),
  **dict.fromkeys('≥⩾', r'\ge '),
  **dict.fromkeys('’′', "'"),
  '≠': r'\ne ',
  '∞': r'\infty ',
  '√': ' sqrt ',
  '∛': r'\sqrt[3]',
  '∪': r'\cup ',
  '∩': r'\cap ',
  '∈': r'\in ',
  '±': r'\pm ',
  '∓': r'\mp ',
  '°': r'^\circ ',
  'º': r'^\circ ',
  '≈': r'\approx ',
  '∠': r'\angle ',
  '∅': r'\emptyset ',
  '∖': r'\setminus ',
  '∨': r'\lor ',
  '∧': r'\land ',
  '⌊': r'\lfloor ',
  '⌋': r'\rfloor ',
  '⌈': r'\lceil ',
  '⌉': r'\rceil ',
  '∣': '|',
  'ℝ': r'\mathbb{R} ',
  '⟨': r'\langle ',
  '⟩': r'\rangle ',
}
_GREEK = re.compile(r'GREEK (SMALL|CAPITAL) LETTER (\w+)$')
_BOXED = re.compile(r'\\(?:boxed|fbox)\s*(?=\{)')
_UNBRACED = re.compile(r'\\boxed\s+([^\s{}$\\]+)')
_BOLD = re.compile(r'^(\*\*|__|\*|`)(?=\S)([^*`]*\S)\1(\.?)$')
_END = r'(?![A-Za-z])'  # of a command's name
# Commands and signs that say only how the answer looks.
_LOOKS = re.compile(
  r'(?<!\\)(?:\\(?:displaystyle|textstyle|limits|[bB]ig[lr]?|left|right'
  r'|mathstrut|strut|[lL]arge|LARGE|[hH]uge|small|normalsize|nonumber)'
  rf'{_END}|\\(?:rm|bf|it|sf|tt){_END}(?!\s*\{{)'
  r'|\\(?:text)?color\s*\{[^{}]*\}|\\[hv](?:space|skip)\*?\s*\{[^{}]*\}'
  r'|\\[hv]?phantom\s*\{[^{}]*\}|\\tag\*?\s*\{[^{}]*\}'
  r'|\\underline(?=\s*\{)|\\[()\[\]!]|\$)'
)
# {\rm cm} and an equation on one line that could have more.
_SWITCHED = re.compile(rf'\{{\s*\\(?:rm|bf|it|sf|tt){_END}\s*([^{{}}]*)\}}')
_ALIGNED = re.compile(
  r'\\begin\s*\{((?:align(?:ed)?|gather(?:ed)?|split|equation)\*?)\}'
  r'((?:(?!\\\\).)*)\\end\s*\{\1\}'
)
_SPACES = re.compile(rf'(?:(?<!\\)\\[,;: ]|\\q?quad{_END}|~|\s)+')
_BASES = (
  'two three four five six seven eight nine ten eleven twelve thirteen '
  'fourteen fifteen sixteen'
).split()
_RENAMED = tuple(
  (re.compile(pattern), to)
  for pattern, to in (
    (
      r'\\(?:text(?:bf|rm|it|normal|sf|tt|up|md|sc)?|math(?:rm|bf|it|sf|tt)'
      r'|mbox|boldsymbol|operatorname\*?|bm|bf|rm|it|sf|tt)\s*(?=\{)',
      r'\\text',
    ),
    (rf'\\(?:[dtcs]|nice|flat|x)frac{_END}', r'\\frac'),
    (
      r'\{\s*([^{}]*?)\s*\\over(?![A-Za-z])\s*([^{}]*?)\s*\}',
      r'\\frac{\1}{\2}',
    ),
    (
      r'^\s*([^{}]*?)\s*\\over(?![A-Za-z])\s*([^{}]*?)\s*$',
      r'\\frac{\1}{\2}',
    ),
    (
      r'\{\s*(\d+)\s*\\choose(?![A-Za-z])\s*(\d+)\s*\}',
      r'\\binom{\1}{\2}',
    ),
    (rf'\\leq?(?:slant|q)?{_END}|<=', r'\\le '),
    (rf'\\geq?(?:slant|q)?{_END}|>=', r'\\ge '),
    (rf'\\vee{_END}', r'\\lor '),
    (rf'\\wedge{_END}', r'\\land '),
    (rf'\\lbrace{_END}', r'\\{'),
    (rf'\\rbrace{_END}', r'\\}'),
    (rf'\\lbrack{_END}', '['),
    (rf'\\rbrack{_END}', ']'),
    (rf'\\varnothing{_END}|\\\{{\s*\\\}}', r'\\emptyset '),
    (rf'\\(?:smallsetminus|backslash){_END}', r'\\setminus '),
    (
      r'\\(?:mathbb|Bbb)\s*(?:\{\s*R\s*\}|R(?![A-Za-z]))'
      rf'|\\(?:R|[rR]eals){_END}',
      r'\\mathbb{R}',
    ),
    (rf'\\pounds{_END}', '£'),
    (rf'\\(?:euro|EUR){_END}(?:\{{\}})?', '€'),
    (rf'\\(?:textcent|cent){_END}', '¢'),
    (rf'\\lt{_END}', '<'),
    (rf'\\gt{_END}', '>'),
    (rf'\\neq?{_END}|!=', r'\\ne '),
    (rf'\\(?:degree|deg){_END}', r'^\\circ '),
    (rf'\^\s*\{{\s*\\circ\s*\}}|\^\s*\\circ{_END}', r'^\\circ '),
    (rf'(?<=\d)\s*\^\s*(?:\{{\s*o\s*\}}|o{_END})', r'^\\circ '),
    (rf'\\div{_END}', '/'),
    # Bold, and then the power of a programming language.
    (r'(?<![\w)}*])\*\*([^*\s][^*]*)\*\*(?![\w({*])', r'\1'),
    (r'\*\*', '^'),
    (r'(?<![A-Za-z\\])\{\s*([-+,=<>/.:])\s*\}', r'\1'),
    (r'\\([$%#&_])', r'\1'),
    (r'\\text\s*\{\s*([$€£¥₹¢%-]?)\s*\}', r'\1'),
    (
      r'\s*\\text\s*\{\s*(hundred|thousand|million|billion|trillion|dozen)'
      r'\s*([^{}]*)\}',
      r' \1 \\text{\2}',
    ),
    (r'\\text\{\}', ''),
    # A unit with a slash, however it is set.
    (
      r'\\frac\s*\{\s*\\text\s*\{([^{}]*)\}\s*\}'
      r'\s*\{\s*\\text\s*\{([^{}]*)\}(\^\{?\d\}?)?\s*\}',
      r'\\text{\1/\2}\3',
    ),
    # Decimals that repeat: a bar, or the same digits three times and dots.
    (r'(?<=[\d.])\\(?:bar|dot)\s*(?=\{)', r'\\overline'),
    (r'(?<=[\d.])\\(?:overline|bar|dot)\s*(\d)', r'\\overline{\1}'),
    (
      r'(?<![\d.])(\d*\.\d*?)(\d{1,6}?)\2{2,}\s*'
      rf'(?:\.\.\.|\\[lc]?dots{_END})(?!\s*[\d,])',
      r'\1\\overline{\2}',
    ),
    (r'((?:^|[(\[{,])\s*)\+\s*(?=\\infty)', r'\1'),
    (
      r'(?i)(?<![\w.])(\d{1,2}(?::\d\d)?)\s*(?:\\text\s*\{\s*)?'
      r'([ap])\.?\s?m(?![a-z])\.?(?:\s*\})?',
      lambda m: f'{m[1]} {m[2].lower()}m',
    ),
    (
      rf'_\s*\{{\s*\\text\s*\{{\s*({"|".join(_BASES)})\s*\}}\s*\}}',
      lambda m: f'_{{{_BASES.index(m[1]) + 2}}}',
    ),
    (rf'(?<![A-Za-z\\])[Ii]nf(?:inity)?{_END}', r'\\infty '),
    # A root that is typed takes the whole number after it.
    (r'(?<![A-Za-z\\])sqrt\s*(\d+(?:\.\d+)?)', r'\\sqrt{\1}'),
    (rf'(?<![A-Za-z\\])(sqrt|pi){_END}', r'\\\1 '),
    (r'([({\[])\s+', r'\1'),
    (r'\s+([)}\]])', r'\1'),
    (r'\s+', ' '),
  )
)
_LEADING = re.compile(
  r'^(?:(?:=|\\(?:approx|therefore|implies|(?:Long)?[rR]ightarrow|to)'
  r'(?![A-Za-z]))\s*)+(?=[^=\s])'
)
_PLAIN = re.compile(r'-?[0-9]+(?:\.[0-9]+)?(?: (?!sqrt|inf)[a-z]{4,})?')
_CLOSING = {'(': ')', '[': ']', '{': '}'}
_TOKEN = re.compile(r'\\(?:[A-Za-z]+|.)|\s+|.', re.S)


def boxes(text: str) -> list[tuple[int, int, str]]:
  r"""Start, end and content of each outermost \boxed{} that is closed.

  Where there is none, of each \boxed without braces: it holds what follows.
  """
  starts = {box.end(): box.start() for box in _BOXED.finditer(text)}
  found, end = [], 0
  for left, right in sorted(_braces(text).items()) if starts else ():
    if left in starts and starts[left] >= end:
      found.append((starts[left], right + 1, text[left + 1 : right]))
      end = right + 1
  return found or [(*m.span(), m[1]) for m in _UNBRACED.finditer(text)]


def _braces(text: str) -> dict[int, int]:
  """The closing brace of each one that is closed, by their places."""
  pairs, opened = {}, []
  for brace in re.finditer(r'(?<!\\)[{}]', text):
    if brace[0] == '{':
      opened.append(brace.start())
    elif opened:
      pairs[opened.pop()] = brace.start()
  return pairs


def depth(text: str) -> int:
  """How deep brackets are nested, of all kinds together."""
  deepest = now = 0
  for char in text:
    now += (char in '([{') - (char in ')]}')
    deepest = max(deepest, now)
  return deepest


@functools.lru_cache(maxsize=8192)
def tidy(text: str) -> str:
  """The answer in the one notation, or '' if it is nested too deeply."""
  text = ' '.join(text.split())
  if _PLAIN.fullmatch(text):  # most answers; the rest is slower
    return text
  text = _latex_characters(text)
  if '\\begin' not in text and '\\\\' in text:  # commands that were escaped
    text = re.sub(r'\\\\(?=[A-Za-z])', r'\\', text)
  for _ in range(3):  # a box in bold in a box
    inner = boxes(text)
    if len(inner) == 1:
      text = inner[0][2]
    text = _BOLD.sub(r'\2\3', text.strip()).strip()
    text = text.strip('$') if text.count('$') == 2 else text
  text = _ALIGNED.sub(lambda m: m[2].replace('&', ''), text)
  text = re.sub(r',\s*\\!\s*', ',', text)
  text = _LOOKS.sub('', _SWITCHED.sub(r'\\text{\1}', text))
  text = _SPACES.sub(' ', text)
  for pattern, to in _RENAMED:
    text = pattern.sub(to, text)
  text = _without_twins(text)
  if depth(text) > MAX_DEPTH:
    return ''
  text = _without_twins(_with_braces(text)).strip().rstrip('. ')
  return _LEADING.sub('', text)


def _latex_characters(text: str) -> str:
  """Signs, raised digits, fractions and Greek letters as LaTeX."""
  if text.isascii():
    return text
  found = []
  for char in text:
    kind = unicodedata.decomposition(char).partition('>')[0]
    plain = unicodedata.normalize('NFKC', char)
    greek = _GREEK.match(unicodedata.name(char, ''))
    if char in _SYMBOLS:
      found.append(_SYMBOLS[char])
    elif re.fullmatch(r'\d+⁄\d+', plain):
      above, below = plain.split('⁄')
      found.append(f'\\frac{{{above}}}{{{below}}}')
    elif kind in ('<super', '<sub'):
      mark = '^{' if kind == '<super' else '_{'
      if found and found[-1].startswith(mark):
        found[-1] = found[-1][:-1] + _SYMBOLS.get(plain, plain) + '}'
      else:
        found.append(mark + _SYMBOLS.get(plain, plain) + '}')
    elif greek:
      name = greek[2].lower()
      found.append(f'\\{name if greek[1] == "SMALL" else name.title()} ')
    else:
      found.append(''.join(_SYMBOLS.get(c, c) for c in plain))
  return ''.join(found)


def _without_twins(text: str) -> str:
  """Without brackets directly around a pair of the same brackets."""
  pairs, open_at = {}, {'(': [], '{': []}
  for i, char in enumerate(text):
    if text[i - 1 : i] == '\\':
      continue
    if char in open_at:
      open_at[char].append(i)
    elif char in ')}' and (stack := open_at['(' if char == ')' else '{']):
      pairs[stack.pop()] = i
  dropped = set()
  for start, end in pairs.items():
    is_twin = text[start] == text[start + 1] and text[end] == text[end - 1]
    if is_twin and pairs.get(start + 1) == end - 1:
      dropped |= {start, end}
  return ''.join(c for i, c in enumerate(text) if i not in dropped)


def _with_braces(text: str) -> str:
  r"""Braces around the arguments of \frac, \sqrt, ^ and _."""
  tokens = _TOKEN.findall(text)
  parts, at = [], 0
  while at < len(tokens):
    part, at = _read(tokens, at)
    parts.append(part)
  return ''.join(parts)


def _read(tokens: list[str], at: int, level: int = 0) -> tuple[str, int]:
  """The token at `at` with its arguments, and the index after them."""
  token = tokens[at]
  count = {'\\frac': 2, '\\sqrt': 1, '^': 1, '_': 1}.get(token, 0)
  at += 1
  if level > MAX_DEPTH:
    return token, at
  parts = [token]
  if token == '\\sqrt' and tokens[at : at + 1] == ['[']:
    end = _matching(tokens, at) + 1
    parts += tokens[at:end]
    at = end
  for _ in range(count):
    while at < len(tokens) and tokens[at].isspace():
      at += 1
    if at < len(tokens):
      argument, at = _argument(tokens, at, token, level + 1)
      parts.append(argument)
  return ''.join(parts), at


def _argument(
  tokens: list[str], at: int, command: str, level: int
) -> tuple[str, int]:
  if tokens[at] == '\\circ':
    return '\\circ', at + 1
  # People type sqrt(x+1), x^(1/2), x^-1 and x^10 and no braces.
  typed = command in ('\\sqrt', '^')
  if tokens[at] == '{' or (tokens[at] == '(' and typed):
    end = _matching(tokens, at)
    inner = _with_braces(''.join(tokens[at + 1 : end]))
    return f'{{{inner}}}', end + 1
  sign = ''
  if tokens[at] == '-' and command == '^' and at + 1 < len(tokens):
    sign, at = '-', at + 1
  end = at
  while command == '^' and end < len(tokens) and tokens[end].isdigit():
    end += 1
  if end > at:
    return f'{{{sign}{"".join(tokens[at:end])}}}', end
  part, at = _read(tokens, at, level)
  return f'{{{sign}{part}}}', at


def _matching(tokens: list[str], at: int) -> int:
  left, level = tokens[at], 0
  for i in range(at, len(tokens)):
    level += (tokens[i] == left) - (tokens[i] == _CLOSING[left])
    if not level:
      return i
  return len(tokens)
