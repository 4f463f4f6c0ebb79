"""Shows a run: one self-contained HTML page, and its numbers as JSON.

  python -m rlzero.report --workdir=DIR
  python -m rlzero.report --workdir=OUT --compare=DIR1,DIR2,DIR3

The first writes `DIR/report.html` and `DIR/summary.json`, at any time, in the
middle of a run too. The second compares runs that differ in their seed, and
writes `OUT/curves.png` and `OUT/table.json`.
"""

import dataclasses
import io
import json
import math
import os
import re
import statistics
import string
from collections.abc import Callable, Mapping
from html import escape
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlzero import metrics
from rlzero.evaluation import published
from rlzero.tasks.template import reflective_words

# Of an evaluation; each becomes NAME_before and NAME_after in the summary.
_SUMMARY = 'pass@1 strict completion_len tries reflection_per_1k format'.split()
_SUMMARY += ['pass@16', 'cons@16', 'truncated']
_SHARES = {
  'pass@1': 'pass@1: the last stated answer is right',
  'strict': 'strict: right, and in the right format',
  'pass@4': 'pass@4',
  'pass@16': 'pass@16',
  'cons@16': 'cons@16: the majority of 16 is right',
  'format': 'share in the right format',
  'truncated': 'share cut off at the longest length',
}
_COUNTS = {
  'completion_len': 'tokens in a completion',
  'completion_len_correct': 'tokens in a right one',
  'completion_len_wrong': 'tokens in a wrong one',
  'tries': 'tries in a completion',
  'reflection_per_1k': 'reflective words per thousand tokens',
}
# Sentences of the page; one whose numbers are not all known is left out.
_LEAD = (
  'Completions went from {completion_len_before:.0f} to '
  '{completion_len_after:.0f} tokens.',
  'Tries went from {tries_before:.1f} to {tries_after:.1f} a completion.',
  'Reflective words went from {reflection_per_1k_before:.1f} to '
  '{reflection_per_1k_after:.1f} per thousand tokens.',
  'The format was right in {format_before:.0%} and is in {format_after:.0%}.',
)
_SCEPTICS = {
  'Did the base not reflect already?': 'In {reflecting:.0%} of its '
  'completions: {reflection_per_1k_before:.1f} words per thousand tokens.',
  'Was it all in the base?': 'At least one of its 16 tries is right in '
  '{pass@16_before:.0%} of the problems, a single one in '
  '{pass@1_before:.0%}; after training a single one in {pass@1_after:.0%}.',
  'Is it the failures that are long?': 'Right ones took '
  '{completion_len_correct_before:.0f} tokens before and '
  '{completion_len_correct_after:.0f} after, wrong ones '
  '{completion_len_wrong_before:.0f} and {completion_len_wrong_after:.0f}.',
  'How many groups taught nothing?': '{idle:.0%} on average, {idle_last:.0%} '
  'in the last steps.',
  'How much was cut off?': '{truncated_before:.1%} of the evaluated '
  'completions before, {truncated_after:.1%} after.',
}
_SETTING = (
  '{num_problems} problems of the split “{split}”, {num_samples} samples each, '
  'T = {temperature}, top-p {top_p}, at most {max_len} tokens'
)
_EVALUATIONS = 'evaluations'  # folder in the workdir
_NUM_SEGMENTS = 6
_WINDOW = 10  # steps over which a detector averages

