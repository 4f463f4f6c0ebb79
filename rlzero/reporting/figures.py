"""The figures of a run: the paper's, as SVG, and those of several as PNG."""

import io
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rlzero.reporting import charts, recorded
from rlzero.reporting.charts import Chart
from rlzero.reporting.recorded import Run
from rlzero.runtime import files

# Its import makes a folder for settings and fonts: in our cache, and not in
# the home of who only wants a report.
os.environ.setdefault('MPLCONFIGDIR', files.cache_folder('matplotlib'))
import matplotlib  # noqa: E402
from matplotlib import rcsetup  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

# On the page the colours become variables, which dark mode sets anew.
_COLORS = ['#24292f', '#818b98', '#2f6db5', '#c8553d', '#3f8f5f']
_INK, _DIM, _BLUE, _RED, _GREEN = _COLORS
_CYCLE = [_BLUE, _RED, _GREEN, '#8a63b5', '#b58900']
_STYLE: dict[Any, Any] = {  # matplotlib's type of keys is new
  'axes.edgecolor': _DIM,
  'axes.grid': True,
  'axes.grid.axis': 'y',
  'axes.labelcolor': _DIM,
  'axes.prop_cycle': rcsetup.cycler(color=_CYCLE),
  'axes.spines.right': False,
  'axes.spines.top': False,
  'axes.titlesize': 10,
  'figure.constrained_layout.use': True,
  'font.family': ['DejaVu Sans'],  # comes with matplotlib
  'font.size': 8.5,
  'grid.alpha': 0.25,
  'grid.color': _DIM,
  'legend.frameon': False,
  'lines.markersize': 4,
  'svg.fonttype': 'none',
  'svg.hashsalt': 'rlzero',  # the same run gives the same page
  'text.color': _INK,
  'xtick.color': _DIM,
  'ytick.color': _DIM,
}


def png(runs: Iterable[Run], path: str) -> None:
  """Draws accuracy and length over training as a PNG, one line a run."""
  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(9, 3.2))
    accuracy, length = figure.subplots(1, 2)
    for number, loaded in enumerate(runs):
      color, seed = f'C{number}', loaded.info.get('seed')
      label = loaded.name if seed is None else f'seed {seed}'
      _line(accuracy, loaded, 'reward/correct', color=color, alpha=0.4, lw=0.8)
      _line(accuracy, loaded, 'eval/pass@1', color=color, marker='o')
      _line(length, loaded, 'completion/len_mean', color=color, label=label)
    accuracy.set_title('Accuracy: held out (dots), in training (thin)')
    accuracy.set(xlabel='step', ylim=(0, 1.03))
    length.set(xlabel='step', title='Mean completion length, tokens')
    length.set_ylim(bottom=0)
    if length.has_data():
      length.legend()
    figure.savefig(path, dpi=160, facecolor='white')


def compare(arms: Mapping[str, Sequence[Run]], metric: str, path: str) -> None:
  """Draws a metric over training as a PNG: a colour an arm, a line a run."""
  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(4.7, 2.6))
    ax = figure.subplots()
    for number, (name, runs) in enumerate(arms.items()):
      for run in runs:
        label = name if run is runs[0] else None
        _line(ax, run, metric, color=f'C{number}', label=label, lw=1)
    ax.set(xlabel='step', title=metric)
    if ax.has_data():
      ax.legend()
    figure.savefig(path, dpi=110, facecolor='white')


def svg(loaded: Run) -> str:
  """The paper's figures for this run; those without data are left out."""
  return '\n'.join(_figure(chart, loaded) for chart in charts.CHARTS)


def _figure(chart: Chart, loaded: Run) -> str:
  axes: dict[str, Any] = {'ylim': (-0.02, 1.05)} if chart.share else {}
  if chart.log:
    axes['yscale'] = 'log'
  if chart.kind == 'allowed':
    axes['xlabel'] = 'tokens allowed'
  with matplotlib.rc_context(_STYLE):
    figure, buffer = Figure(figsize=(4.7, 2.6)), io.StringIO()
    ax = figure.subplots()
    _PLOTS[chart.kind](ax, loaded, chart)
    if not ax.has_data():
      return ''
    if ax.dataLim.y1 <= 0:  # all zero; nothing for a logarithm
      axes = {name: value for name, value in axes.items() if name != 'yscale'}
    ax.set(**{'xlabel': 'step', **axes})
    if ax.get_legend_handles_labels()[1]:
      ax.legend()
    figure.savefig(buffer, format='svg', transparent=True)
  # Within a page there is no need of namespaces, group names and metadata.
  svg = re.sub('(?s)<metadata>.*?</metadata>|<!--.*?-->', '', buffer.getvalue())
  svg = re.sub(r' xmlns(:\w+)?="[^"]*"| id="\w+_\d+"', '', svg)
  for number, color in enumerate(_COLORS):
    svg = svg.replace(color, f'var(--c{number})')
  return (
    f'<figure><h3>{chart.title}</h3>{svg[svg.index("<svg") :]}'
    f'<figcaption>{chart.note}</figcaption></figure>'
  )


def _line(ax: Axes, loaded: Run, key: str, **style: Any) -> None:
  steps, values = recorded.series(loaded.rows, key)
  if len(steps):
    ax.plot(steps, values, **style)


def _plot_lines(ax: Axes, loaded: Run, chart: Chart) -> None:
  for name in chart.names:
    label = name.partition('/')[2].replace('_', ' ')
    _line(ax, loaded, name, label=label if len(chart.names) > 1 else '')


def _plot_accuracy(ax: Axes, loaded: Run, chart: Chart) -> None:
  del chart
  style = {'color': _DIM, 'lw': 0.8, 'label': 'training prompts'}
  _line(ax, loaded, 'reward/correct', **style)
  _line(ax, loaded, 'eval/pass@1', color=_BLUE, marker='o', label='pass@1')
  names = sorted({name for row in loaded.rows for name in row})
  for name in (name for name in names if name.startswith('eval/cons@')):
    _line(ax, loaded, name, color=_RED, marker='o', label=name[5:])
  for evaluation in (loaded.before, loaded.after):
    step, right = evaluation.get('step'), evaluation.get('pass@1')
    if step is not None and right is not None:
      ax.plot(step, right, 's', color=_INK)
      interval = evaluation.get('pass@1_interval') or ()
      if len(interval) == 2 and None not in map(recorded.number, interval):
        ax.vlines(step, interval[0], interval[1], color=_INK)


def _plot_length(ax: Axes, loaded: Run, chart: Chart) -> None:
  del chart
  _line(ax, loaded, 'completion/len_mean', color=_DIM, lw=0.8)
  labels = {_BLUE: 'rising', _RED: 'falling'}
  for steps, fitted, slope in recorded.segments(loaded.rows):
    color = _BLUE if slope > 0 else _RED
    ax.plot(steps, fitted, color=color, lw=2.2, label=labels.pop(color, None))


def _plot_allowed(ax: Axes, loaded: Run, chart: Chart) -> None:
  del chart
  for name, color in (('before', _RED), ('after', _BLUE)):
    if points := getattr(loaded, name).get('accuracy_by_len'):
      ax.plot(*zip(*points, strict=True), 'o-', color=color, label=name)


_PLOTS: dict[str, Callable[[Axes, Run, Chart], None]] = {
  'lines': _plot_lines,
  'accuracy': _plot_accuracy,
  'length': _plot_length,
  'allowed': _plot_allowed,
}
