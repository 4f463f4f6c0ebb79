"""Weights from elsewhere: Hugging Face, as folders or by name, and GGUF."""

import dataclasses
import os
import pathlib

from rlzero.models.config import ModelConfig
from rlzero.text.tokenizer import Tokenizer
from rlzero.types import Params
from rlzero.weights import hub, mapping, peft
from rlzero.weights.families import FAMILIES
from rlzero.weights.gguf import open_gguf
from rlzero.weights.gguf_writer import write_file as write_gguf
from rlzero.weights.hf import open_folder, read_folder, write_folder
from rlzero.weights.metadata import WeightsError

__all__ = [
  'Loaded',
  'WeightsError',
  'load',
  'open_folder',
  'open_gguf',
  'open_model',
  'read_folder',
  'write_folder',
  'write_gguf',
]


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model as it comes from disk."""

  config: ModelConfig
  params: Params  # of `jax.Array`, or of `Lazy` where it is only opened
  tokenizer: Tokenizer
  left_out: tuple[str, ...] = ()  # what was passed over, a sentence each


def load(path: str | os.PathLike[str], dtype: str = 'float32') -> Loaded:
  """`open_model`, with the parameters on the devices of the current mesh.

  Args:
    path: see there.
    dtype: of the parameters, 'float32' or 'bfloat16'.
  """
  opened = open_model(path)
  return dataclasses.replace(opened, params=mapping.place(opened.params, dtype))


def open_model(path: str | os.PathLike[str]) -> Loaded:
  """Checks a model and its tokenizer; parameters are read when indexed.

  Args:
    path: a .gguf file, a Hugging Face folder, a folder with one .gguf, or
      hf://org/name on the hub.

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
  if peft.is_folder(path):
    raise FileNotFoundError(
      f'{path} is a PEFT adapter and no model; merge it into its base with '
      f'python -m rlzero.convert --checkpoint=BASE --adapter={path} '
      '--output=DIR.'
    )
  if path.is_dir() and (path / 'config.json').is_file():
    tokenizer = Tokenizer.load(path)
    return _checked(open_folder(path), tokenizer, path)
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
  return _checked(*open_gguf(files[0]), files[0])


def _checked(
  read: mapping.Read, tokenizer: Tokenizer, source: pathlib.Path
) -> Loaded:
  """Every id of the tokenizer must have a row of the embedding."""
  extra = tokenizer.beyond(read.config.vocab_size)
  extra -= set(FAMILIES[read.config.family].EXTRA_TOKENS)
  if extra:
    raise WeightsError(
      f'{source} has a tokenizer with ids past the {read.config.vocab_size} '
      f'rows of its embedding, such as that of {min(extra)!r}; put the '
      'tokenizer of this very model there.'
    )
  return Loaded(read.config, read.params, tokenizer, read.left_out)
