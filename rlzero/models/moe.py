"""Mixture of experts: tokens sorted to experts, no token dropped.

DeepSeekMoE (arXiv 2401.06066) with the routers of DeepSeek-V2 (2405.04434)
and V3 (2412.19437); Qwen3-MoE is the first of these without shared experts.
On a mesh the experts are sharded over `expert`, and so are the rows, so
tokens travel to their experts and back.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
from jax import numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from rlzero.models import layers, lora, parameters
from rlzero.models.config import Experts, ModelConfig
from rlzero.runtime import sharding
from rlzero.types import AnyArray, Params

# Rows that a device makes room for in one exchange. All tokens could choose
# the experts of one device, and none may be dropped; so tokens are exchanged
# in parts for which there is room even then.
_ROOM = 1 << 17


class MoE(nn.Module):
  """Shared experts, and for each token the experts that its router chooses."""

  config: ModelConfig
  transposed: bool = False  # the matrices of the shared experts

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B T D'],
    real: Bool[AnyArray, 'B T'],
    given: Int[Array, 'B T C'] | None = None,
  ) -> tuple[Float[Array, 'B T D'], Int[Array, 'B T C']]:
    """The layer's output, and the experts each token went to.

    Args:
      x: of the tokens.
      real: which are no padding; padding goes to no expert.
      given: experts to take instead of choosing, -1 to choose.
    """
    e = self.config.experts
    assert e is not None  # else the block has an MLP
    router = parameters.declare(self, 'router')
    bias = None
    if e.scores == 'sigmoid':
      bias = parameters.declare(self, 'router_bias')
    gate = parameters.declare_matrix(self, 'expert_gate')
    up = parameters.declare_matrix(self, 'expert_up')
    down = parameters.declare_matrix(self, 'expert_down')
    # bfloat16 products of a router would choose other experts.
    logits = jnp.einsum(
      'btd,de->bte',
      x.astype(jnp.float32),
      router,
      precision=jax.lax.Precision.HIGHEST,
    )
    ids, weights = route(e, logits, bias, given)
    ids = jnp.where(real[..., None], ids, e.num_experts)
    out = routed(x, ids, weights, gate, up, down)
    if e.shared_width:
      out += layers.glu(
        x,
        parameters.declare_matrix(self, 'shared_gate'),
        parameters.declare_matrix(self, 'shared_up'),
        parameters.declare_matrix(self, 'shared_down'),
        self.config,
        self.transposed,
      )
    return out, ids


def route(
  config: Experts,
  logits: Float[Array, '*B E'],
  bias: Float[Array, 'E'] | None,
  given: Int[Array, '*B C'] | None = None,
) -> tuple[Int[Array, '*B C'], Float[Array, '*B C']]:
  """Experts of each token and their weights.

  Args:
    config: of the experts.
    logits: of the router.
    bias: added to sigmoid scores for the choice alone (arXiv 2412.19437,
      eq. 16); None with softmax scores.
    given: experts to take instead, -1 to choose.
  """
  if config.scores == 'sigmoid':
    scores = jax.nn.sigmoid(logits)
  else:
    scores = jax.nn.softmax(logits, axis=-1)
  worth = scores
  if bias is not None:
    worth += jnp.reshape(bias, (1,) * (worth.ndim - 1) + (-1,))
  worth = jax.lax.stop_gradient(worth)
  if config.num_chosen_groups < config.num_groups:
    worth = _best_groups(config, worth)
  _, ids = jax.lax.top_k(worth, config.num_chosen)
  if given is not None:
    ids = jnp.where(given >= 0, given, ids)
  weights = jnp.take_along_axis(scores, ids, axis=-1)
  if config.normalize:
    weights /= jnp.sum(weights, axis=-1, keepdims=True) + 1e-20
  return ids, weights * config.scale


def _best_groups(config, worth):
  """-inf for the experts of all but the best groups."""
  grouped = worth.reshape(*worth.shape[:-1], config.num_groups, -1)
  best, _ = jax.lax.top_k(grouped, 2 if config.scores == 'sigmoid' else 1)
  _, chosen = jax.lax.top_k(jnp.sum(best, axis=-1), config.num_chosen_groups)
  kept = jnp.any(jax.nn.one_hot(chosen, config.num_groups, dtype=bool), axis=-2)
  return jnp.where(kept[..., None], grouped, -jnp.inf).reshape(worth.shape)


def loads(
  ids: Int[Array, '*B C'], num_experts: int
) -> Float[Array, '{num_experts}']:
  """How many tokens went to each expert."""
  ids = ids.reshape(-1, 1)
  experts = jnp.arange(num_experts)[None]
  return jnp.sum(ids == experts, axis=0, dtype=jnp.float32)


def balanced(
  bias: Float[Array, 'L E'], loads: Float[Array, 'L E'], speed: float
) -> Float[Array, 'L E']:
  """b + gamma * sign(mean load - load): a step of the router's bias.

  Balance without an auxiliary loss, arXiv 2408.15664, algorithm 1. Nothing
  moves where no token was counted.
  """
  mean = jnp.mean(loads, axis=-1, keepdims=True)
  return bias + speed * jnp.sign(mean - loads)


def with_balanced(
  params: Params,
  before: Params,
  loads: Float[Array, 'L E'] | tuple[()],
  speed: float,
) -> Params:
  """Parameters with the router's bias moved by the loads and nothing else.

  Its gradient is zero, and neither optimiser nor weight decay may move it. Of
  an adapter, which has no router, nothing changes.
  """
  if 'router_bias' not in before.get('layers', {}).get('moe', {}):
    return params
  assert not isinstance(loads, tuple)  # which a model without experts has
  bias = balanced(before['layers']['moe']['router_bias'], loads, speed)
  routed = {**params['layers']['moe'], 'router_bias': bias}
  return {**params, 'layers': {**params['layers'], 'moe': routed}}


def routed(
  x: Float[Array, 'B T D'],
  ids: Int[Array, 'B T C'],
  weights: Float[Array, 'B T C'],
  gate: Float[Array, 'E D W'] | lora.Adapted,
  up: Float[Array, 'E D W'] | lora.Adapted,
  down: Float[Array, 'E W D'] | lora.Adapted,
) -> Float[Array, 'B T D']:
  """sum_c weight_c * expert_c(x) of each token; id E is no expert.

  Experts are SwiGLU layers. On a mesh each device holds a part of the experts
  (E) and of their width (W), and the whole of D while the layer runs.
  """
  experts = jax.tree.map(lambda w: w.astype(x.dtype), (gate, up, down))
  if not sharding.on_mesh():
    return _of_device(x, ids, weights, *experts)
  spec = sharding.spec
  rows = spec('BT_', x.shape, 'Tokens')
  chosen = spec('BT_', ids.shape, 'Experts of tokens')
  matrices = jax.tree.map(
    lambda axes, w: spec(axes, w.shape, 'Experts'),
    tuple(map(_axes, ('E_W', 'E_W', 'EW_'), experts)),
    experts,
  )

  def of_device(x, ids, weights, *experts):
    # Going back, the sum over devices that share an array stands where the
    # array begins to vary: here, once, and not in every part at the size of its
    # room.
    x, weights = _varying(x, rows), _varying(weights, chosen)
    experts = jax.tree.map(_varying, experts, matrices)
    return _of_device(x, ids, weights, *experts)

  across = jax.shard_map(
    of_device, in_specs=(rows, chosen, chosen, *matrices), out_specs=rows
  )
  return across(x, ids, weights, *experts)


def _axes(axes, matrix):
  """Axes of the experts' matrices, and of A and B beside them."""
  if not isinstance(matrix, lora.Adapted):
    return axes
  stack, inputs, outputs = axes
  return dataclasses.replace(
    matrix, kernel=axes, a=f'{stack}{inputs}_', b=f'{stack}_{outputs}'
  )


