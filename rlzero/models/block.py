"""One layer of the decoder: attention, then an MLP or experts."""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlzero.models import (
  attention,
  kv_cache,
  latent,
  layers,
  live_attention,
  masks,
  moe,
  parameters,
  rope,
)
from rlzero.models.attention import KeyValueHeads, Mask, SegmentIds
from rlzero.models.config import ModelConfig
from rlzero.runtime import sharding
from rlzero.types import AnyArray, KeyValues, LiveCache, Routing, Tokens


class Attention(nn.Module):
  """Projections around `attention.attend`; keys leave it for the cache."""

  config: ModelConfig
  transposed: bool = False  # matrices are [out, in]

  def setup(self) -> None:
    c = self.config
    self.query = parameters.declare_matrix(self, 'query')
    self.key = parameters.declare_matrix(self, 'key')
    self.value = parameters.declare_matrix(self, 'value')
    self.output = parameters.declare_matrix(self, 'output')
    if c.qkv_bias:
      self.query_bias = parameters.declare(self, 'query_bias')
      self.key_bias = parameters.declare(self, 'key_bias')
      self.value_bias = parameters.declare(self, 'value_bias')
    if c.qk_norm:
      self.query_norm = parameters.declare(self, 'query_norm')
      self.key_norm = parameters.declare(self, 'key_norm')

  def project(
    self, x: Float[Array, 'B T D'], cos_sin: rope.CosSin, absorbed: bool
  ) -> tuple[Float[Array, 'B K R T H'], KeyValueHeads, KeyValues]:
    """Makes queries, the keys and values they attend over, and a cache entry.

    Args:
      x: of the tokens.
      cos_sin: RoPE cosines and sines of their positions.
      absorbed: there is one way here; see `LatentAttention.project`.

    Returns:
      queries: R = N / K of them share a key.
      keys_values: what `attention.attend` takes.
      cache_entry: the same in the cache's layout, keys [B, K, H, T].
    """
    del absorbed
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
    entry = KeyValues(key.swapaxes(2, 3), value)
    return query, KeyValueHeads(key, value), entry

  def read_cache(self, cache_entry: KeyValues) -> KeyValueHeads:
    """Cached keys and values in the layout that attention reads."""
    key, value = cache_entry
    assert isinstance(key, Array) and isinstance(value, Array)  # of one layer
    return KeyValueHeads(key.swapaxes(2, 3), value)

  def merge(
    self, heads: Float[Array, 'B K R T H'], absorbed: bool
  ) -> Float[Array, 'B T D']:
    """Projects the outputs of all heads back to the model's width."""
    del absorbed
    b, k, r, t, h = heads.shape
    heads = heads.reshape(b, k * r, t, h).swapaxes(1, 2)
    return layers.multiply(
      heads.reshape(b, t, -1), self.output, self.transposed
    )


class Positions(NamedTuple):
  """Where tokens stand, as every layer needs to know it."""

  rope_table: rope.RopeTable
  mask: Mask | SegmentIds  # over a row's own tokens
  real: Bool[AnyArray, 'B T']  # not padding


class SharedPrompts(NamedTuple):
  """Positions of the prompts that rows continue, and of their shared prefix."""

  prompts: Positions
  index: Int[AnyArray, 'B M']  # the prompts that a row continues
  shared_prefix: Positions | None
  masks: list[Mask | SegmentIds]  # of prompts over the shared prefix, if any


# Hidden states of rows, of prompts and of the shared prefix, between layers.
Carry = tuple[
  Float[Array, 'B T D'],
  Float[Array, 'P Tp D'] | None,
  Float[Array, '_ Ts D'] | None,
]


def make_positions(
  config: ModelConfig,
  tokens: Tokens,
  rope_table: rope.RopeTable | None = None,
) -> Positions:
  """`Positions` of these tokens, with their own RoPE table by default."""
  return Positions(
    rope_table or rope.make_table(config, tokens.positions),
    masks.own_mask(config, tokens),
    tokens.segments > 0,
  )


