"""The order of stages, what is recorded of them, and going on."""

import bisect
import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from rlzero import pipeline
from rlzero.pipelines import command, execution, hosts, results
from rlzero.pipelines.command import Stage
from rlzero.runtime import config, lifecycle

pytestmark = pytest.mark.model

_ROOT = pathlib.Path(__file__).parent.parent
# A stage that writes what it was given and one word more; it is slow where a
# file says so.
_STAGE = """
import dataclasses, os, signal, time
from rlzero.runtime import config
from rlzero.runtime.fields import mutable_on_resume

@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  workdir: str = mutable_on_resume()
  word: str = 'plain'
  source: str = ''
  other: str = ''
  fails: bool = False
  killed: int = 0

def run(cfg):
  os.makedirs(cfg.workdir + '/checkpoints', exist_ok=True)
  open(cfg.workdir + '/checkpoints/state', 'a').write('begun ')
  if cfg.fails:
    raise ValueError('no luck')
  if cfg.killed:
    os.kill(os.getpid(), cfg.killed)
    time.sleep(60)
  while os.path.exists(cfg.workdir + '/../wait'):
    time.sleep(0.02)
  text = open(cfg.source).read() if cfg.source else ''
  open(cfg.workdir + '/text', 'w').write(text + cfg.word)

if __name__ == '__main__':
  import wordy
  config.main(wordy)
"""


@pytest.fixture(autouse=True)
def wordy(tmp_path, monkeypatch):
  (tmp_path / 'wordy.py').write_text(_STAGE)
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setenv('PYTHONPATH', f'{tmp_path}:{_ROOT}')
  yield
  sys.modules.pop('wordy', None)


def _stage(name, *flags, **inputs):
  return Stage(name=name, module='wordy', flags=flags, inputs=inputs)


def _config(tmp_path, *stages, **changes):
  stages = stages or (
    _stage('one', '--word=a'),
    _stage('two', '--word=b', source='one/text'),
    _stage('three', '--word=c', source='two/text', other='one'),
  )
  return pipeline.Config(
    workdir=str(tmp_path / 'work'), stages=stages, **changes
  )


def _manifest(tmp_path):
  text = (tmp_path / 'work' / 'manifest.json').read_text()
  return json.loads(text)['stages']


def _begun(tmp_path, name):
  path = tmp_path / 'work' / name / 'checkpoints' / 'state'
  return path.read_text().split().count('begun')


def test_hand_offs_are_recorded_and_finished_stages_passed_by(tmp_path):
  pipeline.run(_config(tmp_path))
  assert (tmp_path / 'work' / 'three' / 'text').read_text() == 'abc'
  stages = _manifest(tmp_path)
  assert list(stages) == ['one', 'two', 'three']
  # sha256 of 'a'; the stage's own checkpoints are no output.
  sha = 'ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb'
  assert stages['one']['outputs'] == {'text': sha}
  assert stages['two']['inputs'] == {
    'source': {'from': 'one/text', 'sha256': sha}
  }
  assert stages['two']['command'].startswith('python -m wordy --word=b')
  pipeline.run(_config(tmp_path))
  assert _begun(tmp_path, 'one') == 1
  assert _manifest(tmp_path) == stages


def test_hashes_do_not_depend_on_the_place(tmp_path):
  pipeline.run(_config(tmp_path))
  pipeline.run(_config(tmp_path / 'elsewhere'))
  first, second = _manifest(tmp_path), _manifest(tmp_path / 'elsewhere')
  for name in first:
    for part in ('config', 'inputs', 'outputs'):
      assert first[name][part] == second[name][part]


def test_from_makes_a_stage_and_what_follows_again(tmp_path):
  pipeline.run(_config(tmp_path))
  pipeline.run(_config(tmp_path, start='two'))
  assert [_begun(tmp_path, n) for n in ('one', 'two', 'three')] == [1, 1, 1]
  (tmp_path / 'work' / 'three' / 'text').write_text('lost')
  pipeline.run(_config(tmp_path, only='three'))
  assert (tmp_path / 'work' / 'three' / 'text').read_text() == 'abc'
  assert _begun(tmp_path, 'two') == 1


def test_only_needs_what_comes_before(tmp_path):
  with pytest.raises(config.UserError, match="'one' is not finished"):
    pipeline.run(_config(tmp_path, only='two'))


