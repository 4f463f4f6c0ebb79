"""How settings are named in gin files, flags and messages."""

import dataclasses
import difflib
import typing
from collections.abc import Collection
from typing import Any


class UserError(ValueError):
  """Something the user can put right, told in one sentence."""


def is_dataclass(target: Any) -> bool:
  """Whether this is a dataclass, not an instance of one."""
  return isinstance(target, type) and dataclasses.is_dataclass(target)


def is_settings(value: Any) -> bool:
  """Whether this is an instance of a dataclass."""
  return dataclasses.is_dataclass(value) and not isinstance(value, type)


def full_name(target: Any) -> str:
  """`rlzero.grpo.Config`: the module and the name in it."""
  # A stage's Config may be declared elsewhere; its own attribute alone counts,
  # or a class that inherits from it would answer to the same name.
  own = vars(target).get('GIN_NAME')
  return own or f'{target.__module__}.{target.__qualname__}'


def label(cls: type) -> str:
  """`grpo.Config`: the shortest name that a gin file would use."""
  depth = cls.__qualname__.count('.') + 2
  return '.'.join(full_name(cls).split('.')[-depth:])


def show_type(hint: Any) -> str:
  """A type annotation as a reader would write it."""
  plain = isinstance(hint, type) and not typing.get_args(hint)
  return hint.__name__ if plain else str(hint).replace('typing.', '')


def near(name: str, known: Collection[str]) -> str:
  """' (did you mean ...?)' where a known name is close, else ''."""
  close = difflib.get_close_matches(name, known, n=1)
  return f' (did you mean {close[0]!r}?)' if close else ''


def short_flags(cls: type) -> dict[str, str]:
  """Flags of a stage that stand for a nested field: name -> 'field.field'."""
  return dict(getattr(cls, 'SHORT_FLAGS', {}))


def flags_of(field: str, *names: str) -> dict[str, str]:
  """Entries of SHORT_FLAGS: fields of what `field` holds, by their names."""
  return {name: f'{field}.{name}' for name in names}


def nested_type(hint: Any, default: Any = None) -> type | None:
  """The dataclass that a field holds, if its type or default tells."""
  if is_settings(default):
    return type(default)
  found = [h for h in (hint, *typing.get_args(hint)) if is_dataclass(h)]
  return found[0] if len(found) == 1 else None


def default_of(field: dataclasses.Field) -> Any:
  """A field's default value, or `dataclasses.MISSING`."""
  if field.default_factory is not dataclasses.MISSING:
    return field.default_factory()
  return field.default
