"""Multi-head latent attention: keys and values from one small vector a token.

DeepSeek-V2, arXiv 2405.04434, section 2.1. The cache holds the latent vector
and the rotated key that all heads share. There are two ways to attend over
them with equal results:

  plain     keys and values of every head are made, then it is attention with
            as many key heads as query heads: least work for many queries, so
            for prefill, the update and the reference
  absorbed  queries are taken to the latent space, where all heads look at one
            key, and what comes out is taken back: nothing is made of the
            cache, so for decoding
"""

import dataclasses
import functools

import flax.linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from rlzero.models import layers, lora, parameters, rope
from rlzero.models.attention import KeyValueHeads
from rlzero.models.config import Latent, ModelConfig
from rlzero.types import KeyValues


class LatentAttention(nn.Module):
  """Projections around `attention.attend`, the plain and the absorbed way."""

  config: ModelConfig
  transposed: bool = False  # matrices are [out, in]

  @property
  def _sizes(self) -> Latent:
    assert self.config.latent is not None  # else the block has `Attention`
    return self.config.latent

  def setup(self) -> None:
    if self._sizes.query_rank:
      self.query_down = parameters.declare_matrix(self, 'query_down')
      self.query_down_norm = parameters.declare(self, 'query_down_norm')
      self.query_up = parameters.declare_matrix(self, 'query_up')
    else:
      self.query = parameters.declare_matrix(self, 'query')
    self.latent_down = parameters.declare_matrix(self, 'latent_down')
    self.latent_norm = parameters.declare(self, 'latent_norm')
    self.latent_up = parameters.declare_matrix(self, 'latent_up')
    self.latent_output = parameters.declare_matrix(self, 'latent_output')

  def project(
    self,
    x: Float[Array, 'B T D'],
    cos_sin: rope.CosSin,
    absorbed: bool,
  ) -> tuple[Float[Array, 'B K R T H'], KeyValueHeads, KeyValues]:
    """Makes queries, the keys and values they attend over, and a cache entry.

    Plain, K = N and R = 1; absorbed, K = 1, R = N and H is the cache's width.
    The cache has no values: they are the first part of its keys.
    """
    c, a = self.config, self._sizes
    query = self._queries(x)
    query, turned = jnp.split(query, [c.head_dim - a.rope_dim], axis=-1)
    turned = rope.rotate(turned, cos_sin, interleaved=True)
    down = self._multiply(x, self.latent_down)
    latent, shared = jnp.split(down, [a.kv_rank], axis=-1)
    latent = layers.rms_norm(latent, self.latent_norm, c)
    shared = rope.rotate(shared[:, None], cos_sin, interleaved=True)
    entry = jnp.concatenate([latent[:, None], shared], axis=-1)
    entry = KeyValues(entry, None)
    key_up, value_up = self._up(x.dtype)
    if absorbed:
      query = _to_latent(query, key_up)
      query = jnp.concatenate([query, turned], axis=-1)[:, None]
      return query, self.read_cache(entry), entry
    key, value = (
      lora.times(latent, up, _from_latent) for up in (key_up, value_up)
    )
    shared = jnp.broadcast_to(shared, (*key.shape[:-1], a.rope_dim))
    key = jnp.concatenate([key, shared], axis=-1)
    query = jnp.concatenate([query, turned], axis=-1)[:, :, None]
    return query, KeyValueHeads(key, value), entry

  def read_cache(self, cache_entry: KeyValues) -> KeyValueHeads:
    """Cached latents as keys and values that absorbed queries attend over."""
    key = cache_entry.key
    assert isinstance(key, Array)  # of one layer
    return KeyValueHeads(key, key)

  def merge(
    self, heads: Float[Array, 'B K R T H'], absorbed: bool
  ) -> Float[Array, 'B T D']:
    """Projects the outputs of all heads back to the model's width."""
    if absorbed:
      _, value_up = self._up(heads.dtype)
      latent = heads[:, 0, ..., : self._sizes.kv_rank]
      heads = lora.times(latent, value_up, _from_latent_of_heads)
    else:
      heads = heads[:, :, 0]
    b, _, t, _ = heads.shape
    heads = heads.swapaxes(1, 2).reshape(b, t, -1)
    return self._multiply(heads, self.latent_output)

  def _queries(self, x):
    """[B, T, D] -> [B, N, T, H]."""
    c = self.config
    if self._sizes.query_rank:
      x = self._multiply(x, self.query_down)
      x = layers.rms_norm(x, self.query_down_norm, c)
      kernel = self.query_up
    else:
      kernel = self.query
    query = self._multiply(x, kernel)
    return query.reshape(*x.shape[:2], -1, c.head_dim).swapaxes(1, 2)

  def _multiply(self, x, kernel):
    return layers.multiply(x, kernel, self.transposed)

  def _up(self, dtype):
    """From latents to the keys' plain part and to the values, [R, N, ...]."""
    plain = self.config.head_dim - self._sizes.rope_dim
    split = functools.partial(jnp.split, indices_or_sections=[plain], axis=-1)
    up = jax.tree.map(lambda part: part.astype(dtype), self.latent_up)
    if not isinstance(up, lora.Adapted):
      return split(up)
    return [
      dataclasses.replace(up, kernel=kernel, b=b)
      for kernel, b in zip(split(up.kernel), split(up.b), strict=True)
    ]


def _to_latent(query, up):
  """q W^T: queries of heads, [B, N, T, H], to the latent space."""
  if not isinstance(up, lora.Adapted):
    return jnp.einsum('bnth,rnh->bntr', query, up)
  low = jnp.einsum('bnth,jnh->bntj', query, up.b)
  more = up.scale * jnp.einsum('bntj,rj->bntr', low, up.a)
  return _to_latent(query, up.kernel) + more


def _from_latent(latent, up):
  """Latents of tokens, [B, T, R], to all heads, or to an adapter's rank."""
  axes = 'btr,rj->btj' if up.ndim == 2 else 'btr,rnh->bnth'
  return jnp.einsum(axes, latent, up)


def _from_latent_of_heads(latent, up):
  """Latents of heads, [B, N, T, R], to their heads, or to an adapter's rank."""
  axes = 'bntr,rj->bntj' if up.ndim == 2 else 'bntr,rnh->bnth'
  return jnp.einsum(axes, latent, up)
