"""Supervised examples: a prompt and a completion that is learned."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp

from rlzero.models import transformer, vocab_head
from rlzero.models.config import ModelConfig
from rlzero.rollout import encoding
from rlzero.runtime import metrics
from rlzero.tasks.datasets import records
from rlzero.text.template import Template
from rlzero.text.tokenizer import Tokenizer
from rlzero.train import sequences, supervised
from rlzero.types import Params

_CHUNK = 1024  # tokens whose logits are held at a time


class Example(NamedTuple):
  """A prompt and its completion, end of sequence included."""

  ids: np.ndarray  # [n]
  prompt_len: int  # tokens, at least 1

  @property
  def size(self) -> int:
    return self.ids.size

  @property
  def completion(self) -> np.ndarray:
    return self.ids[self.prompt_len :]


def load(
  cfg: supervised.Config, tokenizer: Tokenizer
) -> tuple[list[Example], supervised.Order]:
  """The examples of all sources, and the order of batches.

  Raises:
    ValueError: a record that is no example, or a source that has none.
  """

  def shorten(example):
    if example.prompt_len >= cfg.max_len:
      return None
    return example._replace(ids=example.ids[: cfg.max_len])

  found = supervised.load(
    cfg,
    functools.partial(encode, tokenizer, cfg.template),
    shorten,
    Example._make,
  )
  order = supervised.order(cfg, [len(examples) for examples in found])
  return list(itertools.chain(*found)), order


def encode(
  tokenizer: Tokenizer, template: Template, record: records.Record
) -> Example:
  """Token ids of a record: the prompt as the model is asked, the completion.

  Prompt and completion are encoded apart, as in a rollout.

  Raises:
    ValueError: a record that is no example.
  """
  prompt = asked(tokenizer, template, record)
  place, row = record
  if not _is_chat(row):
    completion = records.field(record, 'completion', str)
  elif not (completion := row['messages'][-1]['content']):
    raise ValueError(
      f'{place} has an empty last message; remove the record, or write what '
      'the assistant should say.'
    )
  return join(tokenizer, prompt, completion)


def asked(
  tokenizer: Tokenizer, template: Template, record: records.Record
) -> list[int]:
  """Token ids of a record's prompt.

  Raises:
    ValueError: there is none.
  """
  if not _is_chat(record[1]):
    question = records.field(record, 'prompt', str)
    return encoding.encode_prompt(tokenizer, template, question)
  messages = records.field(record, 'messages', list)
  if len(messages) < 2 or messages[-1].get('role') != 'assistant':
    raise ValueError(
      f'{record[0]} has messages that do not end with an answer of the '
      'assistant; put one last, after a message of the user.'
    )
  return tokenizer.encode(tokenizer.apply_chat_template(messages[:-1]))


def _is_chat(row: dict[str, Any]) -> bool:
  return 'messages' in row and 'prompt' not in row


def join(
  tokenizer: Tokenizer, prompt: Sequence[int], completion: str
) -> Example:
  """A prompt and a completion that ends with end of sequence."""
  ids = tokenizer.encode(completion)
  if not ids or ids[-1] not in tokenizer.eos_ids:
    ids = [*ids, tokenizer.eos_ids[0]]
  return Example(np.array([*prompt, *ids], np.int32), len(prompt))


def pack_item(example: Example) -> sequences.PackItem:
  """For packing: 1 where a token is to be learned."""
  mask = np.arange(example.ids.size) >= example.prompt_len
  return sequences.PackItem((example.ids,), mask.astype(np.float32))


def loss(
  model: ModelConfig,
  params: Params,
  rows: sequences.PackedBatch,
  frozen: Any = (),
) -> tuple[jax.Array, dict[str, metrics.Mean]]:
  """Summed cross-entropy of the tokens that are learned, in nats."""
  del frozen
  hidden, _, _ = transformer.forward(model, params, rows.tokens)
  value, total = vocab_head.fused_logprob_loss(
    _cross_entropy,
    1.0,
    _CHUNK,
    False,
    transformer.predictors(hidden, None, rows.tokens, None),
    transformer.head(model, params),
    rows.tokens.ids,
    rows.extras,
  )
  return value, {'loss': total}


def _cross_entropy(logprobs, entropy, mask):
  del entropy
  value = -jnp.sum(mask * logprobs)
  return value, metrics.Mean(value, jnp.sum(mask))
