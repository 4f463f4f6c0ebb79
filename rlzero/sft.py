"""Supervised fine-tuning: examples of prompt and completion, imitated.

  python -m rlzero.sft --gin_file=configs/runs/sft_cold_start.gin \
    --workdir=DIR --checkpoint=MODEL --data=examples.jsonl

Used for R1's cold start, for its third stage and for distillation. A record
has `prompt` and `completion`, or `messages` that end with the assistant's.
What is learned is the completion, end of sequence included. Examples are
packed: several share a row and see nothing of each other.

Differences from the paper:
- The paper does not say how sequences are batched; here an update has
  `batch_size` examples and its loss is the mean over their tokens.
- Of a conversation only the last answer is learned.
"""

import dataclasses
import functools

from rlzero.models import parameters
from rlzero.runtime import config, hosts, saved_config, sharding
from rlzero.train import adapters, demonstrations, folders, supervised

SEVERAL_HOSTS = True  # may run it together


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(supervised.Config):
  """Settings of a run; the defaults are the paper's for the cold start."""


def run(cfg: Config) -> None:
  """Fine-tunes, or resumes from the last checkpoint.

  Raises:
    ValueError: input that cannot be used, or a loss that is not finite.
  """
  saved_config.check_resume_compatible(cfg, cfg.workdir)
  with sharding.use(cfg.mesh):
    loaded = folders.load_to_train(cfg.checkpoint, cfg.optimizer, cfg.adapter)
    model = cfg.model(loaded.config)
    examples, order = demonstrations.load(cfg, loaded.tokenizer)
    num_steps = cfg.num_steps or order.num_steps(cfg.num_epochs)
    hosts.on_first(lambda: saved_config.save(cfg, cfg.workdir))
    folders.check_base(cfg.workdir, cfg.checkpoint, loaded.params)
    params = sharding.device_put_params(parameters.AXES, loaded.params)
    params = adapters.start(cfg.adapter, model, params, cfg.seed)
    folders.write_description(cfg.workdir, model, loaded.tokenizer, params)
    params = supervised.fit(
      cfg,
      'sft',
      params,
      num_steps,
      lambda step, _: supervised.pack(
        cfg, [demonstrations.pack_item(examples[i]) for i in order.batch(step)]
      ),
      functools.partial(demonstrations.loss, model),
    )
    folders.write_model(cfg.workdir, model, params, loaded.tokenizer)


if __name__ == '__main__':
  from rlzero import sft

  config.main(sft)
