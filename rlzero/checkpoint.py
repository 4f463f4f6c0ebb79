"""Orbax: the whole state of a run, and what one stage hands to the next.

A run's folder holds `checkpoints/STEP/` (Orbax; parameters apart from the
rest, so that a later stage reads only them) and `model/`, whose config.json
and tokenizer say what the parameters are. `load_model` reads such a folder,
a Hugging Face folder or a GGUF file.
"""

import json
import os
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from rlzero import weights
from rlzero.models import transformer
from rlzero.models.config import ModelConfig
from rlzero.tokenizer import Tokenizer
from rlzero.types import Params
from rlzero.weights import hf, mapping


class Store:
  """The numbered checkpoints of a run; each is written whole or not at all.

  Args:
    workdir: the run's folder.
    keep: how many checkpoints to keep, the newest.
  """

  def __init__(self, workdir: str, keep: int = 2):
    self._folder = os.path.abspath(os.path.join(workdir, 'checkpoints'))
    self._manager = ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, enable_async_checkpointing=False
      ),
    )

  def latest(self) -> int | None:
    """Step of the newest checkpoint, or None."""
    return self._manager.latest_step()

  def save(
    self, step: int, params: Params, rest: Any, facts: dict | None = None
  ) -> None:
    """Writes parameters, a pytree of other arrays, and facts as JSON."""
    self._manager.save(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardSave(params),
        rest=ocp.args.StandardSave(rest),
        facts=ocp.args.JsonSave(facts or {}),
      ),
    )
    self._manager.wait_until_finished()

  def restore(self, step: int, params: Params, rest: Any) -> tuple:
    """(parameters, rest, facts), shaped and typed like the arguments."""
    read = self._manager.restore(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardRestore(params),
        rest=ocp.args.StandardRestore(rest),
        facts=ocp.args.JsonRestore(),
      ),
    )
    return read.params, read.rest, read.facts

  def restore_params(self, step: int, params: Params) -> Params:
    """The parameters alone."""
    return self._manager.restore(
      step,
      args=ocp.args.Composite(params=ocp.args.StandardRestore(params)),
    ).params

  def close(self) -> None:
    self._manager.close()


def write_description(
  workdir: str, config: ModelConfig, tokenizer: Tokenizer
) -> None:
  """Writes `WORKDIR/model` without weights: what the checkpoints hold."""
  folder = pathlib.Path(workdir) / 'model'
  tokenizer.save(folder)
  facts = mapping.hf_config(config, tokenizer.eos_ids, tokenizer.bos_id)
  (folder / 'config.json').write_text(json.dumps(facts, indent=2) + '\n')


def write_model(
  workdir: str, config: ModelConfig, params: Params, tokenizer: Tokenizer
) -> str:
  """Writes `WORKDIR/model`, a Hugging Face folder; returns its path."""
  folder = os.path.join(workdir, 'model')
  hf.write_folder(folder, config, jax.device_get(params), tokenizer)
  return folder


def embedded(name: str) -> str:
  """Folder of a model that the package brings along."""
  return str(pathlib.Path(__file__).parent / 'assets' / name)


def load_model(path: str) -> weights.Loaded:
  """Reads a model from any kind of checkpoint.

  Args:
    path: a run's folder, a Hugging Face folder, hf://org/name or a GGUF file.

  Raises:
    FileNotFoundError, ValueError: nothing usable there; one sentence.
  """
  folder = pathlib.Path(path)
  if not (folder / 'checkpoints').is_dir():
    return weights.load(path)
  store = Store(path)
  step = store.latest()
  if step is None:
    raise FileNotFoundError(
      f'{path}/checkpoints holds no finished checkpoint; give the folder of '
      'a run that has saved one, a Hugging Face folder or a GGUF file.'
    )
  described = folder / 'model' / 'config.json'
  config = mapping.model_config_from_hf(
    json.loads(described.read_text()), str(described)
  )
  shapes = jax.eval_shape(
    lambda key: transformer.init(config, key), jax.random.key(0)
  )
  params = store.restore_params(step, shapes)
  store.close()
  return weights.Loaded(config, params, Tokenizer.load(folder / 'model'))