# On the page the colours become variables, which dark mode sets anew.
_COLORS = ['#24292f', '#818b98', '#2f6db5', '#c8553d', '#3f8f5f']
_INK, _DIM, _BLUE, _RED, _GREEN = _COLORS
_CYCLE = [_BLUE, _RED, _GREEN, '#8a63b5', '#b58900']
_STYLE = {
  'axes.edgecolor': _DIM,
  'axes.grid': True,
  'axes.grid.axis': 'y',
  'axes.labelcolor': _DIM,
  'axes.prop_cycle': matplotlib.cycler(color=_CYCLE),
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of a report."""

  workdir: str  # folder of the run, or for what --compare writes
  compare: str = ''  # folders of runs, separated by commas
  json: bool = False  # print the numbers instead of a sentence


class _Run(NamedTuple):
  """What a workdir holds; a mapping is empty where there is nothing yet."""

  workdir: str
  rows: list[dict[str, Any]]
  before: dict[str, Any]  # evaluations
  after: dict[str, Any]
  info: dict[str, Any]  # run.json
  config: dict[str, Any]
  suite: dict[str, Any]  # figures of rlzero.evaluate --suite

  @property
  def name(self) -> str:
    return os.path.basename(os.path.abspath(self.workdir))

  def both(self, name: str) -> list[float | None]:
    """The score before and after; None where it is not known."""
    family, _, k = name.partition('@')
    return [
      _number(scores.get(name, scores.get(f'{family}@k', {}).get(k)))
      for scores in (self.before, self.after)
    ]


def run(cfg: Config) -> None:
  """Writes what `cfg` asks for, and says where it is."""
  if cfg.compare:
    workdirs = [name for name in cfg.compare.split(',') if name]
    result, names = table(workdirs), 'curves.png and table.json'
    os.makedirs(cfg.workdir, exist_ok=True)
    _write(cfg.workdir, 'table.json', _to_json(result))
    curve(workdirs, os.path.join(cfg.workdir, 'curves.png'))
  else:
    result, names = write(cfg.workdir), 'report.html and summary.json'
  print(_to_json(result) if cfg.json else f'{cfg.workdir}: {names} written.')


def write(workdir: str) -> dict[str, Any]:
  """Writes `report.html` and `summary.json`, and returns the summary.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: the folder holds no run, or a file of it is broken.
  """
  loaded = _load(workdir)
  summary = _summary(loaded)
  numbers = _numbers(loaded)
  page = string.Template(_PAGE).substitute(
    title=escape(f'{loaded.info.get("stage", "run")} · {loaded.name}'),
    headline=_headline(loaded, numbers),
    about=_about(loaded),
    alarms=_box('What needs a look', detectors(loaded.rows)),
    figures=_figures(loaded),
    segments=_segments_text(loaded.rows),
    table=_table(loaded) + published.html(loaded.suite),
    time=_time(loaded),
    sceptics=_box(
      'What sceptics ask',
      [
        f'<b>{question}</b> {answer}'
        for question, text in _SCEPTICS.items()
        if (answer := _say(text, numbers))
      ],
    ),
    stories=_stories(loaded),
    config=escape(_to_json(loaded.config)),
  )
  _write(workdir, 'report.html', page)
  _write(workdir, 'summary.json', _to_json(summary))
  return summary


def table(workdirs: list[str]) -> dict[str, Any]:
  """Mean and sample standard deviation over runs of each summary number.

  Returns:
    {name: {'mean', 'std', 'values'}}, where a run that lacks the number has
    null among the values and no part in the others; `seed` is a list.
  """
  summaries = [_summary(_load(workdir)) for workdir in workdirs]
  result: dict[str, Any] = {'seed': [s.pop('seed') for s in summaries]}
  for name in summaries[0]:
    values = [s[name] for s in summaries]
    known = [value for value in values if value is not None]
    mean = statistics.fmean(known) if known else None
    std = statistics.stdev(known) if len(known) > 1 else None
    result[name] = {'mean': mean, 'std': std, 'values': values}
  return result


def curve(workdirs: list[str], path: str) -> None:
  """Draws accuracy and length over training as a PNG, one line a run."""
  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(9, 3.2))
    accuracy, length = figure.subplots(1, 2)
    for number, loaded in enumerate(map(_load, workdirs)):
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


def detectors(rows: list[dict[str, Any]]) -> list[str]:
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
  steps, kl = _series(rows, 'policy/kl')
  usual = [np.median(kl[max(i - _WINDOW, 0) : i + 1]) for i in range(len(kl))]
  for step, value, middle in zip(steps, kl, usual, strict=True):
    if value > max(0.1, 10 * middle):
      found.append(
        f'The KL from the reference jumped to {value:.3g} at step {step:.0f}, '
        f'from about {middle:.2g}.'
      )
      break
  form, correct = (
    _series(rows, key)[1] for key in ('reward/format', 'reward/correct')
  )
  if min(len(form), len(correct)) >= 2 * _WINDOW:
    (f0, f1), (c0, c1) = ((v[0], v[-_WINDOW:].mean()) for v in (form, correct))
    if f1 - f0 > 0.2 and c1 - c0 < 0.05:
      found.append(
        f'Only the format was learned ({f0:.2f} to {f1:.2f}); accuracy stayed '
        f'flat ({c0:.2f} to {c1:.2f}).'
      )
  return found


def _worst(rows: list[dict], key: str, pick: Callable) -> tuple[float, str]:
  """The extreme of the moving average, NaN if there is none, and its place."""
  steps, values = _series(rows, key)
  if not len(values):
    return math.nan, ''
  width = min(_WINDOW, len(values))
  means = np.convolve(values, np.full(width, 1 / width), 'valid').round(9)
  at = pick(range(len(means)), key=lambda i: means[i])
  return float(means[at]), f'steps {steps[at]:.0f}–{steps[at + width - 1]:.0f}'


def _load(workdir: str) -> _Run:
  if not os.path.isdir(workdir):
    raise FileNotFoundError(
      f'The workdir {workdir!r} does not exist; give the folder of a run with '
      '--workdir=DIR.'
    )
  rows = metrics.read_metrics(workdir)
  evaluations = os.path.join(workdir, _EVALUATIONS)
  before = _read_object(evaluations, 'before.json')
  after = _read_object(evaluations, 'after.json')
  suite = _read_object(evaluations, 'suite.json')
  if not (rows or before or after or suite):
    raise ValueError(
      f'The workdir {workdir!r} holds neither {metrics.JSONL} nor '
      'evaluations/; give the folder of a run that has begun with '
      '--workdir=DIR.'
    )
  info, config = (
    _read_object(workdir, name) for name in ('run.json', 'config.json')
  )
  return _Run(workdir, rows, before, after, info, config, suite)


def _read_object(folder: str, name: str) -> dict[str, Any]:
  path = os.path.join(folder, name)
  if not os.path.exists(path):
    return {}
  with open(path, encoding='utf-8') as file:
    try:
      value = json.load(file)
    except ValueError:
      value = None
  if not isinstance(value, dict):
    raise ValueError(
      f'{path} is not a JSON object; write it again with the stage that made '
      'it, or remove it.'
    )
  return value


def _summary(loaded: _Run) -> dict[str, Any]:
  result: dict[str, Any] = {}
  for name in _SUMMARY:
    result[f'{name}_before'], result[f'{name}_after'] = loaded.both(name)
  result['wall_s'] = _number(loaded.info.get('wall_s'))
  result['seed'] = loaded.info.get('seed')
  rising = [slope > 0 for _, _, slope in _segments(loaded.rows)]
  result['length_rising_segments'] = sum(rising) if rising else None
  return result


def _numbers(loaded: _Run) -> dict[str, float]:
  """All that the sentences of the page may name, as far as it is known."""
  result: dict[str, float | None] = {}
  for name in (*_SHARES, *_COUNTS):
    result[f'{name}_before'], result[f'{name}_after'] = loaded.both(name)
  base = metrics.read_lines(
    os.path.join(loaded.workdir, _EVALUATIONS, 'before.jsonl')
  )
  if base:
    words = [bool(row.get('reflections')) for row in base]
    result['reflecting'] = statistics.fmean(words)
  _, idle = _series(loaded.rows, 'groups/zero_variance')
  if len(idle):
    result['idle'] = float(idle.mean())
    result['idle_last'] = float(idle[-_WINDOW:].mean())
  return {name: value for name, value in result.items() if value is not None}


def _segments(rows: list[dict]) -> list[tuple[np.ndarray, np.ndarray, float]]:
  """Steps, fitted lengths and slope (tokens a step) of each segment."""
  steps, lengths = _series(rows, 'completion/len_mean')
  if len(steps) < 2 * _NUM_SEGMENTS:
    return []
  result = []
  parts = (np.array_split(v, _NUM_SEGMENTS) for v in (steps, lengths))
  for x, y in zip(*parts, strict=True):
    slope, start = np.polyfit(x - x[0], y, 1)
    result.append((x, start + slope * (x - x[0]), float(slope)))
  return result


def _number(value: Any) -> float | None:
  known = isinstance(value, (int, float)) and math.isfinite(value)
  return value if known else None


def _series(rows: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
  """Steps and values, without the steps that lack the metric."""
  rows = [row for row in rows if row.get(key) is not None]
  return tuple(np.array([r[k] for r in rows], float) for k in ('step', key))


def _show(value: float | None) -> str:
  if value is None:
    return '–'
  return f'{value:.2f}' if abs(value) < 10 else f'{value:.1f}'


def _say(text: str, numbers: Mapping[str, Any]) -> str:
  """The text with its numbers, or nothing when one is not known."""
  try:
    return text.format_map(numbers)
  except KeyError:
    return ''


# The page, from top to bottom.


def _headline(loaded: _Run, numbers: Mapping[str, float]) -> str:
  before, after = loaded.both('pass@1')
  if None in (before, after):
    done = max((int(row['step']) for row in loaded.rows), default=0)
    missing = 'first' if before is None else 'final'
    title = f'As of step {done}'
    lead = f'There is no {missing} evaluation; these are the figures so far.'
  else:
    verb = 'rose' if after > before else 'fell' if after < before else 'went'
    title = f'pass@1 {verb} from {before:.2f} to {after:.2f}'
    lead = ' '.join(_say(text, numbers) for text in _LEAD)
  return f'<h1>{title}</h1><p class="lead">{lead}</p>'


def _about(loaded: _Run) -> str:
  wall_s = _number(loaded.info.get('wall_s'))
  parts = [] if wall_s is None else [f'{wall_s / 60:.1f} minutes']
  for name in ('hardware', 'seed', 'version', 'commit'):
    if (value := loaded.info.get(name)) is not None:
      parts.append(f'{name} {value}')
  parts.append(_say(_SETTING, loaded.after or loaded.before))
  return escape('; '.join(filter(None, parts)))


def _figures(loaded: _Run) -> str:
  """The paper's figures for this run; those without data are left out."""
  drawn: list[str] = []

  def draw(title: str, note: str, plot: Callable, **axes: Any) -> None:
    drawn.append(_figure(title, note, lambda ax: plot(ax, loaded), axes))

  def lines(title: str, note: str, *names: str, **axes: Any) -> None:
    def plot(ax: Axes, loaded: _Run) -> None:
      for name in names:
        label = name.partition('/')[2].replace('_', ' ')
        _line(ax, loaded, name, label=label if len(names) > 1 else '')

    draw(title, note, plot, **axes)

  share = {'ylim': (-0.02, 1.05)}
  note = 'The paper’s Figure 2. Squares: before and after, 95% intervals.'
  draw('Accuracy over training', note, _plot_accuracy, **share)
  note = 'The paper’s Figure 3, with the slope of each sixth of the run.'
  draw('Mean completion length, tokens', note, _plot_length)
  note = 'Wait, mistake, however, but, retry, error, verify, wrong, …'
  name = 'completion/reflection_per_1k'
  lines('Reflective words per thousand tokens', note, name)
  note = 'Attempts at a solution that a completion goes through.'
  lines('Tries in a completion', note, 'completion/tries')
  names = 'reward/format', 'completion/truncated'
  lines('Format and truncation', 'Shares of completions.', *names, **share)
  names = 'completion/len_correct', 'completion/len_wrong'
  note = 'Where only wrong answers grow, the length is not thought.'
  lines('Length of right and wrong answers, tokens', note, *names)
  note = 'What is right within so many tokens.'
  axes = {'xlabel': 'tokens allowed', **share}
  draw('Accuracy against allowed length', note, _plot_allowed, **axes)
  note = 'Share of groups whose completions were all rewarded alike.'
  lines('Groups without a signal', note, 'groups/zero_variance', **share)
  note = 'It falls where the reference is replaced.'
  lines('KL from the reference', note, 'policy/kl')
  lines('Entropy of the policy', 'Nats a token.', 'policy/entropy')
  names = 'policy/sampler_learner_max', 'policy/sampler_learner_mean'
  note = 'How far the two are apart on the tokens that were sampled.'
  lines('|sampler − learner| log-prob', note, *names, yscale='log')
  return '\n'.join(drawn)


def _figure(
  title: str, note: str, plot: Callable[[Axes], None], axes: dict[str, Any]
) -> str:
  with matplotlib.rc_context(_STYLE):
    figure, buffer = Figure(figsize=(4.7, 2.6)), io.StringIO()
    ax = figure.subplots()
    plot(ax)
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
    f'<figure><h3>{title}</h3>{svg[svg.index("<svg") :]}'
    f'<figcaption>{note}</figcaption></figure>'
  )


