"""Rewards by scenario, worked out by hand; the guard against gaming."""

import collections
import dataclasses

import numpy as np
import pytest

from rlzero import grpo
from rlzero.scoring import reward_model, rewards
from rlzero.tasks import base, countdown
from rlzero.tasks.datasets import stream
from rlzero.text.template import Template

_EASY = countdown.Countdown(name='easy', min_ways=3, max_ways=99)


def _record(**changes):
  return {
    'task': 'countdown',
    'question': '9 5 3 得 18',
    'accuracy': 1.0,
    'format': 1.0,
    'correct': True,
    'words': {'en': 1, 'zh': 3, 'other': 0},
    'parts': {'steps_mean': 0.5},
    'status': 'ok',
    'truncated': False,
    'len': 20,
    **changes,
  }


def _config(**changes):
  return grpo.Config(workdir='', template=Template('short'), **changes)


def test_rewards_are_of_the_scenario():
  cfg = _config(
    language_reward=2.0,
    part_rewards={'steps_mean': 4.0},
    others=(
      rewards.Scenario(task=_EASY, accuracy_reward=0.0, format_reward=0.5),
    ),
  )
  records = [
    _record(),  # 1 + 1 + 2 * 3/4 + 4 * 1/2
    _record(task='easy'),  # 1/2
    _record(task='easy', preference=0.25),  # 1/2 + 1/4
    _record(accuracy=0.0, words={}, status='timeout', parts={}),  # 1
  ]
  rewards.assign(cfg, records)
  assert [r['reward'] for r in records] == [5.5, 0.5, 0.75, 1.0]


def test_target_language_is_the_prompts_or_the_configs():
  assert rewards.consistency(_record()) == 0.75
  assert rewards.consistency(_record(question='9 5 3 make 18')) == 0.25
  assert rewards.consistency(_record(), 'en') == 0.25


def test_reward_models_are_loaded_once_and_weighed(monkeypatch):
  loaded = []

  class Model:
    def __init__(self, path):
      loaded.append(path)
      self.value = {'zero': 0.0, 'sure': 1e9}[path]

    def score(self, records):
      return np.full(len(records), self.value)

  monkeypatch.setattr(reward_model, 'load', Model)
  preferences = (
    rewards.Preference(checkpoint='zero', weight=3.0),
    rewards.Preference(checkpoint='sure'),
  )
  models = rewards.RewardModels(
    [rewards.Scenario(task=_EASY, preferences=preferences)]
  )
  records = [_record(), _record(task='easy')]
  models.score(records)
  models.score(records)
  assert loaded == ['zero', 'sure']
  assert 'preference' not in records[0]
  # 3 * sigmoid(0) + 1 * sigmoid(1e9), of weights that sum to 4.
  assert records[1]['preference'] == 2.5
  assert records[1]['preference_mean'] == 0.625


def test_a_thought_without_words_is_readable_and_earns_nothing():
  record = _record(words={'en': 0, 'zh': 0, 'other': 0})
  assert rewards.consistency(record, 'zh') == 0
  assert rewards.readable_consistency(record, 'zh') == 1
  assert rewards.readable_consistency(_record(), 'zh') == 0.75


def test_verdicts_on_programs_are_counted():
  records = [
    _record(outcome=outcome)
    for outcome in ('accepted', 'accepted', 'wrong', 'refused', '')
  ]
  found = rewards.describe(records)
  programs = {k: v for k, v in found.items() if k.startswith('program/')}
  assert programs == {
    'program/accepted': 0.5,
    'program/wrong': 0.25,
    'program/time': 0.0,
    'program/memory': 0.0,
    'program/crash': 0.0,
    'program/refused': 0.25,
  }
  assert not any('program' in k for k in rewards.describe([_record()]))


def test_truncated_completions_may_earn_nothing():
  record = _record(truncated=True, preference=1.0)
  rewards.assign(_config(truncated='zero'), [record])
  assert record['reward'] == 0.0
  rewards.assign(_config(), [record])
  assert record['reward'] == 3.0


