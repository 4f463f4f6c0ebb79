"""One steady display of a stage on a terminal.

What a model wrote is shown without its control characters: an escape sequence
would move the cursor, rename the window or answer in the user's name.
"""

import unicodedata
from collections.abc import Mapping, Sequence

import rich.console
import rich.live
import rich.panel
import rich.progress
import rich.table
import rich.text

_SAMPLE_LINES = 6  # of the panel, so that the display keeps its height
_SAMPLE_CHARS = 4000  # of a text that is looked at


def printable(text: str) -> str:
  """A text on one line, its control and format characters as U+FFFD.

  Args:
    text: from a model or a file; may hold anything.
  """
  line = ' '.join(text[:_SAMPLE_CHARS].split())
  return ''.join(
    '\ufffd' if unicodedata.category(char).startswith('C') else char
    for char in line
  )


class Display:
  """A bar, a line of figures, alerts and a completion, drawn in place.

  Args:
    stage: its name.
    total_steps: of the whole run.
    start_step: steps that an earlier process has done.
    console: to draw on; standard output by default.
  """

  def __init__(
    self,
    stage: str,
    total_steps: int,
    start_step: int = 0,
    console: rich.console.Console | None = None,
  ):
    self._bar = rich.progress.Progress(
      '{task.description}',
      rich.progress.BarColumn(),
      rich.progress.MofNCompleteColumn(),
      '{task.fields[left]}',
    )
    self._task = self._bar.add_task(
      stage, total=total_steps, completed=start_step, left=''
    )
    self._lines: dict[str, str] = {}
    self._sample: tuple[str, str] | None = None
    self._live = rich.live.Live(
      console=console, get_renderable=self._draw, refresh_per_second=4
    )
    self._live.start()

  def show(self, step: int, values: Mapping[str, float], left: str) -> None:
    """Shows that `step` steps are done, with figures of the last one."""
    self._bar.update(self._task, completed=step, left=left)
    self._lines['last step'] = _figures(values)

  def describe(
    self,
    rewards: Mapping[str, float],
    alerts: Sequence[str],
    sample: tuple[str, str] | None,
  ) -> None:
    """Shows more of the last step.

    Args:
      rewards: by component.
      alerts: names of those that ring.
      sample: what is said of a completion, and its text.
    """
    self._lines['rewards'] = _figures(rewards)
    self._lines['alerts'] = ', '.join(alerts) or 'none'
    if sample:
      self._sample = printable(sample[0]), printable(sample[1])

  def close(self) -> None:
    """Leaves the display as it is and gives the terminal back."""
    self._live.stop()

  def _draw(self) -> rich.console.Group:
    table = rich.table.Table.grid(padding=(0, 2))
    for name, text in self._lines.items():
      alarming = name == 'alerts' and text != 'none'
      # Text, and no markup: brackets in it are brackets.
      table.add_row(
        rich.text.Text(name, 'dim'),
        rich.text.Text(text, 'bold red' if alarming else ''),
      )
    parts: list[rich.console.RenderableType] = [self._bar, table]
    if self._sample:
      title, text = self._sample
      parts.append(
        rich.panel.Panel(
          rich.text.Text(text, 'dim'),
          title=rich.text.Text(title, overflow='ellipsis'),
          title_align='left',
          height=_SAMPLE_LINES,
        )
      )
    return rich.console.Group(*parts)


def _figures(values: Mapping[str, float]) -> str:
  return '  '.join(f'{name} {value:.4g}' for name, value in values.items())
