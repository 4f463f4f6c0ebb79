"""Values of formulas, by which they are compared.

A formula is read by the parser of math-verify, which computes nothing, and
evaluated at a few fixed points. Two formulas are equal if their values are: an
identity that holds at random points holds everywhere, but for a chance that
does not matter. Values are exact fractions while they can be, else numbers of
60 digits, so 10^(-50) is not 0 and 0.333333 is not 1/3.

Nothing large is computed: what takes more than 4,000 bits has no value here.
math-verify's own comparison simplifies with sympy, which never ends on
10^10^10 and takes up to a second on a formula that is merely long.

This module loads sympy, which takes a second; import it when it is needed.
"""

import functools
import hashlib
import math
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath
from latex2sympy2_extended import latex2sympy2
from sympy.core.function import AppliedUndef
from sympy.printing.str import sstr

NUM_POINTS = 4
_DIGITS = 60
_TOLERANCE = mpmath.mpf(10) ** -50
_MAX_BITS = 4000  # of numerator and denominator, and of an exponent of 2
_MAX_FACTORIAL = 400
_MAX_CHARS = 300
# All that may reach the parser: it computes some other commands as it reads.
_COMMANDS = frozenset(
  'frac sqrt cdot times pi text overline bar hat vec ln log lg exp sin cos tan '
  'cot sec csc arcsin arccos arctan sinh cosh tanh lfloor rfloor lceil rceil '
  'alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota '
  'kappa lambda mu nu xi rho sigma tau upsilon phi varphi chi psi omega Gamma '
  'Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega lvert rvert vert ell '
  'imath'.split()
)
_FUNCTIONS = frozenset(
  'sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln '
  'exp'.split()
)
_COMMAND = re.compile(r'\\([A-Za-z]+|.)')
_BINOMIAL = re.compile(r'\\[dt]?binom\{(\d{1,3})\}\{(\d{1,3})\}')
_DEGREES = re.compile(r'(\d+(?:\.\d+)?)\s*\^\\circ')
_LONG_NUMBER = re.compile(r'\d{100}')
_WORD = re.compile(r'(?<![\\A-Za-z{])[A-Za-z]{3,}(?![A-Za-z])')
# Read wrongly by the parser: 3 5 as 8, 12_{8} as 12, and 1:2 as a half.
_NO_FORMULA = re.compile(r'[\d.]\s+[\d.]|\d\s*_|:')
_TEXT = re.compile(r'(\\text\{[^{}]*\})')
_MIXED = re.compile(
  r'((?:^|[-+*/=(<>\[{,|]|\\(?:cdot|times|pm))\s*)'
  r'(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}'
)
# Where a factor may begin, and what ends one.
_FACTOR = (
  r'\s*(?=[\dA-Za-z(\[]|\\(?!cdot|times|rfloor|rceil|rvert|vert)[A-Za-z])'
)
_PRODUCT = re.compile(rf'(?<=\d)(?!\d){_FACTOR}|(?<=[)\]}}]){_FACTOR}')
# A brace after one of these ends no factor: log_{2} 8, sin^{2} x.
_NO_END = re.compile(
  r'(?:_|\\(?:sin|cos|tan|cot|sec|csc|log|ln|lg)(?:_\{[^{}]*\})?\s*\^)$'
)

Value = Any  # a Fraction, or a complex number of mpmath
Values = tuple[Value, ...]


@functools.lru_cache(maxsize=4096)
def values(text: str) -> Values | None:
  """The values of a tidy formula at `NUM_POINTS` points.

  None if it cannot be read, is not finite somewhere, or is too large.
  """
  tree = _parse(text)
  if tree is None:
    return None
  try:
    with mpmath.workdps(_DIGITS):
      return tuple(_value(tree, point) for point in range(NUM_POINTS))
  except (ArithmeticError, ValueError, TypeError, RecursionError):
    return None


def same(first: Values, second: Values) -> bool:
  """Whether all values are equal."""
  return all(map(_close, first, second))


def rounds_to(value: Value, decimal: str) -> bool:
  """Whether a decimal is a value rounded to the places it has."""
  if not re.fullmatch(r'-?\d+(?:\.\d+)?', decimal):
    return False
  step = Fraction(1, 10 ** len(decimal.partition('.')[2]))
  with mpmath.workdps(_DIGITS):
    return bool(
      abs(_rounded(value) - _rounded(Fraction(decimal))) <= abs(_rounded(step))
    )


