"""Prefill, insert and decode: the device side of generation.

A slot holds one completion under way: its keys and values (the prompt's
first), the last token, and what has been drawn. A prompt is prefilled once
for all completions of its group; the keys are copied into the slot. Its last
token is left to the first decoding step, so that every token of a completion
is drawn by the same code. The shared prefix, which is what all prompts begin
with, is computed and kept once for all slots; a slot's cache begins behind it.

The cache has room for as many tokens as its rows are about to reach, not for
as many as they ever may: attention works on all of it. It grows and shrinks
between calls (`fit`), in few sizes, since decoding is compiled for each.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from rlzero.models import rope, transformer
from rlzero.models.config import ModelConfig
from rlzero.rollout import sampling
from rlzero.runtime import sharding
from rlzero.types import CachedContext, KeyValues, Params, Tokens


class Slots(NamedTuple):
  """State of B slots, each with room for S tokens, prompt included."""

  cache: KeyValues  # of a row at index s, position s behind the shared prefix
  cached: Int[Array, 'B']  # tokens in the cache
  token: Int[Array, 'B']  # drawn last, not in the cache yet
  key: UInt32[Array, 'B 2']
  tokens: Int[Array, 'B T']  # the completion so far
  logprobs: Float[Array, 'B T']
  length: Int[Array, 'B']  # tokens of the completion so far
  running: Bool[Array, 'B']
  # Experts of the completion's tokens, -1 where none were taken yet.
  routes: Int[Array, 'L B T C'] | None = None


_BY_LAYER = ('cache', 'routes')  # fields whose rows are not the first axis


def prepare(config: ModelConfig, params: Params) -> Params:
  """The policy's parameters as a rollout reads them; once a rollout.

  In the compute dtype, which halves what a token reads where that is bfloat16.
  On a CPU a scan over layers would copy weights and cache of each, token by
  token, so layers are unstacked there; elsewhere they stay stacked, since the
  time to compile would grow with their number.
  """
  params = transformer.cast(config, params)
  return _unstack(params) if sharding.platform() == 'cpu' else params


@jax.jit
def _unstack(params):
  params = transformer.unstack(params)
  return sharding.constrain_params(transformer.UNSTACKED_AXES, params)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def empty(
  config: ModelConfig,
  num_slots: int,
  span: int,
  max_len: int,
  keep_routes: bool = False,
  unstacked: bool = False,
) -> Slots:
  """Slots in which nothing runs, with room for `span` tokens."""
  zeros = functools.partial(jnp.zeros, (num_slots,), jnp.int32)
  routes = None
  if keep_routes:
    routed = config.num_layers - config.num_dense_layers
    shape = routed, num_slots, max_len, config.experts.num_chosen
    routes = jnp.full(shape, -1, jnp.int16)
  slots = Slots(
    cache=transformer.empty_cache(config, num_slots, span, unstacked),
    cached=zeros(),
    token=zeros(),
    key=jnp.zeros((num_slots, 2), jnp.uint32),
    tokens=jnp.zeros((num_slots, max_len), jnp.int32),
    logprobs=jnp.zeros((num_slots, max_len), jnp.float32),
    length=zeros(),
    running=jnp.zeros((num_slots,), bool),
    routes=routes,
  )
  return _constrain(slots)


def abstract(*sizes) -> Slots:
  """Shapes and places of `empty`, for programs that are only compiled."""
  shapes = jax.eval_shape(lambda: empty(*sizes))
  return _constrain(shapes, sharding.abstract)


def _constrain(slots: Slots, cut=sharding.constrain) -> Slots:
  """Cuts the slots over the devices, and their heads where the mesh does."""
  return Slots(
    cache=_constrain_cache(slots.cache, cut),
    routes=None if slots.routes is None else cut(slots.routes, 'LBT_'),
    **{
      name: cut(value, 'BT'[: value.ndim])
      for name, value in slots._asdict().items()
      if name not in _BY_LAYER
    },
  )


def room(config: ModelConfig, slots: Slots) -> int:
  """Tokens that a slot has room for."""
  return _span(config, slots.cache)


def _span(config, cache):
  one = jax.tree.leaves(cache.key)[0]
  return one.shape[transformer.position_axes(config).key]


def _constrain_cache(cache, cut=sharding.constrain):
  return jax.tree.map(lambda part: _constrain_part(part, cut), cache)


def _constrain_part(part, cut=sharding.constrain):
  # Latent attention has one key for all heads, which every device needs.
  return cut(part, 'LB___' if part.shape[2] == 1 else 'LBK__')


def _constrain_shared_prefix(shared_prefix, cut=sharding.constrain):
  """A shared prefix has one row, for those of every device."""
  return jax.tree.map(
    lambda part: cut(part, 'L____' if part.shape[2] == 1 else 'L_K__'),
    shared_prefix,
  )


def _each(function, axes: KeyValues, *caches: KeyValues) -> KeyValues:
  """function(axis of the positions, *parts) for all keys and all values."""
  return KeyValues(
    *(
      jax.tree.map(functools.partial(function, axis), *parts)
      for axis, *parts in zip(axes, *caches, strict=True)
    )
  )


@functools.partial(jax.jit, static_argnums=0)
def prefill_shared_prefix(
  config: ModelConfig, params: Params, shared_prefix: Tokens
) -> KeyValues:
  """Keys and values, [L, 1, ...], of a shared prefix; its rows are equal."""
  _, _, own = transformer.forward(config, params, shared_prefix)
  return _constrain_shared_prefix(jax.tree.map(lambda part: part[:, :1], own))


def abstract_shared_prefix(
  config: ModelConfig, length: int, unstacked: bool
) -> KeyValues | None:
  """Shapes and places of `prefill_shared_prefix`."""
  if not length:
    return None
  shapes = jax.eval_shape(
    lambda: transformer.empty_cache(config, 1, length, unstacked)
  )
  return _constrain_shared_prefix(shapes, sharding.abstract)


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
    context = CachedContext(
      *_seen_by_all(config, shared_prefix, prompts.ids.shape[0])
    )
  _, _, own = transformer.forward(config, params, prompts, context=context)
  return _constrain_cache(own)


def _seen_by_all(config, shared_prefix, num_rows):
  """The fields of a `CachedContext` of the shared prefix alone, if any."""
  if shared_prefix is None:
    return (), (), ()
  span = _span(config, shared_prefix)
  places = jnp.broadcast_to(jnp.arange(span), (num_rows, span))
  return (shared_prefix,), (jnp.ones_like(places, bool),), (places,)


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
  """Starts a completion in each slot with a prompt; leaves the others.

  Args:
    config: of the model.
    slots: the slots, donated; with room for the prompts.
    prefilled: of `prefill`.
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

  last = prompt_lens[prompt] - 1
  started = Slots(
    cache=_each(
      into, transformer.position_axes(config), slots.cache, prefilled
    ),
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
    routes=_where_rows(fresh, -1, slots.routes),
  )
  return _constrain(started)


