"""Which groups and completions an update learns from."""

import itertools

import numpy as np
import pytest

from rlzero import grpo
from rlzero.rl import selection
from rlzero.rollout import journal, scheduler
from rlzero.rollout.sampling import Finish
from rlzero.rollout.scheduler import Completion
from rlzero.scoring import rewards
from rlzero.tasks import countdown
from rlzero.text.template import Template
from rlzero.train.packing import RolloutBatch

_EASY = countdown.Countdown(name='easy', min_ways=3, max_ways=99)


def _config(**changes):
  defaults = {'num_prompts': 4, 'steps_per_rollout': 2, 'group_size': 4}
  return grpo.Config(
    workdir='',
    template=Template('short'),
    num_steps=8,
    eval_every=0,
    reference_every=8,
    **defaults | changes,
  )


def _records(groups, size=4, **changes):
  """Records of groups of which so many completions are right."""
  return [
    {'task': 'countdown', 'accuracy': float(i < right), 'truncated': False}
    | changes
    for right in groups
    for i in range(size)
  ]


def _round(groups, size=4, length=3):
  log = journal.Journal(None, {})
  log.add_scores(_records(groups, size))
  completion = Completion(
    np.zeros(length, np.int32), np.zeros(length, np.float32), Finish.EOS
  )
  return selection.Round(
    [],
    [],
    log,
    {},
    [completion] * (size * len(groups)),
    scheduler.Usage(length * size * len(groups), 1000, 10),
    None,
    None,
  )


@pytest.mark.parametrize('seed', range(5))
def test_the_widest_spread_is_that_of_the_best_subset(seed):
  rng = np.random.default_rng(seed)
  size = int(rng.integers(3, 9))
  for values in (
    rng.normal(size=size),
    rng.integers(0, 2, size).astype(float),
    rng.integers(0, 3, size) + 1e6,
    np.full(size, 0.3),
  ):
    for count in range(2, size + 1):
      found = selection.widest_spread(values, count)
      assert sorted({*found.tolist()}) == found.tolist()
      assert len(found) == count
      best = max(
        np.var(values[list(chosen)])
        for chosen in itertools.combinations(range(size), count)
      )
      assert np.var(values[found]) == pytest.approx(best, abs=1e-9)


def test_the_widest_spread_of_right_and_wrong_has_half_of_each():
  values = np.array([0, 0, 1, 0, 1, 0, 1, 0, 1, 1], np.float32)
  found = selection.widest_spread(values, 4)
  # The earliest of the wrong ones, the latest of the right ones.
  assert found.tolist() == [0, 1, 8, 9]
  # One is all there is of one kind, and it is taken.
  rare = np.array([0, 0, 0, 1, 0, 0], np.float32)
  assert selection.widest_spread(rare, 4).tolist() == [0, 1, 2, 3]
  # Rounding does not choose between equal ones.
  tenths = np.array([0.1] * 7, np.float32)
  assert selection.widest_spread(tenths, 4).tolist() == [0, 1, 2, 3]


def test_all_completions_are_kept_in_their_order_where_no_more_are_sampled():
  values = np.array([1, 0, 1, 0], np.float32)
  assert selection.widest_spread(values, 4).tolist() == [0, 1, 2, 3]


def test_outcomes_are_verdicts_and_no_other_reward():
  cfg = _config(
    format_reward=5.0, others=(rewards.Scenario(task=_EASY, accuracy_reward=0),)
  )
  records = _records([1, 0]) + _records([1], task='easy')
  for record in records[4:8]:
    record['reward'] = float(np.random.default_rng(0).normal())
  found = selection.outcomes(cfg, records)
  assert found[:2].tolist() == [[1, 0, 0, 0], [0, 0, 0, 0]]
  assert np.isnan(found[2]).all()
  # A group without a verified outcome is not held against it.
  assert selection.teaches(cfg, records).tolist() == [True, False, True]


def test_a_score_that_does_not_apply_is_no_outcome():
  records = _records([1, 0, 0])
  for i in (0, 4, 8, 9, 10, 11):
    records[i]['applies'] = False
  found = selection.outcomes(_config(), records)
  assert np.isnan(found).sum(axis=1).tolist() == [1, 1, 4]
  assert selection.teaches(_config(), records).tolist() == [False, False, True]


def test_a_cut_completion_that_earns_nothing_is_not_right():
  records = _records([4])
  records[0]['truncated'] = True
  assert not selection.teaches(_config(), records)[0]
  assert selection.teaches(_config(truncated='zero'), records)[0]


