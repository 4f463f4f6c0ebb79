"""Aggregation: which tokens the terms of an objective are averaged over.

A choice takes how many tokens of each completion count in the loss, [B], the
prompt of each, [B], and max_len. It returns by what the terms of each
completion's tokens are divided, [B], and by what their sum over the minibatch
is. The first division happens on the device; the second once, on the sums of
all microbatches and devices, so that no cut can change a mean.
"""

import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Float

from rlzero.rl.objective import Objective
from rlzero.rl.objectives.piece import Piece
from rlzero.train.packing import RolloutBatch

Divisors = tuple[np.ndarray, int]


def divisors(
  objective: Objective, batch: RolloutBatch, max_len: int
) -> Divisors:
  """The divisors of a minibatch by the settings' aggregation."""
  masks = batch.masks or [None] * len(batch.completions)
  lengths = np.array(
    [
      len(tokens) if mask is None else int(np.sum(mask))
      for tokens, mask in zip(batch.completions, masks, strict=True)
    ],
    np.int32,
  )
  choice = AGGREGATIONS[objective.aggregation]
  return choice(objective, lengths, batch.prompt_index, max_len)


def token_weights(
  mask: Float[Array, '*B'], counts: Float[Array, '*B']
) -> Float[Array, '*B']:
  """Weight of a token in the sum over its minibatch.

  Args:
    mask: 1 on the tokens that count in the loss, EOS included, else 0.
    counts: by what the terms of its completion's tokens are divided.
  """
  return mask / jnp.maximum(counts, 1)


def sequence_mean(
  lengths: np.ndarray, prompts: np.ndarray, max_len: int
) -> Divisors:
  """1/B sum_i 1/|o_i| sum_t: completions count alike (2402.03300, eq. 3)."""
  del prompts, max_len
  return lengths, len(lengths)


def prompt_mean(
  lengths: np.ndarray, prompts: np.ndarray, max_len: int
) -> Divisors:
  """Mean over a prompt's tokens, then over prompts (arXiv 2503.14476, eq. 8).

  DAPO's equation; its published code takes the mean over all tokens instead.
  """
  del max_len
  sums = np.bincount(prompts, lengths).astype(np.int32)
  return sums[prompts], np.unique(prompts).size


def token_mean(
  lengths: np.ndarray, prompts: np.ndarray, max_len: int
) -> Divisors:
  """Mean over all tokens of the minibatch: long completions count more."""
  del prompts, max_len
  return np.ones_like(lengths), max(int(lengths.sum()), 1)


def constant(
  lengths: np.ndarray, prompts: np.ndarray, max_len: int, constant: int
) -> Divisors:
  """1/B sum_i 1/L sum_t (Dr. GRPO, arXiv 2503.20783); L = 1 is a sum."""
  del prompts
  return np.full_like(lengths, constant or max_len), len(lengths)


AGGREGATIONS = {
  'sequence_mean': Piece(
    function=sequence_mean,
    formula='1/B Σ_i 1/|o_i| Σ_t',
    source='arXiv 2402.03300, eq. 3',
  ),
  'prompt_mean': Piece(
    function=prompt_mean,
    formula='1/P Σ_q 1/(Σ_i |o_i|) Σ_i Σ_t',
    source='arXiv 2503.14476, eq. 8',
  ),
  'token_mean': Piece(
    function=token_mean,
    formula='1/(Σ_q Σ_i |o_i|) Σ_q Σ_i Σ_t',
    source='arXiv 2508.08221',
  ),
  'constant': Piece(
    function=constant,
    formula='1/B Σ_i 1/L Σ_t',
    source='arXiv 2503.20783',
    numbers=('constant',),
  ),
}
