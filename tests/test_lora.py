"""Adapters by hand; their gradients from those of the whole matrices."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
from flax import traverse_util
from helpers import (
  EOS,
  GEMMA,
  GRPO,
  MQA,
  SMALL,
  V3,
  distance,
  make_rows,
  mostly_slow,
  noisy,
)
from jax import numpy as jnp

from rlzero.costs import flops
from rlzero.models import layers, lora, parameters, transformer
from rlzero.models.lora import Adapter
from rlzero.rl import learner
from rlzero.rollout import scheduler
from rlzero.rollout.sampling import Sampling, StopCriteria
from rlzero.runtime import sharding
from rlzero.train import adapters
from rlzero.types import Tokens

pytestmark = [
  pytest.mark.model,
  pytest.mark.usefixtures('quick_compilation'),
]

# Its vocabulary is cut by meshes.
EVEN = dataclasses.replace(SMALL, vocab_size=16)
EXPERTS = dataclasses.replace(V3, vocab_size=16)
ADAPTER = Adapter(rank=3, alpha=6.0)
WHOLE = 1000  # completion tokens: all are one microbatch
MODELS = {'qk_norm': MQA, 'windows': GEMMA, 'latent_and_experts': V3}
each_model = mostly_slow('config', MODELS, quick=('latent_and_experts',))


def with_scale(config, adapter=ADAPTER):
  return dataclasses.replace(config, adapter_scale=adapter.scale)


def adapted(config, adapter=ADAPTER, size=0.3):
  """Noisy parameters with an adapter, whose B is as noisy."""
  rng = np.random.default_rng(1)
  base = noisy(config)
  leaves = adapters.init(adapter, base, jax.random.key(0))
  flat = {
    path: np.float32(rng.normal(0, size, leaf.shape))
    if path[-1].endswith('_b')
    else np.asarray(leaf)
    for path, leaf in traverse_util.flatten_dict(leaves).items()
  }
  return adapters.join(traverse_util.unflatten_dict(flat), base)


def without(params):
  return adapters.split(params)[1]


def rows_of(config, count=2, length=7):
  ids = np.random.default_rng(2).integers(0, config.vocab_size, (count, length))
  places = np.broadcast_to(np.arange(length), ids.shape)
  return Tokens(*(np.int32(x) for x in (ids, places, np.ones_like(ids))))


def hidden_of(config, params):
  forward = jax.jit(transformer.forward, static_argnums=0)
  return np.asarray(forward(config, params, rows_of(config))[0])


def test_a_product_by_hand():
  matrix = lora.Adapted(
    kernel=jnp.float32([[1, 0], [0, 1]]),
    a=jnp.float32([[1], [1]]),
    b=jnp.float32([[2, 3]]),
    scale=0.5,
  )
  x = jnp.float32([[1, 2]])
  # x + 0.5 * (1 + 2) * [2, 3]
  np.testing.assert_array_equal(layers.multiply(x, matrix), [[4, 6.5]])
  turned = jax.tree.map(jnp.transpose, matrix)
  np.testing.assert_array_equal(layers.multiply(x, turned, True), [[4, 6.5]])
  assert Adapter(rank=4, alpha=8.0).scale == 2
  assert Adapter(rank=4, alpha=8.0, stabilised=True).scale == 4


def test_a_fresh_adapter_by_hand():
  base = {
    'layers': {
      'attention': {'output': np.zeros((2, 3, 3, 7), np.float32)},
      'moe': {'expert_up': np.zeros((2, 5, 4, 6), np.float32)},
      'mlp_norm': {'scale': np.zeros((2, 7), np.float32)},
    }
  }
  adapter = Adapter(rank=8, targets=('output', 'moe'))
  found = adapters.init(adapter, base, jax.random.key(0))
  shapes = {
    path: leaf.shape
    for path, leaf in traverse_util.flatten_dict(found, sep='/').items()
  }
  assert shapes == {
    'layers/attention/output_lora_a': (2, 3, 3, 8),
    'layers/attention/output_lora_b': (2, 8, 7),
    'layers/moe/expert_up_lora_a': (2, 5, 4, 8),
    'layers/moe/expert_up_lora_b': (2, 5, 8, 6),
  }
  # 3 x 3 inputs, so within a third of zero, and near that at the most.
  a = np.abs(found['layers']['attention']['output_lora_a'])
  assert 0.3 < a.max() <= 1 / 3
  assert not np.any(found['layers']['moe']['expert_up_lora_b'])


@pytest.mark.parametrize('targets', [('quary',), ('expert_up',), ('moe',)])
def test_targets_that_the_model_does_not_have(targets):
  with pytest.raises(ValueError, match=f'has {targets[0]}, which .* query'):
    adapters.init(Adapter(targets=targets), noisy(SMALL), jax.random.key(0))


@each_model
def test_b_of_zeros_changes_no_bit(config):
  base = noisy(config)
  leaves = adapters.init(ADAPTER, base, jax.random.key(0))
  with_adapter = hidden_of(with_scale(config), adapters.join(leaves, base))
  np.testing.assert_array_equal(with_adapter, hidden_of(config, base))


@each_model
def test_merged_is_the_same_function(config):
  config, params = with_scale(config), adapted(config)
  merged = adapters.merge(config.adapter_scale, params)
  of_host = jax.tree.leaves(merged)
  on_device = adapters.merge(
    config.adapter_scale, jax.tree.map(jnp.asarray, params)
  )
  for one, other in zip(of_host, jax.tree.leaves(on_device), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-6)
  found, base = hidden_of(config, params), hidden_of(config, without(params))
  np.testing.assert_allclose(found, hidden_of(config, merged), atol=2e-4)
  assert np.abs(found - base).max() > 0.1  # it is another function


def test_every_matrix_is_adapted_and_no_other():
  flat = traverse_util.flatten_dict(adapted(V3))
  names = {path[-1] for path in flat if path[-1].endswith(lora.SIDES)}
  assert names == {
    name + side
    for name in (
      *('query_down', 'query_up', 'latent_down', 'latent_up'),
      *('latent_output', 'gate', 'up', 'down', 'expert_gate', 'expert_up'),
      *('expert_down', 'shared_gate', 'shared_up', 'shared_down'),
    )
    for side in lora.SIDES
  }


def test_split_and_join_are_inverse():
  params = {**adapted(SMALL), 'score': {'weight': np.ones(16), 'bias': 0.0}}
  trained, frozen = adapters.split(params)
  assert set(trained) == {'layers', 'score'} and 'score' not in frozen
  again = adapters.join(trained, frozen)
  jax.tree.map(np.testing.assert_array_equal, again, params)
  whole = noisy(SMALL)
  assert adapters.split(whole) == (whole, {})  # the same tree
  assert adapters.join(whole, {}) is whole


@functools.cache
def make_learner(config=EVEN, micro_tokens=WHOLE, pmapped=False):
  return learner.Learner(
    with_scale(config), GRPO, optax.sgd(0.05), micro_tokens, pmapped=pmapped
  )


def expected_gradient(full, params, scale):
  """dL/dA = s G B^T and dL/dB = s A^T G, from G = dL/dW, [in, out]."""
  full, flat = map(traverse_util.flatten_dict, (full, params))
  found = {}
  for path in flat:
    if not path[-1].endswith('_lora_a'):
      continue
    name = path[-1].removesuffix('_lora_a')
    param = parameters.PARAMS[name]
    shape = full[path[:-1] + (name,)].shape
    stack = shape[: len(shape) - len(param.inputs + param.outputs)]
    a, b = (flat[path[:-1] + (name + side,)] for side in lora.SIDES)
    rank = a.shape[-1]
    inputs = a.reshape(*stack, -1, rank)
    outputs = b.reshape(*stack, rank, -1)
    g = full[path[:-1] + (name,)].reshape(
      *stack, inputs.shape[-2], outputs.shape[-1]
    )
    da = scale * g @ outputs.swapaxes(-1, -2)
    db = scale * inputs.swapaxes(-1, -2) @ g
    for side, value, leaf in zip(lora.SIDES, (da, db), (a, b), strict=True):
      found[path[:-1] + (name + side,)] = value.reshape(leaf.shape)
  return traverse_util.unflatten_dict(found)


@mostly_slow('config', {'small': EVEN, 'latent_and_experts': EXPERTS}, quick=())
def test_the_gradient_follows_from_that_of_the_matrices(config):
  params, rows = adapted(config), make_rows(GRPO)
  merged = adapters.merge(ADAPTER.scale, params)
  full, _ = make_learner(config).gradient(merged, rows)
  found, _ = make_learner(config).gradient(params, rows)
  expected = expected_gradient(full, params, ADAPTER.scale)
  assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, expected)
  assert distance(found, expected) < 1e-4


def test_the_gradient_is_that_of_finite_differences():
  params, rows = adapted(EVEN), make_rows(GRPO)
  trained, frozen = adapters.split(params)
  step = make_learner()
  grads, _ = step.gradient(params, rows)
  rng = np.random.default_rng(4)
  way = jax.tree.map(lambda x: np.float32(rng.normal(0, 1, x.shape)), trained)

  def loss(distance):
    moved = jax.tree.map(lambda x, d: x + distance * d, trained, way)
    _, totals = step.gradient(adapters.join(moved, frozen), rows)
    return -float(totals.objective)

  slope = (loss(1e-3) - loss(-1e-3)) / 2e-3
  expected = sum(
    jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g * d), grads, way))
  )
  np.testing.assert_allclose(slope, expected, rtol=2e-2)


def test_microbatches_change_nothing():
  params, rows = adapted(EVEN), make_rows(GRPO)
  whole, _ = make_learner().gradient(params, rows)
  parts, _ = make_learner(micro_tokens=18).gradient(params, rows)
  assert distance(parts, whole) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize('rank', [16, 5], ids=['full', 'low'])
def test_the_first_step_is_the_projected_step_of_full_training(rank):
  """W + s A B moves by s^2 A A^T times what plain SGD moves W by.

  B is zero at first, so that A has no gradient and B has s A^T G. With
  orthonormal columns in A, A A^T is a projection, and where the rank is the
  number of inputs it is the identity: the first step is that of full training.
  """
  adapter = Adapter(rank=rank, alpha=2.0 * rank, targets=('query', 'down'))
  scale, rows = adapter.scale, make_rows(GRPO)
  assert scale == ADAPTER.scale
  base = noisy(EVEN)
  leaves = adapters.init(adapter, base, jax.random.key(0))
  places = ('attention', 'query'), ('mlp', 'down')
  for part, name in places:
    side = leaves['layers'][part]
    side[f'{name}_lora_a'] = jnp.linalg.qr(side[f'{name}_lora_a'])[0]
  moves = []
  for params in (base, adapters.join(leaves, base)):
    step = make_learner()
    state, _ = step.update(step.init(jax.tree.map(jnp.array, params)), rows)
    after = adapters.merge(scale, state.params)['layers']
    moves.append(
      [np.asarray(after[p][n] - base['layers'][p][n]) for p, n in places]
    )
  for (part, name), full, low in zip(places, *moves, strict=True):
    a = np.asarray(leaves['layers'][part][f'{name}_lora_a'])
    full = full.reshape(*a.shape[:2], -1)
    expected = scale**2 * a @ a.swapaxes(1, 2) @ full
    if rank == a.shape[1]:
      np.testing.assert_allclose(expected, scale**2 * full, atol=1e-5)
    assert distance(low.reshape(expected.shape), expected) < 1e-3


def test_an_update_leaves_the_base_and_keeps_no_state_of_it():
  params = jax.tree.map(jnp.array, adapted(EVEN))
  step = learner.Learner(with_scale(EVEN), GRPO, optax.adamw(0.1), WHOLE)
  state = step.init(params)
  trained, frozen = adapters.split(params)
  size = sum(x.size for x in jax.tree.leaves(trained))
  kept = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
  assert kept == 2 * size
  before = jax.device_get(trained)
  after, _ = step.update(state, make_rows(GRPO))
  now, base = adapters.split(after.params)
  # The very same arrays, so there is one copy.
  assert all(jax.tree.leaves(jax.tree.map(lambda x, y: x is y, base, frozen)))
  moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), now, before)
  assert min(jax.tree.leaves(moved)) > 1e-3


@mostly_slow(
  ('config', 'dtype', 'most'),
  {
    'small': (EVEN, 'float32', 1e-5),
    'bfloat16': (EVEN, 'bfloat16', 0.1),
    'windows': (GEMMA, 'float32', 1e-4),
    'latent_and_experts': (V3, 'float32', 1e-4),
  },
  quick=('small',),
)
def test_sampler_and_learner_agree(config, dtype, most):
  config = dataclasses.replace(with_scale(config), dtype=dtype)
  params = jax.tree.map(jnp.asarray, adapted(config, size=0.1))
  rows = make_rows(GRPO)
  completions, _ = scheduler.generate(
    config,
    params,
    [scheduler.Prompt(i, ids) for i, ids in enumerate(rows.prompts)],
    4,
    Sampling(max_len=8, num_slots=4, decode_steps=3),
    stop=StopCriteria((EOS,)),
    seed=0,
  )
  rows = rows._replace(
    completions=[c.tokens for c in completions],
    old_logprobs=[c.logprobs for c in completions],
    ref_logprobs=[c.logprobs for c in completions],
  )
  step = learner.Learner(config, GRPO, optax.sgd(0.1), WHOLE)
  for own, completion in zip(
    step.logprobs(params, rows), completions, strict=True
  ):
    np.testing.assert_allclose(own, completion.logprobs, atol=most)


@mostly_slow(
  ('config', 'mesh'),
  {
    'fsdp': (EVEN, sharding.Mesh(fsdp=8)),
    'all': (EVEN, sharding.Mesh(data=2, fsdp=2, tensor=2)),
    'experts': (EXPERTS, sharding.Mesh(fsdp=2, expert=4)),
    'expert_width': (EXPERTS, sharding.Mesh(expert=2, tensor=2, data=2)),
  },
  quick=('all',),
)
def test_a_step_on_a_mesh_is_the_one_without(config, mesh):
  params, rows = jax.device_get(adapted(config)), make_rows(GRPO)
  alone = make_learner(config)
  expected, _ = alone.gradient(params, rows)
  with sharding.use(mesh):
    together = make_learner(config)
    state = together.init(params)
    grads, _ = together.gradient(state.params, rows)
    trained, _ = adapters.split(state.params)
    for grad, leaf in zip(
      jax.tree.leaves(grads), jax.tree.leaves(trained), strict=True
    ):
      assert grad.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)
    after, _ = together.update(state, rows)
    after, base = adapters.split(jax.device_get(after.params))
  assert distance(grads, expected) < 1e-5
  trained, frozen = adapters.split(params)
  jax.tree.map(np.testing.assert_array_equal, base, frozen)
  # A step of SGD with the sum, divided once.
  moved = jax.tree.map(lambda x, y: x - y, trained, after)
  ratio = sum(jax.tree.leaves(jax.tree.map(np.vdot, moved, expected)))
  ratio /= sum(jax.tree.leaves(jax.tree.map(np.vdot, expected, expected)))
  assert distance(moved, jax.tree.map(lambda g: ratio * g, expected)) < 1e-3


def test_a_fresh_adapter_does_not_depend_on_the_mesh():
  base = noisy(EVEN)
  alone = adapters.start(ADAPTER, EVEN, jax.device_put(base), 5)
  with sharding.use(sharding.Mesh(fsdp=4, tensor=2)):
    placed = sharding.device_put_params(parameters.AXES, base)
    together = adapters.start(ADAPTER, EVEN, placed, 5)
    assert (
      len(together['layers']['mlp']['down_lora_a'].sharding.device_set) == 8
    )
  jax.tree.map(np.testing.assert_array_equal, together, alone)


def test_the_base_is_held_in_the_compute_dtype():
  narrow = dataclasses.replace(EVEN, dtype='bfloat16')
  base = jax.tree.map(jnp.asarray, noisy(EVEN))
  params = adapters.start(ADAPTER, narrow, base, 5)
  attention = params['layers']['attention']
  assert attention['query'].dtype == jnp.bfloat16
  assert attention['query_lora_a'].dtype == jnp.float32
  assert params['final_norm']['scale'].dtype == jnp.float32
  # Those in another dtype are freed, the others are the same.
  assert base['layers']['attention']['query'].is_deleted()
  assert params['final_norm']['scale'] is base['final_norm']['scale']


@pytest.mark.slow
def test_pmapped_gradient_is_the_one_of_one_device():
  params = jax.device_get(adapted(EVEN))
  rows = make_rows(GRPO)
  expected, _ = make_learner().gradient(params, rows)
  with sharding.use(sharding.Mesh(data=8)):
    # Three microbatches, and five devices that have none.
    each = make_learner(micro_tokens=48, pmapped=True)
    grads, _ = each.gradient(each.init(params).params, rows)
  assert distance(grads, expected) < 1e-5


def test_shapes_are_known_without_a_device():
  """A plan is for devices that are not here."""
  base = jax.eval_shape(lambda: transformer.init(V3, jax.random.key(0)))
  with jax.no_execution(True):
    found = adapters.shapes(ADAPTER, V3, dict(base))
    assert flops.adapter_weights(V3, ADAPTER) > 0
  wanted = adapters.init(ADAPTER, noisy(V3), jax.random.key(0))
  trained = adapters.split(found)[0]
  assert jax.tree.map(jnp.shape, trained) == jax.tree.map(jnp.shape, wanted)
