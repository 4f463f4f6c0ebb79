"""Plans a run: what each program of a step needs, and whether it fits."""

import collections
import dataclasses
import functools
import heapq
import math
import os
from typing import Any

import jax
import numpy as np

from rlzero.models import kv_cache
from rlzero.planner import estimate, flops, hardware, programs
from rlzero.planner.programs import Program
from rlzero.planner.settings import Settings
from rlzero.rollout import buckets
from rlzero.runtime import sharding
from rlzero.train import packing

GIB = 2**30

_ROLLOUT = ('prefill', 'decode')
_SHARD = 'use more chips, or make `fsdp`, `expert` or `tensor` larger.'
# What a device holds, and what makes it smaller.
ADVICE = {
  'parameters': _SHARD,
  'optimiser': _SHARD,
  'reference': 'use more chips, or do without it (kl_coef = 0).',
  'cache': 'use fewer num_slots, or make `tensor` larger.',
  'gradients': _SHARD,
  'temporaries': 'lower micro_tokens, num_slots or max_len, set remat, or '
  'make `tensor` larger.',
}


@dataclasses.dataclass
class Phase:
  """A program of the step, of one device."""

  name: str
  memory: dict[str, float]  # bytes by what they hold
  total: float  # bytes
  fits: bool
  flops: float  # a call
  moved: float  # bytes of memory a call
  received: float  # bytes from other devices a call
  roofline_s: float  # a call
  bound: str  # which of the three it is
  calls: float  # a step
  step_s: float  # seconds a step, at the roofline


def make_plan(cfg: Settings) -> dict[str, Any]:
  """The report.

  Raises:
    ValueError: an unknown topology, or a mesh that does not fit it.
  """
  name, _, shape = cfg.topology.partition(':')
  if name == 'cpu':
    chip, devices = hardware.CPU, jax.devices()
    num_devices = len(devices)
  elif name not in hardware.CHIPS:
    raise ValueError(
      f'plan.Config.topology is {cfg.topology!r}; choose one of '
      f'{", ".join(hardware.CHIPS)} and add its shape, v5p:4x4x4 or h100:8.'
    )
  else:
    chip = hardware.CHIPS[name]
    compiles = chip.is_tpu and cfg.compile
    devices = _topology(name, shape) if compiles else None
    num_devices = len(devices) if devices else _number(cfg.topology, shape)
  mesh = cfg.run.mesh
  if devices:
    # Executables for devices that are not here cannot be kept.
    jax.config.update('jax_enable_compilation_cache', False)
    where = sharding.use(mesh, devices)
  else:
    where = sharding.abstract_mesh(mesh, num_devices)
  with where:
    return _Plan(cfg, chip, num_devices, compiled=bool(devices)).report()


def _topology(name: str, shape: str):
  # No TPU is asked for, and other processes may plan as well.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  from jax.experimental import topologies

  try:
    return topologies.get_topology_desc(
      platform='tpu', topology_name=f'{name}:{shape}'
    ).devices
  except Exception as error:  # of many kinds, libtpu's among them
    raise ValueError(
      f'plan.Config.topology {name}:{shape} cannot be described '
      f'({str(error).splitlines()[0][:200]}); it needs the package libtpu '
      "(pip install 'rlzero[plan]') and a shape that exists, v5p:4x4x4 say."
    ) from error


def _number(topology: str, shape: str) -> int:
  sizes = shape.split('x')
  if not all(n.isdigit() and int(n) for n in sizes):
    raise ValueError(
      f'plan.Config.topology is {topology!r}; a chip is followed by how many '
      'there are, h100:8 or v5p:4x4x4.'
    )
  return math.prod(map(int, sizes))


