"""Trains a reward model on judgements."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Float, Int

from rlzero.models.config import ModelConfig
from rlzero.runtime import fields, files, hosts, metrics
from rlzero.runtime.fields import at_least
from rlzero.scoring import reward_model
from rlzero.tasks import base
from rlzero.tasks.datasets import records
from rlzero.text.tokenizer import Tokenizer
from rlzero.train import folders, sequences, supervised
from rlzero.train.optim import Optimizer
from rlzero.types import AnyArray, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(supervised.Config):
  """Settings of a run.

  The defaults of batch size, length, epochs and rate are those of the paper's
  helpful reward model (arXiv 2501.12948v2, supplement); `held_out` is ours.
  """

  kind: Literal['pairwise', 'pointwise'] = 'pairwise'
  reads: reward_model.Reads = (
    'summary'  # what follows the thought, or all of a completion
  )
  held_out: float = 0.1  # share of the prompts
  batch_size: int = 256  # pairs, or completions, an update
  max_len: int = 8192  # tokens of a prompt and one completion
  num_epochs: float = 1.0
  optimizer: Optimizer = Optimizer(learning_rate=6e-6)

  def __post_init__(self):
    super().__post_init__()
    fields.check(self, held_out=at_least(0).below(1))
    if self.too_long != 'drop':
      raise ValueError(
        "reward_model.Config.too_long must be 'drop': the score stands at the "
        'end, which a cut would take away.'
      )


class Judgement(NamedTuple):
  """A completion with its label, or two with the better one first."""

  prompt: str
  sequences: tuple[np.ndarray, ...]  # prompt, completion, EOS
  label: float  # 1 good, 0 bad; of a pair 1

  @property
  def size(self) -> int:
    return max(map(len, self.sequences))


class Marks(NamedTuple):
  """Marks of tokens: how a (better) completion counts, at its end."""

  sign: Float[AnyArray, 'B T']  # +1 good or better, -1 bad, 0 elsewhere
  # Tokens from there to the end of the worse one, or 0.
  other: Int[AnyArray, 'B T']


def encode(
  cfg: Settings, tokenizer: Tokenizer, record: records.Record
) -> Judgement:
  """Token ids of a record.

  Raises:
    ValueError: a record that is no judgement of this kind.
  """
  prompt = records.field(record, 'prompt', str)
  names, label = ('chosen', 'rejected'), 1.0
  if cfg.kind == 'pointwise':
    names = ('completion',)
    label = record[1].get('label')
    if label not in (0, 1):
      raise ValueError(
        f"{record[0]} has {label!r} as its 'label'; it must be 1 for a good "
        'completion and 0 for a bad one.'
      )
  sequences = tuple(
    reward_model.sequence(
      tokenizer,
      cfg.template,
      cfg.reads,
      prompt,
      records.field(record, name, str),
    )
    for name in names
  )
  if len(sequences) > len({s.tobytes() for s in sequences}):
    raise ValueError(
      f'{record[0]} has the same {cfg.reads!r} as chosen and as rejected; '
      'leave it out.'
    )
  return Judgement(prompt, sequences, float(label))


def rebuild(plain: Sequence[Any]) -> Judgement:
  """A judgement that another host has encoded, from its fields."""
  prompt, some, label = plain
  return Judgement(prompt, tuple(some), label)


def pack_item(judgement: Judgement) -> sequences.PackItem:
  """For packing: a pair stays in one row."""
  lengths = [len(s) for s in judgement.sequences]
  sign = np.zeros(sum(lengths), np.float32)
  other = np.zeros(sum(lengths), np.int32)
  end = lengths[0] - 1
  sign[end] = 2 * judgement.label - 1
  other[end] = sum(lengths[1:])
  return sequences.PackItem(judgement.sequences, Marks(sign, other))


def fresh(model: ModelConfig) -> Params:
  """The last layer before training: every score is 0."""
  return {'weight': jnp.zeros(model.width), 'bias': jnp.zeros(())}


def loss(
  model: ModelConfig,
  params: Params,
  rows: sequences.PackedBatch,
  frozen: Any = (),
) -> tuple[jax.Array, dict[str, metrics.Mean]]:
  """Summed -log sigmoid of the margins, in nats.

  The margin of a pair is r(better) - r(worse) (Bradley-Terry; arXiv
  2203.02155, eq. 1); that of a single completion r if good and -r if bad,
  which makes it logistic regression.
  """
  del frozen
  values = reward_model.scores(model, params, rows.tokens)
  sign, other = rows.extras
  place = jnp.arange(sign.shape[1])[None] + other
  worse = jnp.take_along_axis(values, place, axis=1)
  margin = sign * (values - jnp.where(other > 0, worse, 0.0))
  counts = jnp.abs(sign)
  value = -jnp.sum(counts * jax.nn.log_sigmoid(margin))
  count = jnp.sum(counts)
  return value, {
    'loss': metrics.Mean(value, count),
    'accuracy': metrics.Mean(jnp.sum(counts * (margin > 0)), count),
  }


def judge(
  the_loss: Callable[..., tuple[jax.Array, dict[str, metrics.Mean]]],
  params: Params,
  micros: Iterable[sequences.PackedBatch],
) -> dict[str, float | None]:
  """Loss and accuracy over judgements; None where there are none."""
  of_one = jax.jit(the_loss)
  totals = [jax.device_get(of_one(params, micro)[1]) for micro in micros]
  if not totals:
    return {'num': 0, 'loss': None, 'accuracy': None}
  none = metrics.Mean(0.0, 0.0)
  sums = {k: sum((t[k] for t in totals), none) for k in ('loss', 'accuracy')}
  return {
    'num': int(sums['loss'].count),
    **{name: float(mean.value) for name, mean in sums.items()},
  }


def is_held_out(cfg: Settings, judgement: Judgement) -> bool:
  """By the prompt, so that none is on both sides."""
  return base.bucket(judgement.prompt, 1000) < 1000 * cfg.held_out


def pack(
  cfg: Settings, judgements: Sequence[Judgement]
) -> Iterable[sequences.PackedBatch]:
  """Microbatches of the judgements; a pair stays in one row."""
  longest = (2 if cfg.kind == 'pairwise' else 1) * cfg.max_len
  return supervised.pack(cfg, [pack_item(j) for j in judgements], longest)


def write(
  cfg: Settings,
  model: ModelConfig,
  params: Params,
  tokenizer: Tokenizer,
  measured: dict[str, float | None],
) -> None:
  """Weights as a Hugging Face folder, the last layer and the metrics.

  The first host writes them.
  """
  last = hosts.fetch(params.pop('score'))
  folder = folders.write_model(cfg.workdir, model, params, tokenizer)
  metadata = {
    'reads': cfg.reads,
    'template': dataclasses.asdict(cfg.template),
    'weight': last['weight'].tolist(),
    'bias': float(last['bias']),
  }

  def write_rest() -> None:
    files.write_json(os.path.join(folder, reward_model.SCORE_FILE), metadata)
    files.write_json(os.path.join(cfg.workdir, 'held_out.json'), measured)

  hosts.on_first(write_rest)
