"""Reward models: a score for a completion, learned from judgements.

  python -m rlzero.reward_model --checkpoint=MODEL --data=pairs.jsonl \
    --workdir=DIR

The score is a linear function of the last hidden state, at the end of the
sequence. `pairwise` learns which of two completions of a prompt is better
(helpfulness; records have `prompt`, `chosen`, `rejected`), `pointwise`
whether a completion is good (harmlessness; `prompt`, `completion`, `label`).
`WORKDIR/model` is what `load` reads, and GRPO beside its rules; accuracy on
the prompts that are held out is in `WORKDIR/held_out.json`.

Differences from the paper:
- Helpfulness reads the summary alone and harmlessness everything, as there;
  here that is a setting, `reads`.
- Judgements come from files; the paper's are made by DeepSeek-V3.
"""

import dataclasses
import functools
import itertools

from rlzero.models import parameters
from rlzero.runtime import config, hosts, saved_config, sharding
from rlzero.scoring import reward_modeling
from rlzero.train import adapters, folders, supervised

SEVERAL_HOSTS = True  # may run it together


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(reward_modeling.Settings):
  """Settings of the training of a reward model."""


def run(cfg: Config) -> None:
  """Trains, or resumes from the last checkpoint, and judges the held out.

  Raises:
    ValueError: input that cannot be used, or a loss that is not finite.
  """
  saved_config.check_resume_compatible(cfg, cfg.workdir)
  with sharding.use(cfg.mesh):
    loaded = folders.load_to_train(cfg.checkpoint, cfg.optimizer, cfg.adapter)
    model = cfg.model(loaded.config)
    found = supervised.load(
      cfg,
      functools.partial(reward_modeling.encode, cfg, loaded.tokenizer),
      lambda _: None,
      reward_modeling.rebuild,
    )
    taught = [
      [j for j in some if not reward_modeling.is_held_out(cfg, j)]
      for some in found
    ]
    apart = [
      j for some in found for j in some if reward_modeling.is_held_out(cfg, j)
    ]
    if not all(taught):
      raise ValueError(
        'A source has no judgements but those that are held out; lower '
        f'reward_model.Config.held_out = {cfg.held_out}, or give more.'
      )
    order = supervised.order(cfg, [len(some) for some in taught])
    judgements = list(itertools.chain(*taught))
    hosts.on_first(lambda: saved_config.save(cfg, cfg.workdir))
    folders.check_base(cfg.workdir, cfg.checkpoint, loaded.params)
    params = sharding.device_put_params(parameters.AXES, loaded.params)
    params = {
      **adapters.start(cfg.adapter, model, params, cfg.seed),
      'score': sharding.device_put_params(
        parameters.AXES, reward_modeling.fresh(model)
      ),
    }
    the_loss = functools.partial(reward_modeling.loss, model)
    params = supervised.fit(
      cfg,
      'reward_model',
      params,
      cfg.num_steps or order.num_steps(cfg.num_epochs),
      lambda step, _: reward_modeling.pack(
        cfg, [judgements[i] for i in order.batch(step)]
      ),
      the_loss,
    )
    measured = reward_modeling.judge(
      the_loss, params, reward_modeling.pack(cfg, apart)
    )
    reward_modeling.write(cfg, model, params, loaded.tokenizer, measured)
  hosts.print_once(
    f'held out: {measured["num"]} judgements, accuracy {measured["accuracy"]}, '
    f'loss {measured["loss"]}'
  )


if __name__ == '__main__':
  from rlzero import reward_model

  config.main(reward_model)
