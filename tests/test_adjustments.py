"""The reward of the tutorial pays for adjustments that hold, and no others."""

import importlib.util
import json
import pathlib

import pytest

_FOLDER = pathlib.Path(__file__).parents[1] / 'docs/tutorials/adjustments'


def _module(name):
  spec = importlib.util.spec_from_file_location(name, _FOLDER / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


make_table, reward = _module('make_table'), _module('reward')


def _score(completion, problem):
  return reward.score(completion, problem['refund'], problem['history'])


def test_the_answer_of_each_problem_earns_all():
  for number in range(500):
    problem = make_table.problem(number)
    found = _score(' ' + make_table.answer(problem), problem)
    assert found == {'score': 1.0, 'refers': 1.0, 'adds_up': 1.0}, problem


def test_problems_are_the_same_each_time():
  assert make_table.problem(7) == make_table.problem(7)
  prompts = {make_table.problem(number)['prompt'] for number in range(2200)}
  assert len(prompts) == 2200


def _of_another(field, value):
  def change(adjustment, problem):
    adjustment['items'][0][field] = value

  return change


def _declined(adjustment, problem):
  others = [t for t in problem['history'] if t['status'] != 'captured']
  adjustment['transaction'] = others[0]['id']


def _more_than_bought(adjustment, problem):
  line = adjustment['items'][0]
  more = 5 * line['unit_cost']
  adjustment['total'] += more - line['total']
  line |= {'quantity': 5, 'total': more}


def _twice(adjustment, problem):
  line = adjustment['items'][0]
  adjustment['items'].append(dict(line))
  adjustment['total'] += line['total']


def _wrong_total(adjustment, problem):
  adjustment['total'] += 1


def _true_as_one(adjustment, problem):
  line = adjustment['items'][0]
  adjustment['total'] -= line['total'] - line['unit_cost']
  line |= {'quantity': True, 'total': line['unit_cost']}


def _nothing(adjustment, problem):
  adjustment |= {'items': [], 'total': 0}


@pytest.mark.parametrize(
  'change',
  [
    _declined,
    _more_than_bought,
    _twice,
    _wrong_total,
    _true_as_one,
    _nothing,
    _of_another('item', 'car'),
    _of_another('item', []),
    _of_another('unit_cost', 1),
    _of_another('total', 2.0),
    _of_another('quantity', -1),
  ],
)
def test_a_wrong_adjustment_earns_nothing(change):
  for number in range(50):
    problem = make_table.problem(number)
    adjustment = json.loads(make_table.answer(problem))
    before = json.dumps(adjustment)
    change(adjustment, problem)
    assert json.dumps(adjustment) != before
    assert _score(json.dumps(adjustment), problem)['score'] == 0.0


@pytest.mark.parametrize(
  'write',
  [
    lambda text: '',
    lambda text: text + ' {}',
    lambda text: 'Here it is: ' + text,
    lambda text: text[:-1],
    lambda text: text[:-1] + ', "total": 3}',
    lambda text: '[' * 100_000,
    lambda text: f'[{text}]',
    lambda text: '{"transaction": NaN}',
  ],
)
def test_text_that_is_no_adjustment_earns_nothing(write):
  problem = make_table.problem(3)
  assert _score(write(make_table.answer(problem)), problem)['score'] == 0.0