class Block(nn.Module):
  """One layer, applied to rows and, where given, to the prompts they share."""

  config: ModelConfig
  routed: bool  # to experts; else it has an MLP
  transposed: bool = False  # matrices are [out, in]

  def setup(self) -> None:
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

  def __call__(
    self,
    carry: Carry,
    cached: Sequence[KeyValues],
    local: Bool[Array, ''] | bool | None,
    given: Int[Array, 'B T C'] | None,
    number: Int[AnyArray, ''] | int | None,
    rows: Positions,
    shared: SharedPrompts | None,
    context_masks: Sequence[Mask | SegmentIds],
    live: LiveCache | None,
  ) -> tuple[Carry, tuple[KeyValues, Routing | None]]:
    """Applies the layer.

    Args:
      carry: hidden states; those of prompts and prefix are None without.
      cached: keys and values of this layer that rows continue, in pieces.
      local: whether the layer sees a window alone; None in models without.
      given: experts of the rows' tokens, -1 where the router chooses.
      number: of the layer, where there is a live cache.
      rows: positions of the rows.
      shared: positions of the prompts that rows continue.
      context_masks: of rows over what they continue: the pieces of the cache,
        or the shared prefix, if any, and the prompts.
      live: a cache that rows continue beside those pieces, of all layers.

    Returns:
      the carry, and the rows' cache entry with their routing.
    """
    x, prompt_x, prefix_x = carry
    absorbed, prompt_ids = bool(cached), None
    before = [self.attention.read_cache(piece) for piece in cached]
    if shared is not None and shared.shared_prefix is not None:
      assert prefix_x is not None
      prefix_x, keys_values, _, _ = self._layer(
        prefix_x, shared.shared_prefix, local, None, (), False
      )
      before = [keys_values]
    if shared is not None:
      assert prompt_x is not None
      parts = _parts(before, shared.masks, local)
      prompt_x, keys_values, _, prompt_ids = self._layer(
        prompt_x, shared.prompts, local, None, parts, False
      )
      # The gradient of this gather adds up that of the rows of a group.
      key, value = (_of_rows(part, shared.index) for part in keys_values)
      before = [*before, KeyValueHeads(key, value)]
    parts, of_cache = _parts(before, context_masks, local), None
    if live is not None:
      cache_len = kv_cache.capacity(self.config, live.cache)
      of_cache = attention.LivePart(
        live.cache,
        jnp.asarray(number),
        live_attention.of_layer(live, local),
        live_attention.block_len(self.config, cache_len),
      )
    x, _, cache_entry, ids = self._layer(
      x, rows, local, given, parts, absorbed, of_cache
    )
    if prefix_x is not None:
      prefix_x = sharding.constrain(prefix_x, 'PT_')
    if prompt_x is not None:
      prompt_x = sharding.constrain(prompt_x, 'PT_')
    routing = None if ids is None else self._routing(ids, prompt_ids)
    carry = sharding.constrain(x, 'BT_'), prompt_x, prefix_x
    return carry, (cache_entry, routing)

  def _layer(
    self,
    x: Float[Array, 'B T D'],
    positions: Positions,
    local: Bool[Array, ''] | bool | None,
    given: Int[Array, 'B T C'] | None,
    before: Sequence[attention.Part],
    absorbed: bool,
    live: attention.LivePart | None = None,
  ) -> tuple[
    Float[Array, 'B T D'],
    KeyValueHeads,
    KeyValues,
    Int[Array, 'B T C'] | None,
  ]:
    """The layer on one kind of tokens, which look at `before` and themselves.

    Returns:
      hidden states, keys and values, cache entry, and the experts chosen.
    """
    c = self.config
    query, keys_values, cache_entry = self.attention.project(
      self.attention_norm(x), positions.rope_table.of(local), absorbed
    )
    scale = (c.query_scalar or c.head_dim) ** -0.5
    if c.latent:
      scale *= rope.score_scale(c.rope_scaling)
    own = attention.Part(*keys_values, positions.mask.of(local))
    parts = [*before, own]
    heads = attention.attend(query, parts, scale, live)
    more = self.attention.merge(heads, absorbed)
    x = x + (self.attention_post_norm(more) if c.post_norms else more)
    normed, ids = self.mlp_norm(x), None
    if self.routed:
      more, ids = self.moe(normed, positions.real, given)
    else:
      more = self.mlp(normed)
    x = x + (self.mlp_post_norm(more) if c.post_norms else more)
    return x, keys_values, cache_entry, ids

  def _routing(
    self, ids: Int[Array, 'B T C'], prompt_ids: Int[Array, 'P Tp C'] | None
  ) -> Routing:
    assert self.config.experts is not None
    number = self.config.experts.num_experts
    loads = moe.loads(ids, number)
    if prompt_ids is not None:
      loads += moe.loads(prompt_ids, number)
    return Routing(ids, loads)


def _parts(
  keys_values: Sequence[KeyValueHeads],
  masks_of: Sequence[Mask | SegmentIds],
  local: Bool[Array, ''] | bool | None,
) -> list[attention.Part]:
  """Pairs keys and values with their masks in a layer that is local or not."""
  return [
    attention.Part(*pair, mask.of(local))
    for pair, mask in zip(keys_values, masks_of, strict=True)
  ]


def _of_rows(part, index):
  """Keys or values of prompts, [P, K, Tp, H], for rows: [B, K, M * Tp, H]."""
  part = part[index].swapaxes(1, 2)
  return part.reshape(*part.shape[:2], -1, part.shape[-1])
