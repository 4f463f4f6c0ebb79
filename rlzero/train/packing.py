"""Completions cut into packed microbatches of few shapes; on the host.

Several completions share a row, and a row continues at most two prompts. Rows
are filled first with what needs the widest ones, group by group, so that a
prompt is computed in few microbatches. Supervised stages pack whole sequences,
prompt and completion, in the same way (`pack`).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from rlzero.models import padding
from rlzero.types import Prompts, Tokens

_WIDTH = 128  # tokens of the narrowest rows; wider ones double
_SHORT = 64  # rows where no completion is longer; each token meets fewer others
_WIDTH_STEP = 32  # the widest are cut to a multiple of this
_PROMPTS_A_ROW = 2
_SHARES = 1, 3 / 4, 1 / 2, 1 / 4, 1 / 8, 1 / 16  # of the most rows

_EMPTY = 6  # at most one row of so many is there only to fill up


class RolloutBatch(NamedTuple):
  """Completions on the host, as the update wants them; whole groups."""

  prompts: Sequence[Sequence[int]]  # P token lists
  prompt_index: np.ndarray  # [B]
  completions: Sequence[np.ndarray]  # B token arrays, EOS included
  old_logprobs: Sequence[np.ndarray]  # of the policy that sampled
  ref_logprobs: Sequence[np.ndarray] | None  # None without a KL term
  advantages: np.ndarray  # [B], over the whole group
  # Experts [L, T, C] that the sampler took for the tokens of each completion,
  # to be taken again; None leaves the choice to the router.
  routes: Sequence[np.ndarray] | None = None
  # Whether each token counts in the loss, bool; None counts them all.
  masks: Sequence[np.ndarray | None] | None = None


class Microbatch(NamedTuple):
  """Packed rows of a rollout batch; zeros where nothing counts in the loss."""

  tokens: Tokens  # [B, T], a segment for each completion
  prompts: Prompts
  mask: Bool[Array, 'B T']  # whether the token counts in the loss
  counts: Int[Array, 'B T']  # tokens that count in the token's completion
  old_logprobs: Float[Array, 'B T']
  ref_logprobs: Float[Array, 'B T']
  advantages: Float[Array, 'B T']
  routes: Int[Array, 'L B T C'] | None = None  # -1: the router chooses


class PackItem(NamedTuple):
  """Whole sequences that stay together in a row, one after the other."""

  sequences: Sequence[np.ndarray]  # token ids of each
  extras: Any  # pytree of [n], what else each of their n tokens carries


class PackedBatch(NamedTuple):
  """A microbatch of packed items."""

  tokens: Tokens  # [B, T], a segment for each sequence
  extras: Any  # pytree of [B, T]; padding has zeros


class Placement(NamedTuple):
  """Where a completion, or an item, stands in a microbatch."""

  completion: int  # its index among all
  row: int
  start: int


def microbatches(
  rows: RolloutBatch,
  chosen: np.ndarray,
  micro_tokens: int,
  max_len: int,
  ways: int = 1,
) -> Iterator[tuple[list[Placement], Microbatch]]:
  """Cuts the chosen completions into packed microbatches.

  Args:
    rows: the completions.
    chosen: indices of those that take part.
    micro_tokens: about how many tokens the rows of a microbatch may have.
    max_len: the longest a completion can be; no longer one is compiled for.
    ways: rows and prompts are multiples of it, for as many devices.

  Yields:
    where the completions stand, and the microbatch. Widths, and the numbers of
    rows and prompts, come in few sizes, so that few shapes are compiled.
  """
  lengths = np.array([len(c) for c in rows.completions])
  widths = np.array([_width(len(c), max_len) for c in rows.completions])
  order = chosen[
    np.lexsort((-lengths[chosen], rows.prompt_index[chosen], -widths[chosen]))
  ]
  while order.size:
    width = int(widths[order[0]])
    sizes = row_sizes(micro_tokens, width, ways)
    places, order, size = _fill_some(
      order, lengths, rows.prompt_index, width, sizes
    )
    yield places, _micro(rows, places, size, width, ways)


def pack(
  items: Sequence[PackItem], micro_tokens: int, max_len: int, ways: int = 1
) -> Iterator[tuple[list[Placement], PackedBatch]]:
  """Cuts items into packed microbatches; arguments as of `microbatches`."""
  sizes = [sum(map(len, p.sequences)) for p in items]
  lengths = np.array(sizes)
  widths = np.array([_width(n, max_len) for n in sizes])
  order = np.lexsort((-lengths, -widths))
  alike = np.zeros(len(items), int)  # as if all continued one prompt
  while order.size:
    width = int(widths[order[0]])
    sizes = row_sizes(micro_tokens, width, ways)
    places, order, size = _fill_some(order, lengths, alike, width, sizes)
    yield places, _packed(items, places, size, width)


def shapes(
  rows: RolloutBatch, micro_tokens: int, max_len: int, ways: int = 1
) -> Iterator[Microbatch]:
  """An empty microbatch of each shape that `microbatches` may yield.

  For as many completions and prompts, and as long ones; arguments as there.
  """
  for width in sorted({_width(n + 1, max_len) for n in range(max_len)}):
    sizes = row_sizes(micro_tokens, width, ways)
    enough = [n for n in sizes if n >= len(rows.completions)]
    for size in sizes[max(len(enough) - 1, 0) :]:
      for num_prompts in _prompt_sizes(size, len(rows.prompts), ways):
        yield _empty(rows, [], size, num_prompts, width, ways)


def row_sizes(micro_tokens: int, width: int, ways: int = 1) -> list[int]:
  """Numbers of rows that a microbatch may have, the largest first."""
  most = max(micro_tokens // width, 1)
  sizes = {max(int(most * share), 1) for share in _SHARES}
  return sorted({padding.round_up(n, ways) for n in sizes}, reverse=True)


def side_by_side(
  micros: Iterable[Microbatch], number: int
) -> Iterator[Microbatch]:
  """Stacks `number` microbatches of one shape, in order; empty ones fill up.

  Yields:
    microbatches with an axis before their own, for as many devices.
  """
  waiting: dict[Any, list[Microbatch]] = {}

  def stacked(group):
    empty = jax.tree.map(np.zeros_like, group[0])
    # A prompt that only pads has one token, so that it has a last one.
    empty.prompts.tokens.segments[:, 0] = 1
    if empty.prompts.shared_prefix:
      empty.prompts.shared_prefix.segments[:] = 1
    group = group + [empty] * (number - len(group))
    return jax.tree.map(lambda *parts: np.stack(parts), *group)

  for micro in micros:
    shapes = tuple(x.shape for x in jax.tree.leaves(micro))
    group = waiting.setdefault(shapes, [])
    group.append(micro)
    if len(group) == number:
      yield stacked(waiting.pop(shapes))
  for group in waiting.values():
    yield stacked(group)


def _width(length: int, max_len: int) -> int:
  """Of the rows that a completion of this length may be packed into."""
  # The widest rows have room for the longest completion, and for two of them
  # where these fit into short rows.
  widest = min(2 * max_len, max(_SHORT, padding.round_up(max_len, _WIDTH_STEP)))
  width = min(_WIDTH, widest)
  while width < length:
    width = min(2 * width, widest)
  return width


def _fill_some(order, lengths, prompt_index, width, sizes):
  """Fills a microbatch of one of the sizes, of which few rows stay empty.

  Returns:
    places of what went in, what did not, and the number of rows.
  """
  places, left = _fill(order, lengths, prompt_index, width, sizes[0])
  used = 1 + max(p.row for p in places)
  size = min(n for n in sizes if n >= used)
  smaller = [n for n in sizes if n <= used]
  if (size - used) * _EMPTY > size and smaller:
    size = smaller[0]  # full, and the rest in another
    places, left = _fill(order, lengths, prompt_index, width, size)
  return places, left, size


def _fill(order, lengths, prompt_index, width, most):
  """First fit: each completion goes to the first row with room for it.

  Returns:
    places of what went in, and what did not.
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
      and (prompt in shared or len(shared) < _PROMPTS_A_ROW)
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


