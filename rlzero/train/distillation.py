"""Trains a student on what a teacher would say."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import jax
import numpy as np
from jax import numpy as jnp

from rlzero.models import transformer, vocab_head
from rlzero.models.config import ModelConfig
from rlzero.rollout import encoding, sampling, scheduler
from rlzero.rollout.sampling import Sampling
from rlzero.runtime import metrics
from rlzero.tasks.datasets import records
from rlzero.text.tokenizer import Tokenizer
from rlzero.train import demonstrations, folders, optim, sequences, supervised
from rlzero.types import Params

_CHUNK = 512  # tokens whose logits are held at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(supervised.Config):
  """Settings of a run; the defaults are the paper's but for the rate."""

  SHORT_FLAGS: ClassVar[dict[str, str]] = {
    **optim.SHORT_FLAGS,
    **sampling.SHORT_FLAGS,
  }

  loss: Literal['traces', 'forward_kl', 'reverse_kl'] = 'traces'
  teacher: str = ''  # checkpoint; of the KL losses
  on_policy: bool = False  # the student's own completions, not the data's
  sampling: Sampling = Sampling()  # of these
  batch_size: int = 64  # examples an update

  def __post_init__(self):
    super().__post_init__()
    if (self.loss == 'traces') != (not self.teacher):
      raise ValueError(
        f'distill.Config.teacher is {self.teacher!r} with loss {self.loss!r}; '
        "traces are the teacher already ('' then), and the others need its "
        'checkpoint.'
      )
    if not self.on_policy:
      return
    if self.loss == 'traces':
      raise ValueError(
        "distill.Config.on_policy is set with loss 'traces', which would teach "
        'the student its own completions; choose a KL.'
      )
    longest = self.sampling.max_prompt_len + self.sampling.max_len
    if longest > self.max_len:
      raise ValueError(
        f'distill.Config.sampling allows {longest} tokens (max_prompt_len + '
        f'max_len), but max_len is {self.max_len}; raise it.'
      )


def load_teacher(
  cfg: Settings, tokenizer: Tokenizer
) -> tuple[ModelConfig, Params]:
  """The teacher, which must have the student's tokenizer.

  Raises:
    ValueError: it has another.
  """
  teacher = folders.load_model(cfg.teacher)
  token = tokenizer.difference(teacher.tokenizer)
  if token is not None:
    raise ValueError(
      f'The tokenizers of {cfg.teacher} and {cfg.checkpoint} give {token!r} '
      'different ids, and a KL compares the models id by id; take two with '
      "one tokenizer, or set loss to 'traces'."
    )
  return cfg.model(teacher.config), teacher.params


def load_prompts(
  cfg: Settings, tokenizer: Tokenizer
) -> tuple[list[np.ndarray], supervised.Order]:
  """Token ids of the prompts of all sources, and the order of batches."""

  def encode(record: records.Record) -> np.ndarray:
    return np.array(
      demonstrations.asked(tokenizer, cfg.template, record), np.int32
    )

  short = dataclasses.replace(
    cfg, max_len=cfg.sampling.max_prompt_len, on_policy=False
  )
  found = supervised.load(short, encode, lambda _: None, np.asarray)
  order = supervised.order(cfg, [len(prompts) for prompts in found])
  return [prompt for prompts in found for prompt in prompts], order


def on_policy(
  cfg: Settings,
  model: ModelConfig,
  tokenizer: Tokenizer,
  prompts: Sequence[np.ndarray],
  order: supervised.Order,
  step: int,
  params: Params,
) -> list[demonstrations.Example]:
  """The step's prompts, each with what the student says to it."""
  chosen = [prompts[i] for i in order.batch(step)]
  completions, _ = scheduler.generate(
    model,
    params,
    [
      scheduler.Prompt(step * cfg.batch_size + i, prompt.tolist())
      for i, prompt in enumerate(chosen)
    ],
    1,
    cfg.sampling,
    stop=encoding.stop_criteria(tokenizer),
    seed=cfg.seed,
  )
  return [
    demonstrations.Example(
      np.append(prompt, c.tokens).astype(np.int32), prompt.size
    )
    for prompt, c in zip(chosen, completions, strict=True)
  ]


def loss(
  model: ModelConfig,
  teacher: ModelConfig,
  direction: Literal['forward', 'reverse'],
  params: Params,
  rows: sequences.PackedBatch,
  frozen: Params,
) -> tuple[jax.Array, dict[str, metrics.Mean]]:
  """Summed KL at the tokens of completions, in nats.

  The gradient does not go through what an on-policy student sampled (arXiv
  2306.13649, eq. 5).
  """

  def predicting(model, params):
    hidden, _, _ = transformer.forward(model, params, rows.tokens)
    return transformer.predictors(
      hidden, None, rows.tokens, None
    ), transformer.head(model, params)

  ours, head = predicting(model, params)
  theirs, teacher_head = predicting(teacher, frozen)
  # Embeddings may be padded to different sizes behind one vocabulary.
  size = min(head.shape[1], teacher_head.shape[1])
  divergence = vocab_head.distillation_kl(
    ours,
    head[:, :size],
    jax.lax.stop_gradient(theirs),
    teacher_head[:, :size],
    direction,
    _CHUNK,
  )
  value = jnp.sum(rows.extras * divergence)
  return value, {'loss': metrics.Mean(value, jnp.sum(rows.extras))}
