"""Chooses the completion of a step that tells most about it."""

from collections.abc import Mapping, Sequence
from typing import Any


def choose(
  records: Sequence[Mapping[str, Any]],
) -> tuple[str, str] | None:
  """Chooses a completion: right ones first, then by their reflective words.

  Args:
    records: graded completions, as lines of `completions/`.

  Returns:
    what is said of it, and its text; None without completions.
  """
  if not records:
    return None
  best = max(
    records,
    key=lambda r: (
      bool(r.get('correct')),
      not r.get('truncated'),
      r.get('reflections') or 0,
      r.get('len') or 0,
    ),
  )
  reward = best.get('reward')  # None where nothing judged it
  said = [
    'right' if best.get('correct') else 'wrong',
    'no reward' if reward is None else f'reward {reward:.3g}',
    f'{best.get("len", 0)} tokens',
    str(best.get('question', '')),
  ]
  return ' · '.join(said), str(best.get('completion', ''))
