"""Experts: sorted, grouped and exchanged, they equal a loop over all."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from rlzero.models import moe
from rlzero.models.config import Experts
from rlzero.runtime import sharding

pytestmark = [
  pytest.mark.model,
  pytest.mark.usefixtures('quick_compilation'),
]

E, D, W = 8, 6, 8


def drawn(seed=0, shape=(8, 3), chosen=3):
  """Tokens, their experts and weights, and the experts' matrices."""
  rng = np.random.default_rng(seed)
  order = np.argsort(rng.random((*shape, E)), axis=-1)
  ids = np.int32(order[..., :chosen])
  ids[1, 2] = E  # padding
  normal = functools.partial(rng.normal, 0, 0.5)
  arrays = (
    normal(size=(*shape, D)),
    rng.random((*shape, chosen)),
    normal(size=(E, D, W)),
    normal(size=(E, D, W)),
    normal(size=(E, W, D)),
  )
  x, weights, *matrices = (np.float32(a) for a in arrays)
  return x, ids, weights, *matrices


def loop(x, ids, weights, gate, up, down):
  """Every expert for every token, one expert at a time."""
  out = jnp.zeros_like(x)
  for e in range(E):
    hidden = jax.nn.silu(x @ gate[e]) * (x @ up[e])
    weight = jnp.sum(jnp.where(ids == e, weights, 0), axis=-1, keepdims=True)
    out += weight * (hidden @ down[e])
  return out


def value_and_gradient(function, arguments):
  """Of a sum with unequal weights; ids have none."""

  def total(x, weights, *matrices):
    out = function(x, jnp.asarray(arguments[1]), weights, *matrices)
    return jnp.sum(out * np.arange(out.size).reshape(out.shape)), out

  x, _, *rest = arguments
  step = jax.value_and_grad(total, argnums=range(5), has_aux=True)
  (_, out), grads = jax.jit(step)(x, *rest)
  return out, *grads


def close(first, second):
  for one, other in zip(first, second, strict=True):
    np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-4)


def emulated(operand, output, *way, axis_name):
  """`ragged_all_to_all` of plain collectives: XLA has none on a CPU."""
  gathered = functools.partial(jax.lax.all_gather, axis_name=axis_name)
  starts, sizes, places = (gathered(x) for x in way[:3])
  rows, here = gathered(operand), jax.lax.axis_index(axis_name)
  index = jnp.arange(output.shape[0])
  for source in range(rows.shape[0]):
    offset = index - places[source, here]
    got = (offset >= 0) & (offset < sizes[source, here])
    where = jnp.clip(starts[source, here] + offset, 0, operand.shape[0] - 1)
    output = jnp.where(got[:, None], rows[source][where], output)
  return output


@pytest.mark.parametrize('chosen', [1, 3])
def test_sorted_experts_equal_the_loop(chosen):
  arguments = drawn(chosen=chosen)
  close(
    value_and_gradient(moe.routed, arguments),
    value_and_gradient(loop, arguments),
  )


MESHES = {
  'no exchange': sharding.Mesh(data=4, tensor=2),
  'expert': sharding.Mesh(expert=8),
  'all': sharding.Mesh(fsdp=2, expert=2, tensor=2),
}


@pytest.mark.parametrize('mesh', MESHES.values(), ids=MESHES)
@pytest.mark.parametrize('room', [moe._ROOM, 10], ids=['whole', 'parts'])
@pytest.mark.parametrize('kind', ['padded', 'ragged'])
def test_exchanged_experts_equal_the_loop(mesh, room, kind, monkeypatch):
  if mesh.expert == 1 and (kind, room) != ('padded', moe._ROOM):
    pytest.skip('nothing is exchanged')
  arguments = list(drawn(1))
  # All tokens of some devices go to the same experts.
  arguments[1][3:5] = [2, 3, 6]
  monkeypatch.setattr(moe, '_ROOM', room)
  if kind == 'ragged':
    monkeypatch.setattr(sharding, 'platform', lambda: 'tpu')
    monkeypatch.setattr(jax.lax, 'ragged_all_to_all', emulated)
  with sharding.use(mesh):
    out = jax.device_get(value_and_gradient(moe.routed, arguments))
  close(out, value_and_gradient(loop, arguments))


def test_experts_where_a_mesh_shards_the_sequence(monkeypatch):
  monkeypatch.setitem(sharding.RULES, 'T', ('tensor',))
  monkeypatch.setitem(sharding.RULES, 'W', ())
  arguments = drawn(2, shape=(8, 4))
  with sharding.use(sharding.Mesh(data=2, expert=2, tensor=2)):
    out = jax.device_get(value_and_gradient(moe.routed, arguments))
  close(out, value_and_gradient(loop, arguments))


def test_gradients_are_summed_over_devices_once(monkeypatch):
  """And not in each part of an exchange, at the size of its room."""
  monkeypatch.setattr(moe, '_ROOM', 10)
  x, ids, weights, *matrices = drawn(1)

  def total(x, weights, *matrices):
    return jnp.sum(moe.routed(x, jnp.asarray(ids), weights, *matrices) ** 2)

  with sharding.use(MESHES['all']):
    step = jax.jit(jax.grad(total, argnums=range(5)))
    text = step.lower(x, weights, *matrices).compile().as_text()
  sums = [line for line in text.splitlines() if ' all-reduce(' in line]
  assert sums and ' all-to-all(' in text
  assert not [line for line in sums if '/while/' in line]


