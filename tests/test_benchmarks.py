"""Evaluation sets from files with the columns that the hub's have."""

import base64
import csv
import json
import pickle
import zlib

import huggingface_hub
import pyarrow
import pytest
from huggingface_hub import errors
from pyarrow import parquet

from rlzero import evaluate
from rlzero.evaluation import sampler, suites
from rlzero.rollout import encoding
from rlzero.runtime import config
from rlzero.scoring import reward_pool
from rlzero.tasks import base, execute
from rlzero.tasks.datasets import benchmarks, code, gsm8k
from rlzero.train import folders

_MATH = {
  'problem': 'P',
  'solution': 'S',
  'answer': r'\frac{1}{2}',
  'subject': 'Algebra',
  'level': 2,
  'unique_id': 'test/algebra/1.json',
}
_PUBLIC = json.dumps([{'input': '1\n', 'output': '2\n', 'testtype': 'stdin'}])
_PRIVATE = json.dumps([{'input': '5\n', 'output': '6\n', 'testtype': 'stdin'}])
_PACKED = base64.b64encode(zlib.compress(pickle.dumps(_PRIVATE))).decode()
_LIVECODEBENCH = {
  'question_title': 'T',
  'question_content': 'Add one.',
  'platform': 'atcoder',
  'question_id': 'abc_a',
  'contest_date': '2024-09-01T00:00:00',
  'starter_code': '',
  'public_test_cases': _PUBLIC,
  'private_test_cases': _PACKED,
  'metadata': '{}',
}
_CODEFORCES = {
  'id': '1A',
  'title': 'Sum',
  'description': 'Add.',
  'input_format': 'a b',
  'output_format': 'sum',
  'note': None,
  'examples': [{'input': '1 2', 'output': '3'}],
  'official_tests': [{'input': '1 2', 'output': '3'}],
  'official_tests_complete': True,
  'rating': 1500,
  'generated_checker': None,
  'input_mode': 'stdio',
  'time_limit': 2.0,
  'memory_limit': 256.0,
}


