"""Times the parts of a GRPO step."""

import contextlib
import dataclasses
import resource
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from rlzero import weights
from rlzero.costs import hardware, useful
from rlzero.models import padding
from rlzero.models.config import ModelConfig
from rlzero.rl import collect, settings, update
from rlzero.rollout import encoding
from rlzero.scoring import reward_pool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(settings.Config):
  """A run's settings, and how much of it to measure."""

  workdir: str = ''  # nothing is written
  # Random weights of this shape instead of the checkpoint's; its tokenizer
  # stays.
  model: ModelConfig | None = None
  steps_per_rollout: int = 1  # a timed step has one rollout and one update
  num_warmup: int = 2  # steps before those that count
  num_steps: int = 5  # steps that count
  json: bool = False  # print the JSON line alone

  def __post_init__(self):
    super().__post_init__()
    if self.steps_per_rollout != 1:
      raise ValueError(
        f'bench.Config.steps_per_rollout is {self.steps_per_rollout}; a step '
        'that is timed has one rollout and one update, so set it to 1.'
      )


def measure(
  cfg: Settings, loaded: weights.Loaded, pool: reward_pool.RewardPool
) -> dict[str, float]:
  """Returns medians over the measured steps."""
  trainer = update.Trainer(cfg, loaded)
  collector = collect.Collector(cfg, trainer.learner, loaded.tokenizer, pool)
  rate, bandwidth = peak_rates(trainer.model.dtype)
  examples = cfg.task.examples('train')
  rows, compilations, syncs = [], [], []
  for number in range(cfg.num_warmup + cfg.num_steps):
    first = number * cfg.num_prompts
    drawn = [
      (first + i, examples[(first + i) % len(examples)])
      for i in range(cfg.num_prompts)
    ]
    with _counted() as counts:
      experience = collector.collect(trainer.policy, drawn)
      row = trainer.update(experience)
    records = experience.records
    if number < cfg.num_warmup:
      continue
    asked = encoding.encode_examples(loaded.tokenizer, cfg.template, drawn)
    prompts = [p.tokens for p in asked]
    prefix_len = padding.shared_prefix_len(prompts)
    work = needed(cfg, trainer.model, [*map(len, prompts)], records, prefix_len)
    update_rate = work['update_flops'] / row['time/update_s']
    rollout_s = max(
      work['rollout_flops'] / rate, work['rollout_bytes'] / bandwidth
    )
    compilations.append(counts['compilations'])
    syncs.append(counts['host_syncs'])
    rows.append(
      {
        **{
          f'{part}_s': row[f'time/{part}_s']
          for part in ('step', 'rollout', 'score', 'reference', 'update')
        },
        'tokens': sum(r['len'] for r in records),
        'completion_len': row['completion/len_mean'],
        'reward': row['reward/mean'],
        'useful_over_computed': row['update/useful_over_computed'],
        'slot_use': row['rollout/slot_use'],
        'skipped_groups': row['groups/zero_variance']
        * cfg.leaves_out_constant_groups,
        'update_roofline': update_rate / rate,
        'rollout_roofline': rollout_s / row['time/rollout_s'],
      }
    )
    if not cfg.json:
      print(
        f'step {number + 1 - cfg.num_warmup}/{cfg.num_steps}  '
        f'{rows[-1]["step_s"]:.2f} s',
        flush=True,
      )
  return {
    **{name: statistics.median(row[name] for row in rows) for name in rows[0]},
    'compilations': sum(compilations),
    'host_syncs': statistics.median(syncs),
    'peak_memory_bytes': _peak_memory(),
    'matmul_rate': rate,
    'memory_bandwidth': bandwidth,
    'measured_steps': len(rows),
  }


def needed(
  cfg: Settings,
  model: ModelConfig,
  prompt_lens: Sequence[int],
  records: Sequence[Mapping[str, Any]],
  prefix_len: int = 0,
) -> dict[str, float]:
  """FLOPs and bytes that a step cannot do without.

  Args:
    cfg: of the bench.
    model: that is trained.
    prompt_lens: tokens of each prompt.
    records: of its completions.
    prefix_len: tokens that all prompts begin with.
  """
  prompts = np.array(prompt_lens)
  lengths = np.array([r['len'] for r in records]).reshape(len(prompts), -1)
  rewards = np.array([r['reward'] for r in records]).reshape(lengths.shape)

  def rows(chosen):
    index = np.repeat(np.flatnonzero(chosen), lengths.shape[1])
    return useful.Rows(prompts, index, lengths[chosen].reshape(-1), prefix_len)

  everything = rows(np.ones(len(prompts), bool))
  trained = everything
  if cfg.leaves_out_constant_groups:
    trained = rows(np.ptp(rewards, axis=1) > 0)
  num_slots = min(cfg.sampling.num_slots, lengths.size)
  # The weights are read once for every token of the fullest schedule.
  decode_steps = float(max(lengths.max(), lengths.sum() / num_slots))
  return {
    'rollout_flops': useful.forward(model, everything),
    'rollout_bytes': useful.decode_bytes(
      model, everything, decode_steps, num_slots
    ),
    'update_flops': 3 * useful.forward(model, trained),
  }


def peak_rates(
  dtype: str, sizes: Sequence[int] = (2048, 3072, 4096)
) -> tuple[float, float]:
  """FLOP/s of the best square product and bytes/s of a copy.

  Measured here and now, with nothing else running; on a TPU as published.
  """
  chip = hardware.find(jax.devices()[0].device_kind)
  if chip and chip.is_tpu:
    return chip.flops, chip.bandwidth
  multiply = jax.jit(lambda a, b: a @ b)
  rate = 0.0
  for size in sizes:
    a = jnp.ones((size, size), dtype)
    rate = max(rate, 2 * size**3 / _best(multiply, a, a))
  data = jnp.ones((4 * max(sizes) ** 2,), jnp.float32)
  copy = jax.jit(lambda x: x + 1)
  return rate, 2 * data.nbytes / _best(copy, data)


def _best(function, *args, repeats: int = 5) -> float:
  """Seconds of the fastest call, compiled before."""
  jax.block_until_ready(function(*args))
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    times.append(time.perf_counter() - start)
  return min(times)


@contextlib.contextmanager
def _counted():
  """Counts compilations, and times that the host waited for values."""
  counts: dict[str, Any] = {'compilations': 0, 'host_syncs': 0}
  get = jax.device_get

  def counting(tree):
    counts['host_syncs'] += 1
    return get(tree)

  def compiled(event: str, duration_secs: float, **_: Any) -> None:
    if event.endswith('backend_compile_duration'):
      counts['compilations'] += 1

  jax.device_get = counting
  jax.monitoring.register_event_duration_secs_listener(compiled)
  try:
    yield counts
  finally:
    jax.device_get = get
    jax.monitoring.unregister_event_duration_listener(compiled)


def _peak_memory() -> int:
  """Bytes at most: of the device, or of this process where it has none."""
  stats = jax.devices()[0].memory_stats()
  if stats and 'peak_bytes_in_use' in stats:
    return stats['peak_bytes_in_use']
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
