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
    width: tokens of a padded prompt, without the shared prefix.

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
    width: int,
  ):
    self._config, self._params = config, params
    self._prefix_ids, self.size, self._width = shared_prefix, size, width
    self.start, self._suffixes = 0, []
    self.shared_prefix: KeyValues | None = None
    self.keys_values: KeyValues | None = None
    self.ids = self.lengths = np.zeros(0, np.int32)

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
    padded = padding.pad(self._suffixes, self.size, self._width, length)
    self.ids, self.lengths = padded.ids, padded.segments.sum(axis=1)
    self.keys_values = engine.prefill(
      self._config, self._params, _shard(padded), self.shared_prefix
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
