"""Stages on two processes leave what they leave on one."""

import json
import os
import signal
import time

import pytest
from helpers import (
  cluster_ended,
  cluster_process,
  start_cluster,
)

from rlzero import (
  evaluate,
)
from rlzero.rollout.sampling import Sampling
from rlzero.runtime import lifecycle, saved_config, sharding
from rlzero.train import folders

pytestmark = [pytest.mark.model, pytest.mark.nightly]

_TINY = folders.embedded('tiny_base')
# Every device has the whole model, so that sampling sums nothing over hosts.
_WHOLE = sharding.Mesh(data=2)
_SAMPLED = {
  'checkpoint': _TINY,
  'num_problems': 5,  # an uneven number of them for two hosts
  'num_samples': 2,
  'sampling': Sampling(max_len=32, num_slots=4, decode_steps=8),
  'num_workers': 1,
  'mesh': _WHOLE,
}


def _configs():
  """A small run of each stage, by its name."""
  return {
    'evaluate': evaluate.Config(**_SAMPLED),
  }


@pytest.fixture(scope='module')
def ended(tmp_path_factory):
  """Folders of all stages as one process leaves them, and as two do."""
  folder = tmp_path_factory.mktemp('stages')
  commands = {'one': [], 'two': []}
  for name, cfg in _configs().items():
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


@pytest.mark.parametrize('name', ['evaluate'])
def test_what_is_sampled(ended, name):
  one, two = (_contents(folder / name) for folder in ended)
  assert one and one == two


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
