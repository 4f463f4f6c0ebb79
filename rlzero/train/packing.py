"""Packs completions into microbatches of few shapes, on the host.

A row holds several completions, of at most two prompts. The longest go first,
and a group stays together, so that few microbatches compute the same prompt.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from rlzero.models import padding
from rlzero.train import buckets
from rlzero.types import AnyArray, Prompts, Tokens

# With more padding than 1 row in 6, a smaller one is filled before the rest.
_ROWS_PER_EMPTY_ROW = 6


class RolloutBatch(NamedTuple):
  """Completions of whole groups, on the host: the input of an update."""

  prompts: Sequence[list[int]]  # P token lists
  prompt_index: np.ndarray  # [B]
  completions: Sequence[np.ndarray]  # B token arrays, EOS included
  old_logprobs: Sequence[np.ndarray]  # of the policy that sampled
  ref_logprobs: Sequence[np.ndarray] | None  # None without a KL term
  advantages: np.ndarray  # [B], within the group
  # Experts [L, T, C] that the sampler chose for each completion's tokens, which
  # the update then takes too; None leaves the choice to the router.
  routes: Sequence[np.ndarray] | None = None
  # Whether each token counts in the loss, bool; None counts them all.
  masks: Sequence[np.ndarray | None] | None = None
  # Of each token, between sampler and learner; None is 1.
  weights: Sequence[np.ndarray] | None = None
  # By what the terms of each completion's tokens are divided, [B]; None: by how
  # many of them count.
  counts: np.ndarray | None = None


class Microbatch(NamedTuple):
  """Packed rows of a rollout batch; zeros where nothing counts in the loss."""

  tokens: Tokens  # [B, T], a segment for each completion
  prompts: Prompts
  mask: Bool[AnyArray, 'B T']  # whether the token counts in the loss
  counts: Int[AnyArray, 'B T']  # by what the token's term is divided
  old_logprobs: Float[AnyArray, 'B T']
  ref_logprobs: Float[AnyArray, 'B T']
  advantages: Float[AnyArray, 'B T']
  weights: Float[AnyArray, 'B T'] | None = None  # between sampler and learner
  routes: Int[AnyArray, 'L B T C'] | None = None  # -1: the router chooses


class Placement(NamedTuple):
  """The place of a completion, or an item, in a microbatch."""

  completion: int  # its index among all
  row: int
  start: int


def microbatches(
  batch: RolloutBatch,
  chosen: np.ndarray,
  micro_tokens: int,
  max_len: int,
  multiple: int = 1,
) -> Iterator[tuple[list[Placement], Microbatch]]:
  """Packs the chosen completions into microbatches.

  Args:
    batch: the completions.
    chosen: indices of those that take part.
    micro_tokens: upper limit of a microbatch, rows times width, in tokens.
    max_len: upper limit of a completion, in tokens; the widest rows fit it.
    multiple: the numbers of rows and of prompts are multiples of it, so that
      as many devices get equal shares.

  Yields:
    where the completions stand, and the microbatch. Widths and the numbers of
    rows and prompts come in few sizes, so that few shapes are compiled.
  """
  lengths = np.array([len(c) for c in batch.completions])
  widths = np.array(
    [buckets.row_width(len(c), max_len) for c in batch.completions]
  )
  order = chosen[
    np.lexsort((-lengths[chosen], batch.prompt_index[chosen], -widths[chosen]))
  ]
  while order.size:
    width = int(widths[order[0]])
    sizes = buckets.row_sizes(micro_tokens, width, multiple)
    places, order, size = fill_rows(
      order, lengths, batch.prompt_index, width, sizes
    )
    yield places, _microbatch(batch, places, size, width, multiple)


def fill_rows(
  order: np.ndarray,
  lengths: np.ndarray,
  prompt_index: np.ndarray,
  width: int,
  sizes: Sequence[int],
) -> tuple[list[Placement], np.ndarray, int]:
  """Fills a microbatch whose size leaves few rows empty.

  Args:
    order: indices of the completions, in the order in which they go in.
    lengths: of all completions, in tokens.
    prompt_index: the prompt of each.
    width: tokens of a row.
    sizes: numbers of rows that the microbatch may have, largest first.

  Returns:
    placements of what went in, what did not, and the number of rows.
  """
  places, left = _fill(order, lengths, prompt_index, width, sizes[0])
  used = 1 + max(p.row for p in places)
  size = min(n for n in sizes if n >= used)
  smaller = [n for n in sizes if n <= used]
  if (size - used) * _ROWS_PER_EMPTY_ROW > size and smaller:
    size = smaller[0]  # full, and the rest in another
    places, left = _fill(order, lengths, prompt_index, width, size)
  return places, left, size


def _fill(order, lengths, prompt_index, width, most):
  """Places each completion in the first row with room for it (first fit).

  Returns:
    placements of what went in, and what did not.
  """
  used: list[int] = []  # tokens in each row
  prompts: list[set[int]] = []  # of each row
  places, left = [], []
  for i in order:
    prompt = prompt_index[i]
    free = (
      row
      for row, (size, shared) in enumerate(zip(used, prompts, strict=True))
      if size + lengths[i] <= width
      and (prompt in shared or len(shared) < buckets.PROMPTS_A_ROW)
    )
    row = next(free, len(used))
    if row == most:
      left.append(i)
      continue
    if row == len(used):
      used.append(0)
      prompts.append(set())
    places.append(Placement(int(i), row, used[row]))
    used[row] += int(lengths[i])
    prompts[row].add(prompt)
  return places, np.array(left, order.dtype)


def empty_microbatch(
  batch: RolloutBatch,
  used: Sequence[int],
  num_rows: int,
  num_prompts: int,
  width: int,
  multiple: int,
) -> Microbatch:
  """Makes rows of padding beside the prompts with the indices `used`."""
  shape = num_rows, width
  prefix_len = padding.shared_prefix_len(batch.prompts)
  longest = padding.prompt_width(
    max(len(p) for p in batch.prompts) - prefix_len
  )

  def zeros(dtype: type) -> np.ndarray:
    return np.zeros(shape, dtype)

  routes = None
  if batch.routes is not None:
    num_layers, _, num_chosen = batch.routes[0].shape
    routes = np.full((num_layers, *shape, num_chosen), -1, np.int32)
  return Microbatch(
    tokens=Tokens(zeros(np.int32), zeros(np.int32), zeros(np.int32)),
    prompts=Prompts(
      padding.pad(
        [batch.prompts[p][prefix_len:] for p in used],
        num_prompts,
        longest,
        prefix_len,
      ),
      np.zeros((num_rows, buckets.PROMPTS_A_ROW), np.int32),
      zeros(np.int32),
      padding.pad(
        [batch.prompts[0][:prefix_len]] * multiple, multiple, prefix_len
      )
      if prefix_len
      else None,
    ),
    mask=zeros(bool),
    counts=zeros(np.int32),
    old_logprobs=zeros(np.float32),
    ref_logprobs=zeros(np.float32),
    advantages=zeros(np.float32),
    weights=None if batch.weights is None else zeros(np.float32),
    routes=routes,
  )


def _microbatch(
  batch: RolloutBatch,
  places: Sequence[Placement],
  num_rows: int,
  width: int,
  multiple: int,
) -> Microbatch:
  chosen = [p.completion for p in places]
  numbers, local = np.unique(batch.prompt_index[chosen], return_inverse=True)
  used = numbers.tolist()
  num_prompts = min(
    n
    for n in buckets.prompt_sizes(num_rows, len(batch.prompts), width, multiple)
    if n >= len(used)
  )
  micro = empty_microbatch(batch, used, num_rows, num_prompts, width, multiple)
  (ids, positions, segments), index = micro.tokens, micro.prompts.index
  held: list[list[int]] = [[] for _ in range(num_rows)]
  for segment, (place, prompt) in enumerate(zip(places, local, strict=True)):
    i, row, start = place
    if prompt not in held[row]:
      index[row, len(held[row])] = prompt
      held[row].append(prompt)
    size = len(batch.completions[i])
    at = row, slice(start, start + size)
    ids[at] = batch.completions[i]
    positions[at] = len(batch.prompts[used[prompt]]) + np.arange(size)
    segments[at] = segment + 1
    micro.prompts.which[at] = held[row].index(prompt)
    mask = batch.masks[i] if batch.masks else None
    mask = np.ones(size, bool) if mask is None else mask
    micro.mask[at] = mask
    micro.counts[at] = mask.sum() if batch.counts is None else batch.counts[i]
    micro.advantages[at] = batch.advantages[i]
    micro.old_logprobs[at] = np.where(mask, batch.old_logprobs[i], 0)
    # Without a KL term no one reads them.
    reference = batch.ref_logprobs or batch.old_logprobs
    micro.ref_logprobs[at] = np.where(mask, reference[i], 0)
    if batch.weights is not None and micro.weights is not None:
      micro.weights[at] = batch.weights[i]
    if batch.routes is not None and micro.routes is not None:
      micro.routes[:, row, start : start + size] = batch.routes[i]
  return micro
