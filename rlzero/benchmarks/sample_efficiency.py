"""Counts what training takes to a goal, by the way problems are chosen.

  python -m rlzero.benchmarks.sample_efficiency --folder=DIR
    [--gin_file=configs/runs/r1_zero_tiny.gin] [--steps=160] [--goal=0.8]
    [--seeds=0,1,2] [--only=plain,curriculum] [--out=FILE]

The run of a config, once plain and once with each way to choose problems and
completions, for each seed. A run ends when it reaches the goal, pass@1 on
validation problems, measured every five steps; or after its steps. The output
has the tokens that were sampled and the seconds of rollouts and updates until
then: without evaluations, and without compiling, which falls to whichever run
comes first. A run that is there already is not repeated, and one that was
interrupted is resumed; so the series can be stopped at any time.
"""

import argparse
import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import jax
import numpy as np

from rlzero import grpo
from rlzero.benchmarks import series
from rlzero.rl import collect, loop, update
from rlzero.runtime import config, files, lifecycle, metrics, provenance
from rlzero.tasks.datasets.curriculum import Curriculum

_EVAL_EVERY = 5
_FLAGS = (
  f'--eval_every={_EVAL_EVERY}',
  '--eval_problems=96',
  '--eval_samples=4',
  '--save_every=20',
  '--final_problems=4',  # of no use here
  '--final_samples=2',
)
_COMPILING = '/jax/core/compile/'  # tracing and lowering too
_COMMITS = 'commits.txt'  # that worked on a run


_LEVELS = Curriculum(by='level')
# The settings of a way, on top of `_plain`, by the completions of a prompt.
WAYS: dict[str, Callable[[int], dict[str, Any]]] = {
  'plain': lambda size: {},
  'dynamic_sampling': lambda size: {'max_rounds': 4},
  'curriculum': lambda size: {'curriculum': _LEVELS},
  # Half of the rows in an update, from as many completions.
  'down_selection': lambda size: {
    'group_size': size // 2,
    'samples_per_prompt': size,
  },
  # Says what the selection of completions is worth, and what their number.
  'half_group': lambda size: {'group_size': size // 2},
  'all_three': lambda size: {
    'max_rounds': 4,
    'curriculum': _LEVELS,
    **WAYS['down_selection'](size),
  },
}


def _plain(cfg: grpo.Config) -> dict[str, Any]:
  """Settings that undo what a config has of these ways."""
  return {
    'group_size': cfg.num_samples,
    'samples_per_prompt': 0,
    'max_rounds': 1,
    'curriculum': Curriculum(),
  }


class _Reached(Exception):
  """The goal was reached; nothing more is sampled."""


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  parser.add_argument('--gin_file', default='configs/runs/r1_zero_tiny.gin')
  parser.add_argument('--steps', type=int, default=160)
  parser.add_argument('--seeds', type=series.numbers, default=[0, 1, 2])
  only = series.names(WAYS, 'way')
  parser.add_argument('--only', type=only, default=list(WAYS))
  parser.add_argument('--goal', type=float, default=0.8)
  parser.add_argument('--out', type=pathlib.Path)
  given = parser.parse_args()
  if given.steps < _EVAL_EVERY:
    parser.error(
      f'--steps={given.steps} ends before the first evaluation, which is after '
      f'{_EVAL_EVERY}.'
    )
  given.folder.mkdir(parents=True, exist_ok=True)
  flags = [f'--gin_file={given.gin_file}', f'--num_steps={given.steps}']
  # All ways of a seed before the next, so that what is there can be compared.
  runs = {
    (way, seed): train(
      given.folder / f'{way}_{seed}', way, seed, given.goal, flags
    )
    for seed in given.seeds
    for way in given.only
  }
  ways = {
    way: summary([runs[way, seed] for seed in given.seeds], given.goal)
    for way in given.only
  }
  if 'plain' in ways:
    for found in ways.values():
      found['of_plain'] = ratios(found['runs'], ways['plain']['runs'])
  measured = {
    **series.origin('sample_efficiency'),
    'gin_file': given.gin_file,
    'goal': given.goal,
    'seeds': given.seeds,
    'ways': ways,
  }
  print(table(ways))
  if given.out:
    files.write_json(str(given.out), measured, indent=2)


def train(
  workdir: pathlib.Path,
  way: str,
  seed: int,
  goal: float,
  flags: Sequence[str],
) -> dict[str, Any]:
  """Trains until the goal; the cost so far at each evaluation.

  Args:
    workdir: of the run, which is resumed where it is there.
    way: one of `WAYS`.
    seed: of the run.
    goal: pass@1 at which it ends.
    flags: of `rlzero.grpo`: the config and its number of steps.

  Returns:
    `evaluations`, each with steps, pass@1, tokens and seconds; `compile_s`; the
    commits that ran; and means of the metrics that say what was wasted.
  """
  if not _is_done(workdir, goal):
    cfg = config.build(
      grpo, [*flags, *_FLAGS, f'--seed={seed}', f'--workdir={workdir}']
    )
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / _COMMITS, 'a', encoding='ascii') as file:
      file.write(f'{provenance.commit()}\n')
    with _stopping(goal), contextlib.suppress(_Reached):
      settings = _plain(cfg) | WAYS[way](cfg.num_samples)
      grpo.run(dataclasses.replace(cfg, **settings))
  rows = metrics.read_metrics(str(workdir))
  compile_s = [row['time/compile_s'] for row in rows]
  tokens = np.cumsum([row['rollout/tokens'] for row in rows])
  seconds = np.cumsum([row['time/step_s'] for row in rows])
  seconds -= np.cumsum(compile_s)
  return {
    'seed': seed,
    'commits': sorted({*(workdir / _COMMITS).read_text().split()}),
    'compile_s': sum(compile_s),
    'evaluations': [
      {
        'steps': row['step'] + 1,
        'pass@1': row['eval/pass@1'],
        'tokens': int(tokens[i]),
        'seconds': float(seconds[i]),
      }
      for i, row in enumerate(rows)
      if 'eval/pass@1' in row
    ],
    'means': {
      name: float(np.mean([row[name] for row in rows]))
      for name in (
        'groups/zero_variance',
        'groups/rounds',
        'groups/dropped',
        'groups/filled_up',
        'rollout/tokens',
        'rollout/tokens_unused',
        'curriculum/passed_over',
        'curriculum/pass_rate',
        'completion/len_mean',
      )
      if rows and name in rows[-1]
    },
  }


