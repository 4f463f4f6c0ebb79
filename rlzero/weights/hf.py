"""Hugging Face folders: config.json, safetensors and a tokenizer, both ways."""

import json
import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence

import ml_dtypes  # noqa: F401  teaches NumPy bfloat16
import numpy as np
import safetensors
import safetensors.numpy

from rlzero.models.config import ModelConfig
from rlzero.tokenizer import Tokenizer
from rlzero.types import Params
from rlzero.weights import mapping

_SINGLE = 'model.safetensors'
_INDEX = 'model.safetensors.index.json'


def read_folder(
  folder: str | os.PathLike[str],
) -> tuple[ModelConfig, Params]:
  """Reads config.json and the weights, in one file or in shards, to float32.

  Args:
    folder: as transformers' save_pretrained writes it.

  Raises:
    FileNotFoundError: no config.json, or a weight file missing.
    WeightsError: a damaged file, or weights that do not match the config.
  """
  folder = pathlib.Path(folder)
  config = mapping.model_config_from_hf(
    _read_json(folder / 'config.json'), str(folder / 'config.json')
  )
  if (folder / _SINGLE).is_file():
    files = [_SINGLE]
  elif (folder / _INDEX).is_file():
    files = sorted(set(_read_json(folder / _INDEX)['weight_map'].values()))
  else:
    raise FileNotFoundError(
      f'{folder} holds neither {_SINGLE} nor {_INDEX}; put the weights there '
      'as safetensors.'
    )
  params = mapping.params_from_tensors(
    config, _tensors(folder, files), 'hf', str(folder)
  )
  return config, params


def write_folder(
  folder: str | os.PathLike[str],
  config: ModelConfig,
  params: Params,
  tokenizer: Tokenizer,
) -> None:
  """Writes a folder that `read_folder`, and transformers, load.

  Each file appears whole or not at all, config.json last: a folder that has
  it is complete.

  Args:
    folder: made if it does not exist.
    config: the model.
    params: its parameters, of any floating type; written as float32.
    tokenizer: saved beside them.

  Raises:
    WeightsError: parameters that do not match the config, or a config that
      no Hugging Face architecture has.
  """
  tensors = mapping.tensors_from_params(config, params)
  description = mapping.hf_config(config, tokenizer.eos_ids, tokenizer.bos_id)
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=folder, prefix='.writing-') as draft:
    draft = pathlib.Path(draft)
    tokenizer.save(draft)
    safetensors.numpy.save_file(
      tensors, draft / _SINGLE, metadata={'format': 'pt'}
    )
    (draft / 'config.json').write_text(
      json.dumps(description, indent=2) + '\n', encoding='utf-8'
    )
    for file in sorted(
      draft.iterdir(), key=lambda file: file.name == 'config.json'
    ):
      os.replace(file, folder / file.name)


def _tensors(
  folder: pathlib.Path, files: Sequence[str]
) -> Iterator[tuple[str, str, np.ndarray]]:
  for file in files:
    path = folder / file
    if not path.is_file():
      raise FileNotFoundError(
        f'{path} is missing, though {_INDEX} names it; copy or download it.'
      )
    try:
      with safetensors.safe_open(path, framework='np') as reader:
        for name in reader.keys():
          dtype = reader.get_slice(name).get_dtype()
          if dtype not in ('F64', 'F32', 'F16', 'BF16'):
            raise mapping.WeightsError(
              f'{path} stores {name} as {dtype}, but only F64, F32, F16 and '
              'BF16 are read; use weights that are not quantised.'
            )
          yield file, name, reader.get_tensor(name)
    except safetensors.SafetensorError as error:
      raise mapping.WeightsError(
        f'{path} is damaged or cut short ({error}); copy or download it again.'
      ) from error


def _read_json(path: pathlib.Path) -> dict:
  if not path.is_file():
    raise FileNotFoundError(
      f'{path} is missing; a Hugging Face folder needs one.'
    )
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise mapping.WeightsError(
      f'{path} is not JSON ({error}); copy or download it again.'
    ) from error
