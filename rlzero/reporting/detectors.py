"""What in the metrics of a run needs a look."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from rlzero.reporting import recorded

WINDOW = 10  # steps over which is averaged


def suspicions(rows: list[dict[str, Any]]) -> list[str]:
  """What is suspicious in the metrics of a run, a plain sentence each."""
  found = []
  share, where = _worst(rows, 'groups/zero_variance', max)
  if share > 0.8:
    found.append(
      f'{share:.0%} of the groups had equal rewards in {where} and taught '
      'nothing: their problems were always solved, or never.'
    )
  share, where = _worst(rows, 'completion/truncated', max)
  if share >= 1:
    found.append(f'EOS was never emitted in {where}: every row was cut off.')
  elif share > 0.1:
    found.append(
      f'{share:.0%} of the completions were cut off in {where}: the longest '
      'length allowed holds the model back.'
    )
  entropy, where = _worst(rows, 'policy/entropy', min)
  if entropy < 0.05:
    found.append(
      f'The entropy was {entropy:.3f} nats in {where}: the policy hardly '
      'explores any more.'
    )
  steps, kl = recorded.series(rows, 'policy/kl')
  usual = [np.median(kl[max(i - WINDOW, 0) : i + 1]) for i in range(len(kl))]
  for step, value, middle in zip(steps, kl, usual, strict=True):
    if value > max(0.1, 10 * middle):
      found.append(
        f'The KL from the reference jumped to {value:.3g} at step {step:.0f}, '
        f'from about {middle:.2g}.'
      )
      break
  form, correct = (
    recorded.series(rows, key)[1] for key in ('reward/format', 'reward/correct')
  )
  if min(len(form), len(correct)) >= 2 * WINDOW:
    (f0, f1), (c0, c1) = ((v[0], v[-WINDOW:].mean()) for v in (form, correct))
    if f1 - f0 > 0.2 and c1 - c0 < 0.05:
      found.append(
        f'Only the format was learned ({f0:.2f} to {f1:.2f}); accuracy stayed '
        f'flat ({c0:.2f} to {c1:.2f}).'
      )
  return found


def _worst(rows: list[dict], key: str, pick: Callable) -> tuple[float, str]:
  """The extreme of the moving average, NaN if there is none, and its place."""
  steps, values = recorded.series(rows, key)
  if not len(values):
    return math.nan, ''
  width = min(WINDOW, len(values))
  means = np.convolve(values, np.full(width, 1 / width), 'valid').round(9)
  at = pick(range(len(means)), key=lambda i: means[i])
  return float(means[at]), f'steps {steps[at]:.0f}–{steps[at + width - 1]:.0f}'