def summary(runs: Sequence[dict[str, Any]], goal: float) -> dict[str, Any]:
  """The runs of a way with their costs, and the means with 95% intervals."""
  runs = [
    {**run, 'cost': {n: series.cost(run, n, goal) for n in ('steps', *_COSTS)}}
    for run in runs
  ]
  return {
    'runs': runs,
    'mean': {
      name: series.interval([run['cost'][name] for run in runs])
      for name in ('steps', *_COSTS)
    },
    'last': [run['evaluations'][-1] for run in runs],
  }


_COSTS = 'tokens', 'seconds'


def ratios(
  runs: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
  """The cost of each run over that of the plain one of its seed.

  Returns:
    by cost, the geometric mean and its 95% interval.
  """
  found = {}
  for name in _COSTS:
    pairs = [
      (run['cost'][name], other['cost'][name])
      for run, other in zip(runs, plain, strict=True)
    ]
    logs = [
      np.log(a / b) if a is not None and b is not None else None
      for a, b in pairs
    ]
    of_logs = series.interval(logs)
    found[name] = of_logs and {k: float(np.exp(v)) for k, v in of_logs.items()}
  return found


def table(ways: Mapping[str, Mapping[str, Any]]) -> str:
  """The costs as a table in Markdown: the mean and each seed."""
  titles = 'steps', 'tokens', 'seconds', 'tokens / plain', 'seconds / plain'
  lines = [f'| | {" | ".join(titles)} | last pass@1 |']
  lines.append('|---' * 7 + '|')
  for way, found in ways.items():
    cells = []
    for name in ('steps', *_COSTS):
      each = [_said(run['cost'][name]) for run in found['runs']]
      cells.append(f'{_said_interval(found["mean"][name])} ({", ".join(each)})')
    of_plain = found.get('of_plain') or {}
    cells += [_said_interval(of_plain.get(name)) for name in _COSTS]
    cells.append(', '.join(f'{last["pass@1"]:.3f}' for last in found['last']))
    lines.append(f'| {way} | {" | ".join(cells)} |')
  return '\n'.join(lines)


def _said(value: float | None) -> str:
  if value is None:
    return 'not reached'
  return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def _said_interval(found: Mapping[str, float] | None) -> str:
  if found is None:
    return '-'
  if 'low' not in found:
    return _said(found['mean'])
  low, high = _said(found['low']), _said(found['high'])
  return f'{_said(found["mean"])} [{low}, {high}]'


def _is_done(workdir: pathlib.Path, goal: float) -> bool:
  """Whether a run has reached the goal, or its last step."""
  if (workdir / 'summary.json').exists():
    return True
  if not (workdir / 'metrics.jsonl').exists():
    return False
  rows = metrics.read_metrics(str(workdir))
  return any(row.get('eval/pass@1', 0) >= goal for row in rows)


@contextlib.contextmanager
def _stopping(goal: float) -> Iterator[None]:
  """Ends a run before the first rollout after it has reached the goal.

  Its metrics say how long each step compiled.
  """
  evaluate, sample = loop.TrainingLoop.evaluate, collect.Collector.sample
  make_update = update.Trainer.update
  reached: list[float] = []

  def evaluated(self: loop.TrainingLoop, split: str, *args: Any) -> Any:
    with mock.patch.dict(_compiled, {'counts': False}):
      measured, generations = evaluate(self, split, *args)
    if split == 'validation' and measured['pass@1'] >= goal:
      reached.append(measured['pass@1'])
    return measured, generations

  def sampled(self: collect.Collector, *args: Any) -> Any:
    if reached:
      raise _Reached
    return sample(self, *args)

  def updated(self: update.Trainer, experience: collect.Experience) -> Any:
    step_metrics = make_update(self, experience)
    step_metrics['time/compile_s'] = _compiled['seconds']
    _compiled['seconds'] = 0.0
    return step_metrics

  with (
    mock.patch.object(update.Trainer, 'update', updated),
    mock.patch.object(loop.TrainingLoop, 'evaluate', evaluated),
    mock.patch.object(collect.Collector, 'sample', sampled),
  ):
    yield


_compiled: dict[str, Any] = {'seconds': 0.0, 'counts': True}


def _count_compiling(event: str, duration_secs: float, **kwargs: Any) -> None:
  del kwargs
  if event.startswith(_COMPILING) and _compiled['counts']:
    _compiled['seconds'] += duration_secs


jax.monitoring.register_event_duration_secs_listener(_count_compiling)


if __name__ == '__main__':
  lifecycle.reexec_with_malloc_settings()  # as a run has them
  lifecycle.enable_compilation_cache()
  main()
