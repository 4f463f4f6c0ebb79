"""Faults of disks, clocks, signals: a run goes on, or stops in one sentence.

docs/results/faults.md lists them all; those with tests elsewhere name them.
"""

import contextlib
import errno
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from jax import numpy as jnp

from rlzero.rollout import journal
from rlzero.runtime import failures, files, lifecycle, workdir
from rlzero.train import checkpoint

_STAGE = """
import dataclasses, os, signal, sys, time, types
from rlzero.runtime import config, lifecycle
# As in a terminal: what a shell starts behind it ignores Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
stage = types.ModuleType('some_stage')
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  workdir: str = ''
Config.__module__, stage.Config = 'some_stage', Config
sys.modules['some_stage'] = stage
def run(cfg):
  BODY
stage.run = run
config.main(stage, sys.argv[1:])
"""


@contextlib.contextmanager
def _start(body, *flags, **streams):
  code = _STAGE.replace('BODY', body)
  with subprocess.Popen(
    [sys.executable, '-c', code, *flags],
    env={**os.environ, 'PYTHONPATH': os.getcwd()},
    stderr=subprocess.PIPE,
    text=True,
    **streams,
  ) as program:
    try:
      yield program
    finally:
      program.kill()


def test_full_disk_keeps_the_old_file(tmp_path):
  path = tmp_path / 'run.json'
  files.write_json(path, {'old': 1})
  (tmp_path / 'run.json.tmp').symlink_to('/dev/full')
  with pytest.raises(OSError) as told:
    files.write_json(path, {'new': 'x' * 100_000})
  assert told.value.errno == errno.ENOSPC
  assert failures.exit_code(told.value) == failures.TRY_AGAIN
  assert path.read_text() == '{"old": 1}\n'


_SAVES = """
import resource, sys
import jax
from jax import numpy as jnp
from rlzero.runtime import failures
from rlzero.train import checkpoint
noise = jax.random.normal(jax.random.key(0), (400, 400))
store = checkpoint.Store(sys.argv[1])
store.save(1, {'x': noise}, {'y': noise})
store.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
  store.save(2, {'x': noise}, {'y': noise})
  store.wait()
except Exception as error:
  sys.exit(failures.exit_code(error))
"""


