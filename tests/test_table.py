"""Tables as tasks: shapes that people have, and rows that nobody can use."""

import dataclasses
import hashlib
import json
import os
import pathlib
import pickle
import textwrap

import huggingface_hub
import hypothesis
import numpy as np
import pyarrow
import pytest
from helpers import Hub, grpo_config, serve
from hypothesis import strategies
from pyarrow import parquet

from rlzero import grpo
from rlzero.evaluation import contamination, measure
from rlzero.runtime import config, failures, files, metrics
from rlzero.scoring import reward_pool, rewards
from rlzero.tasks import base, table, verifiers
from rlzero.tasks.datasets import materialise, stream, table_rows
from rlzero.tasks.datasets.curriculum import Curriculum
from rlzero.text import warn
from rlzero.text.template import Chat

_NUMBERS = verifiers.Numbers()


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  warn.once.cache_clear()


def _jsonl(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def _parquet(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  return str(path)


def _all(task):
  """Question and target of every row that can be used, in the table's order."""
  found = [e for s in ('train', 'validation', 'test') for e in task.examples(s)]
  found.sort(key=lambda e: int(e.uid.rpartition('-')[2]))
  return [(e.question, json.loads(e.target)['target']) for e in found]


def test_two_processes_may_read_a_table_at_the_same_time(tmp_path, monkeypatch):
  """As all hosts of a run do, whose home is one folder."""
  path = _jsonl(tmp_path / 'a.jsonl', [{'question': 'q', 'answer': 1}] * 9)
  sync, written = files.sync, []

  def read():
    assert len(_all(table.Table(path=path, verifier=_NUMBERS))) == 9

  def meanwhile(number):
    written.append(number)
    if len(written) == 2:  # rows are there, and what is said of them is not
      read()
    sync(number)

  monkeypatch.setattr(files, 'sync', meanwhile)
  read()
  assert len(written) == 4


# Four tables that people have.


def test_gsm8k_states_answers_behind_hashes(tmp_path):
  path = _jsonl(
    tmp_path / 'train.jsonl',
    [
      {'question': 'How many?', 'answer': 'She has 2.\n2+3=<<2+3=5>>5\n#### 5'},
      {'question': 'How much?', 'answer': 'So\n#### 1,234'},
    ],
  )
  task = table.Table(path=path, verifier=_NUMBERS)
  assert isinstance(task, base.Task)
  assert _all(task) == [('How many?', '5'), ('How much?', '1,234')]
  (example,) = [e for e in _examples(task) if e.question == 'How much?']
  task = pickle.loads(pickle.dumps(task))
  answer = task.extract('that is $1234.00')
  assert task.verify(answer, example.target)
  assert not task.verify('1235', example.target)
  request = reward_pool.Request('t', 'it makes 1234', example.target)
  with reward_pool.RewardPool({'t': task}, 'chat', 1) as pool:
    assert pool.score([request])[0].correct
    assert pool.classes('t', ['1/2', '0.5', 'x']) == [0, 0, 1]


def _examples(task):
  return [e for s in ('train', 'validation', 'test') for e in task.examples(s)]


def test_math_states_answers_in_boxes(tmp_path):
  path = tmp_path / 'math.csv'
  path.write_text(
    'problem,solution\n'
    '"Simplify $\\frac{2}{4}$.","It is\n\\boxed{\\dfrac{1}{2}}, so done."\n'
    'What is 1+1?,2\n'
  )
  task = table.Table(path=str(path), question='problem', target='solution')
  assert [target for _, target in _all(task)] == ['\\dfrac{1}{2}', '2']
  assert task.verify('0.5', json.dumps({'target': '\\dfrac{1}{2}'}))


def test_verl_nests_its_columns(tmp_path):
  rows = [
    {
      'data_source': 'x',
      'prompt': [
        {'role': 'system', 'content': 'Be brief.'},
        {'role': 'user', 'content': f'{i} plus 1?'},
      ],
      'reward_model': {'ground_truth': str(i + 1), 'style': 'rule'},
      'extra_info': {'index': i, 'split': 'test' if i == 2 else 'train'},
    }
    for i in range(3)
  ]
  task = table.Table(
    path=_parquet(tmp_path / 'a.parquet', rows),
    question='prompt',
    target='reward_model.ground_truth',
    split_column='extra_info.split',
    validation_percent=0,
    verifier=_NUMBERS,
  )
  assert [len(task.examples(s)) for s in ('train', 'test')] == [2, 1]
  (example,) = task.examples('test')
  assert isinstance(example.question, Chat)
  assert example.question == 'Be brief.\n\n2 plus 1?'
  assert example.question.messages == tuple(rows[2]['prompt'])
  assert json.loads(example.target) == {'target': '3'}
  other = table.Table(
    path=task.path,
    question='prompt',
    target='reward_model.ground_truth',
    split_column='extra_info.split',
    system='Think.',
  )
  (example,) = other.examples('test')
  assert [m['content'] for m in example.question.messages] == [
    'Think.',
    '2 plus 1?',
  ]


def test_open_r1_asks_what_precedes_the_demonstration(tmp_path):
  rows = [
    {
      'messages': [
        {'role': 'user', 'content': [{'type': 'text', 'text': 'What is 6?'}]},
        {'role': 'assistant', 'content': '<think> hm </think> 6'},
      ],
      'answer': 6,
    }
  ]
  task = table.Table(
    path=_jsonl(tmp_path / 'a.jsonl', rows), question='messages', test_percent=0
  )
  assert _all(task) == [('What is 6?', '6')]
  (example,) = _examples(task)
  assert example.question.messages == (
    {'role': 'user', 'content': 'What is 6?'},
  )


# Where tables come from.


_ROWS = [{'question': f'{i} and {i}?', 'answer': i} for i in range(300)]


def test_shards_patterns_and_files_named_by_split(tmp_path):
  for i in range(3):
    _parquet(tmp_path / f'p/shard-{i}.parquet', _ROWS[100 * i : 100 * i + 100])
  whole = _all(table.Table(path=str(tmp_path / 'p')))
  assert whole == [(r['question'], str(r['answer'])) for r in _ROWS]
  some = _all(table.Table(path=str(tmp_path / 'p/shard-[02].parquet')))
  assert some == whole[:100] + whole[200:]
  _jsonl(tmp_path / 'named/train-00000-of-00001.jsonl', _ROWS[:200])
  _jsonl(tmp_path / 'named/test-00000-of-00001.jsonl', _ROWS[200:])
  task = table.Table(path=str(tmp_path / 'named'), validation_percent=50)
  sizes = [len(task.examples(s)) for s in ('train', 'validation', 'test')]
  assert sizes[0] + sizes[1] == 200 and sizes[2] == 100
  assert 70 < sizes[1] < 130
  apart = table.Table(
    path=str(tmp_path / 'named/train-00000-of-00001.jsonl'),
    test_path=str(tmp_path / 'named/test-00000-of-00001.jsonl'),
    validation_percent=50,
  )
  assert [len(apart.examples(s)) for s in ('train', 'validation', 'test')] == (
    sizes
  )
  _jsonl(tmp_path / 'named/more.jsonl', _ROWS[:1])
  with pytest.raises(ValueError, match='more.jsonl has no split in its name'):
    task.examples('train')


def test_hash_splits_do_not_overlap_and_can_grow(tmp_path):
  path = _jsonl(tmp_path / 'a.jsonl', _ROWS)

  def questions(split, **percents):
    task = table.Table(path=path, **percents)
    return {e.question for e in task.examples(split)}

  splits = [questions(s) for s in ('train', 'validation', 'test')]
  assert sum(map(len, splits)) == len(set().union(*splits)) == 300
  assert all(5 <= len(s) <= 30 for s in splits[1:])
  # A larger test split moves no problem into it from validation.
  assert questions('validation', test_percent=20) == splits[1]
  assert questions('test', test_percent=20) > splits[2]
  with pytest.raises(ValueError, match="table has no split 'dev'"):
    table.Table(path=path).examples('dev')
  with pytest.raises(ValueError, match='must leave some rows to train on'):
    table.Table(path=path, test_percent=60, validation_percent=40)


def test_tfds_by_name_and_by_folder(tmp_path, monkeypatch):
  examples = [
    base.Example(f'u{i}', row['question'], str(row['answer']))
    for i, row in enumerate(_ROWS[:9])
  ]
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  splits = {'train': examples, 'test': examples[:2]}
  materialise.write('sums', splits, str(tmp_path))
  folder = tmp_path / 'problems/sums/1.0.0'
  for path in ('tfds://problems/sums', 'tfds://problems/sums:1.0.0', folder):
    task = table.Table(path=str(path), target='target', validation_percent=0)
    assert len(task.examples('train')) == 9 and len(task.examples('test')) == 2
  with pytest.raises(FileNotFoundError, match='prepare it once with tensorfl'):
    table.Table(path='tfds://gsm8k').examples('train')


class _Hub(Hub):
  repo = 'org/set'
  commit = 'd' * 40
  served = []
  files = {}


@pytest.fixture
def hub(tmp_path, monkeypatch):
  with serve(_Hub) as (_, address):
    fetch, api = huggingface_hub.snapshot_download, huggingface_hub.HfApi
    monkeypatch.setattr(
      huggingface_hub,
      'snapshot_download',
      lambda *args, **options: fetch(
        *args, endpoint=address, cache_dir=tmp_path / 'hf', **options
      ),
    )
    monkeypatch.setattr(huggingface_hub, 'HfApi', lambda: api(address))
    monkeypatch.setattr(_Hub, 'files', {})
    yield


def _lines(rows):
  return ''.join(json.dumps(row) + '\n' for row in rows).encode()


def test_a_data_set_of_the_hub(hub, monkeypatch):
  _Hub.files |= {
    'README.md': b'no data',
    'data/train-00000-of-00002.jsonl': _lines(_ROWS[:100]),
    'data/train-00001-of-00002.jsonl': _lines(_ROWS[100:200]),
    'data/test.jsonl': _lines(_ROWS[200:]),
  }
  task = table.Table(path='hf://org/set', validation_percent=0)
  assert [len(task.examples(s)) for s in ('train', 'test')] == [200, 100]
  assert [q for q, _ in _all(task)] == [r['question'] for r in _ROWS]
  part = table.Table(path='hf://org/set/data/train-*1-of*', test_percent=0)
  assert len(part.examples('train')) + len(part.examples('validation')) == 100
  # What is in the cache needs no connection.
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
  assert len(task.examples('test')) == 100
  with pytest.raises(FileNotFoundError, match='hub cannot be reached') as error:
    table.Table(path='hf://org/other').examples('train')
  assert failures.exit_code(error.value) == failures.TRY_AGAIN


def test_data_sets_of_the_hub_that_cannot_be_read(hub):
  def refused(path, message, kind=FileNotFoundError):
    with pytest.raises(kind, match=message):
      table.Table(path=path).examples('train')

  refused('hf://org/none', 'there is no such data set')
  refused('hf://a b/c', 'no name of a data set')
  refused('hf://org/set', 'has no file .jsonl or .parquet or .csv')
  refused('s3://bucket/x', r'begins with s3://; give a file')
  _Hub.files |= {
    'main/train.jsonl': _lines(_ROWS),
    'socratic/train.jsonl': _lines(_ROWS),
  }
  refused(
    'hf://org/set', r'several sets of files \(main, socratic\)', ValueError
  )
  task = table.Table(path='hf://org/set/main/*')
  assert len(_examples(task)) == 300


# Rows that cannot be used, and files that are damaged.


def test_rows_that_cannot_be_used_are_counted(tmp_path, capsys):
  good = [{'question': 'a?', 'answer': '1'}, {'question': 'b?', 'answer': 2.5}]
  bad = [
    {'question': 'c?', 'answer': ''},
    {'question': 'd?'},
    {'question': 'e?', 'answer': None},
    {'question': 'f?', 'answer': {'x': 1}},
    {'question': 'g?', 'answer': 'none of them'},
    {'question': ' \n', 'answer': '1'},
    {'question': 7, 'answer': '1'},
    {'question': 'h' * 10_000_000, 'answer': '1'},
    {'question': [{'role': 'user', 'content': {}}], 'answer': '1'},
    {'question': [{'role': 'assistant', 'content': 'x'}], 'answer': '1'},
    {'question': [{'content': 'x'}], 'answer': '1'},
  ]
  path = _jsonl(tmp_path / 'a.jsonl', [good[0], *bad, good[1]])
  task = table.Table(path=path, verifier=_NUMBERS)
  assert _all(task) == [('a?', '1'), ('b?', '2.5')]
  said = capsys.readouterr().err
  assert said == (
    f'warning: 11 of the 13 rows of {path} cannot be used and are left out '
    "('answer' is empty: 2, 'answer' is missing: 1, 'answer' is neither text "
    "nor a number: 1, 'answer' states no number: 1, 'question' is empty: 1, "
    "'question' is neither text nor a list of messages: 1, 'question' has "
    "more than Table.max_chars = 100000 characters: 1, 'question' has a "
    "message that is not text: 1, 'question' has no message of the user: 1, "
    "'question' has a message without a known role: 1); the first is "
    f'{path}:2.\n'
  )
  # Said again by another process, whose cache is warm.
  warn.once.cache_clear()
  assert len(_all(task)) == 2
  assert capsys.readouterr().err == said


def test_questions_that_repeat_are_told(tmp_path, capsys):
  rows = [{'question': q, 'answer': '1'} for q in 'abcab']
  task = table.Table(path=_jsonl(tmp_path / 'a.jsonl', rows))
  assert len(_all(task)) == 5
  assert 'repeats 2 of its questions' in capsys.readouterr().err
  # The same question is on one side of each split.
  for split in ('train', 'validation', 'test'):
    found = [e.question for e in task.examples(split)]
    assert all(found.count(q) == 'abcab'.count(q) for q in found)


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('a.jsonl', b'{"q": "x", "answer": 1}\n', r"'question' is missing: 1\)"),
    ('a.jsonl', b'{"q": "x", "answer": 1}\n', "Its columns are 'q', 'answer'"),
    (
      'a.jsonl',
      b'{"question": "x", "answer": "1"}\n{"question": "y", "ans',
      r'a\.jsonl:2 is not JSON .*; remove or correct the line',
    ),
    ('a.jsonl', b'{"question": "\xff", "answer": 1}', r':1 is not UTF-8'),
    ('a.csv', b'question,answer\nx,1\ny', r'a\.csv:3 has 1 fields'),
    ('a.parquet', b'PAR1', r'is not a parquet file'),
    ('a.txt', b'x', 'give a .jsonl, .parquet or .csv file'),
  ],
)
def test_tables_that_cannot_be_read(tmp_path, name, content, message):
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    table.Table(path=str(path)).examples('train')
  # Half a table is not taken for a whole one.
  assert not list((tmp_path / 'cache').rglob('*.arrow*'))


