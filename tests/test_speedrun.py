"""What counts as a record of the speedrun."""

import pytest

from rlzero import grpo
from rlzero.benchmarks import speedrun
from rlzero.runtime import config

_EVALUATED = {
  'split': 'test',
  'num_problems': 233,
  'num_samples': 8,
  'temperature': 1.0,
  'top_p': 1.0,
}


def test_a_record_needs_the_goal_in_every_seed():
  runs = [
    {'pass@1': accuracy, 'seconds': seconds}
    for accuracy, seconds in ((0.81, 90.0), (0.80, 100.0), (0.83, 80.0))
  ]
  found = speedrun.judge(runs)
  assert found['reached'] and found['seconds'] == 90
  runs[1]['pass@1'] = 0.799
  assert not speedrun.judge(runs)['reached']


def test_a_record_is_of_the_whole_evaluation():
  speedrun.check_evaluation(_EVALUATED)
  for name, value in {'num_problems': 64, 'temperature': 0.6}.items():
    with pytest.raises(SystemExit, match=f'{name} {value}; a record needs'):
      speedrun.check_evaluation(_EVALUATED | {name: value})


def test_the_config_is_evaluated_as_a_record_needs(tmp_path):
  flags = ['--gin_file=configs/runs/speedrun.gin', '--workdir=']
  cfg = config.build(grpo, flags)
  problems = cfg.task.examples(cfg.final_split)[: cfg.final_problems or None]
  speedrun.check_evaluation(
    {
      'split': cfg.final_split,
      'num_problems': len(problems),
      'num_samples': cfg.final_samples,
      'temperature': cfg.eval_temperature,
      'top_p': cfg.eval_top_p,
    }
  )
  assert (
    cfg.checkpoint == grpo.Config(workdir='').checkpoint
  )  # the shipped base
  with pytest.raises(SystemExit, match='is there already'):
    speedrun.train(tmp_path, 'configs/runs/speedrun.gin', 0)