def _line(ax: Axes, loaded: _Run, key: str, **style: Any) -> None:
  steps, values = _series(loaded.rows, key)
  if len(steps):
    ax.plot(steps, values, **style)


def _plot_accuracy(ax: Axes, loaded: _Run) -> None:
  style = {'color': _DIM, 'lw': 0.8, 'label': 'training prompts'}
  _line(ax, loaded, 'reward/correct', **style)
  _line(ax, loaded, 'eval/pass@1', color=_BLUE, marker='o', label='pass@1')
  names = sorted({name for row in loaded.rows for name in row})
  for name in (name for name in names if name.startswith('eval/cons@')):
    _line(ax, loaded, name, color=_RED, marker='o', label=name[5:])
  for evaluation in (loaded.before, loaded.after):
    if None not in (point := [evaluation.get(k) for k in ('step', 'pass@1')]):
      ax.plot(*point, 's', color=_INK)
      interval = evaluation.get('pass@1_interval') or [None]
      if None not in map(_number, interval):
        ax.vlines(point[0], *interval, color=_INK)


def _plot_length(ax: Axes, loaded: _Run) -> None:
  _line(ax, loaded, 'completion/len_mean', color=_DIM, lw=0.8)
  labels = {_BLUE: 'rising', _RED: 'falling'}
  for steps, fitted, slope in _segments(loaded.rows):
    color = _BLUE if slope > 0 else _RED
    ax.plot(steps, fitted, color=color, lw=2.2, label=labels.pop(color, None))


