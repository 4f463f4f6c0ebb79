"""Settings inside settings: by class, by path and by short flag."""

import dataclasses
import sys
from typing import ClassVar

import numpy as np
import pytest

from rlzero.runtime import cli_help, config, fields, saved_config
from rlzero.runtime.config import UserError
from rlzero.runtime.fields import above, at_least
from rlzero.train import folders, optim


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rate:
  peak: float = 0.1  # of the schedule
  warmup: int = 0

  def __post_init__(self):
    fields.check(self, peak=above(0).below(1), warmup=at_least(0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw:
  top: float = 1.0
  slots: int = fields.mutable_on_resume(4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings."""

  SHORT_FLAGS: ClassVar[dict[str, str]] = {
    'peak': 'rate.peak',
    'slots': 'draw.slots',
  }

  workdir: str = fields.mutable_on_resume('')
  steps: int = fields.grows_on_resume(5)
  rate: Rate = Rate(peak=0.2, warmup=3)  # how fast
  draw: Draw = Draw()
  other: Rate | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Twice(Config):
  second: Rate = Rate()


@pytest.fixture
def stage():
  return sys.modules[__name__]


def run(cfg):
  raise AssertionError('nothing is to be run')


_HEAD = (
  'from __gin__ import dynamic_registration\nimport test_nested_settings\n'
)


def _file(tmp_path, text):
  path = tmp_path / 'run.gin'
  path.write_text(_HEAD + text)
  return f'--gin_file={path}'


def _refused(stage, *argv):
  with pytest.raises(UserError) as info:
    config.build(stage, argv)
  return str(info.value)


def test_a_binding_of_a_class_changes_the_default_of_that_class(
  stage, tmp_path
):
  file = _file(tmp_path, 'test_nested_settings.Rate.peak = 0.5\n')
  assert config.build(stage, [file]).rate == Rate(peak=0.5, warmup=3)


def test_a_reference_starts_from_the_class_and_takes_the_bindings(
  stage, tmp_path
):
  file = _file(
    tmp_path,
    'test_nested_settings.Config.other = @test_nested_settings.Rate()\n'
    'test_nested_settings.Rate.peak = 0.5\n',
  )
  cfg = config.build(stage, [file])
  assert cfg.other == Rate(peak=0.5) and cfg.rate == Rate(peak=0.2, warmup=3)


@pytest.mark.parametrize(
  'flags, expected',
  [
    (['--peak=0.5'], Config(rate=Rate(peak=0.5, warmup=3))),
    (['--rate.warmup=7'], Config(rate=Rate(peak=0.2, warmup=7))),
    (['--slots=9', '--steps=2'], Config(steps=2, draw=Draw(slots=9))),
    (
      ['--gin.test_nested_settings.Rate.warmup=1', '--peak=0.5'],
      Config(rate=Rate(peak=0.5, warmup=1)),
    ),
  ],
)
def test_flags_reach_into_default_values(stage, flags, expected):
  assert config.build(stage, flags) == expected


def test_flags_reach_into_references_and_win_over_files(stage, tmp_path):
  file = _file(
    tmp_path,
    'test_nested_settings.Config.rate = @test_nested_settings.Rate()\n'
    'test_nested_settings.Rate.peak = 0.5\n',
  )
  cfg = config.build(stage, ['--peak=0.25', file, '--rate.warmup=2'])
  assert cfg.rate == Rate(peak=0.25, warmup=2)


@pytest.mark.parametrize(
  'flags, parts',
  [
    (
      ['--peak=-1'],
      ['Rate.peak is -1.0', 'above 0 and below 1', '(peak: --peak=-1)'],
    ),
    (['--peak=nan'], ['Rate.peak is', 'float', '--peak=nan']),
    (['--peak=1e999'], ['Rate.peak is inf', '--peak=1e999']),
    (['--rate.warmup=True'], ['Rate.warmup is True', 'int']),
    (['--warmup=3'], ["'--warmup=3'", '--rate.warmup', '--other.warmup']),
    (['--rate.pek=3'], ["'--rate.pek=3'"]),
    (['--other.peak=0.5'], ['--other.peak=0.5', 'other holds nothing']),
    (
      ['--peak=0.5', '--gin.test_nested_settings.Rate.peak=0.6'],
      ['both set rate.peak'],
    ),
    (
      ['--gin.test_nested_settings.Config.peak=0.5'],
      ['it is test_nested_settings.Rate.peak', 'rate.peak'],
    ),
  ],
)
def test_refused(stage, flags, parts):
  message = _refused(stage, *flags)
  for part in parts:
    assert part in message


def test_a_binding_that_two_defaults_could_take_is_refused(stage, monkeypatch):
  monkeypatch.setattr(stage, 'Config', Twice)
  message = _refused(stage, '--gin.test_nested_settings.Rate.peak=0.5')
  assert 'Twice.rate or' in message and 'Twice.second' in message
  cfg = config.build(stage, ['--second.peak=0.5'])
  assert cfg == Twice(second=Rate(peak=0.5))


def test_what_is_saved_builds_the_same_again(stage, tmp_path):
  cfg = config.build(stage, ['--peak=0.5', '--slots=9'])
  path = tmp_path / 'again.gin'
  path.write_text(saved_config.to_gin(cfg))
  assert config.build(stage, [f'--gin_file={path}']) == cfg


def test_every_setting_is_listed_with_flag_and_comment(stage):
  found = {s.field: s for s in cli_help.list_settings(stage)}
  assert found['rate.peak'].flag == '--peak'
  assert found['rate.peak'].default == '0.2'
  assert found['rate.peak'].comment == 'of the schedule'
  assert found['rate'].comment == 'how fast'
  assert found['other.warmup'].flag == '--other.warmup'
  assert found['draw.slots'].type == 'int'
  page = cli_help.text(stage)
  assert '  --peak is --rate.peak' in page.splitlines()


def test_modules_that_flags_name_are_found_in_the_package(stage):
  message = _refused(stage, '--gin.optim.Optimizer.b2=0.9')
  assert 'optim.Optimizer.b2' in message and 'no effect' in message
  message = _refused(stage, '--gin.config.ModelConfig.width=1')
  assert 'rlzero.models.config or rlzero.runtime.config' in message


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numbers:
  size: int = 1
  share: float | None = None
  sizes: tuple[int, ...] = (1,)
  weights: dict[str, float] = dataclasses.field(default_factory=dict)
  low: float = 1.0
  high: float = 2.0
  heads: int = 4
  devices: int = 1

  def __post_init__(self):
    fields.check(
      self,
      size=at_least(1).because('one is few'),
      sizes=above(0),
      low=above(0).below(self.high).because('high is larger'),
      heads=at_least(1).multiple_of(2),
      devices=at_least(1).or_else(-1, 'all'),
    )


@pytest.mark.parametrize(
  ('change', 'sentence'),
  [
    ({'size': 0}, 'Numbers.size is 0; it must be at least 1 (one is few).'),
    ({'size': True}, 'Numbers.size is True; it must be a number.'),
    ({'size': '3'}, "Numbers.size is '3'; it must be a number."),
    ({'size': float('nan')}, 'it must be finite, at least 1'),
    ({'share': float('inf')}, 'Numbers.share is inf; it must be a finite'),
    ({'sizes': (1, 0)}, 'Numbers.sizes is (1, 0); it must be above 0.'),
    ({'weights': {'a': float('nan')}}, 'it must be a finite number.'),
    ({'low': 3.0}, 'low is 3.0; it must be above 0 and below 2.0 (high is'),
    ({'heads': 3}, 'is 3; it must be at least 1 and a multiple of 2.'),
    ({'devices': 0}, 'is 0; it must be at least 1, or -1 for all.'),
  ],
)
def test_numbers_out_of_range_are_refused(change, sentence):
  with pytest.raises(ValueError) as info:
    Numbers(**change)
  assert sentence in str(info.value)


def test_numbers_in_range_are_taken():
  numbers = Numbers(sizes=(1, 2), weights={'a': -1.0}, heads=6, devices=-1)
  assert numbers.heads == 6


def test_settings_are_made_and_changed_by_short_names():
  made = fields.make(Config, steps=2, peak=0.5)
  assert made == Config(steps=2, rate=Rate(peak=0.5, warmup=3))
  assert fields.replace(made, slots=8) == dataclasses.replace(
    made, draw=Draw(slots=8)
  )
  with pytest.raises(TypeError, match="no field 'pek'"):
    fields.make(Config, pek=0.5)


def test_a_home_folder_in_a_flag_is_the_home_folder(stage, monkeypatch):
  monkeypatch.setenv('HOME', '/home/someone')
  cfg = config.build(stage, ['--workdir=~/run'])
  assert cfg.workdir == '/home/someone/run'
  # What a file says stays: it may be read under another home.
  assert saved_config.to_gin(Config(workdir='~/a')).count("'~/a'") == 1


def test_a_run_may_grow_and_not_shrink(tmp_path, capsys):
  saved_config.save(Config(steps=5), str(tmp_path))
  saved_config.check_resume_compatible(Config(steps=8), str(tmp_path))
  saved_config.check_resume_compatible(
    Config(steps=5, draw=Draw(slots=9)), str(tmp_path)
  )
  with pytest.raises(UserError, match='Config.steps is 4 now and 5 there'):
    saved_config.check_resume_compatible(Config(steps=4), str(tmp_path))
  with pytest.raises(UserError, match='Rate.warmup is 0 now and 3 there'):
    saved_config.check_resume_compatible(
      Config(rate=Rate(peak=0.2)), str(tmp_path)
    )
  assert saved_config.resume_key(Config(steps=5)) == (
    saved_config.resume_key(Config(steps=8, draw=Draw(slots=1)))
  )
  assert capsys.readouterr().out == ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheduled:
  steps: int = fields.grows_on_resume(5)
  optimizer: optim.Optimizer = optim.Optimizer(schedule='cosine')


def test_a_schedule_that_moves_with_the_end_is_told(tmp_path, capsys):
  saved_config.save(Scheduled(), str(tmp_path))
  saved_config.check_resume_compatible(Scheduled(steps=9), str(tmp_path))
  said = capsys.readouterr().out
  assert 'steps grows from 5 to 9' in said and 'cosine schedule' in said


def test_a_base_may_move_and_not_change(tmp_path):
  params = {'a': np.arange(3.0), 'b': np.ones((2, 2))}
  folders.check_base(str(tmp_path), 'here', params)
  folders.check_base(str(tmp_path), 'there', params)
  other = {**params, 'a': np.arange(1.0, 4.0)}
  with pytest.raises(ValueError, match="began with a base .* 'there' has"):
    folders.check_base(str(tmp_path), 'there', other)
