"""The tree by hand, and a search on the embedded base."""

import ast
import dataclasses
import json
import math

import pytest
from helpers import mostly_slow

from rlzero import search
from rlzero.evaluation import measure, tree_search
from rlzero.rollout.sampling import Sampling
from rlzero.tasks import countdown
from rlzero.train import folders

pytestmark = [
  pytest.mark.model,
  pytest.mark.usefixtures('quick_compilation'),
]


def test_puct_by_hand():
  root = tree_search.Node([], 1.0, None)
  assert root.leaf(1.0) is root
  likely, rare = (
    tree_search.Node([5], 0.8, root),
    tree_search.Node([6], 0.2, root),
  )
  root.add([likely, rare], [0.0, 1.0])
  assert (root.visits, root.value) == (2, 0.5)
  # c sqrt(2) p / (1 + 1): 0.566 for the likely one, 1 + 0.141 for the other.
  assert root.leaf(1.0) is rare
  assert root.leaf(3.0) is likely  # 1.697 against 1.424
  deep = tree_search.Node([6, 7], 0.5, rare)
  rare.add([deep], [0.0])
  assert (rare.visits, rare.value, root.visits) == (2, 0.5, 3)
  assert root.best() is deep
  # Where no try may follow, nothing is looked for, here or above.
  deep.is_open = rare.is_open = False
  assert root.leaf(0.0) is likely
  ended = tree_search.Node([5, 9], 0.5, likely)
  ended.is_open = False
  likely.add([ended], [0.0])
  assert not likely.is_open and not root.is_open


@mostly_slow('method', {'tree': 'tree', 'samples': 'samples'}, ('samples',))
def test_search_says_what_it_found_and_cost(method, tmp_path, capsys):
  cfg = search.Config(
    workdir=str(tmp_path),
    method=method,
    num_problems=3,
    budgets=(1, 2),
    num_children=2,
    num_rollouts=int(method == 'tree'),
    sampling=Sampling(max_len=72, num_slots=8, decode_steps=8),
    json=True,
  )
  search.run(cfg)
  metrics = json.loads(capsys.readouterr().out)
  lines = (tmp_path / 'evaluations' / 'search.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert len(records) == metrics['num_problems'] == 3
  task = countdown.Countdown()
  targets = {e.uid: e.target for e in task.examples('test')}
  for record in records:
    answer = task.extract(record['completion'])
    right = answer is not None and task.verify(answer, targets[record['uid']])
    assert right == record['correct']
  one, two = metrics['budgets']['1'], metrics['budgets']['2']
  assert two['pass@1'] == sum(record['correct'] for record in records) / 3
  # What was thrown away is paid for as well.
  kept = sum(record['len'] for record in records) / 3
  assert two['tokens_a_problem'] >= kept * (method == 'samples')
  assert one['tokens_a_problem'] <= two['tokens_a_problem']
  # A budget finds what it would alone.
  path = str(tmp_path / 'evaluations' / 'search.json')
  cfg = dataclasses.replace(cfg, budgets=(2,), workdir='', compare_with=path)
  search.run(cfg)
  alone = json.loads(capsys.readouterr().out)['budgets']['2']
  assert alone['comparison']['difference'] == 0
  assert alone == two | {'comparison': alone['comparison']}
  with pytest.raises(ValueError, match='no search of these 2 problems; give'):
    search.run(dataclasses.replace(cfg, num_problems=2))


def _row(tokens, *right):
  scores = {f'p{i}': value for i, value in enumerate(right)}
  return {'tokens_a_problem': tokens, 'pass@1_by_problem': scores}


def test_against_another_search_at_as_many_tokens():
  other = {'1': _row(10, 0, 0, 1), '2': _row(30, 1, 0, 1)}
  found = tree_search.compare(_row(15, 1, 1, 1), other)['comparison']
  # A quarter of the way: 1/4, 0, 1 against 1, 1, 1.
  assert found['pass@1'] == pytest.approx(1.25 / 3)
  assert found['difference'] == pytest.approx(1.75 / 3)
  assert tree_search.compare(_row(31, 1, 1, 1), other) == {'comparison': None}


def test_first_moves_are_the_policys_by_enumeration():
  """The base draws first moves as its corpus does, all alike."""
  loaded = folders.load_model(folders.embedded('tiny_base'))
  chosen = measure.examples(countdown.Countdown(), 'test', 40)
  found = tree_search.first_moves(loaded, chosen)
  counts = [
    len(countdown.openings(ast.literal_eval(e.target.partition(' ')[2])))
    for e in chosen
  ]
  # Of these problems one first move is right.
  assert found['chance'] == pytest.approx(sum(1 / n for n in counts) / 40)
  assert 0.4 < found['legal'] <= 1
  assert (
    found['gain'][0] <= found['right'] - found['chance'] <= found['gain'][1]
  )


def test_one_problem_has_no_interval():
  one = {
    'pass@1': 1.0,
    'pass@1_interval': [math.nan, math.nan],
    'pass@1_by_problem': {'a': 1.0},
    'says_ok': 1.0,
    'tokens_a_problem': 3.0,
    'prompt_tokens_a_problem': 4.0,
  }
  one |= tree_search.compare(one, {'1': one, '2': one})
  moves = {'right': 0.5, 'chance': 0.5}
  metrics = {'budgets': {'1': one}, 'first_moves': moves}
  assert 'pass@1 1.000 [–, –]' in tree_search.describe('tree', metrics)
  loaded = folders.load_model(folders.embedded('tiny_base'))
  chosen = measure.examples(countdown.Countdown(), 'test', 1)
  assert tree_search.first_moves(loaded, chosen)['gain'] is None


@pytest.mark.parametrize('budgets', [(), (0, 2)])
def test_a_search_of_nothing(budgets):
  with pytest.raises(ValueError, match='budgets is .*at least 1'):
    search.Config(budgets=budgets)


def test_attempts_that_are_all_the_same():
  with pytest.raises(ValueError, match='sampling.temperature is 0'):
    search.Config(sampling=Sampling(temperature=0.0))
