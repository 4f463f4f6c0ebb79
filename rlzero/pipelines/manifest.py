"""Which stages are finished, how they were configured, what they left."""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from rlzero.runtime import config, files, workdir

MANIFEST = 'manifest.json'

# What a stage keeps for itself: states to resume from, logs, times and paths.
_OWN = {
  'checkpoints',
  'journal',
  'completions',
  'tokens',
  'tensorboard',
  'trackers.json',
  'wandb',
  'metrics.jsonl',
  'config.gin',
  'config.json',
  'base.json',
  'run.json',
  'report.html',
  'summary.json',
}


class Manifest:
  """`manifest.json`: what is known of each finished stage, by its name."""

  def __init__(self, folder: str):
    self._path = os.path.join(folder, MANIFEST)
    self.stages: dict[str, dict[str, Any]] = {}
    if os.path.exists(self._path):
      with open(self._path, encoding='utf-8') as file:
        self.stages = json.load(file)['stages']

  def write(self) -> None:
    files.write_json(self._path, {'stages': self.stages}, indent=2)

  def hash_of(self, source: str) -> str:
    """Hashes what a finished stage left: a file, or all of it.

    Raises:
      UserError: the stage is not finished, or left nothing there.
    """
    name, _, path = source.partition('/')
    if name not in self.stages:
      raise config.UserError(
        f'{source!r} is wanted, but stage {name!r} is not finished; run the '
        'pipeline without --only, or that stage first.'
      )
    outputs = self.stages[name]['outputs']
    if path in outputs:
      return outputs[path]
    found = {k: v for k, v in outputs.items() if _is_in(k, path)}
    if not found:
      raise config.UserError(
        f'{source!r} is wanted, but stage {name!r} left only '
        f'{", ".join(outputs) or "nothing"}; correct the input.'
      )
    return hashlib.sha256(files.to_json(found).encode()).hexdigest()


def hashes(folder: str) -> dict[str, str]:
  """SHA-256 of each file that a stage hands on, by its path in the folder."""
  return {
    str(path.relative_to(folder)): _sha256(path) for path in _handed_on(folder)
  }


def _handed_on(folder: str) -> Iterator[pathlib.Path]:
  for path in sorted(pathlib.Path(folder).rglob('*')):
    first = path.relative_to(folder).parts[0]
    if path.is_file() and first not in _OWN and path.name != workdir.LOCK:
      yield path


def _sha256(path: pathlib.Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _is_in(path: str, folder: str) -> bool:
  return not folder or path.startswith(f'{folder}/')
