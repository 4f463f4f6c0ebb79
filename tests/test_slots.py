"""Slots belong to a device: choosing among them moves nothing."""

import dataclasses
import functools
import inspect
import re

import jax
import numpy as np
import pytest

from rlzero.models.config import ModelConfig
from rlzero.rollout import batch, buckets, programs
from rlzero.rollout.device import Device
from rlzero.rollout.sampling import Sampling
from rlzero.rollout.slots import constrain_part, read_pages, resize_part
from rlzero.runtime import sharding

pytestmark = pytest.mark.model

CONFIG = ModelConfig(
  vocab_size=16,
  num_layers=2,
  width=32,
  mlp_width=32,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  max_position=1024,
)

MESH = sharding.Mesh(data=2, fsdp=2, tensor=2)  # rows in four shards

COLLECTIVE = r'all-(?:reduce|gather|to-all)|collective-permute'

SAMPLING = Sampling(max_len=64, max_prompt_len=8, num_slots=32, decode_steps=4)


@pytest.mark.parametrize('unstacked', [False, True])
def test_a_batch_that_shrinks_sends_nothing(unstacked):
  with sharding.use(MESH):
    device = make_device(programs.LoweringDevice)
    device.slots = programs.abstract_slots(CONFIG, 32, 512, SAMPLING, unstacked)
    device.resize(programs.first_rows(24), 512)
    calls = device.take()
    # Keys, values, and the rest.
    parts = CONFIG.num_layers if unstacked else 1
    assert [call.number for call in calls] == [parts, parts, 1]
    for call in calls:
      compiled = call.lowered.compile()
      assert not re.findall(COLLECTIVE, compiled.as_text())
      memory = compiled.memory_analysis()
      # A device works on its own part.
      assert memory.temp_size_in_bytes <= 2 * memory.argument_size_in_bytes


