"""Weights in blocks of 8-bit floats, each block with a scale: DeepSeek-V3's.

arXiv 2412.19437, section 3.3: `x.weight` is float8_e4m3fn, and
`x.weight_scale_inv` holds what each block of it is multiplied with.
"""

import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from rlzero.weights.metadata import Metadata, WeightsError
from rlzero.weights.rows import Index, Stored

DTYPE = 'F8_E4M3'  # as safetensors calls it
_SCALE = '_scale_inv'
_BLOCK = 128  # rows and columns


def quantised(metadata: Metadata) -> bool:
  """Whether a config.json says that its weights are stored so.

  Raises:
    WeightsError: another quantisation.
  """
  how = metadata.get('quantization_config')
  if how is None:
    return False
  for key, wanted in (
    ('quant_method', 'fp8'),
    ('fmt', 'e4m3'),
    ('weight_block_size', [_BLOCK, _BLOCK]),
  ):
    value = how.get(key, 'e4m3' if key == 'fmt' else None)
    if value != wanted:
      raise metadata.refusal(
        f'quantization_config.{key} = {value!r}', repr(wanted)
      )
  return True


def reader(
  path: str | os.PathLike[str], name: str
) -> Callable[[Index], np.ndarray]:
  """Reads parts of an 8-bit tensor, which safetensors cannot give NumPy."""
  header, start = _header(os.fspath(path))
  about = header[name]
  begin, end = about['data_offsets']

  def read(index: Index) -> np.ndarray:
    raw = np.memmap(path, np.uint8, 'r', start + begin, (end - begin,))
    whole = raw.view(ml_dtypes.float8_e4m3fn).reshape(about['shape'])
    return np.array(whole[index])

  return read


@functools.lru_cache(maxsize=1)
def _header(path: str) -> tuple[dict[str, Any], int]:
  """Reads the file's header: its tensors, and where the first one starts."""
  with open(path, 'rb') as file:
    size = int.from_bytes(file.read(8), 'little')
    return json.loads(file.read(size)), 8 + size


def dequantised(
  tensors: Iterable[tuple[str, Stored]], source: str
) -> Iterator[tuple[str, Stored]]:
  """The tensors with their scales multiplied in, in float32, when read.

  Args:
    tensors: of all files; those without a scale stay as they are.
    source: what an error calls the whole.

  Raises:
    WeightsError: a weight without its scale, a scale without its weight, or
      one of the wrong shape.
  """
  found = list(tensors)
  scales = {n: stored for n, stored in found if n.endswith(_SCALE)}
  for name, stored in found:
    if name.endswith(_SCALE):
      continue
    scale = scales.pop(name + _SCALE, None)
    if scale is None and stored.kind == DTYPE:
      raise WeightsError(
        f'{source} has {name} ({stored.file}) as {DTYPE} without '
        f'{name}{_SCALE}; restore the files.'
      )
    if scale is None:
      yield name, stored
      continue
    wanted = tuple(-(-size // _BLOCK) for size in stored.shape)
    if scale.shape != wanted:
      raise WeightsError(
        f'{source} has {name}{_SCALE} ({scale.file}) of shape '
        f'{list(scale.shape)}, but {list(stored.shape)} in blocks of {_BLOCK} '
        f'needs {list(wanted)}; restore the file.'
      )
    yield name, Stored(stored.file, stored.shape, _read(stored, scale))
  if scales:
    raise WeightsError(
      f'{source} has scales without their weights: {", ".join(scales)}; '
      'restore the files.'
    )


def _read(stored, scale):
  def read(index):
    """Any part of the weight; blocks are cut where it is."""
    bounds = [
      part.indices(size)[:2]
      for part, size in zip(index, stored.shape, strict=True)
    ]
    blocks = scale.read(
      tuple(slice(a // _BLOCK, -(-b // _BLOCK)) for a, b in bounds)
    ).astype(np.float32)
    for axis, (a, b) in enumerate(bounds):
      first = a // _BLOCK * _BLOCK
      blocks = np.repeat(blocks, _BLOCK, axis)
      blocks = np.take(blocks, range(a - first, b - first), axis)
    return stored.read(index).astype(np.float32) * blocks

  return read
