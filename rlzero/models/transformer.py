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
from collections.abc import Callable, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from rlzero.models import layers, masks, parameters, rope
from rlzero.models.attention import Mask, SegmentIds
from rlzero.models.block import (
  Block,
  Carry,
  Positions,
  SharedPrompts,
  make_positions,
)
from rlzero.models.config import ModelConfig
from rlzero.runtime import sharding
from rlzero.types import (
  CachedContext,
  KeyValues,
  LiveCache,
  Params,
  Prompts,
  Routing,
  Tokens,
)

# What the backward pass finds again of a layer that is not recomputed as a
# whole: the products of its matrices, and what attention makes of them. The
# rest, scores included, takes longer to fetch from memory than to make again.
_REMAT_POLICY = jax.checkpoint_policies.save_from_both_policies(
  jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  jax.checkpoint_policies.save_only_these_names(*layers.SAVED_NAMES),
)


# Hidden states of rows and of prompts, the rows' keys and values, and routing.
Outputs = tuple[
  Float[Array, 'B T D'],
  Float[Array, 'P Tp D'] | None,
  KeyValues,
  Routing | None,
]


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

  def setup(self) -> None:
    c = self.config
    self.embed = nn.Embed(
      *parameters.shape(c, parameters.AXES['embedding']),
      embedding_init=parameters.INIT,
    )
    block = nn.remat(
      Block, prevent_cse=False, policy=None if c.remat else _REMAT_POLICY
    )

    def stack(length, routed):
      return nn.scan(
        block,
        variable_axes={'params': 0},
        split_rngs={'params': True},
        # Flax says int, and takes a tuple of axes as well.
        in_axes=(0,) * 4  # pyright: ignore[reportArgumentType]
        + (nn.broadcast,) * 4,
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
        c.vocab_size, use_bias=False, kernel_init=parameters.INIT
      )

  def __call__(
    self,
    rows: Tokens,
    prompts: Prompts | None = None,
    context: CachedContext | None = None,
    given: Int[Array, 'L B T C'] | None = None,
    rope_table: rope.RopeTable | None = None,
  ) -> Outputs:
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
      cache_entries: the rows' own keys and values.
      routing: to the experts; None in a model without.
    """
    if prompts is not None and context is not None:
      raise ValueError('Give rows either prompts or a context, not both.')
    c = self.config
    if prompts is not None and c.experts:
      prompts = _without_padding(prompts)
    x = sharding.constrain(self._embed(rows.ids), 'BT_')
    prompt_x = prefix_x = shared = None
    cached, row_masks, live = (), [], None
    if prompts is not None:
      tokens, prefix, prompt_masks = prompts.tokens, prompts.shared_prefix, []
      prompt_x = sharding.constrain(self._embed(tokens.ids), 'PT_')
      row_masks = [masks.prompt_mask(c, rows, prompts)]
      if prefix is not None:
        prefix_x = sharding.constrain(self._embed(prefix.ids), 'PT_')
        prompt_masks = [masks.prefix_mask(c, tokens, prefix)]
        row_masks = [masks.prefix_mask(c, rows, prefix), *row_masks]
      shared = SharedPrompts(
        make_positions(c, tokens),
        prompts.index,
        prefix and make_positions(c, prefix),
        prompt_masks,
      )
    if context is not None:
      cached, live = context.cache, context.live
      row_masks = masks.context_masks(c, rows, context)
    local = np.array(c.local_layers) if c.window else None
    run_layers = self._run_unstacked if self.unstacked else self._run_stacked
    (x, prompt_x, _), cache_entries, routing = run_layers(
      (x, prompt_x, prefix_x),
      cached,
      local,
      given,
      make_positions(c, rows, rope_table),
      shared,
      row_masks,
      live,
    )
    if self.is_initializing() and not self.config.tied_embedding:
      self.head(x)
    x = self.final_norm(x)
    if prompt_x is not None:
      prompt_x = self.final_norm(prompt_x)
    return x, prompt_x, cache_entries, routing

  def _run_stacked(
    self,
    carry: Carry,
    cached: Sequence[KeyValues],
    local: np.ndarray | None,
    given: Int[Array, 'L B T C'] | None,
    rows: Positions,
    shared: SharedPrompts | None,
    row_masks: Sequence[Mask | SegmentIds],
    live: LiveCache | None,
  ) -> tuple[Carry, KeyValues, Routing | None]:
    """All layers by scans over their stacks: dense ones, then those routed."""
    c, dense_entries = self.config, None
    numbers = None if live is None else np.arange(c.num_layers)
    whole = rows, shared, row_masks, live
    if c.experts and c.num_dense_layers:
      first, rest = _split((cached, local, numbers), c.num_dense_layers)
      cached, local, numbers = rest
      carry, (dense_entries, _) = self.dense_layers(
        carry, first[0], first[1], None, first[2], *whole
      )
    # Flax names parameters by this attribute, which is one scan or many layers.
    layers = cast(Callable[..., Any], self.layers)
    carry, (entries, routing) = layers(
      carry, cached, local, given, numbers, *whole
    )
    if dense_entries is not None:
      entries = jax.tree.map(
        lambda *parts: jnp.concatenate(parts), dense_entries, entries
      )
    return carry, entries, routing

  def _run_unstacked(
    self,
    carry: Carry,
    cached: Sequence[KeyValues],
    local: np.ndarray | None,
    given: Int[Array, 'L B T C'] | None,
    rows: Positions,
    shared: SharedPrompts | None,
    row_masks: Sequence[Mask | SegmentIds],
    live: LiveCache | None,
  ) -> tuple[Carry, KeyValues, Routing | None]:
    """All layers one by one, each with parameters of its own."""
    c, entries, routings = self.config, [], []
    first_routed = c.num_dense_layers
    for i, layer in enumerate(cast(Sequence[Block], self.layers)):
      pieces = [_of_layer(keys_values, i) for keys_values in cached]
      is_local = None if local is None else bool(local[i])
      chosen = None
      if given is not None and i >= first_routed:
        chosen = given[i - first_routed]
      carry, (entry, routing) = layer(
        carry, pieces, is_local, chosen, i, rows, shared, row_masks, live
      )
      entries.append(entry)
      routings += [routing] if routing else []
    entries = jax.tree.map(
      lambda *parts: tuple(x[None] for x in parts), *entries
    )
    stack = functools.partial(jax.tree.map, lambda *parts: jnp.stack(parts))
    return carry, entries, stack(*routings) if routings else None

  def _embed(self, ids):
    x = self.embed(ids).astype(jnp.dtype(self.config.dtype))
    if self.config.scaled_embedding:
      # The factor is rounded to the compute dtype, as it was in training.
      x = x * jnp.asarray(self.config.width**0.5, x.dtype)
    return x


def _without_padding(prompts):
  """Marks prompts that no row continues as padding, so no expert gets them."""
  tokens = prompts.tokens
  numbers = jnp.arange(tokens.ids.shape[0])
  used = jnp.any(prompts.index.reshape(-1, 1) == numbers[None], axis=0)
  segments = jnp.where(used[:, None], tokens.segments, 0)
  return prompts._replace(tokens=tokens._replace(segments=segments))


def _of_layer(keys, i):
  """Keys and values of layer i, unstacked, without the axis of layers."""
  return KeyValues(*(part and part[i][0] for part in keys))


def _split(tree, number):
  """Splits stacked layers into the first `number` and the rest."""
  return (
    jax.tree.map(lambda x: x[:number], tree),
    jax.tree.map(lambda x: x[number:], tree),
  )


def init(config: ModelConfig, key: jax.Array) -> Params:
  """Fresh float32 parameters, normal(0.02); norms multiply by one."""
  rows, length = sharding.axis_size('B'), 2 * sharding.axis_size('T')
  ids = jnp.ones((rows, length), jnp.int32)
  return Transformer(config).init(key, Tokens(ids, ids, ids))['params']


def initialise(config: ModelConfig, key: jax.Array) -> Params:
  """`init` on the current mesh: each device makes its own parts alone."""
  fresh = functools.partial(init, config)
  shardings = sharding.param_shardings(
    parameters.AXES, jax.eval_shape(fresh, key)
  )
  return jax.jit(fresh, out_shardings=shardings)(key)


def forward(
  config: ModelConfig,
  params: Params,
  rows: Tokens,
  prompts: Prompts | None = None,
  context: CachedContext | None = None,
) -> tuple[Float[Array, 'B T D'], Float[Array, 'P Tp D'] | None, KeyValues]:
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
) -> Outputs:
  """`forward`, and where tokens were routed, or None without experts.

  With unstacked parameters the keys and values, in and out, are unstacked too:
  a tuple of arrays of one layer instead of one array.
  """
  found = Transformer(config, 'layers' not in params).apply(
    {'params': params}, rows, prompts, context, given, rope_table
  )
  return cast(Outputs, found)  # Flax knows no type of `__call__`


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
  assert prompt_hidden is not None
  lengths = jnp.sum(prompts.tokens.segments > 0, axis=1)
  last = jnp.take_along_axis(
    prompt_hidden, (lengths - 1)[:, None, None], axis=1
  )[:, 0]
  last = last[jnp.take_along_axis(prompts.index, prompts.which, axis=1)]
  before = jnp.pad(rows.segments[:, :-1], ((0, 0), (1, 0)))
  first = (rows.segments != before)[..., None]
  return jnp.where(first, last, shifted)
