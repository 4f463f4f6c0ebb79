"""GRPO: reinforcement learning from verifiable rewards (R1-Zero).

  python -m rlzero.grpo --gin_file=configs/runs/r1_zero_tiny.gin --workdir=DIR

`--describe` prints the objective that the settings select, and nothing runs.

One rollout: draw prompts, complete each G times, score, subtract the group's
mean; then one policy update for each minibatch of whole groups. A step is a
policy update, as in the paper. A run resumes from its last checkpoint.

Differences from the paper:
- Minibatches hold whole groups, so that a prompt is computed once for its
  group; the paper does not say whether rows or prompts are split.
- pi_old is what the sampler says. Sampler and learner are one forward function
  and agree to rounding, which is logged; a separate pass, which
  `old_logprobs = 'recomputed'` makes, costs a third of the update.
- The accuracy reward needs the format: exactly one well-formed answer.

The settings are in `rl/settings.py`; `rl/collect.py` and `rl/update.py` are the
step, `rl/loop.py` the run around it.
"""

from rlzero.reporting import web_page
from rlzero.rl import loop, settings
from rlzero.rl.objectives import describe as objectives
from rlzero.rl.settings import Config
from rlzero.runtime import config, hosts, saved_config, sharding
from rlzero.tasks.datasets import stream
from rlzero.train import folders

SEVERAL_HOSTS = True  # may run it together


def describe(cfg: Config) -> str:
  """The objective that the settings select, as a formula and a table."""
  return objectives.describe(cfg.objective)


def run(cfg: Config) -> None:
  """Trains, evaluates before, during and after, and writes the report.

  Raises:
    ValueError: input that cannot be used, or a loss that is not finite.
  """
  prompt_stream = stream.mixed(
    [scenario.task for scenario in cfg.scenarios],
    [scenario.share for scenario in cfg.scenarios],
    cfg.seed,
    cfg.curriculum,
  )
  saved_config.check_resume_compatible(cfg, cfg.workdir)
  with sharding.use(cfg.mesh), settings.make_reward_pool(cfg) as pool:
    loaded = settings.load_start(cfg)
    if cfg.model and cfg.with_runtime_options(
      cfg.model
    ) != cfg.with_runtime_options(loaded.config):
      raise ValueError(
        f'grpo.Config.model is {cfg.model}, but the checkpoint '
        f'{cfg.checkpoint!r} is {loaded.config}; give the shape that it has, '
        'or none.'
      )
    pool.wait()  # before anything is written
    hosts.on_first(lambda: saved_config.save(cfg, cfg.workdir))
    folders.check_base(cfg.workdir, cfg.checkpoint, loaded.params)
    hosts.print_once(settings.table(cfg, prompt_stream.num_examples))
    loop.TrainingLoop(cfg, loaded, pool, prompt_stream).run()
  hosts.on_first(lambda: web_page.write(cfg.workdir))


if __name__ == '__main__':
  from rlzero import grpo

  config.main(grpo)
