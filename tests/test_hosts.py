"""Two processes of four devices do what one process of eight does."""

import contextlib
import os
import pathlib
import pickle
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
from helpers import distance

from rlzero import grpo, sft
from rlzero.benchmarks.host_steps import CONFIG
from rlzero.monitoring import history
from rlzero.rl import settings, update
from rlzero.runtime import (
  config,
  fields,
  hosts,
  lifecycle,
  metrics,
  saved_config,
  sharding,
)
from rlzero.tasks.datasets.curriculum import Curriculum
from rlzero.train import checkpoint, folders

pytestmark = pytest.mark.model

_ROOT = pathlib.Path(__file__).parent.parent


_PATIENCE_S = 300.0  # hosts that wait for each other would wait for ever


def _start(number, *command):
  """So many processes with eight devices in all."""
  return subprocess.Popen(
    ['bash', 'launch/local_cluster.sh', str(number), *command],
    cwd=_ROOT,
    env={**os.environ, 'DEVICES': str(8 // number), 'XLA_FLAGS': ''},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _ended(cluster, code=0):
  """What it says on stderr, when it has ended."""
  try:
    _, said = cluster.communicate(timeout=_PATIENCE_S)
  finally:
    cluster.terminate()  # a cluster that hangs
  assert cluster.returncode == code, said
  return said


def _steps(folder, number):
  folder.mkdir()
  _ended(_start(number, 'rlzero.benchmarks.host_steps', folder))
  with open(folder / 'steps.pickle', 'rb') as file:
    return pickle.load(file)


@pytest.mark.nightly
def test_two_processes_equal_one(tmp_path):
  two, params = _steps(tmp_path / 'two', 2)
  one, _ = _steps(tmp_path / 'one', 1)
  for (records, rows, grads), (same, same_rows, same_grads) in zip(
    two, one, strict=True
  ):
    # Also the tokens: at these shapes rounding turns none.
    assert records == same
    for a, b in zip(rows.completions, same_rows.completions, strict=True):
      np.testing.assert_array_equal(a, b)
    assert distance(grads, same_grads) < 1e-5
  # What two wrote, one reads, on its own mesh and with none.
  cfg = fields.make(grpo.Config, workdir=str(tmp_path), **CONFIG)
  for mesh in (sharding.Mesh(fsdp=8), sharding.Mesh()):
    with sharding.use(mesh):
      trainer = update.Trainer(cfg, settings.load_start(cfg))
      opt_state = {'opt_state': trainer.state.opt_state}
      with contextlib.closing(
        checkpoint.Store(str(tmp_path / 'two'), read_only=True)
      ) as store:
        saved = store.restore(trainer.state.params, opt_state)
    assert saved.step == 3
    jax.tree.map(np.testing.assert_array_equal, saved.params, params)
  # What one wrote, two read; what one of the two cannot read, neither takes.
  shutil.copytree(tmp_path / 'one', tmp_path / 'copy')
  (tmp_path / 'copy' / 'checkpoints' / '3' / 'facts' / 'metadata').unlink()
  said = _ended(
    _start(
      2, 'rlzero.benchmarks.host_steps', tmp_path / 'one', tmp_path / 'copy'
    )
  )
  assert 'The checkpoint of step 3' in said and 'the one of step 2' in said


@pytest.mark.nightly
def test_sigterm_to_one_host_saves_on_all(tmp_path):
  cfg = fields.make(
    grpo.Config,
    **CONFIG | {'decode_steps': 2, 'kl_coef': 0.0},
    # The hosts choose among groups and problems alike.
    max_rounds=3,
    samples_per_prompt=6,
    curriculum=Curriculum(by='level'),
    workdir='',
    num_steps=2,
    save_every=10,
    eval_every=0,
    final_problems=1,
    final_samples=2,
  )
  (tmp_path / 'run.gin').write_text(saved_config.to_gin(cfg))

  def start(name):
    flags = f'--gin_file={tmp_path}/run.gin', f'--workdir={tmp_path / name}'
    return _start(2, 'rlzero.grpo', *flags)

  cluster = start('cut')
  while not (tmp_path / 'cut' / 'journal' / 'step_000000.jsonl').exists():
    assert cluster.poll() is None, cluster.communicate()
    time.sleep(0.01)
  os.kill(_process(cluster, '--process_id=1'), signal.SIGTERM)
  _ended(cluster, lifecycle.PREEMPTED)
  (saved,) = (tmp_path / 'cut' / 'checkpoints').iterdir()
  assert saved.name in ('0', '1')
  _ended(start('cut'))
  _ended(start('whole'))
  for read in (_params, _rows):
    whole, cut = (read(tmp_path / name) for name in ('whole', 'cut'))
    jax.tree.map(np.testing.assert_array_equal, whole, cut)
  assert any(row['groups/rounds'] > 1 for row in _rows(tmp_path / 'whole'))


def _process(cluster, flag):
  """The process of a cluster that was started with the flag."""
  of_it = pathlib.Path(f'/proc/{cluster.pid}/task/{cluster.pid}/children')
  (number,) = (
    int(child)
    for child in of_it.read_text().split()
    if flag in pathlib.Path(f'/proc/{child}/cmdline').read_text()
  )
  return number


def _params(workdir):
  return folders.load_model(str(workdir / 'model')).params


def _rows(workdir):
  return history.without_times(metrics.read_metrics(str(workdir)))


def test_one_process_asks_nobody():
  assert hosts.count() == 1 and hosts.is_first()
  assert hosts.broadcast({'a': 1}) == {'a': 1}
  assert (
    hosts.first_true_of_all('this') == 'this'
    and hosts.first_true_of_all('') == ''
  )
  assert hosts.all_min(3) == 3
  assert hosts.map_over_hosts([1, 2], lambda items: [2 * i for i in items]) == [
    2,
    4,
  ]


def test_flags_of_a_process_are_not_those_of_a_run(monkeypatch, capsys):
  joined = []
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda *a: joined.append(a)
  )
  assert lifecycle.join_hosts(['--seed=1']) == ['--seed=1'] and not joined
  flags = ['--coordinator=h:1', '--num_processes=4', '--process_id=2']
  assert lifecycle.join_hosts(['--seed=1', *flags]) == ['--seed=1']
  assert lifecycle.join_hosts(['--distributed']) == []
  assert joined == [('h:1', 4, 2), ()]
  for wrong in (flags[:2], [*flags, '--distributed'], ['--process_id=x']):
    with pytest.raises(SystemExit, match='2'):
      lifecycle.join_hosts(wrong)
  assert 'do not say which processes belong' in capsys.readouterr().err
  with pytest.raises(SystemExit, match='2'):
    config.main(sft, ['--distributed'])
  assert 'rlzero.sft runs on one' in capsys.readouterr().err
