"""Files that are written whole or not at all."""

import contextlib
import errno
import hashlib
import json
import math
import os
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

_NO_FSYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EROFS}


def write_whole(
  path: str | os.PathLike, text: str | bytes, suffix: str = '.tmp'
) -> None:
  """Writes a file so that a reader finds the old content or all of the new.

  The text goes to `PATH.tmp`, reaches the disk, and takes the file's place.

  Args:
    path: of the file; its folder is made if it is missing.
    text: all of it; text is written as UTF-8.
    suffix: see `open_whole`.

  Raises:
    OSError: the file cannot be written.
  """
  data = text.encode() if isinstance(text, str) else text
  with open_whole(path, suffix) as file:
    file.write(data)


@contextlib.contextmanager
def open_whole(
  path: str | os.PathLike, suffix: str = '.tmp'
) -> Iterator[BinaryIO]:
  """Opens a file for writing that others see when all of it is written.

  Args:
    path: of the file; its folder is made if it is missing.
    suffix: of the file that is written meanwhile; `own_suffix` where others
      may write the same.

  Raises:
    OSError: the file cannot be written.
  """
  path = os.path.abspath(path)
  folder = os.path.dirname(path)
  os.makedirs(folder, exist_ok=True)
  try:
    with open(path + suffix, 'wb') as file:
      yield file
      file.flush()
      sync(file.fileno())
  except BaseException:
    with contextlib.suppress(OSError):
      os.unlink(path + suffix)
    raise
  os.replace(path + suffix, path)
  _sync_folder(folder)


def own_suffix() -> str:
  """A suffix that no other process, host or thread has, for `open_whole`."""
  return f'.{uuid.uuid4().hex}.tmp'


def cache_folder(name: str) -> str:
  """A folder of rlzero's cache in the home, or where XDG_CACHE_HOME says."""
  caches = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return os.path.join(caches, 'rlzero', name)


def digest(path: str | os.PathLike) -> str:
  """The first 16 hex digits of the SHA-256 of a file.

  Raises:
    ValueError: it cannot be read.
  """
  try:
    with open(path, 'rb') as file:
      return hashlib.file_digest(file, 'sha256').hexdigest()[:16]
  except OSError as error:
    raise ValueError(
      f'{path} cannot be read ({error.strerror}); paths are relative to the '
      'current folder.'
    ) from error


def sync(file: int) -> None:
  """`os.fsync`, on file systems that have it; without one there is no error.

  Args:
    file: descriptor of an open file.
  """
  try:
    os.fsync(file)
  except OSError as error:
    if error.errno not in _NO_FSYNC:
      raise


def _sync_folder(folder: str) -> None:
  """Brings the names in a folder to the disk, where the system can."""
  opened = os.open(folder, os.O_RDONLY)
  try:
    with contextlib.suppress(OSError):  # not on every network file system
      os.fsync(opened)
  finally:
    os.close(opened)


def to_json(value: Any, **options: Any) -> str:
  """JSON that any reader takes: NaN and infinities become null.

  Args:
    value: dictionaries, lists, strings and numbers.
    **options: of `json.dumps`.
  """
  try:
    return json.dumps(value, allow_nan=False, **options)
  except ValueError:  # rarely, so that the copy is rarely made
    return json.dumps(_finite(value), allow_nan=False, **options)


def write_json(
  path: str | os.PathLike, value: Any, suffix: str = '.tmp', **options: Any
) -> None:
  """`to_json`, written whole (see `write_whole`), with a newline at its end."""
  write_whole(path, to_json(value, **options) + '\n', suffix)


def write_jsonl(
  path: str | os.PathLike, rows: Iterable[Any], **options: Any
) -> None:
  """A line of JSON for each row, written whole."""
  write_whole(path, ''.join(to_json(row, **options) + '\n' for row in rows))


def _finite(value: Any) -> Any:
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, dict):
    return {key: _finite(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_finite(item) for item in value]
  return value
