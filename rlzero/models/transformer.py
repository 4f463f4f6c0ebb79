"""The decoder, and the one forward function that every use goes through.

Prefill, decoding, the reference, the update and evaluation differ only in
what a row may look at besides its own past:

  prefill, pre-training    nothing
  decoding                 a cache (`Prefix`)
  update, reference        prompts computed in the same call (`Prompts`), whose
                           cost is P*Tp + B*Tc tokens instead of B*(Tp + Tc)
"""

import functools

import flax.linen as nn
import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Float

from rlzero import sharding
from rlzero.models import attention, layers, rope
from rlzero.models.config import ModelConfig
from rlzero.types import KeyValues, Params, Prefix, Prompts, Tokens

# Axes of each parameter, by its last name; below `layers` an L stands before.
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
}


class Attention(nn.Module):
  """Projections around `attention.attend`; keys leave it for the cache."""

  config: ModelConfig

  def setup(self):
    c = self.config
    d, n, k, h = c.width, c.num_heads, c.num_kv_heads, c.head_dim
    self.query = self.param('query', layers.INIT, (d, n, h))
    self.key = self.param('key', layers.INIT, (d, k, h))
    self.value = self.param('value', layers.INIT, (d, k, h))
    self.output = self.param('output', layers.INIT, (n, h, d))
    if c.qkv_bias:
      zeros = nn.initializers.zeros
      self.query_bias = self.param('query_bias', zeros, (n, h))
      self.key_bias = self.param('key_bias', zeros, (k, h))
      self.value_bias = self.param('value_bias', zeros, (k, h))
    if c.qk_norm:
      ones = layers.norm_init(c)
      self.query_norm = self.param('query_norm', ones, (h,))
      self.key_norm = self.param('key_norm', ones, (h,))

  def project(self, x, positions, local):
    """[B, T, D] -> query [B, K, R, T, H], key and value [B, K, T, H]."""
    c = self.config

    def heads(kernel, bias):
      y = layers.multiply(x, kernel.reshape(c.width, -1))
      y = y.reshape(*x.shape[:2], -1, c.head_dim).swapaxes(1, 2)
      return y + bias.astype(x.dtype)[None, :, None] if c.qkv_bias else y

    query = heads(self.query, c.qkv_bias and self.query_bias)
    key = heads(self.key, c.qkv_bias and self.key_bias)
    value = heads(self.value, c.qkv_bias and self.value_bias)
    if c.qk_norm:
      query = layers.rms_norm(query, self.query_norm, c)
      key = layers.rms_norm(key, self.key_norm, c)
    turns = rope.frequencies(c.head_dim, c.rope_theta, c.rope_scaling)
    if local is not None:
      near = rope.frequencies(c.head_dim, c.local_rope_theta, None)
      turns = jnp.where(local, near, turns)
    query = rope.rotate(query, positions, turns)
    key = rope.rotate(key, positions, turns)
    b, _, t, h = query.shape
    query = query.reshape(b, c.num_kv_heads, -1, t, h)
    return query, key, value

  def merge(self, heads):
    """[B, K, R, T, H] -> [B, T, D]."""
    b, k, r, t, h = heads.shape
    heads = heads.reshape(b, k * r, t, h).swapaxes(1, 2)
    return layers.multiply(
      heads.reshape(b, t, -1), self.output.reshape(-1, self.config.width)
    )


class Block(nn.Module):
  """One layer, applied to rows and, where given, to the prompts they share."""

  config: ModelConfig

  def setup(self):
    c = self.config
    self.attention_norm = layers.RMSNorm(c)
    self.attention = Attention(c)
    self.mlp_norm = layers.RMSNorm(c)
    self.mlp = layers.MLP(c)
    if c.post_norms:
      self.attention_post_norm = layers.RMSNorm(c)
      self.mlp_post_norm = layers.RMSNorm(c)

  def __call__(
    self, carry, cached, local, rows, mask, prompts, prompt_mask, valid
  ):
    x, prompt_x = carry
    if prompts is not None:
      prompt_x, own = self._layer(
        prompt_x, prompts.tokens.positions, local, prompt_mask, ()
      )
      # The gradient of this gather adds up what the rows of a group say.
      cached = (KeyValues(*(_of_rows(part, prompts.index) for part in own)),)
    before = [
      attention.Part(*keys, seen.of(local))
      for keys, seen in zip(cached, valid, strict=True)
    ]
    x, own = self._layer(x, rows.positions, local, mask, before)
    if prompts is not None:
      prompt_x = sharding.constrain(prompt_x, 'PT_')
    return (sharding.constrain(x, 'BT_'), prompt_x), own

  def _layer(self, x, positions, local, mask, before):
    c = self.config
    query, key, value = self.attention.project(
      self.attention_norm(x), positions, local
    )
    own = attention.Part(key, value, mask.of(local))
    scale = (c.query_scalar or c.head_dim) ** -0.5
    heads = attention.attend(query, [*before, own], scale)
    more = self.attention.merge(heads)
    x = x + (self.attention_post_norm(more) if c.post_norms else more)
    more = self.mlp(self.mlp_norm(x))
    x = x + (self.mlp_post_norm(more) if c.post_norms else more)
    return x, KeyValues(key, value)


