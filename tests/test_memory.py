"""The memory of a machine: what is there, what is refused, what is freed."""

import pytest
from helpers import grpo_config

from rlzero import grpo, weights
from rlzero.models.lora import Adapter
from rlzero.runtime import memory
from rlzero.train import folders, room
from rlzero.train.optim import Optimizer


def test_a_container_has_what_its_group_allows(tmp_path, monkeypatch):
  machine = memory.total()
  limit = tmp_path / 'memory.max'
  monkeypatch.setattr(memory, '_LIMITS', (limit, tmp_path / 'not there'))
  assert memory.total() >= machine
  limit.write_text('max\n')
  assert memory.total() >= machine
  limit.write_text('1048576\n')
  assert memory.total() == 2**20


def test_memory_is_given_back_only_where_it_is_short(monkeypatch):
  held = memory.used()
  assert held is not None and held > 2**20
  monkeypatch.setattr(memory, 'total', lambda: 10 * held)
  assert not memory.release_if_short()
  monkeypatch.setattr(memory, 'total', lambda: held)
  assert memory.release_if_short()


def _opened():
  return weights.open_model(folders.embedded('tiny_base'))


def test_training_that_cannot_fit_is_refused(monkeypatch):
  params, count = _opened().params, 870_000
  monkeypatch.setattr(memory, 'total', lambda: 16 * count * 2)
  room.check('base', params, Optimizer(), None)
  # Parameters, two moments and the gradient take 16 bytes a parameter.
  monkeypatch.setattr(memory, 'total', lambda: 12 * count)
  with pytest.raises(ValueError, match='base .* needs at least 0.0 GiB, and'):
    room.check('base', params, Optimizer(), None)
  room.check('base', params, Optimizer(), Adapter(rank=4, alpha=4.0))
  monkeypatch.setattr(memory, 'total', lambda: 4 * count)
  with pytest.raises(ValueError, match='take a smaller model, or a machine'):
    room.check('base', params, Optimizer(), Adapter(rank=4, alpha=4.0))


def test_a_run_that_cannot_fit_writes_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(memory, 'total', lambda: 2**20)
  with pytest.raises(ValueError, match='train an adapter'):
    grpo.run(grpo_config(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()
