"""The programs of a GRPO run, made from shapes alone.

The functions are those that `rlzero.grpo` runs. Only their inputs are shapes
with places on a mesh, whose devices need not be there.
"""

import concurrent.futures
import dataclasses
import functools
import math
import pathlib
import re
import tempfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from rlzero.models import transformer
from rlzero.models.config import ModelConfig
from rlzero.planner import hlo
from rlzero.rl import programs as update_programs
from rlzero.rl import settings
from rlzero.rl.learner import TrainState
from rlzero.rollout import buckets
from rlzero.rollout import programs as rollout_programs
from rlzero.rollout.sampling import Sampling
from rlzero.rollout.slots import Slots
from rlzero.runtime import sharding
from rlzero.train import adapters, packing
from rlzero.types import Params

_EOS = (0,)  # as many as most tokenizers have; which one does not matter


class Program(NamedTuple):
  """The needs of one call of a program, on a device."""

  memory: float  # bytes: inputs, outputs and temporaries
  moved: float  # bytes read from and written to memory
  received: float  # bytes from other devices
  known: bool = True  # False: the compiler ran out of memory and said how much


@dataclasses.dataclass(frozen=True)
class Run:
  """A run's shapes on the current mesh.

  Args:
    cfg: its settings.
    model: as the run computes it.
    prompt_len: tokens of the longest prompt.
  """

  cfg: settings.Config
  model: ModelConfig
  prompt_len: int

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

  def slots(self, num_slots: int) -> Slots:
    sampling = buckets.narrow(
      self._sampling(num_slots),
      self.num_prompts * self.cfg.num_samples,
      self.prompt_len,
    )
    num_slots, _, cache_len = buckets.sizes(sampling)
    return rollout_programs.abstract_slots(
      self.model, num_slots, cache_len, sampling
    )

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

  def rollout(self, num_slots: int) -> dict[str, jax.stages.Lowered]:
    """Prefill and decode."""
    return rollout_programs.lower(
      self.model,
      self.state.params,
      self.num_prompts,
      self.cfg.num_samples,
      self.prompt_len,
      self._sampling(num_slots),
      _EOS,
    )

  def update(self, micro_tokens: int) -> dict[str, jax.stages.Lowered]:
    """Reference, update and apply."""
    cfg = dataclasses.replace(self.cfg, micro_tokens=micro_tokens)
    learner = cfg.make_learner(self.model)
    return update_programs.lower(learner, self.state, self._longest())

  def _sampling(self, num_slots: int) -> Sampling:
    return dataclasses.replace(self.cfg.sampling, num_slots=num_slots)

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


def compile_all(
  lowered: Mapping[Any, jax.stages.Lowered],
) -> dict[Any, Program]:
  """Compiles two at a time; what does not fit the device says how much."""
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    return dict(zip(lowered, pool.map(_compile, lowered.values()), strict=True))


def _compile(lowered: jax.stages.Lowered) -> Program:
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
      return Program(inputs + temporaries, math.nan, math.nan, False)
    (path,) = pathlib.Path(folder).glob('*after_optimizations.txt')
    traffic = hlo.traffic(path.read_text())
  return Program(memory_of(compiled), traffic.memory, traffic.received)


def memory_of(compiled: jax.stages.Compiled) -> int:
  """Bytes of a device: inputs, outputs that are none of them, temporaries."""
  m = compiled.memory_analysis()
  if m is None:
    raise ValueError('this compiler does not say what memory a program needs')
  return (
    m.argument_size_in_bytes
    + m.output_size_in_bytes
    - m.alias_size_in_bytes
    + m.temp_size_in_bytes
  )
