"""The steps of a stage, written down and shown by the first host."""

import contextlib
from collections.abc import Mapping
from typing import Any

from rlzero.runtime import hosts, metrics


class StepLog:
  """Writes the metrics of each step, and shows where the stage is.

  Other hosts than the first do neither.

  Args:
    workdir: of the run.
    stage: its name, shown first.
    num_steps: of the whole run.
    start: steps that an earlier process has done.
  """

  def __init__(self, workdir: str, stage: str, num_steps: int, start: int):
    self._writer = self._progress = None
    with contextlib.ExitStack() as stack:
      if hosts.is_first():
        self._writer = stack.enter_context(
          metrics.MetricsWriter(workdir, start)
        )
        self._progress = stack.enter_context(
          metrics.Progress(num_steps, stage, start)
        )
      self._open = stack.pop_all()

  def write(
    self, step: int, step_metrics: Mapping[str, Any], **shown: float
  ) -> None:
    """Writes the metrics of a step that is done, and shows some numbers.

    Args:
      step: its number, from 0.
      step_metrics: by name.
      **shown: loss=0.5, tokens_per_s=900, ...
    """
    if self._writer and self._progress:
      self._writer.write(step, step_metrics)
      self._progress.show(step + 1, **shown)

  def __enter__(self) -> 'StepLog':
    return self

  def __exit__(self, *_: Any) -> None:
    self._open.close()