SOFTMAX = Experts(num_experts=4, num_chosen=2, width=1)
SIGMOID = dataclasses.replace(
  SOFTMAX, scores='sigmoid', num_groups=2, num_chosen_groups=1, normalize=True,
  scale=2.0,
)  # fmt: skip


def test_routers_by_hand():
  odds = np.array([[1.0, 2, 3, 4]])
  ids, weights = moe.route(SOFTMAX, jnp.log(odds), None)
  np.testing.assert_array_equal(ids, [[3, 2]])
  np.testing.assert_allclose(weights, [[0.4, 0.3]], rtol=1e-6)
  # sigmoid(log(p / (1 - p))) = p
  scores = np.array([[0.9, 0.1, 0.6, 0.5]])
  logits = jnp.log(scores / (1 - scores))
  # The best two of a group count: 0.9 + 0.1 is below 0.6 + 0.5.
  ids, weights = moe.route(SIGMOID, logits, jnp.zeros(4))
  np.testing.assert_array_equal(ids, [[2, 3]])
  np.testing.assert_allclose(weights, 2 * scores[:, 2:] / 1.1, rtol=1e-5)
  # A bias changes the choice, but not the weights.
  bias = jnp.array([0.0, 0.5, 0.0, 0.0])
  ids, weights = moe.route(SIGMOID, logits, bias)
  np.testing.assert_array_equal(ids, [[0, 1]])
  np.testing.assert_allclose(weights, [[1.8, 0.2]], rtol=1e-5)
  # Softmax groups are worth their best.
  grouped = dataclasses.replace(SOFTMAX, num_groups=2, num_chosen_groups=1)
  ids, _ = moe.route(grouped, jnp.log(jnp.array([[5.0, 1, 4, 3]])), None)
  np.testing.assert_array_equal(ids, [[0, 1]])


def test_given_experts_are_taken_and_weighed():
  logits = jnp.log(jnp.array([[1.0, 2, 3, 4], [1, 2, 3, 4]]))
  given = jnp.array([[0, 1], [-1, -1]])
  ids, weights = moe.route(SOFTMAX, logits, None, given)
  np.testing.assert_array_equal(ids, [[0, 1], [3, 2]])
  np.testing.assert_allclose(weights, [[0.1, 0.2], [0.4, 0.3]], rtol=1e-6)


def test_bias_moves_against_the_load_by_hand():
  ids = jnp.array([[0, 1], [0, 1], [0, 2], [4, 4]])  # the last is padding
  loads = moe.loads(ids, 4)
  np.testing.assert_array_equal(loads, [3, 2, 1, 0])
  bias = moe.balanced(jnp.ones((1, 4)), loads[None], 0.1)
  np.testing.assert_allclose(bias, [[0.9, 0.9, 1.1, 1.1]], rtol=1e-6)
  still = moe.balanced(jnp.ones((1, 4)), jnp.zeros((1, 4)), 0.1)
  np.testing.assert_array_equal(still, np.ones((1, 4)))


@pytest.mark.parametrize(
  'change, message',
  [
    ({'num_chosen': 5}, 'num_chosen is 5, but 1 groups of 4 have 4'),
    ({'num_groups': 3}, 'num_experts is 4; .* multiple of 3'),
    ({'num_chosen_groups': 2}, 'num_chosen_groups is 2; .* at most 1'),
    ({'width': 0}, 'Experts.width is 0'),
    ({'shared_width': -1}, 'shared_width is -1; it must be at least 0'),
    ({'scores': 'sigmoid', 'num_groups': 4, 'num_chosen_groups': 4},
     '4 groups of one expert'),
  ],
)  # fmt: skip
def test_refused_experts(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(SOFTMAX, **change)


@pytest.mark.slow
def test_ragged_exchange_compiles_for_tpus(monkeypatch):
  pytest.importorskip('libtpu')
  monkeypatch.setenv('TPU_SKIP_MDS_QUERY', '1')
  from jax.experimental import topologies

  devices = topologies.get_topology_desc(
    platform='tpu', topology_name='v5e:2x4'
  ).devices

  def loss(x, ids, weights, *matrices):
    out = moe.routed(x, ids, weights, *matrices)
    return jnp.sum(out.astype(jnp.float32) ** 2)

  shapes = (
    ((16, 64, 256), 'BT_', jnp.bfloat16),
    ((16, 64, 4), 'BT_', jnp.int32),
    ((16, 64, 4), 'BT_', jnp.float32),
    ((16, 256, 128), 'EDW', jnp.bfloat16),
    ((16, 256, 128), 'EDW', jnp.bfloat16),
    ((16, 128, 256), 'EWD', jnp.bfloat16),
  )
  with sharding.use(sharding.Mesh(fsdp=2, expert=4), devices):
    arguments = (
      sharding.abstract(jax.ShapeDtypeStruct(shape, dtype), axes)
      for shape, axes, dtype in shapes
    )
    gradient = jax.grad(loss, argnums=(0, 2, 3, 4, 5))
    lowered = jax.jit(gradient).lower(*arguments)
    # There and back, and their gradients.
    assert lowered.as_text().count('@ragged_all_to_all') == 4
    lowered.compile()
