"""Writes any checkpoint in another format, and compares the two."""

import dataclasses
import os
from typing import Literal

import jax
import numpy as np
from jax import numpy as jnp

from rlzero import weights
from rlzero.models import transformer
from rlzero.models.config import ModelConfig
from rlzero.runtime import fields, metrics
from rlzero.runtime.fields import above
from rlzero.train import adapters, checkpoint, folders
from rlzero.types import Params, Tokens
from rlzero.weights import mapping, peft


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Settings of a conversion."""

  checkpoint: str  # run folder, Hugging Face folder, hf:// name or GGUF file
  output: str  # folder to write
  adapter: str = ''  # PEFT folder that is merged into the checkpoint
  kind: Literal['folder', 'run'] = 'folder'  # Hugging Face's, or a run's
  dtype: Literal['float32', 'bfloat16'] = 'float32'  # of the written weights
  shard_gb: float = 5.0  # the most a file of weights holds, in GB
  # whether to compare log-probs too, with one whole model in memory at a time
  compare_logprobs: bool = True

  def __post_init__(self):
    fields.check(self, shard_gb=above(0))
    if self.kind == 'run' and self.dtype != 'float32':
      raise ValueError(
        f"convert.Config.kind is 'run' with dtype {self.dtype!r}; runs hold "
        "float32, so leave dtype out, or write a 'folder'."
      )


def read(cfg: Settings) -> weights.Loaded:
  """The model to write; its weights are not read yet, unless they are merged.

  Raises:
    FileNotFoundError, ValueError: nothing usable there; one sentence.
  """
  model = folders.open_model(cfg.checkpoint)
  if not cfg.adapter:
    return model
  scale, leaves = peft.open_folder(cfg.adapter, model.config)
  params = mapping.place(adapters.join(leaves, model.params), 'float32')
  mapping.check_finite(params, cfg.adapter)
  return dataclasses.replace(model, params=adapters.merge(scale, params))


def write_folder(cfg: Settings, model: weights.Loaded) -> None:
  """Writes a Hugging Face folder, and shows progress."""
  bar: list[metrics.Progress] = []

  def show(done: int, total: int) -> None:
    """In MB."""
    if not bar:
      bar.append(metrics.Progress(round(total / 1e6), 'convert, MB'))
    bar[0].show(round(done / 1e6))

  try:
    weights.write_folder(
      cfg.output,
      model.config,
      model.params,
      model.tokenizer,
      cfg.dtype,
      int(cfg.shard_gb * 1e9),
      show,
    )
  finally:
    for shown in bar:
      shown.close()


def write_run(cfg: Settings, model: weights.Loaded) -> None:
  """Writes the model as the first checkpoint of a run."""
  folders.write_description(cfg.output, model.config, model.tokenizer)
  store = checkpoint.Store(cfg.output)
  params = mapping.place(model.params, cfg.dtype)
  store.save(0, params, {'step': np.int32(0)})
  store.close()


def check(
  cfg: Settings, before: weights.Loaded, after: weights.Loaded | mapping.Read
) -> None:
  """Compares what was written with what was read.

  Raises:
    ValueError: they differ.
  """
  if after.config != before.config:
    raise ValueError(
      f'{os.path.join(cfg.output, "config.json")} reads back as {after.config} '
      f'and not as {before.config}; this is a fault of rlzero, please report '
      'it.'
    )
  pairs = zip(
    mapping.tensors_from_params(before.config, before.params),
    mapping.tensors_from_params(after.config, after.params),
    strict=True,
  )
  for ours, back in pairs:
    if not np.array_equal(ours.read().astype(cfg.dtype), back.read()):
      raise ValueError(
        f'{ours.name} in {cfg.output} is not what was written; check the disk '
        'and convert again.'
      )


def some_logprobs(config: ModelConfig, params: Params) -> np.ndarray:
  """Log-probs of every next token in two rows of random tokens, [2, T, V]."""
  length = min(16, config.max_position)
  ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, length))
  places = np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape)
  rows = Tokens(ids.astype(np.int32), places, np.ones_like(places))

  @jax.jit
  def forward(params, rows):
    hidden, _, _ = transformer.forward(config, params, rows)
    logits = hidden @ transformer.head(config, params)
    return jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)

  return np.asarray(forward(mapping.place(params, 'float32'), rows))
