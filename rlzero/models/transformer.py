"""The decoder, and the one forward function that every use goes through.

Prefill, decoding, the reference, the update and evaluation differ only in
what a row may look at besides its own past:

  prefill, pre-training    nothing
  decoding                 a cache (`CachedContext`)
  update, reference        prompts computed in the same call (`Prompts`), whose
                           cost is P*Tp + B*Tc tokens instead of B*(Tp + Tc);
                           what all of them begin with, the shared prefix, once
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlzero.models import attention, latent, layers, moe, rope
from rlzero.models.config import ModelConfig
from rlzero.runtime import sharding
from rlzero.types import (
  CachedContext,
  KeyValues,
  Params,
  Prompts,
  Routing,
  Tokens,
)

# Axes of each parameter, by its last name; below a stack of layers an L stands
# before, below an unstacked layer (`unstack`) none.
AXES = {
  'embedding': 'VD',
  'kernel': 'DV',  # of the head
  'query': 'DNH',
  'key': 'DKH',
  'value': 'DKH',
  'output': 'NHD',
  'query_bias': 'NH',
  'key_bias': 'KH',
  'value_bias': 'KH',
  'query_norm': 'H',
  'key_norm': 'H',
  'gate': 'DF',
  'up': 'DF',
  'down': 'FD',
  'scale': 'D',
  # Latent attention
  'query_down': 'DQ',
  'query_down_norm': 'Q',
  'query_up': 'QNH',
  'latent_down': 'DA',
  'latent_norm': 'R',
  'latent_up': 'RNX',
  'latent_output': 'NUD',
  # A mixture of experts
  'router': 'DE',
  'router_bias': 'E',
  'expert_gate': 'EDW',
  'expert_up': 'EDW',
  'expert_down': 'EWD',
  'shared_gate': 'DZ',
  'shared_up': 'DZ',
  'shared_down': 'ZD',
}

# Matrices that multiply all tokens, and how many of their axes are inputs.
_MATRICES = {
  **dict.fromkeys(('kernel', 'query', 'key', 'value', 'gate', 'up', 'down'), 1),
  **dict.fromkeys(('query_down', 'query_up', 'latent_down'), 1),
  **dict.fromkeys(('shared_gate', 'shared_up', 'shared_down'), 1),
  **dict.fromkeys(('output', 'latent_output'), 2),
}

# `AXES` of unstacked parameters: these matrices are transposed.
UNSTACKED_AXES = AXES | {
  name: AXES[name][inputs:] + AXES[name][:inputs]
  for name, inputs in _MATRICES.items()
}

# What is computed in float32 whatever the dtype: norms, and routers.
_FLOAT32 = {name for name in AXES if 'norm' in name or 'router' in name}
_FLOAT32.add('scale')

# What the backward pass finds again of a layer that is not recomputed as a
# whole: the products of its matrices, and what attention makes of them. The
# rest, scores included, takes longer to fetch from memory than to make again.
_REMAT_POLICY = jax.checkpoint_policies.save_from_both_policies(
  jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  jax.checkpoint_policies.save_only_these_names(*layers.SAVED_NAMES),
)


class Attention(nn.Module):
  """Projections around `attention.attend`; keys leave it for the cache."""

  config: ModelConfig
  transposed: bool = False  # matrices are [out, in]

  def setup(self):
    c = self.config
    d, n, k, h = c.width, c.num_heads, c.num_kv_heads, c.head_dim
    self.query = layers.matrix(self, 'query', d, n, h)
    self.key = layers.matrix(self, 'key', d, k, h)
    self.value = layers.matrix(self, 'value', d, k, h)
    self.output = layers.matrix(self, 'output', n, h, d, inputs=2)
    if c.qkv_bias:
      zeros = nn.initializers.zeros
      self.query_bias = self.param('query_bias', zeros, (n, h))
      self.key_bias = self.param('key_bias', zeros, (k, h))
      self.value_bias = self.param('value_bias', zeros, (k, h))
    if c.qk_norm:
      ones = layers.norm_init(c)
      self.query_norm = self.param('query_norm', ones, (h,))
      self.key_norm = self.param('key_norm', ones, (h,))

  def project(self, x, cos_sin, absorbed):
    """Queries [B, K, R, T, H], what they attend over, and what is cached."""
    del absorbed  # there is one way
    c = self.config

    def heads(kernel, bias):
      y = layers.multiply(x, kernel, self.transposed)
      y = y.reshape(*x.shape[:2], -1, c.head_dim).swapaxes(1, 2)
      return y + bias.astype(x.dtype)[None, :, None] if c.qkv_bias else y

    query = heads(self.query, c.qkv_bias and self.query_bias)
    key = heads(self.key, c.qkv_bias and self.key_bias)
    value = heads(self.value, c.qkv_bias and self.value_bias)
    if c.qk_norm:
      query = layers.rms_norm(query, self.query_norm, c)
      key = layers.rms_norm(key, self.key_norm, c)
    query, key = rope.rotate(query, cos_sin), rope.rotate(key, cos_sin)
    b, _, t, h = query.shape
    query = query.reshape(b, c.num_kv_heads, -1, t, h)
    own = KeyValues(key, value)
    return query, own, KeyValues(key.swapaxes(2, 3), value)

  def seen(self, held):
    """What is attended over, of what is cached."""
    return KeyValues(held.key.swapaxes(2, 3), held.value)

  def merge(self, heads, absorbed):
    """[B, K, R, T, H] -> [B, T, D]."""
    del absorbed
    b, k, r, t, h = heads.shape
    heads = heads.reshape(b, k * r, t, h).swapaxes(1, 2)
    return layers.multiply(
      heads.reshape(b, t, -1), self.output, self.transposed
    )


class _Place(NamedTuple):
  """Where rows stand, as every layer needs it."""

  rope_table: rope.RopeTable
  mask: attention.Visible | attention.Ids  # of a row's own tokens
  real: Bool[Array, 'B T']  # not padding


class _Shared(NamedTuple):
  """Where prompts stand, and the shared prefix that they go on from, if any."""

  prompts: _Place
  index: Int[Array, 'B M']
  shared_prefix: _Place | None
  # What prompts see of the shared prefix.
  seen: list[attention.Visible | attention.Ids]


class Block(nn.Module):
  """One layer, applied to rows and, where given, to the prompts they share."""

  config: ModelConfig
  routed: bool  # to experts; else it has an MLP
  transposed: bool = False  # matrices are [out, in]

  def setup(self):
    c = self.config
    self.attention_norm = layers.RMSNorm(c)
    kind = latent.LatentAttention if c.latent else Attention
    self.attention = kind(c, self.transposed)
    self.mlp_norm = layers.RMSNorm(c)
    if self.routed:
      self.moe = moe.MoE(c, self.transposed)
    else:
      self.mlp = layers.MLP(c, self.transposed)
    if c.post_norms:
      self.attention_post_norm = layers.RMSNorm(c)
      self.mlp_post_norm = layers.RMSNorm(c)

  def __call__(self, carry, cached, local, given, rows, shared, valid):
    x, prompt_x, prefix_x = carry
    absorbed, prompt_ids = bool(cached), None
    seen = [self.attention.seen(held) for held in cached]
    if prefix_x is not None:
      prefix_x, own, _, _ = self._layer(
        prefix_x, shared.shared_prefix, local, None, (), False
      )
      seen = [own]
    if shared is not None:
      before = _parts(seen, shared.seen, local)
      prompt_x, own, _, prompt_ids = self._layer(
        prompt_x, shared.prompts, local, None, before, False
      )
      # The gradient of this gather adds up what the rows of a group say.
      own = KeyValues(*(_of_rows(part, shared.index) for part in own))
      seen = [*seen, own]
    before = _parts(seen, valid, local)
    x, _, held, ids = self._layer(x, rows, local, given, before, absorbed)
    if prefix_x is not None:
      prefix_x = sharding.constrain(prefix_x, 'PT_')
    if shared is not None:
      prompt_x = sharding.constrain(prompt_x, 'PT_')
    routing = self._routing(ids, prompt_ids) if self.routed else None
    carry = sharding.constrain(x, 'BT_'), prompt_x, prefix_x
    return carry, (held, routing)

  def _layer(self, x, place, local, given, before, absorbed):
    c = self.config
    query, own, held = self.attention.project(
      self.attention_norm(x), place.rope_table.of(local), absorbed
    )
    scale = (c.query_scalar or c.head_dim) ** -0.5
    if c.latent:
      scale *= rope.score_scale(c.rope_scaling)
    parts = [*before, attention.Part(*own, place.mask.of(local))]
    heads = attention.attend(query, parts, scale)
    more = self.attention.merge(heads, absorbed)
    x = x + (self.attention_post_norm(more) if c.post_norms else more)
    normed, ids = self.mlp_norm(x), None
    if self.routed:
      more, ids = self.moe(normed, place.real, given)
    else:
      more = self.mlp(normed)
    x = x + (self.mlp_post_norm(more) if c.post_norms else more)
    return x, own, held, ids

  def _routing(self, ids, prompt_ids):
    number = self.config.experts.num_experts
    loads = moe.loads(ids, number)
    if prompt_ids is not None:
      loads += moe.loads(prompt_ids, number)
    return Routing(ids, loads)


def _parts(seen, valid, local):
  """Keys and values, and who may look at them in a layer local or not."""
  return [
    attention.Part(*keys, visible.of(local))
    for keys, visible in zip(seen, valid, strict=True)
  ]


def _of_rows(part, index):
  """Keys or values of prompts, [P, K, Tp, H], for rows: [B, K, M * Tp, H]."""
  part = part[index].swapaxes(1, 2)
  return part.reshape(*part.shape[:2], -1, part.shape[-1])


def _continued(prompts) -> attention.Ids:
  """Which of the M * Tp prompt tokens a row's tokens may look at."""
  real = (prompts.tokens.segments > 0)[prompts.index]
  slots = jnp.arange(prompts.index.shape[1])[None, :, None]
  slots = jnp.where(real, slots, -1)
  return attention.Ids(prompts.which, slots.reshape(slots.shape[0], -1))


