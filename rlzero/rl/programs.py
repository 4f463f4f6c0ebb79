"""Lowers the programs of a GRPO step from shapes, without running them.

The planner looks at them; `compile_ahead` compiles them all before the first
step, so that no later one waits for the compiler.
"""

import concurrent.futures
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np

from rlzero.models import parameters
from rlzero.rl.learner import Learner, TrainState, put
from rlzero.rollout import programs as rollout_programs
from rlzero.rollout import scheduler
from rlzero.rollout.sampling import Sampling
from rlzero.runtime import sharding
from rlzero.train import adapters, buckets, packing
from rlzero.types import Params


class AheadOfTime:
  """Compiles each program in all of its sizes before its first call.

  The compilations are found again in JAX's cache by those who call the
  functions.

  Args:
    learner: whose programs are compiled.
    wanted: False makes every method do nothing.
  """

  def __init__(self, learner: Learner, wanted: bool):
    self._learner, self._wanted = learner, wanted
    self._done: set[str] = set()

  def rollout(
    self,
    params: Params,
    prompts: Sequence[scheduler.Prompt],
    group_size: int,
    sampling: Sampling,
    eos_ids: tuple[int, ...],
  ) -> None:
    """Compiles what `scheduler.generate` calls with so many prompts."""
    self._compile(
      f'rollout of {len(prompts)}',
      lambda: rollout_programs.lower_all(
        self._learner.config, params, prompts, group_size, sampling, eos_ids
      ),
    )

  def reference(self, params: Params, batch: packing.RolloutBatch) -> None:
    """Compiles what `Learner.logprobs` calls for such batches."""
    self._compile(
      'reference',
      lambda: lower_sizes(self._learner, params, batch, 'reference'),
    )

  def update(self, params: Params, batch: packing.RolloutBatch) -> None:
    """Compiles what `Learner.gradient` calls for such batches."""
    self._compile(
      'update', lambda: lower_sizes(self._learner, params, batch, 'update')
    )

  def _compile(
    self, name: str, lower: Callable[[], Iterable[jax.stages.Lowered]]
  ) -> None:
    if not self._wanted or name in self._done:
      return
    self._done.add(name)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      list(pool.map(lambda program: program.compile(), lower()))


def abstract_state(learner: Learner, params: Params) -> TrainState:
  """Returns the shapes and shardings of `Learner.init`.

  Args:
    learner: whose optimiser it is.
    params: arrays or their shapes.
  """
  params = sharding.abstract_params(parameters.AXES, params)
  of_params = dict(jax.tree_util.tree_leaves_with_path(params))

  def placed(path, leaf):
    """Shards a leaf like the parameter that its path ends like."""
    ends = (of_params.get(path[i:]) for i in range(len(path)))
    return next(filter(None, ends), None) or _on_every_device(leaf)

  trained, _ = adapters.split(params)
  opt_state = jax.eval_shape(learner.transform.init, trained)
  return TrainState(params, jax.tree_util.tree_map_with_path(placed, opt_state))


def lower(
  learner: Learner, state: TrainState, batch: packing.RolloutBatch
) -> dict[str, jax.stages.Lowered]:
  """Lowers the programs of an update.

  Args:
    learner: whose programs they are.
    state: arrays, or their shapes and shardings (`abstract_state`).
    batch: completions; the programs are those of their first microbatch,
      which is as wide as the longest needs.

  Returns:
    `reference` computes the log-probs of a microbatch, `update` adds its
    gradient to those before, and `apply` is the optimiser's step.
  """
  params, carry = _abstract_carry(learner, state.params)
  _, micro = next(learner.microbatches(batch, learner.chosen(batch)))
  micro = put(micro, sharding.abstract)
  one = _on_every_device(jax.ShapeDtypeStruct((), np.float32))
  trained, _ = adapters.split(state.params)
  state = state._replace(params=trained)
  return {
    'reference': learner.programs.logprobs.lower(params, micro),
    'update': learner.programs.accumulate.lower(params, carry, micro),
    'apply': learner.programs.apply.lower(state, *carry, one),
  }


def lower_sizes(
  learner: Learner, params: Params, batch: packing.RolloutBatch, name: str
) -> list[jax.stages.Lowered]:
  """Lowers the program of each shape that microbatches of a batch may have.

  Args:
    learner: whose programs they are.
    params: of the policy.
    batch: completions; how long they are makes no difference.
    name: 'reference' or 'update'.
  """
  params, carry = _abstract_carry(learner, params)
  micros = [
    put(micro, sharding.abstract)
    for micro in shapes(
      batch, learner.micro_tokens, learner.max_len, sharding.axis_size('B')
    )
  ]
  programs = learner.programs
  if name == 'reference':
    return [programs.logprobs.lower(params, micro) for micro in micros]
  return [programs.accumulate.lower(params, carry, micro) for micro in micros]


def shapes(
  batch: packing.RolloutBatch,
  micro_tokens: int,
  max_len: int,
  multiple: int = 1,
) -> Iterator[packing.Microbatch]:
  """Yields an empty microbatch of each shape that packing may produce.

  The shapes are those of `packing.microbatches` with the same arguments, for
  as many completions and prompts, and as long ones.
  """
  for size, num_prompts, width in sizes(
    len(batch.completions), len(batch.prompts), micro_tokens, max_len, multiple
  ):
    yield packing.empty_microbatch(
      batch, [], size, num_prompts, width, multiple
    )


def sizes(
  num_completions: int,
  num_prompts: int,
  micro_tokens: int,
  max_len: int,
  multiple: int = 1,
) -> Iterator[tuple[int, int, int]]:
  """Yields rows, prompts and width of each shape that packing may produce.

  Arguments as of `packing.microbatches`, for so many completions and prompts.
  """
  widths = {buckets.row_width(n + 1, max_len) for n in range(max_len)}
  for width in sorted(widths):
    rows = buckets.row_sizes(micro_tokens, width, multiple)
    enough = [n for n in rows if n >= num_completions]
    for size in rows[max(len(enough) - 1, 0) :]:
      for prompts in buckets.prompt_sizes(size, num_prompts, width, multiple):
        yield size, prompts, width


def _abstract_carry(learner, params):
  params = sharding.abstract_params(parameters.AXES, params)
  _, totals = jax.eval_shape(learner.zeros, params)
  trained, _ = adapters.split(params)
  return params, (trained, jax.tree.map(_on_every_device, totals))


def _on_every_device(x):
  return sharding.abstract(x, '_' * x.ndim)
