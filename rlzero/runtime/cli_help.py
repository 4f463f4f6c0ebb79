"""`--help` of every stage, and the list of all settings."""

import ast
import dataclasses
import functools
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

from rlzero.runtime import lifecycle, naming


class Setting(NamedTuple):
  """A field of a stage's settings."""

  stage: str  # 'grpo'
  field: str  # 'sampling.max_len': its path from the stage's Config
  flag: str  # '--max_len'; '' where only a gin file sets it
  type: str
  default: str  # '' where there is none
  comment: str


def list_settings(stage: types.ModuleType) -> Iterator[Setting]:
  """Every field of a stage's Config and of the settings nested in it."""
  name = stage.__name__.rpartition('.')[2]
  short = {p: n for n, p in naming.short_flags(stage.Config).items()}
  for path, (cls, field, default) in nested_fields(stage.Config):
    dotted = '.'.join(path)
    yield Setting(
      name,
      dotted,
      f'--{short.get(dotted, dotted)}',
      naming.show_type(typing.get_type_hints(cls)[field.name]),
      '' if default is dataclasses.MISSING else _shown(default),
      _comments(cls).get(field.name, ''),
    )


def nested_fields(
  cls: type, default: Any = None, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], tuple[type, dataclasses.Field, Any]]]:
  """(path, (class, field, default value)) of a Config and what is in it."""
  hints = typing.get_type_hints(cls)
  for field in dataclasses.fields(cls):
    if not field.init:
      continue
    value = (
      naming.default_of(field)
      if default is None
      else getattr(default, field.name)
    )
    here = (*path, field.name)
    yield here, (cls, field, value)
    inner = naming.nested_type(hints[field.name], value)
    if inner and len(here) < 4:  # a class may hold its own kind
      settings = value if naming.is_settings(value) else None
      yield from nested_fields(inner, settings, here)


def text(stage: types.ModuleType) -> str:
  """The page that `--help` prints."""
  several = getattr(stage, 'SEVERAL_HOSTS', False)
  describe = ' [--describe]' if hasattr(stage, 'describe') else ''
  lines = [
    f'python -m {stage.__name__} [--gin_file=FILE ...] '
    f'[--gin.SELECTOR=VALUE ...] [--name=value ...]{describe}',
    *(
      [f'on several hosts: {" ".join(lifecycle.HOST_FLAGS)}'] if several else []
    ),
    '',
    (inspect.getdoc(stage) or '').partition('\n')[0],
    '',
    f'--name is a field of {naming.label(stage.Config)}, --field.name a field '
    'of what one holds; all are set with --gin. or in a gin file too. '
    'RLZERO_TRACEBACK=1 shows the traceback of an error.',
  ]
  if short := naming.short_flags(stage.Config):
    lines += ['', 'short flags']
    lines += [f'  --{name} is --{path}' for name, path in short.items()]
  shown: dict[type, list[str]] = {}
  for path, (cls, field, default) in nested_fields(stage.Config):
    line = _line(cls, field, default, '--' * (len(path) == 1))
    rows = shown.setdefault(cls, [])
    if not any(row.split(':')[0] == line.split(':')[0] for row in rows):
      rows.append(line)
  for cls, rows in shown.items():
    lines += ['', naming.label(cls), *rows]
  return '\n'.join(lines)


def _line(cls: type, field: dataclasses.Field, default: Any, dash: str) -> str:
  hint = naming.show_type(typing.get_type_hints(cls)[field.name])
  comment = _comments(cls).get(field.name, '')
  value = (
    ' (required)' if default is dataclasses.MISSING else f' = {_shown(default)}'
  )
  return f'  {dash}{field.name}: {hint}{value}{"  # " * bool(comment)}{comment}'


def _shown(default: Any) -> str:
  """A default value; settings by their class, as their fields follow."""
  if naming.is_settings(default):
    return f'@{naming.label(type(default))}()'
  return repr(default)


@functools.cache
def _comments(cls: type) -> dict[str, str]:
  """The comment beside, or else right above, each field of a dataclass."""
  comments: dict[str, str] = {}
  for base in filter(naming.is_dataclass, reversed(cls.__mro__)):
    source = textwrap.dedent(inspect.getsource(base))
    lines = source.splitlines()
    (declared,) = ast.parse(source).body
    assert isinstance(declared, ast.ClassDef)
    for node in declared.body:
      if isinstance(node, ast.AnnAssign):
        name = ast.unparse(node.target)
        # Offsets count bytes, and a default may hold more than ASCII.
        end = (node.end_lineno or node.lineno) - 1
        beside = lines[end].encode()[node.end_col_offset :]
        if b'#' in beside:
          comments[name] = beside.decode().strip(' #')
        elif above := _lines_above(lines[: node.lineno - 1]):
          comments[name] = above
  return comments


def _lines_above(lines: list[str]) -> str:
  """The comment that ends right here, of however many lines."""
  comment: list[str] = []
  while lines and lines[-1].strip().startswith('#'):
    comment.insert(0, lines.pop().strip(' #'))
  return ' '.join(comment)