def test_a_finished_stage_that_has_changed_is_an_error(tmp_path):
  one = _stage('one', '--word=a')
  pipeline.run(_config(tmp_path, one, _stage('two', source='one/text')))
  with pytest.raises(config.UserError, match='its config has.*--from=two'):
    pipeline.run(
      _config(tmp_path, one, _stage('two', '--word=z', source='one/text'))
    )
  pipeline.run(_config(tmp_path, _stage('one', '--word=z'), only='one'))
  with pytest.raises(config.UserError, match='its inputs has changed'):
    pipeline.run(
      _config(
        tmp_path, _stage('one', '--word=z'), _stage('two', source='one/text')
      )
    )


def test_a_stage_that_fails_stops_the_pipeline(tmp_path, capfd):
  stages = _stage('one'), _stage('two', '--fails'), _stage('three')
  with pytest.raises(SystemExit) as ended:
    pipeline.run(_config(tmp_path, *stages))
  assert ended.value.code == 2  # a launcher does not try again
  said = capfd.readouterr().err
  assert 'error: no luck' in said and "'two' ended with status 2" in said
  assert list(_manifest(tmp_path)) == ['one']


@pytest.mark.parametrize(
  ('number', 'status'),
  [
    (signal.SIGTERM, lifecycle.PREEMPTED),
    (signal.SIGKILL, 128 + signal.SIGKILL),
  ],
)
def test_a_stage_that_is_killed_can_be_started_again(tmp_path, number, status):
  stage = _stage('one', f'--killed={number:d}')
  with pytest.raises(SystemExit) as ended:
    pipeline.run(_config(tmp_path, stage))
  assert ended.value.code == status
  assert not (tmp_path / 'work' / 'manifest.json').exists()


def test_any_stage_ends_as_preempted_on_sigterm(tmp_path):
  flags = f'--killed={signal.SIGTERM:d}', f'--workdir={tmp_path / "alone"}'
  done = subprocess.run([sys.executable, '-m', 'wordy', *flags], check=False)
  assert done.returncode == lifecycle.PREEMPTED


@pytest.mark.parametrize(
  'stages, message',
  [
    ((_stage('one'), _stage('one')), "'one'; each stage needs"),
    ((_stage('a/b'),), "'a/b'; each stage needs"),
    ((_stage('one', source='two/text'), _stage('two')), "'two/text'"),
  ],
)
def test_manifests_that_cannot_be_run(tmp_path, stages, message):
  with pytest.raises(ValueError, match=message):
    _config(tmp_path, *stages)


def test_flags_of_every_stage_are_checked_before_the_first_runs(tmp_path):
  with pytest.raises(config.UserError, match="'two' cannot.*--wrod=b"):
    pipeline.run(_config(tmp_path, _stage('one'), _stage('two', '--wrod=b')))
  assert not (tmp_path / 'work').exists()


def test_dry_run_is_a_line_a_stage(tmp_path, capsys):
  pipeline.run(_config(tmp_path, dry_run=True))
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in lines] == ['wordy'] * 3
  assert not (tmp_path / 'work').exists()
  assert pipeline.flags(['--from=x', '--dry-run', '--workdir=y']) == [
    '--start=x',
    '--dry_run',
    '--workdir=y',
  ]


def test_results_are_the_evaluations_and_how_readable_they_are(tmp_path):
  pipeline.run(_config(tmp_path, _stage('one')))
  manifest = tmp_path / 'work' / 'manifest.json'
  stages = json.loads(manifest.read_text())['stages']
  stages['one_evaluation'] = {**stages['one'], 'module': 'rlzero.evaluate'}
  manifest.write_text(json.dumps({'stages': stages}))
  folder = tmp_path / 'work' / 'one_evaluation' / 'evaluations'
  folder.mkdir(parents=True)
  metrics = dict.fromkeys(results.METRICS, 0.5) | {
    'pass@1_interval': [0.25, 0.75],
    'pass@1_by_problem': {'a': 0.5},
  }
  (folder / 'evaluation.json').write_text(json.dumps(metrics))
  asked = {'question': '3 2 1 得 6', 'completion': 'x ' * 3}
  (folder / 'evaluation.jsonl').write_text(
    ''.join(
      json.dumps({**asked, 'words': words, **changes}) + '\n'
      for words, changes in (
        ({'en': 0, 'zh': 0}, {}),  # a formula alone
        ({'en': 1, 'zh': 1}, {}),
        ({'en': 0, 'zh': 2}, {'completion': '```x```'}),
        ({'en': 0, 'zh': 2}, {}),
      )
    )
  )
  found = results.results(str(tmp_path / 'work'))
  assert list(found['stages']) == ['one', 'one_evaluation']
  (metrics,) = found['evaluations'].values()
  assert metrics['readable'] == 0.5
  assert metrics['unreadable'] == {'code_blocks': 0.25, 'language': 0.25}
  assert metrics['paragraph'] == 2.5 and metrics['strict'] == 0.5
  assert 'pass@1_by_problem' not in metrics
  assert '| `one` | 0.500 [0.250, 0.750] |' in results.table(found)
  # One problem has no interval.
  metrics['pass@1_interval'] = [None, None]
  assert '| `one` | 0.500 [–, –] |' in results.table(found)


