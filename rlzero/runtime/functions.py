"""Functions that a user wrote, from a Python file: 'my_file.py:name'.

`signature` reads a file and runs nothing; `load` runs it in this process, with
all that the process may do. The digest of a function is part of a run's
identity (`saved_config`): a run does not resume with another.
"""

import ast
import functools
import hashlib
import importlib.util
import inspect
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

# Found as ever, whatever lies beside a file.
_NOT_THEIRS = sys.stdlib_module_names | {'rlzero'}

Function = Callable[..., Any]
_Def = ast.FunctionDef | ast.AsyncFunctionDef


class Signature(NamedTuple):
  """The parameters of a function as its file states them."""

  parameters: inspect.Signature
  # Names that it reads from its `**` parameter: ['name'], and .get('name').
  needed: frozenset[str] = frozenset()
  wanted: frozenset[str] = frozenset()


def load(spec: str) -> Function:
  """The function that 'path/to/file.py:name' names.

  The file may import modules that lie beside it.

  Args:
    spec: a path, relative to the current folder or not, and a name in it.

  Raises:
    ValueError: no such file, no such function, or a file that cannot be run.
  """
  path, name = _parts(spec)
  module = _module(os.path.realpath(path), digest(spec))
  if not hasattr(module, name):
    raise _no_function(path, name)
  function = getattr(module, name)
  if not callable(function):
    raise ValueError(
      f'{name!r} in {path} is {type(function).__name__}, not a function.'
    )
  return function


def digest(spec: str) -> str:
  """The first 16 hex digits of a SHA-256: of its file and its imports.

  Of these only the modules that lie beside the file, which are the user's.

  Raises:
    ValueError: there is no such file.
  """
  path, _ = _parts(spec)
  hashed = hashlib.sha256(_source(spec))
  folder = pathlib.Path(path).resolve().parent
  for file in sorted(_beside(folder, pathlib.Path(path).resolve())):
    hashed.update(f'{file.relative_to(folder)}\0'.encode())
    hashed.update(hashlib.sha256(file.read_bytes()).digest())
  return hashed.hexdigest()[:16]


def signature(spec: str) -> Signature | None:
  """The parameters of a function; its file is read, and nothing of it is run.

  None where the name is bound by something else than a `def`: an import, say.

  Raises:
    ValueError: no such file, one that is not Python, or no such name in it.
  """
  path, name = _parts(spec)
  try:
    tree = ast.parse(_source(spec), path)
  except (SyntaxError, ValueError) as error:
    line = getattr(error, 'lineno', None) or 1
    raise ValueError(
      f'{path}:{line} is not Python ({getattr(error, "msg", error)}); correct '
      'it.'
    ) from None
  bound = dict(_bindings(tree.body))  # the last binding of a name counts
  if name not in bound and '*' not in bound:
    raise _no_function(path, name)
  found = bound.get(name)
  return None if found is None else _stated(found)


def _no_function(path: str, name: str) -> ValueError:
  return ValueError(
    f'{path} has no function {name!r}; define it there, or name another '
    "after the colon of 'file.py:name'."
  )


def _parts(spec: str) -> tuple[str, str]:
  path, colon, name = spec.rpartition(':')
  if not colon or not path.endswith('.py') or not name.isidentifier():
    raise ValueError(
      f'{spec!r} names no function; write the file and the name in it, '
      "'my_file.py:name'."
    )
  return path, name


def _source(spec: str) -> bytes:
  path, _ = _parts(spec)
  try:
    with open(path, 'rb') as file:
      return file.read()
  except OSError as error:
    raise ValueError(
      f'The function {spec!r} cannot be read ({error.strerror}); paths are '
      'relative to the current folder.'
    ) from error


def _beside(folder: pathlib.Path, path: pathlib.Path) -> set[pathlib.Path]:
  """The files of a folder that one of them imports, and those that they do."""
  found: set[pathlib.Path] = set()
  ahead = [path]
  while ahead:
    for module in _imported(ahead.pop().read_bytes()):
      stem = folder.joinpath(*module.split('.'))
      for file in (stem.with_suffix('.py'), stem / '__init__.py'):
        if file.is_file() and file not in {*found, path}:
          found.add(file)
          ahead.append(file)
  return found


def _imported(source: bytes) -> set[str]:
  """Names of modules that a file imports, anywhere in it."""
  try:
    tree = ast.parse(source)
  except (SyntaxError, ValueError):
    return set()
  found: set[str] = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      names = [alias.name for alias in node.names]
      module = node.module or ''
      found |= {module, *(f'{module}.{name}'.strip('.') for name in names)}
  # `import a.b` runs a as well.
  found |= {name.partition('.')[0] for name in found}
  return found - {''}


