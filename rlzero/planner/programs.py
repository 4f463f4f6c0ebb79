"""The programs of a GRPO run, made from shapes alone.

The functions are those that `rlzero.grpo` runs, and so is what builds their
arguments. Only their inputs are shapes with places on a mesh, whose devices
need not be there.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import math
import pathlib
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rlzero.models import kv_cache, parameters, transformer
from rlzero.models.config import ModelConfig
from rlzero.planner import hlo
from rlzero.rl import programs as update_programs
from rlzero.rl import settings
from rlzero.rl.learner import TrainState
from rlzero.rollout import buckets, decode_layout
from rlzero.rollout import programs as rollout_programs
from rlzero.rollout.programs import Call
from rlzero.rollout.sampling import Sampling
from rlzero.rollout.slots import Slots, constrain_cache
from rlzero.runtime import sharding
from rlzero.train import adapters, packing
from rlzero.types import KeyValues, Params


class Lowered(NamedTuple):
  """Calls that are planned together, before they are compiled."""

  calls: Sequence[Call]
  # Bytes of a device that they take the inputs from, one after the other, and
  # put the outputs to; 0 where a call has all of it.
  held: float = 0.0


class Program(NamedTuple):
  """The needs of a program, or of several in turn, on a device."""

  memory: float  # bytes: inputs, outputs and temporaries
  moved: float  # bytes read from and written to memory
  received: float  # bytes from other devices
  known: bool = True  # False: the compiler ran out of memory and said how much
  # Bytes that it reads of what it is given, where some is left out: the last
  # layer's MLP where only keys and values are wanted, say.
  inputs: float = math.inf
  # Bytes of `moved` that a kernel reads at the fullest, and of which it reads
  # those that are live (`models/live_attention.py`).
  kernels: float = 0.0


@dataclasses.dataclass(frozen=True)
class Run:
  """A run's shapes on the current mesh.

  Args:
    cfg: its settings.
    model: as the run computes it.
    prompt_len: tokens of the longest prompt.
    rollout_mesh: context with the mesh of rollouts, where that is another.
    eos_ids: that end a completion; which ones does not matter to a plan.
  """

  cfg: settings.Config
  model: ModelConfig
  prompt_len: int
  rollout_mesh: Callable[[], contextlib.AbstractContextManager] = (
    contextlib.nullcontext
  )
  eos_ids: tuple[int, ...] = (0,)  # as many as most tokenizers have

  @functools.cached_property
  def state(self) -> TrainState:
    shapes = jax.eval_shape(
      lambda: transformer.init(self.model, jax.random.key(0))
    )
    return update_programs.abstract_state(
      self.cfg.make_learner(self.model),
      adapters.shapes(self.cfg.adapter, self.model, shapes),
    )

  @property
  def trained(self) -> Params:
    """Parameters that an update changes."""
    return adapters.split(self.state.params)[0]

  @property
  def num_prompts(self) -> int:
    """Prompts of a rollout."""
    return self.cfg.num_prompts * self.cfg.steps_per_rollout

  @property
  def reference(self) -> Params:
    """Its arrays: a copy of the adapter beside the base, or of all."""
    return self.trained if self.cfg.objective.kl_coef else {}

  @property
  def widest(self) -> int:
    """Tokens of the rows that the longest completions are packed into."""
    return self.micro(self.cfg.micro_tokens).tokens.ids.shape[1]

  @functools.cached_property
  def decode_params(self) -> Params:
    """Parameters as a rollout reads them."""
    params = self.state.params  # on the update's mesh
    with self.rollout_mesh():
      return decode_layout.shapes(self.model, params)

  @property
  def copied(self) -> float:
    """Bytes that a device holds of them beside the update's parameters."""
    old, new = self.state.params, self.decode_params
    if self.cfg.rollout_mesh or jax.tree.structure(old) != (
      jax.tree.structure(new)
    ):
      return sharding.bytes_per_device(new)
    cast = jax.tree.map(lambda x, y: x.dtype != y.dtype and y, old, new)
    return sharding.bytes_per_device([x for x in jax.tree.leaves(cast) if x])

  @property
  def narrowed(self) -> float:
    """Bytes of a device's parameters in the dtype that a rollout is sent.

    Only of those that have another dtype in the update.
    """
    old = jax.tree.leaves(self.state.params)
    cast = jax.eval_shape(
      functools.partial(parameters.cast, self.model),
      jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.state.params
      ),
    )
    return sum(
      sharding.bytes_per_device(x) * y.dtype.itemsize / x.dtype.itemsize
      for x, y in zip(old, jax.tree.leaves(cast), strict=True)
      if x.dtype != y.dtype
    )

  @property
  def cache_lens(self) -> list[int]:
    """Sizes of the cache of all slots, the longest last."""
    with self.rollout_mesh():
      sizes = buckets.sizes(self._narrow(1))
      return sizes.cache_lens(sizes.num_slots)

  def smaller_batches(self, num_slots: int) -> Sequence[int]:
    """Slots of the batches that so many may shrink to, the largest first."""
    with self.rollout_mesh():
      return buckets.sizes(self._narrow(num_slots)).smaller_batches

  def slots(self, num_slots: int, shorter: bool = False) -> Slots:
    """The slots with the longest cache, or with the one before."""
    sampling, unstacked = self._narrow(num_slots), self._unstacked
    with self.rollout_mesh():
      return rollout_programs.abstract_slots(
        self.model,
        buckets.sizes(sampling).num_slots,
        self.cache_lens[-2 if shorter else -1],
        sampling,
        unstacked,
      )

  @property
  def prompts(self) -> KeyValues:
    """Keys and values of a block of prompts."""
    unstacked = self._unstacked
    with self.rollout_mesh():
      width = buckets.sizes(self._narrow(1)).prompt_width
      shapes = jax.eval_shape(
        lambda: kv_cache.empty_cache(
          self.model,
          buckets.prefill_batch(self.num_prompts),
          width,
          unstacked,
        )
      )
      return constrain_cache(shapes, sharding.abstract)

  def micro(self, micro_tokens: int) -> packing.Microbatch:
    """The first microbatch where every completion is as long as may be."""
    rows = self._longest()
    return next(
      packing.microbatches(
        rows,
        np.arange(len(rows.completions)),
        micro_tokens,
        self.cfg.sampling.max_len,
        sharding.axis_size('B'),
      )
    )[1]

  def rollout(self, num_slots: int) -> dict[str, Lowered]:
    """The programs of `rollout_programs.lower`."""
    params = self.state.params  # on the update's mesh
    with self.rollout_mesh():
      found = rollout_programs.lower(
        self.model,
        params,
        self.num_prompts,
        self.cfg.num_samples,
        self.prompt_len,
        self.sampling(num_slots),
        self.eos_ids,
        self.cfg.seed,
      )
    # The slots are resized one array after the other.
    held = {'resize': True, 'shrink': False}
    return {
      name: Lowered(
        calls,
        sharding.bytes_per_device(self.slots(num_slots, held[name]))
        if name in held
        else 0.0,
      )
      for name, calls in found.items()
    }

  def update(self, micro_tokens: int) -> dict[str, Lowered]:
    """Reference, update and apply."""
    cfg = dataclasses.replace(self.cfg, micro_tokens=micro_tokens)
    learner = cfg.make_learner(self.model)
    found = update_programs.lower(learner, self.state, self._longest())
    return {name: Lowered([Call(name, x, 1)]) for name, x in found.items()}

  @property
  def _unstacked(self) -> bool:
    return 'layers' not in self.decode_params

  def sampling(self, num_slots: int) -> Sampling:
    """How a rollout samples, with so many slots."""
    return dataclasses.replace(self.cfg.rollout_sampling, num_slots=num_slots)

  def _narrow(self, num_slots: int) -> Sampling:
    return buckets.narrow(
      self.sampling(num_slots),
      self.num_prompts * self.cfg.num_samples,
      self.prompt_len,
    )

  def _longest(self) -> packing.RolloutBatch:
    cfg = self.cfg
    return rows_of(
      np.full((cfg.num_prompts, cfg.group_size), cfg.sampling.max_len),
      self.prompt_len,
    )


