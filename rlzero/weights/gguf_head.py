"""The head of a GGUF file: its metadata, and where its tensors lie.

Read here and not by the gguf library, whose reader makes several arrays of each
string: 15 s of CPU time for a vocabulary of 152,000. A count in a head is any
number of 64 bits, and is believed as far as the file has bytes for it.
"""

import math
import mmap
import os
import struct
from typing import Any, NamedTuple

import gguf
import numpy as np

from rlzero.weights.metadata import WeightsError

MAX_ENTRIES = 1 << 24  # of an array; a vocabulary has 2.6e5
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
# Of each type of value, by its number in the file.
_NUMBERS = {
  0: 'u1', 1: 'i1', 2: 'u2', 3: 'i2', 4: 'u4', 5: 'i4', 6: 'f4',
  7: '?', 10: 'u8', 11: 'i8', 12: 'f8',
}  # fmt: skip
_MAX_DEPTH = 4  # of arrays in arrays
_MAX_AXES = 4


class Tensor(NamedTuple):
  """A tensor that the head names."""

  name: str
  shape: tuple[int, ...]  # of its numbers, the fastest axis last
  kind: gguf.GGMLQuantizationType
  start: int  # of its bytes in the file
  num_bytes: int


class Head(NamedTuple):
  """Everything before the first tensor of a file."""

  metadata: dict[str, Any]  # numbers, strings and lists
  tensors: dict[str, Tensor]


def read(path: str | os.PathLike[str]) -> Head:
  """Reads the metadata and the list of tensors.

  Raises:
    WeightsError: a byte order or a type of tensor that is not read.
    ValueError: no GGUF file, or one that is too short for what its head says,
      or says more than any model has.
  """
  with open(path, 'rb') as file:
    if not os.fstat(file.fileno()).st_size:
      raise ValueError('it is empty')
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
      return _Walk(data, path).head()


class _Walk:
  """A place in the file, which only moves on within it."""

  def __init__(self, data: mmap.mmap, path: str | os.PathLike[str]):
    self._data, self._at, self._size = data, 0, len(data)
    self._path = path
    self._count = struct.Struct('<Q').unpack_from

  def head(self) -> Head:
    if self._bytes(4) != b'GGUF':
      raise ValueError('it does not begin with GGUF')
    version = int.from_bytes(self._bytes(4), 'little')
    if version & 0xFFFF == 0:
      raise WeightsError(
        f'{self._path} is of a machine that has the highest byte first; '
        "convert it with the gguf library's gguf-convert-endian."
      )
    if version not in _VERSIONS:
      raise ValueError(f'its version is {version}')
    num_tensors, num_values = self._long(), self._long()
    metadata: dict[str, Any] = {}
    for _ in range(num_values):  # each takes bytes, so this ends with the file
      key = self._text()
      _once(key, metadata)
      metadata[key] = self._value(self._int())
    tensors: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(num_tensors):
      name = self._text()
      _once(name, tensors)
      num_axes = self._int()
      if num_axes > _MAX_AXES:
        raise ValueError(f'{name} has {num_axes} axes')
      shape = tuple(self._long() for _ in range(num_axes))
      tensors[name] = shape[::-1], self._int(), self._long()
    alignment = metadata.get('general.alignment', 32)
    if type(alignment) is not int or alignment < 1:
      raise ValueError(f'its alignment is {alignment!r}')
    first = -(-self._at // alignment) * alignment
    return Head(
      metadata,
      {name: self._tensor(name, first, *it) for name, it in tensors.items()},
    )

  def _tensor(
    self, name: str, first: int, shape: tuple[int, ...], kind: int, start: int
  ) -> Tensor:
    if kind not in gguf.GGML_QUANT_SIZES:
      raise WeightsError(
        f'{self._path} stores {name} as type {kind}, which the gguf '
        'library does not know; use a file of another type, such as Q8_0.'
      )
    quantised = gguf.GGMLQuantizationType(kind)
    block, block_bytes = gguf.GGML_QUANT_SIZES[quantised]
    row = shape[-1] if shape else 1
    if 0 in shape:
      raise ValueError(f'{name} has an axis of 0')
    if row % block:
      raise ValueError(
        f'{name} has rows of {row}, and {quantised.name} has blocks of {block}'
      )
    num_bytes = math.prod(shape) // block * block_bytes
    end = first + start + num_bytes
    if end > self._size:
      raise ValueError(f'{name} ends at byte {end}, and it has {self._size}')
    return Tensor(name, shape, quantised, first + start, num_bytes)

  def _value(self, kind: int, depth: int = 0) -> Any:
    if kind in _NUMBERS:
      return self._numbers(kind, 1)[0]
    if kind == _STRING:
      return self._text()
    if kind != _ARRAY or depth >= _MAX_DEPTH:
      raise ValueError(f'a value is of type {kind}')
    inner, count = self._int(), self._long()
    if count > MAX_ENTRIES:
      raise ValueError(f'an array has {count} entries')
    if inner in _NUMBERS:
      return self._numbers(inner, count)
    if inner == _STRING:
      return self._texts(count)
    return [self._value(inner, depth + 1) for _ in range(count)]

  def _numbers(self, kind: int, count: int) -> list[Any]:
    dtype = np.dtype(_NUMBERS[kind]).newbyteorder('<')
    return np.frombuffer(self._bytes(count * dtype.itemsize), dtype).tolist()

  def _texts(self, count: int) -> list[str]:
    """Strings; the whole vocabulary passes here, so nothing is called twice."""
    data, at, size, read = self._data, self._at, self._size, self._count
    out = []
    for _ in range(count):
      start = at + 8
      if start > size:
        raise self._beyond(start)
      at = start + read(data, at)[0]
      if at > size:
        raise self._beyond(at)
      out.append(data[start:at].decode())
    self._at = at
    return out

  def _text(self) -> str:
    return self._texts(1)[0]

  def _int(self) -> int:
    return int.from_bytes(self._bytes(4), 'little')

  def _long(self) -> int:
    return int.from_bytes(self._bytes(8), 'little')

  def _bytes(self, size: int) -> bytes:
    start, self._at = self._at, self._at + size
    if self._at > self._size:
      raise self._beyond(self._at)
    return self._data[start : self._at]

  def _beyond(self, at: int) -> ValueError:
    return ValueError(f'its head goes to byte {at}, and it has {self._size}')


def _once(name: str, names: Any) -> None:
  if name in names:
    raise ValueError(f'{name!r} is there twice')
