"""Completions that are cut off: what they earn, and what the loss sees."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import grpo_config

from rlzero import grpo
from rlzero.rl import collect, settings, update
from rlzero.rollout.sampling import Finish
from rlzero.rollout.scheduler import Completion
from rlzero.scoring import rewards, truncation
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
  rewards.give(cfg, records)
  assert [r['reward'] for r in records] == [2.0, 1.75, -0.5]
  assert rewards.describe(records)['reward/length_penalty'] == -0.5
  plain = [_record(len=90)]
  rewards.give(_config(), plain)
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


@pytest.mark.model
@pytest.mark.usefixtures('quick_compilation')
def test_masked_completions_do_not_move_the_policy(tmp_path):
  """They change no gradient, whatever they say; the others count as before."""
  cfg = grpo_config(tmp_path, max_len=24, kl_coef=0.0)
  drawn = list(enumerate(cfg.task.examples('train')[:3]))
  loaded = settings.load_start(cfg)
  trainer = update.Trainer(cfg, loaded)
  with settings.make_reward_pool(cfg) as pool:

    def batch(cfg):
      collector = collect.Collector(
        cfg, trainer.learner, loaded.tokenizer, pool
      )
      (found,) = collector.collect(trainer.policy, drawn).minibatches
      return found

    scored = batch(cfg)
    masked = batch(dataclasses.replace(cfg, truncated='masked'))
  cut = np.array([m is not None for m in masked.masks])
  assert 0 < cut.sum() < len(cut)
  assert (scored.advantages[cut] != 0).any()
  assert not masked.advantages[cut].any()
  np.testing.assert_array_equal(
    masked.advantages[~cut], scored.advantages[~cut]
  )
  # Even where rows without advantage are computed.
  learner = trainer.learner
  kept = masked._replace(advantages=scored.advantages)
  assert len(learner.chosen(kept)) > len(learner.chosen(masked))
  grads = [learner.gradient(trainer.state.params, b)[0] for b in (kept, masked)]
  for first, second in zip(
    *(np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for g in grads),
    strict=True,
  ):
    assert first == pytest.approx(second, rel=1e-3, abs=1e-5)
