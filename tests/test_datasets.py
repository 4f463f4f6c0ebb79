"""Stored problems and their stream, without TensorFlow."""

import dataclasses
import json
import os
import pathlib
import pickle
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds
from helpers import write_lines

from rlzero.scoring import reward_pool
from rlzero.tasks import base
from rlzero.tasks.datasets import gsm8k, materialise, math, stream

EXAMPLES = [base.Example(f'u{i}', f'{i} + 1 = é', str(i + 1)) for i in range(7)]


@dataclasses.dataclass(frozen=True)
class Sums:
  """Seven problems to train on, two to test."""

  num_train: int = 7
  name: str = 'sums'

  def examples(self, split):
    sizes = {'train': self.num_train, 'validation': 0, 'test': 2}
    return EXAMPLES[: sizes[split]]

  def extract(self, text):
    return text.split()[-1]

  def verify(self, answer, target):
    return answer == target

  def same(self, first, second):
    return int(first) == int(second)

  def count_tries(self, text):
    return text.count('=')


def test_materialised_task_is_the_task(tmp_path):
  folder = materialise.materialise(Sums(), str(tmp_path))
  assert (folder / 'dataset_info.json').exists()
  task = pickle.loads(
    pickle.dumps(materialise.Materialised(Sums(), str(tmp_path)))
  )
  assert isinstance(task, base.Task)
  assert task.examples('train') == EXAMPLES
  assert task.examples('test') == EXAMPLES[:2]
  assert task.extract('so 8') == '8' and task.verify('8', '8')
  assert task.same('8', '08') and task.count_tries('a=b=c') == 2
  with pytest.raises(ValueError, match="no split 'validation'; it has"):
    task.examples('validation')
  with pytest.raises(ValueError, match='may hold other problems; remove it'):
    materialise.materialise(Sums(num_train=3), str(tmp_path))


def test_not_materialised(tmp_path):
  with pytest.raises(FileNotFoundError, match='holds no dataset; write it'):
    materialise.Materialised(Sums(), str(tmp_path)).examples('train')


@pytest.fixture
def gsm8k_dir(tmp_path, monkeypatch):
  """GSM8K as TFDS's own builder writes it, of fewer problems."""

  def fetch(self, urls):
    paths = {}
    for split, count in zip(urls, (40, 5, 2, 2), strict=True):
      paths[split] = tmp_path / f'{split}.jsonl'
      with paths[split].open('w') as file:
        for i in range(count):
          row = {
            'question': f'{split}: {i} apples and 1000 more?',
            'answer': f'{i}+1000=<<{i}+1000>>\n#### {i + 1000:,}',
          }
          file.write(json.dumps(row) + '\n')
    return paths

  monkeypatch.setattr(
    tfds.download.DownloadManager, 'download_and_extract', fetch
  )
  gsm8k.prepare(str(tmp_path / 'tfds'))
  return str(tmp_path / 'tfds')


def test_gsm8k(gsm8k_dir):
  task = gsm8k.GSM8K(gsm8k_dir)
  assert isinstance(task, base.Task)
  train, validation, test = (
    task.examples(s) for s in ('train', 'validation', 'test')
  )
  assert len(train) + len(validation) == 40 and len(test) == 5
  assert validation and all(base.bucket(e.question) < 10 for e in validation)
  assert not {e.question for e in train} & {e.question for e in validation}
  assert len({e.uid for e in train + validation + test}) == 45
  targets = {e.question: e.target for e in test}
  assert targets['test: 3 apples and 1000 more?'] == '1,003'
  assert task.verify('$1003.00', '1,003')
  assert task.verify('1,003 apples', '1,003')
  for wrong in ('1004', '3+1000', '1003 or 1004', '', 'many'):
    assert not task.verify(wrong, '1,003')
  assert task.extract('3+1000 = 1,003.\n#### 1,003') == '1,003'
  request = reward_pool.Request('gsm8k', 'that makes $1,003.', '1,003')
  with reward_pool.RewardPool({'gsm8k': task}, 'chat', 1) as pool:
    assert pool.score([request])[0].accuracy == 1.0
    assert pool.classes('gsm8k', ['1/2', '0.5', 'x']) == [0, 0, 1]


def test_gsm8k_from_files(tmp_path):
  row = {'question': '1 and 2?', 'answer': '1+2=<<1+2=3>>3\n#### 3', 'idx': 0}
  write_lines(tmp_path / 'test.jsonl', [row])
  gsm8k.prepare(str(tmp_path / 'tfds'), files=str(tmp_path))
  (example,) = gsm8k.GSM8K(str(tmp_path / 'tfds')).examples('test')
  assert (example.question, example.target) == ('1 and 2?', '3')
  with pytest.raises(FileNotFoundError, match='neither train.jsonl nor test'):
    gsm8k.prepare(str(tmp_path / 'other'), files=str(tmp_path / 'tfds'))