def _plot_allowed(ax: Axes, loaded: _Run) -> None:
  for name, color in (('before', _RED), ('after', _BLUE)):
    if points := getattr(loaded, name).get('accuracy_by_len'):
      ax.plot(*zip(*points, strict=True), 'o-', color=color, label=name)


def _segments_text(rows: list[dict]) -> str:
  slopes = [slope for _, _, slope in _segments(rows)]
  if not slopes:
    return 'There are too few steps yet to see whether the length rises.'
  return (
    f'The length rises in {sum(slope > 0 for slope in slopes)} of '
    f'{_NUM_SEGMENTS} equal segments of the run; slopes, in tokens a step: '
    f'{", ".join(f"{slope:+.2f}" for slope in slopes)}.'
  )


def _table(loaded: _Run) -> str:
  rows = [('', 'before', 'after', 'change')]
  for name, label in {**_SHARES, **_COUNTS}.items():
    before, after = loaded.both(name)
    if name in _SHARES:
      change = '' if None in (before, after) else f'{after - before:+.2f}'
    else:
      change = f'× {after / before:.2f}' if before and after else ''
    if (before, after) != (None, None):
      rows.append((label, _show(before), _show(after), change))
  lines = (f'<tr>{"".join(f"<td>{c}</td>" for c in cells)}' for cells in rows)
  return f'<table>{"".join(lines)}</table>'


