"""The few sizes of microbatches that updates are compiled for."""

from rlzero.models import padding

PROMPTS_A_ROW = 2  # the most that completions of one row continue

_WIDTH = 128  # tokens of the narrowest rows; wider ones double
# Where no completion is longer, the rows are this wide: attention in narrower
# rows compares a token with fewer others.
_SHORT = 64
_WIDTH_STEP = 32  # the widest rows are rounded up to a multiple of this
# Long rows and large microbatches come in few sizes, minutes each to compile.
_WIDEST_OVER_NARROWEST = 8
_LARGE = 65_536  # tokens of a microbatch
# Numbers of rows that are compiled for, as shares of the largest.
_SHARES = 1, 3 / 4, 1 / 2, 1 / 4, 1 / 8, 1 / 16


def row_sizes(micro_tokens: int, width: int, multiple: int = 1) -> list[int]:
  """Lists the numbers of rows that a microbatch may have, largest first."""
  most = max(micro_tokens // width, 1)
  shares = _SHARES if micro_tokens < _LARGE else _SHARES[:1]
  sizes = {max(int(most * share), 1) for share in shares}
  return sorted({padding.round_up(n, multiple) for n in sizes}, reverse=True)


def row_width(length: int, max_len: int) -> int:
  """Chooses the width, in tokens, of rows for a completion of this length."""
  # The widest rows have room for the longest completion, and for two of them
  # where these fit into short rows.
  widest = min(2 * max_len, max(_SHORT, padding.round_up(max_len, _WIDTH_STEP)))
  narrowest = padding.round_up(-(-widest // _WIDEST_OVER_NARROWEST), _WIDTH)
  width = min(narrowest, widest)
  while width < length:
    width = min(2 * width, widest)
  return width


def prompt_sizes(
  num_rows: int, num_prompts: int, width: int, multiple: int
) -> list[int]:
  """Lists the numbers of prompts beside so many rows, smallest first."""
  most = min(num_rows * PROMPTS_A_ROW, num_prompts)
  # For long completions (a group fills four rows or more), short ones, and any.
  wanted = -(-num_rows // 4), -(-num_rows // 2) + 1, most
  wanted = wanted if num_rows * width < _LARGE else wanted[-1:]
  return sorted({padding.round_up(min(n, most), multiple) for n in wanted})
