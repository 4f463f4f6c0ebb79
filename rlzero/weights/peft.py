"""PEFT folders: a LoRA adapter as Hugging Face's PEFT writes and loads it.

A folder has `adapter_config.json` and `adapter_model.safetensors`. The tensors
have the names of the matrices that they stand beside in the model's own files,
so the tables of the families say where each goes.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.numpy
from flax import traverse_util

from rlzero.models import lora, parameters
from rlzero.models.config import ModelConfig
from rlzero.runtime import files
from rlzero.text import files as text_files
from rlzero.types import Params
from rlzero.weights import hf, mapping
from rlzero.weights.metadata import Metadata, WeightsError
from rlzero.weights.rows import Lazy, Row, Stored

CONFIG = 'adapter_config.json'
_WEIGHTS = 'adapter_model.safetensors'
_PREFIX = 'base_model.model.'
_SIDES = ('.lora_A.weight', '.lora_B.weight')  # in files, as `lora.SIDES` here

# Options that would make another function of the same tensors, and the values
# that they have where they are not used.
_UNUSED: dict[str, tuple[Any, ...]] = {
  'use_dora': (False,),
  'bias': ('none',),
  'lora_bias': (False,),
  'fan_in_fan_out': (False,),
  'rank_pattern': ({},),
  'alpha_pattern': ({},),
  'modules_to_save': ([],),
  'target_parameters': ([],),
  'trainable_token_indices': ([], {}),
  'layer_replication': ([],),
  # Of the names, those that leave the base as it was.
  'init_lora_weights': (True, False, 'gaussian', 'eva', 'orthogonal'),
}


def is_folder(path: str | os.PathLike[str]) -> bool:
  """Whether a path is a PEFT folder and no model."""
  folder = pathlib.Path(path)
  has = (folder / CONFIG).is_file()
  return has and not (folder / 'config.json').is_file()


def open_folder(
  folder: str | os.PathLike[str], config: ModelConfig
) -> tuple[float, Params]:
  """The scale of an adapter and its leaves, which are not read yet.

  Args:
    folder: as PEFT's `save_pretrained` writes it.
    config: of the model that it is for.

  Returns:
    s of `models/lora.py`, and a tree of `Lazy` A and B.

  Raises:
    FileNotFoundError: a file is missing.
    WeightsError: a damaged file, another kind of adapter, or tensors that do
      not fit the model; names them.
  """
  folder = pathlib.Path(folder)
  for name in (CONFIG, _WEIGHTS):
    if not (folder / name).is_file():
      raise FileNotFoundError(
        f'{folder / name} is missing; give a PEFT folder, which has {CONFIG} '
        f'and {_WEIGHTS}.'
      )
  rank, scale = _read_config(folder / CONFIG)
  found = dict(hf.tensors(folder, [_WEIGHTS]))
  sizes = parameters.axis_sizes(config) | {'J': rank}
  rows = [row for row in _rows(config) if {*row.names('hf', sizes)} & {*found}]
  _check(rows, sizes, found, folder)
  leaves = {row.path: Lazy(row, found, 'hf', sizes) for row in rows}
  return scale, traverse_util.unflatten_dict(leaves, sep='/')


def write_folder(
  folder: str | os.PathLike[str],
  config: ModelConfig,
  leaves: Params,
  base: str,
) -> None:
  """Writes a folder that `open_folder`, and PEFT, load.

  Args:
    folder: made if it does not exist.
    config: of the model, with the scale of the adapter.
    leaves: A and B alone, arrays.
    base: the model's name or path, for those who load it.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  flat: dict[str, Any] = traverse_util.flatten_dict(leaves, sep='/')
  rank = next(x for path, x in flat.items() if path.endswith('_a')).shape[-1]
  sizes = parameters.axis_sizes(config) | {'J': rank}
  tensors = {}
  for row in _rows(config):
    if row.path not in flat:
      continue
    array = np.asarray(flat[row.path])
    for name, place in row.parts('hf', sizes):
      tensors[name] = row.to_file(array[place], 'hf', sizes)
  content = safetensors.numpy.save(tensors, metadata={'format': 'pt'})
  files.write_whole(folder / _WEIGHTS, content)
  alpha = round(config.adapter_scale * rank, 9)
  described = {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': base,
    'r': rank,
    'lora_alpha': int(alpha) if alpha.is_integer() else alpha,
    'target_modules': _target_modules(config, {*flat}),
    'lora_dropout': 0.0,
    'bias': 'none',
    'fan_in_fan_out': False,
    'inference_mode': True,
  }
  files.write_json(folder / CONFIG, described, indent=2)


