"""Whether two evaluations differ by more than noise, paired by problem."""

import json
from typing import Any

from rlzero.evaluation import statistics
from rlzero.rollout.sampling import Sampling
from rlzero.runtime.metrics import interval_text

# What makes two results incomparable, or at least another question.
_SETTINGS = ('template', 'split', *Sampling().about())


def read(files: str) -> tuple[dict[str, Any], dict[str, Any]]:
  """The metrics of A.json,B.json, by benchmark.

  Raises:
    FileNotFoundError: one of them is not there.
    ValueError: not two files, or one that an evaluation did not write.
  """
  paths = [path for path in files.split(',') if path]
  if len(paths) != 2:
    raise ValueError(
      f'--compare={files} names {len(paths)} files; give two, as A.json,B.json.'
    )
  first, second = map(_by_benchmark, paths)
  return first, second


def compare(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
  """Compares two evaluations, benchmark by benchmark.

  Raises:
    ValueError: they have no benchmark, or too few problems, in common.
  """
  if len(first) == len(second) == 1:  # of whatever name
    second = dict.fromkeys(first, *second.values())
  shared = [name for name in first if name in second]
  if not shared:
    raise ValueError(
      f'The evaluations have no benchmark in common: {", ".join(first)} and '
      f'{", ".join(second)}; compare files of the same suite.'
    )
  return {name: _one(first[name], second[name]) for name in shared}


def text(result: dict[str, Any]) -> str:
  """The comparison in sentences."""
  lines = []
  for name, found in result.items():
    interval = interval_text(found['interval'], '+.3f')
    verdict = (
      'no larger than its noise' if found['is_noise'] else 'larger than noise'
    )
    lines.append(
      f'{name}: pass@1 {found["first"]:.3f} -> {found["second"]:.3f}, '
      f'difference {found["difference"]:+.3f} {interval}, '
      f'p = {found["p_value"]:.3f}, {verdict} '
      f'({found["num_problems"]} problems in common)'
    )
    lines += [f'  but {what}' for what in found['settings_that_differ']]
  return '\n'.join(lines)


def _one(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
  one, two = (f['pass@1_by_problem'] for f in (first, second))
  uids = [uid for uid in one if uid in two]
  found = statistics.paired_difference(
    [one[u] for u in uids], [two[u] for u in uids]
  )
  return {
    'first': sum(one[u] for u in uids) / len(uids),
    'second': sum(two[u] for u in uids) / len(uids),
    'difference': found.mean,
    'interval': list(found.interval),
    'p_value': found.p_value,
    'is_noise': found.is_noise,
    'num_problems': found.num_problems,
    'settings_that_differ': [
      f'{name} is {first[name]!r} in the first and {second[name]!r} in the '
      'second'
      for name in _SETTINGS
      if name in first and name in second and first[name] != second[name]
    ],
  }


def _by_benchmark(path: str) -> dict[str, Any]:
  with open(path, encoding='utf-8') as file:
    try:
      metrics = json.load(file)
      found = metrics.get('benchmarks') or {
        metrics.get('task', 'evaluation'): metrics
      }
      for one in found.values():
        one['pass@1_by_problem'].items()
    except (ValueError, KeyError, AttributeError, TypeError) as error:
      raise ValueError(
        f'{path} holds no metrics by problem; give a JSON file that '
        'rlzero.evaluate or rlzero.grpo wrote.'
      ) from error
  return found