def _sight(config: ModelConfig, length: int):
  """How queries of this many tokens a row are told what they may look at."""
  fused = attention.fuses(config, length)

  def sight(ids, positions, keys, causal=False):
    if fused:
      return ids
    return attention.windows(ids.mask(causal), positions, keys, config.window)

  return sight


class Transformer(nn.Module):
  """Token ids to final hidden states and the rows' own keys and values.

  Args:
    config: of the model.
    unstacked: whether each layer has parameters of its own, with transposed
      matrices, and is compiled by itself, instead of a scan over stacks of
      them; not for training.
  """

  config: ModelConfig
  unstacked: bool = False

  def setup(self):
    c = self.config
    self.embed = nn.Embed(c.vocab_size, c.width, embedding_init=layers.INIT)
    block = nn.remat(
      Block, prevent_cse=False, policy=None if c.remat else _REMAT_POLICY
    )

    def stack(length, routed):
      return nn.scan(
        block,
        variable_axes={'params': 0},
        split_rngs={'params': True},
        in_axes=(0, 0, 0) + (nn.broadcast,) * 3,
        length=length,
      )(c, routed)

    if self.unstacked:
      self.layers = [
        Block(c, bool(c.experts) and i >= c.num_dense_layers, transposed=True)
        for i in range(c.num_layers)
      ]
    elif c.experts and c.num_dense_layers:
      self.dense_layers = stack(c.num_dense_layers, False)
      self.layers = stack(c.num_layers - c.num_dense_layers, True)
    else:
      self.layers = stack(c.num_layers, c.experts is not None)
    self.final_norm = layers.RMSNorm(c)
    if not c.tied_embedding:
      self.head = nn.Dense(
        c.vocab_size, use_bias=False, kernel_init=layers.INIT
      )

  def __call__(
    self,
    rows: Tokens,
    prompts: Prompts | None = None,
    context: CachedContext | None = None,
    given: Int[Array, 'L B T C'] | None = None,
    rope_table: rope.RopeTable | None = None,
  ):
    """Runs the rows; at most one of `prompts` and `context` is given.

    Args:
      rows: of tokens.
      prompts: that the rows continue.
      context: that the rows continue.
      given: experts of the rows' tokens in the layers that have some, -1 where
        the router chooses.
      rope_table: of the rows' positions, from a caller that has them already.

    Returns:
      hidden: [B, T, D] after the last norm, of the rows.
      prompt_hidden: [P, Tp, D], or None without prompts.
      own: the rows' own keys and values.
      routing: to the experts; None in a model without.
    """
    if prompts is not None and context is not None:
      raise ValueError('Give rows either prompts or a context, not both.')
    c = self.config

    def place(tokens, rope_table=None):
      ids = attention.Ids(tokens.segments, tokens.segments)
      sight = _sight(c, tokens.ids.shape[1])
      return _Place(
        rope_table or rope.make_table(c, tokens.positions),
        sight(ids, tokens.positions, tokens.positions, causal=True),
        tokens.segments > 0,
      )

    sight = _sight(c, rows.ids.shape[1])
    if prompts is not None and c.experts:
      prompts = _without_padding(prompts)
    x = sharding.constrain(self._embed(rows.ids), 'BT_')
    prompt_x = prefix_x = shared = None
    cached = valid = ()
    if prompts is not None:
      tokens, shared_prefix, seen = prompts.tokens, prompts.shared_prefix, []
      prompt_x = sharding.constrain(self._embed(tokens.ids), 'PT_')
      places = tokens.positions[prompts.index]
      places = places.reshape(places.shape[0], -1)
      valid = [sight(_continued(prompts), rows.positions, places)]
      if shared_prefix is not None:
        prefix_x = sharding.constrain(self._embed(shared_prefix.ids), 'PT_')

        def beyond(queries):
          """Sight of the shared prefix, all of which is seen by all."""
          rows, length = queries.ids.shape
          places = jnp.broadcast_to(
            shared_prefix.positions[:1], (rows, shared_prefix.ids.shape[1])
          )
          ids = attention.Ids(jnp.ones_like(queries.ids), jnp.ones_like(places))
          return _sight(c, length)(ids, queries.positions, places)

        seen, valid = [beyond(tokens)], [beyond(rows), *valid]
      shared = _Shared(
        place(tokens),
        prompts.index,
        shared_prefix and place(shared_prefix),
        seen,
      )
    if context is not None:
      cached = context.cache
      query = jnp.zeros_like(rows.ids)
      valid = [
        sight(
          attention.Ids(query, jnp.where(seen, 0, -1)), rows.positions, places
        )
        for seen, places in zip(context.valid, context.positions, strict=True)
      ]
    local = np.array(c.local_layers) if c.window else None
    through = self._one_by_one if self.unstacked else self._scanned
    (x, prompt_x, _), own, routing = through(
      (x, prompt_x, prefix_x),
      cached,
      local,
      given,
      place(rows, rope_table),
      shared,
      valid,
    )
    if self.is_initializing() and not self.config.tied_embedding:
      self.head(x)
    x = self.final_norm(x)
    if prompt_x is not None:
      prompt_x = self.final_norm(prompt_x)
    return x, prompt_x, own, routing

  def _scanned(self, carry, cached, local, given, *places):
    c, before = self.config, None
    if c.experts and c.num_dense_layers:
      first, (cached, local) = _split((cached, local), c.num_dense_layers)
      carry, (before, _) = self.dense_layers(carry, *first, None, *places)
    carry, (own, routing) = self.layers(carry, cached, local, given, *places)
    if before is not None:
      own = jax.tree.map(lambda *parts: jnp.concatenate(parts), before, own)
    return carry, own, routing

  def _one_by_one(self, carry, cached, local, given, *places):
    c, held, routings = self.config, [], []
    first = c.num_dense_layers  # that has experts, if any
    for i, layer in enumerate(self.layers):
      mine = [_of_layer(keys, i) for keys in cached]
      near = None if local is None else bool(local[i])
      chosen = None if given is None or i < first else given[i - first]
      carry, (own, routing) = layer(carry, mine, near, chosen, *places)
      held.append(own)
      routings += [routing] if routing else []
    own = jax.tree.map(lambda *parts: tuple(x[None] for x in parts), *held)
    stack = functools.partial(jax.tree.map, lambda *parts: jnp.stack(parts))
    return carry, own, stack(*routings) if routings else None

  def _embed(self, ids):
    x = self.embed(ids).astype(jnp.dtype(self.config.dtype))
    if self.config.scaled_embedding:
      # The factor is rounded to the compute dtype, as it was in training.
      x = x * jnp.asarray(self.config.width**0.5, x.dtype)
    return x


