"""What the benchmark counts, and that it measures the run's own step."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from rlzero import bench
from rlzero.benchmarks import step_time
from rlzero.costs import flops
from rlzero.models.config import Latent, ModelConfig
from rlzero.rl import collect, settings, update
from rlzero.runtime import fields
from rlzero.tasks import procedural
from rlzero.text.template import Template
from rlzero.train import folders, packing

pytestmark = [
  pytest.mark.model,
  pytest.mark.usefixtures('quick_compilation'),
]


def _config(**changes):
  settings = {
    'template': Template('short'),
    'num_prompts': 2,
    'group_size': 4,
    'max_len': 32,
    'max_prompt_len': 16,
    'num_slots': 8,
    'decode_steps': 8,
    'num_workers': 1,
    'num_warmup': 1,
    'num_steps': 1,
    **changes,
  }
  return fields.make(bench.Config, **settings)


def test_the_last_line_is_json_with_every_figure(capsys, monkeypatch):
  monkeypatch.setattr(step_time, 'peak_rates', lambda dtype: (2e11, 1e10))
  bench.run(_config())
  *lines, last = capsys.readouterr().out.splitlines()
  metrics = json.loads(last)
  assert metrics['measured_steps'] == 1
  assert metrics['matmul_rate'] == 2e11
  parts = [metrics[f'{p}_s'] for p in ('rollout', 'reference', 'update')]
  assert 0 < max(parts) < sum(parts) <= metrics['step_s'] * 1.01
  assert 0 < metrics['score_s'] < metrics['step_s']
  assert 8 <= metrics['tokens'] <= 8 * 32
  for name in (
    'useful_over_computed',
    'slot_use',
    'update_roofline',
    'rollout_roofline',
  ):
    assert 0 < metrics[name] < 1
  assert metrics['skipped_groups'] == 0  # there is a KL term
  assert metrics['compilations'] == int(metrics['compilations'])
  assert metrics['host_syncs'] >= 3
  assert metrics['peak_memory_bytes'] > 1e6
  assert any(line.startswith('step_s') for line in lines)


def test_matmul_weights_are_those_of_the_parameters():
  loaded = folders.load_model(folders.embedded('tiny_base'))
  sizes = {
    jax.tree_util.keystr(path): leaf.size
    for path, leaf in jax.tree_util.tree_leaves_with_path(loaded.params)
    if 'norm' not in jax.tree_util.keystr(path)
  }
  embedding = sum(n for name, n in sizes.items() if 'embed' in name)
  body, head = flops.matmul_weights(loaded.config)
  assert head == embedding  # tied
  assert body == sum(sizes.values()) - embedding


def test_useful_flops_by_hand():
  model = ModelConfig(
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=2,
    width=2,
    mlp_width=1,
    vocab_size=5,
  )
  records = [
    {'len': n, 'reward': r} for n, r in ((1, 0), (3, 1), (2, 1), (2, 1))
  ]
  cfg = _config(kl_coef=0.0, group_size=2)
  work = step_time.needed(cfg, model, [5, 5], records)
  # Weights: 2 x (4 x 2 + 3 x 1) = 22 in the layer, 10 in the head.
  # First group: 5 + 4 tokens; pairs 15 + (5 + 1) + (15 + 6) = 42.
  first = 2 * (22 * 9 + 10 * 4) + 4 * 42 * 2
  # Second: 5 + 4 tokens; pairs 15 + 2 x (10 + 3) = 41; equal rewards.
  second = 2 * (22 * 9 + 10 * 4) + 4 * 41 * 2
  assert work['rollout_flops'] == first + second
  assert work['update_flops'] == 3 * first
  # 32 weights for each of 3 tokens; cache of 5 + n / 2 tokens in the mean, for
  # each of n: 5.5 + 3 x 6.5 + 2 x 2 x 6 = 49, of a key and a value of 2.
  assert work['rollout_bytes'] == 4 * (3 * 32 + 49 * 4)
  # A shared prefix of 2 of the 5, with 3 pairs: 2 + 2 x 3 + 8 tokens in all;
  # behind it a prompt has 3 x 2 + 6 pairs, its completions 27 and 26 as before.
  work = step_time.needed(cfg, model, [5, 5], records, prefix_len=2)
  whole = 2 * (22 * 16 + 10 * 8) + 4 * (3 + 2 * 12 + 27 + 26) * 2
  assert work['rollout_flops'] == whole
  assert work['update_flops'] == 3 * first  # it has one prompt
  # Two tokens fewer for each of 8, and two for each of 3.
  assert work['rollout_bytes'] == 4 * (3 * 32 + (49 - 16 + 6) * 4)
  # A latent cache has one vector, of 5 + 2 numbers, for all heads.
  latent = dataclasses.replace(
    model, head_dim=4, latent=Latent(kv_rank=5, rope_dim=2, value_dim=1)
  )
  body, head = flops.matmul_weights(latent)
  work = step_time.needed(cfg, latent, [5, 5], records)
  assert work['rollout_bytes'] == 4 * (3 * (body + head) + 49 * 7)


def test_problems_in_the_order_of_the_generator():
  import reasoning_gym

  options = {'min_terms': 2, 'max_terms': 2, 'min_digits': 1, 'max_digits': 1}
  task = procedural.InOrder(dataset='chain_sum', num_train=20, options=options)
  expected = reasoning_gym.create_dataset(
    'chain_sum', size=20, seed=0, **options
  )
  examples = task.examples('train')
  assert [e.question for e in examples] == [e['question'] for e in expected]
  assert task.verify(expected[3]['answer'], examples[3].target)
  with pytest.raises(ValueError, match="split train alone, not 'test'"):
    task.examples('test')


def test_rates_are_of_this_machine():
  rate, bandwidth = step_time.peak_rates('float32', sizes=(64, 256))
  assert 1e9 < rate < 1e15
  assert 1e8 < bandwidth < 1e14


def test_minibatches_are_not_timed():
  with pytest.raises(ValueError, match='steps_per_rollout is 4'):
    _config(steps_per_rollout=4, num_steps=4, save_every=4, reference_every=4)


def test_skipping_changes_the_time_alone():
  """Groups of equal rewards left out or computed: the same gradient."""
  loaded = folders.load_model(folders.embedded('tiny_base'))
  updates = []
  for skips in (True, False):
    cfg = _config(kl_coef=0.0, skip_constant_groups=skips)
    trainer = update.Trainer(cfg, loaded)
    tokens = [np.array([5, 6, 7], np.int32)] * 8
    rows = packing.RolloutBatch(
      prompts=[[3, 4], [4, 5, 6]],
      prompt_index=np.repeat([0, 1], 4),
      completions=tokens,
      old_logprobs=[np.full(3, -2.0, np.float32)] * 8,
      ref_logprobs=None,
      advantages=np.float32([1, -1, 1, -1, 0, 0, 0, 0]),
    )
    grads, totals = trainer.learner.gradient(trainer.state.params, rows)
    updates.append(grads)
    assert totals.tokens == (12 if skips else 24)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *updates
  )


@pytest.mark.slow
def test_nothing_compiles_after_the_first_steps():
  cfg = _config(
    kl_coef=0.1,
    num_prompts=4,
    group_size=8,
    num_slots=32,
    micro_tokens=256,
    compile_ahead=True,
  )
  loaded = settings.load_start(cfg)
  examples = cfg.task.examples('train')
  with settings.make_reward_pool(cfg) as pool:
    trainer = update.Trainer(cfg, loaded)
    collector = collect.Collector(cfg, trainer.learner, loaded.tokenizer, pool)
    counts = []
    for number in range(5):
      first = 4 * number
      drawn = [(first + i, examples[first + i]) for i in range(4)]
      with step_time._counted() as count:
        trainer.update(collector.collect(trainer.policy, drawn))
      counts.append(count['compilations'])
  assert counts[0] > 5 and counts[2:] == [0, 0, 0]
