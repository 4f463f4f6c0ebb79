"""Traces of some steps of a run, for TensorBoard and Perfetto."""

import contextlib
from collections.abc import Iterator

import jax


def parse(text: str, name: str) -> range:
  """Reads which steps are traced.

  Args:
    text: '3:5' are steps 3 and 4; '' is none.
    name: what an error calls it.

  Raises:
    ValueError: anything else.
  """
  first, colon, stop = text.partition(':')
  if not text:
    return range(0)
  if not (colon and first.isdecimal() and stop.isdecimal()) or (
    int(first) >= int(stop)
  ):
    raise ValueError(
      f'{name} is {text!r}; give the first step and the one behind the last, '
      "'3:5' for steps 3 and 4, or '' for none."
    )
  return range(int(first), int(stop))


class Profiler:
  """Traces some steps into a folder; a resumed run those that are left.

  Args:
    steps: that are traced.
    folder: where to.
  """

  def __init__(self, steps: range, folder: str):
    self._steps, self._folder, self._running = steps, folder, False

  @contextlib.contextmanager
  def step(self, number: int) -> Iterator[None]:
    """Marks a step; traces it if it is one of them."""
    if number in self._steps and not self._running:
      jax.profiler.start_trace(self._folder)
      self._running = True
    try:
      with jax.profiler.StepTraceAnnotation('step', step_num=number):
        yield
    finally:
      if number + 1 not in self._steps:
        self.close()

  def close(self) -> None:
    """Ends the trace, if there is one under way."""
    if self._running:
      jax.profiler.stop_trace()
      self._running = False
