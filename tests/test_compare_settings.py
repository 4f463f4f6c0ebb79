"""Settings compared by runs of equal length: flags, figures and the table."""

import json
import math

import jax
import numpy as np
import pytest

from rlzero import grpo
from rlzero.benchmarks import compare_settings, noisy_sampler
from rlzero.runtime import config, metrics

_RUN = 'configs/runs/r1_zero_tiny.gin'


@pytest.mark.parametrize('study', compare_settings.STUDIES)
def test_every_setting_of_a_study_is_another_run(study):
  settings = compare_settings.STUDIES[study](_RUN)
  built = []
  for flags in settings.values():
    noises = [flag for flag in flags if flag.startswith('--noise=')]
    rest = [flag for flag in flags if flag not in noises]
    cfg = config.build(grpo, [f'--gin_file={_RUN}', *rest, '--workdir='])
    built.append((noises, cfg))
  assert len(settings) > 2
  assert all(a != b for i, a in enumerate(built) for b in built[:i])


def test_objectives_are_the_files_and_grpo_is_what_they_are_compared_with():
  found = list(compare_settings.objectives(_RUN))
  assert found[0] == 'grpo' and {'dapo', 'gspo', 'rloo'} < set(found)


def test_adapters_take_ten_times_the_rate_of_the_run():
  flags = compare_settings.adapters(_RUN)['rank_8']
  cfg = config.build(grpo, [f'--gin_file={_RUN}', *flags, '--workdir='])
  assert cfg.adapter.rank == 8 and cfg.adapter.scale == 1
  plain = config.build(grpo, [f'--gin_file={_RUN}', '--workdir='])
  rates = cfg.optimizer.learning_rate, plain.optimizer.learning_rate
  assert rates[0] == pytest.approx(10 * rates[1])


def _leave_run(folder, accuracies, entropies):
  folder.mkdir()
  for step, (accuracy, entropy) in enumerate(
    zip(accuracies, entropies, strict=True)
  ):
    row = {
      'step': step,
      'rollout/tokens': 100,
      'time/step_s': 2.0 + step,
      'policy/entropy': entropy,
      'policy/kl': 0.5,
      'eval/pass@1': accuracy,
    }
    with open(folder / 'metrics.jsonl', 'a', encoding='utf-8') as file:
      file.write(json.dumps(row) + '\n')
  (folder / 'commit.txt').write_text('abc\n')
  summary = {'pass@1_after': accuracies[-1], 'strict_after': 0.5}
  summary['completion_len_after'] = 40.0
  (folder / 'summary.json').write_text(json.dumps(summary))


def test_figures_of_a_run(tmp_path):
  _leave_run(tmp_path / 'run', [0.6, 1.0, 0.9], [1.0, None, math.inf])
  assert len(metrics.read_metrics(str(tmp_path / 'run'))) == 3
  found = compare_settings.figures(tmp_path / 'run')
  assert found['pass@1'] == 0.9 and found['length'] == 40
  assert found['tokens'] == pytest.approx(150)  # half way from 100 to 200
  assert found['policy/entropy'] == 1.0  # of the step that has one
  assert found['policy/clip_fraction'] is None
  assert found['step_s'] == 3.0 and found['memory'] is None


def test_a_difference_is_compared_with_noise(tmp_path):
  runs = {}
  for name, ends in {
    'first': (0.50, 0.55, 0.60),
    'better': (0.70, 0.76, 0.79),
    'alike': (0.60, 0.50, 0.62),
  }.items():
    for seed, end in enumerate(ends):
      folder = tmp_path / f'{name}_{seed}'
      _leave_run(folder, [0.1, end], [1.0, 1.0])
      runs.setdefault(name, []).append(compare_settings.figures(folder))
  found = compare_settings.summarize(runs)
  verdicts = {
    name: compare_settings.beyond_noise(setting['difference'])
    for name, setting in found.items()
  }
  assert verdicts == {'first': 'no', 'better': 'yes', 'alike': 'no'}
  assert found['better']['difference']['mean'] == pytest.approx(0.2)
  text = compare_settings.table(found)
  assert '| better | 0.750 | +0.200 [' in text and '| yes |' in text
  one = compare_settings.summarize({name: r[:1] for name, r in runs.items()})
  assert compare_settings.beyond_noise(one['better']['difference']) == ''


def test_noise_is_relative_and_always_the_same():
  params = {'a': np.full((200, 300), 2.0, np.float32), 'b': np.zeros(7)}
  params = jax.tree.map(np.float32, params)
  noisy = noisy_sampler.add_noise(params, 0.01)
  again = noisy_sampler.add_noise(params, 0.01)
  assert all(map(np.array_equal, *map(jax.tree.leaves, (noisy, again))))
  assert np.std(noisy['a'] / params['a']) == pytest.approx(0.01, rel=0.02)
  assert not noisy['b'].any()
  none = noisy_sampler.add_noise(params, 0.0)
  assert np.array_equal(none['a'], params['a'])


@pytest.mark.model
@pytest.mark.slow
def test_noise_is_seen_by_the_learner_and_runs_are_not_repeated(tmp_path):
  flags = (
    f'--gin_file={_RUN}',
    '--num_steps=2',
    '--num_prompts=2',
    '--group_size=4',
    '--max_len=16',
    '--num_slots=8',
    '--num_workers=1',
    '--eval_every=0',
    '--final_problems=2',
    '--final_samples=2',
    '--noise=0.03',
  )
  found = compare_settings.train(tmp_path / 'run', flags)
  assert found['policy/sampler_learner_kl'] > 1e-5
  assert found['memory'] > 0.2 and found['tokens'] is None
  before = (tmp_path / 'run.log').read_bytes()
  assert compare_settings.train(tmp_path / 'run', flags) == found
  assert (tmp_path / 'run.log').read_bytes() == before
  with pytest.raises(SystemExit, match='ended with 2: .*bad.log'):
    compare_settings.train(tmp_path / 'bad', (*flags, '--clip_low=-1'))
