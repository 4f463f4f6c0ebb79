"""Files that are written whole or not at all."""

import json
import math
import os
from collections.abc import Iterable
from typing import Any


def write_whole(path: str | os.PathLike, text: str | bytes) -> None:
  """Writes a file so that a reader finds the old content or all of the new.

  The text goes to `PATH.tmp`, reaches the disk, and takes the file's place.

  Args:
    path: of the file; its folder must exist.
    text: all of it; text is written as UTF-8.

  Raises:
    OSError: the file cannot be written.
  """
  path = os.fspath(path)
  data = text.encode() if isinstance(text, str) else text
  with open(path + '.tmp', 'wb') as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
  os.replace(path + '.tmp', path)
  folder = os.open(os.path.dirname(path) or '.', os.O_RDONLY)
  try:
    os.fsync(folder)  # else the new name may be lost with the power
  finally:
    os.close(folder)


def to_json(value: Any, **options: Any) -> str:
  """JSON that any reader takes: NaN and infinities become null.

  Args:
    value: dictionaries, lists, strings and numbers.
    **options: of `json.dumps`.
  """
  return json.dumps(_finite(value), allow_nan=False, **options)


def write_json(path: str | os.PathLike, value: Any, **options: Any) -> None:
  """`to_json`, written whole, with a newline at its end."""
  write_whole(path, to_json(value, **options) + '\n')


def write_jsonl(path: str | os.PathLike, rows: Iterable[Any]) -> None:
  """A line of JSON for each row, written whole."""
  lines = [to_json(row, ensure_ascii=False) + '\n' for row in rows]
  write_whole(path, ''.join(lines))


def _finite(value: Any) -> Any:
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, dict):
    return {key: _finite(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_finite(item) for item in value]
  return value
