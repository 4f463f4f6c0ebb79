"""Limits of completions that grow while a run goes on."""

import pytest
from helpers import grpo_config

from rlzero import grpo
from rlzero.monitoring import history
from rlzero.runtime import config, metrics

pytestmark = pytest.mark.model

CHANGES = {
  'max_len': 4,
  'max_len_from': {2: 40},
  'steps_per_rollout': 2,
  'save_every': 1,
  'final_problems': 1,
  'final_samples': 1,
}


def _rows(workdir):
  return history.without_times(metrics.read_metrics(str(workdir)))


@pytest.mark.slow
def test_a_run_follows_its_limits_and_resumes_behind_one(tmp_path):
  grpo.run(grpo_config(tmp_path / 'whole', num_steps=4, **CHANGES))
  whole = _rows(tmp_path / 'whole')
  lengths = [row['completion/len_max'] for row in whole]
  assert lengths[0] == lengths[1] == 4
  assert 4 < lengths[2] == lengths[3] <= 40
  # Step 3 is in the middle of the first rollout with the new limit.
  parts = tmp_path / 'parts'
  grpo.run(grpo_config(parts, num_steps=2, **CHANGES))
  grpo.run(
    grpo_config(
      parts, num_steps=4, profile_steps='3:9', device_flops=1e9, **CHANGES
    )
  )
  assert _rows(parts) == whole
  assert list((parts / 'profile').rglob('*.xplane.pb'))
  measured = metrics.read_metrics(str(parts))
  assert all(row['perf/flops_per_s'] > 0 for row in measured)
  assert ['perf/mfu' in row for row in measured] == [False, False, True, True]
  assert not any('perf/decode_bandwidth_share' in row for row in measured)


def test_settings_of_a_step():
  cfg = grpo_config('', max_len=8, max_len_from={2: 16, 6: 32})
  limits = [cfg.at(step).sampling.max_len for step in (0, 1, 2, 5, 6, 99)]
  assert limits == [8, 8, 16, 16, 32, 32]
  assert cfg.longest_len == 32
  assert cfg.at(6).longest_len == 32


@pytest.mark.parametrize('limits', [{3: 9}, {0: 9}, {2: 0}])
def test_limits_that_cannot_be(limits):
  sentence = 'max_len_from has .* multiple of 2 steps'
  with pytest.raises(ValueError, match=sentence):
    grpo_config('', steps_per_rollout=2, max_len_from=limits)


def test_a_limit_that_a_later_step_could_not_have_is_refused_at_once():
  changes = {'max_len': 16, 'overlong_buffer': 12}
  with pytest.raises(ValueError, match='has 2: 8, and overlong_buffer is 12'):
    grpo_config('', max_len_from={2: 8}, **changes)
  cfg = grpo_config('', max_len_from={2: 12}, **changes)
  assert cfg.at(2).sampling.max_len == 12


def test_a_limit_above_the_models_is_refused_at_the_start(tmp_path):
  cfg = grpo_config(tmp_path, max_len_from={2: 250})
  sentence = 'completions of 250 tokens, which .* are 266, .* takes 256'
  with pytest.raises(ValueError, match=sentence):
    grpo.run(cfg)


def test_limits_are_a_flag():
  cfg = config.build(grpo, ['--workdir=x', '--max_len_from={8000: 65536}'])
  assert cfg.at(8000).sampling.max_len == 65_536
