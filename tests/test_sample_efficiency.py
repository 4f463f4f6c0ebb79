"""What it takes to reach a goal, worked out by hand; a run that stops there."""

import pytest

from rlzero.benchmarks import sample_efficiency
from rlzero.runtime import metrics


def _run(seed, *evaluations):
  return {
    'seed': seed,
    'evaluations': [
      {'steps': s, 'pass@1': p, 'tokens': 1000 * s, 'seconds': 2.0 * s}
      for s, p in evaluations
    ],
  }


_FIRST = _run(0, (5, 0.2), (10, 0.7), (15, 0.9), (20, 0.6))
_SECOND = _run(1, (5, 0.5), (10, 0.8))
_NEVER = _run(2, (5, 0.5), (10, 0.79))


def test_summaries_and_ratios():
  plain = sample_efficiency.summary([_FIRST, _SECOND], 0.8)
  half = sample_efficiency.summary(
    [_run(0, (5, 0.16), (6.25, 0.8)), _run(1, (2.5, 0.5), (5, 0.8))], 0.8
  )
  ratios = sample_efficiency.ratios(half['runs'], plain['runs'])
  assert ratios['tokens']['mean'] == pytest.approx(0.5)
  assert ratios['tokens']['low'] == pytest.approx(ratios['tokens']['high'])
  never = sample_efficiency.summary([_FIRST, _NEVER], 0.8)
  assert never['mean']['tokens'] is None
  of_never = sample_efficiency.ratios(never['runs'], plain['runs'])
  assert of_never['tokens'] is None
  text = sample_efficiency.table(
    {'plain': plain, 'other': {**never, 'of_plain': of_never}}
  )
  assert '12.5, 10' in text and 'not reached' in text


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.usefixtures('quick_compilation')
def test_a_run_ends_at_the_goal_and_is_not_repeated(tmp_path, monkeypatch):
  flags = (
    *sample_efficiency._FLAGS,
    '--num_prompts=2',
    '--max_len=16',
    '--num_slots=8',
    '--num_workers=1',
    '--eval_every=2',
    '--eval_problems=2',
    '--eval_samples=2',
    '--final_problems=1',
  )
  monkeypatch.setattr(sample_efficiency, '_FLAGS', flags)
  workdir = tmp_path / 'run'
  run = '--gin_file=configs/runs/r1_zero_tiny.gin', '--num_steps=4'
  found = sample_efficiency.train(workdir, 'curriculum', 0, 0.0, run)
  (only,) = found['evaluations']  # at the first evaluation, of two
  rows = metrics.read_metrics(str(workdir))
  assert only['steps'] == len(rows) == 2
  assert only['tokens'] == sum(row['rollout/tokens'] for row in rows)
  assert only['seconds'] < sum(row['time/step_s'] for row in rows)
  assert 'curriculum/pass_rate' in found['means']
  before = (workdir / 'metrics.jsonl').read_bytes()
  assert sample_efficiency.train(workdir, 'curriculum', 0, 0.0, run) == found
  assert (workdir / 'metrics.jsonl').read_bytes() == before
  assert found['compile_s'] > 0 and len(found['commits']) == 1
  # Another goal goes on from there.
  more = sample_efficiency.train(workdir, 'curriculum', 0, 1.1, run)
  assert [e['steps'] for e in more['evaluations']] == [2, 4]