def _where_rows(fresh, value, by_layer):
  if by_layer is None:
    return None
  return jnp.where(fresh[None, :, None, None], value, by_layer)


def fit(
  config: ModelConfig,
  slots: Slots,
  chosen: Int[np.ndarray, 'C'] | None,
  span: int,
) -> Slots:
  """The chosen slots alone, or all, with room for `span` tokens.

  A smaller batch and a shorter cache cost less to decode. Every array of the
  cache is a program of its own, which all unstacked layers share; the old one
  is given up before the next.

  Args:
    config: of the model.
    slots: the slots, donated.
    chosen: indices of those to keep, or None.
    span: tokens of each slot; what is held of longer ones is cut.
  """

  def fitted(axis, part):
    new = _fit_part(part, chosen, axis=axis, span=span)
    part.delete()
    return new

  axes = transformer.position_axes(config)
  cache = _each(fitted, axes, slots.cache)
  if chosen is not None:
    slots = _keep(slots._replace(cache=None), chosen)
  return slots._replace(cache=cache)


def lower_fit(
  config: ModelConfig, slots: Slots, number: int | None, span: int
) -> list[jax.stages.Lowered]:
  """The programs of `fit`; of `chosen` it takes the number alone."""
  chosen = None if number is None else jax.ShapeDtypeStruct((number,), np.int32)
  lowered = [
    _fit_part.lower(jax.tree.leaves(part)[0], chosen, axis=axis, span=span)
    for part, axis in zip(
      slots.cache, transformer.position_axes(config), strict=True
    )
    if part is not None
  ]
  if number is not None:
    lowered.append(_keep.lower(slots._replace(cache=None), chosen))
  return lowered


@functools.partial(jax.jit, static_argnames=('axis', 'span'))
def _fit_part(part, chosen, *, axis, span):
  if chosen is not None:
    part = part[:, chosen]
  more = max(span - part.shape[axis], 0)
  part = jax.lax.slice_in_dim(part, 0, min(span, part.shape[axis]), axis=axis)
  part = jnp.pad(part, [(0, more if i == axis else 0) for i in range(5)])
  return _constrain_part(part)


@jax.jit
def _keep(slots, chosen):
  rows = {
    name: value[chosen]
    for name, value in slots._asdict().items()
    if name not in _BY_LAYER
  }
  routes = None if slots.routes is None else slots.routes[:, chosen]
  return _constrain(slots._replace(routes=routes, **rows))


