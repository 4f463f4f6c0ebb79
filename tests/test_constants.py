"""Constant answers: measured, and refused or told where a task is built."""

import json
import pathlib

import pytest

from rlzero.tasks import constants, procedural

_RESULT = (
  pathlib.Path(__file__).parent.parent / 'docs/results/constant_answers.json'
)


class Lenient:
  """Takes any list, and the number that is asked for."""

  def score_answer(self, answer, entry):
    return float(answer.startswith('[') or answer == entry['answer'])


def test_what_a_lenient_scorer_accepts_is_found():
  entries = [{'question': f'[{i}]', 'answer': str(i + 5)} for i in range(4)]
  found = constants.most_accepted('mine', Lenient(), entries)
  assert found == {
    'answer': '[]',
    'share': 1.0,
    'unfounded': 1.0,
    'echo': 1.0,
    'padded': 0.0,
  }


def test_the_lists_are_what_was_measured():
  measured = json.loads(_RESULT.read_text())['generators']
  known = {n: m for n, m in measured.items() if 'share' in m}
  refused = {
    n for n, m in known.items() if max(m['unfounded'], m['echo']) >= 0.5
  }
  mostly = {
    n: (m['answer'], round(m['share'], 2))
    for n, m in known.items()
    if m['share'] >= 0.5 and n not in refused
  }
  assert refused == set(constants.REFUSED)
  assert mostly == constants.MOSTLY


def test_a_generator_that_takes_anything_is_refused():
  with pytest.raises(ValueError, match="'game_of_life_halting' cannot be a"):
    procedural.make_generator('game_of_life_halting', {}, 0)


def test_a_frequent_answer_is_told(capsys):
  task = procedural.ReasoningGym(
    dataset='course_schedule', num_train=1, num_validation=0, num_test=0
  )
  task.examples('train')
  assert "always answering 'False' is right" in capsys.readouterr().err
