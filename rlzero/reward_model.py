"""Reward models: a score for a completion, learned from judgements.

  python -m rlzero.reward_model --checkpoint=MODEL --data=pairs.jsonl \
    --workdir=DIR

The score is a linear function of the last hidden state, at the end of the
sequence. `pairwise` learns which of two completions of a prompt is better
(helpfulness; records have `prompt`, `chosen`, `rejected`), `pointwise`
whether a completion is good (harmlessness; `prompt`, `completion`, `label`).
`WORKDIR/model` is what `load` reads, and GRPO beside its rules; accuracy on
the prompts that are held out is in `WORKDIR/held_out.json`.

Differences from the paper:
- Helpfulness reads the summary alone and harmlessness everything, as there;
  here that is a setting, `reads`.
- Judgements come from files; the paper's are made by DeepSeek-V3.
"""

import dataclasses
import functools
import itertools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Float

from rlzero import (
  checkpoint,
  config,
  hosts,
  metrics,
  packing,
  sft,
  sharding,
  supervised,
)
from rlzero.evaluation import sampler
from rlzero.models import transformer
from rlzero.models.config import ModelConfig
from rlzero.optim import Optimizer
from rlzero.tasks import base, template
from rlzero.tasks.datasets import records
from rlzero.tasks.template import Template
from rlzero.tokenizer import Tokenizer
from rlzero.types import Params

AXES = {**transformer.AXES, 'weight': 'D', 'bias': ''}
_FILE = 'score.json'  # beside the weights: the last layer, and what is read
_MICRO_TOKENS = 8192  # when scoring, unless one completion is longer
Reads = Literal['summary', 'everything']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(supervised.Config):
  """Settings of a run.

  The defaults of batch size, length, epochs and rate are those of the paper's
  helpful reward model (arXiv 2501.12948v2, supplement); `held_out` is ours.
  """

  kind: Literal['pairwise', 'pointwise'] = 'pairwise'
  reads: Reads = 'summary'  # what follows the thought, or all of a completion
  held_out: float = 0.1  # share of the prompts
  batch_size: int = 256  # pairs, or completions, an update
  max_len: int = 8192  # tokens of a prompt and one completion
  num_epochs: float = 1.0
  optimizer: Optimizer = Optimizer(learning_rate=6e-6)

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.held_out < 1:
      raise ValueError(
        f'reward_model.Config.held_out is {self.held_out}; it must be in '
        '[0, 1).'
      )
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
  """What tokens carry: at the end of a (better) completion, how it counts."""

  sign: Float[Array, 'B T']  # +1 good or better, -1 bad, 0 elsewhere
  other: Any  # int [B, T]; tokens from there to the end of the worse one, or 0


