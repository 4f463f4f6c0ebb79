"""Pre-trains a small base model on a synthetic corpus.

  python -m rlzero.pretrain --gin_file=configs/runs/tiny_base.gin --workdir=DIR

Reinforcement learning amplifies what a base can already do. The tiny base is
made here, from the documents that its corpus class describes, and written as
a Hugging Face folder, `WORKDIR/model`. With `checkpoint` it starts from an
earlier base, whose vocabulary may be the beginning of this one.

Differences from the paper: DeepSeek-V3-Base is a model of 671B parameters
trained on 14.8T tokens of text; this one has a million and sees a made-up
corpus of one kind of problem.
"""

import contextlib
import dataclasses
import functools
import sys
import time

import jax
import numpy as np

from rlzero.runtime import config, hosts, lifecycle, saved_config, sharding
from rlzero.text.tokenizer import Tokenizer
from rlzero.train import checkpoint, folders, pretraining, step_log

SEVERAL_HOSTS = True  # may run it together


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(pretraining.Settings):
  """Settings of a pre-training."""


def run(cfg: Config) -> None:
  """Trains from its start, or resumes from its last checkpoint."""
  saved_config.check_resume_compatible(cfg, cfg.workdir)
  with sharding.use(cfg.mesh):
    _train(cfg)


def _train(cfg: Config) -> None:
  """Trains on the mesh in use, and writes the model."""
  hosts.on_first(lambda: saved_config.save(cfg, cfg.workdir))
  tokenizer = Tokenizer.word_level(cfg.corpus.words, '<eos>', '<pad>')
  if tokenizer.vocab_size > cfg.model.vocab_size:
    raise ValueError(
      f'The corpus has {tokenizer.vocab_size} words, but '
      f'ModelConfig.vocab_size is {cfg.model.vocab_size}; make it as large.'
    )
  transform = cfg.optimizer.transform(cfg.num_steps)
  state = pretraining.initial(cfg, tokenizer, transform)
  store = checkpoint.Store(cfg.workdir)
  start = 0
  if saved := store.restore(*state):
    start, state = saved.step, (saved.params, saved.state)
  folders.write_description(cfg.workdir, cfg.model, tokenizer)
  update = jax.jit(
    functools.partial(pretraining.update, cfg.model, transform),
    donate_argnums=0,
  )
  with (
    contextlib.closing(store),
    hosts.preemption() as preempted,
    step_log.StepLog(cfg.workdir, 'pretrain', cfg.num_steps, start) as log,
  ):
    for step in range(start, cfg.num_steps):
      began = time.perf_counter()
      rows = pretraining.batch(cfg, tokenizer, step)
      rows = jax.tree.map(lambda x: sharding.device_put(x, 'BT'), rows)
      state, loss = update(state, rows)
      loss = float(loss)
      if not np.isfinite(loss):
        raise ValueError(
          f'At step {step} the loss is {loss}; the last good checkpoint is '
          f'step {store.latest()}. Lower the learning rate.'
        )
      seconds = time.perf_counter() - began
      rate = cfg.num_rows * cfg.row_len / seconds
      log.write(
        step,
        {'loss/mean': loss, 'time/tokens_per_s': rate},
        loss=loss,
        tokens_per_s=rate,
      )
      done, stop = step + 1 == cfg.num_steps, preempted()
      if (step + 1) % cfg.save_every == 0 or done or stop:
        store.save(step + 1, *state)
      if stop and not done:
        sys.exit(lifecycle.PREEMPTED)
  folders.write_model(cfg.workdir, cfg.model, state[0], tokenizer)


if __name__ == '__main__':
  from rlzero import pretrain

  config.main(pretrain)
