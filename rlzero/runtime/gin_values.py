"""Fits values from gin files and flags to the types of their fields."""

import ast
import os
import types
import typing
from typing import Any


def conform(value: Any, hint: Any) -> Any:
  """`value` as its annotation wants it: ints as floats, lists as tuples.

  Raises:
    TypeError: the annotation does not allow it.
  """
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if hint is Any:
    return value
  if origin in (typing.Union, types.UnionType):
    for arg in args:
      try:
        return conform(value, arg)
      except TypeError:
        pass
  elif origin is typing.Literal:
    if any(type(value) is type(arg) and value == arg for arg in args):
      return value
  elif origin is tuple and isinstance(value, (list, tuple)):
    if args[-1:] == (...,):
      args = args[:1] * len(value)
    if len(value) == len(args):
      return tuple(map(conform, value, args))
  elif origin is dict and isinstance(value, dict):
    return {conform(k, args[0]): conform(v, args[1]) for k, v in value.items()}
  elif origin is not None:
    if isinstance(value, origin):  # a Callable[...], a type[...]
      return value
  elif hint is float and type(value) is int:
    return float(value)
  elif getattr(hint, '_is_protocol', False):
    protocols = [c for c in hint.__mro__ if getattr(c, '_is_protocol', False)]
    members = {name for protocol in protocols for name in vars(protocol)}
    if all(hasattr(value, n) for n in members if not n.startswith('_')):
      return value
  elif isinstance(value, hint):
    # True is an int to Python, but num_steps = True is a mistake.
    if not (isinstance(value, bool) and hint in (int, float)):
      return value
  raise TypeError


def quote(text: str, hint: Any) -> str:
  """The text after `--name=` as gin text: strings come without quotes."""
  options = typing.get_args(hint) or (hint,)
  if typing.get_origin(hint) in (dict, list, tuple):  # of these, not one
    options = (hint,)
  if text == 'None' and types.NoneType in options:
    return text
  if str in options and text.startswith('~/'):
    text = os.path.expanduser(text)  # no shell expands --workdir=~/run
  if str in options or text in options:  # the second for a Literal
    return repr(text)
  if bool in options and text.lower() in ('true', 'false'):
    return text.capitalize()
  try:
    ast.literal_eval(text)
  except (ValueError, SyntaxError):
    # Quoted, a word in place of a number is refused as such by its type.
    return text if text.startswith(('@', '%')) else repr(text)
  return text
