"""Prompts that are prefilled together, and the prefix that all share."""

from collections.abc import Sequence

import jax
import numpy as np

from rlzero.models import padding
from rlzero.models.config import ModelConfig
from rlzero.rollout import engine
from rlzero.runtime import sharding
from rlzero.types import KeyValues, Params, Tokens


class PrefillBlock:
  """Neighbouring prompts, prefilled together when the first is needed.

  Prompts go by their numbers, in the order in which they were submitted.

  Args:
    config: of the model.
    params: from `engine.to_decode_layout`.
    shared_prefix: tokens that all prompts begin with; they are prefilled once.
    size: prompts of a block, padding included.
    widths: tokens of a padded prompt, without the shared prefix, the smallest
      first; a block takes the first that its prompts fit in.

  Attributes:
    shared_prefix: keys and values of the shared prefix, or None.
    keys_values: of the block's prompts, once `prefill` has been called.
    ids: the prompts' tokens, [P, Tp], likewise.
    lengths: their lengths, [P], likewise.
  """

  def __init__(
    self,
    config: ModelConfig,
    params: Params,
    shared_prefix: Sequence[int],
    size: int,
    widths: Sequence[int],
  ):
    self._config, self._params = config, params
    self._prefix_ids, self.size, self._widths = shared_prefix, size, widths
    self.start, self._suffixes = 0, []
    self.shared_prefix: KeyValues | None = None
    self.keys_values: KeyValues | None = None
    self.ids, self.lengths = np.zeros((0, 0), np.int32), np.zeros(0, np.int32)

  def contains(self, prompt: int) -> bool:
    """Whether a prompt is in the block."""
    return self.start <= prompt < self.start + len(self._suffixes)

  def seek(self, start: int, suffixes: Sequence[Sequence[int]]) -> None:
    """Makes this the block of other prompts.

    Args:
      start: number of the first prompt.
      suffixes: at most `size` prompts from there on, each without the shared
        prefix.
    """
    self.start, self._suffixes, self.keys_values = start, suffixes, None

  def prefill(self) -> None:
    """Computes the block's keys and values, unless that has been done."""
    if self.keys_values is not None:
      return
    length = len(self._prefix_ids)
    if length and self.shared_prefix is None:
      num_rows = sharding.axis_size('P')  # a row for each device, all the same
      self.shared_prefix = engine.prefill_shared_prefix(
        self._config,
        self._params,
        _shard(padding.pad([self._prefix_ids] * num_rows, num_rows, length)),
      )
    longest = max(map(len, self._suffixes))
    width = next(n for n in self._widths if n >= longest)
    padded = padding.pad(self._suffixes, self.size, width, length)
    self.ids, self.lengths = padded.ids, padded.segments.sum(axis=1)
    self.keys_values = engine.prefill(
      self._config, self._params, _shard(padded), self.shared_prefix
    )


def check(
  config: ModelConfig,
  draw: int,
  tokens: Sequence[int],
  shared_prefix: Sequence[int],
  max_prompt_len: int,
  max_len: int,
) -> None:
  """Checks a prompt before it is queued.

  Args:
    config: of the model.
    draw: what messages call the prompt.
    tokens: of the prompt.
    shared_prefix: what all prompts begin with.
    max_prompt_len: tokens of the longest prompt.
    max_len: tokens that the completion may have.

  Raises:
    ValueError: it is empty, too long, or lacks the shared prefix.
  """
  length, shared_len = len(tokens), len(shared_prefix)
  if not length:
    raise ValueError(
      f'Prompt {draw} is empty; a prompt needs at least one token.'
    )
  if length > max_prompt_len:
    raise ValueError(
      f'Prompt {draw} has {length} tokens, but Sampling.max_prompt_len is '
      f'{max_prompt_len}; raise the limit or leave the prompt out.'
    )
  if length + max_len > config.max_position:
    raise ValueError(
      f'Prompt {draw} and Sampling.max_len = {max_len} make '
      f'{length + max_len} tokens, but the model takes '
      f'{config.max_position} (ModelConfig.max_position); lower '
      'Sampling.max_len.'
    )
  same = list(tokens[:shared_len]) == list(shared_prefix)
  if length <= shared_len or not same:
    raise ValueError(
      f'Prompt {draw} does not begin with the {shared_len} tokens that the '
      'scheduler was told all prompts share, and one of its own; make the '
      'scheduler with a shorter shared_prefix.'
    )


def shared_prefix_len(config: ModelConfig, prompts: Sequence[list[int]]) -> int:
  """Tokens that all prompts begin with, to be prefilled once.

  Latent attention has none here: over a cache it is absorbed, which costs the
  many queries of a prompt more than a shared prefix would save.
  """
  # An empty prompt is refused when it is submitted.
  if config.latent or not all(map(len, prompts)):
    return 0
  return padding.shared_prefix_len(prompts)


def _shard(prompts: Tokens) -> Tokens:
  return jax.tree.map(lambda x: sharding.device_put(x, 'PT'), prompts)
