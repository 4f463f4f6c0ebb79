"""Kills a run at random moments until it is done, and compares bits.

  python -m rlzero.benchmarks.crash_test --folder=DIR [--kills=20] [--selective]
    [--out=FILE]

A tiny run is left alone once. The same run is then killed (SIGKILL) twenty
times and started again each time; its last checkpoint is damaged and it is
started once more. Parameters, metrics (but for times), kept completions and
evaluations must be those of the run that was left alone. If the series is
killed itself, it resumes. With `--selective` the run has dynamic sampling,
down-selection, a curriculum and masked completions, so that what it draws
depends on what it has sampled.

A kill is aimed at the part of a step that was hit least so far, at a random
moment of it, after a random part of the run. What it hit is what the run
itself noted last (`instrumented_run.py`).
"""

import argparse
import collections
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import time

import jax
import numpy as np

from rlzero.benchmarks import instrumented_run, series
from rlzero.monitoring import history
from rlzero.runtime import files, metrics
from rlzero.train import folders

_STEPS = 40
# Parts that kills are aimed at, and where the metrics say how long they take.
_PARTS = {
  'rollout': 'time/rollout_s',
  'rollout/scoring': 'time/score_s',
  'update': 'time/update_s',
  'between minibatches': None,
  'saving': None,
}
_SAVING_S = 0.05  # seconds, most of it in the background
_GIN = """
from __gin__ import dynamic_registration
from rlzero import grpo
from rlzero.rl import objective
from rlzero.rollout import sampling
from rlzero.text import template
from rlzero.train import optim
grpo.Config.template = @template.Template()
template.Template.kind = 'short'
grpo.Config.num_prompts = 4
grpo.Config.group_size = 4
grpo.Config.steps_per_rollout = 2
sampling.Sampling.max_len = 48
sampling.Sampling.max_prompt_len = 16
sampling.Sampling.num_slots = 8
sampling.Sampling.decode_steps = 4
objective.Objective.kl_coef = 0.01
grpo.Config.reference_every = 8
optim.Optimizer.learning_rate = 1e-4
grpo.Config.micro_tokens = 256
grpo.Config.save_every = 3
grpo.Config.eval_every = 10
grpo.Config.eval_problems = 4
grpo.Config.eval_samples = 2
grpo.Config.final_problems = 4
grpo.Config.final_samples = 2
grpo.Config.keep_completions_every = 2
"""
_SELECTIVE = """
from rlzero.tasks.datasets import curriculum
grpo.Config.samples_per_prompt = 6
grpo.Config.max_rounds = 3
curriculum.Curriculum.by = 'level'
curriculum.Curriculum.half_life = 4.0
grpo.Config.truncated = 'masked'
grpo.Config.overlong_buffer = 16
"""


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  parser.add_argument('--kills', type=int, default=20)
  parser.add_argument('--selective', action='store_true')
  parser.add_argument('--out', type=pathlib.Path)
  flags = parser.parse_args()
  flags.folder.mkdir(exist_ok=True)
  measured = measure(flags.folder, flags.kills, flags.selective)
  text = files.to_json(measured, indent=2)
  print(text)
  if flags.out:
    flags.out.write_text(text + '\n')
  if not measured['equal']:
    sys.exit('The bits differ.')


def measure(folder: pathlib.Path, kills: int, selective: bool = False) -> dict:
  """Runs it all; what happened, in numbers."""
  (folder / 'run.gin').write_text(_GIN + _SELECTIVE * selective)
  whole, killed = folder / 'whole', folder / 'killed'
  if not (whole / 'summary.json').exists():
    _finish(whole)
  done = folder / 'kills.jsonl'
  while len(before := metrics.read_lines(str(done))) < kills:
    kill = _kill(killed, whole, before, kills - len(before))
    print(f'kill {len(before) + 1}: {kill}', flush=True)
    with open(done, 'a', encoding='utf-8') as file:
      file.write(files.to_json(kill) + '\n')
  _finish(killed)
  equal = {'after_kills': _same(whole, killed)}
  newest = max((killed / 'checkpoints').glob('[0-9]*'), key=_number)
  saved = [path for path in newest.rglob('*') if path.is_file()]
  largest = max(saved, key=lambda path: path.stat().st_size)
  largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
  _finish(killed)
  equal['after_damage'] = _same(whole, killed)
  said = 'is damaged' in killed.with_suffix('.log').read_text()
  rows = metrics.read_lines(str(done))
  return {
    **series.origin('crash_test'),
    'steps': _STEPS,
    'hit': collections.Counter(row['during'] for row in rows),
    'unfinished_checkpoints': sum(row['unfinished'] for row in rows),
    'kills': rows,
    'damaged_checkpoint_told': said,
    **equal,
    'equal': all(equal.values()) and said,
  }


