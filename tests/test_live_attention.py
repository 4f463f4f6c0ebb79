"""The kernel that reads the live part of a cache: the plain path's values."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import SMALL, V3, mostly_slow
from jax import numpy as jnp

from rlzero.models import kv_cache, live_attention, parameters, transformer
from rlzero.planner import hlo
from rlzero.rollout import engine, programs
from rlzero.rollout.sampling import Distribution, Sampling
from rlzero.rollout.slots import constrain_slots, empty_slots
from rlzero.runtime import sharding
from rlzero.types import KeyValues

pytestmark = [
  pytest.mark.model,
  pytest.mark.usefixtures('quick_compilation'),
]

NUM_ROWS, LENGTH, SIZE = 8, 384, 256  # the last block of a row is half one
DENSE = dataclasses.replace(SMALL, vocab_size=16)
WINDOWED = dataclasses.replace(DENSE, window=9, global_every=2)
MODELS = {
  'heads-of-64': dataclasses.replace(DENSE, head_dim=64),
  'heads-of-128': dataclasses.replace(DENSE, head_dim=128),
  'one-head': dataclasses.replace(DENSE, num_kv_heads=1),
  'latent': dataclasses.replace(V3, vocab_size=16),
  'window': WINDOWED,
}
MESHES = {
  'one': sharding.Mesh(),
  'mesh': sharding.Mesh(data=2, fsdp=2, tensor=2),
}


@pytest.fixture
def on_tpu(monkeypatch):
  """The paths of TPUs, with the kernel as plain JAX; returns its calls."""
  attend, calls = live_attention.attend, []

  def interpreted(*args):
    calls.append(args)
    return attend(*args, interpret=True)

  def start():
    monkeypatch.setattr(live_attention, 'attend', interpreted)
    monkeypatch.setattr(live_attention, '_MOST', SIZE)
    monkeypatch.setattr(sharding, 'platform', lambda: 'tpu')
    return calls

  return start


def decode(config, mesh):
  """Tokens and log-probs of a call in which rows have any length."""
  rng = np.random.default_rng(0)
  cached = rng.integers(0, LENGTH - 4, NUM_ROWS)
  cached[:4] = 0, SIZE, LENGTH - 4, 1
  with sharding.use(mesh):
    params = transformer.initialise(config, jax.random.key(3))
    params = parameters.cast(config, params)

    def make(key):
      cache = kv_cache.empty_cache(config, NUM_ROWS, LENGTH)
      noise = jax.tree.map(lambda x: jax.random.normal(key, x.shape), cache)
      slots = empty_slots(config, NUM_ROWS, 1, 8)
      return constrain_slots(
        slots._replace(
          cache=noise,
          cached=jnp.array(cached, jnp.int32),
          token=jnp.arange(NUM_ROWS, dtype=jnp.int32) + 3,
          running=jnp.arange(NUM_ROWS) != 5,
        )
      )

    prefix = None
    if not config.latent:
      prefix = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(2), x.shape),
        kv_cache.empty_cache(config, 1, 5),
      )
      prefix = jax.jit(engine.constrain_shared_prefix)(prefix)
    slots = engine.decode(
      params,
      jax.jit(make)(jax.random.key(1)),
      np.int32(8),
      prefix,
      config=config,
      eos_ids=(),
      num_steps=4,
      distribution=Distribution(),
    )
    slots = slots._replace(cache=None)
    return jax.device_get((slots.tokens, slots.logprobs, slots.length))


CASES = {
  f'{model}-{mesh}': (MODELS[model], MESHES[mesh])
  for model in MODELS
  for mesh in MESHES
}
del CASES['one-head-mesh']  # a mesh cannot split one head


@mostly_slow(('config', 'mesh'), CASES, quick=('window-mesh',))
def test_decoding_is_that_of_the_whole_cache(config, mesh, on_tpu):
  engine.decode.clear_cache()
  plain = decode(config, mesh)
  calls = on_tpu()
  engine.decode.clear_cache()
  try:
    tokens, logprobs, length = decode(config, mesh)
  finally:
    engine.decode.clear_cache()
  assert calls
  np.testing.assert_array_equal(length, np.where(np.arange(8) == 5, 0, 4))
  np.testing.assert_array_equal(tokens, plain[0])
  np.testing.assert_allclose(logprobs, plain[1], rtol=0, atol=2e-5)


@pytest.mark.parametrize('width', [64, 128])
@pytest.mark.parametrize('latent', [False, True])
def test_blocks_without_live_positions_are_not_read(width, latent):
  """They hold no numbers, which would show: 0 times NaN is NaN."""
  rng, length, size = np.random.default_rng(0), 300, 128
  heads = 1 if latent else 2
  query = rng.normal(size=(4, heads, 3, width)).astype(np.float32)
  key = rng.normal(size=(2, 4, heads, length, width)).astype(np.float32)
  value = key if latent else rng.normal(size=key.shape).astype(np.float32)
  first, end = jnp.array([0, 0, 130, 290]), jnp.array([0, 128, 140, 300])
  place, seen = np.arange(length), np.zeros((4, length), bool)
  for row in range(4):
    seen[row] = (place >= first[row]) & (place < end[row])
    block = int(first[row]) // size  # the only one that is live
    dead = place // size != block
    for array in (key, value):
      array[:, row, :, dead] = np.nan
  cache = KeyValues(
    jnp.array(key if latent else key.swapaxes(3, 4)),
    None if latent else jnp.array(value),
  )
  live = live_attention.live_range(first, end, size, length)
  assert live.number.tolist() == [4]
  found = live_attention.attend(
    jnp.array(query), cache, jnp.int32(1), live, size, 0.3, interpret=True
  )
  key, value = (np.nan_to_num(x[1]) for x in (key, value))
  scores = 0.3 * np.einsum('bkrh,bksh->bkrs', query, key)
  scores = np.where(seen[:, None, None], scores, -np.inf)
  weights = np.exp(scores - np.asarray(found.top)[..., None])
  out = np.einsum('bkrs,bksh->bkrh', weights, value)
  np.testing.assert_allclose(found.total, weights.sum(-1), rtol=1e-5)
  np.testing.assert_allclose(found.out, out, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(weights.max(axis=-1)[1:], 1, rtol=1e-5)
  assert not found.out[0].any()  # a row without live positions


def test_positions_that_are_read_are_those_of_the_list():
  config = dataclasses.replace(SMALL, head_dim=128)
  size, length = 1024, 4224
  assert live_attention.block_len(config, length) == size
  end = np.array([0, 1, 1024, 1025, 4100, 4224])
  found = live_attention.live_positions(config, end, length)
  assert found.tolist() == [1024, 1024, 1024, 2048, 4224, 4224]
  live = live_attention.live_range(
    jnp.zeros(6, int), jnp.array(end), size, length
  )
  assert live.number.tolist() == [1 + 1 + 1 + 2 + 5 + 5]
  rows = live.rows[: live.number[0]].tolist()
  assert rows == [0, 1, 2, 3, 3, *[4] * 5, *[5] * 5]
  blocks = live.blocks[: live.number[0]].tolist()
  assert blocks == [0, 0, 0, 0, 1, *range(5), *range(5)]


@pytest.mark.parity
@pytest.mark.parametrize('width', [64, 128])
def test_decoding_compiles_for_a_tpu_with_the_kernel(width, tpu_devices):
  """At its fullest it moves no more than the plain path, and has no copy."""
  config = dataclasses.replace(DENSE, head_dim=width, dtype='bfloat16')
  sampling = Sampling(
    max_len=2000, max_prompt_len=8, num_slots=16, decode_steps=16
  )
  found, caches = {}, {}
  with sharding.use(sharding.Mesh(data=2, tensor=2), tpu_devices):
    shapes = jax.eval_shape(lambda: transformer.init(config, jax.random.key(0)))
    params = sharding.abstract_params(parameters.AXES, shapes)
    for fused in (True, False):
      model = dataclasses.replace(config, fused_attention=fused)
      call = programs.lower(model, params, 4, 4, 8, sampling, (1,), 0)
      lowered = call['decode'][0].lowered
      compiled = lowered.compile()
      found[fused] = hlo.traffic(compiled.as_text())
      memory = compiled.memory_analysis()
      caches[fused] = memory.alias_size_in_bytes
      if fused:
        assert memory.temp_size_in_bytes < caches[True] / 4
  steps, kernel, plain = 16, found[True], found[False]
  assert not plain.kernels
  # By its own formula: the cache, once a token.
  # Beside it slots hold tokens and log-probs.
  assert kernel.kernels == pytest.approx(steps * caches[True], rel=0.02)
  assert kernel.kernels < kernel.memory <= 1.02 * plain.memory
