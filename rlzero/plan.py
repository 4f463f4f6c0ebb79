"""Plans a GRPO run for devices that are not here: does it fit, what it takes.

  python -m rlzero.plan --gin_file=configs/runs/r1_zero_qwen2p5_32b.gin \\
    --topology=v5p:4x4x4

For TPUs (extra `plan`, on a machine with CPUs alone) the programs of the run
are compiled for the topology: memory, traffic and collectives are those of
the compiled programs. For GPUs all is arithmetic (`planner/estimate.py`). FLOPs
are by formula, with what is computed again and what pads.

Settings of the run are set as for `rlzero.grpo`: --num_slots=128, or
--run.micro_tokens=8192 for those without a short flag. Memory is planned for
the longest completions. Time is that of a whole rollout: the scheduler itself
plays it, with completions whose lengths `--lengths` gives; by default they are
spread like an exponential cut at the longest. A roofline is the time of
the largest of FLOPs, memory traffic and traffic between devices at published
rates; a run reaches a part of it, which `efficiency` assumes.
"""

import dataclasses
import sys

from rlzero.planner import planning, settings, table
from rlzero.runtime import files

# A run's gin file sets grpo.Config; this hands it over.
DEFAULTS = (
  '--gin.plan.Config.run=@grpo.Config()',
  '--gin.grpo.Config.workdir=""',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(settings.Settings):
  """Settings of a plan: what to plan, and what to assume."""


def run(cfg: Config) -> None:
  """Plans and prints."""
  report = planning.make_plan(cfg)
  print(files.to_json(report) if cfg.json else table.describe(cfg, report))


if __name__ == '__main__':
  from rlzero import plan
  from rlzero.runtime import config

  config.main(plan, [*DEFAULTS, *sys.argv[1:]])
