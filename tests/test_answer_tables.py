"""Answers as people and models write them, and answers that look alike.

Each line of `tests/answers/*.txt` is an answer, ' => ' and a target; ⏎ is a new
line. They go through the reward pool, the way of a run. Those of `formula`,
`number` and `choice` stand in <answer> tags, those of `prose` are what a chat
model writes.
"""

import pathlib

import pytest

from rlzero.scoring import reward_pool
from rlzero.tasks.datasets import benchmarks, gsm8k

pytestmark = pytest.mark.long

_FOLDER = pathlib.Path(__file__).parent / 'answers'


def _rows(name):
  text = (_FOLDER / f'{name}.txt').read_text(encoding='utf-8')
  rows = [line.rsplit(' => ', 1) for line in text.strip().split('\n')]
  assert len(rows) > 50 and all(len(row) == 2 for row in rows)
  return [(answer.replace('⏎', '\n'), target) for answer, target in rows]


@pytest.fixture(scope='module')
def pools():
  """A pool that wants tags, and one of a chat template."""
  tasks = {
    'formula': benchmarks.MATH500(),
    'number': gsm8k.GSM8K(),
    'choice': benchmarks.GPQADiamond(),
  }
  with (
    reward_pool.RewardPool(tasks, 'r1_zero', 1) as tagged,
    reward_pool.RewardPool(tasks, 'chat', 1) as chat,
  ):
    yield {'tags': tagged, 'prose': chat}


def _misjudged(pool, kind, rows, side):
  """The rows whose reward is not that of their side."""
  verdicts = pool.score(
    [reward_pool.Request(kind, text, target) for text, target in rows]
  )
  assert {v.status for v in verdicts} == {'ok'}
  # The reward and the figure of an evaluation are one verdict.
  assert all(v.correct == (v.accuracy > 0) for v in verdicts)
  expected = 1.0 if side == 'right' else 0.0
  return [
    row
    for row, verdict in zip(rows, verdicts, strict=True)
    if verdict.accuracy != expected
  ]


@pytest.mark.parametrize('kind', ['formula', 'number', 'choice'])
@pytest.mark.parametrize('side', ['right', 'wrong'])
def test_answers_in_tags(pools, kind, side):
  rows = [
    (f'<think> so </think> <answer> {answer} </answer>', target)
    for answer, target in _rows(f'{kind}_{side}')
  ]
  assert _misjudged(pools['tags'], kind, rows, side) == []


@pytest.mark.parametrize('kind', ['formula', 'number'])
@pytest.mark.parametrize('side', ['right', 'wrong'])
def test_answers_in_prose(pools, kind, side):
  rows = _rows(f'prose_{side}')
  if kind == 'number':
    rows = [(text, target) for text, target in rows if target.isdigit()]
  assert _misjudged(pools['prose'], kind, rows, side) == []