def _time(loaded: _Run) -> str:
  parts = {
    name: float(_series(loaded.rows, f'time/{name}_s')[1].sum())
    for name in ('rollout', 'score', 'update')
  }
  wall_s = _number(loaded.info.get('wall_s')) or 0.0
  rest = max(wall_s - sum(parts.values()), 0.0)
  parts['the rest (start, compilation, evaluation, checkpoints)'] = rest
  total = sum(parts.values()) or 1.0
  bar = text = ''
  for color, (name, s) in zip((2, 4, 3, 1), parts.items(), strict=True):
    bar += f'<i style="flex:{s / total:.4f};background:var(--c{color})"></i>'
    text += f'<b style="color:var(--c{color})">{name}</b> {s:.0f} s '
  return f'<div class="bar">{bar}</div><p>{text}</p>'


def _stories(loaded: _Run) -> str:
  """The completions that tell most about a run."""
  folder = os.path.join(loaded.workdir, _EVALUATIONS)
  before = metrics.read_lines(os.path.join(folder, 'before.jsonl'))
  after = metrics.read_lines(os.path.join(folder, 'after.jsonl'))
  told = []
  if pair := _turned(before, after):
    told.append(_story('The same question, before and after', *pair))
  right = [row for row in after if row.get('correct')]
  if right := [row for row in right if row.get('reflections')]:
    told.append(
      _story('The longest that puts itself right', max(right, key=_len))
    )
  if wrong := [row for row in after if not row.get('correct')]:
    # One that ended by itself says more than one that ran out of room.
    failure = max(wrong, key=lambda row: (not row.get('truncated'), _len(row)))
    told.append(_story('A failure', failure))
  if first := _first_reflection(os.path.join(loaded.workdir, 'completions')):
    title = f'The first reflective word kept in training, step {first["step"]}'
    told.append(_story(title, first))
  return '\n'.join(told) or '<p>No completions have been kept yet.</p>'