@pytest.mark.slow
def test_an_orphan_finishes_before_the_next_pipeline_begins(tmp_path):
  script = textwrap.dedent(f"""
    import sys
    sys.path[:0] = [{str(tmp_path)!r}, {str(_ROOT)!r}]
    from rlzero import pipeline
    pipeline.run(pipeline.Config(
      workdir={str(tmp_path / 'work')!r},
      stages=(pipeline.Stage(name='one', module='wordy'),)))
  """)
  (tmp_path / 'work').mkdir()
  (tmp_path / 'work' / 'wait').touch()
  first = subprocess.Popen([sys.executable, '-c', script])
  state = tmp_path / 'work' / 'one' / 'checkpoints' / 'state'
  while not state.exists():
    assert first.poll() is None
    time.sleep(0.05)
  os.kill(first.pid, signal.SIGKILL)
  first.wait()
  second = subprocess.Popen(
    [sys.executable, '-c', script], stdout=subprocess.PIPE, text=True
  )
  assert second.stdout.readline().startswith('waiting for a process')
  assert _begun(tmp_path, 'one') == 1
  (tmp_path / 'work' / 'wait').unlink()
  second.communicate()
  assert second.returncode == 0
  assert _begun(tmp_path, 'one') == 2
  assert list(_manifest(tmp_path)) == ['one']


# A stage of several hosts: none of its processes goes on alone.
_TOGETHER = """
import dataclasses, os, sys, time
from rlzero.runtime import config, lifecycle
from rlzero.runtime.fields import mutable_on_resume

SEVERAL_HOSTS = True

@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  workdir: str = mutable_on_resume()
  source: str = ''
  killed: str = ''

def run(cfg, index, number):
  os.makedirs(cfg.workdir + '/checkpoints', exist_ok=True)
  open(f'{cfg.workdir}/checkpoints/{index}', 'a').write('begun ')
  while len(os.listdir(cfg.workdir + '/checkpoints')) < number:
    time.sleep(0.02)
  if cfg.killed == str(index):
    os.kill(os.getpid(), 9)
  if cfg.killed:
    os.abort()  # as JAX does where another host is gone
  if index == 0:
    time.sleep(0.2)  # it writes while the others have ended
    text = open(cfg.source).read() if cfg.source else ''
    open(cfg.workdir + '/text', 'w').write(text + 'together')

if __name__ == '__main__':
  import together
  mine, others = lifecycle.split_host_flags(sys.argv[1:])
  values = [int(flag.split('=')[1]) for flag in mine[1:]] or [1, 0]
  others = [flag for flag in others if not flag.startswith('--mesh')]
  together.run(config.build(together, others), values[1], values[0])
"""


@pytest.fixture
def on_hosts(tmp_path):
  """Starts a pipeline on two hosts that share its folder."""
  (tmp_path / 'together.py').write_text(_TOGETHER)
  (tmp_path / 'run.gin').write_text("""
from __gin__ import dynamic_registration
from rlzero import pipeline
pipeline.Config.stages = (
    @one/pipeline.Stage(), @two/pipeline.Stage(), @three/pipeline.Stage())
one/pipeline.Stage.name = 'one'
one/pipeline.Stage.module = 'together'
one/pipeline.Stage.flags = %one_flags
two/pipeline.Stage.name = 'two'
two/pipeline.Stage.module = 'wordy'
two/pipeline.Stage.flags = %two_flags
two/pipeline.Stage.inputs = {'source': 'one/text'}
three/pipeline.Stage.name = 'three'
three/pipeline.Stage.module = 'together'
three/pipeline.Stage.inputs = {'source': 'two/text'}
one_flags = ()
two_flags = ('--word=b',)
""")
  started = []

  def start(*flags, workdir='work', number=2):
    hosts = ['--coordinator=localhost:1', f'--num_processes={number}']
    processes = [
      subprocess.Popen(
        [sys.executable, '-m', 'rlzero.pipeline']
        + [f'--gin_file={tmp_path}/run.gin', f'--workdir={tmp_path / workdir}']
        + [*flags]
        + ([*hosts, f'--process_id={i}'] if number > 1 else []),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
      )
      for i in reversed(range(number))
    ]
    started.extend(processes)
    said = [process.communicate(timeout=120) for process in processes]
    return [p.returncode for p in processes][::-1], said[::-1]

  yield start
  for process in started:
    process.kill()


