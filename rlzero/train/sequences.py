"""Packs whole sequences, prompt and completion, for supervised stages."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rlzero.train import buckets, packing
from rlzero.types import Tokens


class PackItem(NamedTuple):
  """Whole sequences that share a row, one after the other."""

  sequences: Sequence[np.ndarray]  # token ids of each
  extras: Any  # pytree of [n], further values of their n tokens


class PackedBatch(NamedTuple):
  """Rows of packed items."""

  tokens: Tokens  # [B, T], a segment for each sequence
  extras: Any  # pytree of [B, T]; padding has zeros


def pack(
  items: Sequence[PackItem], micro_tokens: int, max_len: int, multiple: int = 1
) -> Iterator[tuple[list[packing.Placement], PackedBatch]]:
  """Packs items into microbatches; takes the arguments of `microbatches`."""
  sizes = [sum(map(len, p.sequences)) for p in items]
  lengths = np.array(sizes)
  widths = np.array([buckets.row_width(n, max_len) for n in sizes])
  order = np.lexsort((-lengths, -widths))
  alike = np.zeros(len(items), int)  # as if all continued one prompt
  while order.size:
    width = int(widths[order[0]])
    sizes = buckets.row_sizes(micro_tokens, width, multiple)
    places, order, size = packing.fill_rows(order, lengths, alike, width, sizes)
    yield places, _packed(items, places, size, width)


def _packed(
  items: Sequence[PackItem],
  places: Sequence[packing.Placement],
  num_rows: int,
  width: int,
) -> PackedBatch:
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
