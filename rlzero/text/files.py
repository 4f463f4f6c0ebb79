"""Text files that others wrote, read with checks.

A file is UTF-8, with or without a byte-order mark. What is not is refused
with the file and the line: half a character would otherwise end a run hours
later, in the tokenizer or in a log.
"""

import codecs
import json
import math
import os
from collections.abc import Iterator
from typing import Any

MAX_BYTES = (
  1 << 28
)  # of a file that is read whole; tokenizer.json may have 35e6

_OTHER_MARKS = {  # longest first: UTF-32's begins like UTF-16's
  codecs.BOM_UTF32_LE: 'UTF-32',
  codecs.BOM_UTF32_BE: 'UTF-32',
  codecs.BOM_UTF16_LE: 'UTF-16',
  codecs.BOM_UTF16_BE: 'UTF-16',
}


def lines(
  path: str | os.PathLike[str], newline: str | None = None
) -> Iterator[tuple[int, str]]:
  """The lines of a file with their numbers, from 1.

  Args:
    path: of the file.
    newline: as `open` has it; '' keeps the ends of lines as they are.

  Raises:
    ValueError: another encoding, or a byte that is no text.
  """
  _refuse_other_marks(path)
  with open(
    path, encoding='utf-8-sig', errors='surrogateescape', newline=newline
  ) as file:
    for number, line in enumerate(file, start=1):
      if '\0' in line or not line.isascii():
        _check_bytes(line, f'{path}:{number}')
      yield number, line


def check_size(
  path: str | os.PathLike[str], max_bytes: int = MAX_BYTES
) -> None:
  """Refuses a file that is larger than any of its kind, before it is read.

  Raises:
    ValueError: it is.
  """
  size = os.path.getsize(path)
  if size > max_bytes:
    raise ValueError(
      f'{path} has {size} bytes, and no file of its kind has more than '
      f'{max_bytes}; copy or download the right one.'
    )


def check_text(text: str, place: str) -> None:
  """Refuses what is no Unicode text.

  Raises:
    ValueError: half of a surrogate pair.
  """
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f'{place} holds half a surrogate pair ({ascii(text[error.start])} at '
      f'character {error.start + 1}), which is no character; remove it.'
    ) from error


def read(path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> str:
  """A whole file.

  Raises:
    ValueError: too large, another encoding, or a byte that is no text.
  """
  check_size(path, max_bytes)
  return ''.join(line for _, line in lines(path, newline=''))


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
  """The object of a JSON file.

  Raises:
    ValueError: the file is not a JSON object, or `read` refuses it.
  """
  found = parse_json(read(path), str(path), 'copy or download it again')
  if not isinstance(found, dict):
    raise ValueError(
      f'{path} holds a JSON {type(found).__name__}, not an object; copy or '
      'download it again.'
    )
  return found


def parse_json(text: str, place: str, remedy: str) -> Any:
  """JSON as its standard has it: no NaN, no infinity, whole characters.

  A number that is not whole comes as `Number`.

  Args:
    text: to parse.
    place: where it stands, for errors.
    remedy: what the reader of an error should do.

  Raises:
    ValueError: the text is something else.
  """
  try:
    start = len(text) - len(text.lstrip(_SPACE))
    found, end = _DECODER.raw_decode(text, start)
    if text[end:].strip(_SPACE):
      raise ValueError('Extra data')
  except RecursionError as error:
    raise ValueError(
      f'{place} is not JSON that is read here (too deeply nested); {remedy}.'
    ) from error
  except ValueError as error:
    why = getattr(error, 'msg', str(error))
    raise ValueError(f'{place} is not JSON ({why}); {remedy}.') from error
  if '\\' in text and '\\ud' in text.lower():  # may be half a pair
    try:
      json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
      half = error.object[error.start]
      raise ValueError(
        f'{place} holds half a surrogate pair ({ascii(half)}), which is no '
        f'character; {remedy}.'
      ) from error
  return found


class Number(float):
  """A number of a JSON file, which as text is what the file has: 1.50."""

  text: str

  def __new__(cls, text: str) -> 'Number':
    number = super().__new__(cls, text)
    if not math.isfinite(number):
      raise ValueError(f'{text} is too large for a number')
    number.text = text
    return number

  def __str__(self) -> str:
    return self.text

  def __reduce__(self) -> tuple[type, tuple[str]]:
    return Number, (self.text,)


def _refuse_constant(name: str) -> None:
  raise ValueError(f'{name} is no JSON value')


_SPACE = ' \t\n\r'
# One for all lines: to make it takes longer than most lines do.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=Number)


def _refuse_other_marks(path: str | os.PathLike[str]) -> None:
  with open(path, 'rb') as file:
    start = file.read(4)
  for mark, encoding in _OTHER_MARKS.items():
    if start.startswith(mark):
      raise ValueError(
        f'{path} is {encoding}, and UTF-8 is read here; convert it: '
        f'iconv -f {encoding} -t UTF-8.'
      )


def _check_bytes(line: str, place: str) -> None:
  if '\0' in line:
    raise ValueError(
      f'{place} holds a NUL byte, so the file is damaged or not UTF-8; copy '
      'it again or convert it.'
    )
  try:
    line.encode()
  except UnicodeEncodeError as error:
    byte = ord(line[error.start]) & 0xFF
    raise ValueError(
      f'{place} is not UTF-8 (byte 0x{byte:02x} at character '
      f'{error.start + 1}); convert the file or correct the line.'
    ) from error