def _without_padding(prompts):
  """Prompts that no row continues, there to pad, go to no expert."""
  tokens = prompts.tokens
  numbers = jnp.arange(tokens.ids.shape[0])
  used = jnp.any(prompts.index.reshape(-1, 1) == numbers[None], axis=0)
  segments = jnp.where(used[:, None], tokens.segments, 0)
  return prompts._replace(tokens=tokens._replace(segments=segments))


def _of_layer(keys, i):
  """Keys and values of layer i, unstacked, without the axis of layers."""
  return KeyValues(*(part and part[i][0] for part in keys))


def _split(tree, number):
  """The part of the first layers, and the rest."""
  return (
    jax.tree.map(lambda x: x[:number], tree),
    jax.tree.map(lambda x: x[number:], tree),
  )


def unstack(params: Params) -> Params:
  """The same parameters, each layer's by itself: `layers_0`, `layers_1`, ...

  With transposed matrices (`UNSTACKED_AXES`). Done ahead, not inside what is
  compiled, where each use would copy its part.
  """
  rest, layers = dict(params), []
  for name in ('dense_layers', 'layers'):
    stack = rest.pop(name, {})
    number = len(jax.tree.leaves(stack)[0]) if stack else 0
    layers += [jax.tree.map(lambda x, i=i: x[i], stack) for i in range(number)]
  rest |= {f'layers_{i}': layer for i, layer in enumerate(layers)}
  return jax.tree_util.tree_map_with_path(_transposed, rest)


