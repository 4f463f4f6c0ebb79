"""reasoning-gym's generators as tasks."""

import json
import os
import subprocess
import sys

import pytest

from rlzero.scoring import reward_pool
from rlzero.tasks import base, procedural

pytestmark = pytest.mark.long

TERMS = {'min_terms': 2, 'max_terms': 3, 'min_digits': 1, 'max_digits': 2}


def make(dataset='chain_sum', options=None, sizes=(40, 10, 20), seed=0):
  return procedural.ReasoningGym(
    dataset=dataset,
    num_train=sizes[0],
    num_validation=sizes[1],
    num_test=sizes[2],
    seed=seed,
    options=TERMS if options is None else options,
  )


def test_splits_are_disjoint_distinct_and_full():
  task = make()
  splits = [task.examples(s) for s in ('train', 'validation', 'test')]
  assert [len(s) for s in splits] == [40, 10, 20]
  questions = [e.question for s in splits for e in s]
  assert len(set(questions)) == 70
  assert len({e.uid for s in splits for e in s}) == 70
  for name, split in zip(('train', 'validation', 'test'), splits, strict=True):
    assert {procedural.split_of(e.question) for e in split} == {name}


def test_other_seeds_do_not_leak_into_the_test_split():
  held_out = {e.question for e in make().examples('test')}
  train = {e.question for e in make(seed=1).examples('train')}
  assert not train & held_out


def test_chain_sum_verifies():
  task = make()
  assert isinstance(task, base.Task)
  for example in task.examples('train')[:10]:
    answer = json.loads(example.target)['answer']
    assert task.verify(answer, example.target)
    assert task.verify(f'{answer}.0', example.target)
    assert not task.verify(f'{answer}1', example.target)
    assert not task.verify(f'{answer} or 5', example.target)
    expression = example.question.split(': ')[1].removesuffix(' =')
    assert not task.verify(expression, example.target)
    assert task.extract(f'1 + 1 = 2 so {answer}.') == answer
  assert task.same('1,000', '1000.0') and not task.same('1', '2')
  assert task.count_tries('3 + 4 = 6, no, 3 + 4 = 7') == 2


def test_text_answers():
  task = make('word_sorting', {}, (2, 0, 0))
  example = task.examples('train')[0]
  answer = json.loads(example.target)['answer']
  assert task.extract(f'<answer> {answer} </answer>') == answer
  assert task.verify(answer, example.target)
  assert not task.verify(answer[::-1], example.target)


def test_scores_that_json_would_spoil_fall_back_on_equality():
  task = make('rearc', {}, (1, 0, 0))
  (example,) = task.examples('train')
  entry = json.loads(example.target)
  assert 'metadata' not in entry
  assert not task.verify('0 0', example.target)


def test_problems_are_the_same_in_every_process():
  # This generator walks over a set of strings, whose order is random.
  code = (
    'from rlzero.tasks import procedural\n'
    'task = procedural.ReasoningGym(dataset="ransom_note", num_train=5, '
    'num_validation=0, num_test=2)\n'
    'print(task.examples("train"), task.examples("test"))'
  )
  texts = [
    subprocess.run(
      [sys.executable, '-c', code],
      env={**os.environ, 'PYTHONHASHSEED': seed},
      capture_output=True,
      text=True,
      check=True,
    ).stdout
    for seed in ('1', '2')
  ]
  assert texts[0] == texts[1] and 'Example' in texts[0]


def test_small_space_says_how_many_there_are():
  tiny = {'min_terms': 2, 'max_terms': 2, 'min_digits': 1, 'max_digits': 1}
  with pytest.raises(ValueError, match=r'has \d+ distinct train problems'):
    make(options=tiny, sizes=(1000, 0, 0)).examples('train')


@pytest.mark.parametrize(
  'dataset, options, message',
  [
    ('chainsum', {}, "no dataset 'chainsum'; did you mean chain_sum"),
    ('chain_sum', {'terms': 2}, "no option 'terms'; it has allow_negation, "),
    ('chain_sum', {'size': 2}, "no option 'size'"),
    ('chain_sum', {'min_terms': 0}, 'refuses its options .*must be positive'),
  ],
)
def test_bad_settings(dataset, options, message):
  with pytest.raises(ValueError, match=message):
    make(dataset, options).warm_up()


def test_bad_settings_are_reported_from_the_other_process():
  with pytest.raises(ValueError, match="no dataset 'chainsum'; did you mean"):
    make('chainsum').examples('train')


def test_a_problem_that_nothing_could_judge():
  entry = {'question': 'q', 'answer': None, 'metadata': {'cells': {1}}}
  with pytest.raises(
    ValueError, match="'maze' has a problem without an answer"
  ):
    procedural._target('maze', None, entry)
  entry['answer'] = '7'
  assert procedural._target('maze', None, entry) == '{"answer": "7"}'


def test_bad_fields():
  with pytest.raises(ValueError, match='num_test is -1'):
    make(sizes=(1, 1, -1))
  with pytest.raises(ValueError, match='use finite numbers, strings'):
    make(options={'a': object()})
  with pytest.raises(ValueError, match="no split 'dev'"):
    make().examples('dev')


def test_in_the_reward_pool():
  task = make()
  examples = task.examples('test')[:4]
  requests = [
    reward_pool.Request(
      'sum',
      f'<think></think><answer>{json.loads(e.target)["answer"]}</answer>',
      e.target,
    )
    for e in examples
  ]
  with reward_pool.RewardPool({'sum': task}, 'r1_zero', 1) as pool:
    assert [v.accuracy for v in pool.score(requests)] == [1.0] * 4
    assert pool.classes('sum', ['7', '7.0', None, '8']) == [0, 0, -1, 1]