def _jsonl(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def _parquet(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
  """A hub that has what is put into its folder, and a list of visits."""
  root, visits = tmp_path / 'hub', []

  def download(repo, repo_type, allow_patterns, token):
    visits.append(repo)
    if not (root / repo).exists():
      raise errors.LocalEntryNotFoundError('offline')
    return str(root / repo)

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
  return root, visits


def test_aime_is_fetched_once(hub, tmp_path):
  root, visits = hub
  _parquet(
    root / 'HuggingFaceH4/aime_2024/data/train-00000-of-00001.parquet',
    [
      {
        'id': 60 + i,
        'problem': f'Find {i}.',
        'solution': '',
        'answer': f'{i:03}',
      }
      for i in range(3)
    ],
  )
  task = benchmarks.AIME(2024, str(tmp_path / 'tfds'))
  assert isinstance(task, base.Task)
  found = task.examples('test')
  assert found == task.examples('test') and len(visits) == 1
  assert found[1] == base.Example('aime2024-1', 'Find 1.', '001')
  assert task.extract(r'so \boxed{025}') == '025'
  assert task.verify('25', '025') and not task.verify('25 or 26', '025')
  _jsonl(
    root / 'opencompass/AIME2025/aime2025-I.jsonl',
    [{'question': 'Q', 'answer': '70'}],
  )
  _jsonl(
    root / 'opencompass/AIME2025/aime2025-II.jsonl',
    [{'question': 'R', 'answer': 468}],
  )
  later = benchmarks.AIME(2025, str(tmp_path / 'tfds')).examples('test')
  assert [(e.question, e.target) for e in later] == [('Q', '70'), ('R', '468')]


@pytest.mark.parametrize(
  ('rows', 'message'),
  [
    ([{'problem': 'P', 'answer': None}], r"jsonl:1 has None as its 'answer'"),
    ([{'problem': 'P', 'answer': ' '}], r"jsonl:1 has ' ' as its 'answer'"),
    ([{'problem': '', 'answer': '1'}], r"jsonl:1 has '' as its 'problem'"),
    ([{'problem': 'P', 'answer': '1'}] * 2, "id 'a' twice, as problems 1 and"),
  ],
)
def test_a_problem_that_no_answer_could_solve(hub, tmp_path, rows, message):
  root, _ = hub
  rows = [{'unique_id': 'a', **row} for row in rows]
  _jsonl(root / 'HuggingFaceH4/MATH-500/test.jsonl', rows)
  with pytest.raises(ValueError, match=message):
    benchmarks.MATH500(str(tmp_path / 'tfds')).examples('test')
  assert not (tmp_path / 'tfds' / 'problems').exists()


def test_math500(hub, tmp_path):
  root, _ = hub
  _jsonl(root / 'HuggingFaceH4/MATH-500/test.jsonl', [_MATH])
  task = benchmarks.MATH500(str(tmp_path / 'tfds'))
  (example,) = task.examples('test')
  assert example == base.Example('test/algebra/1.json', 'P', r'\frac{1}{2}')
  with reward_pool.RewardPool({'math500': task}, 'chat', 1) as pool:
    texts = (
      r'It is $\boxed{0.5}$.',
      r'\boxed{\dfrac12}',
      r'\boxed{2}',
      'dunno(',
    )
    verdicts = pool.score(
      [reward_pool.Request('math500', t, example.target) for t in texts]
    )
  assert [v.correct for v in verdicts] == [True, True, False, False]


def _gpqa(folder, drop=None):
  row = {
    'Record ID': 'rec1',
    'Question': 'Which one {x}?',
    'Correct Answer': 'this ',
    'Incorrect Answer 1': 'that',
    'Incorrect Answer 2': 'no,\nnot it',
    'Incorrect Answer 3': 'none',
    'Subdomain': 'Chemistry',
  }
  rows = [row | {'Record ID': f'rec{i}'} for i in range(40)]
  for one in rows:
    one.pop(drop, None)
  folder.mkdir(parents=True)
  with open(folder / 'gpqa_diamond.csv', 'w', newline='') as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)


def test_gpqa_shuffles_its_choices_by_uid(hub, tmp_path):
  root, _ = hub
  _gpqa(root / 'Idavidrein/gpqa')
  task = benchmarks.GPQADiamond(str(tmp_path / 'tfds'))
  found = task.examples('test')
  for example in found:
    assert f'{example.target}) this\n' in example.question + '\n'
    assert 'Which one {x}?' in example.question
  share = [[e.target for e in found].count(letter) for letter in 'ABCD']
  assert sum(share) == 40 and min(share) > 2
  again = benchmarks.GPQADiamond(str(tmp_path / 'other')).examples('test')
  assert again == found
  for text, letter in {
    'Answer: C': 'C',
    'The answer is (b).': 'B',
    r'thus \boxed{\text{D}}': 'D',
    '**Answer:** A': 'A',
    '<answer> B </answer>': 'B',
    'Answer: A, no wait. Answer: D': 'D',
    'Beyond me': None,
  }.items():
    assert task.extract(text) == letter, text
  assert task.verify('(c)', 'C') and not task.verify('AC', 'A')


def _program(body):
  return f'Here:\n```python\n{body}\n```'


def test_livecodebench_runs_public_and_private_tests(hub, tmp_path):
  root, _ = hub
  call = json.dumps(
    [{'input': '1\n2', 'output': '3', 'testtype': 'functional'}]
  )
  function = _LIVECODEBENCH | {
    'question_id': 'lc1',
    'starter_code': 'class Solution:\n  def add(self, a, b):',
    'public_test_cases': call,
    'private_test_cases': call,
    'metadata': '{"func_name": "add"}',
  }
  old = _LIVECODEBENCH | {
    'question_id': 'old',
    'contest_date': '2023-05-01T00:00:00',
  }
  _jsonl(
    root / 'livecodebench/code_generation_lite/test.jsonl',
    [_LIVECODEBENCH, function, old],
  )
  task = code.LiveCodeBench(str(tmp_path / 'tfds'))
  first, second = task.examples('test')
  assert first.uid == 'abc_a' and 'def add' in second.question
  requests = [
    reward_pool.Request(
      task.name, _program('print(int(input()) + 1)'), first.target
    ),
    # Right on the public test alone.
    reward_pool.Request(task.name, _program('input(); print(2)'), first.target),
    reward_pool.Request(
      task.name,
      _program('class Solution:\n  def add(self, a, b): return a + b'),
      second.target,
    ),
    reward_pool.Request(task.name, 'print(int(input()) + 1)', first.target),
    reward_pool.Request(task.name, _program('while True: pass'), first.target),
  ]
  with reward_pool.RewardPool(
    {task.name: task}, 'chat', 2, deadline_s=3
  ) as pool:
    verdicts = pool.score(requests)
  assert [v.correct for v in verdicts] == [True, False, True, False, False]
  assert [v.outcome for v in verdicts] == [
    'accepted',
    'wrong',
    'accepted',
    '',
    'time',
  ]
  # The program's own limit ends it: the task's deadline is longer than the
  # pool's, so that a slow program is a verdict and no lost worker.
  assert verdicts[4].status == 'ok'


def test_a_harmful_pickle_is_refused():
  class Harm:
    def __reduce__(self):
      return print, ('harm',)

  packed = base64.b64encode(zlib.compress(pickle.dumps(Harm()))).decode()
  with pytest.raises(
    ValueError, match='pickle of something else than one string'
  ):
    code._unpacked(packed)


def test_codeforces_has_ratings_and_leaves_out_what_it_cannot_judge(
  hub, tmp_path
):
  root, _ = hub
  rows = [
    _CODEFORCES,
    _CODEFORCES | {'id': 'unrated', 'rating': None},
    _CODEFORCES | {'id': 'checked', 'generated_checker': 'code'},
    _CODEFORCES | {'id': 'partial', 'official_tests_complete': False},
    _CODEFORCES | {'id': 'file', 'input_mode': 'file'},
  ]
  _parquet(root / 'open-r1/codeforces/data/test-00000-of-00001.parquet', rows)
  task = code.Codeforces(str(tmp_path / 'tfds'))
  (example,) = task.examples('test')
  assert example.uid == '1A' and task.rating(example.target) == 1500
  assert task.verify('print(sum(map(int, input().split())))', example.target)
  assert not task.verify('print(4)', example.target)


def test_a_data_set_out_of_reach_says_how_to_bring_it_by_hand(hub, tmp_path):
  _, visits = hub
  data_dir = tmp_path / 'tfds'
  task = benchmarks.MATH500(str(data_dir))
  with pytest.raises(FileNotFoundError) as caught:
    task.examples('test')
  assert 'cannot be reached' in str(caught.value)
  assert 'put *.jsonl of https://huggingface.co/datasets/' in str(caught.value)
  by_hand = data_dir / 'math500' / 'raw'
  assert str(by_hand) in str(caught.value)
  row = {'problem': 'P', 'answer': '1', 'unique_id': 'u'}
  _jsonl(by_hand / 'test.jsonl', [row])
  assert task.examples('test') == [base.Example('u', 'P', '1')]
  assert len(visits) == 1


def test_a_missing_column_is_named(hub, tmp_path):
  root, _ = hub
  _gpqa(root / 'Idavidrein/gpqa', drop='Incorrect Answer 2')
  task = benchmarks.GPQADiamond(str(tmp_path / 'tfds'))
  with pytest.raises(
    ValueError, match=r"csv:2 has no column 'Incorrect Answer 2'; it has '"
  ):
    task.examples('test')
  # Nothing half done is left: a mended file is read.
  assert not (tmp_path / 'tfds' / 'problems').exists()


def test_other_splits_and_years():
  with pytest.raises(ValueError, match='math500 has the split test alone'):
    benchmarks.MATH500().examples('train')
  with pytest.raises(ValueError, match='year is 2023; it must be one of 2024'):
    benchmarks.AIME(2023)


def test_suite_r1_has_the_papers_k():
  found = {b.name: b for b in suites.named('r1')}
  assert {name: b.num_samples for name, b in found.items()} == {
    'aime2024': 64,
    'aime2025': 64,
    'math500': 16,
    'gpqa_diamond': 64,
    'gsm8k': 16,
    'livecodebench': 8,
    'codeforces': 16,
  }
  for benchmark in found.values():
    sampling = benchmark.sampling
    assert (sampling.temperature, sampling.top_p) == (0.6, 0.95)
    assert sampling.max_len == 32_768
  assert found['codeforces'].deadline_s == execute.DEADLINE_S
  assert {b.template.kind for b in suites.named('r1_zero')} == {'r1_zero'}
  with pytest.raises(ValueError, match="no suite 'r2'; choose one of r1, r1_"):
    suites.named('r2')


class _Model:
  """Writes a right answer to each benchmark but one, half of the time."""

  def about(self):
    return {'checkpoint': 'none', 'sha256': '0' * 64}

  def fingerprint(self, template, question):
    return template.render(question, json.dumps)

  def sample(self, job, finished, on_finished):
    samples = dict(finished)
    for i in range(job.size):
      question = job.questions[i // job.num_samples]
      if 'multiple choice' in question:
        text = 'Answer: A'
      elif 'Python' in question:
        text = _program('print(sum(map(int, input().split())) + PLUS)')
        text = text.replace('PLUS', '0' if question.startswith('Sum') else '1')
      else:
        text = r'\boxed{0.5}'
      samples[i] = encoding.Sample(text if i % 2 else 'dunno', 5, i % 8 == 0)
      on_finished(i, samples[i])
    return [samples[i] for i in range(job.size)]


@pytest.mark.slow
def test_the_papers_suite_in_one_command(hub, tmp_path, monkeypatch, capsys):
  root, _ = hub
  monkeypatch.setenv('HOME', str(tmp_path))  # where data goes by default
  aime = [{'problem': f'Find {i}.', 'answer': '1'} for i in range(2)]
  _parquet(root / 'HuggingFaceH4/aime_2024/data/train-0.parquet', aime)
  later = [{'question': 'Q', 'answer': '0.5'}, {'question': 'R', 'answer': '7'}]
  _jsonl(root / 'opencompass/AIME2025/aime2025-I.jsonl', later)
  math = [_MATH, _MATH | {'unique_id': 'other'}]
  _jsonl(root / 'HuggingFaceH4/MATH-500/test.jsonl', math)
  _gpqa(root / 'Idavidrein/gpqa')
  live = [_LIVECODEBENCH, _LIVECODEBENCH | {'question_id': 'b'}]
  _jsonl(root / 'livecodebench/code_generation_lite/test.jsonl', live)
  forces = [_CODEFORCES, _CODEFORCES | {'id': '1B', 'rating': 1700}]
  _parquet(root / 'open-r1/codeforces/data/test-0.parquet', forces)
  words = [base.Example(f'g{i}', 'Half of 1?', '0.5') for i in range(2)]
  monkeypatch.setattr(gsm8k.GSM8K, 'examples', lambda self, split: words)
  monkeypatch.setattr(sampler, 'load', lambda path: _Model())
  monkeypatch.setattr(folders, 'load_tokenizer', lambda path: None)
  monkeypatch.setattr(encoding, 'check_lengths', lambda *_: None)
  flags = ['--checkpoint=x', '--suite=r1', '--num_problems=2']
  config.main(evaluate, [*flags, f'--workdir={tmp_path}/out', '--json'])
  result = json.loads(capsys.readouterr().out)
  assert result == json.loads(
    (tmp_path / 'out/evaluations/suite.json').read_text()
  )
  found = result['benchmarks']
  passed = {name: metrics['pass@1'] for name, metrics in found.items()}
  assert passed.pop('gpqa_diamond') in (0, 0.25, 0.5)
  assert passed == {
    'aime2024': 0,
    'aime2025': 0.25,
    'math500': 0.5,
    'gsm8k': 0.5,
    'livecodebench': 0.5,
    'codeforces': 0.5,
  }
  assert {f['truncated'] for f in found.values()} == {0.125}
  assert found['livecodebench']['unparsable'] == 0.5
  assert found['livecodebench']['cons@k'] == {'8': 1.0}
  # Half of two problems, 1500 and 1700, are solved.
  assert found['codeforces']['rating'] == pytest.approx(1600)
  # The same samples again, in words.
  config.main(evaluate, ['--suite=r1', *flags[2:], f'--workdir={tmp_path}/out'])
  text = capsys.readouterr().out
  assert '| codeforces | 50.0% [' in text and '2 x 16 | 1600 |' in text
  assert '| measured here | 0.0 | 0.0 | 50.0 | ' in text
  assert '| OpenAI o1-1217 (published) | 79.2 | – | 96.4 | 75.7 |' in text
