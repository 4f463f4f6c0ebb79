"""The axis legend, and every pytree that crosses a module border.

Axes, the same letters in annotations, einsums and comments:

  P prompts            T tokens in a row        N query heads
  G completions a      S key/value length       K key/value heads
    prompt             V vocabulary             H head dimension
  B rows               D model width            L layers
  M prompts a row      F MLP width

and of a mixture of experts and of latent attention:

  E experts            R latent rank            U value's head dimension
  C experts a token    Q queries' rank          X = U + the part of H that
  W an expert's width  A = R + rotated part       is not rotated
  Z shared width         of H: cached

and J, the rank of an adapter; O, rows that all devices share out.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

Params = Any  # nested dict of arrays, layers stacked on axis 0

# On the devices, or on the host.
AnyArray = jax.Array | np.ndarray


class Tokens(NamedTuple):
  """Rows of token ids with their place in the sequence they belong to."""

  ids: Int[AnyArray, 'B T']
  positions: Int[AnyArray, 'B T']  # for the rotary embedding
  segments: Int[AnyArray, 'B T']  # 0 is padding; equal = same sequence


class KeyValues(NamedTuple):
  """Keys and values, of all layers, as a cache holds them.

  Entry s of a row has position s. A product with queries reads keys whose
  positions are next to each other. Of latent attention there are no values, and
  keys are [L, B, 1, S, A]. Where layers are unstacked (`parameters.unstack`),
  each part is a tuple of L arrays of one layer.
  """

  key: Float[jax.Array, 'L B K H S'] | tuple[jax.Array, ...]
  value: Float[jax.Array, 'L B K S H'] | tuple[jax.Array, ...] | None


class LiveRange(NamedTuple):
  """Entries of a cache that each row looks at, and the blocks they lie in.

  Each of W devices with rows of its own has a list of G blocks, of which the
  first `number` exist. They are in the order of the rows.
  """

  first: Int[jax.Array, 'B']  # entry of each row
  end: Int[jax.Array, 'B']  # behind the last
  rows: Int[jax.Array, 'W*G']  # of the device's
  blocks: Int[jax.Array, 'W*G']  # of a row
  number: Int[jax.Array, 'W']


class LiveCache(NamedTuple):
  """A cache of which a kernel reads each row's live entries alone."""

  cache: KeyValues  # of all layers, stacked
  everywhere: LiveRange  # of global layers
  window: LiveRange | None  # of local layers; None: the model has no windows


class CachedContext(NamedTuple):
  """Cached tokens that every query of a row may look at; in pieces."""

  cache: tuple[KeyValues, ...]
  valid: tuple[Bool[jax.Array, 'B S'], ...]
  positions: tuple[Int[jax.Array, 'B S'], ...]  # of the tokens
  live: LiveCache | None = None  # one more piece


class Prompts(NamedTuple):
  """Prompts that rows share; a row may hold completions of M of them.

  What all prompts begin with, the shared prefix, is a field of its own:
  a row of it for each device, none of them padded; None without one.
  """

  tokens: Tokens  # [P, Tp], right-padded; behind the shared prefix
  index: Int[AnyArray, 'B M']  # the prompts that a row continues
  which: Int[AnyArray, 'B T']  # of these M, the one that a token continues
  shared_prefix: Tokens | None = None


class Routing(NamedTuple):
  """Where tokens went in the layers that have experts."""

  ids: Int[jax.Array, 'L B T C']  # experts of the rows' tokens; E is none
  # Tokens that experts got, of prompts too; not of a shared prefix, which
  # would count once for each microbatch.
  loads: Float[jax.Array, 'L E']
