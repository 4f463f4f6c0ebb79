"""The tree by hand, and a search on the embedded base."""

import json

import pytest

from rlzero import search
from rlzero.tasks import countdown

pytestmark = pytest.mark.usefixtures('quick_compilation')


def test_puct_by_hand():
  root = search.Node([], 1.0, None)
  assert root.leaf(1.0) is root
  likely, rare = search.Node([5], 0.8, root), search.Node([6], 0.2, root)
  root.add([likely, rare], [0.0, 1.0])
  assert (root.visits, root.value) == (2, 0.5)
  # c sqrt(2) p / (1 + 1): 0.566 for the likely one, 1 + 0.141 for the other.
  assert root.leaf(1.0) is rare
  assert root.leaf(3.0) is likely  # 1.697 against 1.424
  deep = search.Node([6, 7], 0.5, rare)
  rare.add([deep], [0.0])
  assert (rare.visits, rare.value, root.visits) == (2, 0.5, 3)
  assert root.best() is deep
  # Where no try may follow, nothing is looked for, here or above.
  deep.is_open = rare.is_open = False
  assert root.leaf(0.0) is likely
  ended = search.Node([5, 9], 0.5, likely)
  ended.is_open = False
  likely.add([ended], [0.0])
  assert not likely.is_open and not root.is_open


@pytest.mark.parametrize('method', ['tree', 'samples'])
def test_search_says_what_it_found_and_cost(method, tmp_path, capsys):
  cfg = search.Config(
    workdir=str(tmp_path),
    method=method,
    num_problems=3,
    budget=2,
    num_children=2,
    num_rollouts=int(method == 'tree'),
    max_len=72,
    num_slots=8,
    json=True,
  )
  search.run(cfg)
  figures = json.loads(capsys.readouterr().out)
  lines = (tmp_path / 'evaluations' / 'search.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert len(records) == figures['num_problems'] == 3
  task = countdown.Countdown()
  targets = {e.uid: e.target for e in task.examples('test')}
  for record in records:
    answer = task.extract(record['completion'])
    right = answer is not None and task.verify(answer, targets[record['uid']])
    assert right == record['correct']
  # What was thrown away is paid for as well.
  kept = sum(record['len'] for record in records) / 3
  assert figures['tokens_a_problem'] >= kept * (method == 'samples')
  assert 0 <= figures['pass@1'] <= 1


def test_a_search_of_nothing():
  with pytest.raises(ValueError, match='budget is 0; it must be at least 1'):
    search.Config(budget=0)