class RewardModel:
  """Scores completions; `load` makes it.

  Attributes:
    reads: what it was taught to read.
  """

  def __init__(
    self,
    model: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    kind: Template,
    reads: Reads,
  ):
    self.reads = reads
    self._model, self._params = model, params
    self._tokenizer, self._kind = tokenizer, kind
    self._scores = jax.jit(functools.partial(scores, model))

  def score(self, completions: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Scores, higher is better, [B], in the order of the completions.

    Args:
      completions: each with `question` and `completion`, as text.

    Raises:
      ValueError: one that is longer than the model takes.
    """
    pieces = []
    for record in completions:
      ids = sequence(
        self._tokenizer,
        self._kind,
        self.reads,
        record['question'],
        record['completion'],
      )
      if ids.size > self._model.max_position:
        raise ValueError(
          f'A prompt and its completion have {ids.size} tokens, but the reward '
          f'model takes {self._model.max_position}; lower max_len.'
        )
      pieces.append(packing.Piece((ids,), ()))
    out = np.zeros(len(pieces), np.float32)
    for places, packed in packing.pack(
      pieces, _MICRO_TOKENS, self._model.max_position, sharding.ways('B')
    ):
      found = hosts.fetch(
        self._scores(self._params, supervised.place(packed).tokens)
      )
      for i, row, start in places:
        out[i] = found[row, start + len(pieces[i].sequences[0]) - 1]
    return out


def load(path: str) -> RewardModel:
  """The reward model of a run, or of its `model` folder.

  Raises:
    FileNotFoundError: no reward model there.
  """
  folder = pathlib.Path(path)
  if (folder / 'model').is_dir():
    folder = folder / 'model'
  if not (folder / _FILE).is_file():
    raise FileNotFoundError(
      f'{path} holds no reward model (no {_FILE}); give the folder of a '
      'finished run of rlzero.reward_model.'
    )
  facts = json.loads((folder / _FILE).read_text())
  loaded = checkpoint.load_model(str(folder))
  params = {
    **loaded.params,
    'score': sharding.place_params(
      AXES, {k: jnp.float32(facts[k]) for k in ('weight', 'bias')}
    ),
  }
  return RewardModel(
    loaded.config,
    params,
    loaded.tokenizer,
    Template(**facts['template']),
    facts['reads'],
  )


def run(cfg: Config) -> None:
  """Trains, or goes on from the last checkpoint, and judges the held out.

  Raises:
    ValueError: input that cannot be used, or a loss that is not finite.
  """
  config.check_same(cfg, cfg.workdir)
  with sharding.use(cfg.mesh):
    loaded = checkpoint.load_model(cfg.checkpoint)
    model = cfg.model(loaded.config)
    found = supervised.load(
      cfg,
      functools.partial(encode, cfg, loaded.tokenizer),
      lambda _: None,
    )
    taught = [[j for j in some if not _held_out(cfg, j)] for some in found]
    apart = [j for some in found for j in some if _held_out(cfg, j)]
    if not all(taught):
      raise ValueError(
        'A source has no judgements but those that are held out; lower '
        f'reward_model.Config.held_out = {cfg.held_out}, or give more.'
      )
    order = supervised.order(cfg, [len(some) for some in taught])
    judgements = list(itertools.chain(*taught))
    config.save_resolved(cfg, cfg.workdir)
    params = {
      **sharding.place_params(AXES, loaded.params),
      'score': sharding.place_params(AXES, fresh(model)),
    }
    the_loss = functools.partial(loss, model)
    params = supervised.fit(
      cfg,
      'reward_model',
      params,
      cfg.num_steps or order.num_steps(cfg.num_epochs),
      lambda step, _: _packed(cfg, [judgements[i] for i in order.batch(step)]),
      the_loss,
      axes=AXES,
    )
    figures = judge(the_loss, params, _packed(cfg, apart))
    _write(cfg, model, params, loaded.tokenizer, figures)
  print(
    f'held out: {figures["num"]} judgements, accuracy {figures["accuracy"]}, '
    f'loss {figures["loss"]}'
  )


def encode(
  cfg: Config, tokenizer: Tokenizer, record: records.Record
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
    sequence(
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


def sequence(
  tokenizer: Tokenizer,
  kind: Template,
  reads: Reads,
  prompt: str,
  completion: str,
) -> np.ndarray:
  """Prompt, what is read of the completion, and end of sequence."""
  asked = sampler.asked(tokenizer, kind, prompt)
  if reads == 'summary':
    completion = template.summary(completion, tokenizer.decode(asked, False))
  return sft.join(tokenizer, asked, completion).ids


def piece(judgement: Judgement) -> packing.Piece:
  """For packing: a pair stays in one row."""
  lengths = [len(s) for s in judgement.sequences]
  sign = np.zeros(sum(lengths), np.float32)
  other = np.zeros(sum(lengths), np.int32)
  end = lengths[0] - 1
  sign[end] = 2 * judgement.label - 1
  other[end] = sum(lengths[1:])
  return packing.Piece(judgement.sequences, Marks(sign, other))


def fresh(model: ModelConfig) -> Params:
  """The last layer before training: every score is 0."""
  return {'weight': jnp.zeros(model.width), 'bias': jnp.zeros(())}


def scores(model: ModelConfig, params: Params, rows: Any) -> jax.Array:
  """The score of what stands before each token, and of it, [B, T]."""
  hidden, _, _ = transformer.forward(model, params, rows)
  last = params['score']
  return hidden.astype(jnp.float32) @ last['weight'] + last['bias']


def loss(
  model: ModelConfig, params: Params, rows: packing.Packed, frozen: Any = ()
) -> tuple[jax.Array, dict[str, metrics.Mean]]:
  """Summed -log sigmoid of the margins, in nats.

  The margin of a pair is r(better) - r(worse) (Bradley-Terry; arXiv
  2203.02155, eq. 1); that of a single completion r if good and -r if bad,
  which makes it logistic regression.
  """
  del frozen
  values = scores(model, params, rows.tokens)
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


def judge(the_loss, params: Params, micros) -> dict[str, float | None]:
  """Loss and accuracy over judgements; None where there are none."""
  of_one = jax.jit(the_loss)
  totals = [jax.device_get(of_one(params, micro)[1]) for micro in micros]
  if not totals:
    return {'num': 0, 'loss': None, 'accuracy': None}
  sums = {k: sum(t[k] for t in totals) for k in ('loss', 'accuracy')}
  return {
    'num': int(sums['loss'].count),
    **{name: float(mean.value) for name, mean in sums.items()},
  }


def _held_out(cfg: Config, judgement: Judgement) -> bool:
  """By the prompt, so that none is on both sides."""
  return base.bucket(judgement.prompt, 1000) < 1000 * cfg.held_out


def _packed(cfg: Config, judgements: Sequence[Judgement]):
  longest = (2 if cfg.kind == 'pairwise' else 1) * cfg.max_len
  return supervised.pack(cfg, [piece(j) for j in judgements], longest)


def _write(cfg, model, params, tokenizer, figures) -> None:
  """Weights as a Hugging Face folder, the last layer and the figures."""
  last = jax.device_get(params.pop('score'))
  folder = checkpoint.write_model(cfg.workdir, model, params, tokenizer)
  facts = {
    'reads': cfg.reads,
    'template': dataclasses.asdict(cfg.template),
    'weight': last['weight'].tolist(),
    'bias': float(last['bias']),
  }
  for path, value in (
    (os.path.join(folder, _FILE), facts),
    (os.path.join(cfg.workdir, 'held_out.json'), figures),
  ):
    with open(path, 'w', encoding='utf-8') as file:
      json.dump(value, file)


if __name__ == '__main__':
  from rlzero import reward_model

  config.main(reward_model)
