"""Numbers that are counted, estimated, written down and shown."""

import json
import math
import numbers
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorboardX

from rlzero.runtime import files, terminal, trackers

JSONL = 'metrics.jsonl'  # in the workdir


class Mean(NamedTuple):
  """A mean that is not divided yet, so that parts of a batch can be added.

  A pytree: totals and counts are summed over microbatches and devices, and
  divided once.
  """

  total: Any
  count: Any

  def __add__(self, other: 'Mean') -> 'Mean':
    return Mean(self.total + other.total, self.count + other.count)

  @property
  def value(self) -> Any:
    """total / count; NaN where nothing was counted."""
    known = isinstance(self.count, (numbers.Number, np.ndarray))
    if known and not self.count:
      return math.nan  # Python would raise, NumPy warn; JAX gives NaN
    return self.total / self.count


def interval_text(ends: Sequence[float | None], style: str = '.3f') -> str:
  """An interval in square brackets; '[–, –]' where it is not known.

  Args:
    ends: two numbers, NaN or None.
    style: of a number, as `format` takes it.
  """
  shown = (
    '–' if end is None or math.isnan(end) else format(end, style)
    for end in ends
  )
  return f'[{", ".join(shown)}]'


def read_metrics(workdir: str) -> list[dict[str, Any]]:
  """The lines of a run's `metrics.jsonl`, as `read_lines` reads them."""
  return read_lines(os.path.join(workdir, JSONL))


def read_lines(path: str) -> list[dict[str, Any]]:
  """The objects of a JSONL file; none if there is no such file.

  A last line that a killed run left half written is passed over.

  Raises:
    ValueError: another line is broken.
  """
  if not os.path.exists(path):
    return []
  with open(path, encoding='utf-8') as file:
    lines = file.readlines()
  rows = []
  for number, line in enumerate(lines, start=1):
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError as error:
      if number < len(lines):
        raise ValueError(
          f'{path}:{number} is not JSON, and only the last line of a killed '
          'run may be; remove the line.'
        ) from error
  return rows


class MetricsWriter:
  """Appends each step to `metrics.jsonl`, to TensorBoard and to `trackers`.

  Args:
    workdir: folder of the run, made if missing.
    start_step: the step that is written next. Lines of this and later steps,
      left by a run that was killed after its last checkpoint, are removed.
  """

  def __init__(self, workdir: str, start_step: int = 0):
    os.makedirs(workdir, exist_ok=True)
    path = os.path.join(workdir, JSONL)
    kept = [row for row in read_metrics(workdir) if row['step'] < start_step]
    files.write_jsonl(path, kept)
    self._file = open(path, 'a', encoding='utf-8')
    self._board = tensorboardX.SummaryWriter(
      os.path.join(workdir, 'tensorboard'), purge_step=start_step
    )
    self._trackers = trackers.open_all(workdir)

  def write(
    self,
    step: int,
    metrics: Mapping[str, Any],
    alerts: Mapping[str, bool] | None = None,
  ) -> None:
    """Writes one step: all its metrics at once, numbers or `Mean`s.

    What is not finite becomes null, since JSON has no NaN.

    Args:
      step: its number.
      metrics: by name.
      alerts: whether each alert rings. A line has the names of those that do
        under `alerts`, TensorBoard 0 or 1 for each as `alert/NAME`.
    """
    row: dict[str, Any] = {'step': int(step)}
    scalars: dict[str, float] = {}
    for name, value in metrics.items():
      number = float(value.value if isinstance(value, Mean) else value)
      row[name] = number if math.isfinite(number) else None
      if math.isfinite(number):  # TensorBoard would warn at each step
        scalars[name] = number
    for name, rings in (alerts or {}).items():
      scalars[f'alert/{name}'] = float(rings)
      if rings:
        row.setdefault('alerts', []).append(name)
    for name, number in scalars.items():
      self._board.add_scalar(name, number, step)
    for tracker in self._trackers:
      tracker.log(step, scalars)
    self._file.write(files.to_json(row) + '\n')
    self._file.flush()

  def close(self) -> None:
    self._file.close()
    self._board.close()
    for tracker in self._trackers:
      tracker.close()

  def __enter__(self) -> 'MetricsWriter':
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()


class Progress:
  """Shows where a stage is: on a terminal in place, elsewhere a line a step.

  Args:
    total_steps: steps of the whole run.
    stage: its name, shown first.
    start_step: steps that an earlier process has done.
  """

  def __init__(self, total_steps: int, stage: str, start_step: int = 0):
    self._total = total_steps
    self._stage = stage
    self._first: tuple[int, float] | None = None
    self._display = None
    if sys.stdout.isatty():
      self._display = terminal.Display(stage, total_steps, start_step)

  def show(self, step: int, **values: float) -> None:
    """Reports that `step` steps are done, with what to show of the last.

    Args:
      step: steps done so far, from 1.
      **values: reward=0.5, length=120, tokens_per_s=900, ...
    """
    now = time.monotonic()
    if self._first is None:  # its time is mostly compilation
      self._first = (step, now)
    first_step, first_time = self._first
    left = ''
    if step > first_step:
      left_s = (now - first_time) / (step - first_step) * (self._total - step)
      left = f'{int(left_s) // 60}m{int(left_s) % 60:02d}s left'
    if self._display:
      self._display.show(step, values, left)
      return
    parts = [f'{self._stage} {step}/{self._total}']
    parts += [f'{name} {value:.4g}' for name, value in values.items()]
    print('  '.join([*parts, left] if left else parts), flush=True)

  def describe(
    self,
    step_metrics: Mapping[str, float],
    alerts: Sequence[str],
    sample: tuple[str, str] | None,
  ) -> None:
    """Shows more of the last step on a terminal, and nothing elsewhere.

    Args:
      step_metrics: of the step, by name; `reward/*` are shown.
      alerts: names of those that ring.
      sample: what is said of a completion, and its text, which may hold
        anything.
    """
    if self._display:
      rewards = {
        name.partition('/')[2]: value
        for name, value in step_metrics.items()
        if name.startswith('reward/')
      }
      self._display.describe(rewards, alerts, sample)

  def close(self) -> None:
    if self._display:
      self._display.close()

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()
