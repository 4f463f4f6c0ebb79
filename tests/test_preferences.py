"""Pairs of answers by rule."""

import json

import pytest

from rlzero.tasks import countdown, preferences
from rlzero.text import template

_TASK = countdown.Countdown(languages=('en', 'zh'))


@pytest.mark.long
def test_both_are_right_and_the_better_one_has_its_bracket_first(tmp_path):
  preferences.run(preferences.Config(workdir=str(tmp_path), task=_TASK))
  targets = {e.question: e.target for e in _TASK.examples('train')}
  lines = (tmp_path / 'pairs.jsonl').read_text('utf-8').splitlines()
  pairs = [json.loads(line) for line in lines]
  assert len(pairs) > 300
  for pair in pairs[::10]:
    first, last = (
      template.parse(pair[name]).answer for name in ('chosen', 'rejected')
    )
    assert first.startswith('(') and last.endswith(')')
    for answer in (first, last):
      assert _TASK.verify(answer, targets[pair['prompt']])


def test_what_cannot_be_put_both_ways_is_left_out():
  # 8 - (3 + 2) is the one way to 3 with the bracket last; (8 - 3) - 2 and
  # (8 - 2) - 3 have it first, and none of them can be turned round.
  assert preferences.answers('3 (8, 3, 2)') == []
  assert preferences.answers('18 (9, 5, 3)') == [
    ('<answer> ( 5 - 3 ) * 9 </answer>', '<answer> 9 * ( 5 - 3 ) </answer>')
  ]


def test_easy_problems_have_more_ways():
  easy = countdown.Countdown(min_ways=2, max_ways=99).examples('test')
  hard = countdown.Countdown().examples('test')
  assert easy and not {e.uid for e in easy} & {e.uid for e in hard}