def _begun_on(tmp_path, name):
  folder = tmp_path / 'work' / name / 'checkpoints'
  return {path.name: path.read_text().split() for path in folder.iterdir()}


@pytest.mark.long
def test_hosts_run_a_pipeline_together(tmp_path, on_hosts):
  codes, said = on_hosts()
  assert codes == [0, 0], said
  assert (tmp_path / 'work/three/text').read_text() == 'togetherbtogether'
  for name in 'one', 'three':  # which both run, and both once
    assert _begun_on(tmp_path, name) == {'0': ['begun'], '1': ['begun']}
  assert _begun(tmp_path, 'two') == 1  # the first host alone
  assert 'one: python -m together' in said[0][0] and not said[1][0]
  sign = json.loads((tmp_path / 'work' / hosts.SIGN).read_text())
  assert sign['ended'] == 0
  # As on one host.
  codes, said = on_hosts(workdir='alone/work', number=1)
  assert codes == [0], said
  both, alone = _manifest(tmp_path), _manifest(tmp_path / 'alone')
  for name in both:
    for part in ('config', 'inputs', 'outputs'):
      assert both[name][part] == alone[name][part]
  # What is finished is passed by, on both.
  assert on_hosts()[0] == [0, 0]
  assert _begun_on(tmp_path, 'one') == {'0': ['begun'], '1': ['begun']}


@pytest.mark.long
@pytest.mark.parametrize('index', [0, 1])
def test_a_host_of_a_pipeline_that_is_killed(tmp_path, on_hosts, index):
  codes, said = on_hosts(f"--gin.one_flags=('--killed={index}',)")
  assert codes[index] == 128 + signal.SIGKILL, said
  assert codes[1 - index] == lifecycle.PREEMPTED
  codes, said = on_hosts()
  assert codes == [0, 0], said
  assert (tmp_path / 'work/three/text').read_text() == 'togetherbtogether'


@pytest.mark.long
def test_hosts_end_as_the_first_one_does(tmp_path, on_hosts):
  codes, said = on_hosts("--gin.two_flags=('--fails',)")
  assert codes == [2, 2], said
  assert 'The first host has ended with 2.' in said[1][1]
  assert list(_manifest(tmp_path)) == ['one']