def rows_of(lengths: np.ndarray, prompt_len: int) -> packing.RolloutBatch:
  """Completions of these lengths, [P, G], with nothing in them."""
  flat = lengths.reshape(-1)

  def of_length(value):
    return [np.broadcast_to(value, (n,)) for n in flat]

  return packing.RolloutBatch(
    # Each of another token, since a plan counts on nothing that is shared.
    prompts=[[i] * prompt_len for i in range(len(lengths))],
    prompt_index=np.repeat(np.arange(len(lengths)), lengths.shape[1]),
    completions=of_length(np.int32(1)),
    old_logprobs=of_length(np.float32(0)),
    ref_logprobs=None,
    advantages=np.ones(flat.size, np.float32),
  )


def compile_all(lowered: Mapping[Any, Lowered]) -> dict[Any, Program]:
  """Compiles two at a time; what does not fit the device says how much."""
  calls = [call.lowered for one in lowered.values() for call in one.calls]
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    compiled = dict(zip(map(id, calls), pool.map(_compile, calls), strict=True))
  return {
    key: _in_turn(one, [compiled[id(call.lowered)] for call in one.calls])
    for key, one in lowered.items()
  }


class _Compiled(NamedTuple):
  """A compiled program, of a device."""

  inputs: float  # bytes
  outputs: float  # bytes
  total: float  # bytes: those that are no input, and temporaries, as well
  moved: float
  received: float
  known: bool = True
  kernels: float = 0.0


