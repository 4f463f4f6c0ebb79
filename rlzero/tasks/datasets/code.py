"""The paper's programming benchmarks: LiveCodeBench and Codeforces.

Answers are Python programs, run against the problem's tests; see `execute`.
"""

import base64
import dataclasses
import io
import json
import pickle
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from rlzero.tasks import base, execute
from rlzero.tasks.datasets import hub

_STDIN = (
  'Write a Python program that solves the problem. It reads standard input '
  'and writes standard output. Enclose the program in ```python and ```.'
)
_FUNCTION = (
  'Complete the Python code so that it solves the problem. Enclose the whole '
  'program in ```python and ```.\n\n```python\n{starter}\n```'
)


@dataclasses.dataclass(frozen=True)
class _Programs:
  """What tasks of programs have in common: their judge."""

  data_dir: str = '~/tensorflow_datasets'  # folder of TFDS datasets

  def extract(self, text: str) -> str | None:
    return execute.program(text)

  def verify(self, answer: str, target: str) -> bool:
    """Whether the program passes every test."""
    facts = json.loads(target)
    tests = [execute.Test(*test) for test in facts['tests']]
    if private := facts.get('private'):
      tests += _tests(_unpacked(private))
    return execute.passes(
      answer,
      tests,
      facts['function'],
      facts['limit_s'],
      facts['memory'],
    )

  def same(self, first: str, second: str) -> bool:
    """The same text; that two programs do the same is not decided here."""
    return first.strip() == second.strip()

  def count_tries(self, text: str) -> int:
    return text.count('```python')


@dataclasses.dataclass(frozen=True)
class LiveCodeBench(_Programs):
  """LiveCodeBench (arXiv 2403.07974), problems of a range of months.

  The default is the paper's, August 2024 to January 2025.
  """

  first: str = '2024-08'  # month
  last: str = '2025-01'  # month
  name: str = 'livecodebench'

  def examples(self, split: str) -> list[base.Example]:
    """The problems; `hub.examples` says what may go wrong."""
    hub.check_split(self.name, split)
    return hub.examples(
      f'{self.name}_{self.first}_{self.last}',
      self.data_dir,
      'livecodebench/code_generation_lite',
      ['test*.jsonl'],
      self._convert,
    )

  def _convert(self, rows: Iterable[hub.Row]) -> Iterator[base.Example]:
    for row in rows:
      month = str(hub.column(row, 'contest_date'))[:7]
      if not self.first <= month <= self.last:
        continue
      starter = hub.column(row, 'starter_code')
      facts = json.loads(hub.column(row, 'metadata') or '{}')
      ask = _FUNCTION.format(starter=starter) if starter else _STDIN
      yield base.Example(
        str(hub.column(row, 'question_id')),
        f'{hub.column(row, "question_content")}\n\n{ask}',
        json.dumps(
          {
            'tests': _tests(hub.column(row, 'public_test_cases')),
            # As it comes, packed: unpacked it is many times as large.
            'private': hub.column(row, 'private_test_cases'),
            'function': facts.get('func_name') or '',
            'limit_s': 6.0,  # as the benchmark's own judge allows
            'memory': 4 << 30,
          }
        ),
      )


@dataclasses.dataclass(frozen=True)
class Codeforces(_Programs):
  """Codeforces problems with a rating, judged by their official tests.

  Left out are problems that need a checker of their own, that are
  interactive, or whose tests are not complete.
  """

  time_scale: float = 3.0  # Python's limit over the problem's
  name: str = 'codeforces'

  def examples(self, split: str) -> list[base.Example]:
    """The problems; `hub.examples` says what may go wrong."""
    hub.check_split(self.name, split)
    return hub.examples(
      self.name,
      self.data_dir,
      'open-r1/codeforces',
      ['data/test-*.parquet'],
      self._convert,
    )

  def rating(self, target: str) -> int:
    """The problem's rating, from which that of a contestant follows."""
    return json.loads(target)['rating']

  def _convert(self, rows: Iterable[hub.Row]) -> Iterator[base.Example]:
    for row in rows:
      tests = hub.column(row, 'official_tests')
      if (
        not tests
        or not hub.column(row, 'official_tests_complete')
        or not hub.column(row, 'rating')
        or hub.column(row, 'generated_checker')
        or hub.column(row, 'input_mode') != 'stdio'
      ):
        continue
      parts = [
        hub.column(row, 'title'),
        hub.column(row, 'description'),
        f'Input\n{hub.column(row, "input_format")}',
        f'Output\n{hub.column(row, "output_format")}',
      ]
      for shown in hub.column(row, 'examples') or []:
        parts.append(f'Example\n{shown["input"]}\n->\n{shown["output"]}')
      if note := hub.column(row, 'note'):
        parts.append(f'Note\n{note}')
      seconds = float(hub.column(row, 'time_limit') or 2)
      yield base.Example(
        str(hub.column(row, 'id')),
        '\n\n'.join([*parts, _STDIN]),
        json.dumps(
          {
            'tests': [(test['input'], test['output']) for test in tests],
            'function': '',
            'limit_s': self.time_scale * seconds,
            'memory': int(hub.column(row, 'memory_limit') or 256) << 20,
            'rating': int(hub.column(row, 'rating')),
          }
        ),
      )


def _tests(text: str) -> list[execute.Test]:
  """Tests from the JSON of LiveCodeBench."""
  return [execute.Test(t['input'], t['output']) for t in json.loads(text)]


def _unpacked(text: str) -> str:
  """JSON that may be pickled, compressed and in base64."""
  if text.lstrip().startswith('['):
    return text
  found = _Plain(io.BytesIO(zlib.decompress(base64.b64decode(text)))).load()
  return found if isinstance(found, str) else json.dumps(found)


class _Plain(pickle.Unpickler):
  """Reads a pickle of plain values; one that names a class may be harmful."""

  def find_class(self, module: str, name: str) -> Any:
    raise pickle.UnpicklingError(f'{module}.{name} is not a plain value.')
