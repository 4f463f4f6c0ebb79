"""Writes a model as a Hugging Face folder, for transformers, vLLM and others.

  python -m rlzero.convert --checkpoint=PATH --output=DIR [--dtype=bfloat16]

PATH is a run's folder, a Hugging Face folder or a GGUF file. What was written
is read back: its weights must be the rounded ones bit for bit, and the
difference that the rounding makes to the log-probs is shown.
"""

import dataclasses
import os
import pathlib
from typing import Literal

import jax
import numpy as np
from jax import numpy as jnp

from rlzero import checkpoint, weights
from rlzero.models import transformer
from rlzero.models.config import ModelConfig
from rlzero.types import Params, Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of a conversion."""

  checkpoint: str  # run folder, Hugging Face folder or GGUF file
  output: str  # folder to write
  dtype: Literal['float32', 'bfloat16'] = 'float32'  # of the written weights
  shard_gb: float = 5.0  # the most a file of weights holds, in GB

  def __post_init__(self):
    if self.shard_gb <= 0:
      raise ValueError(
        f'convert.Config.shard_gb is {self.shard_gb}; it must be above 0.'
      )


def run(cfg: Config) -> None:
  """Converts, reads back and compares.

  Raises:
    ValueError: the output is the input, or what was written reads back
      otherwise.
  """
  if (
    pathlib.Path(cfg.output).resolve() == pathlib.Path(cfg.checkpoint).resolve()
  ):
    raise ValueError(
      f'The output {cfg.output!r} is the checkpoint itself; name another '
      'folder with --output=DIR.'
    )
  loaded = checkpoint.load_model(cfg.checkpoint)
  leaves = jax.tree.leaves(loaded.params)
  print(
    f'read {sum(x.size for x in leaves):,} parameters of {cfg.checkpoint}',
    flush=True,
  )
  weights.write_folder(
    cfg.output,
    loaded.config,
    loaded.params,
    loaded.tokenizer,
    cfg.dtype,
    int(cfg.shard_gb * 1e9),
  )
  written = sum(
    file.stat().st_size for file in pathlib.Path(cfg.output).iterdir()
  )
  print(f'wrote {written / 1e6:,.1f} MB to {cfg.output}', flush=True)
  config, params, _ = weights.read_folder(cfg.output)
  _check(cfg, loaded, config, params)
  difference = np.abs(
    _logprobs(loaded.config, loaded.params) - _logprobs(config, params)
  )
  print(
    f'read back: weights equal after rounding to {cfg.dtype}; log-probs '
    f'differ by {difference.max():.2g} at most'
  )


def _check(
  cfg: Config, loaded: weights.Loaded, config: ModelConfig, params: Params
) -> None:
  if config != loaded.config:
    raise ValueError(
      f'{os.path.join(cfg.output, "config.json")} reads back as {config} and '
      f'not as {loaded.config}; this is a fault of rlzero, please report it.'
    )
  expected = jax.tree_util.tree_leaves_with_path(loaded.params)
  for (path, ours), back in zip(expected, jax.tree.leaves(params), strict=True):
    rounded = np.asarray(ours).astype(cfg.dtype).astype(np.float32)
    if not np.array_equal(rounded, back):
      raise ValueError(
        f'{jax.tree_util.keystr(path)} in {cfg.output} is not what was '
        'written; check the disk and convert again.'
      )


def _logprobs(config: ModelConfig, params: Params) -> np.ndarray:
  """Of every next token in two rows of random tokens, [2, T, V]."""
  length = min(16, config.max_position)
  ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, length))
  places = np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape)
  rows = Tokens(ids.astype(np.int32), places, np.ones_like(places))

  @jax.jit
  def forward(params, rows):
    hidden, _, _ = transformer.forward(config, params, rows)
    logits = hidden @ transformer.head(config, params)
    return jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)

  return np.asarray(forward(params, rows))


if __name__ == '__main__':
  from rlzero import config, convert

  config.main(convert)
