"""The work of a step: FLOPs of its programs, and how often each runs."""

import collections
import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from rlzero.costs import flops
from rlzero.models import kv_cache
from rlzero.planner import lengths, programs
from rlzero.planner.estimate import Estimate
from rlzero.planner.settings import Settings
from rlzero.rollout import buckets, simulation
from rlzero.runtime import sharding
from rlzero.train import packing


class Calls(NamedTuple):
  """Calls that cost the same, as shares of a call at the fullest."""

  number: float  # a step
  flops: float = 1.0
  moved: float = 1.0
  received: float = 1.0
  kernels: float = 1.0  # of what kernels read at the fullest; see `Program`


class Work:
  """The work of a step.

  Args:
    cfg: of the plan.
    run: its shapes.
    estimate: makes the arithmetic of a rollout, on the mesh of rollouts.
  """

  def __init__(
    self,
    cfg: Settings,
    run: programs.Run,
    estimate: Callable[[], Estimate],
  ):
    self._cfg, self._run, self._estimate = cfg, run, estimate
    self._num_shards = sharding.axis_size('B')
    sampled = run.num_prompts, run.cfg.num_samples
    self.lengths = lengths.read(
      cfg.lengths, sampled[0] * sampled[1], run.cfg.sampling.max_len
    ).reshape(sampled)
    self.schedule = functools.cache(self._schedule)
    # Forward passes of a rollout that only look: under the reference, and
    # under the policy that sampled.
    goal = run.cfg.objective
    self.passes = (goal.kl_coef > 0) + (goal.old_logprobs == 'recomputed')

  def of(self, name: str, amount: int) -> tuple[float, list[Calls]]:
    """FLOPs of a call at the fullest, of all devices, and the calls of a step.

    Args:
      name: of the program.
      amount: slots of a rollout, or tokens of a microbatch.
    """
    run, model = self._run.cfg, self._run.model
    updates = run.updates_per_rollout
    match name:
      case 'reshard':
        return 0.0, [Calls(1 / updates)]
      case 'prefill':
        block = buckets.prefill_batch(self._run.num_prompts)
        tokens = block * self._run.prompt_len
        pairs = tokens * self._run.prompt_len
        forward = flops.forward(model, tokens, 0, pairs, adapter=run.adapter)
        return forward, self._counted(amount, name)
      case 'decode':
        return self._decode(amount)
      case 'insert' | 'read' | 'resize' | 'shrink':
        return 0.0, self._counted(amount, name)
      case 'apply':  # some twenty operations a parameter
        sizes = (x.size for x in jax.tree.leaves(self._run.trained))
        return 20 * sum(sizes), [Calls(1.0)]
    work = self._of_micro(name, self._run.micro(amount))
    shares = collections.Counter(
      self._of_micro(name, micro) / work for micro in self._micros(amount)
    )
    often = 1.0
    if name == 'reference':
      often = self.passes / run.epochs_per_rollout
    # Microbatches differ in shape: FLOPs and traffic of memory scale, what is
    # gathered and summed over devices hardly does.
    return work, [Calls(n * often, s, s) for s, n in shares.items()]

  def _schedule(self, num_slots: int) -> simulation.Schedule:
    """The rollout with at most so many slots."""
    run = self._run
    with run.rollout_mesh():
      return simulation.simulate(
        run.model,
        self.lengths,
        [run.prompt_len] * run.num_prompts,
        run.sampling(num_slots),
      )

  def _counted(self, num_slots, name):
    """Calls of a program that moves what its slots hold, whatever they do."""
    slots = self._run.slots(num_slots)
    assert slots.cache is not None
    cache_len = kv_cache.capacity(self._run.model, slots.cache)
    whole = slots.token.shape[0] * cache_len
    updates = self._run.cfg.updates_per_rollout
    found = []
    for call, number in self.schedule(num_slots).calls.items():
      if call.program == name:
        share = 1.0
        if name in ('resize', 'shrink'):
          share = call.num_slots * call.cache_len / whole
        found.append(Calls(number / updates, 1.0, share))
    return found

  def _decode(self, num_slots):
    run, model = self._run.cfg, self._run.model
    steps = run.sampling.decode_steps
    slots = self._run.slots(num_slots)
    assert slots.cache is not None

    def work(rows, cache_len):
      pairs = rows * (cache_len + steps)
      forward = functools.partial(flops.forward, model, adapter=run.adapter)
      return steps * forward(rows, rows, pairs, absorbed=True)

    size = slots.token.shape[0], kv_cache.capacity(model, slots.cache)
    with self._run.rollout_mesh():
      estimate = self._estimate()
      fullest = estimate.decode(*size)
      found = []
      schedule = self.schedule(num_slots)
      on_device = math.prod(size) // sharding.axis_size('B')
      for call, number in schedule.calls.items():
        if call.program != 'decode':
          continue
        one = estimate.decode(call.num_slots, call.cache_len)
        found.append(
          Calls(
            number / run.updates_per_rollout,
            work(call.num_slots, call.cache_len) / work(*size),
            (one.moved - one.kernels) / (fullest.moved - fullest.kernels),
            one.received / fullest.received if fullest.received else 1.0,
            schedule.positions_read[call] / number / on_device,
          )
        )
    return work(*size), found

  def least_decoded(self, num_slots: int) -> float:
    """Bytes of a device that decoding must move in a step.

    For each token all weights, the keys and values of running completions, and
    the new ones.
    """
    run = self._run
    slots, schedule = run.slots(num_slots), self.schedule(num_slots)
    assert slots.cache is not None
    with run.rollout_mesh():
      num_shards = sharding.axis_size('B')
      cache = sharding.bytes_per_device(slots.cache)
      weights = sharding.bytes_per_device(run.decode_params)
    cache_len = kv_cache.capacity(run.model, slots.cache)
    position = cache * num_shards / (slots.token.shape[0] * cache_len)
    positions = sum(schedule.positions_live.values()) / num_shards
    new = schedule.usage.tokens / num_shards
    steps = run.cfg.sampling.decode_steps
    least = (
      steps * (schedule.count('decode') * weights + positions * position)
      + new * position
    )
    return least / run.cfg.updates_per_rollout

  def _of_micro(self, name: str, micro: packing.Microbatch) -> float:
    """FLOPs of a microbatch."""
    model, adapter = self._run.model, self._run.cfg.adapter
    rows, width = micro.tokens.ids.shape
    prompts, prompt_width = micro.prompts.tokens.ids.shape
    looked_at = width + micro.prompts.index.shape[1] * prompt_width
    tokens = rows * width + prompts * prompt_width
    pairs = rows * width * looked_at + prompts * prompt_width**2
    if name == 'update':
      return flops.update(model, tokens, rows * width, pairs, adapter)
    return flops.forward(model, tokens, rows * width, pairs, adapter=adapter)

  def _micros(self, micro_tokens: int) -> Iterator[packing.Microbatch]:
    """Microbatches of a step, of the first completions of the rollout."""
    run = self._run.cfg
    chosen = self.lengths[: run.num_prompts, : run.group_size]
    rows = programs.rows_of(chosen, self._run.prompt_len)
    for _, micro in packing.microbatches(
      rows,
      np.arange(chosen.size),
      micro_tokens,
      run.sampling.max_len,
      self._num_shards,
    ):
      yield micro
