"""Cuts completions into pages and joins them again, on the host.

Completions are read back from the devices in pages (`slots.read_pages`), so
that one program serves any number of them of any length.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from rlzero.rollout.slots import NUM_PAGES, Pages
from rlzero.runtime import hosts, sharding


class Written(NamedTuple):
  """The tokens that a slot has written, on the host."""

  tokens: np.ndarray  # [T], or of all slots
  logprobs: np.ndarray  # likewise
  routes: np.ndarray | None  # [L, T, C]


def split(
  slots: Sequence[int],
  lengths: Sequence[int],
  num_slots: int,
  max_len: int,
  page_len: int,
) -> list[list[tuple[int, int, int]]]:
  """Cuts completions into the pages in which they are read.

  Args:
    slots: those with the completions.
    lengths: tokens of each completion.
    num_slots: of all shards.
    max_len: of a completion.
    page_len: tokens of a page.

  Returns:
    for each shard its pages: which of the completions, the slot in the shard,
    and the first token.
  """
  size = num_slots // sharding.axis_size('B')
  shards = [[] for _ in range(sharding.axis_size('B'))]
  for number, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
    for start in range(0, length, page_len):
      # A page does not reach beyond the longest completion.
      start = min(start, max_len - page_len)
      shards[slot // size].append((number, slot % size, start))
  return shards


def num_pages(shards: Sequence[Sequence[Any]]) -> int:
  """Pages that are read of each shard, in calls of NUM_PAGES."""
  return -(-max(map(len, shards)) // NUM_PAGES) * NUM_PAGES


def indices(
  shards: Sequence[Sequence[tuple[int, int, int]]],
) -> Int[np.ndarray, 'W P 2']:
  """The slot and first token of each page, as `slots.read_pages` takes them.

  Pages that only fill up the last call are those of slot 0.

  Args:
    shards: from `split`.
  """
  where = np.zeros((len(shards), num_pages(shards), 2), np.int32)
  for shard, pages in enumerate(shards):
    for page, (_, *start) in enumerate(pages):
      where[shard, page] = start
  return where


def join(
  shards: Sequence[Sequence[tuple[int, int, int]]],
  page_len: int,
  lengths: Sequence[int],
  calls: Sequence[Pages],
) -> list[Written]:
  """Puts completions together of their pages, once these are there.

  Args:
    shards: from `split`.
    page_len: tokens of a page.
    lengths: tokens of each completion.
    calls: what `slots.read_pages` returned, NUM_PAGES of each shard a call.
  """
  calls = hosts.fetch(calls)
  whole = [_empty(length, calls[0].routes) for length in lengths]
  for shard, pages in enumerate(shards):
    for page, (number, _, start) in enumerate(pages):
      call, written = calls[page // NUM_PAGES], whole[number]
      at, stop = (shard, page % NUM_PAGES), start + page_len
      # Numpy cuts off what lies beyond the end of a completion.
      size = written.tokens[start:stop].size
      written.tokens[start:stop] = call.tokens[at][:size]
      written.logprobs[start:stop] = call.logprobs[at][:size]
      if call.routes is not None and written.routes is not None:
        written.routes[:, start:stop] = call.routes[at][:, :size]
  return whole


def _empty(length, routes):
  """Room for a completion, given routes of pages, [W, P, L, T, C], or None."""
  if routes is not None:
    num_layers, _, num_chosen = routes.shape[2:]
    routes = np.empty((num_layers, length, num_chosen), routes.dtype)
  return Written(
    np.empty(length, np.int32), np.empty(length, np.float32), routes
  )
