"""The paper's programming benchmarks: LiveCodeBench and Codeforces.

Answers are Python programs, run against the problem's tests; see `execute`.
"""

import base64
import dataclasses
import json
import pickletools
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rlzero.runtime import files
from rlzero.tasks import base, execute, verifiers
from rlzero.tasks.datasets import hub

_STDIN = (
  'Write a {name} program that solves the problem. It reads standard input '
  'and writes standard output. Enclose the program in ```{fence} and ```.'
)
_FUNCTION = (
  'Complete the Python code so that it solves the problem. Enclose the whole '
  'program in ```python and ```.\n\n```python\n{starter}\n```'
)
_NAMES = {'python': 'Python', 'cpp': 'C++'}
# What the pickle of a string is made of.
_PLAIN_STEPS = frozenset(
  ('PROTO', 'FRAME', 'MEMOIZE', 'BINPUT', 'PUT', 'LONG_BINPUT', 'STOP')
  + ('UNICODE', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8')
)
_MAX_TESTS = 1 << 30  # bytes of a problem's private tests


@dataclasses.dataclass(frozen=True)
class _Programs(verifiers.Programs):
  """The judge and the folder that the benchmarks share."""

  data_dir: str = '~/tensorflow_datasets'  # folder of TFDS datasets

  def tests(self, facts: Mapping[str, Any]) -> list[execute.Test]:
    """The tests of a target; some may be private, and packed."""
    found = super().tests(facts)
    if private := facts.get('private'):
      found += _tests(_unpacked(private))
    return found


@dataclasses.dataclass(frozen=True)
class LiveCodeBench(_Programs):
  """LiveCodeBench (arXiv 2403.07974), problems of a range of months.

  The default is the paper's, August 2024 to January 2025.
  """

  first: str = '2024-08'  # month
  last: str = '2025-01'  # month
  name: str = 'livecodebench'

  def __post_init__(self):
    super().__post_init__()
    if self.language != 'python':
      raise ValueError(
        f'LiveCodeBench.language is {self.language!r}, but its starters are '
        "Python; set it to 'python'."
      )

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
      ask = _FUNCTION.format(starter=starter) if starter else _ask()
      yield base.Example(
        str(hub.column(row, 'question_id')),
        f'{hub.column(row, "question_content")}\n\n{ask}',
        files.to_json(
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

  time_scale: float = 3.0  # Python's limit over the problem's; not that of C++
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
      scale = self.time_scale if self.language == 'python' else 1.0
      seconds = float(hub.column(row, 'time_limit') or 2)
      yield base.Example(
        str(hub.column(row, 'id')),
        '\n\n'.join([*parts, _ask(self.language)]),
        files.to_json(
          {
            'tests': [(test['input'], test['output']) for test in tests],
            'function': '',
            'limit_s': scale * seconds,
            'memory': int(hub.column(row, 'memory_limit') or 256) << 20,
            'rating': int(hub.column(row, 'rating')),
          }
        ),
      )


def _ask(language: str = 'python') -> str:
  return _STDIN.format(name=_NAMES[language], fence=language)


def _tests(text: str) -> list[execute.Test]:
  """Tests from the JSON of LiveCodeBench."""
  return [execute.Test(t['input'], t['output']) for t in json.loads(text)]


def _unpacked(text: str) -> str:
  """JSON that may be in a pickle, compressed and in base64.

  The pickle is not loaded: its one string is read.

  Raises:
    ValueError: it is not of that kind, or too large.
  """
  if text.lstrip().startswith('['):
    return text
  opened = zlib.decompressobj()
  plain = opened.decompress(base64.b64decode(text), _MAX_TESTS)
  if not opened.eof:
    raise ValueError(
      f'Private tests have more than {_MAX_TESTS} bytes or end too early; '
      'download the data set again.'
    )
  steps = [(code.name, value) for code, value, _ in pickletools.genops(plain)]
  strings = [
    str(value)
    for name, value in steps
    if name.endswith('UNICODE') or name.endswith('UNICODE8')
  ]
  others = {name for name, _ in steps} - _PLAIN_STEPS
  if others or len(strings) != 1:
    raise ValueError(
      'Private tests are a pickle of something else than one string '
      f'({", ".join(sorted(others)) or len(strings)}); such a pickle may be '
      'harmful. Download the data set from its own address.'
    )
  return strings[0]
