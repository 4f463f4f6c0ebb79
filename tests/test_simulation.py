"""A simulated rollout makes the calls that a real one makes."""

import collections
import dataclasses

import numpy as np
import pytest
from helpers import mostly_slow, noisy

from rlzero.models import kv_cache
from rlzero.models.config import ModelConfig
from rlzero.rollout import buckets, scheduler, simulation
from rlzero.rollout.device import Device
from rlzero.rollout.sampling import Sampling, StopCriteria
from rlzero.runtime import sharding

pytestmark = [
  pytest.mark.model,
  pytest.mark.usefixtures('quick_compilation'),
]

CONFIG = ModelConfig(
  vocab_size=16,
  num_layers=2,
  width=16,
  mlp_width=24,
  num_heads=4,
  num_kv_heads=2,
  head_dim=4,
  max_position=256,
)
SAMPLING = Sampling(max_len=100, max_prompt_len=8, num_slots=16, decode_steps=5)


def counting(monkeypatch):
  """Counts the calls of a device and live positions as a simulation does."""
  calls, live = collections.Counter(), collections.Counter()

  def count(method, names):
    do = getattr(Device, method)

    def counted(self, *args):
      result = do(self, *args)
      cache = self.slots.cache
      size = len(self.slots.token), kv_cache.capacity(self.config, cache)
      calls[simulation.Called(names(*args), *size)] += 1
      return result

    monkeypatch.setattr(Device, method, counted)

  do_decode = Device.decode

  def decode(self):
    size = len(self.slots.token), kv_cache.capacity(CONFIG, self.slots.cache)
    running, cached = np.asarray(self.slots.running), self.slots.cached
    live[simulation.Called('decode', *size)] += int(cached[running].sum())
    do_decode(self)

  monkeypatch.setattr(Device, 'decode', decode)
  for method in ('prefill', 'insert', 'decode'):
    count(method, lambda *_, name=method: name)
  count('read_pages', lambda _: 'read')
  count('resize', lambda chosen, _: 'resize' if chosen is None else 'shrink')
  return calls, live


@mostly_slow(
  'mesh',
  {'one': sharding.Mesh(), 'mesh': sharding.Mesh(data=2, fsdp=2, tensor=2)},
  quick=('one',),
)
def test_calls_are_those_of_a_real_rollout(mesh, monkeypatch):
  rng = np.random.default_rng(0)
  prompts = [
    scheduler.Prompt(i, rng.integers(2, 16, 1 + i % 8).tolist())
    for i in range(10)
  ]
  monkeypatch.setattr(buckets, '_PREFILL_BATCH', 4)
  calls, live = counting(monkeypatch)
  with sharding.use(mesh):
    num_shards = sharding.axis_size('B')
    completions, usage = scheduler.generate(
      CONFIG,
      noisy(CONFIG),
      prompts,
      6,
      SAMPLING,
      stop=StopCriteria((1,)),
      seed=0,
    )
    real, real_live = dict(calls), dict(live)
    lengths = np.array([len(c.tokens) for c in completions]).reshape(10, 6)
    found = simulation.simulate(
      CONFIG, lengths, [len(p.tokens) for p in prompts], SAMPLING
    )
  assert found.calls == real
  assert found.usage == usage
  assert found.positions_live == real_live
  # Caches as short as these are one block of the kernel.
  assert found.positions_read == {
    call: number * call.cache_len * call.num_slots // num_shards
    for call, number in real.items()
    if call.program == 'decode'
  }
  # It did all that a rollout does.
  programs = {call.program for call in real}
  assert programs == {
    *('prefill', 'insert', 'decode', 'read', 'resize', 'shrink')
  }
  assert len({call.num_slots for call in real}) > 2
  assert len({call.cache_len for call in real}) > 2
  assert found.count('prefill') == 3


@pytest.mark.parametrize('length', [0, 101])
def test_lengths_that_a_rollout_cannot_have(length):
  with pytest.raises(ValueError, match=f'{length}.* 1 to Sampling.max_len'):
    simulation.simulate(CONFIG, np.array([[5, length]]), [3], SAMPLING)


def test_whole_blocks_are_read_of_what_is_live():
  """Two prompts of 8 tokens, completions of 1,100 and 1,300; 64 a call."""
  config = dataclasses.replace(CONFIG, max_position=4096)
  sampling = Sampling(
    max_len=1300, max_prompt_len=8, num_slots=2, decode_steps=64
  )
  found = simulation.simulate(
    config, np.array([[1100], [1300]]), [8, 8], sampling
  )
  longest = simulation.Called('decode', 2, 1376)
  assert found.calls[longest] == 9
  ends = [7 + 64 * call for call in range(12, 21)]
  running = [*ends, *ends[:6]]  # the shorter one takes 18 calls of 21
  assert found.positions_live[longest] == sum(running)
  # Blocks of 1,024 and what is left of the cache; one of a slot that has ended.
  blocks = [1024 if end <= 1024 else 1376 for end in running] + 3 * [1024]
  assert found.positions_read[longest] == sum(blocks) == 11 * 1024 + 7 * 1376
