"""Reads gin files and flags into bindings, each with the place it stands.

gin's parser reads the files; the statements are carried out here, because
gin's own registry keeps neither file nor line, is global, and drops mistyped
macros in silence. The language is gin with dynamic registration, where

  * what is configured is a dataclass, referred to as `@module.Class()`; a
    reference without parentheses hands over a function as it is;
  * `include` stands before the first binding of its file and a file is
    included once, so that a file's own bindings always win; a later
    `--gin_file` wins over an earlier one, and flags win over files;
  * a macro or a binding that nothing refers to is an error.
"""

import dataclasses
import functools
import importlib
import os
import sys
import tokenize
import types
import typing
from collections.abc import Collection
from typing import Any, NamedTuple

from gin import config_parser

import rlzero
from rlzero.runtime import naming
from rlzero.runtime.naming import UserError


class Reference(NamedTuple):
  """A value `@module.Class` or `@module.Class()`."""

  name: str  # with its scope: 'held_out/countdown.Countdown'
  call: bool


class Macro(NamedTuple):
  """A value `%NAME`."""

  name: str


class Binding(NamedTuple):
  """A value that a file or a flag gives to a field, and its place."""

  value: Any
  where: str  # 'file:line', or the flag
  names: dict[str, Any]  # what the file it stands in has imported


class _FlagNames(dict):
  """The names that flags may use: imports of every file, rlzero's modules."""

  def __missing__(self, name: str) -> Any:
    if name == 'rlzero':
      return rlzero
    found = _modules().get(name, [])
    if f'rlzero.{name}' in found:
      found = [f'rlzero.{name}']
    if len(found) > 1:
      raise UserError(
        f'{name} may be {" or ".join(sorted(found))} here; write the whole '
        'name, --gin.rlzero.PACKAGE.MODULE.CLASS.FIELD=VALUE.'
      )
    if not found:
      raise KeyError(name)
    return importlib.import_module(found[0])


def _installed(path: str) -> str:
  """A gin file of the current folder, or of those that rlzero comes with.

  They stand in a checkout beside the package, in a wheel inside of it.
  """
  if path.startswith('configs/') and not os.path.exists(path):
    package = os.path.dirname(rlzero.__file__)
    for folder in (package, os.path.dirname(package)):
      found = os.path.join(folder, path)
      if os.path.isfile(found):
        return found
  return path


class _Delegate(config_parser.ParserDelegate):
  """Lets references stand as they are until every file has been read."""

  def configurable_reference(self, scoped_configurable_name, evaluate):
    return Reference(scoped_configurable_name, evaluate)

  def macro(self, macro_name):
    return Macro(macro_name)


