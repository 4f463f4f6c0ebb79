"""A run's folder as the live page sees it, read only where it has grown."""

import collections
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rlzero.monitoring import history
from rlzero.monitoring.alerts import Alert
from rlzero.reporting import completion_index, recorded
from rlzero.runtime import metrics

_FINGERPRINT = 64  # bytes before the place that is read from
_LEFT_OUT = ('step', 'alerts')  # of a line; no series
_RECENT = 20  # steps whose time says how long the rest takes
_SILENT_S = 120.0  # without a new line a run is at least so long under way


class MetricsTail:
  """The lines of a `metrics.jsonl` that grows.

  Only what has been added is read. A last line without its end waits for the
  next call. A file that has been written anew, as a resumed run does, is read
  from its start, and `version` changes.

  Attributes:
    rows: the lines so far.
    version: how often the file has been begun anew.
    skipped: lines that are no step of a run.

  Args:
    path: the file, which need not be there yet.
  """

  def __init__(self, path: str):
    self.rows: list[dict[str, Any]] = []
    self.version, self.skipped = 0, 0
    self._path, self._place, self._before = path, 0, b''

  def read(self) -> None:
    """Reads the lines that have been added."""
    try:
      with open(self._path, 'rb') as file:
        file.seek(self._place - len(self._before))
        if file.read(len(self._before)) != self._before:
          self._begin_anew()
          file.seek(0)
        added = file.read()
    except FileNotFoundError:
      if self._place:
        self._begin_anew()
      return
    whole = added[: added.rfind(b'\n') + 1]
    for line in whole.split(b'\n')[:-1]:
      row = _row(line)
      if row is None:
        self.skipped += 1
      else:
        self.rows.append(row)
    self._place += len(whole)
    self._before = (self._before + whole)[-_FINGERPRINT:]

  def _begin_anew(self) -> None:
    self.rows, self.skipped = [], 0
    self.version += 1
    self._place, self._before = 0, b''


class _Cached(NamedTuple):
  stamp: tuple[int, int, int] | None
  value: dict[str, Any]