def test_gsm8k_bad_input(tmp_path):
  with pytest.raises(
    FileNotFoundError, match='gsm8k/1.0.0 holds no dataset; run'
  ):
    gsm8k.GSM8K(str(tmp_path)).examples('train')
  with pytest.raises(ValueError, match="no split 'dev'"):
    gsm8k.GSM8K(str(tmp_path)).examples('dev')


def test_gsm8k_in_a_format_that_needs_tensorflow(gsm8k_dir):
  info = pathlib.Path(gsm8k_dir, 'gsm8k', '1.0.0', 'dataset_info.json')
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  with pytest.raises(FileNotFoundError, match='holds tfrecord files'):
    gsm8k.GSM8K(gsm8k_dir).examples('train')


def test_tensorflow_is_not_loaded(tmp_path):
  code = (
    'import sys\n'
    'sys.path.insert(0, sys.argv[1])\n'
    'import test_datasets as t\n'
    't.materialise.materialise(t.Sums(), sys.argv[2])\n'
    't.gsm8k.GSM8K()\n'
    't.materialise.Materialised(t.Sums(), sys.argv[2]).examples("train")\n'
    'print("tensorflow" in sys.modules)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code, os.path.dirname(__file__), str(tmp_path)],
    capture_output=True,
    text=True,
  )
  assert done.stdout.endswith('False\n'), done.stderr


def test_stream_counts_draws_and_reshuffles():
  drawn = stream.prompt_stream(EXAMPLES, seed=0).next(21)
  assert [draw for draw, _ in drawn] == list(range(21))
  epochs = [[e for _, e in drawn[i : i + 7]] for i in (0, 7, 14)]
  for epoch in epochs:
    assert sorted(epoch, key=lambda e: e.uid) == EXAMPLES
  assert epochs[0] != epochs[1]
  again = stream.prompt_stream(EXAMPLES, seed=0)
  assert again.next(5) + again.next(16) == drawn
  assert stream.prompt_stream(EXAMPLES, seed=1).next(21) != drawn


def test_stream_goes_on_from_a_saved_position():
  first = stream.prompt_stream(EXAMPLES, seed=3)
  first.next(9)
  state = json.loads(json.dumps(first.get_state()))
  second = stream.prompt_stream(EXAMPLES, seed=3)
  second.set_state(state)
  assert second.next(8) == first.next(8)
  assert second.get_state() == first.get_state()


def test_stream_bad_input():
  with pytest.raises(ValueError, match='empty list of problems'):
    stream.prompt_stream([], seed=0)
  state = stream.prompt_stream(EXAMPLES, seed=0).get_state()
  for other in (
    stream.prompt_stream(EXAMPLES[:3], seed=0),
    stream.prompt_stream(EXAMPLES, seed=1),
  ):
    with pytest.raises(ValueError, match='continue with the settings'):
      other.set_state(state)


def test_math_from_its_files(tmp_path, capsys):
  lines = [
    {
      'problem': f' What is {i}/2? ',
      'answer': f'\\frac{{{i}}}{{2}}',
      'level': 1,
    }
    for i in range(210)
  ]
  for name, part in (('train', lines[:200]), ('test', lines[200:])):
    (tmp_path / f'{name}.jsonl').write_text(
      ''.join(json.dumps(line) + '\n' for line in part)
    )
  task = math.MATH(str(tmp_path))
  splits = {s: task.examples(s) for s in ('train', 'validation', 'test')}
  assert [len(found) for found in splits.values()] == [196, 4, 10]
  first = splits['test'][0]
  assert first == base.Example(
    'math-test-0', 'What is 200/2?', '\\frac{200}{2}'
  )
  answer = task.extract('It is \\boxed{\\dfrac{400}{4}}.')
  assert task.verify(answer, first.target)
  assert not task.verify('24', first.target)
  for line, message in (
    ('{"problem": "?"}', "test.jsonl:2 has no 'answer'"),
    ('{"problem": "?", "answer": ""}', "test.jsonl:2 has '' as its 'answer'"),
    ('{"problem": " ", "answer": "2"}', "test.jsonl:2 has ' ' as its 'prob"),
    ('{"problem": "?", "answer": null}', 'test.jsonl:2 has None as its'),
  ):
    (tmp_path / 'test.jsonl').write_text(f'\n{line}\n')
    with pytest.raises(ValueError, match=message):
      task.examples('test')
  line = '{"problem": "?", "answer": 2.50}\n'
  (tmp_path / 'test.jsonl').write_text(line + line)
  assert [e.target for e in task.examples('test')] == ['2.50', '2.50']
  assert 'repeats 1 of its questions, the first at' in capsys.readouterr().err
  with pytest.raises(ValueError, match="no split 'dev'"):
    task.examples('dev')
