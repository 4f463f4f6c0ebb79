"""How many programs a second the sandbox judges; prints JSON.

  python -m rlzero.benchmarks.programs [--workers=2] [--programs=40]

The programs are trivial, so what is timed is the sandbox itself. Each is judged
by one test; a worker is a thread that waits for its process.
"""

import argparse
import concurrent.futures
import os
import resource
import statistics
import time

from rlzero.runtime import files
from rlzero.tasks import execute, isolation
from rlzero.tasks.execute import Test

_ROUNDS = 5
_TRIVIAL = (
  ('print(2 * int(input()))', [Test('3', '6')], ''),
  ('import sys\nprint(sum(map(int, sys.stdin)))', [Test('1\n2', '3')], ''),
  ('def twice(x): return [2 * i for i in x]', [Test('[1]', '[2]')], 'twice'),
)


def measure(using: str, workers: int, programs: int) -> dict[str, float]:
  """Programs a second, the median of rounds, and the seconds of one.

  Args:
    using: one of `isolation.MECHANISMS`.
    workers: programs judged at a time.
    programs: in each round.
  """

  def one(index: int) -> float:
    source, tests, function = _TRIVIAL[index % len(_TRIVIAL)]
    start = time.perf_counter()
    found = execute.judge(source, tests, function, using=using)
    if found.verdict != execute.Verdict.ACCEPTED:
      raise RuntimeError(f'A right program was judged {found}.')
    return time.perf_counter() - start

  one(0)
  rates, times = [], []
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    for _ in range(_ROUNDS):
      start = time.perf_counter()
      times += pool.map(one, range(programs))
      rates.append(programs / (time.perf_counter() - start))
  return {
    'programs_per_s': statistics.median(rates),
    'program_s': statistics.median(times),
  }


def main() -> None:
  """Measures each mechanism that works here."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workers', type=int, default=2)
  parser.add_argument('--programs', type=int, default=40)
  args = parser.parse_args()
  found = {'cores': os.cpu_count(), 'load': os.getloadavg()[0]}
  for name in isolation.MECHANISMS:
    if why := isolation.fault(name):
      found[name] = {'fault': why}
      continue
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found[name] = measure(name, args.workers, args.programs)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # Bubblewrap's children are not waited for, so they do not count.
    if name == 'landlock':
      found[name]['cpu_s'] = used_s / (_ROUNDS * args.programs + 1)
  print(files.to_json(found, indent=2))


if __name__ == '__main__':
  main()
