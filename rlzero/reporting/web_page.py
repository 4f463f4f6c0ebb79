"""The report of a run: one HTML page and a summary."""

import os
import statistics
import string
from collections.abc import Mapping
from html import escape
from typing import Any

from rlzero.evaluation import published
from rlzero.monitoring import history
from rlzero.reporting import figures, recorded, samples
from rlzero.reporting.recorded import Run
from rlzero.runtime import files, metrics

# Of an evaluation; each becomes NAME_before and NAME_after in the summary.
SUMMARY = 'pass@1 strict completion_len tries reflection_per_1k format'.split()

SUMMARY += ['pass@16', 'cons@16', 'truncated']
_LAST = 10  # steps that count as the last ones
_REST = 'the rest (start, compilation, evaluation, checkpoints)'

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


def write(workdir: str) -> dict[str, Any]:
  """Writes `report.html` and `summary.json`, and returns the summary.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: the folder holds no run, or a file of it is broken.
  """
  loaded = recorded.load(workdir)
  summary = _summary(loaded)
  numbers = _numbers(loaded)
  page = string.Template(_PAGE).substitute(
    title=escape(f'{loaded.info.get("stage", "run")} · {loaded.name}'),
    headline=_headline(loaded, numbers),
    about=_about(loaded),
    alerts=_box('What needs a look', [escape(a) for a in alerts(loaded)]),
    figures=figures.svg(loaded),
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
    samples=samples.html(loaded),
    config=escape(files.to_json(loaded.config, indent=2)),
  )
  files.write_whole(os.path.join(workdir, 'report.html'), page + '\n')
  files.write_json(os.path.join(workdir, 'summary.json'), summary, indent=2)
  return summary


def alerts(loaded: Run) -> list[str]:
  """The alerts of a run, each with its steps."""
  lines = []
  for alert, last in history.of_run(loaded.rows, loaded.config):
    steps = (
      f'Step {last}' if last == alert.step else f'Steps {alert.step}–{last}'
    )
    lines.append(f'{steps}, {alert.name}: {alert.sentence}')
  return lines


def table(workdirs: list[str]) -> dict[str, Any]:
  """Mean and sample standard deviation over runs of each summary number.

  Returns:
    {name: {'mean', 'std', 'values'}}, where a run that lacks the number has
    null among the values and no part in the others; `seed` is a list.
  """
  summaries = [_summary(recorded.load(workdir)) for workdir in workdirs]
  result: dict[str, Any] = {'seed': [s.pop('seed') for s in summaries]}
  for name in summaries[0]:
    values = [s[name] for s in summaries]
    known = [value for value in values if value is not None]
    mean = statistics.fmean(known) if known else None
    std = statistics.stdev(known) if len(known) > 1 else None
    result[name] = {'mean': mean, 'std': std, 'values': values}
  return result


def _summary(loaded: Run) -> dict[str, Any]:
  result: dict[str, Any] = {}
  for name in SUMMARY:
    result[f'{name}_before'], result[f'{name}_after'] = loaded.both(name)
  result['wall_s'] = recorded.number(loaded.info.get('wall_s'))
  result['seed'] = loaded.info.get('seed')
  rising = [slope > 0 for _, _, slope in recorded.segments(loaded.rows)]
  result['length_rising_segments'] = sum(rising) if rising else None
  return result


def _numbers(loaded: Run) -> dict[str, float]:
  """All that the sentences of the page may name, as far as it is known."""
  result: dict[str, float | None] = {}
  for name in (*_SHARES, *_COUNTS):
    result[f'{name}_before'], result[f'{name}_after'] = loaded.both(name)
  base = metrics.read_lines(
    os.path.join(loaded.workdir, recorded.EVALUATIONS, 'before.jsonl')
  )
  if base:
    words = [bool(row.get('reflections')) for row in base]
    result['reflecting'] = statistics.fmean(words)
  _, idle = recorded.series(loaded.rows, 'groups/zero_variance')
  if len(idle):
    result['idle'] = float(idle.mean())
    result['idle_last'] = float(idle[-_LAST:].mean())
  return {name: value for name, value in result.items() if value is not None}


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


def _headline(loaded: Run, numbers: Mapping[str, float]) -> str:
  before, after = loaded.both('pass@1')
  if before is None or after is None:
    done = max((int(row['step']) for row in loaded.rows), default=0)
    missing = 'first' if before is None else 'final'
    title = f'As of step {done}'
    lead = f'There is no {missing} evaluation; these are the figures so far.'
  else:
    verb = 'rose' if after > before else 'fell' if after < before else 'went'
    title = f'pass@1 {verb} from {before:.2f} to {after:.2f}'
    lead = ' '.join(_say(text, numbers) for text in _LEAD)
  return f'<h1>{title}</h1><p class="lead">{lead}</p>'


def _about(loaded: Run) -> str:
  wall_s = recorded.number(loaded.info.get('wall_s'))
  parts = [] if wall_s is None else [f'{wall_s / 60:.1f} minutes']
  for name in ('hardware', 'seed', 'version', 'commit'):
    if (value := loaded.info.get(name)) is not None:
      parts.append(f'{name} {value}')
  parts.append(_say(_SETTING, loaded.after or loaded.before))
  return escape('; '.join(filter(None, parts)))


def _segments_text(rows: list[dict]) -> str:
  slopes = [slope for _, _, slope in recorded.segments(rows)]
  if not slopes:
    return 'There are too few steps yet to see whether the length rises.'
  return (
    f'The length rises in {sum(slope > 0 for slope in slopes)} of '
    f'{recorded.NUM_SEGMENTS} equal segments of the run; slopes, in tokens a '
    f'step: {", ".join(f"{slope:+.2f}" for slope in slopes)}.'
  )


def _table(loaded: Run) -> str:
  rows = [('', 'before', 'after', 'change')]
  for name, label in {**_SHARES, **_COUNTS}.items():
    before, after = loaded.both(name)
    if name in _SHARES:
      change = ''
      if before is not None and after is not None:
        change = f'{after - before:+.2f}'
    else:
      change = f'× {after / before:.2f}' if before and after else ''
    if (before, after) != (None, None):
      rows.append((label, _show(before), _show(after), change))
  lines = (f'<tr>{"".join(f"<td>{c}</td>" for c in cells)}' for cells in rows)
  return f'<table>{"".join(lines)}</table>'


def _time(loaded: Run) -> str:
  parts = recorded.phases(loaded.rows, loaded.config, loaded.info.get('wall_s'))
  total = sum(parts.values()) or 1.0
  bar = text = ''
  for name, s in parts.items():
    color = _PHASE_COLORS[name]
    bar += f'<i style="flex:{s / total:.4f};background:var(--c{color})"></i>'
    text += f'<b style="color:var(--c{color})">{name or _REST}</b> {s:.0f} s '
  return f'<div class="bar">{bar}</div><p>{text}</p>'


_PHASE_COLORS = {
  'rollout': 2,
  'score': 4,
  'reference': 0,
  'reshard': 0,
  'update': 3,
  '': 1,
}


def _box(title: str, items: list[str]) -> str:
  rows = ''.join(f'<li>{item}</li>' for item in items)
  return f'<aside><h2>{title}</h2><ul>{rows}</ul></aside>' if items else ''


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
$alerts
<h2>What happened in training</h2>
<div class="grid">$figures</div>
<p>$segments</p>
<h2>Before and after</h2>
$table
$sceptics
<h2>In its own words</h2>
$samples
<h2>Where the time went</h2>
$time
<details><summary>The configuration</summary><pre>$config</pre></details>
</body></html>"""
