"""Times the parts of a GRPO step and prints them as one line of JSON.

  python -m rlzero.bench --gin_file=configs/runs/bench_w1.gin [--json]

The step is the one that `rlzero.grpo` runs, not a copy of it. Its problems
are those of the train split in their order. Times are medians over the
measured steps, after compilation.

Useful FLOPs are those that no method of the same result could leave out: 2
for each matmul weight and token going forward and 4 going back, a prompt once
for its group and what all prompts begin with once for all, the head on
completion tokens only, attention over the tokens that are there, nothing for
recomputation or padding. A roofline is the time they would take at the rate
measured here, over the time they took.
"""

import dataclasses

import jax

from rlzero.benchmarks import step_time
from rlzero.models import transformer
from rlzero.rl import settings
from rlzero.runtime import files, sharding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(step_time.Settings):
  """Settings of a benchmark: a run, and how much of it to measure."""


def run(cfg: Config) -> None:
  """Measures and prints; the last line is JSON."""
  loaded = settings.load_start(cfg)
  with sharding.use(cfg.mesh), settings.make_reward_pool(cfg) as pool:
    if cfg.model:
      fresh = transformer.initialise(cfg.model, jax.random.key(cfg.seed))
      loaded = dataclasses.replace(loaded, config=cfg.model, params=fresh)
    metrics = step_time.measure(cfg, loaded, pool)
  if not cfg.json:
    for name, value in metrics.items():
      print(f'{name:22} {value:.4g}')
  print(files.to_json(metrics))


if __name__ == '__main__':
  from rlzero import bench
  from rlzero.runtime import config

  config.main(bench)