def _transposed(path, x):
  """A matrix, but no other parameter, from [in, out] to [out, in]."""
  inputs = _MATRICES.get(path[-1].key, 0)
  return jnp.moveaxis(x, range(inputs), range(-inputs, 0))


def cast(config: ModelConfig, params: Params) -> Params:
  """Parameters as the forward computes with them, in the compute dtype.

  Results are the same to the bit; nothing is copied that has the dtype.
  """
  dtype = jnp.dtype(config.dtype)
  return jax.tree_util.tree_map_with_path(
    lambda path, x: x if path[-1].key in _FLOAT32 else x.astype(dtype), params
  )


def init(config: ModelConfig, key: jax.Array) -> Params:
  """Fresh float32 parameters, normal(0.02); norms multiply by one."""
  ids = jnp.ones((sharding.axis_size('B'), 2), jnp.int32)
  rows = Tokens(ids, ids, ids)
  return Transformer(config).init(key, rows)['params']


def initialise(config: ModelConfig, key: jax.Array) -> Params:
  """`init` on the current mesh: each device makes its own parts alone."""
  fresh = functools.partial(init, config)
  shardings = sharding.param_shardings(AXES, jax.eval_shape(fresh, key))
  return jax.jit(fresh, out_shardings=shardings)(key)


def forward(
  config: ModelConfig,
  params: Params,
  rows: Tokens,
  prompts: Prompts | None = None,
  context: CachedContext | None = None,
):
  """Hidden states of rows and prompts, and the rows' keys and values.

  `Transformer.__call__` as a pure function of the parameters.
  """
  return routed(config, params, rows, prompts, context)[:3]


