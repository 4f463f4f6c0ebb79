"""The work that no method of the same result could leave out, by formula.

2 FLOPs for each matmul weight and token going forward and 4 going back, a
prompt once for its group and what all prompts begin with once for all, the head
on completion tokens only, attention over the tokens that are there; nothing for
recomputation or padding. Of memory: the weights once for each token that all
slots decode together, and each token's keys and values for every token behind
it.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Int

from rlzero.costs import flops
from rlzero.models import kv_cache
from rlzero.models.config import ModelConfig
from rlzero.models.lora import Adapter


class Rows(NamedTuple):
  """Completions, by their lengths and those of their prompts, in tokens."""

  prompts: Int[np.ndarray, ' P']
  prompt_index: Int[np.ndarray, ' B']
  completions: Int[np.ndarray, ' B']
  prefix_len: int = 0  # tokens that all prompts begin with


class _Counts(NamedTuple):
  """Tokens, those of them that are predicted, and pairs of query and key."""

  tokens: float
  predicted: float
  pairs: float


def _count(rows: Rows) -> _Counts:
  used = np.unique(rows.prompt_index)
  s = rows.prefix_len * bool(used.size)
  p, n = rows.prompts[used] - s, rows.completions
  before = rows.prompts[rows.prompt_index]
  # A query meets the keys up to its own: s(s+1)/2 pairs in the shared prefix,
  # p s + p(p+1)/2 in the rest of a prompt, and n (s + p) + n(n+1)/2 in a
  # completion.
  pairs = s * (s + 1) / 2 + (p * s + p * (p + 1) / 2).sum()
  pairs += (n * before + n * (n + 1) / 2).sum()
  return _Counts(float(s + p.sum() + n.sum()), float(n.sum()), float(pairs))


def forward(
  model: ModelConfig, rows: Rows, adapter: Adapter | None = None
) -> float:
  """FLOPs of a forward pass over completions and their prompts."""
  return flops.forward(model, *_count(rows), adapter=adapter)


def update(
  model: ModelConfig, rows: Rows, adapter: Adapter | None = None
) -> float:
  """FLOPs of a forward pass and of going back."""
  whole = dataclasses.replace(model, remat=False)
  return flops.update(whole, *_count(rows), adapter=adapter)


def decode_bytes(
  model: ModelConfig, rows: Rows, steps: float, num_slots: int, copies: int = 1
) -> float:
  """Bytes of memory that sampling the completions reads, of all devices.

  Args:
    model: its shape.
    rows: the completions.
    steps: tokens that all slots decode, one after the other.
    num_slots: rows of a batch.
    copies: of the weights, each read by the devices that hold it: shards of
      the rows.
  """
  item = jnp.dtype(model.dtype).itemsize
  cache = jax.eval_shape(lambda: kv_cache.empty_cache(model, 1, 1))
  a_token = sum(math.prod(part.shape) for part in jax.tree.leaves(cache))
  n = rows.completions
  before = rows.prompts[rows.prompt_index] - rows.prefix_len
  # By all rows at a time.
  looked_at = (n * (before + n / 2)).sum() + steps * rows.prefix_len
  weights = flops.read_weights(model, num_slots / copies)
  return item * (steps * copies * weights + float(looked_at) * a_token)
