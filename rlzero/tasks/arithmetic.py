"""Exact values of sums that a model wrote, without running them.

An expression has whole numbers, + - * / and brackets, and nothing else: no
powers, functions, names, decimals or signs that stand alone. A minus sign may
begin the expression or a bracket, as in ordinary mathematics.
"""

import re
from fractions import Fraction

_MAX_CHARS = 500
_MAX_DIGITS = 12  # of a number
_MAX_DEPTH = 50  # brackets in each other
_TOKEN = re.compile(r'\s*(?:([0-9]+)|([-+*/()]))')
# As models write them; the multiplication dot is no decimal point.
_SIGNS = str.maketrans({'×': '*', '·': '*', '⋅': '*', '÷': '/', '−': '-'})


def evaluate(
  text: str, operators: str = '+-*/'
) -> tuple[Fraction, list[int]] | None:
  """Value and sorted numbers of an expression; None if it is not one.

  Args:
    text: what the model wrote.
    operators: those that may be used.
  """
  tokens = _tokens(text.translate(_SIGNS))
  if tokens is None:
    return None
  used = []
  tokens.reverse()  # so that the next one is the last

  def take(choices: str) -> str | None:
    return str(tokens.pop()) if tokens and str(tokens[-1]) in choices else None

  def sum_of_terms(depth: int) -> Fraction:
    negative = '-' in operators and take('-') is not None
    value = -product(depth) if negative else product(depth)
    while sign := take('+-'):
      _check(sign in operators)
      term = product(depth)
      value = value + term if sign == '+' else value - term
    return value

  def product(depth: int) -> Fraction:
    value = factor(depth)
    while sign := take('*/'):
      _check(sign in operators)
      other = factor(depth)
      value = value * other if sign == '*' else value / other
    return value

  def factor(depth: int) -> Fraction:
    _check(bool(tokens) and depth < _MAX_DEPTH)
    token = tokens.pop()
    if isinstance(token, int):
      used.append(token)
      return Fraction(token)
    _check(token == '(')
    value = sum_of_terms(depth + 1)
    _check(take(')') is not None)
    return value

  try:
    value = sum_of_terms(0)
    _check(not tokens)
  except (ValueError, ZeroDivisionError):
    return None
  return value, sorted(used)


def _check(holds: bool) -> None:
  if not holds:
    raise ValueError('not an expression')


def _tokens(text: str) -> list[int | str] | None:
  """Numbers and signs of a text; None if it holds anything else."""
  text = text.strip()
  if not text or len(text) > _MAX_CHARS:
    return None
  found: list[int | str] = []
  place = 0
  while place < len(text):
    match = _TOKEN.match(text, place)
    if match is None:
      return None
    number, sign = match.groups()
    if number and (len(number) > _MAX_DIGITS or (number[0] == '0' != number)):
      return None  # 07 is not how the number was given
    found.append(int(number) if number else sign)
    place = match.end()
  return found
