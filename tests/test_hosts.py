"""Two processes of four devices do what one process of eight does."""

import contextlib
import os
import pickle
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from helpers import (
  as_hosts,
  cluster_ended,
  cluster_process,
  distance,
  start_cluster,
)

from rlzero import grpo, search
from rlzero.benchmarks.host_steps import CONFIG
from rlzero.monitoring import history
from rlzero.rl import settings, update
from rlzero.runtime import (
  config,
  failures,
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


def _steps(folder, number):
  folder.mkdir()
  cluster_ended(start_cluster(number, 'rlzero.benchmarks.host_steps', folder))
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
  said = cluster_ended(
    start_cluster(
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
    return start_cluster(2, 'rlzero.grpo', *flags)

  both = start('cut')
  while not (tmp_path / 'cut' / 'journal' / 'step_000000.jsonl').exists():
    assert both.poll() is None, both.communicate()
    time.sleep(0.01)
  os.kill(cluster_process(both, '--process_id=1'), signal.SIGTERM)
  cluster_ended(both, lifecycle.PREEMPTED)
  (saved,) = (tmp_path / 'cut' / 'checkpoints').iterdir()
  assert saved.name in ('0', '1')
  cluster_ended(start('cut'))
  cluster_ended(start('whole'))
  for read in (_params, _rows):
    whole, cut = (read(tmp_path / name) for name in ('whole', 'cut'))
    jax.tree.map(np.testing.assert_array_equal, whole, cut)
  assert any(row['groups/rounds'] > 1 for row in _rows(tmp_path / 'whole'))


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


@pytest.mark.parametrize('count', [0, 1, 2, 5])
def test_shares_of_hosts_are_merged_in_order(monkeypatch, count):
  shares = [], []

  def doubled(share):
    def work(items):
      share.extend(items)
      return [[2 * i, np.arange(i, dtype=np.int16)] for i in items]

    return lambda: hosts.map_over_hosts(range(count), work)

  for merged in as_hosts(monkeypatch, list(map(doubled, shares))):
    assert [twice for twice, _ in merged] == [2 * i for i in range(count)]
    for i, (_, array) in enumerate(merged):
      np.testing.assert_array_equal(array, np.arange(i, dtype=np.int16))
      assert array.dtype == np.int16
  # Each item was one host's work, and the shares are even.
  assert shares[0] + shares[1] == list(range(count))
  assert 0 <= len(shares[0]) - len(shares[1]) <= 1


@pytest.mark.parametrize('number', [0, 1])
@pytest.mark.parametrize(
  'error', [ValueError('line 3'), failures.Unavailable('full')]
)
def test_what_one_host_cannot_use_ends_both(monkeypatch, number, error):
  def work(items):
    if jax.process_index() == number:
      raise error
    return list(items)

  raised = as_hosts(
    monkeypatch, [lambda: hosts.map_over_hosts(range(4), work)] * 2
  )
  assert raised[number] is error
  assert [type(e) for e in raised] == [type(error)] * 2
  assert [str(e) for e in raised] == [str(error)] * 2


def test_the_first_works_while_the_others_wait(monkeypatch):
  done = []

  def work():
    assert hosts.is_first()
    time.sleep(0.1)
    done.append('written')
    return 'kept'

  def on_host():
    kept = hosts.on_first(work)
    return kept, list(done)

  assert as_hosts(monkeypatch, [on_host] * 2) == [
    ('kept', ['written']),
    (None, ['written']),
  ]


def test_exchanges_have_few_sizes(monkeypatch):
  texts, padded = ['x' * n for n in (1, 900, 1021, 1500, 2046)], set()
  zeros = np.zeros

  def noted(size, dtype):
    padded.add(size)
    return zeros(size, dtype)

  monkeypatch.setattr(hosts.np, 'zeros', noted)
  exchanged = as_hosts(
    monkeypatch, [lambda: [hosts.broadcast(text) for text in texts]] * 2
  )
  assert exchanged == [texts] * 2
  assert padded == {1024, 2048}  # each is a program to compile


def test_sigterm_to_another_host_ends_this_one(monkeypatch):
  with hosts.exit_together() as poll:
    assert poll is None  # alone, the signal ends it
  others = [False, True]
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(
    hosts, 'first_true_of_all', lambda own: own or others.pop(0)
  )
  with hosts.exit_together() as poll:
    assert poll
    poll()
    with pytest.raises(SystemExit) as ended:
      poll()
  assert ended.value.code == lifecycle.PREEMPTED


def test_flags_of_a_process_are_not_those_of_a_run(monkeypatch, capsys):
  joined = []
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda *a, **_: joined.append(a)
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
    config.main(search, ['--distributed'])
  assert 'rlzero.search runs on one' in capsys.readouterr().err
