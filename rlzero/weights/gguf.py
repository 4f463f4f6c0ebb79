"""GGUF files: every quantised type the gguf library can undo."""

import os
import pathlib
from collections.abc import Iterable, Iterator

import gguf
import numpy as np

from rlzero.text.tokenizer import Tokenizer
from rlzero.weights import gguf_head, gguf_tokenizer, mapping
from rlzero.weights.families import llama
from rlzero.weights.metadata import WeightsError
from rlzero.weights.rows import Index, Stored


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
    gguf_head.check(path)
    reader = gguf.GGUFReader(path)
    metadata = {k: field.contents() for k, field in reader.fields.items()}
  except Exception as error:  # what is raised depends on where the cut is
    raise WeightsError(
      f'{path} is damaged or cut short ({error}); copy or download it again.'
    ) from error
  tensors = {tensor.name: tensor for tensor in reader.tensors}
  if metadata.get('general.architecture') == 'llama':
    # The stretch of Llama 3's rotary embedding is said by a tensor alone.
    stretch = tensors.pop(llama.GGUF_STRETCH, None)
    if stretch is not None:
      metadata[llama.GGUF_STRETCH] = np.array(stretch.data)
  tied = 'output.weight' not in tensors
  config = mapping.model_config_from_gguf(metadata, tied, str(path))
  tokenizer = gguf_tokenizer.read(metadata, str(path))
  read = mapping.params_from_tensors(
    config, _tensors(tensors.values(), path), 'gguf', str(path)
  )
  return read, tokenizer


def _tensors(
  tensors: Iterable[gguf.ReaderTensor], path: pathlib.Path
) -> Iterator[tuple[str, Stored]]:
  for tensor in tensors:
    try:  # on one row, to know before the first tensor is read
      gguf.dequantize(tensor.data[:1], tensor.tensor_type)
    except NotImplementedError as error:
      raise WeightsError(
        f'{path} stores {tensor.name} as {tensor.tensor_type.name}, which '
        'the gguf library cannot dequantise; use a file of another type, '
        'such as Q8_0.'
      ) from error

    def read(index: Index, tensor=tensor) -> np.ndarray:
      rows, *rest = index
      data = gguf.dequantize(tensor.data[rows], tensor.tensor_type)
      return data[(slice(None), *rest)]

    # The file counts axes from the fastest.
    shape = tuple(int(size) for size in reversed(tensor.shape))
    yield tensor.name, Stored(path.name, shape, read)
