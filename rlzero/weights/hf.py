"""Hugging Face folders: config.json, safetensors and a tokenizer, both ways."""

import math
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence

import ml_dtypes  # noqa: F401  teaches NumPy bfloat16
import numpy as np
import safetensors
import safetensors.numpy

from rlzero.models.config import ModelConfig
from rlzero.runtime import files
from rlzero.text import files as text_files
from rlzero.text.tokenizer import Tokenizer
from rlzero.types import Params
from rlzero.weights import fp8, mapping
from rlzero.weights.metadata import Metadata, WeightsError
from rlzero.weights.rows import Stored

_SINGLE = 'model.safetensors'
_INDEX = 'model.safetensors.index.json'
_SHARD_BYTES = 5_000_000_000  # at most in a file; a larger tensor has its own


def read_folder(
  folder: str | os.PathLike[str], dtype: str = 'float32'
) -> mapping.Read:
  """`open_folder`, with the parameters on the devices of the current mesh."""
  read = open_folder(folder)
  return read._replace(params=mapping.place(read.params, dtype))


def open_folder(folder: str | os.PathLike[str]) -> mapping.Read:
  """Checks config.json against the weights, in one file or in shards.

  Args:
    folder: as transformers' save_pretrained writes it.

  Raises:
    FileNotFoundError: no config.json, or a weight file missing.
    WeightsError: a damaged file, or weights that do not match the config.
  """
  folder = pathlib.Path(folder)
  described = folder / 'config.json'
  metadata = Metadata(_read_json(described), str(described))
  config = mapping.model_config_from_hf(metadata.values, metadata.source)
  if (folder / _SINGLE).is_file():
    names = [_SINGLE]
  elif (folder / _INDEX).is_file():
    names = _shards(folder / _INDEX)
  else:
    raise FileNotFoundError(
      f'{folder} holds neither {_SINGLE} nor {_INDEX}; put the weights there '
      'as safetensors.'
    )
  quantised = fp8.quantised(metadata)
  found = tensors(folder, names, quantised)
  if quantised:
    found = fp8.dequantised(found, str(folder))
  return mapping.params_from_tensors(config, found, 'hf', str(folder))


def write_folder(
  folder: str | os.PathLike[str],
  config: ModelConfig,
  params: Params,
  tokenizer: Tokenizer,
  dtype: str = 'float32',
  shard_bytes: int = _SHARD_BYTES,
  on_progress: Callable[[int, int], None] | None = None,
) -> None:
  """Writes a folder that `read_folder`, and transformers, load.

  Each file appears whole or not at all, config.json last: a folder that has
  it is complete. Weights of an earlier model in the folder go.

  Args:
    folder: made if it does not exist.
    config: the model.
    params: its parameters, arrays or `Lazy`, of any floating type.
    tokenizer: saved beside them.
    dtype: of the weights in the files, 'float32' or 'bfloat16'.
    shard_bytes: the most a file of weights holds; more makes several files
      and an index.
    on_progress: told bytes written and bytes in all, after each file.

  Raises:
    WeightsError: parameters that do not match the config, or a config that
      no Hugging Face architecture has.
  """
  description = mapping.hf_config(
    config, tokenizer.eos_ids, tokenizer.bos_id, dtype
  )
  tensors = mapping.tensors_from_params(config, params)
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=folder, prefix='.writing-') as draft:
    draft = pathlib.Path(draft)
    tokenizer.save(draft)
    _save(draft, tensors, dtype, shard_bytes, on_progress)
    files.write_json(draft / 'config.json', description, indent=2)
    written = sorted(draft.iterdir(), key=lambda f: f.name == 'config.json')
    for old in folder.glob('model*.safetensors*'):
      if not (draft / old.name).exists():
        (folder / 'config.json').unlink(missing_ok=True)  # not complete now
        old.unlink()
    for file in written:
      os.replace(file, folder / file.name)