@pytest.mark.parametrize('axis', [3, 4])
@pytest.mark.parametrize('cache_len', [5, 7, 9])
@pytest.mark.parametrize('mesh', [sharding.Mesh(), MESH], ids=['one', 'mesh'])
def test_rows_are_copied_one_by_one_on_accelerators(
  mesh, cache_len, axis, monkeypatch
):
  part = np.arange(3 * 8 * 2 * 7 * 7, dtype=np.float32).reshape(3, 8, 2, 7, 7)
  with sharding.use(mesh):
    shards = sharding.axis_size('B')
    # In each shard the last slot, a new one, the first.
    chosen = np.int32([[8 // shards - 1, -1, 0]] * shards)
    part = sharding.device_put(part, 'LBK__')
    found = []
    for platform in ('cpu', 'tpu'):
      monkeypatch.setattr(sharding, 'platform', lambda name=platform: name)
      resize = functools.partial(
        inspect.unwrap(resize_part), axis=axis, cache_len=cache_len
      )
      resized = jax.jit(resize)
      found.append(np.asarray(resized(part, chosen)))
      if platform == 'tpu':
        text = resized.lower(part, chosen).compile().as_text()
        assert not re.findall(COLLECTIVE, text)
  expected, copied = found
  assert copied.shape[1] == 3 * shards
  np.testing.assert_array_equal(copied, expected)


@pytest.mark.parity
def test_a_batch_that_shrinks_has_no_temporaries_on_a_tpu(tpu_devices):
  with sharding.use(sharding.Mesh(data=2, tensor=2), tpu_devices):
    part = jax.ShapeDtypeStruct((4, 128, 2, 128, 33856), 'bfloat16')
    part = constrain_part(part, sharding.abstract)
    chosen = programs.first_rows(64)
    compiled = resize_part.lower(
      part, chosen, axis=4, cache_len=33856
    ).compile()
    memory = compiled.memory_analysis()
    row = memory.output_size_in_bytes / 32
    assert memory.temp_size_in_bytes < row


def make_device(kind=Device, sampling=SAMPLING):
  """Without parameters, which slots do not need."""
  return kind(
    CONFIG,
    {},
    sampling,
    eos_ids=(),
    seed=0,
    prefill_batch=4,
    prompt_widths=(8,),
  )


def make_batch():
  device = make_device()
  return device, batch.Batch(device, SAMPLING, buckets.sizes(SAMPLING))


def number(device, requests):
  """Gives each slot the number of the request in it as its token."""
  numbers = [-1 if request is None else request for request in requests]
  device.slots = device.slots._replace(
    token=sharding.device_put(np.int32(numbers), 'B')
  )


@pytest.mark.parametrize('mesh', [sharding.Mesh(), MESH], ids=['one', 'mesh'])
def test_slots_shrink_and_grow_with_their_requests(mesh):
  with sharding.use(mesh):
    (device, held), num_shards = make_batch(), sharding.axis_size('B')
    order = held.free()
    # Shard by shard in turn; on one device from the first slot to the last.
    shards = order // (32 // num_shards)
    np.testing.assert_array_equal(shards, np.arange(32) % num_shards)
    assert sorted(order) == list(range(32))
    for request, slot in enumerate(order[:14]):
      held.requests[slot] = request
      held.cached[slot] = 20 + request
      held.replay_left[slot] = request
    number(device, held.requests)
    held.shrink()
    assert len(held) == 16  # the smallest of 24, 20, 16, 12, 8, 4
    held.grow(num_waiting=9)
    assert len(held) == 24
    kept = [request for request in held.requests if request is not None]
    assert sorted(kept) == list(range(14))
    tokens = np.asarray(device.slots.token)
    for slot, request in enumerate(held.requests):
      if request is not None:
        assert tokens[slot] == request
        assert held.cached[slot] == 20 + request
        assert held.replay_left[slot] == request
      else:
        assert held.replay_left[slot] == 0
    # Each shard still has its share.
    assert np.ptp(held.occupied().reshape(num_shards, -1).sum(axis=1)) <= 1


def test_a_shard_that_is_full_keeps_the_batch():
  with sharding.use(MESH):
    _, held = make_batch()
    for slot in range(7):  # of the eight of the first shard
      held.requests[slot] = slot
    held.shrink()
    assert len(held) == 32
    held.requests[1] = None
    held.shrink()
    assert len(held) == 24  # six a shard
    assert held.requests[:6] == [0, 2, 3, 4, 5, 6]


def test_a_slot_that_is_added_does_not_run():
  device = make_device()
  device.allocate(4, 32)
  device.slots = device.slots._replace(running=np.ones(4, bool))
  device.resize(np.int32([[0, 3, -1, -1, -1]]), 32)
  running = device.slots.running.tolist()
  assert running == [True, True, False, False, False]


@pytest.mark.parametrize('mesh', [sharding.Mesh(), MESH], ids=['one', 'mesh'])
def test_completions_are_read_back_whole(mesh):
  """More pages than a call has, a page that would reach beyond the end."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 99, (32, 150)).astype(np.int32)
  routes = rng.integers(0, 9, (3, 32, 150, 2)).astype(np.int16)
  sampling = dataclasses.replace(SAMPLING, max_len=150)
  with sharding.use(mesh):
    device = make_device(sampling=sampling)
    device.allocate(32, 64)
    device.slots = device.slots._replace(
      tokens=sharding.device_put(tokens, 'BT'),
      logprobs=sharding.device_put(-tokens.astype(np.float32), 'BT'),
      routes=sharding.device_put(routes, 'LBT_'),
    )
    slots, lengths = [0, 1, 2, 5, 9, 31], [1, 64, 150, 65, 128, 149]
    read = device.read(slots, lengths)()
    for slot, length, written in zip(slots, lengths, read, strict=True):
      np.testing.assert_array_equal(written.tokens, tokens[slot, :length])
      np.testing.assert_array_equal(written.logprobs, -tokens[slot, :length])
      np.testing.assert_array_equal(written.routes, routes[:, slot, :length])
    shape = jax.ShapeDtypeStruct((sharding.axis_size('B'), 8, 2), np.int32)
    program = read_pages.lower(
      device.slots._replace(cache=None), shape, page_len=64
    ).compile()
    assert not re.findall(COLLECTIVE, program.as_text())
