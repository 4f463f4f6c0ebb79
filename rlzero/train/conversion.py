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
from rlzero.weights import finite, gguf, gguf_writer, mapping, peft


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Settings of a conversion."""

  checkpoint: str  # run folder, Hugging Face folder, hf:// name or GGUF file
  output: str  # folder to write; of kind 'gguf' a file
  adapter: str = ''  # PEFT folder that is merged into the checkpoint
  # a Hugging Face folder, the folder of a run, or a GGUF file
  kind: Literal['folder', 'run', 'gguf'] = 'folder'
  # of the written weights; the last two are for 'gguf'
  dtype: Literal['float32', 'bfloat16', 'float16', 'q8_0'] = 'float32'
  shard_gb: float = 5.0  # the most a file of weights holds, in GB
  push: str = ''  # org/name on the hub that gets it, with a card; '' is none
  public: bool = False  # whether everyone sees a repository that is made
  overwrite: bool = False  # replace the files of a repository that has some
  # whether to compare log-probs too, with one whole model in memory at a time
  compare_logprobs: bool = True

  def __post_init__(self):
    fields.check(self, shard_gb=above(0))
    if self.kind != 'gguf' and self.dtype in ('float16', 'q8_0'):
      raise ValueError(
        f'convert.Config.dtype is {self.dtype!r}, which GGUF files alone have '
        "here; write --kind=gguf, or take 'float32' or 'bfloat16'."
      )
    if self.kind == 'run' and self.push:
      raise ValueError(
        "convert.Config.kind is 'run' with push; the hub takes a 'folder' or "
        "'gguf'."
      )
    if self.push and self.push.count('/') != 1:
      raise ValueError(
        f'convert.Config.push is {self.push!r}; write it as org/name.'
      )
    if (self.public or self.overwrite) and not self.push:
      raise ValueError(
        'convert.Config.public and overwrite are about the hub; name the '
        'repository with --push=org/name, or leave them out.'
      )
    if (self.kind == 'gguf') != self.output.endswith('.gguf'):
      raise ValueError(
        f'convert.Config.kind is {self.kind!r} and the output {self.output!r}, '
        'but a GGUF file is written by --kind=gguf --output=NAME.gguf, and a '
        'folder has another name.'
      )
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
  finite.check(params, cfg.adapter)
  return dataclasses.replace(model, params=adapters.merge(scale, params))


def write_files(cfg: Settings, model: weights.Loaded) -> None:
  """Writes a Hugging Face folder or a GGUF file, and shows progress."""
  bar: list[metrics.Progress] = []

  def show(done: int, total: int) -> None:
    """In MB."""
    if not bar:
      bar.append(metrics.Progress(round(total / 1e6), 'convert, MB'))
    bar[0].show(round(done / 1e6))

  try:
    if cfg.kind == 'gguf':
      weights.write_gguf(
        cfg.output,
        model.config,
        model.params,
        model.tokenizer,
        cfg.dtype,
        show,
      )
    else:
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
      raise _damaged(ours.name, cfg.output)


def check_gguf(cfg: Settings, before: weights.Loaded) -> weights.Loaded:
  """Compares a GGUF file with what was to be written; returns what it is.

  Raises:
    ValueError: they differ.
  """
  after = weights.open_model(cfg.output)
  wrong = mapping.differing(gguf_writer.stored(before.config), after.config)
  if wrong:
    raise ValueError(
      f'{cfg.output} reads back otherwise ({", ".join(wrong)}); this is a '
      'fault of rlzero, please report it.'
    )
  stored = gguf.tensors(cfg.output)
  for ours in mapping.tensors_from_params(before.config, before.params, 'gguf'):
    back = stored[ours.name]
    whole = tuple(slice(0, size) for size in back.shape)
    if not np.array_equal(
      gguf_writer.rounded(ours, cfg.dtype), back.read(whole)
    ):
      raise _damaged(ours.name, cfg.output)
  return after


def _damaged(name: str, output: str) -> ValueError:
  return ValueError(
    f'{name} in {output} is not what was written; check the disk and convert '
    'again.'
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