def _bindings(body: list[ast.stmt]) -> Iterator[tuple[str, _Def | None]]:
  """The names that statements bind, in their order; a `def` with its node."""
  for node in body:
    match node:
      case ast.FunctionDef() | ast.AsyncFunctionDef():
        yield node.name, node
      case ast.ClassDef():
        yield node.name, None
      case ast.Import() | ast.ImportFrom():
        for alias in node.names:
          yield (alias.asname or alias.name).partition('.')[0], None
      case _:
        for child in ast.walk(node):
          if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            yield child.id, None
        for part in ('body', 'handlers', 'orelse', 'finalbody'):
          for inner in getattr(node, part, []):
            yield from _bindings(
              inner.body if isinstance(inner, ast.ExceptHandler) else [inner]
            )


def _stated(node: _Def) -> Signature:
  kinds, empty = inspect.Parameter, inspect.Parameter.empty
  stated = node.args
  first = len(stated.posonlyargs)
  plain = [*stated.posonlyargs, *stated.args]
  found = [
    kinds(
      arg.arg,
      kinds.POSITIONAL_ONLY if i < first else kinds.POSITIONAL_OR_KEYWORD,
      default=empty if i < len(plain) - len(stated.defaults) else None,
    )
    for i, arg in enumerate(plain)
  ]
  if stated.vararg:
    found.append(kinds(stated.vararg.arg, kinds.VAR_POSITIONAL))
  found += [
    kinds(arg.arg, kinds.KEYWORD_ONLY, default=None if default else empty)
    for arg, default in zip(stated.kwonlyargs, stated.kw_defaults, strict=True)
  ]
  if stated.kwarg is None:
    return Signature(inspect.Signature(found))
  found.append(kinds(stated.kwarg.arg, kinds.VAR_KEYWORD))
  needed, wanted = _read_from(node, stated.kwarg.arg)
  return Signature(inspect.Signature(found), needed, wanted - needed)


def _read_from(node: _Def, name: str) -> tuple[frozenset[str], frozenset[str]]:
  """The keys that a function reads from a dictionary: name['k'], .get('k')."""
  needed, wanted = set(), set()
  for child in ast.walk(node):
    match child:
      case ast.Subscript(value=ast.Name(id=owner), slice=ast.Constant(key)):
        if owner == name:
          needed.add(key)
      case ast.Call(
        func=ast.Attribute(value=ast.Name(id=owner), attr='get' | 'pop'),
        args=[ast.Constant(key), *_],
      ):
        if owner == name:
          wanted.add(key)
  return (
    frozenset(key for key in needed if isinstance(key, str)),
    frozenset(key for key in wanted if isinstance(key, str)),
  )


def _check_beside(path: str) -> None:
  """Refuses imports that would find a module of that name from elsewhere."""
  folder = pathlib.Path(path).parent
  for file in sorted(_beside(folder, pathlib.Path(path))):
    parts = file.relative_to(folder).with_suffix('').parts
    name = '.'.join(parts).removesuffix('.__init__')
    loaded = getattr(sys.modules.get(name), '__file__', None)
    if loaded is None or parts[0] in _NOT_THEIRS:
      continue
    if os.path.realpath(loaded) != os.path.realpath(file):
      raise ValueError(
        f'{path} imports {name!r}, which is {file}, but {loaded} is loaded by '
        'that name already; give one of them another name.'
      )


@functools.cache
def _module(path: str, of_digest: str) -> Any:
  """Runs a file once, and again when it has changed.

  Raises:
    ValueError: it cannot be run, or would be given another module than the one
      beside it.
  """
  _check_beside(path)
  name = f'rlzero_user_{of_digest}'
  spec = importlib.util.spec_from_file_location(name, path)
  assert spec and spec.loader  # the path ends in .py
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module  # where dataclasses look
  folder = os.path.dirname(path)
  sys.path.insert(0, folder)
  try:
    spec.loader.exec_module(module)
  except (Exception, SystemExit) as error:
    del sys.modules[name]
    raise ValueError(
      f'{path} cannot be run ({type(error).__name__}: {error}); it must be '
      'Python that can be imported.'
    ) from error
  finally:
    # Behind all others, for imports that wait for a call: its modules must not
    # take the place of ours.
    if folder in sys.path:
      sys.path.remove(folder)
    if folder not in sys.path:
      sys.path.append(folder)
  return module
