"""Completions that are cut off: what they earn, and what the loss sees."""

import dataclasses
from unittest import mock

import numpy as np
import pytest
from helpers import grpo_config

from rlzero import grpo
from rlzero.rl import collect, selection, settings
from rlzero.rollout import journal, scheduler
from rlzero.rollout.sampling import Finish
from rlzero.rollout.scheduler import Completion
from rlzero.scoring import reward_pool, rewards, truncation
from rlzero.text.template import Template


def _record(**changes):
  return {
    'task': 'countdown',
    'question': '9 5 3 make 18',
    'accuracy': 1.0,
    'format': 1.0,
    'words': {},
    'parts': {},
    'status': 'ok',
    'truncated': False,
    'len': 20,
    **changes,
  }


def _config(**changes):
  cfg = grpo.Config(workdir='', template=Template('short'), **changes)
  sampling = dataclasses.replace(cfg.sampling, max_len=100)
  return dataclasses.replace(cfg, sampling=sampling)


def test_the_penalty_falls_along_a_line():
  def penalty(length):
    return truncation.length_penalty(length, max_len=100, buffer=20)

  assert [penalty(n) for n in (1, 79, 80)] == [0, 0, 0]
  assert penalty(81) == -0.05 and penalty(90) == -0.5 and penalty(100) == -1
  assert truncation.length_penalty(100, max_len=100, buffer=0) == 0
  # The buffer may be all there is.
  assert truncation.length_penalty(25, max_len=100, buffer=100) == -0.25


def test_the_penalty_is_added_to_what_a_completion_earns():
  cfg = _config(overlong_buffer=20, overlong_penalty=0.5, truncated='zero')
  records = [
    _record(len=80),
    _record(len=90),
    _record(len=100, truncated=True),  # earns nothing, and pays for its length
  ]
  rewards.assign(cfg, records)
  assert [r['reward'] for r in records] == [2.0, 1.75, -0.5]
  assert rewards.describe(records)['reward/length_penalty'] == -0.5
  plain = [_record(len=90)]
  rewards.assign(_config(), plain)
  assert plain[0]['reward'] == 2.0
  assert 'reward/length_penalty' not in rewards.describe(plain)


def test_only_cut_completions_are_masked():
  tokens = np.arange(3, dtype=np.int32)
  logprobs = np.zeros(3, np.float32)
  some = np.array([True, False, True])
  completions = [
    Completion(tokens, logprobs, Finish.EOS),
    Completion(tokens, logprobs, Finish.LENGTH),
    Completion(tokens, logprobs, Finish.EOS, mask=some),
    Completion(tokens, logprobs, Finish.LENGTH, mask=some),
  ]
  found = truncation.masks('masked', completions)
  assert found[0] is None and found[2] is some
  for mask in (found[1], found[3]):
    assert mask is not None and mask.dtype == bool and not mask.any()
  for treatment in ('scored', 'zero'):
    assert truncation.masks(treatment, completions) == [None, None, some, some]


def test_a_buffer_longer_than_a_completion():
  with pytest.raises(
    ValueError, match='overlong_buffer is 101; .* at most 100'
  ):
    dataclasses.replace(_config(), overlong_buffer=101)


def test_masked_completions_have_no_advantage_and_count_in_that_of_others():
  """So they are not computed in an update."""
  cfg = grpo_config('', kl_coef=0.0, num_prompts=1)
  loaded = settings.load_start(cfg)
  learner = cfg.make_learner(loaded.config)
  completion = Completion(
    np.arange(3, dtype=np.int32), np.zeros(3, np.float32), Finish.EOS
  )
  cut = completion._replace(finish=Finish.LENGTH)

  def batch(cfg):
    log = journal.Journal(None, {})
    log.add_scores(
      [
        {**_GRADED, **_record(accuracy=right, truncated=i == 1)}
        for i, right in enumerate((1.0, 1.0, 0.0, 0.0))
      ]
    )
    sampled = selection.Round(
      [],
      [scheduler.Prompt(0, [5, 6])],
      log,
      {},
      [completion, cut, completion, completion],
      scheduler.Usage(12, 12, 3),
      None,
      None,
    )
    pool = mock.create_autospec(reward_pool.RewardPool, instance=True)
    collector = collect.Collector(cfg, learner, loaded.tokenizer, pool)
    policy = collect.Policy(0, loaded.params, {})
    (found,) = collector.choose(policy, [sampled]).minibatches
    return found

  scored = batch(cfg)
  assert scored.masks == [None] * 4
  assert scored.advantages.tolist() == [1, 1, -1, -1]
  assert learner.chosen(scored).tolist() == [0, 1, 2, 3]
  masked = batch(dataclasses.replace(cfg, truncated='masked'))
  assert [m is None for m in masked.masks] == [True, False, True, True]
  assert not masked.masks[1].any()
  assert masked.advantages.tolist() == [1, 0, -1, -1]
  assert learner.chosen(masked).tolist() == [0, 2, 3]


_GRADED = {
  'completion': 'ok',
  'correct': True,
  'tries': 1,
  'reflections': 0,
  'outcome': '',
}