@functools.partial(
  jax.jit,
  static_argnames=(
    'config',
    'eos_ids',
    'num_steps',
    'temperature',
    'top_p',
  ),
  donate_argnames='slots',
)
def decode(
  params: Params,
  slots: Slots,
  max_len: Int[Array, ''],
  shared_prefix: KeyValues | None = None,
  *,
  config: ModelConfig,
  eos_ids: tuple[int, ...],
  num_steps: int,
  temperature: float,
  top_p: float,
) -> Slots:
  """Draws up to `num_steps` tokens in every running slot.

  Args:
    params: of `prepare`.
    slots: the slots, donated; none may run out of room in this call.
    max_len: tokens after which a completion is cut.
    shared_prefix: of `prefill_shared_prefix`.
    config: of the model.
    eos_ids: tokens that end a completion; they are part of it.
    num_steps: tokens a call.
    temperature: of sampling; 0 is greedy.
    top_p: of sampling.
  """
  rows = jnp.arange(slots.token.shape[0])
  start = slots.cached
  # The cache stays unchanged during the call; new keys go to a buffer that all
  # slots write at the same place, since each at its own place is slow.
  axes, held = transformer.position_axes(config), slots.cache
  span = room(config, slots)
  first = 0 if shared_prefix is None else _span(config, shared_prefix)
  held_valid = jnp.arange(span)[None] < start[:, None]
  held_places = jnp.broadcast_to(first + jnp.arange(span), held_valid.shape)
  of_all = _seen_by_all(config, shared_prefix, rows.shape[0])
  fresh = _constrain_cache(
    transformer.empty_cache(
      config, rows.shape[0], num_steps, 'layers' not in params
    )
  )

  # Made for the whole call: inside, each layer and head would make them again.
  places = first + start[:, None] + jnp.arange(num_steps)[None]
  rope_table = rope.make_table(config, places)

  def step(i, carry):
    slots, fresh = carry
    valid = jnp.broadcast_to(
      jnp.arange(num_steps)[None] < i, (rows.shape[0], num_steps)
    )
    here = Tokens(
      slots.token[:, None],
      (first + start + i)[:, None],
      jnp.ones_like(slots.token)[:, None],
    )
    own = (held, fresh), (held_valid, valid), (held_places, places)
    context = CachedContext(*(a + b for a, b in zip(of_all, own, strict=True)))
    here_table = jax.tree.map(
      lambda part: jax.lax.dynamic_slice_in_dim(part, i, 1, axis=1), rope_table
    )
    hidden, _, own, routing = transformer.routed(
      config, params, here, context=context, rope_table=here_table
    )
    fresh = _each(
      lambda axis, buffer, new: jax.lax.dynamic_update_slice_in_dim(
        buffer, new, i, axis
      ),
      axes,
      fresh,
      own,
    )
    logits = transformer.next_logits(config, params, hidden[:, 0])
    # Drawing looks at the whole vocabulary of a row.
    logits = sharding.constrain(logits, 'B_')
    token, logprob = sampling.sample(
      logits, slots.key, slots.length, temperature, top_p
    )
    alive = slots.running
    # A slot that stands still writes past the end, which drops the write.
    end = slots.tokens.shape[1]
    out = jnp.where(alive, slots.length, end)
    routes = slots.routes
    if routes is not None:
      # Of the token that went in; at first that is the prompt's last.
      of = jnp.where(alive & (slots.length > 0), slots.length - 1, end)
      new = routing.ids[:, :, 0].astype(routes.dtype)
      routes = routes.at[:, rows, of].set(new, mode='drop')
    length = slots.length + alive
    ended = jnp.any(token[:, None] == jnp.array(eos_ids)[None], axis=-1)
    slots = slots._replace(
      cached=slots.cached + alive,
      token=jnp.where(alive, token, slots.token),
      tokens=slots.tokens.at[rows, out].set(token, mode='drop'),
      logprobs=slots.logprobs.at[rows, out].set(logprob, mode='drop'),
      length=length,
      running=alive & ~ended & (length < max_len),
      routes=routes,
    )
    return slots, fresh

  slots = slots._replace(cache=None)
  after, fresh = jax.lax.fori_loop(0, num_steps, step, (slots, fresh))
  # Position s of a slot was written at step s - start of this call.
  age = jnp.arange(span)[None] - start[:, None]
  new = (age >= 0) & (age < num_steps)
  index = jnp.clip(age, 0, num_steps - 1)

  def merge(axis, cache, buffer):
    across = [i for i in range(5) if i not in (1, axis)]
    drawn = jnp.take_along_axis(
      buffer, jnp.expand_dims(index, across), axis=axis
    )
    return jnp.where(jnp.expand_dims(new, across), drawn, cache)

  cache = _each(merge, axes, held, fresh)
  return _constrain(after._replace(cache=cache))