def _of_device(x, ids, weights, gate, up, down):
  """`routed` on one device of a mesh, or without one."""
  b, t, d = x.shape
  flat = x.reshape(-1, d), ids.reshape(b * t, -1), weights.reshape(b * t, -1)
  num_shards = sharding.axis_size('E')
  if num_shards == 1:
    out = _weighed(*flat, functools.partial(_experts, gate, up, down))
  else:
    out = _in_parts(flat, num_shards, gate, up, down)
  if sharding.axis_size('W') > 1:
    out = jax.lax.psum(out, 'tensor')
  return out.reshape(b, t, d)


def _varying(x, spec):
  """Types an array that lies as `spec` says as different on every device."""
  by = jax.tree.leaves(tuple(spec))
  names = tuple(name for name in sharding.axis_names() if name not in by)
  return jax.lax.pcast(x, names, to='varying') if names else x


def parts(
  tokens: int, num_shards: int, chosen: int, held: int
) -> tuple[int, int, int]:
  """How many exchanges there are, tokens of one, and rows of its room.

  Args:
    tokens: of a device.
    num_shards: of the experts.
    chosen: experts a token.
    held: experts of a device.
  """
  worst = num_shards * min(chosen, held)  # rows a token, if all devices agree
  number = min(-(-tokens * worst // _ROOM), tokens)
  size = -(-tokens // number)
  return number, size, size * worst


# Tokens, their experts and the weights of these.
_Flat = tuple[Float[Array, 'T D'], Int[Array, 'T C'], Float[Array, 'T C']]


def _in_parts(
  flat: _Flat,
  num_shards: int,
  gate: lora.Matrix,
  up: lora.Matrix,
  down: lora.Matrix,
) -> Float[Array, 'T D']:
  """Exchanges as many tokens at a time as there is room for."""
  tokens, chosen = flat[1].shape
  held = gate.shape[0]
  across = functools.partial(_across, num_shards, gate, up, down)
  number, size, _ = parts(tokens, num_shards, chosen, held)
  if number == 1:
    return _weighed(*flat, across)

  def split(y, value=0):
    pad = ((0, number * size - tokens), (0, 0))
    y = jnp.pad(y, pad, constant_values=value)
    return y.reshape(number, size, -1)

  x, ids, weights = flat

  @jax.checkpoint
  def of_part(part: _Flat) -> Float[Array, 'T D']:
    return _weighed(*part, across)

  each = split(x), split(ids, num_shards * held), split(weights)
  out = jax.lax.map(of_part, each)
  return out.reshape(number * size, -1)[:tokens]


def _weighed(x, ids, weights, experts):
  """Sorts the tokens by expert, applies them, and adds up what they say."""
  order = jnp.argsort(ids.reshape(-1), stable=True)
  back = jnp.argsort(order, stable=True)
  out = experts(_spread(ids.shape[1], x, order, back), ids)
  out = _moved(out, back, order).reshape(*ids.shape, -1)
  return jnp.sum(weights[..., None] * out, axis=1).astype(x.dtype)


# A gather's gradient is a scatter, which adds up row by row; these know that
# their indices are a permutation and its inverse.


@jax.custom_vjp
def _moved(rows, order, back):
  """rows[order]; `back` undoes it."""
  return rows[order]


_moved.defvjp(
  lambda rows, order, back: (rows[order], back),
  lambda back, gradient: (gradient[back], None, None),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _spread(copies, x, order, back):
  """Copies of each token, moved."""
  return x[order // copies]


_spread.defvjp(
  lambda copies, x, order, back: (x[order // copies], back),
  lambda copies, back, gradient: (
    jnp.sum(gradient[back].reshape(-1, copies, gradient.shape[-1]), axis=1),
    None,
    None,
  ),
)


def _experts(gate, up, down, rows, ids):
  """Experts of this device for rows sorted by them; others give zero."""
  return _grouped(gate, up, down, rows, _count(ids, gate.shape[0]))


def _grouped(gate, up, down, rows, sizes):
  """The first sizes[0] rows through the first expert, and so on."""
  real = (jnp.arange(rows.shape[0]) < jnp.sum(sizes))[:, None]
  # What a ragged product leaves beyond its groups is the backend's own.
  rows = jnp.where(real, rows, 0)
  product = functools.partial(jax.lax.ragged_dot, group_sizes=sizes)
  hidden = nn.silu(
    checkpoint_name(lora.times(rows, gate, product), 'expert_product')
  )
  hidden *= checkpoint_name(lora.times(rows, up, product), 'expert_product')
  return jnp.where(real, lora.times(hidden, down, product), 0)


def _count(ids, number):
  return loads(ids, number).astype(jnp.int32)


def _across(num_shards, gate, up, down, rows, ids):
  """Rows, sorted by expert, to the devices of their experts and back."""
  held = gate.shape[0]
  room = ids.shape[0] * min(ids.shape[1], held)
  send = _count(ids, num_shards * held).reshape(num_shards, held)
  got = jax.lax.all_to_all(send, 'expert', 0, 0, tiled=True)
  if sharding.platform() == 'cpu':
    there, back, starts = _padded(rows.shape[0], send, room)
  else:
    there, back, starts = _ragged(rows.shape[0], send, got, num_shards * room)
  arrived = there(rows)
  # They came in the order of their devices; now in that of their experts.
  place = jnp.arange(num_shards * room)
  source = jnp.sum(place[:, None] >= starts[None], axis=1) - 1
  ends = jnp.cumsum(got, axis=1)[source]
  expert = jnp.sum((place - starts[source])[:, None] >= ends, axis=1)
  order = jnp.argsort(expert, stable=True)
  undo = jnp.argsort(order, stable=True)
  arrived = _moved(arrived, order, undo)
  out = _grouped(gate, up, down, arrived, jnp.sum(got, axis=0))
  return back(_moved(out, undo, order))


def _padded(number, send, room):
  """An exchange in which each pair of devices has the same room.

  For CPUs, which know no ragged one. Returns the way there, the way back, and
  where the rows of each device start there.
  """
  num_shards = send.shape[0]
  count = jnp.sum(send, axis=1)
  first = jnp.cumsum(count) - count

  def there(rows):
    index = first[:, None] + jnp.arange(room)[None]
    blocks = rows[jnp.minimum(index, number - 1)]
    blocks = jax.lax.all_to_all(blocks, 'expert', 0, 0, tiled=True)
    return blocks.reshape(num_shards * room, -1)

  def back(rows):
    blocks = rows.reshape(num_shards, room, -1)
    blocks = jax.lax.all_to_all(blocks, 'expert', 0, 0, tiled=True)
    place = jnp.arange(number)
    to = jnp.sum(place[:, None] >= first[None], axis=1) - 1
    # Rows of no expert stand last and are looked at by no one.
    return blocks[to, jnp.minimum(place - first[to], room - 1)]

  return there, back, jnp.arange(num_shards) * room


def _ragged(number, send, got, room):
  """An exchange of as many rows as there are; returns what `_padded` does."""
  here = jax.lax.axis_index('expert')
  count, arriving = jnp.sum(send, axis=1), jnp.sum(got, axis=1)
  table = jax.lax.all_gather(count, 'expert')  # [from, to]
  first = jnp.cumsum(count) - count
  starts = jnp.cumsum(arriving) - arriving
  there_at = (jnp.cumsum(table, axis=0) - table)[here]
  back_at = (jnp.cumsum(table, axis=1) - table)[:, here]
  way = (first, count, there_at, arriving)
  home = (starts, arriving, back_at, count)
  sizes = number, room
  return (
    lambda rows: _exchange(sizes, rows, way, home),
    lambda rows: _exchange(sizes[::-1], rows, home, way),
    starts,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _exchange(sizes, rows, way, home):
  """sizes[0] rows out, sizes[1] in; the gradient goes the way home."""
  # Zeros that differ from device to device, as shard_map counts them.
  out = jnp.broadcast_to(0 * rows[:1], (sizes[1], rows.shape[1]))
  return jax.lax.ragged_all_to_all(rows, out, *way, axis_name='expert')


_exchange.defvjp(
  lambda sizes, rows, way, home: (
    _exchange(sizes, rows, way, home),
    (way, home),
  ),
  lambda sizes, both, gradient: (
    _exchange(sizes[::-1], gradient, *both[::-1]),
    None,
    None,
  ),
)