def test_rounds_end_when_enough_groups_teach_or_at_the_cap():
  cfg = _config(max_rounds=3)
  assert selection.prompts_wanted(cfg, []) == 8
  rounds = [_round([1, 2, 3, 1, 2, 0, 0, 4])]  # 5 of 8
  # 3 more, at 5 in 8, take 4.8: half of 8 is too few.
  assert selection.prompts_wanted(cfg, rounds) == 8
  rounds.append(_round([1, 1, 0, 4]))  # 7 of 12: one more takes 1.7
  assert selection.prompts_wanted(cfg, rounds) == 2
  assert selection.prompts_wanted(_config(max_rounds=2), rounds) == 0
  assert selection.prompts_wanted(cfg, [*rounds, _round([0, 0])]) == 0
  assert selection.prompts_wanted(cfg, [_round([1] * 8)]) == 0
  assert selection.prompts_wanted(_config(), [_round([0] * 8)]) == 0
  # Where nothing teaches, all are drawn again.
  assert selection.prompts_wanted(cfg, [_round([0, 4] * 4)]) == 8


def test_groups_that_teach_are_kept_and_the_first_others_fill_up():
  cfg = _config(max_rounds=2)
  taught = np.array([True, False, True, False, True, True, True, True, False])
  values = np.zeros((9, 4), np.float32)
  found = selection.choose(cfg, taught, values)
  assert (found[:, 0] // 4).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
  taught[8] = True
  found = selection.choose(cfg, taught, values)
  assert (found[:, 0] // 4).tolist() == [0, 1, 2, 4, 5, 6, 7, 8]
  assert (found == found[:, :1] + np.arange(4)).all()
  taught[:] = True  # and of too many, those that were drawn first
  found = selection.choose(cfg, taught, values)
  assert (found[:, 0] // 4).tolist() == list(range(8))


def test_completions_that_are_judged_are_kept_before_others():
  cfg = _config(num_prompts=1, group_size=2, samples_per_prompt=4)
  nan, taught = np.nan, np.array([True, True])
  rewards = np.array([[nan, 0.5, 0.1, 0.9], [nan, nan, 0.5, nan]])
  np.testing.assert_array_equal(
    selection.choose(cfg, taught, rewards), [[2, 3], [4, 6]]
  )


def test_the_waste_is_counted():
  cfg = _config(max_rounds=2, num_prompts=2, samples_per_prompt=6)
  rounds = [_round([0, 3, 6, 1], 6, length=2), _round([2, 0], 6, length=5)]
  taught = np.concatenate(
    [selection.teaches(cfg, r.log.scores) for r in rounds]
  )
  chosen = selection.choose(cfg, taught, np.zeros((6, 6), np.float32))
  assert selection.describe(cfg, rounds, taught, chosen) == {
    'rollout/tokens': 24 * 2 + 12 * 5,
    'rollout/slot_use': (48 + 60) / 2000,
    # 3 groups of 4 completions of 2 tokens, and one of 5, are learned from.
    'rollout/tokens_unused': 108 - 12 * 2 - 4 * 5,
    'groups/rounds': 2,
    'groups/sampled': 6,
    'groups/kept': 3,
    'groups/filled_up': 1,
    'groups/dropped': 2,
  }
  plain = selection.describe(
    _config(), rounds[:1], taught[:4], np.arange(24).reshape(4, 6)
  )
  assert set(plain) == {'rollout/tokens', 'rollout/slot_use'}


def test_a_subset_has_whole_groups():
  batch = RolloutBatch(
    prompts=[[1], [2], [3]],
    prompt_index=np.repeat(np.arange(3), 2),
    completions=[np.full(1, i) for i in range(6)],
    old_logprobs=[np.full(1, i / 10) for i in range(6)],
    ref_logprobs=None,
    advantages=np.arange(6, dtype=np.float32),
    masks=[None] * 6,
  )
  found = selection.subset(batch, np.array([2, 0]))
  assert found.prompts == [[3], [1]]
  assert found.prompt_index.tolist() == [0, 0, 1, 1]
  assert [int(c[0]) for c in found.completions] == [4, 5, 0, 1]
  assert found.advantages.tolist() == [4, 5, 0, 1]
  assert found.ref_logprobs is None and found.masks == [None] * 4


def test_settings_that_make_no_sense():
  with pytest.raises(
    ValueError, match='samples_per_prompt is 3; .* at least 4'
  ):
    _config(samples_per_prompt=3)
  with pytest.raises(ValueError, match='max_rounds is 0'):
    _config(max_rounds=0)
  with pytest.raises(ValueError, match='no group has a verified outcome'):
    _config(max_rounds=2, accuracy_reward=0.0)
