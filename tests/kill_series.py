"""Kills a run at random moments until it is done, and compares bits.

  python -m tests.kill_series --folder=DIR [--kills=20] [--out=FILE]

A tiny run is left alone once. The same run is then killed (SIGKILL) twenty
times at random moments and started again each time; its last checkpoint is
damaged and it is started once more. Parameters, metrics (but for times),
kept completions and evaluations must be those of the run that was left alone.
The series goes on where it was, if it is killed itself.
"""

import argparse
import contextlib
import json
import pathlib
import random
import statistics
import subprocess
import sys
import time

import jax
import numpy as np

from rlzero import checkpoint, metrics, provenance

_STEPS = 20
_GIN = """
from __gin__ import dynamic_registration
from rlzero import grpo
from rlzero.tasks import template
grpo.Config.template = @template.Template()
template.Template.kind = 'short'
grpo.Config.num_prompts = 4
grpo.Config.group_size = 4
grpo.Config.steps_per_rollout = 2
grpo.Config.max_len = 48
grpo.Config.max_prompt_len = 16
grpo.Config.num_slots = 8
grpo.Config.decode_steps = 4
grpo.Config.kl_coef = 0.01
grpo.Config.reference_every = 8
grpo.Config.learning_rate = 1e-4
grpo.Config.micro_tokens = 256
grpo.Config.save_every = 3
grpo.Config.eval_every = 10
grpo.Config.eval_problems = 4
grpo.Config.eval_samples = 2
grpo.Config.final_problems = 4
grpo.Config.final_samples = 2
grpo.Config.keep_completions_every = 2
"""


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  parser.add_argument('--kills', type=int, default=20)
  parser.add_argument('--out', type=pathlib.Path)
  flags = parser.parse_args()
  flags.folder.mkdir(exist_ok=True)
  figures = series(flags.folder, flags.kills)
  text = json.dumps(figures, indent=2)
  print(text)
  if flags.out:
    flags.out.write_text(text + '\n')
  if not figures['equal']:
    sys.exit('The bits differ.')


def series(folder: pathlib.Path, kills: int) -> dict:
  """Runs it all; what happened, in numbers."""
  gin = folder / 'run.gin'
  gin.write_text(_GIN)
  whole, killed = folder / 'whole', folder / 'killed'
  if not (whole / 'summary.json').exists() and _start(gin, whole).wait():
    sys.exit((folder / 'whole.log').read_text())
  step_s = statistics.median(
    row['time/step_s'] for row in metrics.read_metrics(str(whole))
  )
  done = folder / 'kills.jsonl'
  while (number := len(metrics.read_lines(str(done)))) < kills:
    process = _start(gin, killed)
    _wait_for_work(process, killed)
    # So that what is left of the run lasts for the kills that are left.
    rest = step_s * (_STEPS - _steps(killed))
    time.sleep(random.uniform(0, 1.5 * rest / (kills - number)))
    if process.poll() is not None:
      sys.exit((folder / 'killed.log').read_text())
    process.kill()
    process.wait()
    row = {'step': _steps(killed), 'during': _moment(killed)}
    print(f'kill {number + 1}: {row}', flush=True)
    with open(done, 'a', encoding='utf-8') as file:
      file.write(json.dumps(row) + '\n')
  if _start(gin, killed).wait():
    sys.exit((folder / 'killed.log').read_text())
  equal = {'after_kills': _same(whole, killed)}
  newest = max((killed / 'checkpoints').glob('[0-9]*'), key=_number)
  files = [path for path in newest.rglob('*') if path.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
  if _start(gin, killed).wait():
    sys.exit((folder / 'killed.log').read_text())
  equal['after_damage'] = _same(whole, killed)
  said = 'is damaged' in (folder / 'killed.log').read_text()
  return {
    'command': 'python -m tests.kill_series ' + ' '.join(sys.argv[1:]),
    **provenance.facts(),
    'steps': _STEPS,
    'kills': metrics.read_lines(str(done)),
    'damaged_checkpoint_told': said,
    **equal,
    'equal': all(equal.values()) and said,
  }


def _start(gin, workdir):
  with open(workdir.with_suffix('.log'), 'a', encoding='utf-8') as log:
    return subprocess.Popen(
      [
        sys.executable,
        '-m',
        'rlzero.grpo',
        f'--gin_file={gin}',
        f'--workdir={workdir}',
        f'--num_steps={_STEPS}',
      ],
      stdout=log,
      stderr=subprocess.STDOUT,
    )


def _wait_for_work(process, workdir):
  """Until the process has compiled, and draws something new."""

  def kept():
    sizes = {}
    for path in (workdir / 'journal').glob('*.jsonl'):
      with contextlib.suppress(FileNotFoundError):  # a rollout that is over
        sizes[path.name] = path.stat().st_size
    return sizes

  before = kept()
  while process.poll() is None:
    new = {name: size - before.get(name, 0) for name, size in kept().items()}
    if max(new.values(), default=0) > 300:  # bytes: more than a first line
      return
    time.sleep(0.01)


def _steps(workdir):
  return len(metrics.read_metrics(str(workdir)))


def _number(path):
  return int(path.name) if path.name.isdecimal() else -1


def _moment(workdir):
  """What the run seems to have been doing."""
  if any((workdir / 'checkpoints').glob('*tmp*')):
    return 'saving'
  journals = sorted((workdir / 'journal').glob('*.jsonl'))
  if not journals:
    return 'evaluation'
  lines = journals[-1].read_bytes().splitlines()
  scores = sum(b'{"scores"' in line for line in lines)
  if scores:
    return 'scored: reference, updates, metrics'
  return 'rollout' if len(lines) < 33 else 'scoring'


def _same(first, second):
  """Whether two runs left the same bits."""

  def rows(workdir):
    return [
      {k: v for k, v in row.items() if not k.startswith('time/')}
      for row in metrics.read_metrics(str(workdir))
    ]

  def texts(workdir, name):
    folder = workdir / name
    return {path.name: path.read_text() for path in folder.iterdir()}

  params = [
    jax.tree.leaves(checkpoint.load_model(str(workdir / 'model')).params)
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