def test_a_wrong_column_is_told_before_all_rows_are_read(tmp_path):
  rows = [{'question': 'x', 'solution': '1'}] * 1100
  damaged = _jsonl(tmp_path / 'a.jsonl', rows)
  with open(damaged, 'a', encoding='utf-8') as file:
    file.write('not JSON')
  with pytest.raises(ValueError, match="None of the first 1,024 rows of .*'an"):
    table.Table(path=damaged).examples('train')


def test_a_column_that_is_not_there_is_told_with_who_asks_for_it(tmp_path):
  rows = [{'q': 'a?', 'gt': '1', 'level': 'easy'}] * 9
  path = _jsonl(tmp_path / 'a.jsonl', rows)
  task = table.Table(
    path=path,
    question='q',
    target='gt',
    columns=('answer',),
    split_column='level',
  )
  with pytest.raises(ValueError) as error:
    _all(task)
  assert str(error.value).endswith(
    "Its columns are 'q', 'gt', 'level'; the columns that are asked for are "
    "Table.question = 'q', Table.target = 'gt', Table.split_column = 'level', "
    "'answer' (of Table.columns, or taken by a function)."
  )


def test_a_truncated_parquet_file(tmp_path):
  path = _parquet(tmp_path / 'a.parquet', _ROWS)
  data = pathlib.Path(path).read_bytes()
  pathlib.Path(path).write_bytes(data[: len(data) // 2])
  with pytest.raises(ValueError, match='is not a parquet file .*copy or down'):
    table.Table(path=path).examples('train')
  with pytest.raises(FileNotFoundError, match='does not exist'):
    table.Table(path=str(tmp_path / 'b.parquet')).examples('train')
  with pytest.raises(FileNotFoundError, match='matches no file'):
    table.Table(path=str(tmp_path / '*.csv')).examples('train')


# Reading, and reading again.


def test_a_table_is_read_again_if_it_has_changed(tmp_path, monkeypatch):
  path = _jsonl(tmp_path / 'a.jsonl', _ROWS[:3])
  task = table.Table(path=path)
  assert len(_all(task)) == 3
  monkeypatch.setattr(table_rows.Columns, 'parse_plain', None)
  assert len(_all(task)) == 3  # from the cache
  monkeypatch.undo()
  os.utime(path, ns=(1, 1))
  _jsonl(tmp_path / 'a.jsonl', _ROWS[:4])
  assert len(_all(task)) == 4
  assert len(_all(table.Table(path=path, max_chars=8, verifier=_NUMBERS))) == 4
  with pytest.raises(ValueError, match='more than Table.max_chars = 3 char'):
    table.Table(path=path, max_chars=3).examples('train')


def test_the_stream_goes_on_in_a_table_and_refuses_another(tmp_path):
  path = _jsonl(tmp_path / 'a.jsonl', _ROWS)
  others = _jsonl(tmp_path / 'b.jsonl', [{'question': 'z', 'answer': 'z'}])

  def mixed():
    tasks = [
      table.Table(path=path),
      table.Table(path=others, name='z', test_percent=0, validation_percent=0),
    ]
    return stream.mixed(tasks, [2.0, 1.0], seed=3)

  first = mixed()
  names = [e.task for _, e in first.next(60)]
  assert names.count('table') == 40 and names.count('z') == 20
  state = json.loads(json.dumps(first.get_state()))
  second = mixed()
  second.set_state(state)
  assert second.next(500) == first.next(500)
  _jsonl(tmp_path / 'a.jsonl', [*_ROWS[:-1], {'question': 'x', 'answer': 1}])
  with pytest.raises(ValueError, match='rows of a table have changed since'):
    mixed().set_state(state)


def test_a_table_is_never_a_list(tmp_path):
  path = _jsonl(tmp_path / 'a.jsonl', _ROWS)
  task = table.Table(path=path)
  rows = task.examples('train')
  assert rows[-1] == rows[len(rows) - 1] and rows[:2] == [rows[0], rows[1]]
  with pytest.raises(IndexError):
    rows[len(rows)]
  clean = contamination.Decontaminated(task, (table.Table(path=path),))
  kept = clean.examples('train')
  assert isinstance(kept, base.View) and 0 < len(kept) <= len(rows)
  assert kept.fingerprint == rows.fingerprint
  chosen = measure.examples(task, 'test', 3)
  assert len(chosen) == 3


_VALUES = strategies.one_of(
  strategies.text(max_size=6),
  strategies.sampled_from(['7', ' 8 ', '#### 9', '', '\\boxed{3}']),
  strategies.integers(-5, 5),
  strategies.floats(allow_nan=False),
  strategies.none(),
  strategies.booleans(),
)


@hypothesis.given(
  strategies.lists(
    strategies.dictionaries(
      strategies.sampled_from(['question', 'answer', 'x']), _VALUES
    ),
    min_size=1,
    max_size=4,
  )
)
@hypothesis.settings(max_examples=100, deadline=None)
def test_rows_in_one_go_are_rows_one_by_one(rows):
  columns = table_rows.Columns('question', 'answer', max_chars=5)
  together = columns.parse_plain(_NUMBERS.target_of, rows)
  if together is None:
    return
  alone = [columns.parse(_NUMBERS.target_of, row) for row in rows]
  assert list(zip(*together, strict=True)) == [r[:2] for r in alone]


def test_digests_are_those_of_the_questions(tmp_path):
  # Splits must be the same on every machine and for ever.
  path = _jsonl(tmp_path / 'a.jsonl', [{'question': 'abc', 'answer': 1}] * 2)
  task = table.Table(path=path, validation_percent=0, test_percent=0)
  store = task.examples('train')._store
  first = int.from_bytes(hashlib.sha256(b'abc').digest()[:8], 'big')
  assert store.column('digest').tolist() == [first, first]
  assert store.column('digest').dtype == np.uint64


# Each of the four, to a running step; questions in the tiny model's words.

_RUNS = {
  'gsm8k': """
    from rlzero import grpo
    from rlzero.tasks import table, verifiers
    grpo.Config.task = @table.Table()
    table.Table.path = '{path}'
    table.Table.verifier = @verifiers.Numbers()
  """,
  'math': """
    from rlzero import grpo
    from rlzero.tasks import table
    grpo.Config.task = @table.Table()
    table.Table.path = '{path}'
    table.Table.question = 'problem'
    table.Table.target = 'solution'
  """,
  'verl': """
    from rlzero import grpo
    from rlzero.tasks import table, verifiers
    grpo.Config.task = @table.Table()
    table.Table.path = '{path}'
    table.Table.question = 'prompt'
    table.Table.target = 'reward_model.ground_truth'
    table.Table.verifier = @verifiers.Numbers()
  """,
  'open_r1': """
    from rlzero import grpo
    from rlzero.tasks import table
    grpo.Config.task = @table.Table()
    table.Table.path = '{path}'
    table.Table.question = 'messages'
  """,
}


def _rows_of(kind, i):
  question, answer = f'{i} + 2 - 1 make', str(i + 1)
  user = {'role': 'user', 'content': question}
  return {
    'gsm8k': {'question': question, 'answer': f'{i} + 1\n#### {answer}'},
    'math': {'problem': question, 'solution': f'so \\boxed{{{answer}}}'},
    'verl': {'prompt': [user], 'reward_model': {'ground_truth': answer}},
    'open_r1': {
      'messages': [user, {'role': 'assistant', 'content': answer}],
      'answer': answer,
    },
  }[kind]


def _task_of(kind, folder):
  """The task that ten lines of gin make of a small file of that shape."""
  rows = [_rows_of(kind, i) for i in range(80)]
  path = folder / (f'{kind}.parquet' if kind == 'verl' else f'{kind}.jsonl')
  (_parquet if kind == 'verl' else _jsonl)(path, rows)
  lines = textwrap.dedent(_RUNS[kind].format(path=path)).strip().splitlines()
  lines = ['from __gin__ import dynamic_registration', *_gin(lines)]
  assert len(lines) <= 10
  gin = folder / 'run.gin'
  gin.write_text('\n'.join(lines) + '\n')
  cfg = config.build(grpo, [f'--gin_file={gin}', '--workdir=unused'])
  return dataclasses.replace(cfg.task, name=kind)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.usefixtures('quick_compilation')
def test_each_is_a_running_step_in_ten_lines(tmp_path, capsys):
  task, *others = [_task_of(kind, tmp_path) for kind in _RUNS]
  changes = {
    **{'num_prompts': 4, 'group_size': 2, 'steps_per_rollout': 1},
    **{'max_len': 4, 'num_steps': 1, 'kl_coef': 0.0},
    **{'final_problems': 1, 'final_samples': 1, 'keep_completions_every': 1},
  }
  cfg = grpo_config(
    tmp_path / 'run',
    task=task,
    others=tuple(rewards.Scenario(task=other) for other in others),
    **changes,
  )
  grpo.run(cfg)
  (row,) = metrics.read_metrics(cfg.workdir)
  assert all(f'{kind}/correct' in row for kind in _RUNS)
  assert 'cannot be used' not in capsys.readouterr().err


def _gin(lines):
  """gin imports one name a line."""
  for line in lines:
    head, mark, names = line.partition(' import ')
    yield from (
      [f'{head}{mark}{n}' for n in names.split(', ')] if mark else [line]
    )


def test_a_column_says_how_hard_a_problem_is(tmp_path):
  path = _jsonl(
    tmp_path / 't.jsonl',
    [
      {'question': f'q{i}', 'answer': i, 'meta': {'level': f'Level {i % 3}'}}
      for i in range(9)
    ],
  )
  task = table.Table(path=path, verifier=_NUMBERS, level_column='meta.level')
  levels = {e.question: task.level(e.target) for e in task.examples('train')}
  assert levels
  assert all(v == f'Level {int(q[1:]) % 3}' for q, v in levels.items())
  problems = stream.mixed([task], [1.0], 0, Curriculum(by='level'))
  assert len(problems.next(12)) == 12
  plain = table.Table(path=path, verifier=_NUMBERS)
  with pytest.raises(ValueError, match='has no levels'):
    stream.mixed([plain], [1.0], 0, Curriculum(by='level'))