def _turned(before: list[dict], after: list[dict]) -> tuple[dict, ...]:
  """A wrong and a right completion of the question that gained most."""
  groups: dict[str, tuple[list[dict], list[dict]]] = {}
  for when, rows in enumerate((before, after)):
    for row in rows:
      groups.setdefault(str(row.get('uid')), ([], []))[when].append(row)

  def gain(pair: tuple[list[dict], list[dict]]) -> float:
    if not all(pair):
      return 0.0
    first, last = (
      statistics.fmean(bool(row.get('correct')) for row in rows)
      for rows in pair
    )
    return last - first

  best = max(groups.values(), key=gain, default=([], []))
  if gain(best) <= 0:
    return ()
  wrong = next(row for row in best[0] if not row.get('correct'))
  right = sorted((row for row in best[1] if row.get('correct')), key=_len)
  return wrong, right[len(right) // 2]


def _first_reflection(folder: str) -> dict[str, Any] | None:
  names = os.listdir(folder) if os.path.isdir(folder) else []
  for name in sorted(name for name in names if name.endswith('.jsonl')):
    for row in metrics.read_lines(os.path.join(folder, name)):
      if reflective_words(row.get('completion', '')):
        return {'step': '?', **row}
  return None


def _len(row: dict) -> float:
  return _number(row.get('len')) or 0.0


def _story(title: str, *rows: dict) -> str:
  columns = ''.join(
    f'<div><h4>{_verdict(row)}</h4><pre>{_marked(row)}</pre></div>'
    for row in rows
  )
  return (
    f'<h3>{escape(title)}</h3><p class="ask">'
    f'{escape(str(rows[-1].get("question", "")))}</p>'
    f'<div class="grid">{columns}</div>'
  )


def _verdict(row: dict) -> str:
  right = row.get('correct', row.get('accuracy'))
  parts = ['right' if right else 'wrong', f'{_len(row):.0f} tokens']
  if row.get('tries') is not None:
    parts.append(f'{row["tries"]} tries')
  return ' · '.join(parts + ['cut off'] * bool(row.get('truncated')))


def _marked(row: dict) -> str:
  """The completion, escaped, with its reflective words marked."""
  return ''.join(
    f'<mark>{word}</mark>' if reflective_words(word) else escape(word)
    for word in re.split(r'(\w+)', str(row.get('completion', '')))
  )


def _box(title: str, items: list[str]) -> str:
  rows = ''.join(f'<li>{item}</li>' for item in items)
  return f'<aside><h2>{title}</h2><ul>{rows}</ul></aside>' if items else ''


def _to_json(value: Any) -> str:
  return json.dumps(value, indent=2, allow_nan=False)


def _write(workdir: str, name: str, text: str) -> None:
  path = os.path.join(workdir, name)
  with open(path + '.tmp', 'w', encoding='utf-8') as file:
    file.write(text + '\n')
  os.replace(path + '.tmp', path)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; --paper: #fff; --box: #f5f6f8;
  --mark: #ffe9a8; --c0: #24292f; --c1: #6e7781; --c2: #2f6db5;
  --c3: #c8553d; --c4: #3f8f5f }
@media (prefers-color-scheme: dark) { :root { --paper: #15181c;
  --box: #1f242a; --mark: #5b4a12; --c0: #dfe3e8; --c1: #8f99a5;
  --c2: #79b0ee; --c3: #ef917c; --c4: #7cc596 } }
body { margin: auto; max-width: 62rem; padding: 2rem 1.2rem 5rem;
  background: var(--paper); color: var(--c0);
  font: 17px/1.55 Charter, 'Bitstream Charter', Georgia, serif }
h1 { font-size: 2.3rem; line-height: 1.15; margin: .3rem 0 .8rem }
h2 { font-size: 1.35rem; margin: 2.8rem 0 .8rem }
h3 { font-size: 1.02rem; margin: 1.6rem 0 .4rem }
figure, figure h3, h4 { margin: 0 }
h4, .small, figcaption { font-size: .86rem; color: var(--c1) }
.lead { font-size: 1.2rem; max-width: 50rem }
.grid { display: grid; gap: 1.6rem 2.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)) }
svg { width: 100%; height: auto; stroke-linejoin: round }
svg text { font-family: system-ui, sans-serif !important }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td { padding: .22rem 0; border-top: 1px solid var(--box) }
td + td { text-align: right; padding-left: 2.4rem }
aside { background: var(--box); border-radius: 6px; padding: .1rem 1.4rem;
  margin: 2.5rem 0 }
aside h2 { margin: 1rem 0 .5rem }
.bar { display: flex; height: .8rem }
.ask { margin: 0 0 .6rem; white-space: pre-wrap }
pre { background: var(--box); border-radius: 6px; margin: 0; padding: .8rem;
  max-height: 24rem; overflow: auto; white-space: pre-wrap;
  font: .82rem/1.5 ui-monospace, Menlo, Consolas, monospace }
mark { background: var(--mark); color: inherit }
</style></head><body>
<p class="small">$title</p>
$headline
<p class="small">$about</p>
$alarms
<h2>What happened in training</h2>
<div class="grid">$figures</div>
<p>$segments</p>
<h2>Before and after</h2>
$table
$sceptics
<h2>In its own words</h2>
$stories
<h2>Where the time went</h2>
$time
<details><summary>The configuration</summary><pre>$config</pre></details>
</body></html>"""


if __name__ == '__main__':
  from rlzero import config, report

  config.main(report)
