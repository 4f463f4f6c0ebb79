"""Times R1-Zero on the tiny base to pass@1 0.80, as JSON.

  python -m rlzero.benchmarks.speedrun --folder=DIR [--seeds=0,1,2]
    [--gin_file=configs/runs/speedrun.gin] [--out=FILE]

Each seed is a run of `rlzero.grpo` in a process and a folder of its own, with
an empty compilation cache. Its seconds are by the clock, from the start of the
process to its end: imports, compiling, the evaluation before and the one after,
on all 233 held-out problems, are part of them. A record needs pass@1 0.80 in
every seed; the exit code is 1 otherwise.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlzero.benchmarks import series
from rlzero.runtime import files, metrics

GOAL = 0.80  # pass@1
# The evaluation that has to reach it.
_EVALUATION = {
  'split': 'test',
  'num_problems': 233,
  'num_samples': 8,
  'temperature': 1.0,
  'top_p': 1.0,
}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  parser.add_argument('--seeds', type=series.numbers, default=[0, 1, 2])
  parser.add_argument('--gin_file', default='configs/runs/speedrun.gin')
  parser.add_argument('--out', type=pathlib.Path)
  given = parser.parse_args()
  given.folder.mkdir(parents=True, exist_ok=True)
  runs = [
    train(given.folder / f'seed_{seed}', given.gin_file, seed)
    for seed in given.seeds
  ]
  measured = {
    **series.origin('speedrun'),
    **judge(runs),
  }
  print(files.to_json(measured, indent=2))
  if given.out:
    files.write_json(str(given.out), measured, indent=2)
  if not measured['reached']:
    sys.exit(f'Not every seed reached pass@1 {GOAL}: no record.')


def train(workdir: pathlib.Path, gin_file: str, seed: int) -> dict[str, Any]:
  """Trains from the shipped base, with cold caches; what it took.

  Args:
    workdir: a new folder; one that is there would not take the whole time.
    gin_file: of the run.
    seed: of the run.

  Raises:
    SystemExit: the folder is there already, the run failed, or it was evaluated
      in another way than a record needs.
  """
  if workdir.exists():
    sys.exit(f'{workdir} is there already; name another --folder.')
  with tempfile.TemporaryDirectory() as cache:
    environment = {**os.environ, 'XDG_CACHE_HOME': cache}
    environment.pop('JAX_COMPILATION_CACHE_DIR', None)
    start = time.monotonic()
    code = subprocess.run(
      [
        *(sys.executable, '-m', 'rlzero.grpo'),
        *(f'--gin_file={gin_file}', f'--seed={seed}', f'--workdir={workdir}'),
      ],
      env=environment,
      stdout=sys.stderr,
      check=False,
    ).returncode
    seconds = time.monotonic() - start
  if code:
    sys.exit(f'The run in {workdir} ended with {code}.')
  after = json.loads((workdir / 'evaluations' / 'after.json').read_text())
  check_evaluation(after)
  rows = metrics.read_metrics(str(workdir))
  return {
    'seed': seed,
    'seconds': seconds,
    'steps': len(rows),
    'steps_s': sum(row['time/step_s'] for row in rows),  # with compiling
    'tokens': int(sum(row['rollout/tokens'] for row in rows)),
    'pass@1': after['pass@1'],
    'pass@1_interval': after['pass@1_interval'],
  }


def check_evaluation(found: Mapping[str, Any]) -> None:
  """Checks that a run was evaluated as a record has to be.

  Args:
    found: metrics of the evaluation.

  Raises:
    SystemExit: it was not; the sentence names the first setting that differs.
  """
  for name, needed in _EVALUATION.items():
    if found[name] != needed:
      sys.exit(
        f'The run was evaluated with {name} {found[name]}; a record needs '
        f'{needed}.'
      )


def judge(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """The runs, whether all reached the goal, and the mean of their seconds."""
  return {
    'goal': GOAL,
    'runs': list(runs),
    'reached': all(run['pass@1'] >= GOAL for run in runs),
    'seconds': float(np.mean([run['seconds'] for run in runs])),
  }


if __name__ == '__main__':
  main()
