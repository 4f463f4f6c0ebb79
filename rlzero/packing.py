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
from jaxtyping import Float, Int

from rlzero.types import Prompts, Tokens

_WIDTH = 128  # tokens of the narrowest rows; wider ones double
_WIDTH_STEP = 32  # the widest are cut to a multiple of this
_PROMPTS_A_ROW = 2
# Microbatches come in so many sizes: of rows, and of the prompts beside them.
_ROW_SIZES, _PROMPT_SIZES = 8, 4


class Rows(NamedTuple):
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


class Micro(NamedTuple):
  """A microbatch of packed rows; padding has length 0."""

  tokens: Tokens  # [B, T], a segment for each completion
  prompts: Prompts
  lengths: Int[Array, 'B T']  # of the completion that the token belongs to
  old_logprobs: Float[Array, 'B T']
  ref_logprobs: Float[Array, 'B T']
  advantages: Float[Array, 'B T']
  routes: Int[Array, 'L B T C'] | None = None  # -1: the router chooses


class Piece(NamedTuple):
  """Whole sequences that stay together in a row, one after the other."""

  sequences: Sequence[np.ndarray]  # token ids of each
  extras: Any  # pytree of [n], what else each of their n tokens carries


class Packed(NamedTuple):
  """A microbatch of packed pieces."""

  tokens: Tokens  # [B, T], a segment for each sequence
  extras: Any  # pytree of [B, T]; padding has zeros


class Place(NamedTuple):
  """Where a completion, or a piece, stands in a microbatch."""

  completion: int  # its index among all
  row: int
  start: int


def microbatches(
  rows: Rows,
  chosen: np.ndarray,
  micro_tokens: int,
  max_len: int,
  ways: int = 1,
) -> Iterator[tuple[list[Place], Micro]]:
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
  prompt_width = round_up(max(len(p) for p in rows.prompts), 8)
  while order.size:
    width = int(widths[order[0]])
    most = max(micro_tokens // width, 1)
    places, order = _fill(order, lengths, rows.prompt_index, width, most)
    yield places, _micro(rows, places, most, width, prompt_width, ways)


def pack(
  pieces: Sequence[Piece], micro_tokens: int, max_len: int, ways: int = 1
) -> Iterator[tuple[list[Place], Packed]]:
  """Cuts pieces into packed microbatches; arguments as of `microbatches`."""
  sizes = [sum(map(len, p.sequences)) for p in pieces]
  lengths = np.array(sizes)
  widths = np.array([_width(n, max_len) for n in sizes])
  order = np.lexsort((-lengths, -widths))
  alike = np.zeros(len(pieces), int)  # as if all continued one prompt
  while order.size:
    width = int(widths[order[0]])
    most = max(micro_tokens // width, 1)
    places, order = _fill(order, lengths, alike, width, most)
    yield places, _packed(pieces, places, most, width, ways)


def round_up(size: int, step: int) -> int:
  return -(-size // step) * step


def side_by_side(micros: Iterable[Micro], number: int) -> Iterator[Micro]:
  """Stacks `number` microbatches of one shape, in order; empty ones fill up.

  Yields:
    microbatches with an axis before their own, for as many devices.
  """
  waiting: dict[Any, list[Micro]] = {}

  def stacked(group):
    empty = jax.tree.map(np.zeros_like, group[0])
    # A prompt that only pads has one token, so that it has a last one.
    empty.prompts.tokens.segments[:, 0] = 1
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


def pad(
  prompts: Sequence[Sequence[int]], num_prompts: int, width: int
) -> Tokens:
  """Prompts as [num_prompts, width] tokens, padded on the right and below."""
  ids = np.zeros((num_prompts, width), np.int32)
  segments = np.zeros((num_prompts, width), np.int32)
  for i, prompt in enumerate(prompts):
    ids[i, : len(prompt)] = prompt
    segments[i, : len(prompt)] = 1
  # A prompt that only pads has one token, so that it has a last one.
  segments[len(prompts) :, 0] = 1
  positions = np.broadcast_to(np.arange(width, dtype=np.int32), ids.shape)
  return Tokens(ids, positions, segments)


def _width(length: int, max_len: int) -> int:
  """Of the rows that a completion of this length may be packed into."""
  # The widest rows have room for the longest completion; where that is a
  # short one, for two.
  widest = min(2 * max_len, max(_WIDTH, round_up(max_len, _WIDTH_STEP)))
  width = min(_WIDTH, widest)
  while width < length:
    width = min(2 * width, widest)
  return width


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
    places.append(Place(int(i), row, used[row]))
    used[row] += int(lengths[i])
    prompts[row].add(prompt)
  return places, np.array(left, order.dtype)


def _num_rows(places, most, ways):
  wanted = 1 + max(p.row for p in places)
  return round_up(min(round_up(wanted, -(-most // _ROW_SIZES)), most), ways)


def _packed(pieces, places, most, width, ways) -> Packed:
  shape = _num_rows(places, most, ways), width
  ids, positions, segments = (np.zeros(shape, np.int32) for _ in range(3))
  extras = jax.tree.map(lambda x: np.zeros(shape, x.dtype), pieces[0].extras)
  segment = 0
  for i, row, start in places:
    piece, end = pieces[i], start
    for sequence in piece.sequences:
      segment += 1
      at = row, slice(end, end + len(sequence))
      ids[at] = sequence
      positions[at] = np.arange(len(sequence))
      segments[at] = segment
      end += len(sequence)
    for whole, own in zip(
      jax.tree.leaves(extras), jax.tree.leaves(piece.extras), strict=True
    ):
      whole[row, start:end] = own
  return Packed(Tokens(ids, positions, segments), extras)


def _micro(rows, places, most, width, prompt_width, ways) -> Micro:
  num_rows = _num_rows(places, most, ways)
  chosen = [p.completion for p in places]
  used, local = np.unique(rows.prompt_index[chosen], return_inverse=True)
  most = min(num_rows * _PROMPTS_A_ROW, len(rows.prompts))
  num_prompts = round_up(
    min(round_up(used.size, -(-most // _PROMPT_SIZES)), most), ways
  )
  prompts = pad([rows.prompts[p] for p in used], num_prompts, prompt_width)
  shape = num_rows, width
  ids, positions, segments, lengths, which = (
    np.zeros(shape, np.int32) for _ in range(5)
  )
  old, ref, advantages = (np.zeros(shape, np.float32) for _ in range(3))
  routes = None
  if rows.routes is not None:
    num_layers, _, num_chosen = rows.routes[0].shape
    routes = np.full((num_layers, *shape, num_chosen), -1, np.int32)
  index = np.zeros((num_rows, _PROMPTS_A_ROW), np.int32)
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
    lengths[at] = size
    which[at] = held[row].index(prompt)
    advantages[at] = rows.advantages[i]
    old[at] = rows.old_logprobs[i]
    if routes is not None:
      routes[:, row, start : start + size] = rows.routes[i]
    if rows.ref_logprobs is not None:
      ref[at] = rows.ref_logprobs[i]
  return Micro(
    tokens=Tokens(ids, positions, segments),
    prompts=Prompts(prompts, index, which),
    lengths=lengths,
    old_logprobs=old,
    ref_logprobs=old if rows.ref_logprobs is None else ref,
    advantages=advantages,
    routes=routes,
  )
