"""Means and extremes of the last steps of a run, as alerts look at them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Rows = Sequence[Mapping[str, Any]]  # of metrics.jsonl: steps in order

HORIZON = 100  # steps that length and throughput are compared over
_RECENT = 3  # steps in a row that a length must be another at


def known(rows: Iterable[Mapping[str, Any]], name: str) -> np.ndarray:
  """The values that are there and finite."""
  values = [row[name] for row in rows if row.get(name) is not None]
  return np.array([v for v in values if math.isfinite(v)], np.float64)


def last(rows: Rows, name: str, count: int) -> np.ndarray:
  """The values that are known of the last steps."""
  return known(rows[-count:], name)


def first(rows: Rows, name: str, count: int) -> np.ndarray:
  """The values that are known of the first steps."""
  return known(rows[:count], name)


def now(rows: Rows, name: str) -> float:
  """The value at the last step; NaN, which no comparison holds for, if none."""
  values = last(rows, name, 1)
  return float(values[0]) if len(values) else math.nan


def level(rows: Rows, name: str, window: int) -> float:
  """The mean of the last `window` values that are known; NaN of fewer.

  Some steps have no value: no token of a step counts, and its entropy is of
  nothing, if the rewards of each group are equal.
  """
  values = known(rows[-HORIZON:], name)[-window:]
  full = len(values) == window
  return round(float(values.mean()), 9) if full else math.nan


def mean(values: Sequence[float] | np.ndarray) -> float:
  """The mean; NaN of nothing."""
  return float(np.mean(values)) if len(values) else math.nan


def length_change(
  rows: Rows, rose: bool, ends: int
) -> tuple[float, float, float]:
  """How the length changed, and accuracy with it.

  Args:
    rows: the steps so far.
    rose: whether the change is from the shortest of the last steps or from the
      longest.
    ends: steps that accuracy is averaged over.

  Returns:
    that length; what the last three steps all passed; the gain in accuracy.
  """
  rows = [
    row
    for row in rows[-HORIZON:]
    if not math.isnan(now([row], 'completion/len_mean'))
    and not math.isnan(now([row], 'reward/correct'))
  ]
  if len(rows) < _RECENT:
    return math.nan, math.nan, math.nan
  lengths = known(rows, 'completion/len_mean')
  right = known(rows, 'reward/correct')
  at = int(lengths.argmin() if rose else lengths.argmax())
  passed = lengths[-_RECENT:].min() if rose else lengths[-_RECENT:].max()
  before = right[at : at + ends]
  gain = right[-ends:].mean() - before.mean()
  return float(lengths[at]), float(passed), float(gain)