def routed(
  config: ModelConfig,
  params: Params,
  rows: Tokens,
  prompts: Prompts | None = None,
  context: CachedContext | None = None,
  given: Int[Array, 'L B T C'] | None = None,
  rope_table: rope.RopeTable | None = None,
):
  """`forward`, and where tokens were routed, or None without experts.

  With unstacked parameters the keys and values, in and out, are unstacked too:
  a tuple of arrays of one layer instead of one array.
  """
  return Transformer(config, 'layers' not in params).apply(
    {'params': params}, rows, prompts, context, given, rope_table
  )


def empty_cache(
  config: ModelConfig, num_rows: int, span: int, unstacked: bool = False
) -> KeyValues:
  """Room for the keys and values of rows of `span` tokens."""
  k, h = config.num_kv_heads, config.head_dim
  if config.latent:
    k, h = 1, config.latent.kv_rank + config.latent.rope_dim
  dtype = jnp.dtype(config.dtype)

  def part(axis):
    shape = [num_rows, k, h]
    shape.insert(axis - 1, span)
    if unstacked:
      return (jnp.zeros((1, *shape), dtype),) * config.num_layers
    return jnp.zeros((config.num_layers, *shape), dtype)

  axes = position_axes(config)
  return KeyValues(part(axes.key), None if config.latent else part(axes.value))


