"""Reads what a run has left in its folder."""

import json
import math
import os
from typing import Any, NamedTuple

import numpy as np

from rlzero.runtime import metrics

EVALUATIONS = 'evaluations'  # folder in the workdir
NUM_SEGMENTS = 6
PHASES = ('rollout', 'score', 'reference', 'reshard', 'update')


class Run(NamedTuple):
  """The contents of a workdir; a mapping is empty where there is nothing."""

  workdir: str
  rows: list[dict[str, Any]]
  before: dict[str, Any]  # evaluations
  after: dict[str, Any]
  info: dict[str, Any]  # run.json
  config: dict[str, Any]
  suite: dict[str, Any]  # metrics of rlzero.evaluate --suite

  @property
  def name(self) -> str:
    return os.path.basename(os.path.abspath(self.workdir))

  def both(self, name: str) -> list[float | None]:
    """The score before and after; None where it is not known."""
    family, _, k = name.partition('@')
    return [
      number(scores.get(name, scores.get(f'{family}@k', {}).get(k)))
      for scores in (self.before, self.after)
    ]


def load(workdir: str) -> Run:
  """Reads a run, which may still be under way.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: the folder holds no run, or a file of it is broken.
  """
  if not os.path.isdir(workdir):
    raise FileNotFoundError(
      f'The workdir {workdir!r} does not exist; give the folder of a run with '
      '--workdir=DIR.'
    )
  rows = metrics.read_metrics(workdir)
  evaluations = os.path.join(workdir, EVALUATIONS)
  before = read_object(os.path.join(evaluations, 'before.json'))
  after = read_object(os.path.join(evaluations, 'after.json'))
  suite = read_object(os.path.join(evaluations, 'suite.json'))
  if not (rows or before or after or suite):
    raise ValueError(
      f'The workdir {workdir!r} holds neither {metrics.JSONL} nor '
      'evaluations/; give the folder of a run that has begun with '
      '--workdir=DIR.'
    )
  info, config = (
    read_object(os.path.join(workdir, name))
    for name in ('run.json', 'config.json')
  )
  return Run(workdir, rows, before, after, info, config, suite)


def read_object(path: str) -> dict[str, Any]:
  """The object of a JSON file; {} if there is no such file.

  Raises:
    ValueError: the file holds something else.
  """
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


def segments(rows: list[dict]) -> list[tuple[np.ndarray, np.ndarray, float]]:
  """Steps, fitted lengths and slope (tokens a step) of each segment."""
  steps, lengths = series(rows, 'completion/len_mean')
  if len(steps) < 2 * NUM_SEGMENTS:
    return []
  result = []
  parts = (np.array_split(v, NUM_SEGMENTS) for v in (steps, lengths))
  for x, y in zip(*parts, strict=True):
    slope, start = np.polyfit(x - x[0], y, 1)
    result.append((x, start + slope * (x - x[0]), float(slope)))
  return result


def phases(
  rows: list[dict], config: dict[str, Any], wall_s: Any
) -> dict[str, float]:
  """Seconds of a run by part; '' is the rest, such as compilation.

  A rollout's times stand in the line of each of its updates, and count once.

  Args:
    rows: lines of `metrics.jsonl`.
    config: of `config.json`.
    wall_s: seconds that the run took so far, if that is known.
  """
  updates = 1.0
  for name in ('steps_per_rollout', 'epochs_per_rollout'):
    updates *= number(config.get(name)) or 1.0
  found = {}
  for name in PHASES:
    values = [number(row.get(f'time/{name}_s')) for row in rows]
    if any(value is not None for value in values):
      total = sum(value or 0.0 for value in values)
      found[name] = total / (1.0 if name == 'update' else updates)
  return found | {'': max((number(wall_s) or 0.0) - sum(found.values()), 0.0)}


def number(value: Any) -> float | None:
  """The value, or None where it is no finite number."""
  if not isinstance(value, (int, float)):
    return None
  try:
    return value if math.isfinite(value) else None
  except OverflowError:  # a whole number beyond all that a float holds
    return None


def series(rows: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
  """Steps and values, without the steps that lack the metric."""
  rows = [row for row in rows if row.get(key) is not None]
  steps, values = (np.array([r[k] for r in rows], float) for k in ('step', key))
  return steps, values
