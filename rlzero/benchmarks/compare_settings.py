"""Trains with each of several settings, equally long, and tabulates the runs.

  python -m rlzero.benchmarks.compare_settings STUDY --folder=DIR
    [--seeds=0,1,2] [--only=grpo,dapo] [--steps=60] [--out=FILE]
    [--gin_file=configs/runs/r1_zero_tiny.gin] [--flags='--num_prompts=8 ...']

The studies:

  objectives  every file of configs/objectives
  adapters    all parameters, and adapters of rank 8 and 32
  mismatch    a sampler whose weights have noise of several sizes, under
              objectives that correct for it and some that do not

The first setting of a study is what the others are compared with, seed by seed:
a difference is beyond noise where its 95% interval (Student's t, paired) leaves
out 0. Every run is a process of its own, so its peak memory is its own. A run
that is there already is not repeated, and one that was interrupted is resumed.
"""

import argparse
import json
import math
import os
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlzero import grpo
from rlzero.benchmarks import series
from rlzero.runtime import config, files, metrics, provenance

_OBJECTIVES = pathlib.Path('configs/objectives')
_NOISES = 0.003, 0.01, 0.03, 0.1
_GOAL = 0.8  # pass@1 on validation problems
_LAST = 10  # steps at the end of a run that its metrics are means over
_MEMORY = 'peak_memory.json'  # GiB, in a run's folder
_FLAGS = '--eval_every=5', '--eval_problems=96', '--save_every=20'

Flags = tuple[str, ...]


def _objective(name: str) -> str:
  return f'--gin_file={_OBJECTIVES / name}.gin'


def objectives(gin_file: str) -> dict[str, Flags]:
  """The files of configs/objectives, GRPO first."""
  del gin_file
  names = sorted(path.stem for path in _OBJECTIVES.glob('*.gin'))
  names.sort(key=lambda name: name != 'grpo')
  return {name: (_objective(name),) for name in names}


def adapters(gin_file: str) -> dict[str, Flags]:
  """All parameters, and adapters at ten times the rate, where one begins."""
  cfg = config.build(grpo, [f'--gin_file={gin_file}', '--workdir='])
  rate = 10 * cfg.optimizer.learning_rate
  return {
    'full': (),
    **{
      f'rank_{rank}': (
        '--gin_file=configs/adapters/lora.gin',
        f'--adapter.rank={rank}',
        f'--adapter.alpha={rank}',
        f'--learning_rate={rate}',
      )
      for rank in (8, 32)
    },
  }


def mismatch(gin_file: str) -> dict[str, Flags]:
  """Noise in the sampler, by what the objective does about it.

  `ratio` takes old log-probs from the sampler, so its clipped ratio holds the
  noise too. `ignored` takes them from the learner, as if there were no noise.
  """
  del gin_file
  ways = {
    'ratio': (_objective('grpo'),),
    'ignored': (_objective('grpo'), '--objective.old_logprobs=recomputed'),
    'truncated': (_objective('tis'),),
    'masked': (_objective('icepop'),),
  }
  return {
    f'{way}_{noise}': (f'--noise={noise}', *flags)
    for noise in (0.0, *_NOISES)
    for way, flags in ways.items()
  }


STUDIES: dict[str, Callable[[str], dict[str, Flags]]] = {
  'objectives': objectives,
  'adapters': adapters,
  'mismatch': mismatch,
}

# Columns of the table: a figure of a run, its title, and how it is written.
_COLUMNS = (
  ('pass@1', 'pass@1', '.3f'),
  ('strict', 'strict', '.3f'),
  ('length', 'length', '.1f'),
  ('policy/kl', 'KL', '.2g'),
  ('policy/entropy', 'entropy', '.3f'),
  ('policy/clip_fraction', 'clipped', '.2g'),
  ('policy/sampler_learner_kl', 'mismatch KL', '.2g'),
  ('tokens', f'tokens to {_GOAL}', ',.0f'),
  ('step_s', 's a step', '.3g'),
  ('memory', 'peak GiB', '.3g'),
)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('study', choices=list(STUDIES))
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  parser.add_argument('--seeds', type=series.numbers, default=[0, 1, 2])
  parser.add_argument('--only', type=lambda text: text.split(','))
  parser.add_argument('--steps', type=int, default=60)
  parser.add_argument('--gin_file', default='configs/runs/r1_zero_tiny.gin')
  parser.add_argument('--flags', type=shlex.split, default=[])
  parser.add_argument('--out', type=pathlib.Path)
  given = parser.parse_args()
  settings = STUDIES[given.study](given.gin_file)
  only = given.only or list(settings)
  if unknown := sorted(set(only) - set(settings)):
    parser.error(
      f'{", ".join(unknown)} is no setting of {given.study}; choose from '
      f'{", ".join(settings)}.'
    )
  given.folder.mkdir(parents=True, exist_ok=True)
  common = (
    f'--gin_file={given.gin_file}',
    f'--num_steps={given.steps}',
    *_FLAGS,
    *given.flags,
  )
  # All settings of a seed before the next, so that they can be compared.
  runs = {
    (name, seed): train(
      given.folder / f'{name}_{seed}',
      (*common, f'--seed={seed}', *settings[name]),
    )
    for seed in given.seeds
    for name in only
  }
  found = summarize(
    {name: [runs[name, seed] for seed in given.seeds] for name in only}
  )
  measured = {
    **series.origin('compare_settings'),
    'seeds': given.seeds,
    'settings': found,
  }
  print(table(found))
  if given.out:
    files.write_json(str(given.out), measured, indent=2)