def _in_turn(lowered: Lowered, compiled: Sequence[_Compiled]) -> Program:
  """The needs of calls that follow each other."""
  peak, held = 0.0, lowered.held
  moved = received = kernels = 0.0
  for call, one in zip(lowered.calls, compiled, strict=True):
    for _ in range(call.number):
      peak = max(peak, max(held - one.inputs, 0.0) + one.total)
      if held:
        held += one.outputs - one.inputs
    moved += call.number * one.moved
    received += call.number * one.received
    kernels += call.number * one.kernels
  return Program(
    peak,
    moved,
    received,
    all(one.known for one in compiled),
    sum(one.inputs for one in compiled),
    kernels,
  )


def _compile(lowered: jax.stages.Lowered) -> _Compiled:
  # The text comes from a dump: `as_text()` of a TPU's executable can fail on
  # asynchronous collectives.
  with tempfile.TemporaryDirectory() as folder:
    options = {'xla_dump_to': folder, 'xla_dump_hlo_as_text': True}
    try:
      compiled = lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
      needed = re.search(r'temporaries \(([\d.]+)([KMGT])\)', str(error))
      if 'RESOURCE_EXHAUSTED' not in str(error) or not needed:
        raise
      temporaries = float(needed[1]) * 2 ** (10 * ' KMGT'.index(needed[2]))
      inputs = sharding.bytes_per_device(lowered.in_avals)
      return _Compiled(
        inputs, 0.0, inputs + temporaries, math.nan, math.nan, False
      )
    (path,) = pathlib.Path(folder).glob('*after_optimizations.txt')
    traffic = hlo.traffic(path.read_text())
  m = _memory_of(compiled)
  return _Compiled(
    m.argument_size_in_bytes,
    m.output_size_in_bytes,
    memory_of(compiled),
    traffic.memory,
    traffic.received,
    kernels=traffic.kernels,
  )


def memory_of(compiled: jax.stages.Compiled) -> int:
  """Bytes of a device: inputs, outputs that are none of them, temporaries."""
  m = _memory_of(compiled)
  return (
    m.argument_size_in_bytes
    + m.output_size_in_bytes
    - m.alias_size_in_bytes
    + m.temp_size_in_bytes
  )


def _memory_of(compiled):
  found = compiled.memory_analysis()
  if found is None:
    raise ValueError('this compiler does not say what memory a program needs')
  return found
