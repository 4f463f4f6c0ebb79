"""Measures constant answers over the generators of reasoning-gym, as JSON.

    python -m rlzero.benchmarks.constant_answers > constant_answers.json

Each line is a generator with the answer that is right for most of its
problems; see `tasks.constants.most_accepted`. Names may follow, to measure
those alone.
"""

import importlib.metadata
import signal
import sys

from rlzero.runtime import files
from rlzero.tasks import constants, procedural

NUM_PROBLEMS = 50
_PATIENCE_S = 20  # for a generator


def main(names: list[str]) -> None:
  """Prints what was measured."""
  from reasoning_gym.factory import DATASETS

  def stop(*_: object) -> None:
    raise TimeoutError(f'took more than {_PATIENCE_S} s')

  signal.signal(signal.SIGALRM, stop)
  found = {}
  for name in names or sorted(DATASETS):
    signal.alarm(_PATIENCE_S)
    try:
      generator = procedural.make_generator(
        name, {}, 0, NUM_PROBLEMS, check=False
      )
      entries = [generator[index] for index in range(NUM_PROBLEMS)]
      found[name] = constants.most_accepted(name, generator, entries)
    except Exception as error:  # data that is not installed, or refused
      found[name] = {'unmeasured': f'{type(error).__name__}: {error}'[:200]}
    finally:
      signal.alarm(0)
    print(name, found[name], file=sys.stderr, flush=True)
  version = importlib.metadata.version('reasoning-gym')
  table = {
    'reasoning_gym': version,
    'problems': NUM_PROBLEMS,
    'generators': found,
  }
  print(files.to_json(table, indent=1))


if __name__ == '__main__':
  main(sys.argv[1:])
