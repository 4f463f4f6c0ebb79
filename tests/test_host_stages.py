"""Stages on two processes leave what they leave on one."""

import json
import os
import signal
import time

import jax
import numpy as np
import pytest
from helpers import (
  SMALL,
  cluster_ended,
  cluster_process,
  distance,
  letters,
  noisy,
  start_cluster,
  write_lines,
)

from rlzero import (
  distill,
  evaluate,
  pretrain,
  reject,
  reward_model,
  sft,
)
from rlzero.models.config import ModelConfig
from rlzero.monitoring import history
from rlzero.rollout.sampling import Sampling
from rlzero.runtime import lifecycle, metrics, saved_config, sharding
from rlzero.text.template import Template
from rlzero.train import checkpoint, folders
from rlzero.train.optim import Optimizer
from rlzero.weights import hf

pytestmark = [pytest.mark.model, pytest.mark.nightly]

_TINY = folders.embedded('tiny_base')
# Every device has the whole model, so that sampling sums nothing over hosts.
_WHOLE = sharding.Mesh(data=2)
_PARTS = sharding.Mesh(fsdp=2)
_SAMPLED = {
  'checkpoint': _TINY,
  'num_problems': 5,  # an uneven number of them for two hosts
  'num_samples': 2,
  'sampling': Sampling(max_len=32, num_slots=4, decode_steps=8),
  'num_workers': 1,
  'mesh': _WHOLE,
}


def _configs(folder):
  """A small run of each stage, by its name; their data go into the folder."""
  base, teacher = str(folder / 'base'), str(folder / 'teacher')
  hf.write_folder(base, SMALL, noisy(SMALL), letters())
  hf.write_folder(teacher, SMALL, noisy(SMALL, 0.5), letters())
  rng = np.random.default_rng(0)

  def words(most):
    return ' '.join(rng.choice(list('abcdefg'), rng.integers(1, most)))

  examples = [{'prompt': words(5), 'completion': words(9)} for _ in range(11)]
  pairs = [
    {'prompt': words(5), 'chosen': words(7) + ' h', 'rejected': words(7)}
    for _ in range(11)
  ]
  learned = {
    'workdir': '',
    'checkpoint': base,
    'data': write_lines(folder / 'examples.jsonl', examples),
    'template': Template('plain'),
    'mesh': _PARTS,
    'batch_size': 4,
    'max_len': 32,
    'micro_tokens': 64,
    'num_steps': 3,
    'save_every': 2,
    'optimizer': Optimizer(learning_rate=1e-2),
  }
  return {
    'evaluate': evaluate.Config(**_SAMPLED),
    'pretrain': pretrain.Config(
      workdir='',
      model=ModelConfig(
        vocab_size=124,
        num_layers=1,
        width=32,
        mlp_width=64,
        num_heads=2,
        num_kv_heads=2,
        head_dim=16,
        max_position=256,
      ),
      mesh=_PARTS,
      num_steps=3,
      num_rows=4,
      save_every=2,
    ),
    'sft': sft.Config(**learned),
    'reject': reject.Config(
      **_SAMPLED | {'num_samples': 8}, workdir='', part_size=3
    ),
    'distill': distill.Config(
      **learned,
      teacher=teacher,
      loss='reverse_kl',
      on_policy=True,
      sampling=Sampling(max_len=8, max_prompt_len=16, num_slots=4),
    ),
    'reward_model': reward_model.Config(
      **learned
      | {'data': write_lines(folder / 'pairs.jsonl', pairs), 'held_out': 0.3}
    ),
  }


@pytest.fixture(scope='module')
def ended(tmp_path_factory):
  """Folders of all stages as one process leaves them, and as two do."""
  folder = tmp_path_factory.mktemp('stages')
  commands = {'one': [], 'two': []}
  for name, cfg in _configs(folder).items():
    gin = folder / f'{name}.gin'
    gin.write_text(saved_config.to_gin(cfg))
    for number, some in commands.items():
      workdir = f'--workdir={folder / number / name}'
      some.append([f'rlzero.{name}', f'--gin_file={gin}', workdir])
  for number, some in commands.items():
    listed = folder / f'{number}.json'
    listed.write_text(json.dumps(some))
    count = {'one': 1, 'two': 2}[number]
    cluster_ended(_start(count, 'rlzero.benchmarks.host_stages', str(listed)))
  return folder / 'one', folder / 'two'


def _start(number, *command):
  """Processes with two devices, which compile quickly what runs once."""
  return start_cluster(
    number, *command, devices=2, JAX_DISABLE_MOST_OPTIMIZATIONS='1'
  )


def _contents(folder):
  """Bytes of the files below a folder, by path; locks mean nothing."""
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob('*')
    if path.is_file() and path.name not in ('lock', 'config.gin', 'config.json')
  }


@pytest.mark.parametrize('name', ['evaluate', 'reject'])
def test_what_is_sampled(ended, name):
  one, two = (_contents(folder / name) for folder in ended)
  assert one and one == two


@pytest.mark.parametrize('name', ['pretrain', 'sft', 'distill', 'reward_model'])
def test_what_is_learned(ended, name):
  one, two = (folder / name for folder in ended)
  assert {*_contents(one / 'model')} == {*_contents(two / 'model')}
  params, same = (
    folders.load_model(str(folder / 'model')).params for folder in (one, two)
  )
  assert distance(params, same) < 1e-5
  rows, same_rows = (
    history.without_times(metrics.read_metrics(str(folder)))
    for folder in (one, two)
  )
  assert [row['step'] for row in rows] == [0, 1, 2]
  for row, same_row in zip(rows, same_rows, strict=True):
    assert row == pytest.approx(same_row, rel=1e-5)
  # What two have saved, one process takes as it stands, on its one device.
  shapes = jax.tree.map(jax.numpy.zeros_like, same)
  store = checkpoint.Store(str(two), read_only=True)
  if name != 'reward_model':  # whose last layer is no part of the model
    assert distance(store.restore_params(shapes), same) == 0
  assert store.latest() == 3
  store.close()


def test_what_a_reward_model_leaves_beside_its_weights(ended):
  for name in ('held_out.json', 'model/score.json'):
    one, two = (
      json.loads((folder / 'reward_model' / name).read_text())
      for folder in ended
    )
    assert one.keys() == two.keys()
    for key, value in one.items():
      if isinstance(value, (float, list)):
        assert value == pytest.approx(two[key], rel=1e-5, abs=1e-6)
      else:
        assert value == two[key]


def test_sigterm_to_one_host_ends_both_and_they_go_on(ended, tmp_path):
  gin = tmp_path / 'run.gin'
  gin.write_text(saved_config.to_gin(evaluate.Config(**_SAMPLED)))
  command = 'rlzero.evaluate', f'--gin_file={gin}', f'--workdir={tmp_path}/two'
  both = _start(2, *command)
  log = tmp_path / 'two/samples/countdown.jsonl'
  while not log.exists() or len(log.read_bytes().splitlines()) < 2:
    assert both.poll() is None, both.communicate()
    time.sleep(0.01)
  os.kill(cluster_process(both, '--process_id=1'), signal.SIGTERM)
  cluster_ended(both, lifecycle.PREEMPTED)
  assert not (tmp_path / 'two/evaluations/evaluation.json').exists()
  cluster_ended(_start(2, *command))
  assert _contents(ended[0] / 'evaluate') == _contents(tmp_path / 'two')