def test_full_disk_keeps_the_last_checkpoint(tmp_path):
  done = subprocess.run(
    [sys.executable, '-c', _SAVES, str(tmp_path)],
    env={**os.environ, 'PYTHONPATH': os.getcwd(), 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == failures.TRY_AGAIN, done.stderr[-2000:]
  like = jnp.zeros((400, 400))
  with contextlib.closing(checkpoint.Store(str(tmp_path))) as store:
    assert store.restore({'x': like}, {'y': like}).step == 1


def test_a_home_that_cannot_be_written(tmp_path):
  code = (
    'import jax\n'
    'from rlzero.runtime import lifecycle\n'
    'lifecycle.enable_compilation_cache()\n'
    'print(jax.jit(lambda x: x * 3 + 1)(2.0))'
  )
  left_out = ('JAX_COMPILATION_CACHE_DIR', 'XDG_CACHE_HOME')
  environment = {k: v for k, v in os.environ.items() if k not in left_out}
  done = subprocess.run(
    [sys.executable, '-c', code],
    env={**environment, 'HOME': '/proc/none', 'PYTHONPATH': os.getcwd()},
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout == '7.0\n'


def test_a_file_system_without_fsync(tmp_path, monkeypatch):
  def refuse(file):
    raise OSError(errno.EINVAL, 'Invalid argument')

  monkeypatch.setattr(os, 'fsync', refuse)
  files.write_json(tmp_path / 'a.json', 1)
  assert (tmp_path / 'a.json').read_text() == '1\n'
  path = str(tmp_path / 'journal' / 'a.jsonl')
  with contextlib.closing(journal.Journal(path, {'step': 0})) as log:
    log.add_scores([{'reward': 1}])
  assert journal.is_complete(path, {'step': 0}, 1)


def test_fsync_that_fails_is_an_error(tmp_path, monkeypatch):
  def fail(file):
    raise OSError(errno.EIO, 'Input/output error')

  monkeypatch.setattr(os, 'fsync', fail)
  with pytest.raises(OSError, match='Input/output'):
    files.write_json(tmp_path / 'a.json', 1)


def test_no_wait_and_no_deadline_is_by_a_clock_that_jumps():
  # time.time() may jump: it is compared with the dates of files, and a server's
  # answers are dated by it, no more.
  found = {
    str(path)
    for path in pathlib.Path('rlzero').rglob('*.py')
    if re.search(r'\btime\.time\(\)', path.read_text())
  }
  assert found <= {
    'rlzero/tasks/isolation.py',
    'rlzero/reporting/live_run.py',
    'rlzero/serving/app.py',
  }


def test_a_clock_that_jumps_does_not_stop_the_journal(tmp_path, monkeypatch):
  jumps = iter(np.tile([0.0, 4e9, -4e9], 100))
  monkeypatch.setattr(time, 'time', lambda: next(jumps))
  path = str(tmp_path / 'journal' / 'a.jsonl')
  with contextlib.closing(journal.Journal(path, {})) as log:
    for _ in range(5):
      log.add_scores([{'reward': 1}])
  assert journal.is_complete(path, {}, 5)


def test_a_checkpoint_half_deleted_gives_way_to_the_one_before(tmp_path):
  state = {'x': jnp.ones(3)}, {'y': jnp.ones(3)}
  folder = tmp_path / 'checkpoints'
  with contextlib.closing(checkpoint.Store(str(tmp_path))) as store:
    for step in (1, 2):
      store.save(step, *state)
  shutil.rmtree(folder / '2' / 'params')
  with contextlib.closing(checkpoint.Store(str(tmp_path))) as store:
    assert store.restore(*state).step == 1
  assert sorted(os.listdir(folder)) == ['1', 'damaged-2']


_WAITS = (
  'with lifecycle.preemption() as came:\n'
  "    print('ready', flush=True)\n"
  '    while not came(): time.sleep(0.01)\n'
  "    print('saving', flush=True)\n"
  '    time.sleep(600)'
)


def test_sigterm_twice_ends_at_once():
  with _start(_WAITS, stdout=subprocess.PIPE) as program:
    assert program.stdout.readline() == 'ready\n'
    program.send_signal(signal.SIGTERM)
    assert program.stdout.readline() == 'saving\n'
    program.send_signal(signal.SIGTERM)
    assert program.wait(60) == lifecycle.PREEMPTED


def test_sigint_ends_with_130_and_frees_the_folder(tmp_path):
  body = (
    'from rlzero.runtime import workdir; workdir.claim(cfg.workdir)\n'
    "  print('ready', flush=True); time.sleep(600)"
  )
  flag = f'--workdir={tmp_path}'
  with _start(body, flag, stdout=subprocess.PIPE) as program:
    assert program.stdout.readline() == 'ready\n'
    with pytest.raises(failures.Unavailable, match='in use by process'):
      workdir.lock(str(tmp_path))
    program.send_signal(signal.SIGINT)
    assert program.wait(60) == 130
  workdir.release(workdir.lock(str(tmp_path)))


def test_a_log_that_cannot_be_written_stops_in_one_sentence():
  with open('/dev/full', 'w') as full:
    with _start("print('step 1', flush=True)", stdout=full) as program:
      told = program.stderr.read()
  assert program.returncode == failures.TRY_AGAIN
  assert told.count('\n') == 1 and 'No space left on device' in told


@pytest.mark.parametrize(
  ('name', 'sentence'),
  [
    ('gs://bucket/run', 'is an address, not a folder; mount the bucket'),
    ('s3://bucket/run', 'is an address, not a folder'),
    ('~someone/run', "a folder named '~someone'"),
    ('~', "a folder named '~'"),
  ],
)
def test_a_workdir_that_is_no_folder(name, sentence, tmp_path, monkeypatch):
  with pytest.raises(ValueError, match=sentence):
    workdir.check(name)
  monkeypatch.chdir(tmp_path)
  workdir.check('runs/a~b')
  workdir.check('/mnt/gs/run')
  assert not list(tmp_path.iterdir())
