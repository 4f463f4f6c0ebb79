"""How fast the reward pool judges answers; prints JSON.

  python -m rlzero.benchmarks.verdicts [--workers=2] [--number=4000]

`numbers_per_s` is for short numeric answers in R1-Zero's tags; `classes_s` is
the time to sort 64 different formulas into classes, as cons@64 does.
"""

import argparse
import json
import time

from rlzero.scoring import reward_pool
from rlzero.tasks.datasets import benchmarks, gsm8k


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workers', type=int, default=2)
  parser.add_argument('--number', type=int, default=4000)
  flags = parser.parse_args()
  print(json.dumps(measure(flags.workers, flags.number), indent=1))


def measure(workers: int, number: int) -> dict[str, float]:
  """Verdicts a second, and seconds for the classes of 64 formulas."""
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
    began = time.monotonic()
    verdicts = pool.score(requests)
    numbers_s = time.monotonic() - began
    if not all(v.correct for v in verdicts):
      raise RuntimeError('A right answer was judged wrong: this is a fault.')
    began = time.monotonic()
    found = pool.classes('formula', formulas)
    classes_s = time.monotonic() - began
  return {
    'numbers_per_s': number / numbers_s,
    'classes_s': classes_s,
    'classes': len(set(found)),
  }


if __name__ == '__main__':
  main()