class LiveRun:
  """One run of the page; safe to be asked by several threads.

  Args:
    workdir: folder of the run.
    price: of an hour of a device; 0 leaves the cost out.

  Raises:
    FileNotFoundError: there is no such folder.
  """

  def __init__(self, workdir: str, price: float = 0.0):
    if not os.path.isdir(workdir):
      raise FileNotFoundError(
        f'The workdir {workdir!r} does not exist; give the folder of a run '
        'with --workdir=DIR.'
      )
    self.workdir, self.price = workdir, price
    self.name = os.path.basename(os.path.abspath(workdir))
    self.lock = threading.Lock()
    self.index = completion_index.CompletionIndex(workdir)
    self._tail = MetricsTail(os.path.join(workdir, metrics.JSONL))
    self._cached: dict[str, _Cached] = {}
    # Alerts by the place of their step, of one version of the metrics.
    self._checked: dict[int, dict[int, list[Alert]]] = {}

  def settings(self) -> dict[str, Any]:
    """The run's settings, as `config.json` has them; {} if it has none."""
    return self._object('config.json')

  def state(
    self, version: int = -1, since: int = 0, listing: int = -1
  ) -> dict[str, Any]:
    """All that the page shows of a run, with the steps it has not seen.

    Args:
      version: that of the steps which the page has.
      since: how many steps it has.
      listing: that of the names of files that it has; the same are not told
        again.
    """
    with self.lock:
      self._tail.read()
      rows = self._tail.rows
      if version != self._tail.version or not 0 <= since <= len(rows):
        since = 0
      self.index.refresh()
      config, info = self.settings(), self._object('run.json')
      phases = recorded.phases(rows, config, info.get('wall_s'))
      evaluations = {
        name: self._object(os.path.join(recorded.EVALUATIONS, f'{name}.json'))
        for name in ('before', 'after')
      }
      return {
        'name': self.name,
        'version': self._tail.version,
        'since': since,
        'total': len(rows),
        'series': columns(rows[since:]),
        'progress': self._progress(config),
        'info': {k: info.get(k) for k in _INFO},
        'alerts': self._alerts(config),
        'evaluations': evaluations,
        'segments': _segments(rows),
        'phases': phases,
        'cost': _cost(phases, info, self.price),
        'listing': self.index.listing,
        'files': None if listing == self.index.listing else self.index.keys,
        'skipped': self._tail.skipped,
      }

  def _progress(self, config: Mapping[str, Any]) -> dict[str, Any]:
    rows = self._tail.rows
    total = recorded.number(config.get('num_steps'))
    done = int(rows[-1].get('step') or 0) + 1 if rows else 0
    recent = [
      seconds
      for row in rows[-_RECENT:]
      if (seconds := recorded.number(row.get('time/step_s'))) is not None
    ]
    step_s = sum(recent) / len(recent) if recent else None
    try:
      changed = os.path.getmtime(os.path.join(self.workdir, metrics.JSONL))
    except OSError:
      changed = None
    age_s = None if changed is None else max(time.time() - changed, 0.0)
    ended = total is not None and done >= total
    silent = age_s is None or age_s > max(_SILENT_S, 10 * (step_s or 0.0))
    return {
      'done': done,
      'total': total,
      'step_s': step_s,
      'left_s': (total - done) * step_s if total and step_s else None,
      'age_s': age_s,
      'state': 'ended' if ended else 'silent' if silent else 'running',
    }

  def _alerts(self, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    if self._tail.version not in self._checked:
      self._checked = {self._tail.version: {}}
    checked = self._checked[self._tail.version]
    found = history.of_record(self._tail.rows, config, checked)
    return [
      {'name': a.name, 'sentence': a.sentence, 'first': a.step, 'last': last}
      for a, last in found
    ]

  def _object(self, name: str) -> dict[str, Any]:
    """A JSON object of the folder, read again when it has changed."""
    path = os.path.join(self.workdir, name)
    try:
      stat = os.stat(path)
      stamp = stat.st_mtime_ns, stat.st_size, stat.st_ino
    except OSError:
      return {}
    if name not in self._cached or self._cached[name].stamp != stamp:
      try:
        value = recorded.read_object(path)
      except (OSError, ValueError):  # half of it, or gone meanwhile
        return {}
      self._cached[name] = _Cached(stamp, value)
    return self._cached[name].value


def open_runs(workdirs: Sequence[str], price: float) -> list[LiveRun]:
  """Opens runs; those whose folders share a name are called by their paths.

  Raises:
    FileNotFoundError: a folder does not exist.
  """
  runs = [LiveRun(workdir, price) for workdir in workdirs]
  names = collections.Counter(run.name for run in runs)
  for run in runs:
    if names[run.name] > 1:
      run.name = run.workdir
  return runs


_INFO = ('stage', 'seed', 'hardware', 'version', 'commit', 'wall_s')


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
  """The numbers of steps by metric, six digits each; null where unknown."""
  names = dict.fromkeys(
    name
    for row in rows
    for name, value in row.items()
    if name not in _LEFT_OUT and isinstance(value, (int, float))
  )
  series: dict[str, list[Any]] = {
    'step': [recorded.number(row.get('step')) for row in rows]
  }
  for name in names:
    series[name] = [_rounded(row.get(name)) for row in rows]
  return series


def _rounded(value: Any) -> float | None:
  number = recorded.number(value)
  return None if number is None else float(f'{number:.6g}')


def _segments(rows: list[dict[str, Any]]) -> list[list[float]]:
  """Ends of the fitted lines of length, and their slopes."""
  return [
    [float(x[0]), float(y[0]), float(x[-1]), float(y[-1]), slope]
    for x, y, slope in recorded.segments(rows)
  ]


def _cost(
  phases: Mapping[str, float], info: Mapping[str, Any], price: float
) -> dict[str, float]:
  """The cost of each phase; {} without a price."""
  if not price:
    return {}
  count = str(info.get('hardware') or '').partition(' ')[0]
  devices = int(count) if count.isdigit() else 1
  return {name: s / 3600 * price * devices for name, s in phases.items()}


def _row(line: bytes) -> dict[str, Any] | None:
  try:
    value = json.loads(line)
  except (ValueError, RecursionError):
    return None
  if not isinstance(value, dict) or recorded.number(value.get('step')) is None:
    return None  # every metric belongs to a step
  return value
