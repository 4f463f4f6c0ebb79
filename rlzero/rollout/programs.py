"""The programs of a rollout, lowered from shapes alone.

`compile_ahead` compiles them before the first rollout; the planner asks what
they would need of devices that are not here. `LoweringDevice` has the arguments
of every program from the device that runs them.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from rlzero.models import kv_cache
from rlzero.models.config import ModelConfig
from rlzero.rollout import buckets, decode_layout, engine, scheduler
from rlzero.rollout.device import Device
from rlzero.rollout.prefill import shared_prefix_len
from rlzero.rollout.sampling import Sampling
from rlzero.rollout.slots import (
  NUM_PAGES,
  Slots,
  constrain_slots,
  empty_slots,
)
from rlzero.runtime import sharding
from rlzero.types import KeyValues, Params, Tokens


@dataclasses.dataclass
class Call:
  """A lowered program, and how often it is called with these arguments."""

  name: str  # of the function
  lowered: jax.stages.Lowered
  number: int = 0


class LoweringDevice(Device):
  """Lowers the programs that a `Device` runs; its arrays are shapes.

  Its parameters are arrays, or shapes with shardings. A program is lowered
  once for each shapes of its arguments.
  """

  def __init__(self, *args: Any, **kwargs: Any):
    self._made: dict[Any, tuple[Call, Any]] = {}
    self._taken: list[Call] = []
    super().__init__(*args, **kwargs)

  def _call(
    self,
    program: Callable[..., Any],
    constrain: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
  ) -> Any:
    leaves, tree = jax.tree.flatten((args, kwargs))
    key = program, tree, tuple(map(_signature, leaves))
    if key not in self._made:
      lowered = program.lower(*args, **kwargs)
      shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), lowered.out_info
      )
      result = constrain(shapes, sharding.abstract)
      self._made[key] = Call(program.__name__, lowered), result
    call, result = self._made[key]
    if not call.number:
      self._taken.append(call)
    call.number += 1
    return result

  def _to_decode_layout(self, params: Params) -> Params:
    return decode_layout.shapes(self.config, params)

  def _shard(self, prompts: Tokens) -> Tokens:
    return jax.tree.map(lambda x: sharding.abstract(x, 'PT'), prompts)

  def take(self) -> list[Call]:
    """Returns the calls since the last time; each program once."""
    taken, self._taken = self._taken, []
    taken = [dataclasses.replace(call) for call in taken]
    for call, _ in self._made.values():
      call.number = 0
    return taken

  def share(self, prefix_len: int) -> None:
    """Has keys and values of a shared prefix, which need not be computed."""
    if prefix_len:
      self.shared_prefix = _abstract_shared_prefix(
        self.config, prefix_len, 'layers' not in self.params
      )

  def read_any(self) -> None:
    """Reads pages of completions; which ones makes no difference."""
    shape = sharding.axis_size('B'), NUM_PAGES, 2
    self.read_pages(np.zeros(shape, np.int32))


def _signature(leaf):
  """Tells arguments apart for which a program is another."""
  if not hasattr(leaf, 'shape'):
    return leaf
  return leaf.shape, leaf.dtype, getattr(leaf, 'sharding', None)


def lower_all(
  config: ModelConfig,
  params: Params,
  prompts: Sequence[scheduler.Prompt],
  group_size: int,
  sampling: Sampling,
  eos_ids: tuple[int, ...],
) -> list[jax.stages.Lowered]:
  """The programs that `generate` has in several sizes, in each of them.

  Arguments as there.
  """
  tokens = [p.tokens for p in prompts]
  prefix_len = shared_prefix_len(config, tokens)
  sampling = buckets.narrow(
    sampling, len(prompts) * group_size, max(map(len, tokens))
  )
  sizes = buckets.sizes(sampling, prefix_len)
  most = sizes.num_slots
  device = LoweringDevice(
    config,
    params,
    sampling,
    eos_ids=eos_ids,
    seed=0,  # of no program here
    prefill_batch=buckets.prefill_batch(len(prompts)),
    prompt_widths=sizes.prompt_widths,
  )
  device.share(prefix_len)
  unstacked = 'layers' not in device.params
  before, lens_before = {}, []
  for num_slots in [most, *sizes.smaller_batches]:
    lens = sizes.cache_lens(num_slots)
    slots = {
      cache_len: abstract_slots(
        config, num_slots, cache_len, sampling, unstacked
      )
      for cache_len in {*lens, *lens_before}
    }
    for cache_len in lens_before:
      device.slots = before[cache_len]
      device.resize(first_rows(num_slots), cache_len)
    for cache_len, into in itertools.product(slots, lens):
      if cache_len != into:
        device.slots = slots[cache_len]
        device.resize(None, into)
    for cache_len in lens:
      device.slots = slots[cache_len]
      device.decode()
    device.slots = slots[lens[0]]
    device.read_any()
    before, lens_before = slots, lens
  return [call.lowered for call in device.take()]


def lower(
  config: ModelConfig,
  params: Params,
  num_prompts: int,
  group_size: int,
  prompt_len: int,
  sampling: Sampling,
  eos_ids: tuple[int, ...],
  seed: int,
) -> dict[str, list[Call]]:
  """The programs of a rollout at its fullest, where nothing is shared.

  All slots are there and completions are as long as may be.

  Args:
    config: of the model.
    params: shapes and shardings of the policy's parameters.
    num_prompts: P.
    group_size: G.
    prompt_len: of the longest prompt, in tokens.
    sampling: settings.
    eos_ids: tokens that end a completion.
    seed: of the run.

  Returns:
    `prefill` and `insert` of a block of prompts, `decode`, `read` of what
    ended, `resize` to the longest cache from the one before, and `shrink` to
    the next smaller batch; the last two only where there are such sizes.
  """
  sampling = buckets.narrow(sampling, num_prompts * group_size, prompt_len)
  sizes = buckets.sizes(sampling)
  num_slots, longest = sizes.num_slots, sizes.cache_len
  num_together = buckets.prefill_batch(num_prompts)
  device = LoweringDevice(
    config,
    params,
    sampling,
    eos_ids=eos_ids,
    seed=seed,
    prefill_batch=num_together,
    prompt_widths=sizes.prompt_widths,
  )
  unstacked = 'layers' not in device.params
  found = {}

  def slots(cache_len):
    return abstract_slots(config, num_slots, cache_len, sampling, unstacked)

  device.prefill([[0] * prompt_len] * min(num_together, num_prompts))
  found['prefill'] = device.take()
  device.slots = slots(longest)
  nothing = np.zeros(num_slots, np.int32), np.zeros((num_slots, 2), np.int32)
  device.insert(*nothing)
  found['insert'] = device.take()
  device.decode()
  found['decode'] = device.take()
  device.read_any()
  found['read'] = device.take()
  *shorter, _ = sizes.cache_lens(num_slots)
  if shorter:
    device.slots = slots(shorter[-1])
    device.resize(None, longest)
    found['resize'] = device.take()
  for fewer in sizes.smaller_batches[:1]:
    device.slots = slots(longest)
    device.resize(first_rows(fewer), longest)
    found['shrink'] = device.take()
  return found


def first_rows(num_slots: int) -> np.ndarray:
  """Indices of slots in each shard, [W, C]: which ones makes no difference."""
  num_shards = sharding.axis_size('B')
  return np.zeros((num_shards, num_slots // num_shards), np.int32)


def abstract_slots(
  config: ModelConfig,
  num_slots: int,
  cache_len: int,
  sampling: Sampling,
  unstacked: bool = False,
) -> Slots:
  """Shapes and shardings of `empty_slots`."""
  shapes = jax.eval_shape(
    lambda: empty_slots(
      config,
      num_slots,
      cache_len,
      sampling.max_len,
      sampling.keep_routes,
      unstacked,
    )
  )
  return constrain_slots(shapes, sharding.abstract)


def _abstract_shared_prefix(
  config: ModelConfig, length: int, unstacked: bool
) -> KeyValues:
  """Shapes and shardings of `engine.prefill_shared_prefix`."""
  shapes = jax.eval_shape(
    lambda: kv_cache.empty_cache(config, 1, length, unstacked)
  )
  return engine.constrain_shared_prefix(shapes, sharding.abstract)
