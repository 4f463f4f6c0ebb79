"""Rollouts without a model: the scheduler runs, and its calls are counted.

The lengths of the completions are given. Everything that follows from them is
the scheduler's own doing: which slot is filled when, how the batch and the
cache grow and shrink, what is read back. Only the device is a stand-in.
"""

import collections
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from rlzero.models import live_attention
from rlzero.models.config import ModelConfig
from rlzero.rollout import pages, scheduler
from rlzero.rollout.batch import flat_rows
from rlzero.rollout.device import Device
from rlzero.rollout.sampling import Sampling, StopCriteria
from rlzero.rollout.slots import NUM_PAGES, PAGE_LEN
from rlzero.runtime import sharding


class Called(NamedTuple):
  """A program with the sizes of the slots that it is called with."""

  program: str
  num_slots: int
  cache_len: int  # tokens of a slot


class Schedule(NamedTuple):
  """How a rollout goes."""

  # How often: `resize` of the cache and `shrink` by the sizes afterwards.
  calls: dict[Called, int]
  # Positions of the cache in all calls of `decode` of the sizes: those that a
  # TPU reads, in the shard that reads most, and of the running completions of
  # all shards.
  positions_read: dict[Called, int]
  positions_live: dict[Called, int]
  usage: scheduler.Usage

  def count(self, program: str) -> int:
    """Calls of a program, whatever the sizes."""
    return sum(n for call, n in self.calls.items() if call.program == program)


def simulate(
  config: ModelConfig,
  lengths: Int[np.ndarray, 'P G'],
  prompt_lens: Sequence[int],
  sampling: Sampling,
) -> Schedule:
  """Plays a rollout on the current mesh.

  Args:
    config: of the model.
    lengths: of the completions, in tokens.
    prompt_lens: of the prompts, which share no prefix.
    sampling: settings.

  Raises:
    ValueError: lengths that the settings do not allow.
  """
  if lengths.min() < 1 or lengths.max() > sampling.max_len:
    raise ValueError(
      f'The lengths of completions are {lengths.min()} to {lengths.max()} '
      f'tokens, but a rollout has 1 to Sampling.max_len = {sampling.max_len}; '
      'raise max_len or give other lengths.'
    )
  device = SimulatedDevice(config, lengths, sampling)
  prompts = [
    scheduler.Prompt(i, [i] * length) for i, length in enumerate(prompt_lens)
  ]
  _, usage = scheduler.generate(
    config,
    {},
    prompts,
    lengths.shape[1],
    sampling,
    stop=StopCriteria(()),
    seed=0,
    device=device,
  )
  return Schedule(
    dict(device.calls),
    dict(device.positions_read),
    dict(device.positions_live),
    usage,
  )


class SimulatedDevice(Device):
  """Knows how long completions are; counts calls and computes nothing.

  Args:
    config: of the model.
    lengths: by draw of the prompt and index in the group.
    sampling: settings.

  Attributes:
    calls: how often each program was called.
    positions_read: see `Schedule`.
    positions_live: see `Schedule`.
  """

  def __init__(
    self,
    config: ModelConfig,
    lengths: Int[np.ndarray, 'P G'],
    sampling: Sampling,
  ):
    self.config, self._lengths, self._sampling = config, lengths, sampling
    self.calls: collections.Counter[Called] = collections.Counter()
    self.positions_read: collections.Counter[Called] = collections.Counter()
    self.positions_live: collections.Counter[Called] = collections.Counter()
    self._cache_len = 0
    self._prompt_lens = self._left = self._cached = np.zeros(0, int)

  def allocate(self, num_slots: int, cache_len: int) -> None:
    self._left = self._cached = np.zeros(num_slots, int)
    self._cache_len = cache_len

  def resize(
    self, chosen: Int[np.ndarray, 'W C'] | None, cache_len: int
  ) -> None:
    if chosen is not None:
      rows, is_new = flat_rows(chosen, len(self._left))
      self._left = np.where(is_new, 0, self._left[rows])
      self._cached = self._cached[rows]
    self._cache_len = cache_len
    self._count('resize' if chosen is None else 'shrink')

  def prefill(self, suffixes: Sequence[Sequence[int]]) -> int:
    self._prompt_lens = np.array([len(suffix) for suffix in suffixes])
    self._count('prefill')
    return 0  # every cache has room for the prompts of a rollout

  def insert(
    self, source: Int[np.ndarray, 'B'], counters: Int[np.ndarray, 'B 2']
  ) -> None:
    fresh, prompt = source >= 0, np.maximum(source, 0)
    lengths = self._lengths[counters[:, 0], counters[:, 1]]
    self._left = np.where(fresh, lengths, self._left)
    self._cached = np.where(fresh, self._prompt_lens[prompt] - 1, self._cached)
    self._count('insert')

  def decode(self) -> None:
    end = np.where(self._left > 0, self._cached, 0)
    read = live_attention.live_positions(self.config, end, self._cache_len)
    shards = read.reshape(sharding.axis_size('B'), -1)
    called = Called('decode', len(self._left), self._cache_len)
    self.positions_read[called] += int(shards.sum(axis=1).max())
    self.positions_live[called] += int(end.sum())
    written = np.minimum(self._left, self._sampling.decode_steps)
    self._left = self._left - written
    self._cached = self._cached + written
    self._count('decode')

  def flags(self) -> tuple[Bool[np.ndarray, 'B'], Int[np.ndarray, 'B']]:
    return self._left > 0, self._cached

  def read(
    self, slots: Sequence[int], lengths: Sequence[int]
  ) -> Callable[[], list[pages.Written]]:
    max_len = self._sampling.max_len
    shards = pages.split(
      slots, lengths, len(self._left), max_len, min(PAGE_LEN, max_len)
    )
    self._count('read', pages.num_pages(shards) // NUM_PAGES)
    written = [
      pages.Written(np.zeros(n, np.int32), np.zeros(n, np.float32), None)
      for n in lengths
    ]
    return lambda: written

  def _count(self, program: str, number: int = 1) -> None:
    size = len(self._left), self._cache_len
    self.calls[Called(program, *size)] += number
