"""The device's side of a rollout: its arrays, and the programs over them.

`Device` is the only place that calls these programs, so what builds their
arguments is written once. `rollout/programs.py` makes another device of it that
lowers them from shapes, `rollout/simulation.py` one that counts calls.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from rlzero.models import kv_cache, padding
from rlzero.models.config import ModelConfig
from rlzero.rollout import decode_layout, engine, pages
from rlzero.rollout.sampling import Sampling
from rlzero.rollout.slots import (
  NUM_PAGES,
  PAGE_LEN,
  Pages,
  Slots,
  choose_rows,
  constrain_cache,
  constrain_part,
  constrain_slots,
  empty_slots,
  read_pages,
  resize_part,
)
from rlzero.runtime import hosts, sharding
from rlzero.types import KeyValues, Params, Tokens


class Device:
  """Holds the arrays of a rollout and calls the programs over them.

  Args:
    config: of the model.
    params: of the policy.
    sampling: settings.
    eos_ids: tokens that end a completion.
    seed: of the run.
    prefill_batch: prompts that are prefilled together, padding included.
    prompt_widths: tokens of a padded prompt, without the shared prefix, the
      smallest first; prompts take the first that they fit in.
    shared_prefix: tokens that all prompts begin with; they are computed once.

  Attributes:
    params: as decoding reads them.
    slots: completions under way, once `allocate` has made them.
    shared_prefix: its keys and values, or None.
    keys_values: of the prompts that were prefilled last.
  """

  def __init__(
    self,
    config: ModelConfig,
    params: Params,
    sampling: Sampling,
    *,
    eos_ids: tuple[int, ...],
    seed: int,
    prefill_batch: int,
    prompt_widths: Sequence[int],
    shared_prefix: Sequence[int] = (),
  ):
    self.config, self._sampling, self._seed = config, sampling, seed
    self._eos_ids, self._prefix_ids = eos_ids, shared_prefix
    self._prefill_batch, self._prompt_widths = prefill_batch, prompt_widths
    self.params = self._to_decode_layout(params)
    self.slots: Slots
    self.shared_prefix: KeyValues | None = None
    self.keys_values: KeyValues | None = None
    self._prompts: Tokens | None = None  # those of `keys_values`, on the host

  def allocate(self, num_slots: int, cache_len: int) -> None:
    """Makes slots in which nothing runs."""
    self.slots = self._call(
      empty_slots,
      constrain_slots,
      self.config,
      num_slots,
      cache_len,
      self._sampling.max_len,
      self._sampling.keep_routes,
      'layers' not in self.params,
    )

  def resize(
    self, chosen: Int[np.ndarray, 'W C'] | None, cache_len: int
  ) -> None:
    """Keeps the chosen slots, or all, with a cache of `cache_len` tokens each.

    A smaller batch and a shorter cache cost less to decode. Every array of the
    cache is resized by a call of its own, and the old one is freed before the
    next, so that there are never two caches. Layers that are unstacked share
    one program.

    Args:
      chosen: for each shard, indices in it of the slots to keep, or None; -1 is
        a new slot in which nothing runs.
      cache_len: tokens of each slot; what lies beyond them is cut off.
    """

    def resized(axis, part):
      new = self._call(
        resize_part,
        constrain_part,
        part,
        chosen,
        axis=axis,
        cache_len=cache_len,
      )
      if isinstance(part, jax.Array):
        part.delete()
      return new

    slots = self.slots
    assert slots.cache is not None
    cache = kv_cache.map_cache(resized, self.config, slots.cache)
    slots = slots._replace(cache=None)
    if chosen is not None:
      slots = self._call(choose_rows, constrain_slots, slots, chosen)
    self.slots = slots._replace(cache=cache)

  def prefill(self, suffixes: Sequence[Sequence[int]]) -> int:
    """Computes keys and values of prompts, each without the shared prefix.

    Returns:
      the tokens that the prompts are padded to.
    """
    length = len(self._prefix_ids)
    if length and self.shared_prefix is None:
      num_rows = sharding.axis_size('P')  # a row for each device, all the same
      rows = padding.pad([self._prefix_ids] * num_rows, num_rows, length)
      self.shared_prefix = self._call(
        engine.prefill_shared_prefix,
        engine.constrain_shared_prefix,
        self.config,
        self.params,
        self._shard(rows),
      )
    self.keys_values = None  # freed before there are others
    longest = max(map(len, suffixes))
    width = next(n for n in self._prompt_widths if n >= longest)
    self._prompts = padding.pad(suffixes, self._prefill_batch, width, length)
    self.keys_values = self._call(
      engine.prefill,
      constrain_cache,
      self.config,
      self.params,
      self._shard(self._prompts),
      self.shared_prefix,
    )
    return width

  def insert(
    self, source: Int[np.ndarray, 'B'], counters: Int[np.ndarray, 'B 2']
  ) -> None:
    """Starts completions of the prompts prefilled last; see `engine.insert`."""
    assert self.keys_values is not None and self._prompts is not None
    self.slots = self._call(
      engine.insert,
      constrain_slots,
      self.config,
      self.slots,
      self.keys_values,
      self._prompts.ids,
      self._prompts.segments.sum(axis=1),
      source,
      counters,
      self._seed,
    )

  def decode(self) -> None:
    """Samples up to `decode_steps` tokens in every slot that runs."""
    self.slots = self._call(
      engine.decode,
      constrain_slots,
      self.params,
      self.slots,
      np.int32(self._sampling.max_len),
      self.shared_prefix,
      config=self.config,
      eos_ids=self._eos_ids,
      num_steps=self._sampling.decode_steps,
      distribution=self._sampling.distribution,
    )

  def flags(self) -> tuple[Bool[np.ndarray, 'B'], Int[np.ndarray, 'B']]:
    """Waits for the slots; says which run, and how much each has cached."""
    return hosts.fetch((self.slots.running, self.slots.cached))

  def read(
    self, slots: Sequence[int], lengths: Sequence[int]
  ) -> Callable[[], list[pages.Written]]:
    """Reads completions back to the host, and of other slots nothing.

    They come in pages, so that one program serves any number of any length.

    Args:
      slots: those with the completions; at least one.
      lengths: tokens of each completion.

    Returns:
      a function that waits for what is written now in each of the slots.
    """
    page_len = self._page_len
    shards = pages.split(
      slots,
      lengths,
      self.slots.token.shape[0],
      self._sampling.max_len,
      page_len,
    )
    where = pages.indices(shards)
    calls = [
      self.read_pages(where[:, i : i + NUM_PAGES])
      for i in range(0, where.shape[1], NUM_PAGES)
    ]
    return functools.partial(pages.join, shards, page_len, lengths, calls)

  def read_pages(self, where: Int[np.ndarray, 'W P 2']) -> Pages:
    """Reads pieces of completions; see `slots.read_pages`."""
    return self._call(
      read_pages,
      lambda read, _: read,
      self.slots._replace(cache=None),
      where,
      page_len=self._page_len,
    )

  @property
  def _page_len(self) -> int:
    return min(PAGE_LEN, self._sampling.max_len)

  # What a device that only lowers does in another way:

  def _call(
    self,
    program: Callable[..., Any],
    constrain: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
  ) -> Any:
    """Runs a program; `constrain` shards its result, as it does itself."""
    del constrain
    return program(*args, **kwargs)

  def _to_decode_layout(self, params: Params) -> Params:
    return decode_layout.convert(self.config, params)

  def _shard(self, prompts: Tokens) -> Tokens:
    return jax.tree.map(lambda x: sharding.device_put(x, 'PT'), prompts)
