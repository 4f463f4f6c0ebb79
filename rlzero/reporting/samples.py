"""The completions that tell most about a run, as HTML."""

import os
import re
import statistics
from html import escape
from typing import Any

from rlzero.reporting import recorded
from rlzero.runtime import metrics
from rlzero.text.template import reflective_words


def html(loaded: recorded.Run) -> str:
  """The completions that tell most about a run."""
  folder = os.path.join(loaded.workdir, recorded.EVALUATIONS)
  before = metrics.read_lines(os.path.join(folder, 'before.jsonl'))
  after = metrics.read_lines(os.path.join(folder, 'after.jsonl'))
  told = []
  if pair := _turned(before, after):
    told.append(_sample('The same question, before and after', *pair))
  right = [row for row in after if row.get('correct')]
  if right := [row for row in right if row.get('reflections')]:
    told.append(
      _sample('The longest that puts itself right', max(right, key=_len))
    )
  if wrong := [row for row in after if not row.get('correct')]:
    # One that ended by itself says more than one that ran out of room.
    failure = max(wrong, key=lambda row: (not row.get('truncated'), _len(row)))
    told.append(_sample('A failure', failure))
  if first := _first_reflection(os.path.join(loaded.workdir, 'completions')):
    title = f'The first reflective word kept in training, step {first["step"]}'
    told.append(_sample(title, first))
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
  return recorded.number(row.get('len')) or 0.0


def _sample(title: str, *rows: dict) -> str:
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
    parts.append(f'{escape(str(row["tries"]))} tries')
  return ' · '.join(parts + ['cut off'] * bool(row.get('truncated')))


def _marked(row: dict) -> str:
  """The completion, escaped, with its reflective words marked."""
  return ''.join(
    f'<mark>{word}</mark>' if reflective_words(word) else escape(word)
    for word in re.split(r'(\w+)', str(row.get('completion', '')))
  )
