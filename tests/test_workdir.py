"""A folder that two processes want: one has it, the other is refused."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from rlzero.pipelines import manifest
from rlzero.runtime import config, failures, hosts, workdir

_HOLDER = """
import sys, time
from rlzero.runtime import workdir
with workdir.claims():
  workdir.claim(sys.argv[1])
  print('claimed', flush=True)
  time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
  with subprocess.Popen(
    [sys.executable, '-c', _HOLDER, str(tmp_path / 'run')],
    env={**os.environ, 'PYTHONPATH': os.getcwd()},
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    assert process.stdout.readline() == 'claimed\n'
    yield process
    process.kill()


def test_a_folder_has_one_process_even_after_sigkill(holder, tmp_path):
  path = tmp_path / 'run'
  with workdir.claims():
    sentence = f'in use by process {holder.pid} on .* since 20'
    with pytest.raises(failures.Unavailable, match=sentence) as refused:
      workdir.claim(str(path))
    assert failures.exit_code(refused.value) == failures.TRY_AGAIN
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    workdir.claim(str(path))
    workdir.claim(str(path))  # it is ours already
    assert f'process {os.getpid()} ' in (path / 'lock').read_text()
    with pytest.raises(failures.Unavailable):
      workdir.lock(str(path))
  assert (path / 'lock').read_text() == ''
  workdir.release(workdir.lock(str(path)))


def test_a_preempted_program_leaves_the_folder_free(holder, tmp_path):
  holder.terminate()
  holder.wait()
  workdir.release(workdir.lock(str(tmp_path / 'run'), wait=True))


def test_a_file_system_without_locks_is_told_once(
  tmp_path, monkeypatch, capsys
):
  def refuse(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  monkeypatch.setattr(fcntl, 'flock', refuse)
  with workdir.claims():
    workdir.claim(str(tmp_path))
    workdir.claim(str(tmp_path))
  assert capsys.readouterr().err.count('file system without locks') == 1


def test_called_as_a_function_a_stage_takes_nothing(tmp_path):
  workdir.claim(str(tmp_path))
  assert not list(tmp_path.iterdir())


def test_the_lock_is_not_handed_on(tmp_path):
  (tmp_path / 'evaluations').mkdir()
  for name in ('lock', 'evaluations/lock', 'evaluations/a.json'):
    (tmp_path / name).write_text('{}')
  assert list(manifest.hashes(str(tmp_path))) == ['evaluations/a.json']


@pytest.mark.parametrize('error', [ValueError('no'), failures.Unavailable('b')])
def test_what_fails_on_the_first_host_ends_all(monkeypatch, error):
  def fail():
    raise error

  with pytest.raises(type(error)) as first:
    hosts.on_first(fail)
  assert first.value is error
  # Another host gets what the first has told.
  told = [failures.exit_code(error), str(error)]
  monkeypatch.setattr(hosts, 'is_first', lambda: False)
  monkeypatch.setattr(hosts, 'broadcast', lambda own: told)
  with pytest.raises(type(error), match=str(error)):
    hosts.on_first(fail)


def test_every_stage_runs_inside_claims(tmp_path):
  stage = type(sys)('rlzero.claiming')
  exec(  # as the module of a stage
    'import dataclasses\n'
    '@dataclasses.dataclass(frozen=True, kw_only=True)\n'
    'class Config:\n'
    '  workdir: str\n'
    'from rlzero.runtime import saved_config, workdir\n'
    'def run(cfg):\n'
    '  saved_config.save(cfg, cfg.workdir)\n'
    '  assert workdir._held\n',
    stage.__dict__,
  )
  sys.modules[stage.__name__] = stage
  try:
    config.main(stage, [f'--workdir={tmp_path}'])
    assert (tmp_path / 'lock').read_text() == ''
    taken = workdir.lock(str(tmp_path))
    with pytest.raises(SystemExit) as end:
      config.main(stage, [f'--workdir={tmp_path}'])
    assert end.value.code == failures.TRY_AGAIN
    workdir.release(taken)
  finally:
    del sys.modules[stage.__name__]
