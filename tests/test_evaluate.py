"""Metrics of an evaluation against the generations they come from."""

import dataclasses
import functools
import json
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import as_hosts

from rlzero import evaluate
from rlzero.evaluation import measure, published, sampler, suites
from rlzero.reporting import web_page
from rlzero.rollout import encoding, scheduler
from rlzero.rollout.sampling import Finish, Sampling
from rlzero.runtime import sharding
from rlzero.scoring import grade, reward_pool
from rlzero.tasks import countdown
from rlzero.text.template import Template
from rlzero.train import folders

pytestmark = pytest.mark.model

_TINY = folders.embedded('tiny_base')


def _config(**changes):
  settings = {
    'checkpoint': _TINY,
    'num_problems': 3,
    'num_samples': 4,
    'sampling': Sampling(max_len=48, num_slots=12, temperature=0.6, top_p=0.95),
    'num_workers': 1,
    **changes,
  }
  return evaluate.Config(**settings)


def test_metrics_follow_from_the_generations(tmp_path, capsys):
  evaluate.run(_config(workdir=str(tmp_path), json=True))
  printed = json.loads(capsys.readouterr().out)
  written = json.loads((tmp_path / 'evaluations/evaluation.json').read_text())
  assert printed == written
  lines = (tmp_path / 'evaluations/evaluation.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert len(records) == 12
  correct = np.array([r['correct'] for r in records])
  assert printed['pass@1'] == pytest.approx(correct.mean())
  assert printed['pass@k']['4'] == pytest.approx(
    correct.reshape(3, 4).any(axis=1).mean()
  )
  lengths = np.array([r['len'] for r in records])
  assert printed['completion_len'] == pytest.approx(lengths.mean())
  assert printed['truncated'] == pytest.approx((lengths >= 48).mean(), abs=0.1)
  assert printed['accuracy_by_len'][-1] == [48, pytest.approx(correct.mean())]
  # Each verdict again, by the task itself.
  task = countdown.Countdown()
  targets = {e.uid: e.target for e in task.examples('test')}
  for record in records:
    answer = task.extract(record['completion'])
    right = answer is not None and task.verify(answer, targets[record['uid']])
    assert right == record['correct']
    assert record['strict'] <= record['correct']


def test_progress_is_a_line_at_every_tenth(capsys):
  show = measure.progress('evaluate before')
  for done in range(1, 51):
    show(done, 50)
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 10
  assert lines[4].startswith('evaluate before 25/50 completions  0m00s left')


def test_same_seed_same_generations(tmp_path):
  for name, seed in (('a', 0), ('b', 0), ('c', 1)):
    evaluate.run(_config(workdir=str(tmp_path / name), seed=seed, json=True))
  a, b, c = (
    (tmp_path / name / 'evaluations/evaluation.jsonl').read_text()
    for name in 'abc'
  )
  assert a == b != c


def test_examples_are_a_fixed_sample_of_the_split():
  task = countdown.Countdown()
  few = measure.examples(task, 'test', 5)
  everything = measure.examples(task, 'test')
  assert few == everything[:5]
  assert {e.uid for e in everything} == {e.uid for e in task.examples('test')}
  assert [e.uid for e in few] != [e.uid for e in task.examples('test')[:5]]


def test_score_grades_lenient_and_strict_apart():
  loaded = folders.load_model(_TINY)
  example = countdown.Countdown().examples('test')[0]
  task = countdown.Countdown()
  numbers, _, target = example.question.partition(' make ')
  first, second, third = numbers.split()
  right = next(
    text
    for a, b, c in (
      (first, second, third),
      (first, third, second),
      (second, third, first),
    )
    for x in '+-*'
    for y in '+-*'
    for text in (f'( {a} {x} {b} ) {y} {c}', f'{c} {y} ( {a} {x} {b} )')
    if task.verify(text, example.target)
  )
  texts = (
    f'<think> {numbers} ok </think> <answer> {right} </answer>',
    f'<answer> {right} </answer>',
    f'<think> no </think> <answer> {numbers.split()[0]} </answer>',
  )
  completions = [
    scheduler.Completion(
      np.array([*loaded.tokenizer.encode(text), 1]),
      np.zeros(1),
      Finish.EOS,
    )
    for text in texts
  ]
  with reward_pool.RewardPool({task.name: task}, 'short', 1) as pool:
    got = grade.score(
      pool,
      task,
      loaded.tokenizer,
      [example],
      [scheduler.Prompt(0, [1])],
      completions,
    )
  facts = [(g['correct'], g['strict'], g['format']) for g in got]
  assert facts == [(True, True, 1.0), (True, False, 0.0), (False, False, 1.0)]


def test_split_without_problems():
  with pytest.raises(ValueError, match="'train' split of task 'none' has no"):
    measure.examples(countdown.Countdown(max_ways=0, name='none'), 'train')


def test_template_of_a_chat_model_on_one_without():
  cfg = _config(template=Template('chat'))
  with pytest.raises(ValueError, match='no chat template'):
    evaluate.run(cfg)


def test_num_samples_out_of_range():
  with pytest.raises(ValueError, match='num_samples is 0'):
    _config(num_samples=0)


_SUITE = tuple(
  suites.Benchmark(
    task=countdown.Countdown(name=name),
    template=Template('short'),
    num_samples=4,
    num_problems=3,
    sampling=Sampling(max_len=48, num_slots=12, temperature=0.6, top_p=0.95),
  )
  for name in ('first', 'second')
)


def _suite(workdir):
  return json.loads((workdir / 'evaluations/suite.json').read_text())


@pytest.fixture(scope='module')
def suite(tmp_path_factory):
  """A suite of two benchmarks that nothing disturbed."""
  workdir = tmp_path_factory.mktemp('suite')
  evaluate.run(_config(workdir=str(workdir), benchmarks=_SUITE, json=True))
  return workdir


def test_suite_says_what_it_measured_and_how(suite):
  result = _suite(suite)
  assert list(result['benchmarks']) == ['first', 'second']
  for metrics in result['benchmarks'].values():
    assert metrics['num_samples'] == 4 and metrics['template'] == 'short'
    assert metrics['seed'] == 0
    low, high = metrics['pass@1_interval']
    assert low <= metrics['pass@1'] <= high
    assert 0 <= metrics['truncated'] <= 1 and 0 <= metrics['unparsable'] <= 1
    assert 0 <= metrics['cons@k_ties'] <= 1
    assert np.mean(list(metrics['pass@1_by_problem'].values())) == (
      pytest.approx(metrics['pass@1'])
    )
  assert len(result['model']['sha256']) == 64
  assert result['versions']['jax'] and 'commit' in result
  # Without a suite the same metrics, flat.
  assert (
    result['benchmarks']['first']['pass@1']
    == (result['benchmarks']['second']['pass@1'])
  )


def test_killed_suite_goes_on_to_the_same_metrics(suite, tmp_path, monkeypatch):
  append, calls = sampler.SampleLog.append, []

  def dies(self, uid, index, sample):
    calls.append(uid)
    if len(calls) == 18:
      raise KeyboardInterrupt
    append(self, uid, index, sample)

  cfg = _config(workdir=str(tmp_path), benchmarks=_SUITE, json=True)
  with monkeypatch.context() as patched:
    patched.setattr(sampler.SampleLog, 'append', dies)
    with pytest.raises(KeyboardInterrupt):
      evaluate.run(cfg)
  written = sum(
    len(path.read_text().splitlines()) - 1
    for path in (tmp_path / 'samples').iterdir()
  )
  assert written == 17
  del calls[:]
  monkeypatch.setattr(
    sampler.SampleLog,
    'append',
    lambda self, *what: calls.append(what) or append(self, *what),
  )
  evaluate.run(cfg)
  assert len(calls) == 24 - 17  # what was there is not drawn again
  assert _suite(tmp_path) == _suite(suite)


_GIN = """
from __gin__ import dynamic_registration
from rlzero import evaluate
from rlzero.evaluation import suites
from rlzero.rollout import sampling
from rlzero.tasks import countdown
from rlzero.text import template
evaluate.Config.benchmarks = [@a/suites.Benchmark(), @b/suites.Benchmark()]
suites.Benchmark.task = @countdown.Countdown()
suites.Benchmark.template = @template.Template()
suites.Benchmark.sampling = @sampling.Sampling()
suites.Benchmark.num_samples = 4
suites.Benchmark.num_problems = 40
sampling.Sampling.max_len = 64
sampling.Sampling.num_slots = 16
template.Template.kind = 'short'
a/countdown.Countdown.name = 'first'
b/countdown.Countdown.name = 'second'
"""


@pytest.mark.nightly
def test_a_killed_process_goes_on_to_the_same_files(tmp_path):
  """SIGKILL at two random moments; every sample is kept or drawn again."""
  (tmp_path / 'suite.gin').write_text(_GIN)

  def start(name):
    return subprocess.Popen(
      [
        *(sys.executable, '-m', 'rlzero.evaluate', f'--checkpoint={_TINY}'),
        *(f'--gin_file={tmp_path}/suite.gin', f'--workdir={tmp_path}/{name}'),
      ],
      stdout=subprocess.DEVNULL,
    )

  def kept(name):
    """Lines of samples on disk, headings included."""
    return sum(
      path.read_bytes().count(b'\n')
      for path in (tmp_path / name).glob('samples/*.jsonl')
    )

  assert start('whole').wait() == 0
  rng = random.Random()
  whole = kept('whole')
  # One in the first benchmark and one in the second.
  moments = rng.randrange(2, whole // 2), rng.randrange(whole // 2 + 2, whole)
  for moment in moments:
    process = start('killed')
    while kept('killed') < moment and process.poll() is None:
      time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL, moments
    assert moment <= kept('killed') < whole, moments
  assert start('killed').wait() == 0
  files = sorted(p.name for p in (tmp_path / 'whole/evaluations').iterdir())
  files.remove('lock')
  assert files == ['first.jsonl', 'second.jsonl', 'suite.json']
  for name in files:
    one, two = (
      tmp_path / d / 'evaluations' / name for d in ('whole', 'killed')
    )
    assert one.read_bytes() == two.read_bytes(), (name, moments)


@pytest.mark.slow
def test_samples_on_a_mesh_are_those_of_one_device(suite, tmp_path):
  cfg = _config(workdir=str(tmp_path), benchmarks=_SUITE, json=True)
  evaluate.run(dataclasses.replace(cfg, mesh=sharding.Mesh(data=2, fsdp=4)))
  for name in ('first', 'second'):
    one, two = (
      sorted((d / f'samples/{name}.jsonl').read_text().splitlines())
      for d in (suite, tmp_path)
    )
    assert one == two
  assert _suite(tmp_path)['benchmarks'] == _suite(suite)['benchmarks']


def test_samples_on_disk_are_scored_without_a_model(suite, tmp_path):
  shutil.copytree(suite / 'samples', tmp_path / 'samples')
  cfg = _config(
    checkpoint='', workdir=str(tmp_path), benchmarks=_SUITE, json=True
  )
  evaluate.run(cfg)
  assert _suite(tmp_path)['benchmarks'] == _suite(suite)['benchmarks']
  more = tuple(dataclasses.replace(b, num_samples=8) for b in _SUITE)
  with pytest.raises(
    ValueError, match='4 samples of .* num_samples is 8; give'
  ):
    evaluate.run(dataclasses.replace(cfg, benchmarks=more))


def test_hosts_take_up_the_samples_that_all_of_them_see(monkeypatch, tmp_path):
  paths = [str(tmp_path / name) for name in ('first.jsonl', 'second.jsonl')]
  with sampler.SampleLog(paths[0], {'seed': 0}) as log:
    for i in range(3):
      log.append('a', i, encoding.Sample(f'sample {i}', 2, False))
  # A network disk may show another host less.
  header, *lines = (tmp_path / 'first.jsonl').read_text().splitlines(True)
  seen = header + ''.join(lines[:2]) + lines[2][:9]
  (tmp_path / 'second.jsonl').write_text(seen)
  logs = as_hosts(
    monkeypatch,
    [functools.partial(sampler.SampleLog, p, {'seed': 0}) for p in paths],
  )
  for log in logs:
    with log:
      assert list(log.samples) == [('a', 0), ('a', 1)]
      log.append('b', 0, encoding.Sample('new', 1, False))
  # The first host writes.
  _, *rows = (tmp_path / 'first.jsonl').read_text().splitlines()
  assert [(json.loads(r)['uid'], json.loads(r)['sample']) for r in rows] == [
    ('a', 0),
    ('a', 1),
    ('b', 0),
  ]
  assert (tmp_path / 'second.jsonl').read_text() == seen


def test_an_endpoint_is_asked_by_one_host(monkeypatch):
  cfg = _config(checkpoint='http://localhost:1/v1#model')
  for error in as_hosts(monkeypatch, [lambda: evaluate.run(cfg)] * 2):
    assert 'which needs no devices, and there are 2 hosts' in str(error)


def test_report_shows_the_suite(suite):
  web_page.write(str(suite))
  page = (suite / 'report.html').read_text()
  assert '<h2>Benchmarks</h2>' in page and '<td>second</td>' in page


def test_one_problem_has_no_interval(suite):
  result = _suite(suite)
  for measured in result['benchmarks'].values():
    measured['pass@1_interval'] = [None, None]
  assert '[–, –]' in published.table(result)
  assert '[–, –]' in published.html(result)


def test_prompts_of_all_benchmarks_are_checked_before_a_model_is_loaded(
  monkeypatch, tmp_path
):
  def load(path):
    raise AssertionError('read')

  monkeypatch.setattr(sampler, 'load', load)
  short = dataclasses.replace(_SUITE[1].sampling, max_prompt_len=4)
  benchmarks = (_SUITE[0], dataclasses.replace(_SUITE[1], sampling=short))
  with pytest.raises(ValueError, match='3 of 3 problems to evaluate on are'):
    evaluate.run(_config(workdir=str(tmp_path / 'a'), benchmarks=benchmarks))
  assert not (tmp_path / 'a').exists()


def test_samples_of_other_settings_are_not_mixed(suite):
  cfg = _config(workdir=str(suite), benchmarks=_SUITE, seed=1)
  with pytest.raises(ValueError, match='samples with seed 0, and now it is 1'):
    evaluate.run(cfg)


def test_compare_says_what_is_noise(suite, tmp_path, capsys):
  better = _suite(suite)
  metrics = better['benchmarks']['second']
  metrics['pass@1_by_problem'] = {f'u{i}': 1.0 for i in range(20)}
  worse = json.loads(json.dumps(better))
  other = worse['benchmarks']['second']
  other['pass@1_by_problem'] = {f'u{i}': 0.25 * (i % 3) for i in range(25)}
  other['template'] = 'chat'
  for name, content in {'a': worse, 'b': better}.items():
    (tmp_path / f'{name}.json').write_text(json.dumps(content))
  files = f'{tmp_path}/a.json,{tmp_path}/b.json'
  evaluate.run(evaluate.Config(compare=files, json=True))
  result = json.loads(capsys.readouterr().out)
  assert result['first']['is_noise'] and result['first']['difference'] == 0
  second = result['second']
  assert second['num_problems'] == 20 and not second['is_noise']
  assert second['difference'] > 0 and len(second['settings_that_differ']) == 1
  evaluate.run(evaluate.Config(compare=files))
  text = capsys.readouterr().out
  assert 'first: pass@1' in text and 'no larger than its noise' in text
  assert "template is 'chat' in the first and 'short' in the second" in text


@pytest.mark.parametrize(
  'files, message',
  [
    ('one.json', 'names 1 files; give two'),
    ('bad.json,bad.json', 'holds no metrics by problem'),
    ('a.json,b.json', 'no benchmark in common: x, y and z, w'),
  ],
)
def test_compare_refuses(tmp_path, monkeypatch, files, message):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'bad.json').write_text('[1]')
  for name, benchmarks in {'a': 'xy', 'b': 'zw'}.items():
    metrics = {'pass@1_by_problem': {'u': 1.0, 'v': 0.0}}
    (tmp_path / f'{name}.json').write_text(
      json.dumps({'benchmarks': dict.fromkeys(benchmarks, metrics)})
    )
  with pytest.raises(ValueError, match=message):
    evaluate.run(evaluate.Config(compare=files))


def test_contamination_of_a_training_file(tmp_path, capsys):
  example = countdown.Countdown().examples('test')[0]
  train = tmp_path / 'train.jsonl'
  train.write_text(
    json.dumps({'uid': 't0', 'messages': [{'content': 'nothing'}]})
    + '\n'
    + json.dumps({'messages': [{'content': f'So {example.question}?'}]})
    + '\n'
  )
  cfg = evaluate.Config(
    contamination=str(train), workdir=str(tmp_path), json=True
  )
  evaluate.run(cfg)
  result = json.loads(capsys.readouterr().out)
  (overlap,) = result['sets']['countdown']['overlaps']
  assert overlap['train'] == 'line 2'
  assert overlap['evaluation'] == example.uid
  evaluate.run(dataclasses.replace(cfg, json=False))
  assert '1 of 2 training items share 10 words' in capsys.readouterr().out
  train.write_text('{"broken"')
  with pytest.raises(ValueError, match='train.jsonl:1 is not JSON'):
    evaluate.run(cfg)


def test_settings_of_suites_that_make_no_sense():
  with pytest.raises(ValueError, match="suite is 'r1' beside benchmarks"):
    _config(suite='r1', benchmarks=_SUITE)
  with pytest.raises(ValueError, match="checkpoint is ''; name a model"):
    evaluate.Config()
  with pytest.raises(ValueError, match="has 'first' twice"):
    _config(benchmarks=_SUITE[:1] * 2).measured  # noqa: B018
  with pytest.raises(ValueError, match='Benchmark.num_samples is 0'):
    dataclasses.replace(_SUITE[0], num_samples=0)


def test_table_sets_published_results_apart():
  metrics = {
    'pass@1': 0.5,
    'pass@1_interval': [0.4, 0.6],
    'cons@k': {'64': 0.75},
    'cons@k_ties': 0.1,
    'truncated': 0.02,
    'unparsable': 0.01,
    'num_problems': 30,
    'num_samples': 64,
  }
  rated = metrics | {'rating': 1234.4, 'cons@k': {'16': 0.6}}
  text = published.table(
    {'benchmarks': {'aime2024': metrics, 'codeforces': rated}}
  )
  assert '| aime2024 | 50.0% [40.0%, 60.0%] | @64 75.0% (10%) | 2.0%' in text
  assert '| measured here | 50.0 | 75.0 | – | – | – | 1234 |' in text
  assert (
    '| DeepSeek-R1-Zero (published) | 71.0 | 86.7 | 95.9 | 73.3 | 50.0 | 1444 |'
    in text
  )
  assert text.count('(published)') == 11 and 'not measured here' in text
  assert 'published' not in published.table({'benchmarks': {'own': metrics}})
  page = published.html({'benchmarks': {'aime2024': metrics}})
  assert '<td>OpenAI o1-1217 (published)</td><td>79.2</td>' in page
  assert published.html({}) == ''