def test_a_first_host_that_is_not_heard_of(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(hosts, '_PATIENCE_S', 0.1)
  monkeypatch.setattr(hosts, '_POLL_S', 0.01)
  (tmp_path / hosts.SIGN).write_text('{"ended": 2}')  # of an earlier pipeline
  plan = command.Command(str(tmp_path), _stage('one'))
  with pytest.raises(SystemExit) as ended:
    hosts.follow([plan], str(tmp_path), ['--distributed'])
  assert ended.value.code == lifecycle.PREEMPTED
  assert 'has not changed for' in capsys.readouterr().err


def test_a_first_host_that_fails_ends_a_stage_of_another(tmp_path, monkeypatch):
  """Its process would wait for one that never comes."""
  monkeypatch.setattr(hosts, '_POLL_S', 0.01)
  monkeypatch.setattr(execution, '_POLL_S', 0.01)
  (tmp_path / 'together.py').write_text(_TOGETHER)
  stage = Stage(name='one', module='together')
  plan = command.Command(str(tmp_path), stage)
  sys.modules.pop('together', None)

  def lead():
    time.sleep(0.2)
    (tmp_path / hosts.SIGN).write_text('{"time": 1}')
    while not (tmp_path / 'one' / 'checkpoints').exists():
      time.sleep(0.02)
    (tmp_path / hosts.SIGN).write_text('{"time": 2, "ended": 2}')

  thread = threading.Thread(target=lead)
  thread.start()
  flags = ['--coordinator=h:1', '--num_processes=2', '--process_id=1']
  with pytest.raises(SystemExit) as ended:
    hosts.follow([plan], str(tmp_path), flags)
  thread.join()
  assert ended.value.code == 2
  # Nor is another one begun.
  with pytest.raises(SystemExit):
    monkeypatch.setattr(hosts, '_PATIENCE_S', 0.1)
    hosts.follow([plan], str(tmp_path), flags)
  begun = (tmp_path / 'one' / 'checkpoints' / '1').read_text()
  assert begun.split() == ['begun']


def test_flags_of_hosts_are_of_the_process(tmp_path):
  flags = ['--coordinator=h:1', '--process_id=1', '--num_processes=2']
  found = pipeline.flags(['--workdir=y', *flags])
  assert found == [
    '--workdir=y',
    "--host_flags=('--coordinator=h:1', '--num_processes=2', '--process_id=1')",
  ]
  assert not hosts.is_first(
    ['--coordinator=h:1', '--num_processes=2', flags[1]]
  )
  with pytest.raises(SystemExit):
    pipeline.flags(flags[:2])
  with pytest.raises(ValueError, match='--from and --only are for one host'):
    _config(tmp_path, only='two', host_flags=('--distributed',))


_MANIFESTS = [
  path
  for path in sorted(_ROOT.glob('configs/runs/*.gin'))
  if '-m rlzero.pipeline' in path.read_text()
]


@pytest.mark.parametrize('path', _MANIFESTS, ids=lambda path: path.stem)
def test_every_manifest_builds(path, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(_ROOT)
  cfg = config.build(
    pipeline, [f'--gin_file={path}', f'--workdir={tmp_path}', '--dry_run']
  )
  pipeline.run(cfg)
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == len(cfg.stages)
  assert all(line.startswith('rlzero.') for line in lines)


def test_the_manifest_with_the_student_resumes_the_one_without(monkeypatch):
  monkeypatch.chdir(_ROOT)
  short, whole = (
    config.build(pipeline, [f'--gin_file=configs/runs/{name}', '--workdir=x'])
    for name in ('r1_tiny_no_student.gin', 'r1_tiny.gin')
  )
  left = [stage for stage in whole.stages if stage not in short.stages]
  assert len(short.stages) + len(left) == len(whole.stages)
  assert {'distilled', 'student_zero'} <= {stage.name for stage in left}
  assert short.stages[9].name == 'r1'


@pytest.mark.nightly
def test_killed_ten_times_it_ends_with_the_same_hashes(tmp_path):
  """RLZERO_KILLS_SEED draws the moments; the whole process group dies.

  A moment of the undisturbed run is a stage and a time in it: what a start
  costs, and what is done twice, would otherwise put all kills into the first
  stages.
  """
  command = [
    *(sys.executable, '-m', 'rlzero.pipeline'),
    '--gin_file=configs/runs/r1_tiny_short.gin',
  ]

  def start(name):
    return subprocess.Popen(
      [*command, f'--workdir={tmp_path / name}'],
      cwd=_ROOT,
      start_new_session=True,
    )

  def finished(name):
    path = tmp_path / name / 'manifest.json'
    return json.loads(path.read_text())['stages'] if path.exists() else {}

  assert start('whole').wait() == 0
  whole = finished('whole')
  ends = list(itertools.accumulate(s['wall_s'] for s in whole.values()))
  rng = random.Random(int(os.environ.get('RLZERO_KILLS_SEED', '0')))
  # Not in the last stage, whose end is the end.
  moments = sorted(rng.uniform(0, ends[-2]) for _ in range(10))
  killed_in = []
  for moment in moments:
    number = bisect.bisect(ends, moment)
    seconds = moment - (ends[number - 1] if number else 0.0)
    child, began = start('cut'), None
    # A stage may take less time than before, and end first.
    while (done := len(finished('cut'))) <= number:
      assert child.poll() is None
      if done == number:
        began = began or time.monotonic()
        if time.monotonic() - began > seconds:
          break
      time.sleep(0.1)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    killed_in.append(list(whole)[len(finished('cut'))])
  assert start('cut').wait() == 0
  print(f'killed in {killed_in} of a run of {ends[-1]:.0f} s')
  assert len({*killed_in}) > 3
  cut = finished('cut')
  assert list(whole) == list(cut)
  for name in whole:
    assert whole[name]['outputs'] == cut[name]['outputs'], name
