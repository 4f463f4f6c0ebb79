"""Functions that a user wrote, from a Python file: 'my_file.py:name'.

The file runs in this process, with all that the process may do. Its digest is
part of a run's identity (`saved_config`): a run does not resume with another.
"""

import functools
import hashlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

Function = Callable[..., Any]


def load(spec: str) -> Function:
  """The function that 'path/to/file.py:name' names.

  Args:
    spec: a path, relative to the current folder or not, and a name in it.

  Raises:
    ValueError: no such file, no such function, or a file that cannot be run.
  """
  path, name = _parts(spec)
  module = _module(os.path.realpath(path), digest(spec))
  if not hasattr(module, name):
    raise ValueError(
      f'{path} has no function {name!r}; define it there, or name another '
      "after the colon of 'file.py:name'."
    )
  function = getattr(module, name)
  if not callable(function):
    raise ValueError(
      f'{name!r} in {path} is {type(function).__name__}, not a function.'
    )
  return function


def digest(spec: str) -> str:
  """The first 16 hex digits of the SHA-256 of a function's file.

  Raises:
    ValueError: there is no such file.
  """
  path, _ = _parts(spec)
  try:
    with open(path, 'rb') as file:
      return hashlib.sha256(file.read()).hexdigest()[:16]
  except OSError as error:
    raise ValueError(
      f'The function {spec!r} cannot be read ({error.strerror}); paths are '
      'relative to the current folder.'
    ) from error


def _parts(spec: str) -> tuple[str, str]:
  path, colon, name = spec.rpartition(':')
  if not colon or not path.endswith('.py') or not name.isidentifier():
    raise ValueError(
      f'{spec!r} names no function; write the file and the name in it, '
      "'my_file.py:name'."
    )
  return path, name


@functools.cache
def _module(path: str, of_digest: str) -> Any:
  """Runs a file once, and again when it has changed."""
  spec = importlib.util.spec_from_file_location(
    f'rlzero_user_{of_digest}', path
  )
  assert spec and spec.loader  # the path ends in .py
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except Exception as error:
    raise ValueError(
      f'{path} cannot be run ({type(error).__name__}: {error}); it must be '
      'Python that can be imported.'
    ) from error
  return module
