"""Two processes of four devices do what one process of eight does."""

import contextlib
import os
import pathlib
import pickle
import subprocess

import jax
import numpy as np
import pytest
from host_steps import CONFIG
from test_learner import distance

from rlzero import checkpoint, config, grpo, hosts, process, sft, sharding, step

_ROOT = pathlib.Path(__file__).parent.parent


def _steps(folder, number):
  environment = {**os.environ, 'DEVICES': str(8 // number), 'XLA_FLAGS': ''}
  done = subprocess.run(
    [
      'bash',
      'launch/local_cluster.sh',
      str(number),
      'tests.host_steps',
      folder,
    ],
    cwd=_ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert not done.returncode, done.stderr
  with open(folder / 'steps.pickle', 'rb') as file:
    return pickle.load(file)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
  (tmp_path / 'two').mkdir()
  (tmp_path / 'one').mkdir()
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
  cfg = grpo.Config(workdir=str(tmp_path), **CONFIG)
  for mesh in (sharding.Mesh(fsdp=8), sharding.Mesh()):
    with sharding.use(mesh):
      loop = step.Loop(cfg, grpo.load_start(cfg), None)
      rest = {'opt_state': loop.state.opt_state}
      with contextlib.closing(
        checkpoint.Store(str(tmp_path / 'two'), read_only=True)
      ) as store:
        saved = store.restore(loop.state.params, rest)
    assert saved.step == 3
    jax.tree.map(np.testing.assert_array_equal, saved.params, params)


def test_one_process_asks_nobody():
  assert hosts.count() == 1 and hosts.is_first()
  assert hosts.agree({'a': 1}) == {'a': 1}
  assert hosts.any_of(True) and not hosts.any_of(False)
  assert hosts.least(3) == 3
  assert hosts.shared([1, 2], lambda items: [2 * i for i in items]) == [2, 4]


def test_flags_of_a_process_are_not_those_of_a_run(monkeypatch, capsys):
  joined = []
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda *a: joined.append(a)
  )
  assert process.join_hosts(['--seed=1']) == ['--seed=1'] and not joined
  flags = ['--coordinator=h:1', '--num_processes=4', '--process_id=2']
  assert process.join_hosts(['--seed=1', *flags]) == ['--seed=1']
  assert process.join_hosts(['--distributed']) == []
  assert joined == [('h:1', 4, 2), ()]
  for wrong in (flags[:2], [*flags, '--distributed'], ['--process_id=x']):
    with pytest.raises(SystemExit, match='2'):
      process.join_hosts(wrong)
  assert 'do not say which processes belong' in capsys.readouterr().err
  with pytest.raises(SystemExit, match='2'):
    config.main(sft, ['--distributed'])
  assert 'rlzero.sft runs on one' in capsys.readouterr().err