def _of_rows(part, index):
  """Keys or values of prompts, [P, K, Tp, H], for rows: [B, K, M * Tp, H]."""
  part = part[index].swapaxes(1, 2)
  return part.reshape(*part.shape[:2], -1, part.shape[-1])


def _continued(prompts):
  """Which prompt tokens a row's tokens may look at, [B, T, M * Tp]."""
  real = (prompts.tokens.segments > 0)[prompts.index]
  own = (
    prompts.which[..., None] == jnp.arange(prompts.index.shape[1])[None, None]
  )
  visible = own[..., None] & real[:, None]
  return visible.reshape(*visible.shape[:2], -1)


class Transformer(nn.Module):
  """Token ids to final hidden states and the rows' own keys and values."""

  config: ModelConfig

  def setup(self):
    c = self.config
    self.embed = nn.Embed(c.vocab_size, c.width, embedding_init=layers.INIT)
    block = nn.remat(Block, prevent_cse=False) if c.remat else Block
    self.layers = nn.scan(
      block,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(0, 0) + (nn.broadcast,) * 5,
      length=c.num_layers,
    )(c)
    self.final_norm = layers.RMSNorm(c)
    if not c.tied_embedding:
      self.head = nn.Dense(
        c.vocab_size, use_bias=False, kernel_init=layers.INIT
      )

  def __call__(
    self,
    rows: Tokens,
    prompts: Prompts | None = None,
    prefix: Prefix | None = None,
  ):
    """Runs the rows; at most one of `prompts` and `prefix` is given.

    Returns:
      hidden: [B, T, D] after the last norm, of the rows.
      prompt_hidden: [P, Tp, D], or None without prompts.
      own: the rows' own keys and values, [L, B, K, T, H] each.
    """
    if prompts is not None and prefix is not None:
      raise ValueError('Give rows either prompts or a prefix, not both.')
    c = self.config

    def mask(tokens):
      seen = attention.causal_mask(tokens.segments)
      return attention.windows(
        seen, tokens.positions, tokens.positions, c.window
      )

    x = sharding.constrain(self._embed(rows.ids), 'BT_')
    prompt_x = prompt_mask = None
    cached = valid = ()
    if prompts is not None:
      prompt_x = sharding.constrain(self._embed(prompts.tokens.ids), 'PT_')
      prompt_mask = mask(prompts.tokens)
      places = prompts.tokens.positions[prompts.index]
      places = places.reshape(places.shape[0], -1)
      valid = (
        attention.windows(
          _continued(prompts), rows.positions, places, c.window
        ),
      )
    if prefix is not None:
      cached = prefix.cache
      valid = [
        attention.windows(seen[:, None], rows.positions, places, c.window)
        for seen, places in zip(prefix.valid, prefix.positions, strict=True)
      ]
    (x, prompt_x), own = self.layers(
      (x, prompt_x),
      cached,
      np.array(c.local_layers) if c.window else None,
      rows,
      mask(rows),
      prompts,
      prompt_mask,
      valid,
    )
    if self.is_initializing() and not self.config.tied_embedding:
      self.head(x)
    x = self.final_norm(x)
    if prompt_x is not None:
      prompt_x = self.final_norm(prompt_x)
    return x, prompt_x, own

  def _embed(self, ids):
    x = self.embed(ids).astype(jnp.dtype(self.config.dtype))
    if self.config.scaled_embedding:
      # The factor is rounded to the compute dtype, as it was in training.
      x = x * jnp.asarray(self.config.width**0.5, x.dtype)
    return x


def init(config: ModelConfig, key: jax.Array) -> Params:
  """Fresh float32 parameters, normal(0.02); norms multiply by one."""
  ids = jnp.ones((sharding.ways('B'), 2), jnp.int32)
  rows = Tokens(ids, ids, ids)
  return Transformer(config).init(key, rows)['params']


def initialise(config: ModelConfig, key: jax.Array) -> Params:
  """`init` on the current mesh: each device makes its own parts alone."""
  fresh = functools.partial(init, config)
  shardings = sharding.of_params(AXES, jax.eval_shape(fresh, key))
  return jax.jit(fresh, out_shardings=shardings)(key)


def forward(
  config: ModelConfig,
  params: Params,
  rows: Tokens,
  prompts: Prompts | None = None,
  prefix: Prefix | None = None,
):
  """`Transformer.__call__` as a pure function of the parameters."""
  return Transformer(config).apply({'params': params}, rows, prompts, prefix)


def head(config: ModelConfig, params: Params) -> Float[Array, 'D V']:
  """The matrix from hidden states to logits, in the compute dtype."""
  kernel = (
    params['embed']['embedding'].T
    if config.tied_embedding
    else params['head']['kernel']
  )
  return kernel.astype(jnp.dtype(config.dtype))


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
