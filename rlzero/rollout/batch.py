"""The slots of a scheduler: what the host knows of them."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from rlzero.rollout import buckets
from rlzero.rollout.device import Device
from rlzero.rollout.sampling import Sampling
from rlzero.runtime import sharding


class Batch:
  """Slots that grow and shrink with the requests in them.

  Where the mesh splits the rows, each shard has as many slots as the others.

  Args:
    device: holds their arrays.
    sampling: settings.
    sizes: the largest batch and cache.

  Attributes:
    requests: what is in each slot, or None.
    cached: tokens in each slot's cache.
    replay_left: tokens that a replayed completion has still to take, else 0.
  """

  def __init__(self, device: Device, sampling: Sampling, sizes: buckets.Sizes):
    self._device, self._sizes = device, sizes
    self._decode_steps = sampling.decode_steps
    self._num_shards = sharding.axis_size('B')
    self._smaller = sizes.smaller_batches
    self.requests: list[Any] = [None] * sizes.num_slots
    self.cached = np.zeros(sizes.num_slots, int)
    self.replay_left = np.zeros(sizes.num_slots, int)
    self._cache_len = self.cache_lens()[0]
    device.allocate(sizes.num_slots, self._cache_len)

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
      self._device.resize(None, cache_len)
      self._cache_len = cache_len

  def cache_lens(self) -> list[int]:
    """Cache sizes of a batch of the present size, the smallest first."""
    return self._sizes.cache_lens(len(self))

  def _by_shard(self):
    """`occupied` as [shards, slots of a shard]."""
    return self.occupied().reshape(self._num_shards, -1)

  def _choose(self, chosen):
    """Keeps the slots with these indices in each shard; -1 is a new one."""
    chosen = chosen.astype(np.int32)
    self._device.resize(chosen, self._cache_len)
    slots, new = flat_rows(chosen, len(self))
    self.requests = [
      None if is_new else self.requests[slot]
      for slot, is_new in zip(slots, new, strict=True)
    ]
    self.cached = self.cached[slots]
    self.replay_left = np.where(new, 0, self.replay_left[slots])


def flat_rows(
  chosen: Int[np.ndarray, 'W C'], num_rows: int
) -> tuple[Int[np.ndarray, 'B'], Bool[np.ndarray, 'B']]:
  """Rows that are chosen in each shard, as indices among all rows.

  Args:
    chosen: as `Device.resize` takes it.
    num_rows: before the choice.

  Returns:
    the index of each row, and whether it is a new one.
  """
  first = num_rows // len(chosen) * np.arange(len(chosen))[:, None]
  return (first + chosen).reshape(-1), chosen.reshape(-1) < 0
