"""One line of a weight table: a parameter here, its tensors in files.

Parameters are nested dicts of arrays, layers stacked on axis L; the letters
are those of `rlzero/types.py`. A file may hold a stacked axis as one tensor
for each index, {L} or {E} in the name, or as an axis of one tensor.
"""

import concurrent.futures
import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlzero.models import parameters

Index = tuple[slice, ...]
_PIECE = 16 * 2**20  # numbers of a tensor that are read at a time
# And of one that is dequantised meanwhile: what a core's cache holds, twice.
_GGUF_PIECE = 2**17
_THREADS = min(8, os.cpu_count() or 1)


class Stored(NamedTuple):
  """A tensor in a file; any part of it can be read, and nothing is before."""

  file: str
  shape: tuple[int, ...]
  read: Callable[[Index], np.ndarray]
  kind: str = ''  # of its numbers, as the file calls it


@dataclasses.dataclass(frozen=True)
class Lazy:
  """A parameter in files, read where and when it is indexed."""

  row: 'Row'
  tensors: Mapping[str, Stored]
  naming: str
  sizes: Mapping[str, int]  # of the axes, by letter

  @property
  def shape(self) -> tuple[int, ...]:
    return self.row.shape(self.sizes)

  def read(self, index: Index, dtype: np.dtype | None = None) -> np.ndarray:
    """The part that a slice of each axis gives; their type by default."""
    return self.row.read(self.tensors, self.naming, self.sizes, index, dtype)

  def __getitem__(self, place: tuple[int | slice, ...]) -> np.ndarray:
    index = tuple(slice(i, i + 1) if isinstance(i, int) else i for i in place)
    part = self.read(index)
    return part[tuple(0 if isinstance(i, int) else slice(None) for i in place)]


