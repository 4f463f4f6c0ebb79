"""Alerts of a run over its steps: which are new, and how long they rang."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rlzero.monitoring import alerts
from rlzero.monitoring.alerts import Alert, Thresholds
from rlzero.monitoring.windows import Rows
from rlzero.runtime import metrics


class Monitor:
  """Follows a run step by step and knows which alerts are new.

  An alert is new at its first step, and again if it comes back after it was
  silent for `limits.window` steps.

  Args:
    limits: the thresholds.
    dtype: of activations.
    rows: steps of the past; a monitor that is given the steps of an earlier
      one continues as that would have.
  """

  def __init__(
    self, limits: Thresholds, dtype: str = 'float32', rows: Rows = ()
  ):
    self._limits, self._dtype = limits, dtype
    self._rows: list[Mapping[str, Any]] = []
    self._rang: dict[str, int] = {}  # number of the step that rang it last
    for row in rows:
      self.add(row)

  def add(self, row: Mapping[str, Any]) -> tuple[list[Alert], list[Alert]]:
    """Takes the metrics of the next step.

    Returns:
      the alerts at this step, and those of them that are new.
    """
    self._rows.append(row)
    now = len(self._rows)
    found = alerts.check(self._rows, self._limits, self._dtype)
    new = [
      a
      for a in found
      if a.name not in self._rang
      or now - self._rang[a.name] > self._limits.window
    ]
    self._rang |= dict.fromkeys((a.name for a in found), now)
    return found, new


class Recorder:
  """Writes the metrics of steps with their alerts, and prints new alerts.

  Args:
    workdir: folder of the run.
    start_step: the step that is written next; the alerts before it are those
      of the lines that are there.
    limits: the thresholds.
    dtype: of activations.
  """

  def __init__(
    self, workdir: str, start_step: int, limits: Thresholds, dtype: str
  ):
    self._writer = metrics.MetricsWriter(workdir, start_step)
    past = metrics.read_metrics(workdir)
    self._monitor = Monitor(limits, dtype, past)

  def write(self, step_metrics: Mapping[str, Any]) -> list[str]:
    """Writes one step; `step` is among its metrics.

    Returns:
      the names of the alerts that ring.
    """
    found, new = self._monitor.add(step_metrics)
    ringing = {alert.name for alert in found}
    self._writer.write(
      step_metrics['step'],
      {k: v for k, v in step_metrics.items() if k != 'step'},
      {name: name in ringing for name in alerts.NAMES},
    )
    for alert in new:
      print(f'alert {alert.name}: {alert.sentence}', flush=True)
    return [alert.name for alert in found]

  def __enter__(self) -> 'Recorder':
    return self

  def __exit__(self, *_: Any) -> None:
    self._writer.close()


def replay(
  rows: Rows, limits: Thresholds, dtype: str = 'float32'
) -> list[tuple[Alert, int]]:
  """All alerts of a run: each when it began, and the last step it rang at."""
  monitor = Monitor(limits, dtype)
  began: list[Alert] = []
  last: dict[str, int] = {}  # name: place in `ended`
  ended: list[int] = []
  for row in rows:
    found, new = monitor.add(row)
    for alert in new:
      last[alert.name] = len(began)
      began.append(alert)
      ended.append(alert.step)
    for alert in found:
      ended[last[alert.name]] = alert.step
  return list(zip(began, ended, strict=True))


def without_times(rows: Rows) -> list[dict[str, Any]]:
  """Steps without what depends on a clock: `time/`, `perf/`, one alert.

  Two runs with the same settings have the rest in common, to the bit.
  """
  found = []
  for row in rows:
    ringing = [n for n in row.get('alerts', ()) if n != 'throughput']
    kept = {
      name: value
      for name, value in row.items()
      if name != 'alerts' and not name.startswith(('time/', 'perf/'))
    }
    found.append(kept | ({'alerts': ringing} if ringing else {}))
  return found


def of_run(rows: Rows, config: Mapping[str, Any]) -> list[tuple[Alert, int]]:
  """The history of a run, with the thresholds and dtype of its config.json.

  A run older than a threshold is judged by its default.
  """
  return replay(rows, _limits(config), config.get('dtype', 'float32'))


def of_record(
  rows: Rows,
  config: Mapping[str, Any],
  checked: dict[int, list[Alert]] | None = None,
) -> list[tuple[Alert, int]]:
  """`of_run` by the names of alerts that the run has written down.

  Metrics are judged again only where an alert began, so that thousands of
  steps take milliseconds.

  Args:
    rows: the steps so far.
    config: of the run's config.json.
    checked: alerts by the place of their step, which calls with more steps of
      the same run find again.
  """
  limits, dtype = _limits(config), config.get('dtype', 'float32')
  checked = {} if checked is None else checked
  began: list[Alert] = []
  ended: list[int] = []
  rang: dict[str, tuple[int, int]] = {}  # last place; place in `began`
  for place, row in enumerate(rows):
    names, step = row.get('alerts'), int(row['step'])
    for name in names if isinstance(names, list) else ():
      if name not in rang or place - rang[name][0] > limits.window:
        if place not in checked:
          checked[place] = alerts.check(rows[: place + 1], limits, dtype)
        same = [a for a in checked[place] if a.name == name]
        sentence = 'It rang with the thresholds that the run had then.'
        began += same[:1] or [Alert(name=name, sentence=sentence, step=step)]
        ended.append(step)
        rang[name] = place, len(began) - 1
      rang[name] = place, rang[name][1]
      ended[rang[name][1]] = step
  return list(zip(began, ended, strict=True))


def _limits(config: Mapping[str, Any]) -> Thresholds:
  saved = config.get('alerts') or {}
  known = {f.name for f in dataclasses.fields(Thresholds)}
  return Thresholds(**{k: v for k, v in saved.items() if k in known})