def test_a_part_that_nobody_judges():
  with pytest.raises(ValueError, match="'style'.*steps_mean"):
    rewards.assign(_config(part_rewards={'style': 1.0}), [_record()])


def test_what_does_not_apply_gives_no_reward():
  cfg = _config(format_reward=0.0, part_rewards={'steps_mean': 4.0})
  none = {'applies': False, 'accuracy': 0.0, 'correct': False}
  records = [
    _record(**none, parts={'steps_mean': None}),
    _record(**none),  # but the other score does: 4 * 1/2
    _record(parts={'steps_mean': None}),  # 1, for the answer
    _record(**none, parts={}, status='timeout'),  # failed, which earns 0
    _record(**none, parts={'steps_mean': None}, preference=0.25),
  ]
  rewards.assign(cfg, records)
  assert [r['reward'] for r in records] == [None, 2.0, 1.0, 0.0, 0.25]
  # What is paid for its format or its length is judged, whatever else is not.
  rewards.assign(_config(part_rewards={'steps_mean': 4.0}), records[:1])
  assert records[0]['reward'] == 1.0
  cfg = dataclasses.replace(cfg, overlong_buffer=8, overlong_penalty=1.0)
  rewards.assign(cfg, records[:1])
  assert records[0]['reward'] == 0.0


def test_metrics_by_task():
  records = [
    _record(reward=1.0),
    _record(task='easy', reward=2.0, correct=False, preference_mean=0.9),
    _record(task='easy', reward=4.0, preference_mean=0.7),
  ]
  metrics = rewards.describe(records)
  assert metrics['countdown/reward'] == 1.0
  assert metrics['easy/reward'] == 3.0
  assert metrics['reward/model'] == pytest.approx(0.8)
  assert metrics['reward/rule'] == 0.5
  assert metrics['reward/gap'] == pytest.approx(0.3)
  assert 'reward/gap' not in rewards.describe([_record(reward=1.0)])


def test_the_gap_is_of_what_a_rule_judges_too():
  alone = {'applies': False, 'accuracy': 0.0, 'correct': False}
  records = [
    _record(reward=1.0, preference_mean=0.5),
    _record(**alone, task='easy', reward=1.0, preference_mean=0.9),
  ]
  metrics = rewards.describe(records)
  assert metrics['reward/model'] == pytest.approx(0.7)
  assert metrics['reward/rule'] == 1.0
  assert metrics['reward/gap'] == -0.5
  assert np.isnan(metrics['easy/correct'])
  alone = rewards.describe(records[1:])
  assert alone['reward/model'] == 0.9
  assert 'reward/gap' not in alone


def test_names_of_tasks_are_distinct():
  with pytest.raises(ValueError, match='a name of its own'):
    _config(others=(rewards.Scenario(task=countdown.Countdown()),))


def test_shares_of_a_mixed_stream():
  tasks = (countdown.Countdown(), _EASY)
  mixed = stream.mixed(tasks, (1.0, 0.5), seed=0)
  drawn = mixed.next(30)
  assert [number for number, _ in drawn] == list(range(30))
  counts = collections.Counter(example.task for _, example in drawn)
  assert counts == {'countdown': 20, 'easy': 10}
  # Evenly spread, so that each step has its share.
  assert [e.task for _, e in drawn[:3]].count('easy') == 1
  state, rest = mixed.get_state(), mixed.next(10)
  again = stream.mixed(tasks, (1.0, 0.5), seed=0)
  again.set_state(state)
  assert again.next(10) == rest


def test_a_stream_of_one_task_is_in_the_order_it_had():
  alone = stream.mixed([countdown.Countdown()], [1.0], seed=3).next(9)
  plain = stream.prompt_stream(countdown.Countdown().examples('train'), 3)
  assert [e.uid for _, e in alone] == [e.uid for _, e in plain.next(9)]
  assert isinstance(alone[0][1], base.Example)
