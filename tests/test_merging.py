"""New keys reach the cache in one pass or row by row, with equal results."""

import functools

import jax
import numpy as np
import pytest
from helpers import EOS, SMALL, V3, mostly_slow
from jax import numpy as jnp

from rlzero.models import kv_cache, transformer
from rlzero.planner import hlo
from rlzero.rollout import engine, merging, scheduler
from rlzero.rollout.sampling import Sampling, StopCriteria
from rlzero.rollout.slots import constrain_cache
from rlzero.runtime import sharding

pytestmark = [
  pytest.mark.model,
  pytest.mark.usefixtures('quick_compilation'),
]

NUM_ROWS, LENGTH, NUM_STEPS = 16, 40, 6
LAYOUTS = {
  'heads': (SMALL, sharding.Mesh()),
  'heads-on-a-mesh': (SMALL, sharding.Mesh(data=2, fsdp=2, tensor=2)),
  'latent': (V3, sharding.Mesh()),
  'latent-on-a-mesh': (V3, sharding.Mesh(fsdp=4, tensor=2)),
}


def numbered(config, length, first):
  """A cache of which no two numbers are equal."""

  def fill(x):
    return first + jnp.arange(x.size, dtype=x.dtype).reshape(x.shape)

  return jax.tree.map(fill, kv_cache.empty_cache(config, NUM_ROWS, length))


@mostly_slow(
  ('config', 'mesh'), LAYOUTS, quick=('heads', 'latent', 'heads-on-a-mesh')
)
def test_both_ways_are_equal(config, mesh):
  room = LENGTH - NUM_STEPS
  start = np.random.default_rng(0).integers(0, room + 1, NUM_ROWS)
  start[:3] = 0, room, room // 2

  def merged(merge):
    cache, new = numbered(config, LENGTH, 0), numbered(config, NUM_STEPS, 1e6)
    cache, new = constrain_cache(cache), constrain_cache(new)
    return constrain_cache(merge(config, cache, new, jnp.array(start)))

  found = []
  with sharding.use(mesh):
    for merge in (merging.merge_at_once, merging.merge_by_rows):
      found.append(jax.device_get(jax.jit(lambda f=merge: merged(f))()))
  jax.tree.map(np.testing.assert_array_equal, *found)
  # By hand: the second position that was decoded in row 2.
  new = jax.device_get(numbered(config, NUM_STEPS, 1e6).key)
  _, axis = kv_cache.position_axes(config)
  axis = axis if config.latent else axis + 1
  np.testing.assert_array_equal(
    np.take(found[1].key[:, 2], start[2] + 1, axis - 1),
    np.take(new[:, 2], 1, axis - 1),
  )


def test_row_by_row_moves_what_is_new():
  cache = jax.eval_shape(lambda: numbered(SMALL, 4096, 0))
  new = jax.eval_shape(lambda: numbered(SMALL, NUM_STEPS, 0))
  start = jax.ShapeDtypeStruct((NUM_ROWS,), jnp.int32)
  moved = {}
  for merge in (merging.merge_at_once, merging.merge_by_rows):
    function = jax.jit(functools.partial(merge, SMALL), donate_argnums=0)
    compiled = function.lower(cache, new, start).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1e6
    moved[merge] = hlo.traffic(compiled.as_text()).memory
  size = sum(x.size * 4 for x in jax.tree.leaves(cache))
  written = size * NUM_STEPS / 4096
  # Read and written, some of it once more where rows come to the front.
  assert 2 * written <= moved[merging.merge_by_rows] < 8 * written
  assert moved[merging.merge_at_once] >= 2 * size


def test_tokens_are_those_of_one_pass(monkeypatch):
  """Where slots end, stay empty and are filled again."""
  params = transformer.init(SMALL, jax.random.key(3))
  prompts = [scheduler.Prompt(i, [2, 3, 4 + i]) for i in range(6)]
  settings = Sampling(max_len=21, max_prompt_len=8, num_slots=8, decode_steps=5)

  def completions():
    found, _ = scheduler.generate(
      SMALL, params, prompts, 4, settings, stop=StopCriteria((EOS,)), seed=5
    )
    return [(c.tokens.tolist(), c.logprobs.tolist()) for c in found]

  engine.decode.clear_cache()
  expected = completions()

  def of_each_layer(config, cache, new, start):
    """On a CPU the layers of a cache are apart."""
    parts = zip(cache.key, cache.value, new.key, new.value, strict=True)
    found = [
      merging.merge_by_rows(
        config,
        kv_cache.KeyValues(key, value),
        kv_cache.KeyValues(new_key, new_value),
        start,
      )
      for key, value, new_key, new_value in parts
    ]
    return kv_cache.KeyValues(*map(tuple, zip(*found, strict=True)))

  monkeypatch.setattr(merging, 'merge', of_each_layer)
  engine.decode.clear_cache()
  try:
    assert completions() == expected
  finally:
    engine.decode.clear_cache()
