"""The slots of a scheduler: their arrays, and what the host knows of them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rlzero.models.config import ModelConfig
from rlzero.rollout import buckets
from rlzero.rollout.sampling import Sampling
from rlzero.rollout.slots import (
  NUM_PAGES,
  PAGE_LEN,
  empty_slots,
  read_last,
  read_pages,
  resize_slots,
)
from rlzero.runtime import hosts, sharding


class Written(NamedTuple):
  """The tokens that a slot has written, on the host."""

  tokens: np.ndarray  # [T], or of all slots
  logprobs: np.ndarray  # likewise
  routes: np.ndarray | None  # [L, T, C]


class Batch:
  """Slots that grow and shrink with the requests in them.

  Where the mesh splits the rows, each shard has as many slots as the others.

  Args:
    config: of the model.
    sampling: settings.
    sizes: the largest batch and cache.
    unstacked: whether the parameters are.

  Attributes:
    arrays: the slots on the device.
    requests: what is in each slot, or None.
    cached: tokens in each slot's cache.
    replay_left: tokens that a replayed completion has still to take, else 0.
  """

  def __init__(
    self,
    config: ModelConfig,
    sampling: Sampling,
    sizes: buckets.Sizes,
    unstacked: bool,
  ):
    self._config, self._sizes = config, sizes
    self._decode_steps = sampling.decode_steps
    self._max_len = sampling.max_len
    self._num_shards = sharding.axis_size('B')
    self._smaller = sizes.smaller_batches
    self.requests: list[Any] = [None] * sizes.num_slots
    self.cached = np.zeros(sizes.num_slots, int)
    self.replay_left = np.zeros(sizes.num_slots, int)
    self._cache_len = self.cache_lens()[0]
    self.arrays = empty_slots(
      config,
      sizes.num_slots,
      self._cache_len,
      sampling.max_len,
      sampling.keep_routes,
      unstacked,
    )

  def __len__(self) -> int:
    """Slots, free ones included."""
    return len(self.requests)

  def occupied(self) -> np.ndarray:
    """Whether a request is in each slot, [B]."""
    return np.array([request is not None for request in self.requests])

  def free(self) -> np.ndarray:
    """Free slots in the order in which they are to be filled.

    The shard with the fewest requests comes first, so that all can shrink.
    """
    free = ~self._by_shard()
    after = np.cumsum(free, axis=1) + (~free).sum(axis=1, keepdims=True)
    slots = np.flatnonzero(free)
    return slots[np.argsort(after.reshape(-1)[slots], kind='stable')]

  def grow(self, num_waiting: int) -> None:
    """Adds slots if more requests wait than slots are free."""
    wanted = self.occupied().sum() + num_waiting
    enough = [n for n in self._smaller if n >= wanted]
    larger = min([self._sizes.num_slots, *enough])
    if larger > len(self):
      size = len(self) // self._num_shards
      more = larger // self._num_shards - size
      chosen = np.pad(np.arange(size), (0, more), constant_values=-1)
      self._choose(np.tile(chosen, (self._num_shards, 1)))

  def shrink(self) -> None:
    """Gives up free slots, as far as a smaller batch has been compiled."""
    for fewer in self._smaller:
      occupied, size = self._by_shard(), fewer // self._num_shards
      if occupied.sum(axis=1).max() > size:
        break
      if fewer < len(self):
        order = np.argsort(~occupied, axis=1, kind='stable')
        self._choose(order[:, :size])
        self.resize_cache()

  def resize_cache(self) -> None:
    """Resizes the cache to the smallest size that the next call fits in."""
    longest = int(self.cached[self.occupied()].max())
    self.fit_cache(longest + self._decode_steps)

  def make_room(self, prompt_width: int) -> None:
    """Makes the cache longer, if padded prompts of this width do not fit."""
    if prompt_width > self._cache_len:
      self.fit_cache(prompt_width)

  def fit_cache(self, needed: int) -> None:
    """Gives the cache the smallest size that has this many positions."""
    cache_len = next(n for n in self.cache_lens() if n >= needed)
    if cache_len != self._cache_len:
      self.arrays = resize_slots(self._config, self.arrays, None, cache_len)
      self._cache_len = cache_len

  def read(self, slots: Sequence[int], lengths: Sequence[int]) -> list[Written]:
    """Reads completions back to the host, and of other slots nothing.

    They come in pages, so that one program serves any number of any length.

    Args:
      slots: those with the completions.
      lengths: tokens of each completion.

    Returns:
      what is written in each of the slots.
    """
    if not slots:
      return []
    size, page_len = (
      len(self) // self._num_shards,
      min(PAGE_LEN, self._max_len),
    )
    shards = [[] for _ in range(self._num_shards)]  # the pages of each
    for number, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
      for start in range(0, length, page_len):
        # A page does not reach beyond the longest completion.
        start = min(start, self._max_len - page_len)
        shards[slot // size].append((number, slot % size, start))
    num_calls = -(-max(map(len, shards)) // NUM_PAGES)
    where = np.zeros((self._num_shards, num_calls * NUM_PAGES, 2), np.int32)
    for shard, pages in enumerate(shards):
      for page, (_, *place) in enumerate(pages):
        where[shard, page] = place
    arrays = self.arrays._replace(cache=None)
    calls = hosts.fetch(
      [
        read_pages(arrays, where[:, i : i + NUM_PAGES], page_len=page_len)
        for i in range(0, where.shape[1], NUM_PAGES)
      ]
    )
    whole = [_empty(length, calls[0].routes) for length in lengths]
    for shard, pages in enumerate(shards):
      for page, (number, _, start) in enumerate(pages):
        call, written = calls[page // NUM_PAGES], whole[number]
        place, stop = (shard, page % NUM_PAGES), start + page_len
        # Numpy cuts off what lies beyond the end of a completion.
        size = written.tokens[start:stop].size
        written.tokens[start:stop] = call.tokens[place][:size]
        written.logprobs[start:stop] = call.logprobs[place][:size]
        if call.routes is not None:
          written.routes[:, start:stop] = call.routes[place][:, :size]
    return whole

  def cache_lens(self) -> list[int]:
    """Cache sizes of a batch of the present size, the smallest first."""
    share = len(self) / self._sizes.num_slots
    return buckets.cache_buckets(
      self._sizes.cache_len, self._sizes.prompt_width, share
    )

  def read_last(self, count: int) -> Written:
    """The last tokens of every slot, [B, count]; rows as `slots.read_last`."""
    arrays = self.arrays._replace(cache=None)
    tokens, logprobs = hosts.fetch(read_last(arrays, count=count))
    return Written(tokens, logprobs, None)

  def _by_shard(self):
    """`occupied` as [shards, slots of a shard]."""
    return self.occupied().reshape(self._num_shards, -1)

  def _choose(self, chosen):
    """Keeps the slots with these indices in each shard; -1 is a new one."""
    self.arrays = resize_slots(
      self._config, self.arrays, chosen.astype(np.int32), self._cache_len
    )
    size = len(self) // self._num_shards
    first = size * np.arange(self._num_shards)[:, None]
    slots, new = (first + chosen).reshape(-1), chosen.reshape(-1) < 0
    self.requests = [
      None if is_new else self.requests[slot]
      for slot, is_new in zip(slots, new, strict=True)
    ]
    self.cached = self.cached[slots]
    self.replay_left = np.where(new, 0, self.replay_left[slots])


def _empty(length, routes):
  """Room for a completion, given routes of pages, [W, P, L, T, C], or None."""
  if routes is not None:
    num_layers, _, num_chosen = routes.shape[2:]
    routes = np.empty((num_layers, length, num_chosen), routes.dtype)
  return Written(
    np.empty(length, np.int32), np.empty(length, np.float32), routes
  )
