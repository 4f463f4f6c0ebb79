"""Model folders: what one stage hands to the next.

`load_model` reads the folder of a run, a Hugging Face folder or a GGUF file.
"""

import dataclasses
import json
import os
import pathlib
import sys

import jax

import rlzero
from rlzero import weights
from rlzero.models import parameters, transformer
from rlzero.models.config import ModelConfig
from rlzero.models.lora import Adapter
from rlzero.runtime import files, hosts, lifecycle, sharding
from rlzero.text import files as text_files
from rlzero.text.tokenizer import Tokenizer
from rlzero.train import adapters, checkpoint, room
from rlzero.train.optim import Optimizer
from rlzero.types import Params
from rlzero.weights import finite, hf, hub, mapping, peft

_BASE = 'base.json'  # in a run's folder: what it began with


def write_description(
  workdir: str,
  config: ModelConfig,
  tokenizer: Tokenizer,
  params: Params | None = None,
) -> None:
  """Writes `WORKDIR/model` without weights: what the checkpoints hold.

  The first host writes it.

  Args:
    workdir: of the run.
    config: of the model.
    tokenizer: of the model.
    params: of the run, if an adapter may be among them.
  """

  def write() -> None:
    if params is not None:
      adapters.describe(workdir, config, params)
    folder = pathlib.Path(workdir) / 'model'
    tokenizer.save(folder)
    description = mapping.hf_config(config, tokenizer.eos_ids, tokenizer.bos_id)
    files.write_json(folder / 'config.json', description, indent=2)

  hosts.on_first(write)


def write_model(
  workdir: str, config: ModelConfig, params: Params, tokenizer: Tokenizer
) -> str:
  """Writes `WORKDIR/model`, a Hugging Face folder; returns its path.

  An adapter is merged into it, and `WORKDIR/adapter` is the adapter alone, a
  PEFT folder. The first host writes, and gathers the parameters of the others.

  Raises:
    ValueError: a parameter is not finite; nothing is written.
  """
  folder = os.path.join(workdir, 'model')
  finite.check(params, f'The policy of {workdir}')
  whole = params if hosts.count() == 1 else hosts.fetch_first(params)

  def write() -> None:
    merged = whole
    if adapters.exists(whole):
      leaves, _ = adapters.split(whole)
      base = _base_of(workdir).removeprefix(hub.SCHEME)
      peft.write_folder(os.path.join(workdir, 'adapter'), config, leaves, base)
      merged = adapters.merge(config.adapter_scale, whole)
    hf.write_folder(folder, config, merged, tokenizer)

  hosts.on_first(write)
  return folder


def embedded(name: str) -> str:
  """Folder of a model that the package brings along."""
  return str(pathlib.Path(rlzero.__file__).parent / 'assets' / name)


def check_base(workdir: str, path: str, params: Params) -> None:
  """Refuses to resume a run from another base than it was begun with.

  The base's fingerprint stands in `WORKDIR/base.json`; its path may change.

  Args:
    workdir: of the run.
    path: of the base, for the message.
    params: of the base, on the devices.

  Raises:
    ValueError: the base holds other parameters than the run began with.
  """
  file = os.path.join(workdir, _BASE)
  now = checkpoint.fingerprint(params)
  saved = None
  if hosts.is_first() and os.path.exists(file):
    with open(file, encoding='utf-8') as opened:
      saved = json.load(opened)['fingerprint']
  saved = hosts.broadcast(saved)
  if saved is None:
    if hosts.is_first():
      files.write_json(file, {'checkpoint': path, 'fingerprint': now})
  elif saved != now:
    raise ValueError(
      f'The run in {workdir!r} began with a base of fingerprint {saved}, but '
      f'{path!r} has {now}; give the base it began with, or another --workdir.'
    )


def load_model(path: str, dtype: str = 'float32') -> weights.Loaded:
  """`open_model`, with the parameters on the devices of the current mesh.

  Args:
    path: see there.
    dtype: of the parameters.

  Raises:
    ValueError: a weight is not finite.
  """
  return _load(open_model(path), path, dtype)


def load_to_train(
  path: str, optimizer: Optimizer, adapter: Adapter | None = None
) -> weights.Loaded:
  """`load_model` in float32, where this machine has room to train it.

  Args:
    path: of the model.
    optimizer: which will train it.
    adapter: what is trained, if not the model.

  Raises:
    ValueError: there is no room (`room.check`), or a weight is not finite.
  """
  opened = open_model(path)
  room.check(path, opened.params, optimizer, adapter)
  return _load(opened, path, 'float32')


def _load(opened: weights.Loaded, path: str, dtype: str) -> weights.Loaded:
  params = mapping.place(opened.params, dtype)
  finite.check(params, path)
  return dataclasses.replace(opened, params=params)


def load_tokenizer(path: str) -> Tokenizer:
  """The tokenizer of a model, whose weights are not read.

  Args:
    path: as of `open_model`.

  Raises:
    FileNotFoundError, ValueError: nothing usable there; one sentence.
  """
  folder = pathlib.Path(path)
  if (folder / 'checkpoints').is_dir():
    return Tokenizer.load(folder / 'model')
  return weights.open_model(path).tokenizer


def open_model(path: str) -> weights.Loaded:
  """A model from any kind of checkpoint, its weights not read yet.

  Those of a run's folder are read all the same, onto the current mesh.

  Args:
    path: a run's folder, a Hugging Face folder, hf://org/name or a GGUF file.

  Raises:
    FileNotFoundError, ValueError: nothing usable there; one sentence.
  """
  lifecycle.check_backend()
  folder = pathlib.Path(path)
  if not (folder / 'checkpoints').is_dir():
    opened = weights.open_model(path)
    for sentence in opened.left_out:
      print(f'{path}: {sentence}.', file=sys.stderr)
    return opened
  store = checkpoint.Store(path, read_only=True)
  if store.latest() is None:
    raise FileNotFoundError(
      f'{path}/checkpoints holds no finished checkpoint; give the folder of '
      'a run that has saved one, a Hugging Face folder or a GGUF file.'
    )
  described = folder / 'model' / 'config.json'
  config = mapping.model_config_from_hf(
    text_files.read_json(described), str(described)
  )
  adapter = adapters.described(path)
  shapes = jax.eval_shape(
    lambda key: transformer.init(config, key), jax.random.key(0)
  )
  if adapter:
    scale, shapes = adapter
  one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  where = sharding.param_shardings(parameters.AXES, shapes) or jax.tree.map(
    lambda _: one, shapes
  )
  params = store.restore_params(
    jax.tree.map(
      lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
      shapes,
      where,
    )
  )
  store.close()
  if adapter:
    params = adapters.merge(scale, adapters.join(params, _load_base(path)))
  return weights.Loaded(config, params, Tokenizer.load(folder / 'model'))


def _base_of(workdir: str) -> str:
  """Path or name of the model that a run began with."""
  with open(os.path.join(workdir, _BASE), encoding='utf-8') as file:
    return json.load(file)['checkpoint'] or embedded('tiny_base')


def _load_base(workdir: str) -> Params:
  """The base beside which a run trains an adapter.

  Raises:
    ValueError: it is not there, or another than the run began with.
  """
  path = _base_of(workdir)
  try:
    params = load_model(path).params
  except FileNotFoundError as error:
    raise ValueError(
      f'The run in {workdir!r} trains an adapter of {path!r}, which cannot be '
      f'read ({error}); put it back, or take {workdir}/model, which a finished '
      'run has with the adapter merged.'
    ) from error
  check_base(workdir, path, params)
  return params