def _read_config(path: pathlib.Path) -> tuple[int, float]:
  """Rank and scale.

  Raises:
    WeightsError: no LoRA, or one with options that are not implemented.
  """
  try:
    metadata = Metadata(text_files.read_json(path), str(path))
  except ValueError as error:
    raise WeightsError(str(error)) from error
  if metadata.get('peft_type') != 'LORA':
    raise metadata.refusal(f'peft_type {metadata.get("peft_type")!r}', "'LORA'")
  for key, unused in _UNUSED.items():
    value = metadata.get(key, unused[0])
    if value not in unused:
      raise metadata.refusal(f'{key} = {value!r}', repr(unused[0]))
  rank, alpha = metadata.size('r'), metadata.number('lora_alpha')
  if rank < 1:
    raise metadata.unusable('r', rank, 'a number above 0')
  root = bool(metadata.get('use_rslora', False))
  return rank, alpha / rank ** (0.5 if root else 1)


def _rows(config: ModelConfig) -> Iterator[Row]:
  """A row for A and one for B of every matrix that may have them."""
  for row in mapping.table(config):
    if not row.param.adapts:
      continue
    module = _PREFIX + row.hf.removesuffix('.weight')
    for here, there in zip(lora.SIDES, _SIDES, strict=True):
      yield dataclasses.replace(
        row, path=row.path + here, hf=module + there, gguf='', from_gguf=None
      )


def _check(
  rows: Sequence[Row],
  sizes: Mapping[str, int],
  found: Mapping[str, Stored],
  folder: pathlib.Path,
) -> None:
  """Every tensor is one of the rows', and of those none is missing."""
  wanted = {
    name: row.file_shape('hf', sizes)
    for row in rows
    for name in row.names('hf', sizes)
  }
  # A without its B.
  for name in [*wanted]:
    for one, other in (_SIDES, _SIDES[::-1]):
      if name.endswith(one):
        wanted.setdefault(name.removesuffix(one) + other, ())
  problems = {
    'unknown': [name for name in found if name not in wanted],
    'missing': [name for name in wanted if name not in found],
    'of a wrong shape': [
      f'{name} is {list(found[name].shape)} and should be {list(shape)}'
      for name, shape in wanted.items()
      if name in found and shape and tuple(found[name].shape) != shape
    ],
  }
  said = [
    f'{kind}: {", ".join(sorted(names)[:5])}'
    + (f' and {len(names) - 5} more' if len(names) > 5 else '')
    for kind, names in problems.items()
    if names
  ]
  if said or not rows:
    raise WeightsError(
      f'{folder} is no adapter of this model: {"; ".join(said) or "no tensors"}'
      '. Give the base that it was trained on.'
    )


def _target_modules(config: ModelConfig, paths: set[str]) -> list[str] | str:
  """Tells PEFT what to adapt: last names, or where those say more, a regex.

  A regex must match the whole name of a module. Newer versions of transformers
  have all experts of a layer in one module, so the number may be absent.
  """
  adapted, others = set(), set()
  for row in mapping.table(config):
    if row.param.kind == 'matrix':
      module = row.hf.removesuffix('.weight')
      (adapted if row.path + lora.SIDES[0] in paths else others).add(module)
  last = {module.rpartition('.')[2] for module in adapted}
  experts = any('{E}' in module for module in adapted)
  if not experts and not last & {m.rpartition('.')[2] for m in others}:
    return sorted(last)
  parts = {
    re.escape(module.partition('{L}.')[2]).replace(r'\{E\}\.', r'(\d+\.)?')
    for module in adapted
  }
  return rf'.*\.({"|".join(sorted(parts))})'
