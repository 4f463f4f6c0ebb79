"""Distillation: a small model learns from a large one.

  python -m rlzero.distill --gin_file=configs/runs/distill_qwen_1p5b.gin \
    --workdir=DIR --checkpoint=STUDENT --data=traces.jsonl

`loss = 'traces'` is the paper's way: what the teacher wrote is imitated, as by
`rlzero.sft`. 'forward_kl' and 'reverse_kl' compare the distributions of teacher
and student at each token of a completion; that takes two models with the same
tokenizer. The completions are those of the data, or, `on_policy`, what the
student itself says to the data's prompts.

Differences from the paper: it has no distillation by logits.
"""

import dataclasses
import functools

from rlzero.models import parameters
from rlzero.runtime import config, hosts, saved_config, sharding
from rlzero.train import (
  adapters,
  demonstrations,
  distillation,
  folders,
  supervised,
)

SEVERAL_HOSTS = True  # may run it together


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(distillation.Settings):
  """Settings of a distillation."""


def run(cfg: Config) -> None:
  """Distils, or resumes from the last checkpoint.

  Raises:
    ValueError: input that cannot be used, or a loss that is not finite.
  """
  saved_config.check_resume_compatible(cfg, cfg.workdir)
  with sharding.use(cfg.mesh):
    loaded = folders.load_to_train(cfg.checkpoint, cfg.optimizer, cfg.adapter)
    model, tokenizer = cfg.model(loaded.config), loaded.tokenizer
    the_loss, frozen = functools.partial(demonstrations.loss, model), ()
    if cfg.teacher:
      teacher, frozen = distillation.load_teacher(cfg, tokenizer)
      direction = 'forward' if cfg.loss == 'forward_kl' else 'reverse'
      the_loss = functools.partial(distillation.loss, model, teacher, direction)
    if cfg.on_policy:
      prompts, order = distillation.load_prompts(cfg, tokenizer)
      batch = functools.partial(
        distillation.on_policy, cfg, model, tokenizer, prompts, order
      )
    else:
      examples, order = demonstrations.load(cfg, tokenizer)

      def batch(step, params):
        del params
        return [examples[i] for i in order.batch(step)]

    hosts.on_first(lambda: saved_config.save(cfg, cfg.workdir))
    folders.check_base(cfg.workdir, cfg.checkpoint, loaded.params)
    params = sharding.device_put_params(parameters.AXES, loaded.params)
    params = adapters.start(cfg.adapter, model, params, cfg.seed)
    folders.write_description(cfg.workdir, model, tokenizer, params)
    params = supervised.fit(
      cfg,
      'distill',
      params,
      cfg.num_steps or order.num_steps(cfg.num_epochs),
      lambda step, params: supervised.pack(
        cfg,
        [demonstrations.pack_item(example) for example in batch(step, params)],
      ),
      the_loss,
      frozen,
    )
    folders.write_model(cfg.workdir, model, params, tokenizer)


if __name__ == '__main__':
  from rlzero import distill

  config.main(distill)
