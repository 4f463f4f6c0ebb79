"""A curriculum: which problems the stream takes, and that it resumes."""

import collections
import json

import pytest

from rlzero.tasks import base, countdown, procedural
from rlzero.tasks.datasets import curriculum, stream
from rlzero.tasks.datasets.curriculum import Curriculum, Observation

_EXAMPLES = [base.Example(str(i), f'q{i}', '', 't') for i in range(8)]


def _rates(seed=0, **changes):
  return curriculum.PassRates(Curriculum(**changes), lambda e: e.uid, seed)


def _observed(rates, rights, count=14):
  """Tells it of problems 0, 1, ... of which so many were right."""
  rates.observe(
    Observation(_EXAMPLES[i], right, count) for i, right in enumerate(rights)
  )


def test_the_estimate_is_a_half_before_anything_is_known():
  rates = _rates()
  assert rates.estimate(_EXAMPLES[0]) == 0.5
  assert all(rates.takes(e, draw) for draw in range(50) for e in _EXAMPLES)
  _observed(rates, [0, 7, 14, 3])
  found = [rates.estimate(e) for e in _EXAMPLES[:5]]
  assert found == [1 / 16, 1 / 2, 15 / 16, 4 / 16, 1 / 2]
  assert rates.num_classes == 4


def test_problems_are_taken_as_often_as_the_equation_says():
  rates = _rates(floor=0.2)
  _observed(rates, [0, 7, 14, 3])
  draws = 4000
  for example in _EXAMPLES[:4]:
    p = rates.estimate(example)
    expected = 0.2 + 0.8 * 4 * p * (1 - p)
    taken = sum(rates.takes(example, draw) for draw in range(draws)) / draws
    # Four standard deviations.
    assert taken == pytest.approx(
      expected, abs=4 * (expected * (1 - expected) / draws) ** 0.5 + 1e-9
    )


def test_which_are_taken_depends_on_seed_and_draw_alone():
  def taken(seed):
    rates = _rates(seed)
    _observed(rates, [0])
    return [rates.takes(_EXAMPLES[0], draw) for draw in range(200)]

  assert taken(0) == taken(0) != taken(1)


def test_observations_fade_and_are_forgotten():
  rates = _rates(half_life=2.0)
  _observed(rates, [0])  # 14 completions
  rates.observe([])
  rates.observe([])
  assert rates.estimate(_EXAMPLES[0]) == 1 / (14 / 2 + 2)
  _observed(rates, [1])  # (0 + 1) of (14 / 2**1.5 + 14)
  count = 14 / 2**1.5 + 14
  assert rates.estimate(_EXAMPLES[0]) == pytest.approx(2 / (count + 2))
  for _ in range(9):  # 18.9 / 2**4.5 is below 1
    rates.observe([])
  assert rates.num_classes == 0 and rates.estimate(_EXAMPLES[0]) == 0.5


def test_observations_of_a_class_are_added_up():
  rates = curriculum.PassRates(Curriculum(), lambda e: e.task, 0)
  _observed(rates, [2, 3], count=4)
  assert rates.estimate(_EXAMPLES[7]) == 6 / 10


def _stream(seed=5):
  rates = _rates(seed, half_life=8.0)
  return stream.PromptStream([_EXAMPLES], seed, [1.0], rates)


def _solved(problems, drawn):
  """The low numbers are never solved, the high ones half of the time."""
  problems.pass_rates.observe(
    Observation(e, 8.0 * (int(e.uid) >= 4), 16) for _, e in drawn
  )


def test_a_stream_with_a_curriculum_resumes_where_it_was():
  whole, drawn, states = _stream(), [], []
  for _ in range(12):
    states.append(json.loads(json.dumps(whole.get_state())))
    drawn.append(whole.next(4))
    _solved(whole, drawn[-1])
  numbers = [n for part in drawn for n, _ in part]
  assert numbers == sorted({*numbers}) and numbers[-1] > 4 * 12  # some are not
  counts = collections.Counter(e.uid for part in drawn for _, e in part)
  hard = sum(counts[str(i)] for i in range(4))
  assert hard < 48 - hard
  for step in (0, 3, 11):
    again = _stream()
    again.set_state(states[step])
    for part in drawn[step:]:
      assert again.next(4) == part
      _solved(again, part)


def test_problems_that_do_not_fit_still_end_a_stream_that_has_no_other():
  problems = _stream()
  with pytest.raises(ValueError, match='None of the 8 training problems can'):
    problems.next(1, lambda example: False)


def test_without_a_curriculum_the_state_is_what_it_was():
  plain = stream.PromptStream([_EXAMPLES], 5, [1.0])
  assert 'pass_rates' not in plain.get_state()


def test_classes_of_problems():
  tasks = [countdown.Countdown()]
  example = base.Example('9 5 3 make 18', '', '18 (9, 5, 3)', 'countdown')
  for by, name in (
    ('task', 'countdown'),
    ('problem', 'countdown 9 5 3 make 18'),
    ('level', 'countdown 1 of 9'),
  ):
    assert curriculum.classes(by, tasks)(example) == name


def test_levels_of_countdown_say_how_many_first_moves_will_do():
  task = countdown.Countdown(max_ways=99)
  counts = collections.Counter()
  for example in task.examples('validation'):
    ways, _, moves = task.level(example.target).partition(' of ')
    assert 1 <= int(ways) <= int(moves) <= 9
    counts[int(ways)] += 1
  narrow = countdown.Countdown(max_ways=2, min_ways=2).examples('validation')
  assert len(narrow) == counts[2]


def test_levels_of_generators_are_the_counts_that_they_state():
  task = procedural.ReasoningGym(
    dataset='chain_sum', num_train=1, num_validation=1, num_test=1
  )

  def level(**metadata):
    return task.level(json.dumps({'metadata': metadata}))

  ranges = {'num_terms': [2, 6], 'num_digits': [1, 4], 'value': [1, 9]}
  assert (
    level(difficulty=ranges, num_terms=3, num_digits=2, value=5, other=1)
    == 'num_digits=2 num_terms=3'
  )
  assert level(difficulty={'numbers': [4, 6]}, numbers=[1, 2, 3, 4]) == (
    'numbers=4'
  )
  assert level(num_terms=3) == ''
  assert task.level(json.dumps({'answer': '3'})) == ''


class _NoLevels:
  """A task with nothing but what every task has."""

  name = 'plain'

  def examples(self, split):
    return _EXAMPLES

  def extract(self, text):
    return text

  def verify(self, answer, target):
    return answer == target

  def same(self, first, second):
    return first == second

  def count_tries(self, text):
    return 1


def test_a_task_without_levels():
  with pytest.raises(ValueError, match="'plain' has no levels.*level\\(target"):
    curriculum.classes('level', [_NoLevels()])


@pytest.mark.parametrize(
  ('changes', 'sentence'),
  [
    ({'floor': 0.0}, 'floor is 0.0; it must be above 0 and at most 1'),
    ({'half_life': 0.0}, 'half_life is 0.0; it must be above 0'),
  ],
)
def test_settings_that_make_no_sense(changes, sentence):
  with pytest.raises(ValueError, match=sentence):
    Curriculum(**changes)