def _prompt_sizes(num_rows: int, num_prompts: int, ways: int) -> list[int]:
  """Numbers of prompts beside so many rows, the smallest first."""
  most = min(num_rows * _PROMPTS_A_ROW, num_prompts)
  # Long completions, a group in four rows or more; short ones; any.
  wanted = -(-num_rows // 4), -(-num_rows // 2) + 1, most
  return sorted({padding.round_up(min(n, most), ways) for n in wanted})


def _packed(items, places, num_rows, width) -> PackedBatch:
  shape = num_rows, width
  ids, positions, segments = (np.zeros(shape, np.int32) for _ in range(3))
  extras = jax.tree.map(lambda x: np.zeros(shape, x.dtype), items[0].extras)
  segment = 0
  for i, row, start in places:
    item, end = items[i], start
    for sequence in item.sequences:
      segment += 1
      at = row, slice(end, end + len(sequence))
      ids[at] = sequence
      positions[at] = np.arange(len(sequence))
      segments[at] = segment
      end += len(sequence)
    for whole, own in zip(
      jax.tree.leaves(extras), jax.tree.leaves(item.extras), strict=True
    ):
      whole[row, start:end] = own
  return PackedBatch(Tokens(ids, positions, segments), extras)


def _empty(rows, used, num_rows, num_prompts, width, ways) -> Microbatch:
  """Rows of padding alone, beside the prompts with the indices `used`."""
  shape = num_rows, width
  prefix_len = padding.shared_prefix_len(rows.prompts)
  longest = padding.prompt_width(max(len(p) for p in rows.prompts) - prefix_len)
  ints = [np.zeros(shape, np.int32) for _ in range(5)]
  floats = [np.zeros(shape, np.float32) for _ in range(3)]
  routes = None
  if rows.routes is not None:
    num_layers, _, num_chosen = rows.routes[0].shape
    routes = np.full((num_layers, *shape, num_chosen), -1, np.int32)
  return Microbatch(
    tokens=Tokens(*ints[:3]),
    prompts=Prompts(
      padding.pad(
        [rows.prompts[p][prefix_len:] for p in used],
        num_prompts,
        longest,
        prefix_len,
      ),
      np.zeros((num_rows, _PROMPTS_A_ROW), np.int32),
      ints[3],
      padding.pad([rows.prompts[0][:prefix_len]] * ways, ways, prefix_len)
      if prefix_len
      else None,
    ),
    mask=np.zeros(shape, bool),
    counts=ints[4],
    old_logprobs=floats[0],
    ref_logprobs=floats[1],
    advantages=floats[2],
    routes=routes,
  )


def _micro(rows, places, num_rows, width, ways) -> Microbatch:
  chosen = [p.completion for p in places]
  used, local = np.unique(rows.prompt_index[chosen], return_inverse=True)
  num_prompts = min(
    n
    for n in _prompt_sizes(num_rows, len(rows.prompts), ways)
    if n >= used.size
  )
  micro = _empty(rows, used, num_rows, num_prompts, width, ways)
  (ids, positions, segments), index = micro.tokens, micro.prompts.index
  held: list[list[int]] = [[] for _ in range(num_rows)]
  for segment, (place, prompt) in enumerate(zip(places, local, strict=True)):
    i, row, start = place
    if prompt not in held[row]:
      index[row, len(held[row])] = prompt
      held[row].append(prompt)
    size = len(rows.completions[i])
    at = row, slice(start, start + size)
    ids[at] = rows.completions[i]
    positions[at] = len(rows.prompts[used[prompt]]) + np.arange(size)
    segments[at] = segment + 1
    micro.prompts.which[at] = held[row].index(prompt)
    mask = rows.masks[i] if rows.masks else None
    mask = np.ones(size, bool) if mask is None else mask
    micro.mask[at] = mask
    micro.counts[at] = mask.sum()
    micro.advantages[at] = rows.advantages[i]
    micro.old_logprobs[at] = np.where(mask, rows.old_logprobs[i], 0)
    # Without a KL term they count for nothing.
    reference = rows.ref_logprobs or rows.old_logprobs
    micro.ref_logprobs[at] = np.where(mask, reference[i], 0)
    if rows.routes is not None:
      micro.routes[:, row, start : start + size] = rows.routes[i]
  return micro