def train(workdir: pathlib.Path, flags: Sequence[str]) -> dict[str, Any]:
  """Trains in a process of its own, unless the run is there; its figures.

  Args:
    workdir: of the run.
    flags: of rlzero.grpo; and `--noise=X` for a sampler with noise.

  Raises:
    SystemExit: the run failed; its output is in the file beside its folder.
  """
  if not (workdir / 'summary.json').exists():
    noises = [f.partition('=')[2] for f in flags if f.startswith('--noise=')]
    module = (
      ['rlzero.benchmarks.noisy_sampler', *noises]
      if noises
      else ['rlzero.grpo']
    )
    rest = [flag for flag in flags if not flag.startswith('--noise=')]
    log = workdir.with_suffix('.log')
    with open(log, 'a', encoding='utf-8') as file:
      process = subprocess.Popen(
        [sys.executable, '-m', *module, *rest, f'--workdir={workdir}'],
        stdout=file,
        stderr=subprocess.STDOUT,
      )
      # Unlike Popen.wait, it says the memory of this very child.
      _, status, usage = os.wait4(process.pid, 0)
      process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
      sys.exit(f'The run in {workdir} ended with {process.returncode}: {log}.')
    (workdir / _COMMIT).write_text(f'{provenance.commit()}\n')
    files.write_json(str(workdir / _MEMORY), usage.ru_maxrss / 2**20)
  return figures(workdir)


_COMMIT = 'commit.txt'


def figures(workdir: pathlib.Path) -> dict[str, Any]:
  """Reads the figures of a finished run.

  Returns:
    pass@1, strict and mean length on test problems; means of metrics over the
    last steps; tokens sampled until validation pass@1 reached the goal, None if
    it did not; the median of seconds a step; peak memory in GiB; the commit.
  """
  summary = json.loads((workdir / 'summary.json').read_text())
  rows = metrics.read_metrics(str(workdir))
  tokens = np.cumsum([row['rollout/tokens'] for row in rows])
  evaluations = [
    {'pass@1': row['eval/pass@1'], 'tokens': int(tokens[i])}
    for i, row in enumerate(rows)
    if 'eval/pass@1' in row
  ]
  last: dict[str, float | None] = {}
  for name, _, _ in _COLUMNS:
    if '/' in name:
      # A policy that has collapsed has steps without an entropy, or worse.
      values = [row.get(name) for row in rows[-_LAST:]]
      known = [v for v in values if v is not None and math.isfinite(v)]
      last[name] = float(np.mean(known)) if known else None
  memory = workdir / _MEMORY
  return {
    'pass@1': summary['pass@1_after'],
    'strict': summary['strict_after'],
    'length': summary['completion_len_after'],
    **last,
    'tokens': series.cost({'evaluations': evaluations}, 'tokens', _GOAL),
    'step_s': float(np.median([row['time/step_s'] for row in rows])),
    'memory': json.loads(memory.read_text()) if memory.exists() else None,
    'validation': [e['pass@1'] for e in evaluations],
    'commit': (workdir / _COMMIT).read_text().strip(),
  }


def summarize(
  runs: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, dict[str, Any]]:
  """Runs of each setting with means, and differences from the first setting.

  Returns:
    by setting: `runs`; `mean`, by figure, with 95% intervals; and `difference`
    of pass@1 from the first setting, seed by seed.
  """
  first = next(iter(runs.values()))
  found = {}
  for name, of_setting in runs.items():
    pairs = zip(of_setting, first, strict=True)
    found[name] = {
      'runs': list(of_setting),
      'mean': {
        column: series.interval([run[column] for run in of_setting])
        for column, _, _ in _COLUMNS
      },
      'difference': series.interval(
        [run['pass@1'] - other['pass@1'] for run, other in pairs]
      ),
    }
  return found


def beyond_noise(difference: Mapping[str, float]) -> str:
  """Whether an interval leaves out 0; '' where there is none, of one seed."""
  if 'low' not in difference:
    return ''
  return 'yes' if difference['low'] > 0 or difference['high'] < 0 else 'no'


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
  """Means over the seeds as a table in Markdown."""
  titles = [title for _, title, _ in _COLUMNS]
  titles.insert(1, 'difference')
  titles.insert(2, 'beyond noise')
  lines = ['| | ' + ' | '.join(titles) + ' |', '|---' * (len(titles) + 1) + '|']
  for name, setting in found.items():
    cells = []
    for column, _, written in _COLUMNS:
      mean = setting['mean'][column]
      reached = [r[column] for r in setting['runs'] if r[column] is not None]
      if mean is not None:
        cells.append(format(mean['mean'], written))
      elif reached:  # by some of the seeds
        cells.append(f'{len(reached)} of {len(setting["runs"])} seeds')
      else:
        cells.append('-')
    gap = setting['difference']
    said = f'{gap["mean"]:+.3f}'
    if 'low' in gap:
      said += f' [{gap["low"]:+.3f}, {gap["high"]:+.3f}]'
    cells[1:1] = [said, beyond_noise(gap)]
    lines.append(f'| {name} | {" | ".join(cells)} |')
  return '\n'.join(lines)


if __name__ == '__main__':
  main()
