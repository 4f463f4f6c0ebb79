"""How fast a step computes, from counts that the host has anyway.

Work is what no method could leave out (`costs/useful.py`), so these figures
compare runs whatever pads and whatever is computed again.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from rlzero.costs import hardware, useful
from rlzero.models import padding
from rlzero.models.config import ModelConfig
from rlzero.rl.settings import Config
from rlzero.rollout import scheduler
from rlzero.runtime import sharding
from rlzero.train.packing import RolloutBatch


class Sampled(NamedTuple):
  """The work of sampling some completions."""

  flops: float
  bytes: float  # of memory that decoding reads


def of_sampling(
  cfg: Config,
  model: ModelConfig,
  prompts: Sequence[Sequence[int]],
  completions: Sequence[scheduler.Completion],
  usage: scheduler.Usage,
) -> Sampled:
  """Work of a round of prompts, on the mesh of rollouts.

  Args:
    cfg: of the run.
    model: that samples.
    prompts: their tokens.
    completions: of the prompts, those of each adjacent.
    usage: of the scheduler.
  """
  count = len(completions)
  rows = _rows(
    prompts,
    np.repeat(np.arange(len(prompts)), count // len(prompts)),
    [len(c.tokens) for c in completions],
  )
  num_slots = min(cfg.sampling.num_slots, count)
  copies = sharding.axis_size('B')
  return Sampled(
    useful.forward(model, rows, cfg.adapter),
    useful.decode_bytes(model, rows, usage.steps, num_slots, copies),
  )


def total(parts: Sequence[Sampled | None]) -> Sampled | None:
  """The sum over rounds; None if one of them is."""
  found = [part for part in parts if part is not None]
  if len(found) < len(parts):
    return None
  return Sampled(*(sum(numbers) for numbers in zip(*found, strict=True)))


def of_update(
  cfg: Config, model: ModelConfig, batch: RolloutBatch, chosen: np.ndarray
) -> float:
  """FLOPs of an update with the chosen completions."""
  return useful.update(model, _chosen_rows(batch, chosen), cfg.adapter)


def of_logprobs(cfg: Config, model: ModelConfig, batch: RolloutBatch) -> float:
  """FLOPs of the log-probs of a batch under one policy."""
  chosen = np.arange(len(batch.completions))
  return useful.forward(model, _chosen_rows(batch, chosen), cfg.adapter)


class Rates(NamedTuple):
  """Rates of all devices of a run together; None where they are not known."""

  flops: float | None
  bandwidth: float | None


def rates(cfg: Config) -> Rates:
  """Rates as the settings give them, or else as published."""
  one = cfg.mesh == sharding.Mesh()
  number = 1 if one else jax.device_count()
  chip = hardware.find(jax.devices()[0].device_kind)
  flops = cfg.device_flops or (chip and chip.flops)
  bandwidth = cfg.device_bandwidth or (chip and chip.bandwidth)
  return Rates(flops and number * flops, bandwidth and number * bandwidth)


def of_step(
  metrics: Mapping[str, float],
  sampled: Sampled | None,
  logprobs: float,
  update: float,
  updates_per_rollout: int,
  known: Rates,
) -> dict[str, float]:
  """The metrics `perf/*` of a step.

  Args:
    metrics: of the step, with its times.
    sampled: work of its rollout; None if not all of it was sampled just now.
    logprobs: FLOPs of its rollout's log-probs.
    update: FLOPs of the update.
    updates_per_rollout: that share the rollout.
    known: rates of the devices.
  """
  found = {
    'perf/update_flops_per_s': _per_second(update, metrics['time/update_s'])
  }
  if sampled is not None:
    rollout_s = metrics['time/rollout_s']
    shared = (sampled.flops + logprobs) / updates_per_rollout
    found |= {
      'perf/flops_per_s': _per_second(shared + update, metrics['time/step_s']),
      'perf/rollout_flops_per_s': _per_second(sampled.flops, rollout_s),
      'perf/decode_bytes_per_s': _per_second(sampled.bytes, rollout_s),
    }
  for share, name, rate in (
    ('mfu', 'flops_per_s', known.flops),
    ('update_mfu', 'update_flops_per_s', known.flops),
    ('decode_bandwidth_share', 'decode_bytes_per_s', known.bandwidth),
  ):
    if rate and f'perf/{name}' in found:
      found[f'perf/{share}'] = found[f'perf/{name}'] / rate
  return found


def _per_second(work: float, seconds: float) -> float:
  return work / seconds if seconds else math.nan


def _rows(prompts, prompt_index, lengths):
  return useful.Rows(
    np.array([len(prompt) for prompt in prompts]),
    np.asarray(prompt_index),
    np.asarray(lengths),
    padding.shared_prefix_len([list(prompt) for prompt in prompts]),
  )


def _chosen_rows(batch, chosen):
  return _rows(
    batch.prompts,
    batch.prompt_index[chosen],
    [len(batch.completions[i]) for i in chosen],
  )
