"""The head of a GGUF file, walked through before a reader believes it.

A count in a head is any number of 64 bits. A reader that trusts it builds a
list of that many entries, of a file that may have a hundred bytes.
"""

import mmap
import os
import struct

MAX_ENTRIES = 1 << 24  # of an array; a vocabulary has 2.6e5
_STRING, _ARRAY = 8, 9
# Bytes of each type of value, by its number in the file.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_MAX_DEPTH = 4  # of arrays in arrays


def check(path: str | os.PathLike[str]) -> None:
  """Walks through the metadata and the list of tensors.

  Raises:
    ValueError: the file is too short for what its head says, or says more
      than any model has.
  """
  with open(path, 'rb') as file:
    if not os.fstat(file.fileno()).st_size:
      raise ValueError('it is empty')
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
      _Walk(data).head()


class _Walk:
  """A place in the file, which only moves on within it."""

  def __init__(self, data: mmap.mmap):
    self._data, self._at = data, 4  # behind the magic number
    self._order = '<'
    if self._number('I') & 0xFFFF == 0:  # of a machine of the other kind
      self._order = '>'

  def head(self) -> None:
    tensors, values = self._number('Q'), self._number('Q')
    for _ in range(values):  # each takes bytes, so this ends with the file
      self._text()
      self._value(self._number('I'))
    for _ in range(tensors):
      self._text()
      self._skip(8 * self._number('I') + 12)  # axes, type and place

  def _value(self, kind: int, depth: int = 0) -> None:
    if kind in _SIZES:
      self._skip(_SIZES[kind])
    elif kind == _STRING:
      self._text()
    elif kind == _ARRAY and depth < _MAX_DEPTH:
      inner, count = self._number('I'), self._number('Q')
      if count > MAX_ENTRIES:
        raise ValueError(f'an array has {count} entries')
      for _ in range(count):
        self._value(inner, depth + 1)
    else:
      raise ValueError(f'a value is of type {kind}')

  def _text(self) -> None:
    self._skip(self._number('Q'))

  def _number(self, form: str) -> int:
    size = struct.calcsize(form)
    start = self._at
    self._skip(size)
    return struct.unpack_from(self._order + form, self._data, start)[0]

  def _skip(self, size: int) -> None:
    self._at += size
    if self._at > len(self._data):
      raise ValueError(
        f'its head goes to byte {self._at}, and it has {len(self._data)}'
      )
