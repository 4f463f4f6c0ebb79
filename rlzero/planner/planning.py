"""Plans a run: what each program of a step needs, and whether it fits."""

import contextlib
import dataclasses
import functools
import math
import os
from typing import Any

import jax

from rlzero.costs import flops, hardware
from rlzero.planner import estimate, programs
from rlzero.planner.programs import Program
from rlzero.planner.settings import Settings
from rlzero.planner.work import Work
from rlzero.runtime import memory, sharding
from rlzero.runtime.memory import GIB

_ROLLOUT = ('prefill', 'insert', 'decode', 'read', 'resize', 'shrink')
_UPDATE = ('reference', 'update', 'apply')
_SHARD = 'use more chips, or make `fsdp`, `expert` or `tensor` larger.'
# What a device holds, and what makes it smaller.
ADVICE = {
  'parameters': _SHARD,
  'optimiser': _SHARD,
  'reference': 'use more chips, or do without it (kl_coef = 0).',
  'copy': 'use more chips, or a rollout_mesh that makes more shards.',
  'prompts': 'lower max_prompt_len.',
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
  step_moved: float  # bytes of memory a step


def make_plan(cfg: Settings) -> dict[str, Any]:
  """The report.

  Raises:
    ValueError: an unknown topology, or a mesh that does not fit it.
  """
  cfg = dataclasses.replace(cfg, run=cfg.run.at(cfg.at_step))
  name, _, shape = cfg.topology.partition(':')
  if name == 'cpu':
    devices = jax.devices()
    num_devices = len(devices)
    chip = hardware.CPU._replace(memory=memory.total() / num_devices)
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
  if devices:
    # Executables for devices that are not here cannot be kept.
    jax.config.update('jax_enable_compilation_cache', False)

  def layout(mesh: sharding.Mesh) -> contextlib.AbstractContextManager:
    if devices:
      return sharding.use(mesh, devices)
    return sharding.abstract_mesh(
      mesh, num_devices, 'tpu' if chip.is_tpu else 'gpu'
    )

  with layout(cfg.run.mesh):
    plan = _Plan(cfg, chip, num_devices, bool(devices), layout)
    return plan.report()


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
      "(pip install 'jax[tpu]') and a shape that exists, v5p:4x4x4 say."
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
  """One plan under way, on the mesh of the update."""

  def __init__(self, cfg, chip, num_devices, compiled, layout=None):
    self.cfg, self.chip = cfg, chip
    self.num_devices, self.compiled = num_devices, compiled
    self.model = cfg.run.with_runtime_options(cfg.run.model)
    rollout_mesh = contextlib.nullcontext
    if cfg.run.rollout_mesh and layout:
      rollout_mesh = functools.partial(layout, cfg.run.rollout_mesh)
    self.run = programs.Run(
      cfg.run,
      self.model,
      cfg.prompt_len or cfg.run.sampling.max_prompt_len,
      rollout_mesh,
    )
    self.num_shards = sharding.axis_size('B')
    with rollout_mesh():
      self.slot_shards = sharding.axis_size('B')
    self.width = self.run.widest
    self.work = Work(cfg, self.run, self._estimate)
    self.found: dict[tuple[str, int], Program] = {}

  def report(self) -> dict[str, Any]:
    cfg, run = self.cfg, self.cfg.run
    # Sizes are counted in rows and slots of a device.
    rows = (
      self.run.micro(run.micro_tokens).tokens.ids.shape[0] // self.num_shards
    )
    slots = len(self.run.slots(run.sampling.num_slots).token)
    slots //= self.slot_shards
    per_step = run.num_prompts * run.group_size
    sampled = self.run.num_prompts * run.num_samples
    most_rows = max(per_step // self.num_shards, 1)
    most_slots = max(sampled // self.slot_shards, 1)
    names = self._names(slots)
    sizes = {name: slots if name in _ROLLOUT else rows for name in names}
    wanted = [(n, size) for n, size in sizes.items() if n != 'reshard']
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
        'slots': self._largest('decode', slots, most_slots, self.slot_shards),
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
      'mean_len': float(self.work.lengths.mean()),
      'prompt_len': self.run.prompt_len,
      'efficiency': cfg.efficiency,
      'slots': slots * self.slot_shards,
      'rollout': self._rollout(slots * self.slot_shards, phases),
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

  def _names(self, slots: int) -> list[str]:
    """The programs that a run has; not every one has all of them."""
    slots *= self.slot_shards
    there = {
      'resize': len(self.run.cache_lens) > 1,
      'shrink': bool(self.run.smaller_batches(slots)),
      'reshard': self.cfg.run.rollout_mesh is not None,
      'reference': self.work.passes > 0,
    }
    names = ('reshard', *_ROLLOUT, *_UPDATE)
    return [name for name in names if there.get(name, True)]

  def _rollout(self, num_slots: int, phases) -> dict[str, float]:
    """How a rollout goes, by the scheduler's own rules."""
    schedule = self.work.schedule(num_slots)
    usage = schedule.usage
    (decode,) = (phase for phase in phases if phase.name == 'decode')
    room = sum(
      number * call.num_slots * call.cache_len
      for call, number in schedule.calls.items()
      if call.program == 'decode'
    )
    return {
      'decode_calls': schedule.count('decode'),
      'tokens': usage.tokens,
      'slot_use': usage.tokens / usage.computed,
      'cache_use': sum(schedule.positions_live.values()) / room,
      'decode_moved': decode.step_moved / self.work.least_decoded(num_slots),
    }

  def _estimate(self) -> estimate.Estimate:
    return estimate.Estimate(self.run, 'tpu' if self.chip.is_tpu else 'gpu')

  def _amount(self, name: str, size: int) -> int:
    """Slots, or tokens of a microbatch, of all devices."""
    if name in _ROLLOUT:
      return size * self.slot_shards
    return size * self.num_shards * self.width

  def _find(self, wanted) -> None:
    """Fills `found` with programs of (name, rows or slots of a device)."""
    made: dict[tuple[bool, int], Any] = {}
    new = {}
    for name, size in wanted:
      key = name in _ROLLOUT, size
      if key not in made:
        made[key] = self._make(name, size, self.compiled)
      new[name, size] = made[key][name]
    self.found |= programs.compile_all(new) if self.compiled else new

  def _make(self, name: str, size: int, lowered: bool) -> dict[str, Any]:
    """All programs of a rollout, or of an update, lowered or by arithmetic."""
    amount = self._amount(name, size)
    if name not in _ROLLOUT:
      source = self.run if lowered else self._estimate()
      return source.update(amount)
    if lowered:
      return self.run.rollout(amount)
    with self.run.rollout_mesh():
      return self._estimate().rollout(amount)

  def _memory(self, name: str, size: int) -> dict[str, float]:
    """Bytes of a device while a program runs, by what they hold."""
    state, run = self.run.state, self.run
    held: dict[str, float] = {
      'parameters': sharding.bytes_per_device(state.params),
      'optimiser': sharding.bytes_per_device(state.opt_state),
      'reference': sharding.bytes_per_device(run.reference),
    }
    if name == 'reshard':
      # In the update's layout first, in the dtype that is sent.
      sent = run.narrowed
      return held | {'copy': run.copied, 'temporaries': sent}
    if name in _ROLLOUT:
      slots = run.slots(self._amount(name, size))
      held |= {
        'copy': run.copied,
        'cache': sharding.bytes_per_device(slots),
        'prompts': sharding.bytes_per_device(run.prompts),
      }
      decoded = sharding.bytes_per_device(run.decode_params)
      given = {
        'prefill': decoded,
        'insert': held['cache'] + held['prompts'],
        'decode': decoded + held['cache'],
        'read': sharding.bytes_per_device(slots._replace(cache=None)),
      }
      # What a cache is resized from or to, the larger, is all there at a time.
      counted = held['cache']
      if name in given:
        counted = min(given[name], self.found[name, size].inputs)
      if name == 'prefill':  # its output
        counted += held['prompts']
    else:
      counted = held['parameters']
      if name != 'reference':
        held['gradients'] = sharding.bytes_per_device(run.trained)
        counted += held['gradients']
      if name == 'apply':  # a frozen base is none of its inputs
        counted += held['optimiser'] - held['parameters'] + held['gradients']
    held['temporaries'] = self.found[name, size].memory - counted
    return held

  def _phase(self, name: str, size: int) -> Phase:
    held = self._memory(name, size)
    program = self._needs(name, size)
    moved, received = program.moved, program.received
    kernels = program.kernels
    if not program.known:  # not compiled, so by arithmetic
      guess = self._make(name, size, lowered=False)[name]
      moved, received, kernels = guess.moved, guess.received, guess.kernels
    work, calls = self.work.of(name, self._amount(name, size))
    flops_call = work / self.num_devices
    step_s = step_moved = 0.0
    for call in calls:
      moves = call.moved * (moved - kernels) + call.kernels * kernels
      times = self._times(
        call.flops * flops_call, moves, call.received * received
      )
      step_s += call.number * max(times.values())
      step_moved += call.number * moves
    times = self._times(flops_call, moved, received)
    total = sum(held.values())
    return Phase(
      name=name,
      memory=held,
      total=total,
      fits=program.known and total <= self.chip.memory,
      flops=flops_call,
      moved=moved,
      received=received,
      roofline_s=max(times.values()),
      bound=max(times, key=times.__getitem__),
      calls=sum(call.number for call in calls),
      step_s=step_s,
      step_moved=step_moved,
    )

  def _needs(self, name: str, size: int) -> Program:
    if name != 'reshard':
      return self.found[name, size]
    # All of it may come from other devices.
    sent = sharding.bytes_per_device(self.run.decode_params)
    return Program(0.0, 2 * sent, sent)

  def _times(self, flops_call, moved, received) -> dict[str, float]:
    return {
      'FLOPs': flops_call / self.chip.flops,
      'memory': moved / self.chip.bandwidth,
      'links': received / self.chip.link,
    }

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