def factor(first: Values, second: Values) -> Value | None:
  """The constant c with first = c second everywhere, or None."""
  if not all(first) or not all(second):
    return None
  with mpmath.workdps(_DIGITS):
    factors = [_divide(a, b) for a, b in zip(first, second, strict=True)]
  return factors[0] if all(_close(factors[0], f) for f in factors) else None


def _close(first: Value, second: Value) -> bool:
  if isinstance(first, Fraction) and isinstance(second, Fraction):
    return first == second
  with mpmath.workdps(_DIGITS):
    first, second = _rounded(first), _rounded(second)
    size = max(abs(first), abs(second))
    return bool(abs(first - second) <= size * _TOLERANCE)


def _parse(text: str) -> Any:
  """The unevaluated tree of a formula, or None."""
  if len(text) > _MAX_CHARS or _LONG_NUMBER.search(text):
    return None
  if _NO_FORMULA.search(text):
    return None
  text = _BINOMIAL.sub(lambda m: f'({math.comb(int(m[1]), int(m[2]))})', text)
  text = _DEGREES.sub(r'(\1\\cdot\\frac{\\pi}{180})', text)
  if set(_COMMAND.findall(text)) - _COMMANDS:
    return None
  text = ''.join(
    part if i % 2 else _with_products(part)
    for i, part in enumerate(_TEXT.split(text))
  )
  # The parser reads a word as a product of its letters, in any order.
  text = _WORD.sub(_as_symbol, text)
  try:
    return latex2sympy2.latex2sympy(
      text,
      normalization_config=None,
      conversion_config=latex2sympy2.ConversionConfig(lowercase_symbols=False),
    )
  except Exception:  # the parser raises no narrower one
    return None


def _with_products(text: str) -> str:
  """The formula with a sign in each product; the parser reads 2(3) as 5.

  It takes a whole number beside any number for a mixed one. Those that are
  mixed are written as sums.
  """
  text = _MIXED.sub(_as_sum, text)
  opened, opening = [], {}
  for i, char in enumerate(text):
    if char == '{':
      opened.append(i)
    elif char == '}' and opened:
      opening[i] = opened.pop()

  def product(place: re.Match) -> str:
    end = place.start() - 1
    if text[end] == '}' and _NO_END.search(text[: opening.get(end, 0)]):
      return place[0]
    return '\\cdot '

  return _PRODUCT.sub(product, text)


def _as_sum(mixed: re.Match) -> str:
  before, whole, above, below = mixed.groups()
  if int(above) >= int(below):  # a product
    return mixed[0]
  return f'{before}({whole}+\\frac{{{above}}}{{{below}}})'


def _as_symbol(word: re.Match) -> str:
  is_function = word[0] in _FUNCTIONS
  return f'\\{word[0]} ' if is_function else f'\\text{{{word[0]}}}'


def _value(node: Any, point: int) -> Value:
  """The value of a tree at a point.

  Raises:
    ArithmeticError, ValueError, TypeError: it has none.
  """
  kind = type(node).__name__
  if node.is_Rational:
    return Fraction(int(node.p), int(node.q))
  if node.is_Float:
    return Fraction(sstr(node, full_prec=True))
  if node.is_Symbol:
    return _symbol(node.name, point)
  arguments = [_value(argument, point) for argument in node.args]
  if compute := _TABLE.get(kind):
    return _checked(compute(*arguments))
  if isinstance(node, AppliedUndef):  # f(x): some number that depends on x
    return _symbol(f'{kind}({arguments})', point)
  raise ValueError(f'{kind} has no value')


def _symbol(name: str, point: int) -> Value:
  """A symbol's value: no integer, and negative at every other point."""
  if name in ('i', 'imath'):
    return mpmath.mpc(0, 1)
  digest = hashlib.sha256(f'{name} {point}'.encode()).digest()
  size = Fraction(int.from_bytes(digest[:2], 'big') % 2000 + 1, 997)
  return size + Fraction(1, 7) if point % 2 else -size - Fraction(1, 7)


def _checked(value: Value) -> Value:
  """The value, if it is finite and not too large to compute with."""
  if isinstance(value, Fraction):
    size = max(value.numerator.bit_length(), value.denominator.bit_length())
  elif not mpmath.isfinite(value):
    raise OverflowError('not finite')
  else:
    value = _without_noise(mpmath.mpc(value))
    size = abs(mpmath.mag(value)) if value else 0
  if size > _MAX_BITS:
    raise OverflowError('too large')
  return value