def _save(
  folder: pathlib.Path,
  tensors: Iterable[mapping.Written],
  dtype: str,
  shard_bytes: int,
  on_progress: Callable[[int, int], None] | None,
) -> None:
  """Writes the tensors into one file, or into shards with an index."""
  shards: list[list[mapping.Written]] = [[]]
  size = total = 0
  for tensor in tensors:
    num_bytes = math.prod(tensor.shape) * np.dtype(dtype).itemsize
    if shards[-1] and size + num_bytes > shard_bytes:
      shards.append([])
      size = 0
    shards[-1].append(tensor)
    size += num_bytes
    total += num_bytes
  places, done = {}, 0
  for number, shard in enumerate(shards, 1):
    file = f'model-{number:05d}-of-{len(shards):05d}.safetensors'
    if len(shards) == 1:
      file = _SINGLE
    # The host holds one shard at a time.
    arrays = {t.name: t.read().astype(dtype, copy=False) for t in shard}
    safetensors.numpy.save_file(
      arrays, folder / file, metadata={'format': 'pt'}
    )
    places |= dict.fromkeys(arrays, file)
    done += sum(array.nbytes for array in arrays.values())
    if on_progress is not None:
      on_progress(done, total)
  if len(shards) > 1:
    index = {'metadata': {'total_size': total}, 'weight_map': places}
    files.write_json(folder / _INDEX, index, indent=2)


def _shards(index: pathlib.Path) -> list[str]:
  """The files that an index names, each of them beside it."""
  places = _read_json(index).get('weight_map')
  if not isinstance(places, dict) or not places:
    raise WeightsError(
      f'{index} has no weight_map, which says what file a tensor is in; copy '
      'or download it again.'
    )
  for tensor, name in places.items():
    # Checkpoints come from anyone, and no name may lead out of the folder.
    if (
      not isinstance(name, str)
      or not name.endswith('.safetensors')
      or re.search(r'[/\\\0]', name)
    ):
      raise WeightsError(
        f'{index} has {tensor} in {name!r}, but the name of a .safetensors '
        'file in the same folder is needed; download the model again.'
      )
  return sorted(set(places.values()))


def tensors(
  folder: pathlib.Path, names: Sequence[str], quantised: bool = False
) -> Iterator[tuple[str, Stored]]:
  """The tensors of .safetensors files by name; no numbers are read yet.

  Args:
    folder: of the files.
    names: of the files.
    quantised: whether numbers of 8 bits are allowed.

  Raises:
    FileNotFoundError: a file is missing.
    WeightsError: a damaged file, or numbers of a kind that is not read.
  """
  for file in names:
    path = folder / file
    if not path.is_file():
      raise FileNotFoundError(
        f'{path} is missing, though {_INDEX} names it; copy or download it.'
      )
    try:
      reader = safetensors.safe_open(path, framework='np')
      names = list(reader.keys())
    except safetensors.SafetensorError as error:
      raise WeightsError(
        f'{path} is damaged or cut short ({error}); copy or download it again.'
      ) from error
    for name in names:
      part = reader.get_slice(name)
      shape, kind = tuple(part.get_shape()), part.get_dtype()
      known = ('F64', 'F32', 'F16', 'BF16', *((fp8.DTYPE,) * quantised))
      if kind not in known:
        raise WeightsError(
          f'{path} stores {name} as {kind}, but only F64, F32, F16 '
          'and BF16 are read; use weights that are not quantised.'
        )
      read = part.__getitem__
      if kind == fp8.DTYPE:
        read = fp8.reader(path, name)
      yield name, Stored(file, shape, read, kind)


def _read_json(path: pathlib.Path) -> dict:
  if not path.is_file():
    raise FileNotFoundError(
      f'{path} is missing; a Hugging Face folder needs one.'
    )
  try:
    return text_files.read_json(path)
  except ValueError as error:
    raise WeightsError(str(error)) from error
