"""How fast the reward pool judges answers; prints JSON.

  python -m rlzero.benchmarks.verdicts [--workers=2] [--number=10000]

`numbers` are short numeric answers in R1-Zero's tags; `classes` sorts 64
different formulas into classes, as cons@64 does. `wall_s` depends on what else
the machine does. `cpu_s` hardly does: it is the CPU time of this process and
of the workers, so `per_cpu_second` is what one core judges alone. Linux only.
"""

import argparse
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from rlzero.runtime import files
from rlzero.scoring import reward_pool
from rlzero.tasks.datasets import benchmarks, gsm8k

_TICKS = os.sysconf('SC_CLK_TCK')


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--workers', type=int, default=2)
  parser.add_argument('--number', type=int, default=10_000)
  flags = parser.parse_args()
  print(files.to_json(measure(flags.workers, flags.number), indent=1))


def measure(workers: int, number: int) -> dict[str, Any]:
  """Seconds of verdicts on numbers and of the classes of 64 formulas.

  Raises:
    RuntimeError: a verdict or a class is wrong.
  """
  requests = [
    reward_pool.Request(
      'number',
      f'<think> so {i} </think> <answer> {i} apples </answer>',
      str(i),
    )
    for i in range(number)
  ]
  formulas = [
    rf'\frac{{x^{i % 7} + {i}}}{{\sqrt{{{i + 2}}}}}' for i in range(64)
  ]
  tasks = {'number': gsm8k.GSM8K(), 'formula': benchmarks.MATH500()}
  with reward_pool.RewardPool(tasks, 'r1_zero', workers) as pool:
    pool.score(requests[:100])
    verdicts, numbers = _timed(lambda: pool.score(requests))
    found, classes = _timed(lambda: pool.classes('formula', formulas))
  if not all(v.correct for v in verdicts):
    raise RuntimeError('A right answer was judged wrong: this is a fault.')
  if len(set(found)) != len(formulas):
    raise RuntimeError('Different formulas share a class: this is a fault.')
  return {
    'workers': workers,
    'load': os.getloadavg()[0],
    'numbers': numbers | _rates(numbers, number),
    'classes': classes | {'formulas': len(formulas)},
  }


def _timed(function: Callable[[], Sequence]) -> tuple[Sequence, dict]:
  began, before = time.monotonic(), _cpu_s()
  result = function()
  return result, {
    'wall_s': round(time.monotonic() - began, 3),
    'cpu_s': round(_cpu_s() - before, 3),
  }


def _rates(seconds: dict[str, float], number: int) -> dict[str, float]:
  return {
    'per_second': round(number / seconds['wall_s']),
    'per_cpu_second': round(number / seconds['cpu_s']),
    'cpu_s_per_verdict': seconds['cpu_s'] / number,
  }


def _cpu_s() -> float:
  """CPU time of this process and of its children that are alive."""
  total = time.process_time()
  for children in pathlib.Path('/proc/self/task').glob('*/children'):
    for process in children.read_text().split():
      stat = pathlib.Path(f'/proc/{process}/stat').read_text()
      ticks = stat.rsplit(')', 1)[1].split()[11:13]  # user and system
      total += sum(map(int, ticks)) / _TICKS
  return total


if __name__ == '__main__':
  main()