def position_axes(config: ModelConfig) -> KeyValues:
  """Which axes of cached keys and of cached values the positions are."""
  return KeyValues(3 if config.latent else 4, 3)


def head(config: ModelConfig, params: Params) -> Float[Array, 'D V']:
  """The matrix from hidden states to logits, in the compute dtype."""
  kernel = (
    params['head']['kernel']
    if 'head' in params
    else params['embed']['embedding'].T
  )
  return kernel.astype(jnp.dtype(config.dtype))


def next_logits(
  config: ModelConfig, params: Params, hidden: Float[Array, 'B D']
) -> Float[Array, 'B V']:
  """Logits of what follows, float32; parameters may be unstacked."""
  if 'layers' in params:
    kernel, transposed = head(config, params), False
  elif 'head' in params:
    kernel, transposed = params['head']['kernel'], True
  else:
    kernel, transposed = params['embed']['embedding'], True
  return layers.multiply(hidden, kernel, transposed, jnp.float32)


def predictors(
  hidden: Float[Array, 'B T D'],
  prompt_hidden: Float[Array, 'P Tp D'] | None,
  rows: Tokens,
  prompts: Prompts | None,
) -> Float[Array, 'B T D']:
  """The hidden state that predicts each token: the one-position shift.

  Token t of a completion is predicted from token t - 1; the first one from
  the last token of its prompt. Everything after this function has a log-prob
  at the index of the token it scores. Without prompts the first token of a
  segment is predicted by nothing, and what stands there is of no use.
  """
  shifted = jnp.pad(hidden[:, :-1], ((0, 0), (1, 0), (0, 0)))
  if prompts is None:
    return shifted
  lengths = jnp.sum(prompts.tokens.segments > 0, axis=1)
  last = jnp.take_along_axis(
    prompt_hidden, (lengths - 1)[:, None, None], axis=1
  )[:, 0]
  last = last[jnp.take_along_axis(prompts.index, prompts.which, axis=1)]
  before = jnp.pad(rows.segments[:, :-1], ((0, 0), (1, 0)))
  first = (rows.segments != before)[..., None]
  return jnp.where(first, last, shifted)
