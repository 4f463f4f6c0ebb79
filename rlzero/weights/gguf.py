"""GGUF files: every quantised type the gguf library can undo."""

import math
import os
import pathlib
from collections.abc import Iterator

import gguf
import numpy as np

from rlzero.text.tokenizer import Tokenizer
from rlzero.weights import gguf_head, gguf_tokenizer, mapping
from rlzero.weights.families import llama
from rlzero.weights.metadata import WeightsError
from rlzero.weights.rows import Index, Stored

_PIECE = 2**18  # numbers that are dequantised at a time


def open_gguf(
  path: str | os.PathLike[str],
) -> tuple[mapping.Read, Tokenizer]:
  """A model, to be dequantised where it is read, and its tokenizer.

  Args:
    path: a .gguf file of a family in `families.GGUF_FAMILIES`.

  Raises:
    FileNotFoundError: no such file.
    WeightsError: a damaged file, an architecture, option or type that is
      not implemented, or tensors that do not match the metadata.
    ValueError: a tokenizer that is not implemented.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(
      f'{path} does not exist; give the path of a .gguf file.'
    )
  try:
    metadata, listed = gguf_head.read(path)
  except WeightsError:
    raise
  except ValueError as error:
    raise WeightsError(
      f'{path} is damaged or cut short ({error}); copy or download it again.'
    ) from error
  tensors = dict(_stored(listed, path))
  if metadata.get('general.architecture') == 'llama':
    # The stretch of Llama 3's rotary embedding is said by a tensor alone.
    stretch = tensors.pop(llama.GGUF_STRETCH, None)
    if stretch is not None:
      metadata[llama.GGUF_STRETCH] = stretch.read(_whole(stretch.shape))
  tied = 'output.weight' not in tensors
  config = mapping.model_config_from_gguf(metadata, tied, str(path))
  tokenizer = gguf_tokenizer.read(metadata, str(path))
  read = mapping.params_from_tensors(config, tensors.items(), 'gguf', str(path))
  return read, tokenizer


def tensors(path: str | os.PathLike[str]) -> dict[str, Stored]:
  """The tensors of a file by name, as it has them.

  Raises:
    ValueError: as `open_gguf`.
  """
  return dict(_stored(gguf_head.read(path).tensors, pathlib.Path(path)))


def _stored(
  listed: dict[str, gguf_head.Tensor], path: pathlib.Path
) -> Iterator[tuple[str, Stored]]:
  """Raises WeightsError: a type of tensor that nobody dequantises."""
  data = np.memmap(path, np.uint8, 'r').view(np.ndarray)
  tested = set()
  for tensor in listed.values():
    if tensor.kind not in tested:
      tested.add(tensor.kind)
      _, num_bytes = gguf.GGML_QUANT_SIZES[tensor.kind]
      try:  # on a block, to know before the first tensor is read
        _dequantise(np.zeros(num_bytes, np.uint8), tensor.kind)
      except NotImplementedError as error:
        raise WeightsError(
          f'{path} stores {tensor.name} as {tensor.kind.name}, which the gguf '
          'library cannot dequantise; use a file of another type, such as Q8_0.'
        ) from error

    def read(index: Index, tensor=tensor) -> np.ndarray:
      return _read(data, tensor, index)

    yield tensor.name, Stored(path.name, tensor.shape, read)


def _read(
  data: np.ndarray, tensor: gguf_head.Tensor, index: Index
) -> np.ndarray:
  """Part of a tensor, in float32."""
  shape = tensor.shape
  # Blocks of numbers run along the last axis, and never over its end.
  height = math.prod(shape[:-1])
  stored = data[tensor.start :][: tensor.num_bytes].reshape(height, -1)
  first, *rest = index
  if len(shape) == 1:
    return _dequantise(stored, tensor.kind).reshape(shape)[first]
  start, stop, _ = first.indices(shape[0])
  inner = math.prod(shape[1:-1])
  part = _dequantise(stored[start * inner : stop * inner], tensor.kind)
  return part.reshape(stop - start, *shape[1:])[(slice(None), *rest)]


def _dequantise(
  stored: np.ndarray, kind: gguf.GGMLQuantizationType
) -> np.ndarray:
  """Numbers of whole blocks, in the order in which they are stored.

  The library takes sixteen rows at a time: for narrow ones most of the time
  goes into its calls. What a cache holds is given to it as one row.
  """
  block, num_bytes = gguf.GGML_QUANT_SIZES[kind]
  step = _PIECE // block * num_bytes
  flat = stored.reshape(-1)
  if flat.size <= step:
    return gguf.dequantize(flat.reshape(1, -1), kind).reshape(-1)
  out = np.empty(flat.size // num_bytes * block, np.float32)
  for start in range(0, flat.size, step):
    part = gguf.dequantize(flat[start : start + step].reshape(1, -1), kind)
    out[start // num_bytes * block :][: part.size] = part[0]
  return out


def _whole(shape: tuple[int, ...]) -> Index:
  return tuple(slice(0, size) for size in shape)
