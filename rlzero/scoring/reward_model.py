"""Scores completions with a trained reward model."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax import numpy as jnp

from rlzero.models import parameters, transformer
from rlzero.models.config import ModelConfig
from rlzero.rollout import encoding
from rlzero.runtime import hosts, sharding
from rlzero.text import files, template
from rlzero.text.template import Template
from rlzero.text.tokenizer import Tokenizer
from rlzero.train import demonstrations, folders, sequences, supervised
from rlzero.types import Params

SCORE_FILE = (
  'score.json'  # beside the weights: the last layer, and what is read
)

_MICRO_TOKENS = 8192  # when scoring, unless one completion is longer
Reads = Literal['summary', 'everything']


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
    self.reads: Reads = reads
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
    items = []
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
      items.append(sequences.PackItem((ids,), ()))
    out = np.zeros(len(items), np.float32)
    for places, packed in sequences.pack(
      items, _MICRO_TOKENS, self._model.max_position, sharding.axis_size('B')
    ):
      found = hosts.fetch(
        self._scores(self._params, supervised.place(packed).tokens)
      )
      for i, row, start in places:
        out[i] = found[row, start + len(items[i].sequences[0]) - 1]
    return out


def load(path: str) -> RewardModel:
  """The reward model of a run, or of its `model` folder.

  Raises:
    FileNotFoundError: no reward model there.
  """
  folder = pathlib.Path(path)
  if (folder / 'model').is_dir():
    folder = folder / 'model'
  if not (folder / SCORE_FILE).is_file():
    raise FileNotFoundError(
      f'{path} holds no reward model (no {SCORE_FILE}); give the folder of a '
      'finished run of rlzero.reward_model.'
    )
  metadata = files.read_json(folder / SCORE_FILE)
  loaded = folders.load_model(str(folder))
  params = {
    **loaded.params,
    'score': sharding.device_put_params(
      parameters.AXES, {k: jnp.float32(metadata[k]) for k in ('weight', 'bias')}
    ),
  }
  return RewardModel(
    loaded.config,
    params,
    loaded.tokenizer,
    Template(**metadata['template']),
    metadata['reads'],
  )


def sequence(
  tokenizer: Tokenizer,
  kind: Template,
  reads: Reads,
  prompt: str,
  completion: str,
) -> np.ndarray:
  """Prompt, what is read of the completion, and end of sequence."""
  asked = encoding.encode_prompt(tokenizer, kind, prompt)
  if reads == 'summary':
    completion = template.summary(
      completion, encoding.begins_thought(tokenizer, asked)
    )
  return demonstrations.join(tokenizer, asked, completion).ids


def scores(model: ModelConfig, params: Params, rows: Any) -> jax.Array:
  """The score of what stands before each token, and of it, [B, T]."""
  hidden, _, _ = transformer.forward(model, params, rows)
  last = params['score']
  return hidden.astype(jnp.float32) @ last['weight'] + last['bias']