class Bindings:
  """The bindings that the files and the flags of one stage make."""

  def __init__(self, stage: types.ModuleType):
    self.stage = stage
    self.macros: dict[str, Binding] = {}
    # By scope and class; and by the path of a field from the stage's Config.
    self.fields: dict[tuple[str, type], dict[str, Binding]] = {}
    self.paths: dict[tuple[str, ...], Binding] = {}
    self._read: set[str] = set()  # real paths of the files
    self._flag_names = _FlagNames({stage.__name__.rpartition('.')[2]: stage})
    # A value that a later one overrides counts as used all the same: a flag
    # that swaps the task must not make errors of the old task's bindings.
    self.used_macros: dict[str, str] = {}  # to where
    self.used_classes: set[type] = {stage.Config}
    self.used_scopes: set[str] = set()

  def read_file(self, path: str, by: str) -> None:
    path = _installed(path)
    self._read.add(os.path.realpath(path))
    try:
      with open(path, encoding='utf-8', errors='replace') as file:
        statements = list(config_parser.ConfigParser(file, _Delegate()))
    except OSError as error:
      raise UserError(
        f'The gin file {path!r} ({by}) cannot be read ({error.strerror}); '
        'paths are relative to the current folder, or to the including file; '
        'those of rlzero begin with configs/.'
      ) from error
    except (SyntaxError, tokenize.TokenError) as error:
      line = getattr(error, 'lineno', None) or error.args[1][0]
      raise UserError(
        f'{path}:{line} is not gin syntax: {_brief(error)}'
      ) from error
    names: dict[str, Any] = {}
    seen: dict[Any, str] = {}
    for statement in statements:
      where = f'{path}:{statement.location.line_num}'
      match statement:
        case config_parser.ImportStatement():
          if statement.module != '__gin__.dynamic_registration':
            name, target = _import(statement, where)
            names[name] = self._flag_names[name] = target
        case config_parser.IncludeStatement(filename=name):
          if seen:
            raise UserError(
              f'{where} includes {name!r} after a binding, which it might '
              'undo; move the include above the bindings.'
            )
          beside = os.path.join(os.path.dirname(path), name)
          included = _installed(beside if os.path.exists(beside) else name)
          if os.path.realpath(included) not in self._read:
            self.read_file(included, where)
        case config_parser.BindingStatement():
          key = self._bind(statement, where, names)
          if key in seen:
            raise UserError(
              f'{where} sets {key[-1]} a second time, after {seen[key]}; '
              'keep one of the two.'
            )
          seen[key] = where

  def read_flag(self, key: str, text: str, flag: str) -> None:
    try:
      parser = config_parser.ConfigParser(f'{key} = {text}', _Delegate())
      for statement in parser:
        self._bind(statement, flag, self._flag_names)
    except (SyntaxError, tokenize.TokenError) as error:
      raise UserError(
        f'{flag!r} is not gin syntax: {_brief(error)} (a string needs quotes '
        'inside those of the shell: --gin.x.y=\'"text"\').'
      ) from error

  def read_path(self, path: tuple[str, ...], text: str, flag: str) -> None:
    """Notes a flag that sets a field by its path from the stage's Config."""
    try:
      parser = config_parser.ConfigParser(f'flag = {text}', _Delegate())
      statement = next(iter(parser))
    except (SyntaxError, tokenize.TokenError) as error:
      raise UserError(
        f'{flag!r} is not a value that gin can read: {_brief(error)}.'
      ) from error
    assert isinstance(statement, config_parser.BindingStatement)
    binding = Binding(statement.value, flag, self._flag_names)
    self._note_uses(statement.value, binding)
    if len(path) == 1:
      self.fields.setdefault(('', self.stage.Config), {})[path[0]] = binding
    else:
      self.paths[path] = binding

  def _bind(self, statement, where: str, names: dict[str, Any]) -> tuple:
    """Notes a binding and returns its key, with a readable name last."""
    scope, selector, field, value, _ = statement
    binding = Binding(value, where, names)
    self._note_uses(value, binding)
    if not field:
      name = f'{scope}/{selector}' if scope else selector
      self.macros[name] = binding
      return 'macro', name
    target = resolve(selector, binding)
    if not naming.is_dataclass(target):
      raise UserError(
        f'{selector}.{field} ({where}) sets a field of something that is not '
        'a dataclass; only dataclasses are configured.'
      )
    known = [f.name for f in dataclasses.fields(target) if f.init]
    if field not in known:
      raise UserError(
        f'{selector}.{field} ({where}) is not a field of '
        f'{naming.full_name(target)}{_hint(target, field, known)}; --help '
        'lists them.'
      )
    self.fields.setdefault((scope, target), {})[field] = binding
    return scope, target, f'{selector}.{field}'

  def _note_uses(self, value: Any, binding: Binding) -> None:
    match value:
      case Macro(name):
        self.used_macros[name] = binding.where
      case Reference(name, call):
        scope, _, selector = name.rpartition('/')
        target = resolve(selector, binding)
        if call != naming.is_dataclass(target):
          raise UserError(
            f'@{name}{"()" * call} ({binding.where}) should be '
            f'@{name}{"()" * (not call)}: dataclasses are called, anything '
            'else is handed over as it is.'
          )
        if call:
          self.used_classes.add(target)
          self.used_scopes.add(scope)
      case list() | tuple():
        for item in value:
          self._note_uses(item, binding)
      case dict():
        self._note_uses([*value, *value.values()], binding)


def _import(statement, where: str) -> tuple[str, Any]:
  name = statement.bound_name()
  try:
    if statement.is_from:
      parent, _, child = statement.module.rpartition('.')
      return name, _child(importlib.import_module(parent), child)
    module = importlib.import_module(statement.module)
    return name, module if statement.alias else sys.modules[name]
  except ImportError as error:
    raise UserError(
      f'{where} cannot import {statement.module}: {_brief(error)}.'
    ) from error


def resolve(selector: str, binding: Binding) -> Any:
  """Resolves `module.Class` among the imports at that place."""
  target: Any = binding.names
  for part in selector.split('.'):
    known = target if isinstance(target, dict) else dir(target)
    try:
      target = (
        target[part] if isinstance(target, dict) else _child(target, part)
      )
    except (KeyError, ImportError, AttributeError) as error:
      raise UserError(
        f'{selector} ({binding.where}): {part!r} is '
        f'{"not imported" if known is binding.names else "unknown"}'
        f'{naming.near(part, known)}; name it as module.Class, after an import '
        'of its module in the same gin file.'
      ) from error
  return target


def _child(parent: Any, name: str) -> Any:
  """An attribute, or a submodule that nobody has imported yet."""
  if isinstance(parent, types.ModuleType) and not hasattr(parent, name):
    return importlib.import_module(f'{parent.__name__}.{name}')
  return getattr(parent, name)


def _hint(cls: type, field: str, known: Collection[str]) -> str:
  """Suggests a field for one that a class does not have."""
  path = naming.short_flags(cls).get(field)
  if not path:
    return naming.near(field, known)
  *parents, _ = path.split('.')
  for parent in parents:
    hint = typing.get_type_hints(cls)[parent]
    cls = naming.nested_type(hint) or cls
  return f' (it is {naming.label(cls)}.{field}, in `{path}`)'


@functools.cache
def _modules() -> dict[str, list[str]]:
  """Names of rlzero's modules, by their last part."""
  found: dict[str, list[str]] = {}
  (root,) = rlzero.__path__
  for folder, folders, names in os.walk(root):
    folders[:] = [f for f in folders if f.isidentifier() and f != '__pycache__']
    parent = os.path.relpath(folder, os.path.dirname(root)).replace('/', '.')
    for name in (*folders, *(n[:-3] for n in names if n.endswith('.py'))):
      if name != '__init__':
        found.setdefault(name, []).append(f'{parent}.{name}')
  return found


def _brief(error: Exception) -> str:
  """The last line of a message; gin puts the point there."""
  return str(error.args[0]).strip().splitlines()[-1].strip().rstrip('.')
