"""Three GRPO steps on several hosts, written down: for test_hosts.py.

  bash launch/local_cluster.sh 2 rlzero.benchmarks.host_steps DIR

With a second folder it reads instead: the first host the checkpoints in DIR,
the others those in the second, a copy whose newest is damaged.
"""

import contextlib
import pathlib
import pickle
import sys

import jax
import numpy as np

from rlzero import grpo
from rlzero.rl import collect, settings, update
from rlzero.runtime import fields, hosts, lifecycle, sharding
from rlzero.text.template import Template
from rlzero.train import checkpoint

MESH = sharding.Mesh(data=2, fsdp=4)
CONFIG = {
  'template': Template('short'),
  'mesh': MESH,
  'num_prompts': 2,
  'group_size': 4,
  'steps_per_rollout': 1,
  'max_len': 16,
  'max_prompt_len': 16,
  'num_slots': 8,
  'decode_steps': 8,
  'kl_coef': 0.01,
  'reference_every': 2,
  'micro_tokens': 256,
  'num_workers': 1,
}


def main(folder: str) -> None:
  """Writes what each step drew and its gradients, and a checkpoint."""
  cfg = fields.make(grpo.Config, workdir=folder, **CONFIG)
  examples = cfg.task.examples('train')
  steps = []
  with (
    sharding.use(cfg.mesh),
    settings.make_reward_pool(cfg) as pool,
    contextlib.closing(checkpoint.Store(folder)) as store,
  ):
    loaded = settings.load_start(cfg)
    trainer = update.Trainer(cfg, loaded)
    collector = collect.Collector(cfg, trainer.learner, loaded.tokenizer, pool)
    for number in range(3):
      drawn = [(i, examples[i]) for i in range(2 * number, 2 * number + 2)]
      experience = collector.collect(trainer.policy, drawn)
      (rows,) = experience.minibatches
      grads, _ = trainer.learner.gradient(trainer.state.params, rows)
      steps.append((experience.records, rows, hosts.fetch(grads)))
      trainer.update(experience)
      opt_state = {'opt_state': trainer.state.opt_state}
      store.save(trainer.step, trainer.state.params, opt_state)
    params = hosts.fetch(trainer.state.params)
  if hosts.is_first():
    with open(pathlib.Path(folder) / 'steps.pickle', 'wb') as file:
      pickle.dump((steps, params), file)


def read(folder: str, copy: str) -> None:
  """Reads what is sound for every host, and then for one of them alone."""
  cfg = fields.make(grpo.Config, workdir=folder, **CONFIG)
  with open(pathlib.Path(folder) / 'steps.pickle', 'rb') as file:
    _, params = pickle.load(file)
  with sharding.use(cfg.mesh):
    trainer = update.Trainer(cfg, settings.load_start(cfg))
    opt_state = {'opt_state': trainer.state.opt_state}
    for second, expected in ((folder, 3), (copy, 2)):
      own = folder if hosts.is_first() else second
      with contextlib.closing(checkpoint.Store(own, read_only=True)) as store:
        saved = store.restore(trainer.state.params, opt_state)
      assert saved and saved.step == expected
      if expected == 3:
        whole = hosts.fetch(saved.params)
        jax.tree.map(np.testing.assert_array_equal, whole, params)


if __name__ == '__main__':
  args = lifecycle.join_hosts(sys.argv[1:])
  if len(args) == 1:
    main(*args)
  else:
    read(*args)
