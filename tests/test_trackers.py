"""Trackers, by stand-ins that note what they are told."""

import json
import sys
import types

import pytest

from rlzero.runtime import metrics, trackers


class Run:
  def __init__(self, options):
    self.options, self.logged, self.defined = options, [], []
    self.finished, self.fails = False, False

  def log(self, values, step=None):
    if self.fails:
      raise RuntimeError('no network')
    self.logged.append((step, values))

  def define_metric(self, *args, **kwargs):
    self.defined.append((args, kwargs))

  def finish(self):
    self.finished = True


@pytest.fixture
def runs(monkeypatch):
  """The runs that stand-ins of both libraries have opened."""
  opened = []

  def init(**options):
    opened.append(Run(options))
    return opened[-1]

  for name in trackers.NAMES:
    module = types.SimpleNamespace(init=init)
    monkeypatch.setitem(sys.modules, name, module)
  monkeypatch.setenv(trackers.VARIABLE, 'wandb, trackio')
  return opened


def test_both_get_what_tensorboard_gets(tmp_path, runs):
  (tmp_path / 'config.json').write_text('{"seed": 3}')
  with metrics.MetricsWriter(str(tmp_path)) as writer:
    writer.write(0, {'loss': float('nan'), 'reward/mean': 0.5}, {'kl': True})
  wandb, trackio = runs
  values = {'reward/mean': 0.5, 'alert/kl': 1.0}
  assert wandb.logged == [(None, {'step': 0, **values})]
  assert trackio.logged == [(0, values)]  # 'step' is a name of its own
  for run in runs:
    assert run.finished
    assert run.options['config'] == {'seed': 3}
    assert run.options['project'] == 'rlzero'
  assert wandb.defined == [(('*',), {'step_metric': 'step'})]
  assert trackio.options['name'].startswith(f'{tmp_path.name}-')


def test_a_resumed_run_goes_on_in_the_same(tmp_path, runs, monkeypatch):
  monkeypatch.setenv('WANDB_PROJECT', 'mine')
  for step in range(2):
    with metrics.MetricsWriter(str(tmp_path), step) as writer:
      writer.write(step, {'loss': 1.0})
  first, _, second, _ = runs
  assert first.options['id'] == second.options['id']
  assert first.options['resume'] == 'allow'
  assert first.options['project'] == 'mine'


def test_one_that_fails_is_told_of_once_and_training_goes_on(
  tmp_path, runs, capsys
):
  with metrics.MetricsWriter(str(tmp_path)) as writer:
    runs[0].fails = True
    for step in range(3):
      writer.write(step, {'loss': 1.0})
  said = capsys.readouterr().err
  assert said == (
    'warning: wandb failed and gets no more metrics (RuntimeError: no '
    'network).\n'
  )
  assert len(runs[1].logged) == 3
  lines = (tmp_path / metrics.JSONL).read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == [0, 1, 2]


def test_one_that_cannot_be_imported_ends_no_training(
  tmp_path, runs, monkeypatch, capsys
):
  def fail(name):
    if name == 'wandb':
      raise ImportError('another NumPy is needed')
    return sys.modules[name]

  monkeypatch.setattr(trackers.importlib, 'import_module', fail)
  with metrics.MetricsWriter(str(tmp_path)) as writer:
    writer.write(0, {'loss': 1.0})
  (trackio,) = runs
  assert len(trackio.logged) == 1
  assert '(ImportError: another NumPy is' in capsys.readouterr().err


def test_without_the_variable_nothing_is_imported(tmp_path, monkeypatch):
  monkeypatch.delenv(trackers.VARIABLE, raising=False)
  with metrics.MetricsWriter(str(tmp_path)) as writer:
    writer.write(0, {'loss': 1.0})
  assert not (tmp_path / 'trackers.json').exists()


@pytest.mark.parametrize(
  'value, sentence',
  [('wandb,mlflow', "names 'mlflow'"), ('wandb', 'which is not installed')],
)
def test_a_bad_variable_is_a_sentence(monkeypatch, value, sentence):
  monkeypatch.setenv(trackers.VARIABLE, value)
  monkeypatch.delitem(sys.modules, 'wandb', raising=False)
  if 'mlflow' in value:
    monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace())
  else:
    monkeypatch.setattr(trackers.importlib.util, 'find_spec', lambda _: None)
  with pytest.raises(ValueError, match=sentence):
    trackers.chosen()