class _Plan:
  """One plan under way, on the mesh."""

  def __init__(self, cfg, chip, num_devices, compiled):
    self.cfg, self.chip = cfg, chip
    self.num_devices, self.compiled = num_devices, compiled
    self.model = cfg.run.with_runtime_options(cfg.run.model)
    self.run = programs.Run(
      cfg.run, self.model, cfg.prompt_len or cfg.run.sampling.max_prompt_len
    )
    self.num_shards = sharding.axis_size('B')
    self.width = self.run.widest
    # Forward passes of a rollout that only look: under the reference, and
    # under the policy that sampled.
    goal = cfg.run.objective
    self.passes = (goal.kl_coef > 0) + (goal.old_logprobs == 'recomputed')
    self.found: dict[tuple[str, int], Program] = {}

  def report(self) -> dict[str, Any]:
    cfg, run = self.cfg, self.cfg.run
    # Sizes are counted in rows and slots of a device.
    rows = (
      self.run.micro(run.micro_tokens).tokens.ids.shape[0] // self.num_shards
    )
    slots = len(self.run.slots(run.sampling.num_slots).token) // self.num_shards
    per_step = run.num_prompts * run.group_size
    sampled = self.run.num_prompts * run.num_samples
    most_rows = max(per_step // self.num_shards, 1)
    most_slots = max(sampled // self.num_shards, 1)
    names = ['prefill', 'decode', 'reference', 'update', 'apply']
    if not self.passes:
      names.remove('reference')
    sizes = {
      name: slots if name in ('prefill', 'decode') else rows for name in names
    }
    wanted = list(sizes.items())
    if cfg.fit:
      wanted += [('decode', _other(slots, most_slots))]
      wanted += [('update', _other(rows, most_rows))]
    self._find(wanted)
    phases = [self._phase(name, sizes[name]) for name in names]
    roofline_s = sum(p.step_s for p in phases)
    hours = roofline_s / cfg.efficiency * run.num_steps / 3600
    largest = None
    if cfg.fit:
      largest = {
        'slots': self._largest('decode', slots, most_slots, self.num_shards),
        'micro_tokens': self._largest(
          'update', rows, most_rows, self.num_shards * self.width
        ),
      }
    total, trained = (
      sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
      for tree in (self.run.state.params, self.run.trained)
    )
    return {
      'topology': cfg.topology,
      'devices': self.num_devices,
      'mesh': run.mesh.sizes(self.num_devices),
      'source': 'compiled' if self.compiled else 'arithmetic',
      'hbm_bytes': self.chip.memory,
      'parameters': total,
      'active': total - flops.idle(self.model),
      'trained': trained,
      'max_len': run.sampling.max_len,
      'mean_len': cfg.assumed_len,
      'prompt_len': self.run.prompt_len,
      'efficiency': cfg.efficiency,
      'slots': slots * self.num_shards,
      'microbatch': [rows * self.num_shards, self.width],
      'phases': [dataclasses.asdict(p) for p in phases],
      'fits': all(p.fits for p in phases),
      'advice': self._advice(phases),
      'largest': largest,
      'step_roofline_s': roofline_s,
      'step_s': roofline_s / cfg.efficiency,
      'num_steps': run.num_steps,
      'hours': hours,
      'chip_hours': hours * self.num_devices,
      'cost': hours * self.num_devices * cfg.price or None,
    }

  def _estimate(self) -> estimate.Estimate:
    return estimate.Estimate(self.run, 'tpu' if self.chip.is_tpu else 'gpu')

  def _find(self, wanted) -> None:
    """Fills `found` with programs of (name, rows or slots of a device)."""
    source = self.run if self.compiled else self._estimate()
    made: dict[tuple[str, int], Any] = {}
    new = {}
    for name, size in wanted:
      if name in _ROLLOUT:
        part, amount = source.rollout, size * self.num_shards
      else:
        part, amount = source.update, size * self.num_shards * self.width
      key = part.__name__, size
      if key not in made:
        made[key] = part(amount)
      new[name, size] = made[key][name]
    self.found |= programs.compile_all(new) if self.compiled else new

  def _memory(self, name: str, size: int) -> dict[str, float]:
    """Bytes of a device while a program runs, by what they hold."""
    state = self.run.state
    held: dict[str, float] = {
      'parameters': sharding.bytes_per_device(state.params),
      'optimiser': sharding.bytes_per_device(state.opt_state),
      'reference': sharding.bytes_per_device(self.run.reference),
    }
    own = {'parameters'}  # what the program itself counts
    if name in _ROLLOUT:
      held['cache'] = sharding.bytes_per_device(
        self.run.slots(size * self.num_shards)
      )
      own |= {'cache'} if name == 'decode' else set()
    elif name != 'reference':
      held['gradients'] = sharding.bytes_per_device(self.run.trained)
      own |= {'gradients'}
      own |= {'optimiser'} if name == 'apply' else set()
    program = self.found[name, size]
    counted = sum(held[one] for one in own)
    if name == 'apply':  # a frozen base is none of its inputs
      counted -= held['parameters'] - held['gradients']
    held['temporaries'] = program.memory - counted
    return held

  def _phase(self, name: str, size: int) -> Phase:
    memory = self._memory(name, size)
    program = self.found[name, size]
    moved, received = program.moved, program.received
    if not program.known:  # not compiled, so by arithmetic
      guess = self._estimate()
      guess = guess.rollout if name in _ROLLOUT else guess.update
      unit = 1 if name in _ROLLOUT else self.width
      _, moved, received, _ = guess(size * self.num_shards * unit)[name]
    flops_call, calls = self._work(name, size)
    # Microbatches differ in shape: FLOPs and traffic of memory scale, what
    # is gathered and summed over devices hardly does.
    step_s = 0.0
    for share, number in calls.items():
      times = self._times(share * flops_call, share * moved, received)
      step_s += number * max(times.values())
    times = self._times(flops_call, moved, received)
    total = sum(memory.values())
    return Phase(
      name=name,
      memory=memory,
      total=total,
      fits=program.known and total <= self.chip.memory,
      flops=flops_call,
      moved=moved,
      received=received,
      roofline_s=max(times.values()),
      bound=max(times, key=times.__getitem__),
      calls=sum(calls.values()),
      step_s=step_s,
    )

  def _times(self, flops_call, moved, received) -> dict[str, float]:
    return {
      'FLOPs': flops_call / self.chip.flops,
      'memory': moved / self.chip.bandwidth,
      'links': received / self.chip.link,
    }

  def _work(self, name: str, size: int) -> tuple[float, dict[float, float]]:
    """FLOPs of a call on a device, and calls a step by their share of it."""
    run, model, prompt_len = self.cfg.run, self.model, self.run.prompt_len
    forward = functools.partial(flops.forward, model, adapter=run.adapter)
    match name:
      case 'prefill':
        block = buckets.prefill_batch(self.run.num_prompts)
        tokens = block * prompt_len
        work = forward(tokens, 0, tokens * prompt_len)
        calls = {1.0: run.num_prompts / block / run.epochs_per_rollout}
      case 'decode':
        rows, steps = size * self.num_shards, run.sampling.decode_steps
        cache = self.run.slots(rows).cache
        assert cache is not None
        keys = kv_cache.capacity(model, cache) + steps
        work = steps * forward(rows, rows, rows * keys, absorbed=True)
        calls = {1.0: self._decode_calls(rows)}
      case 'apply':  # some twenty operations a parameter
        work = 20 * sum(x.size for x in jax.tree.leaves(self.run.trained))
        calls = {1.0: 1.0}
      case _:

        def of_micro(micro):
          rows, width = micro.tokens.ids.shape
          prompts, prompt_width = micro.prompts.tokens.ids.shape
          looked_at = width + micro.prompts.index.shape[1] * prompt_width
          tokens = rows * width + prompts * prompt_width
          pairs = rows * width * looked_at + prompts * prompt_width**2
          of_passes = rows * width, pairs
          if name == 'update':
            return flops.update(model, tokens, *of_passes, run.adapter)
          return forward(tokens, *of_passes)

        micro_tokens = size * self.num_shards * self.width
        work = of_micro(self.run.micro(micro_tokens))
        calls = collections.Counter(
          of_micro(micro) / work for micro in self._micros(micro_tokens)
        )
        if name == 'reference':
          often = self.passes / run.epochs_per_rollout
          calls = {share: number * often for share, number in calls.items()}
    return work / self.num_devices, dict(calls)

  def _micros(self, micro_tokens: int):
    """Microbatches of a step whose completions are as long as assumed."""
    run = self.cfg.run
    lengths = lengths_of(
      run.num_prompts * run.group_size,
      self.cfg.assumed_len,
      run.sampling.max_len,
    )
    rows = programs.rows_of(
      lengths.reshape(run.num_prompts, run.group_size), self.run.prompt_len
    )
    everything = np.arange(lengths.size)
    for _, micro in packing.microbatches(
      rows, everything, micro_tokens, run.sampling.max_len, self.num_shards
    ):
      yield micro

  def _decode_calls(self, num_slots: int) -> float:
    """Calls a step, until the last completion of a rollout has ended."""
    run = self.cfg.run
    total = self.run.num_prompts * run.num_samples
    lengths = lengths_of(total, self.cfg.assumed_len, run.sampling.max_len)
    ends = [0] * num_slots
    for length in lengths:
      heapq.heapreplace(
        ends, ends[0] + -(-int(length) // run.sampling.decode_steps)
      )
    return max(ends) / run.updates_per_rollout

  def _largest(self, name: str, size: int, most: int, unit: int):
    """The largest size that fits: a line through two, and a third to confirm.

    Returns:
      its amount in `unit`s, 0 where not even one is known to fit, and the
      bytes that it takes, or that `size` does.
    """
    limit = self.chip.memory

    def total(n):
      return sum(self._memory(name, n).values())

    at = total(size)

    def crossing(other):
      more = total(other) - at
      slope = more / (other - size) if other != size else math.inf
      n = size + math.floor((limit - at) / slope) if slope > 0 else most
      return max(min(n, most), 0)

    n = crossing(_other(size, most))
    for _ in range(3):
      if not n:
        break
      self._find([(name, n)])
      if self.found[name, n].known and total(n) <= limit:
        break
      # Memory grows faster than the line: the next one ends at this size.
      n = min(n - max(n // 16, 1), crossing(n))
    else:
      n = size if at <= limit else 0
    return {'size': n * unit, 'memory': total(n) if n else total(size)}

  def _advice(self, phases) -> list[str]:
    """For each program that does not fit: what is too large, what to do."""
    out = []
    for phase in phases:
      if phase.fits:
        continue
      name = max(phase.memory, key=phase.memory.__getitem__)
      what = ADVICE[name]
      if name == 'temporaries' and phase.name in ('reference', 'update'):
        looked_at = self.width + 2 * self.run.prompt_len
        scores = self.width * looked_at * self.model.num_heads * 4
        scores /= sharding.axis_size('N')
        what += (
          f' Attention scores of one row of {self.width} tokens, held whole in '
          f'float32, are {scores / GIB:.1f} GiB of it, several times over.'
        )
      out.append(
        f'{phase.name} needs {phase.total / GIB:.1f} GiB of '
        f'{self.chip.memory / GIB:.1f}: {name} are the largest part, '
        f'{phase.memory[name] / GIB:.1f} GiB; {what}'
      )
    return out


def _other(size: int, most: int) -> int:
  """A second size for the line: twice the first, or half."""
  return 2 * size if 2 * size <= most else max(size // 2, 1)


def lengths_of(number: int, mean: float, longest: int) -> np.ndarray:
  """Lengths spread like an exponential cut at the longest, in any order."""
  low, high = 0.0, 1e3 * longest
  scale = high / 2
  for _ in range(100):  # the cut one's mean is s (1 - exp(-longest / s))
    scale = (low + high) / 2
    if scale * -math.expm1(-longest / scale) < mean:
      low = scale
    else:
      high = scale
  quantiles = (np.arange(number) + 0.5) / number
  lengths = np.minimum(-scale * np.log1p(-quantiles), longest)
  lengths = np.maximum(np.rint(lengths), 1).astype(int)
  return np.random.default_rng(0).permutation(lengths)
