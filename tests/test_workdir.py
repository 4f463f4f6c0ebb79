"""A folder that two processes want: one has it, the other is refused."""

import errno
import fcntl
import importlib
import os
import signal
import subprocess
import sys

import pytest

from rlzero.pipelines import manifest
from rlzero.runtime import config, failures, hosts, workdir
from rlzero.train import folders

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


def test_a_lock_file_that_is_removed_locks_the_next_one(tmp_path):
  with workdir.claims():
    workdir.claim(str(tmp_path))
    workdir.hand_on(str(tmp_path))
    assert not list(tmp_path.iterdir())
  with workdir.claims():
    workdir.claim(str(tmp_path))
    # Removed between opening and locking: another file is locked then.
    opened = workdir._flock

    def remove_first(file, path, *rest):
      if os.path.exists(path) and not (tmp_path / 'once').exists():
        (tmp_path / 'once').touch()
        os.unlink(path)
      opened(file, path, *rest)

    workdir.hand_on(str(tmp_path))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(workdir, '_flock', remove_first)
    held = workdir.lock(str(tmp_path))
  assert os.path.samestat(os.fstat(held), os.stat(tmp_path / 'lock'))
  workdir.hand_on(str(tmp_path))  # of others: nothing is claimed here
  assert (tmp_path / 'lock').exists()
  workdir.release(held)


@pytest.mark.parametrize(
  ('stage', 'flags', 'folder'),
  [
    ('search', ['--workdir=OUT'], 'evaluations'),
    ('convert', ['--checkpoint=TINY', '--output=OUT'], ''),
    ('report', ['--workdir=OUT', '--compare=RUN'], ''),
    ('evaluate', ['--checkpoint=TINY', '--workdir=OUT'], 'evaluations'),
    (
      'evaluate',
      ['--workdir=OUT', '--contamination=TEXT', '--num_problems=1'],
      'evaluations',
    ),
  ],
)
def test_a_stage_that_writes_takes_the_folder(
  stage, flags, folder, tmp_path, capsys
):
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'metrics.jsonl').write_text('{"step": 0}\n')
  (tmp_path / 'text.jsonl').write_text('{"text": "a"}\n')
  taken = tmp_path / 'out' / folder
  taken.mkdir(parents=True)
  named = {
    'OUT': tmp_path / 'out',
    'RUN': tmp_path / 'run',
    'TINY': folders.embedded('tiny_base'),
    'TEXT': tmp_path / 'text.jsonl',
  }
  for name, path in named.items():
    flags = [flag.replace(name, str(path)) for flag in flags]
  lock = workdir.lock(str(taken))
  try:
    with pytest.raises(SystemExit) as ended:
      config.main(importlib.import_module(f'rlzero.{stage}'), flags)
  finally:
    workdir.release(lock)
  told = capsys.readouterr().err
  assert ended.value.code == failures.TRY_AGAIN
  assert told.startswith('error: ') and 'is in use by process' in told
  assert [path.name for path in taken.iterdir()] == ['lock']


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
  monkeypatch.setattr(hosts, 'first_true_of_all', lambda own: told)
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
