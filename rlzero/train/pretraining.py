"""Trains the tiny base on made-up texts, from random weights."""

import dataclasses
import functools
from typing import ClassVar

import jax
import numpy as np
import optax
from jax import numpy as jnp

from rlzero.models import parameters, transformer, vocab_head
from rlzero.models.config import ModelConfig
from rlzero.runtime import fields, hosts, sharding
from rlzero.runtime.fields import at_least, grows_on_resume, mutable_on_resume
from rlzero.tasks import countdown
from rlzero.text.tokenizer import Tokenizer
from rlzero.train import folders, optim
from rlzero.train.optim import Optimizer
from rlzero.types import Params, Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Settings of a pre-training run."""

  SHORT_FLAGS: ClassVar[dict[str, str]] = optim.SHORT_FLAGS

  workdir: str = mutable_on_resume()
  model: ModelConfig
  checkpoint: str = ''  # to start from; '' is random weights
  corpus: countdown.Corpus = countdown.Corpus()
  mesh: sharding.Mesh = sharding.Mesh()  # one device by default
  optimizer: Optimizer = Optimizer(
    kind='muon', learning_rate=3e-3, warmup_steps=50, schedule='linear'
  )
  num_steps: int = grows_on_resume(2000)  # updates
  num_rows: int = 32  # B, rows of packed documents an update
  row_len: int = 128  # T, tokens a row
  save_every: int = 500  # updates between checkpoints
  seed: int = 0

  def __post_init__(self):
    fields.check(
      self,
      num_steps=at_least(1),
      num_rows=at_least(1),
      row_len=at_least(1),
      save_every=at_least(1),
      seed=fields.SEED,
    )


def batch(cfg: Settings, tokenizer: Tokenizer, step: int) -> Tokens:
  """Rows of packed documents, a function of the seed and the step alone.

  Documents go whole into the first row with room; the batch is full when one
  fits nowhere. Positions start at 0 in each document. Every host makes all rows
  (documents are made in a sequence), and hands its own to its devices.
  """
  shape = cfg.num_rows, cfg.row_len
  ids = np.full(shape, tokenizer.pad_id, np.int32)
  positions, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
  used = [0] * cfg.num_rows
  eos = tokenizer.eos_ids[0]
  documents = cfg.corpus.documents(cfg.seed * 1_000_003 + step)
  number = 0
  while True:
    number += 1
    document = [*tokenizer.encode(next(documents)), eos]
    size = len(document)
    if size > cfg.row_len:
      raise ValueError(
        f'The corpus has a document of {size} tokens, but '
        f'pretrain.Config.row_len is {cfg.row_len}; make the rows longer.'
      )
    row = next((r for r, n in enumerate(used) if n + size <= cfg.row_len), None)
    if row is None:
      return Tokens(ids, positions, segments)
    place = slice(used[row], used[row] + size)
    ids[row, place] = document
    positions[row, place] = np.arange(size)
    segments[row, place] = number
    used[row] += size


def initial(
  cfg: Settings, tokenizer: Tokenizer, transform: optax.GradientTransformation
) -> tuple[Params, optax.OptState]:
  """Parameters and optimizer state before the first step."""
  params = transformer.init(cfg.model, jax.random.key(cfg.seed))
  if cfg.checkpoint:
    params = grown(cfg, tokenizer, params)
  params = sharding.device_put_params(parameters.AXES, params)
  return params, transform.init(params)


def grown(cfg: Settings, tokenizer: Tokenizer, fresh: Params) -> Params:
  """The checkpoint's parameters, with a row of the embedding a new word.

  A word that the checkpoint does not know starts at its translation, so that
  the model already knows what it means, moved in a direction that all new words
  have in common: that is their language.
  """
  old = folders.load_model(cfg.checkpoint)
  same = dataclasses.replace(old.config, vocab_size=cfg.model.vocab_size)
  if same != cfg.model:
    raise ValueError(
      f'{cfg.checkpoint} is of the shape {same}, and pretrain.Config.model is '
      f'{cfg.model}; they must be the same up to vocab_size.'
    )
  table = np.array(fresh['embed']['embedding'])  # its noise, by the seed
  known = jnp.asarray(hosts.fetch(old.params['embed']['embedding']))
  size = old.tokenizer.vocab_size
  if old.tokenizer.decode(range(size), False) != tokenizer.decode(
    range(size), False
  ):
    raise ValueError(
      f'The {size} words of {cfg.checkpoint} are not the first of the corpus; '
      'a vocabulary can only be added to.'
    )
  table[:size] = known[:size]
  away = np.random.default_rng(cfg.seed).normal(size=known.shape[1])
  for new, old_word in cfg.corpus.translations.items():
    (at,), (near,) = tokenizer.encode(new), tokenizer.encode(old_word)
    table[at] = known[near] + np.std(known) * away
  return {**old.params, 'embed': {'embedding': jnp.asarray(table)}}


def batch_loss(model: ModelConfig, params: Params, rows: Tokens) -> jax.Array:
  """Mean cross-entropy of next tokens inside documents, in nats."""
  hidden, _, _ = transformer.forward(model, params, rows)
  logprobs, _ = vocab_head.logprobs_and_entropy(
    hidden[:, :-1],
    transformer.head(model, params),
    rows.ids[:, 1:],
    chunk=4096,
  )
  same = rows.segments[:, 1:] == rows.segments[:, :-1]
  mask = same & (rows.segments[:, 1:] > 0)
  return -jnp.sum(logprobs * mask) / jnp.sum(mask)


def update(
  model: ModelConfig,
  transform: optax.GradientTransformation,
  state: tuple[Params, optax.OptState],
  rows: Tokens,
) -> tuple[tuple[Params, optax.OptState], jax.Array]:
  """Takes one step: the new state, and the loss before it."""
  params, opt_state = state
  loss, grads = jax.value_and_grad(functools.partial(batch_loss, model))(
    params, rows
  )
  updates, opt_state = transform.update(grads, opt_state, params)
  params = optax.apply_updates(params, updates)
  params = sharding.constrain_params(parameters.AXES, params)
  return (params, opt_state), loss
