"""The few sizes of batch, cache and prompts that decoding is compiled for."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from rlzero.models import padding
from rlzero.rollout.sampling import Sampling
from rlzero.runtime import sharding

# Cache sizes are multiples of this, in positions. On a TPU the positions are
# lanes, of which there are 128 (`models/live_attention.py`).
_CACHE_STEP, _TPU_CACHE_STEP = 32, 128

_CACHE_RATIO = 0.6  # of a cache size to the next larger one

_PREFILL_BATCH = 32  # prompts prefilled together

# The batch does not shrink below this many slots, nor by fewer: it would save
# too little to pay for a compilation.
_MIN_SLOTS = 4

# Beyond so many positions of a slot's cache there are fewer sizes: programs for
# models and devices of that size take minutes to compile. By the planner,
# decoding takes up to 3% longer for it (docs/results/plans.md).
_LONG = 4096
_FEW_CACHES = 1, 2, 4  # parts of the longest
_FEW_BATCHES = 2, 8  # parts of the largest, besides it

_LEAST_CACHE = 256  # positions, of a server; less would save little

_LEAST_WIDTH = 64  # tokens of a prompt that a server pads


class Sizes(NamedTuple):
  """The largest arrays of a rollout."""

  num_slots: int
  prompt_width: int  # tokens of a padded prompt; every cache has room for it
  cache_len: int  # positions of a slot's cache

  @property
  def smaller_batches(self) -> Sequence[int]:
    """Slots of the smaller batches, the largest first."""
    if self.cache_len <= _LONG:
      return batch_buckets(self.num_slots)
    fewer = (self.num_slots // part for part in _FEW_BATCHES)
    unit = sharding.axis_size('B')
    return [n for n in fewer if n >= _MIN_SLOTS and n % unit == 0]

  def cache_lens(self, num_slots: int) -> list[int]:
    """Cache sizes of a batch of so many slots, the smallest first."""
    share = num_slots / self.num_slots
    if self.cache_len <= _LONG:
      return cache_buckets(self.cache_len, self.prompt_width, share)
    few = {
      padding.round_up(-(-self.cache_len // part), _cache_step())
      for part in _FEW_CACHES
    }
    least = max(min(few) / share, self.prompt_width)
    return sorted({n for n in few if n >= least} | {self.cache_len})

  @property
  def prompt_widths(self) -> Sequence[int]:
    """Tokens that prompts may be padded to, the smallest first."""
    return (self.prompt_width,)


class ServerSizes(Sizes):
  """The largest arrays of a server, whose requests are of any length.

  The batch keeps its size: a server compiles little, and the rounding of a
  request does not depend on how many others run. Prompts are padded to a width
  near their own, since each is prefilled alone.
  """

  @property
  def smaller_batches(self) -> Sequence[int]:
    return ()

  def cache_lens(self, num_slots: int) -> list[int]:
    return cache_buckets(self.cache_len, self.prompt_width)

  @property
  def prompt_widths(self) -> Sequence[int]:
    widths, width = [], _LEAST_WIDTH
    while 2 * width <= self.cache_len:
      widths.append(width)
      width *= 4
    return (*widths, self.cache_len)


def narrow(sampling: Sampling, num_requests: int, prompt_len: int) -> Sampling:
  """The settings with limits as small as these requests allow.

  Args:
    sampling: settings.
    num_requests: completions in all.
    prompt_len: of the longest prompt, in tokens.
  """
  return dataclasses.replace(
    sampling,
    num_slots=min(sampling.num_slots, num_requests),
    max_prompt_len=max(prompt_len, 1),
  )


def sizes(sampling: Sampling, shared_len: int = 0) -> Sizes:
  """The sizes that these settings need.

  Args:
    sampling: settings; its limits are reached.
    shared_len: tokens that all prompts share, which no slot holds.
  """
  num_slots = padding.round_up(sampling.num_slots, sharding.axis_size('B'))
  width = padding.prompt_width(max(sampling.max_prompt_len - shared_len, 1))
  cache_len = padding.round_up(
    width + sampling.max_len + sampling.decode_steps, _cache_step()
  )
  return Sizes(num_slots, width, cache_len)


def server_sizes(sampling: Sampling, context: int) -> ServerSizes:
  """The sizes of a server.

  Args:
    sampling: settings.
    context: the most tokens of a prompt and its completion.
  """
  num_slots = padding.round_up(sampling.num_slots, sharding.axis_size('B'))
  cache_len = padding.round_up(context + sampling.decode_steps, _cache_step())
  return ServerSizes(num_slots, min(_LEAST_CACHE, cache_len), cache_len)


def prefill_batch(num_prompts: int) -> int:
  """How many prompts are prefilled together, of so many."""
  return padding.round_up(
    min(_PREFILL_BATCH, num_prompts), sharding.axis_size('P')
  )


def cache_buckets(
  largest: int, prompt_width: int, share: float = 1
) -> list[int]:
  """Cache sizes, in positions, the smallest first.

  Few, since decoding is compiled for each, and near enough to each other that
  most positions that attention reads hold a token.

  Args:
    largest: of the sizes.
    prompt_width: tokens of a padded prompt, for which every size has room.
    share: of the largest batch's slots. A smaller batch gets no size at which
      it would read less than the largest batch does at its smallest size: there
      would be more sizes and little to gain.
  """
  buckets, size = {largest}, largest * _CACHE_RATIO
  while size > max(_cache_step(), prompt_width):
    buckets.add(padding.round_up(math.ceil(size), _cache_step()))
    size *= _CACHE_RATIO
  least = min(min(buckets) / share, largest)
  return sorted(n for n in buckets if n >= least)


def _cache_step() -> int:
  return _TPU_CACHE_STEP if sharding.platform() == 'tpu' else _CACHE_STEP


def batch_buckets(num_slots: int) -> list[int]:
  """Smaller batch sizes, the largest first, that the mesh divides.

  Few, since decoding is compiled for each: eighths of the slots, while a row
  costs more than what all rows share, and then halves. Seven eighths save
  nothing: 56 rows take a CPU longer than 64.
  """
  eighths = [num_slots * k // 8 for k in range(6, 0, -1)]
  halves = [eighths[-1] >> k for k in range(1, num_slots.bit_length())]
  buckets = [num_slots]
  for size in eighths + halves:
    saved = buckets[-1] - size
    if min(size, saved) >= _MIN_SLOTS and size % sharding.axis_size('B') == 0:
      buckets.append(size)
  return buckets[1:]