def _without_noise(value: Any) -> Any:
  """The number without a part that is only the rounding of the other."""
  if abs(value.imag) < abs(value.real) * _TOLERANCE:
    return mpmath.mpc(value.real)
  if abs(value.real) < abs(value.imag) * _TOLERANCE:
    return mpmath.mpc(0, value.imag)
  return value


def _rounded(value: Value) -> Any:
  if isinstance(value, Fraction):
    return mpmath.mpc(value.numerator) / value.denominator
  return value


def _exact_if_possible(function: Callable) -> Callable:
  """The function with fractions if all arguments are, else with rounding."""

  def compute(*arguments):
    if not all(isinstance(a, Fraction) for a in arguments):
      arguments = map(_rounded, arguments)
    return function(*arguments)

  return compute


_divide = _exact_if_possible(operator.truediv)


def _sum(*terms: Value) -> Value:
  total = Fraction(0)
  for term in terms:
    summed = _checked(_exact_if_possible(operator.add)(total, term))
    # What is left when all digits cancel is rounding, and not a value.
    if not isinstance(summed, Fraction):
      if abs(summed) < abs(_rounded(term)) * _TOLERANCE:
        summed = Fraction(0)
    total = summed
  return total


def _product(*factors: Value) -> Value:
  multiply = _exact_if_possible(operator.mul)
  return functools.reduce(lambda a, b: _checked(multiply(a, b)), factors)


def _power(base: Value, exponent: Value) -> Value:
  if isinstance(base, Fraction) and isinstance(exponent, Fraction):
    root = _exact_root(base, exponent.denominator)
    if root is not None:
      bits = max(root.numerator.bit_length(), root.denominator.bit_length())
      if (bits - 1) * abs(exponent.numerator) > _MAX_BITS:
        raise OverflowError('too large')
      return root**exponent.numerator
  base, exponent = _rounded(base), _rounded(exponent)
  bits = abs(exponent * mpmath.log(base)) / mpmath.log(2)
  if bits > _MAX_BITS:
    raise OverflowError('too large')
  return mpmath.power(base, exponent)


def _exact_root(base: Fraction, degree: int) -> Fraction | None:
  """The root if it is a fraction, else None."""
  if degree == 1:
    return base
  if base < 0 or degree > 64:
    return None
  parts = base.numerator, base.denominator
  roots = [int(mpmath.nint(mpmath.root(part, degree))) for part in parts]
  if any(r**degree != p for r, p in zip(roots, parts, strict=True)):
    return None
  return Fraction(*roots)


def _factorial(value: Value) -> Value:
  if not isinstance(value, Fraction) or value.denominator != 1:
    raise ValueError('no factorial')
  if not 0 <= value <= _MAX_FACTORIAL:
    raise OverflowError('too large')
  return Fraction(math.factorial(int(value)))


def _to_integer(function: Callable) -> Callable:
  def compute(value):
    if isinstance(value, Fraction):
      return Fraction(function(value))
    if value.imag:
      raise ValueError('no order among complex numbers')
    return Fraction(int(function(value.real)))

  return compute


def _wave(name: str) -> Callable:
  """A function of mpmath whose time grows with its argument's size."""
  function = getattr(mpmath, name)

  def compute(value):
    value = _rounded(value)
    if value and abs(mpmath.mag(value)) > 64:
      raise OverflowError('too large')
    result = function(value)
    return result if abs(result) > _TOLERANCE else Fraction(0)

  return compute


def _logarithm(value: Value, base: Value | None = None) -> Value:
  result = mpmath.log(_rounded(value))
  return result if base is None else result / mpmath.log(_rounded(base))


# How to compute each kind of node, by the name of its class in sympy.
_TABLE: dict[str, Callable] = {
  'Add': _sum,
  'Mul': _product,
  'Pow': _power,
  'UnevaluatedExpr': lambda value: value,
  'Abs': lambda value: abs(value),
  'floor': _to_integer(math.floor),
  'ceiling': _to_integer(math.ceil),
  'factorial': _factorial,
  'log': _logarithm,
  'exp': lambda value: _power(+mpmath.e, value),
  'Pi': lambda: +mpmath.pi,
  'Exp1': lambda: +mpmath.e,
  'ImaginaryUnit': lambda: mpmath.mpc(0, 1),
  **{
    name: _wave(name)
    for name in 'sin cos tan cot sec csc asin acos atan sinh cosh tanh'.split()
  },
}