@dataclasses.dataclass(frozen=True)
class Row:
  """One parameter: where it lives here, and its name and layout in files.

  Its axes are those that `models/parameters.py` declares for the last part of
  the path. An axis whose letter stands in braces in a name in files,
  'layers.{L}.experts.{E}.up', is no dimension there: each index of it has a
  tensor of its own.
  """

  path: str
  hf: str
  gguf: str = ''  # no name: GGUF files do not have it
  layers: range = range(0)  # of the model, that axis L runs over
  from_gguf: Callable[[np.ndarray], np.ndarray] | None = None  # undoes theirs
  to_gguf: Callable[[np.ndarray], np.ndarray] | None = None  # its inverse

  @property
  def param(self) -> parameters.Param:
    """The declaration of the parameter."""
    return parameters.PARAMS[self.path.split('/')[-1]]

  @property
  def letters(self) -> str:
    """Axes of the parameter."""
    return 'L' * bool(self.layers) + self.param.axes

  def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Shape of the parameter; `sizes` are lengths of axes, by letter."""
    return tuple(self._size(sizes, letter) for letter in self.letters)

  def file_shape(
    self, naming: str, sizes: Mapping[str, int]
  ) -> tuple[int, ...]:
    """Shape of each tensor in the file."""
    return tuple(
      math.prod(self._size(sizes, letter) for letter in dim)
      for dim in self._dims(naming)
    )

  def names(self, naming: str, sizes: Mapping[str, int]) -> list[str]:
    """Names of the tensors in the file, for naming 'hf' or 'gguf'."""
    return [name for name, _ in self.parts(naming, sizes)]

  def parts(
    self,
    naming: str,
    sizes: Mapping[str, int],
    index: Index | None = None,
  ) -> Iterator[tuple[str, tuple[int | slice, ...]]]:
    """Each tensor that a part of the parameter takes, and its place there.

    Args:
      naming: 'hf' or 'gguf'.
      sizes: of the axes.
      index: a slice of each axis; all by default.

    Yields:
      the name and where in `parameter[index]` it goes: a number for an axis
      in the name, slice(None) for the others.
    """
    name = getattr(self, naming)
    named = self._named(naming)
    bounds = self._bounds(sizes, index)
    ranges = [range(*bounds[letter]) for letter in named]
    for numbers in itertools.product(*ranges):
      chosen = dict(zip(named, numbers, strict=True))
      place = tuple(
        chosen[a] - bounds[a][0] if a in chosen else slice(None)
        for a in self.letters
      )
      if 'L' in chosen:
        chosen['L'] = self.layers[chosen['L']]
      yield name.format(**chosen), place

  def read(
    self,
    tensors: Mapping[str, Stored],
    naming: str,
    sizes: Mapping[str, int],
    index: Index,
    dtype: np.dtype | None = None,
  ) -> np.ndarray:
    """`parameter[index]`, from those parts of the tensors that it takes.

    A tensor is read in pieces: beside the result there is a piece in memory,
    or one a thread where pieces are dequantised.
    """
    bounds = self._bounds(sizes, index)
    dims = self._dims(naming)
    theirs = ''.join(dims)
    order = [theirs.index(a) for a in self.letters if a in theirs]
    along = dims[0][0]  # the axis that the file has slowest
    low, high = bounds[along]
    step = max(high - low, 1)
    undo = self.from_gguf if naming == 'gguf' else None
    if undo is None:
      numbers = math.prod(self.file_shape(naming, sizes))
      piece = _GGUF_PIECE if naming == 'gguf' else _PIECE
      step = max(1, piece * self._size(sizes, along) // numbers)

    pieces = [
      (name, place, start)
      for name, place in self.parts(naming, sizes, index)
      for start in range(low, high, step)
    ]
    out: Any = None  # there is a part at least

    def copy(
      piece: tuple[str, tuple[int | slice, ...], int],
    ) -> None:
      nonlocal out
      name, place, start = piece
      stop = min(start + step, high)
      inner = {a: bounds[a] for a in theirs} | {along: (start, stop)}
      array = self._piece(tensors[name], dims, sizes, inner, undo)
      if out is None:
        shape = [b - a for a, b in bounds.values()]
        out = np.empty(shape, dtype or array.dtype)
      here = list(place)
      here[self.letters.index(along)] = slice(start - low, stop - low)
      out[tuple(here)] = array.transpose(order)

    copy(pieces[0])
    if naming == 'gguf' and len(pieces) > 1:
      with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(copy, pieces[1:]):
          pass
    else:
      for piece in pieces[1:]:
        copy(piece)
    return out

  def _piece(
    self,
    stored: Stored,
    dims: Sequence[str],
    sizes: Mapping[str, int],
    inner: Mapping[str, tuple[int, int]],
    undo: Callable[[np.ndarray], np.ndarray] | None,
  ) -> np.ndarray:
    """A part of a tensor, in the order of the file, an axis a letter."""
    wanted, shape, rest = [], [], []
    for first, *others in dims:
      # Axes written together are cut along the first; the rest comes whole.
      start, stop = inner[first]
      lengths = [self._size(sizes, a) for a in others]
      block = math.prod(lengths)
      wanted.append(slice(start * block, stop * block))
      shape += [stop - start, *lengths]
      rest += [slice(None), *(slice(*inner[a]) for a in others)]
    if undo is None:
      array = stored.read(tuple(wanted))
    else:
      whole = tuple(slice(0, size) for size in stored.shape)
      array = undo(stored.read(whole))[tuple(wanted)]
    return array.reshape(shape)[tuple(rest)]

  def to_file(
    self, array: np.ndarray, naming: str, sizes: Mapping[str, int]
  ) -> np.ndarray:
    """A tensor as the file has it, from `parameter[place]`."""
    theirs = ''.join(self._dims(naming))
    order = [a for a in self.letters if a in theirs]
    split = array.transpose([order.index(a) for a in theirs])
    flat = np.ascontiguousarray(split.reshape(self.file_shape(naming, sizes)))
    return self.to_gguf(flat) if naming == 'gguf' and self.to_gguf else flat

  def _named(self, naming: str) -> str:
    name = getattr(self, naming)
    return ''.join(a for a in self.letters if '{' + a + '}' in name)

  def _dims(self, naming: str) -> list[str]:
    """The dimensions of a tensor in the file, a string of letters each.

    Files hold matrices as [outputs, inputs], whatever axes of ours these have.
    """
    named, param = self._named(naming), self.param
    match param.kind:
      case 'matrix':
        own = [*param.stack, param.outputs, param.inputs]
      case 'embedding':
        own = [param.inputs, param.outputs]
      case 'norm' | 'bias':
        own = [param.outputs]
    dims = ['L'] * bool(self.layers) + own
    return [dim for dim in dims if dim not in named]

  def _size(self, sizes: Mapping[str, int], letter: str) -> int:
    return len(self.layers) if letter == 'L' else sizes[letter]

  def _bounds(
    self, sizes: Mapping[str, int], index: Index | None
  ) -> dict[str, tuple[int, int]]:
    shape = self.shape(sizes)
    index = index or (slice(None),) * len(shape)
    return {
      letter: part.indices(size)[:2]
      for letter, part, size in zip(self.letters, index, shape, strict=True)
    }


def layer_rows(
  layers: range, rows: Sequence[tuple[str, ...]], under: str = 'layers'
) -> tuple[Row, ...]:
  """Rows of a stack of layers, each (path, hf, gguf).

  The names get what stands before the layer's part, and '.weight', or '.bias'
  where our name ends so.
  """
  out = []
  for path, hf, gguf in rows:
    kind = '.bias' if path.endswith('_bias') else '.weight'
    out.append(
      Row(
        f'{under}/{path}',
        'model.layers.{L}.' + hf + kind,
        'blk.{L}.' + gguf + kind,
        layers,
      )
    )
  return tuple(out)
