"""Trackers of experiments beside TensorBoard: Weights & Biases and trackio.

`RLZERO_TRACKERS=wandb` or `wandb,trackio` sends them the metrics of every stage
that trains. That is no setting of a run: nothing that is trained depends on it,
and a run may resume with another. Each library reads variables of its own, such
as WANDB_PROJECT and WANDB_MODE=offline.
"""

import importlib
import importlib.util
import json
import os
import sys
import uuid
from collections.abc import Mapping
from typing import Any

from rlzero.runtime import files

NAMES = ('wandb', 'trackio')
VARIABLE = 'RLZERO_TRACKERS'
_FILE = 'trackers.json'  # in the workdir: what the run is called there
_PROJECT = 'rlzero'


def chosen() -> list[str]:
  """The trackers that the environment names.

  Raises:
    ValueError: one is not known, or not installed.
  """
  found = [
    name.strip()
    for name in os.environ.get(VARIABLE, '').split(',')
    if name.strip()
  ]
  for name in found:
    if name not in NAMES:
      raise ValueError(
        f'{VARIABLE} names {name!r}; it may name {" and ".join(NAMES)}, '
        'separated by a comma.'
      )
    if name not in sys.modules and importlib.util.find_spec(name) is None:
      raise ValueError(
        f'{VARIABLE} names {name!r}, which is not installed; run pip install '
        f'{name}, or leave it out.'
      )
  return found


def open_all(workdir: str) -> list['Tracker']:
  """Opens the trackers that the environment names, for a run's folder."""
  return [Tracker(name, workdir) for name in chosen()]


class Tracker:
  """One run in one tracker; a resumed run continues it.

  A tracker that fails is told of once and then left alone: training continues.

  Args:
    name: one of NAMES.
    workdir: folder of the run.
  """

  def __init__(self, name: str, workdir: str):
    self._name, self._run = name, None
    self._guarded(lambda: self._open(workdir))

  def _open(self, workdir: str) -> None:
    name = self._name
    module = importlib.import_module(name)
    title = os.path.basename(os.path.abspath(workdir))
    run_id = _run_id(workdir)
    options: dict[str, Any] = {
      'project': os.environ.get(f'{name.upper()}_PROJECT', _PROJECT),
      'config': _config(workdir),
      'resume': 'allow',
    }
    if name == 'wandb':
      options |= {'id': run_id, 'name': title, 'dir': workdir}
    else:  # its runs have no other id than their names
      options |= {'name': f'{title}-{run_id}'}
    self._run = run = module.init(**options)
    if name == 'wandb':
      # A resumed run goes back to its last checkpoint, and W&B's own counter
      # never does.
      run.define_metric('*', step_metric='step')

  def log(self, step: int, values: Mapping[str, float]) -> None:
    """Sends the metrics of a step."""
    run = self._run
    if run is not None:
      if self._name == 'wandb':
        self._guarded(lambda: run.log({'step': step, **values}))
      else:
        self._guarded(lambda: run.log(dict(values), step=step))

  def close(self) -> None:
    """Waits until everything is sent."""
    run, self._run = self._run, None
    if run is not None:
      self._guarded(run.finish)

  def _guarded(self, call: Any) -> None:
    try:
      call()
    except Exception as error:  # whatever a tracker raises
      self._run = None
      print(
        f'warning: {self._name} failed and gets no more metrics '
        f'({type(error).__name__}: {error}).',
        file=sys.stderr,
        flush=True,
      )


def _run_id(workdir: str) -> str:
  """The id of a run, made once and kept in its folder."""
  path = os.path.join(workdir, _FILE)
  if os.path.exists(path):
    with open(path, encoding='utf-8') as file:
      return str(json.load(file)['id'])
  made = uuid.uuid4().hex[:12]
  files.write_json(path, {'id': made})
  return made


def _config(workdir: str) -> dict[str, Any]:
  """The settings of the run; {} of a stage that writes none."""
  path = os.path.join(workdir, 'config.json')
  if not os.path.exists(path):
    return {}
  with open(path, encoding='utf-8') as file:
    return json.load(file)
