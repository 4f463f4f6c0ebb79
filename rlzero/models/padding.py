"""Prompts padded to few sizes, and the prefix that all of them share."""

from collections.abc import Sequence

import numpy as np

from rlzero.types import Tokens

# The shared prefix is a multiple of this long, so that its shape seldom varies.
_PREFIX_STEP = 16

# With fewer prompts extra tokens agree by chance, which would change the shape
# from step to step.
_PREFIX_PROMPTS = 4


def shared_prefix_len(prompts: Sequence[list[int]]) -> int:
  """Length of the shared prefix: what all prompts begin with, a template say.

  It need not be computed for each of them. Every prompt keeps a token of its
  own, which predicts the first one of its completions.
  """
  if len(prompts) < _PREFIX_PROMPTS:
    return 0
  # What the first and the last in order have in common, all have.
  first, last = min(prompts), max(prompts)
  most = min(map(len, prompts)) - 1
  alike = next((i for i in range(most) if first[i] != last[i]), most)
  return alike // _PREFIX_STEP * _PREFIX_STEP


def prompt_width(longest: int) -> int:
  """Width of padded prompts: one of few, at most a quarter or 7 tokens over."""
  return round_up(longest, max(8, (1 << (longest - 1).bit_length()) // 8))


def round_up(size: int, step: int) -> int:
  """The smallest multiple of `step` that is at least `size`."""
  return -(-size // step) * step


def pad(
  prompts: Sequence[Sequence[int]],
  num_prompts: int,
  width: int,
  first: int = 0,
) -> Tokens:
  """Prompts as [num_prompts, width] tokens, padded on the right and below.

  Their positions begin with `first`.
  """
  ids = np.zeros((num_prompts, width), np.int32)
  segments = np.zeros((num_prompts, width), np.int32)
  for i, prompt in enumerate(prompts):
    ids[i, : len(prompt)] = prompt
    segments[i, : len(prompt)] = 1
  # A prompt that only pads has one token, so that it has a last one.
  segments[len(prompts) :, 0] = 1
  positions = first + np.arange(width, dtype=np.int32)
  positions = np.broadcast_to(positions, ids.shape)
  return Tokens(ids, positions, segments)
