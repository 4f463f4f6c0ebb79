"""Weights from elsewhere: Hugging Face, as folders or by name, and GGUF."""

import dataclasses
import os
import pathlib

from rlzero.models.config import ModelConfig
from rlzero.tokenizer import Tokenizer
from rlzero.types import Params
from rlzero.weights import hub
from rlzero.weights.facts import WeightsError
from rlzero.weights.gguf import read_gguf
from rlzero.weights.hf import read_folder, write_folder

__all__ = [
  'Loaded',
  'WeightsError',
  'load',
  'read_folder',
  'read_gguf',
  'write_folder',
]


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model as it comes from disk, on the devices of the current mesh."""

  config: ModelConfig
  params: Params
  tokenizer: Tokenizer
  left_out: tuple[str, ...] = ()  # what was passed over, a sentence each


def load(path: str | os.PathLike[str], dtype: str = 'float32') -> Loaded:
  """Loads a model and its tokenizer.

  Args:
    path: a .gguf file, a Hugging Face folder, a folder with one .gguf, or
      hf://org/name on the hub.
    dtype: of the parameters, 'float32' or 'bfloat16'.

  Raises:
    FileNotFoundError: nothing there, or nothing that is a model.
    ValueError: a file that is damaged or not implemented, as the readers
      say.
  """
  if str(path).startswith(hub.SCHEME):
    path = hub.download(str(path))
  path = pathlib.Path(path)
  if not path.exists():
    raise FileNotFoundError(
      f'{path} does not exist; give a Hugging Face folder, hf://org/name '
      'or a .gguf file.'
    )
  if path.is_dir() and (path / 'config.json').is_file():
    tokenizer = Tokenizer.load(path)
    read = read_folder(path, dtype)
    return Loaded(read.config, read.params, tokenizer, read.left_out)
  files = sorted(path.glob('*.gguf')) if path.is_dir() else [path]
  if len(files) != 1 or files[0].suffix != '.gguf':
    raise FileNotFoundError(
      f'{path} is no model: expected a .gguf file, or a folder with '
      f'config.json or exactly one .gguf file (it has {len(files)}); name '
      'the file or folder you mean.'
      if path.is_dir()
      else f'{path} is no model: expected a .gguf file or a folder; name the '
      'folder that holds the weights.'
    )
  read, tokenizer = read_gguf(files[0], dtype)
  return Loaded(read.config, read.params, tokenizer, read.left_out)