def _kill(workdir, whole, before, left):
  """Starts the run and kills it; what was hit."""
  hits = collections.Counter(kill['during'] for kill in before)
  # A save continues behind the next rollout.
  hits['saving'] = sum(
    kill['unfinished'] or kill['during'] == 'saving' for kill in before
  )
  aim = min(_PARTS, key=lambda part: (hits[part], random.random()))
  usual = metrics.read_metrics(str(whole))

  def median(name):
    return statistics.median(row[name] for row in usual)

  process = _start(workdir)
  _wait(process, workdir, lambda work, _: work > 0)  # it has compiled
  # So that what is left of the run lasts for the kills that are left.
  rest = median('time/step_s') * (_STEPS - _steps(workdir))
  time.sleep(random.uniform(0, rest / left))
  _wait(process, workdir, lambda _, during: during == aim)
  if aim == 'saving':
    began = time.monotonic()
    while not _unfinished(workdir) and time.monotonic() < began + 10:
      time.sleep(0.0002)
  if aim != 'between minibatches':  # which is over at once
    longest = median(_PARTS[aim]) if _PARTS[aim] else _SAVING_S
    time.sleep(random.uniform(0, longest))
  process.kill()
  if process.wait() != -signal.SIGKILL:
    sys.exit('The run ended before it was killed; begin in another folder.')
  _, during = instrumented_run.read(_notes(workdir))
  return {
    'step': _steps(workdir),
    'during': during,
    'unfinished': _unfinished(workdir),
  }


def _finish(workdir):
  """Runs to the end."""
  if _start(workdir).wait():
    sys.exit(workdir.with_suffix('.log').read_text())


def _start(workdir):
  _notes(workdir).write_text('0 not begun')
  with open(workdir.with_suffix('.log'), 'a', encoding='utf-8') as log:
    return subprocess.Popen(
      [
        *(
          sys.executable,
          '-m',
          'rlzero.benchmarks.instrumented_run',
          _notes(workdir),
        ),
        f'--gin_file={workdir.parent}/run.gin',
        f'--workdir={workdir}',
        f'--num_steps={_STEPS}',
      ],
      stdout=log,
      stderr=subprocess.STDOUT,
    )


def _wait(process, workdir, until):
  """Until the run notes what is waited for."""
  while not until(*instrumented_run.read(_notes(workdir))):
    if process.poll() is not None:
      log = workdir.with_suffix('.log').read_text()
      sys.exit(f'{log}\nThe run ended before it was killed (see above).')
    time.sleep(0.0002)


def _unfinished(workdir):
  """Whether there is a checkpoint that was begun and is not whole."""
  return any((workdir / 'checkpoints').glob('*tmp*'))


def _notes(workdir):
  return workdir.with_suffix('.notes')


def _steps(workdir):
  return len(metrics.read_metrics(str(workdir)))


def _number(path):
  return int(path.name) if path.name.isdecimal() else -1


def _same(first, second):
  """Whether two runs left the same bits."""

  def rows(workdir):
    return history.without_times(metrics.read_metrics(str(workdir)))

  def texts(workdir, name):
    folder = workdir / name
    return {path.name: path.read_text() for path in folder.iterdir()}

  params = [
    jax.tree.leaves(folders.load_model(str(workdir / 'model')).params)
    for workdir in (first, second)
  ]
  return (
    all(map(np.array_equal, *params))
    and rows(first) == rows(second)
    and all(
      texts(first, name) == texts(second, name)
      for name in ('completions', 'evaluations')
    )
  )


if __name__ == '__main__':
  main()
