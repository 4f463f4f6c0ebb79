"""Prefill, insert and decode: the device side of generation.

A slot holds one completion under way: its keys and values (the prompt's
first), the last token, and what has been sampled. A prompt is prefilled once
for all completions of its group; its keys are copied into their slots. The
prompt's last token is left to the first decoding step, so that every token of
a completion is sampled by the same code. The shared prefix, which is what all
prompts begin with, is computed and kept once for all slots; a slot's cache
begins behind it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlzero.models import kv_cache, live_attention, rope, transformer
from rlzero.models.config import ModelConfig
from rlzero.rollout import merging, sampling
from rlzero.rollout.row_sampling import RowDistribution
from rlzero.rollout.slots import Slots, constrain_cache, constrain_slots
from rlzero.runtime import sharding
from rlzero.types import CachedContext, KeyValues, Params, Routing, Tokens


@functools.partial(jax.jit, static_argnums=0)
def prefill_shared_prefix(
  config: ModelConfig, params: Params, shared_prefix: Tokens
) -> KeyValues:
  """Keys and values, [L, 1, ...], of a shared prefix; its rows are equal."""
  _, _, keys_values = transformer.forward(config, params, shared_prefix)
  return constrain_shared_prefix(
    jax.tree.map(lambda part: part[:, :1], keys_values)
  )


def constrain_shared_prefix(
  shared_prefix: KeyValues,
  constrain: Callable[..., Any] = sharding.constrain,
) -> KeyValues:
  """Shards a shared prefix by heads; every device has its one row.

  Args:
    shared_prefix: arrays, or their shapes.
    constrain: what is done with an array and the letters of its axes.
  """
  return jax.tree.map(
    lambda part: constrain(part, 'L____' if part.shape[2] == 1 else 'L_K__'),
    shared_prefix,
  )


@functools.partial(jax.jit, static_argnums=0)
def prefill(
  config: ModelConfig,
  params: Params,
  prompts: Tokens,
  shared_prefix: KeyValues | None = None,
) -> KeyValues:
  """Keys and values of P right-padded prompts, behind the shared prefix."""
  context = None
  if shared_prefix is not None:
    context = kv_cache.prefix_context(
      config, shared_prefix, prompts.ids.shape[0]
    )
  _, _, keys_values = transformer.forward(
    config, params, prompts, context=context
  )
  return constrain_cache(keys_values)


def _slot_context(
  config: ModelConfig, slots: Slots, shared_prefix: KeyValues | None
) -> tuple[CachedContext, int]:
  """The shared prefix and the cache, as slots look at them.

  Returns:
    them, and the position of a slot's first cached token.
  """
  assert slots.cache is not None
  first = 0
  if shared_prefix is not None:
    first = kv_cache.capacity(config, shared_prefix)
  prefix = kv_cache.prefix_context(config, shared_prefix, slots.token.shape[0])
  cache_len = kv_cache.capacity(config, slots.cache)
  if live_attention.serves(config, cache_len):
    end = jnp.where(slots.running, slots.cached, 0)
    live = live_attention.live_cache(config, slots.cache, end)
    return prefix._replace(live=live), first
  index = jnp.arange(cache_len)[None]
  in_cache = index < slots.cached[:, None]
  positions = jnp.broadcast_to(first + index, in_cache.shape)
  return kv_cache.with_piece(prefix, slots.cache, in_cache, positions), first


@functools.partial(jax.jit, donate_argnums=1, static_argnums=(0, 7))
def insert(
  config: ModelConfig,
  slots: Slots,
  prefilled: KeyValues,
  prompt_ids: Int[Array, 'P Tp'],
  prompt_lens: Int[Array, 'P'],
  source: Int[Array, 'B'],
  counters: Int[Array, 'B 2'],
  seed: int,
) -> Slots:
  """Starts a completion in each slot that gets a prompt; leaves the others.

  Args:
    config: of the model.
    slots: the slots, donated; with room for the prompts.
    prefilled: from `prefill`.
    prompt_ids: the prompts' tokens.
    prompt_lens: their lengths.
    source: index of the slot's prompt, or -1 to leave the slot as it is.
    counters: (draw of the prompt, index in the group), for the keys.
    seed: of the run.
  """
  fresh = source >= 0
  prompt = jnp.maximum(source, 0)

  def into(axis, cache, new):
    old = jax.lax.slice_in_dim(cache, 0, new.shape[axis], axis=axis)
    new = jnp.where(fresh[None, :, None, None, None], new[:, prompt], old)
    return jax.lax.dynamic_update_slice_in_dim(cache, new, 0, axis)

  assert slots.cache is not None
  last = prompt_lens[prompt] - 1
  routes = slots.routes
  if routes is not None:
    routes = jnp.where(fresh[None, :, None, None], -1, routes)
  started = Slots(
    cache=kv_cache.map_cache(into, config, slots.cache, prefilled),
    cached=jnp.where(fresh, last, slots.cached),
    token=jnp.where(fresh, prompt_ids[prompt, last], slots.token),
    key=jnp.where(
      fresh[:, None],
      sampling.row_keys(seed, counters[:, 0], counters[:, 1]),
      slots.key,
    ),
    tokens=jnp.where(fresh[:, None], 0, slots.tokens),
    logprobs=jnp.where(fresh[:, None], 0.0, slots.logprobs),
    length=jnp.where(fresh, 0, slots.length),
    running=fresh | slots.running,
    routes=routes,
  )
  return constrain_slots(started)


@functools.partial(
  jax.jit,
  static_argnames=('config', 'eos_ids', 'num_steps', 'distribution'),
  donate_argnames='slots',
)
def decode(
  params: Params,
  slots: Slots,
  max_len: Int[Array, '...'],
  shared_prefix: KeyValues | None = None,
  *,
  config: ModelConfig,
  eos_ids: tuple[int, ...],
  num_steps: int,
  distribution: sampling.Distribution | RowDistribution,
) -> Slots:
  """Samples up to `num_steps` tokens in every running slot.

  The cache stays unchanged during the call. New keys and values go to a buffer
  that all slots write at the same index, since each at its own is slow. On a
  TPU each slot reads the part of its cache that is live (`live_attention`).

  Args:
    params: from `decode_layout.convert`.
    slots: the slots, donated; none may run out of room in this call.
    max_len: tokens after which a completion is cut, of all slots or of each.
    shared_prefix: from `prefill_shared_prefix`.
    config: of the model.
    eos_ids: tokens that end a completion; they are part of it.
    num_steps: tokens a call.
    distribution: what is sampled from; a `RowDistribution` is not static.
  """
  num_slots, start, cache = slots.token.shape[0], slots.cached, slots.cache
  before, first = _slot_context(config, slots, shared_prefix)
  new = kv_cache.empty_cache(
    config, num_slots, num_steps, 'layers' not in params
  )
  # Made for the whole call: inside, each layer and head would make them again.
  positions = first + start[:, None] + jnp.arange(num_steps)[None]
  rope_table = rope.make_table(config, positions)

  def step(i, carry):
    slots, new = carry
    written = jnp.arange(num_steps)[None] < i
    written = jnp.broadcast_to(written, (num_slots, num_steps))
    here = Tokens(
      slots.token[:, None],
      (first + start + i)[:, None],
      jnp.ones_like(slots.token)[:, None],
    )
    context = kv_cache.with_piece(before, new, written, positions)
    if context.live is not None:
      live = live_attention.at_step(config, context.live, i)
      context = context._replace(live=live)
    hidden, _, keys_values, routing = transformer.routed(
      config,
      params,
      here,
      context=context,
      rope_table=jax.tree.map(
        lambda part: jax.lax.dynamic_slice_in_dim(part, i, 1, axis=1),
        rope_table,
      ),
    )

    def write(axis, buffer, one):
      return jax.lax.dynamic_update_slice_in_dim(buffer, one, i, axis)

    new = kv_cache.map_cache(write, config, new, keys_values)
    logits = _rows_of_logits(
      transformer.next_logits(config, params, hidden[:, 0])
    )
    token, logprob = distribution.sample(logits, slots.key, slots.length)
    if isinstance(distribution, RowDistribution):
      slots = distribution.write_tops(slots, i, logits)
    ended = jnp.any(token[:, None] == jnp.array(eos_ids)[None], axis=-1)
    return _append(slots, token, logprob, routing, ended, max_len), new

  after, new = jax.lax.fori_loop(
    0, num_steps, step, (slots._replace(cache=None), constrain_cache(new))
  )
  assert cache is not None
  cache = merging.merge(config, cache, new, start)
  return constrain_slots(after._replace(cache=cache))


def _rows_of_logits(logits: Float[Array, 'B V']) -> Float[Array, 'B V']:
  """Shards logits by rows, since sampling looks at all of a row.

  They are computed where the columns of the head are, or every device would
  gather the head for each token. Then devices that have a row in common each
  take some of them, if that comes out even.
  """
  logits = sharding.constrain(logits, 'BV')
  even = logits.shape[0] % sharding.axis_size('O') == 0
  return sharding.constrain(logits, 'O_' if even else 'B_')


def _append(
  slots: Slots,
  token: Int[Array, 'B'],
  logprob: Float[Array, 'B'],
  routing: Routing | None,
  ended: Bool[Array, 'B'],
  max_len: Int[Array, '...'],
) -> Slots:
  """Appends a token to the completion of every running slot."""
  alive, rows = slots.running, jnp.arange(token.shape[0])
  # A slot that does not run writes past the end, which drops the write.
  end = slots.tokens.shape[1]
  out = jnp.where(alive, slots.length, end)
  routes = slots.routes
  if routes is not None:
    assert routing is not None
    # Of the token that went in; at first that is the prompt's last.
    of = jnp.where(alive & (slots.length > 0), slots.length - 1, end)
    chosen = routing.ids[:, :, 0].astype(routes.dtype)
    routes = routes.at[:, rows, of].set(chosen, mode='drop')
  length = slots.length + alive
  return slots._replace(
    cached=slots.cached + alive,
    token=jnp.where(alive, token, slots.token),
    tokens=slots.tokens.at[rows, out].set(token, mode='drop'),
    logprobs=slots.logprobs.at[rows, out].set(logprob, mode='drop'),
    length=length,
    running=alive & ~ended & (length < max_len),
    routes=routes,
  )
