"""Completions that reach `max_len`, or nearly: rewards and loss.

A completion that was cut off could not state its answer. It may count as it
is, earn nothing, or be no part of the loss; and a penalty may fall on lengths
shortly below the limit, so that the limit comes as no surprise.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from rlzero.rollout.sampling import Finish
from rlzero.rollout.scheduler import Completion

Treatment = Literal['scored', 'zero', 'masked']


def earns(treatment: Treatment, truncated: bool) -> bool:
  """Whether a completion earns what its scores are worth."""
  return treatment != 'zero' or not truncated


def length_penalty(length: int, max_len: int, buffer: int) -> float:
  """DAPO's soft punishment, from 0 down to -1 (arXiv 2503.14476, eq. 13).

  0 up to max_len - buffer tokens; from there it falls along a line, to -1 at
  max_len.

  Args:
    length: of the completion, in tokens.
    max_len: longest length.
    buffer: tokens below it that are punished; 0 punishes none.
  """
  if not buffer:
    return 0.0
  return max(min((max_len - buffer - length) / buffer, 0.0), -1.0)


def masks(
  treatment: Treatment, completions: Sequence[Completion]
) -> list[np.ndarray | None]:
  """Which tokens of each completion count in the loss; None is all of them.

  A masked completion has no such token. It still has a reward, which counts in
  what the others of its group are compared with.
  """
  return [
    np.zeros(len(c.tokens), bool)
    if treatment == 'masked' and c.finish is Finish.LENGTH
    else c.mask
    for c in completions
  ]


def describe(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """The mean penalty of a rollout's completions, where there is one."""
  found = [r['length_penalty'] for r in records if 'length_penalty' in r]
  return {'reward/length_penalty': float(np.mean(found))} if found else {}
