r"""Reads an answer as what it is: number, list, interval, matrix, equation.

`read` turns a tidy text into a tree of the classes below. Their parts are
compared one by one in `verify`, so that no form is taken for another: an
interval is no number, and a list of guesses is no answer.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator
from typing import Union

from rlzero.tasks import numeric, units

_MAX_ITEMS = 32
_ENVIRONMENT = re.compile(
  r'(?P<factor>[^=,;]*?)(?:\\cdot|\\times)?\s*\(?\[?\\begin\{'
  r'(?P<kind>[pbBvV]?(?:small)?matrix|array)\}'
  r'(?:\{[lcr|]*\})?(?P<body>.*)\\end\{(?P=kind)\}\]?\)?',
  re.S,
)
_AND = re.compile(
  r'\s*,?\s*(?:\\text\{\s*,?\s*(?:and|or)\s*\}'
  r'|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|\\(?:land|lor)(?![A-Za-z]))\s*'
  r'|\s*;\s*'
)
_ALL_REAL = re.compile(
  r'\\mathbb\{R\}|(?:all|any)\s+reals?(?:\s+numbers?)?', re.I
)
_WITHOUT = re.compile(
  r'\\mathbb\{R\}\s*(?:\\setminus|-|\\)\s*\\?\{([^{}]*?)\\?\}'
)
_SUCH_THAT = re.compile(
  r'([A-Za-z])(?:\s*\\in\s*\\mathbb\{R\})?\s*(?::|\\mid(?![A-Za-z])|\|)\s*(.+)'
)
# Open ends as some countries write them.
_TURNED = re.compile(r'([\[\](])([^\[\]]+)([\[\])])')
_UNION = re.compile(r'\s*\\cup(?![A-Za-z])\s*')
_COMMA_SPACE = re.compile(r'\s*,\s+')
_COMMA = re.compile(r'\s*,\s*')
_SEMICOLON = re.compile(r'\s*;\s*')
_RELATION = re.compile(r'\s*(=|<|>|\\(?:le|ge|ne|approx|in)(?![A-Za-z]))\s*')
_VARIABLE = re.compile(r'(?:[A-Za-z]|\\[a-z]{2,7})(?:_\{\w+\})?(?:\([a-z]\))?')
# A name with an accent, or in letters of its own.
_DRESSED = re.compile(
  r'\\(?:vec|bar|hat|overline|overrightarrow|widehat|mathbb|mathcal|text)'
  r'\{([A-Za-z]{1,2})\}'
)
_RATIO = re.compile(r'\\frac\{[A-Za-z]{1,2}\}\{[A-Za-z]{1,2}\}')
_FLIPPED = {'<': '>', '>': '<', '\\le': '\\ge', '\\ge': '\\le'}
_PAIRS = {
  '(': ')]',
  '[': ')]',
  '{': '}',
  '\\{': ('\\}',),
  '\\langle': ('\\rangle',),
}


@dataclasses.dataclass(frozen=True)
class Leaf:
  """A number, a formula or words, and the unit."""

  text: str
  unit: str


@dataclasses.dataclass(frozen=True)
class Items:
  """Several answers; `brackets` is '' for a list or a set without order."""

  items: tuple['Tree', ...]
  brackets: str = ''  # '()', '[)' and so on: a point or an interval


@dataclasses.dataclass(frozen=True)
class Matrix:
  """Rows of entries; `kind` is '|' for a determinant."""

  rows: tuple[tuple['Tree', ...], ...]
  kind: str


@dataclasses.dataclass(frozen=True)
class Named:
  """A value with the name that the answer gives it: x = 5."""

  name: str
  value: 'Tree'


@dataclasses.dataclass(frozen=True)
class Relation:
  """An equation or inequality that is not solved; `sign` is =, < or \\le."""

  left: str
  sign: str
  right: str


Tree = Union[Leaf, Items, Matrix, Named, Relation]  # noqa: UP007

_INFINITY, _MINUS_INFINITY = Leaf('\\infty', ''), Leaf('-\\infty', '')


@functools.lru_cache(maxsize=8192)
def read(text: str) -> Tree:
  """The tree of a tidy answer; a leaf if it has no parts."""
  if inner := re.fullmatch(r'\\text\{([^{}]*)\}', text):
    text = inner[1].strip()
  if numeric.exact(units.split(text)[0]) is not None:
    return _leaf(text)
  splits = (_matrix, _reals, _list, _relation, _brackets, _both_signs)
  for split in splits:
    if (tree := split(text)) is not None:
      return tree
  return _leaf(text)


def as_list(leaf: Leaf) -> Items | None:
  """The other reading of 100,200: two numbers."""
  parts = leaf.text.split(',')
  return Items(tuple(map(_leaf, parts))) if len(parts) > 1 else None


def as_relation(tree: Tree) -> Relation | None:
  """A named value as an equation."""
  if isinstance(tree, Named) and isinstance(tree.value, Leaf):
    return Relation(tree.name, '=', tree.value.text)
  return tree if isinstance(tree, Relation) else None


def _leaf(text: str) -> Leaf:
  return Leaf(*units.split(text.strip()))


def _matrix(text: str) -> Matrix | None:
  found = _ENVIRONMENT.fullmatch(text)
  if found is None or '\\begin' in found['body']:
    return None
  rows = re.split(r'\\\\(?:\[[^\]]*\])?|\\cr', found['body'])
  rows = [row.replace('\\hline', '').strip() for row in rows]
  factor = found['factor'].strip()
  if factor and found['kind'][0] in 'vV':
    return None

  def entry(cell: str) -> Tree:
    cell = cell.strip()
    if not factor:
      return read(cell)
    return _leaf(f'-({cell})' if factor == '-' else f'({factor})({cell})')

  return Matrix(
    tuple(tuple(map(entry, row.split('&'))) for row in rows if row),
    '|' if found['kind'][0] in 'vV' else '',
  )


def _reals(text: str) -> Tree | None:
  """All real numbers, or all but some."""
  if _ALL_REAL.fullmatch(text):
    return _interval('-\\infty', '<', '<', '\\infty')
  if not (found := _WITHOUT.fullmatch(text)):
    return None
  ends = [end.strip() for end in found[1].split(',')]
  values = {end: numeric.exact(end) for end in ends}
  if None in values.values() and len(ends) > 1:
    return None
  ends.sort(key=lambda end: values[end] or 0)
  ends = ['-\\infty', *ends, '\\infty']
  return Items(
    tuple(_interval(a, '<', '<', b) for a, b in itertools.pairwise(ends))
  )


def _list(text: str) -> Tree | None:
  for pattern in (_AND, _UNION, _COMMA_SPACE, _COMMA):
    parts = _cut(text, pattern)
    if 1 < len(parts) <= _MAX_ITEMS and all(parts[:-1]):
      items = [read(part) for part in parts if part]
      if points := _points(items):
        return points
      return _overlap(items, text) if pattern is _AND else _flat(items)
  return None


def _points(items: list[Tree]) -> Items | None:
  """The points that x = 1, y = 2 and x = 3, y = 4 are."""
  found = []
  for item in items:
    if not isinstance(item, Items) or item.brackets or len(item.items) < 2:
      return None
    values = {getattr(i, 'name', None): i for i in item.items}
    if None in values or len(values) < len(item.items):
      return None
    found.append(values)
  if any(values.keys() != found[0].keys() for values in found):
    return None
  return Items(
    tuple(
      Items(tuple(values[name].value for name in sorted(values)), '()')
      for values in found
    )
  )


def _overlap(items: list[Tree], text: str) -> Tree:
  """The interval that x > 1 and x < 3 is; else the list of the items."""
  ends = [
    (item.value.items, item.value.brackets)
    for item in items
    if isinstance(item, Named) and isinstance(item.value, Items)
  ]
  names = {item.name for item in items if isinstance(item, Named)}
  is_both = len(items) == len(ends) == 2 and len(names) == 1
  if not is_both or re.search(r'\bor\b|\\lor', text):
    return _flat(items)
  lows = [(e[0], b[0]) for e, b in ends if e[0] != _MINUS_INFINITY]
  highs = [(e[1], b[1]) for e, b in ends if e[1] != _INFINITY]
  if len(lows) != 1 or len(highs) != 1:
    return _flat(items)
  (low, left), (high, right) = *lows, *highs
  if not isinstance(low, Leaf) or not isinstance(high, Leaf):
    return _flat(items)
  least, most = numeric.exact(low.text), numeric.exact(high.text)
  if least is None or most is None or least >= most:
    return _flat(items)
  return Named(names.pop(), Items((low, high), left + right))


def _flat(items: list[Tree]) -> Items:
  """One list of them all; a name holds for the nameless behind it."""
  flat, name = [], None
  for item in items:
    inside = [item]
    if isinstance(item, Items) and not item.brackets:
      inside = list(item.items)
    for one in inside:
      if isinstance(one, Named):
        name = one.name
      elif name is not None and not isinstance(one, Relation):
        one = Named(name, one)
      flat.append(one)
  return Items(tuple(flat))


def _relation(text: str) -> Tree | None:
  parts = _cut(text, _RELATION, keep=True)
  if len(parts) < 3 or not parts[0] or not parts[-1]:
    return None
  terms, signs = parts[::2], parts[1::2]
  if set(signs) <= {'=', '\\approx', '\\in'}:
    if not is_name(terms[0]) and _VARIABLE.fullmatch(terms[-1]):
      terms = terms[::-1]  # 5 = x
    if is_name(terms[0]):
      values = [read(term) for term in terms[1:]]
      # Of x = 10/2 = 5 both must be right; they are compared as one list.
      if len(values) == 1:
        return _distributed(terms[0], values[0])
      return None
    if len(terms) == 2 and signs == ['=']:
      return Relation(terms[0], '=', terms[1])
    return None
  return _inequality(terms, signs)


def is_name(text: str) -> bool:
  """Whether what stands before '=' is the name of a value: x, f(2), Area."""
  bare = _DRESSED.sub(r'\1', text)
  bare = re.sub(r'_\{[^{}]*\}|\^\{-1\}|\\text\{[^{}]*\}', '', bare)
  if re.fullmatch(r'\\?\|\s*(?:[A-Z]{2}|[zw])?\s*\\?\|', bare):
    return True  # a length; not |x|, which has two solutions
  if _RATIO.fullmatch(bare):
    return True
  if re.fullmatch(r"(?:[A-Za-z]|\\[a-z]+)'*\([^()]*\)", bare):
    return True
  if re.fullmatch(r'\([A-Za-z](?:\s*,\s*[A-Za-z])+\)', bare):
    return True
  return bool(text) and not re.search(r'[\d+*/^(){}<>|-]', bare)


def _distributed(name: str, value: Tree) -> Tree:
  """x = 1, 2 is x = 1, x = 2."""
  if isinstance(value, Items) and not value.brackets:
    return Items(tuple(Named(name, one) for one in value.items))
  return Named(name, value)


def _inequality(terms: list[str], signs: list[str]) -> Tree | None:
  """An interval if the inequality is solved for a variable."""
  if len(terms) == 2:
    (left, right), (sign,) = terms, signs
    if _VARIABLE.fullmatch(right) and not _VARIABLE.fullmatch(left):
      left, right, sign = right, left, _FLIPPED.get(sign, sign)
    if not _VARIABLE.fullmatch(left) or left in right:
      if sign in ('>', '\\ge'):
        left, right, sign = right, left, _FLIPPED[sign]
      return None if sign == '\\ne' else Relation(left, sign, right)
    if sign == '\\ne':
      below = _interval('-\\infty', '<', '<', right)
      above = _interval(right, '<', '<', '\\infty')
      return Items((Named(left, below), Named(left, above)))
    if sign in ('<', '\\le'):
      return Named(left, _interval('-\\infty', '<', sign, right))
    return Named(left, _interval(right, _FLIPPED[sign], '<', '\\infty'))
  if len(terms) != 3 or not _VARIABLE.fullmatch(terms[1]):
    return None
  if set(signs) <= {'>', '\\ge'}:
    terms, signs = terms[::-1], [_FLIPPED[s] for s in signs[::-1]]
  if not set(signs) <= {'<', '\\le'}:
    return None
  return Named(terms[1], _interval(terms[0], signs[0], signs[1], terms[2]))


def _interval(low: str, left: str, right: str, high: str) -> Items:
  brackets = ('(' if left == '<' else '[') + (')' if right == '<' else ']')
  return Items((read(low), read(high)), brackets)


def _brackets(text: str) -> Tree | None:
  """A point, an interval, a vector or a set; brackets around one thing."""
  if text.startswith(']') or text.endswith('['):
    if turned := _TURNED.fullmatch(text):
      left = '(' if turned[1] == ']' else turned[1]
      right = ')' if turned[3] == '[' else turned[3]
      text = left + turned[2] + right
  for left, rights in _PAIRS.items():
    for right in rights:
      if not text.startswith(left) or not text.endswith(right):
        continue
      inner = text[len(left) : len(text) - len(right)].strip()
      if not inner or any(depth < 0 for _, depth in _depths(inner)):
        return None
      if '{' in left and (rule := _SUCH_THAT.fullmatch(inner)):
        return read(rule[2].strip())
      parts = _cut(inner, _COMMA if ',' in inner else _SEMICOLON)
      if not all(parts) or len(parts) > _MAX_ITEMS:
        return None
      items = tuple(map(read, parts))
      if '{' in left:
        return items[0] if len(items) == 1 else Items(items)
      if len(items) == 1:
        return items[0] if left == '(' and right == ')' else None
      return _point(items, '()' if left == '\\langle' else left + right)
  return None


def _point(items: tuple[Tree, ...], brackets: str) -> Tree:
  """[[1, 2], [3, 4]] is a matrix; else what the brackets say."""
  rows = [i for i in items if isinstance(i, Items) and i.brackets == '[]']
  if brackets == '[]' and len(rows) == len(items):
    if len({len(row.items) for row in rows}) == 1:
      return Matrix(tuple(row.items for row in rows), '')
  return Items(items, brackets)


def _both_signs(text: str) -> Items | None:
  r"""1 \pm x is 1 + x and 1 - x."""
  if '\\pm' not in text:
    return None
  signs = (('+', '-'), ('-', '+'))
  return _flat(
    [
      read(text.replace('\\pm', plus).replace('\\mp', minus).strip())
      for plus, minus in signs
    ]
  )


def _depths(text: str) -> Iterator[tuple[int, int]]:
  """Every index with the number of brackets around it."""
  depth = 0
  for i, char in enumerate(text):
    if char in '([{' or text.startswith(('\\langle', '\\begin'), i):
      yield i, depth
      depth += 1
      continue
    if char in ')]}' or text.startswith(('\\rangle', '\\end'), i):
      depth -= 1
    yield i, depth


def _cut(text: str, pattern: re.Pattern, keep: bool = False) -> list[str]:
  """Parts between the matches outside of brackets; `keep` the signs too."""
  parts, start = [], 0
  inside = {i: depth for i, depth in _depths(text)}
  for found in pattern.finditer(text):
    if inside[found.start()]:
      continue
    parts.append(text[start : found.start()].strip())
    if keep:
      parts.append(found[1])
    start = found.end()
  return [*parts, text[start:].strip()]
