"""Judges programs that a model wrote, by tests.

Programs run in the sandbox of `isolation`. What is expected of them never
enters it: input goes in, output comes out, and the comparison is made here.
"""

import dataclasses
import decimal
import enum
import functools
import importlib.util
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rlzero.tasks import base, fences, harness, isolation

DEADLINE_S = 300.0  # for all tests of a program together
_MAX_OUTPUT = 64 << 20  # bytes
_OVERHEAD = 64 << 20  # bytes of address space that an interpreter takes
_STACK = 256 << 20  # bytes
_COMPILERS = ('g++', 'clang++', 'c++')
# Its own memory and time: they are not the program's.
_COMPILING = isolation.Limits(wall_s=60, memory=2 << 30, processes=True)

program = fences.program


class Verdict(enum.StrEnum):
  """How a program did."""

  ACCEPTED = base.ACCEPTED
  WRONG = 'wrong'  # an answer
  TIME = 'time'  # more than it may take
  MEMORY = 'memory'  # more than it may take
  CRASH = 'crash'  # it failed, or is no program
  REFUSED = 'refused'  # it was not run; the reason says why


class Judgement(NamedTuple):
  """A verdict, and the reason in a few words."""

  verdict: Verdict
  reason: str


class Test(NamedTuple):
  """A test: what goes in and what must come out, as text.

  For a function the input is a JSON value a line, its arguments, and the
  output a JSON value.
  """

  input: str
  output: str


def judge(
  source: str,
  tests: Sequence[Test],
  function: str = '',
  limit_s: float = 6.0,
  memory: int = 1 << 30,
  *,
  language: str = 'python',
  using: str | None = None,
  allow_unsandboxed: bool = False,
) -> Judgement:
  """Runs a program against tests and stops at the first that fails.

  Args:
    source: the program.
    tests: at least one.
    function: of the program, or of its class Solution, that is called; empty
      for a program that reads standard input and writes standard output.
    limit_s: seconds a test.
    memory: bytes.
    language: 'python' or 'cpp'.
    using: one of `isolation.MECHANISMS` instead of the first that works.
    allow_unsandboxed: run it with limits alone where no mechanism works.

  Raises:
    ValueError: no tests, an unknown language, or a function in C++.
  """
  if not tests:
    raise ValueError('A program without tests cannot be judged; give one.')
  if language not in fences.LANGUAGES or (function and language != 'python'):
    raise ValueError(
      f'A program in {language!r} with function {function!r} cannot be judged; '
      f'the languages are {", ".join(fences.LANGUAGES)}, and functions are '
      'called in Python alone.'
    )
  how = {'using': using, 'allow_unsandboxed': allow_unsandboxed}
  code = source.encode(errors='replace')
  if language == 'cpp':
    compiled = _compiled(code, how)
    if isinstance(compiled, Judgement):
      return compiled
    command, files = ['program'], {'program': compiled}
  else:
    command = [isolation.PYTHON, '-s', '-S', '-B', 'harness.py', 'program.py']
    command += [function, str(limit_s)]
    files = {'harness.py': _harness(), 'program.py': code}
    if b'numpy' in code:
      how['readable'] = _packages()
  limits = isolation.Limits(
    wall_s=limit_s, memory=memory + _OVERHEAD, stack=min(_STACK, memory)
  )
  if function:
    return _judge_function(command, files, tests, limits, how)
  for test in tests:
    result = isolation.run(
      command,
      test.input.encode(errors='replace'),
      dataclasses.replace(limits, output=_room(test.output)),
      files=files,
      **how,
    )
    if result.status != 'ok':
      return _failed(result)
    if not same_text(result.output.decode(errors='replace'), test.output):
      return Judgement(Verdict.WRONG, 'The output is another one.')
  return Judgement(Verdict.ACCEPTED, '')


def run(
  source: str, tests: Sequence[Test], *args: Any, **named: Any
) -> Verdict:
  """The verdict of `judge`, which takes the same arguments."""
  return judge(source, tests, *args, **named).verdict


def passes(
  source: str, tests: Sequence[Test], *args: Any, **named: Any
) -> bool:
  """Whether `judge`, which takes the same arguments, accepts a program."""
  return run(source, tests, *args, **named) == Verdict.ACCEPTED


def same_text(found: str, wanted: str) -> bool:
  """Whether an output is the expected one, as LiveCodeBench compares them.

  Line by line, without the space around; numbers by their exact value.
  """
  lines = [text.strip().splitlines() for text in (found, wanted)]
  return len(lines[0]) == len(lines[1]) and all(
    _same_line(a.split(), b.split()) for a, b in zip(*lines, strict=True)
  )


def _same_line(found: list[str], wanted: list[str]) -> bool:
  if found == wanted:
    return True
  if len(found) != len(wanted):
    return False
  try:
    return all(
      a == b or decimal.Decimal(a) == decimal.Decimal(b)
      for a, b in zip(found, wanted, strict=True)
    )
  except decimal.InvalidOperation:
    return False


def _judge_function(
  command: Sequence[str],
  files: Mapping[str, bytes],
  tests: Sequence[Test],
  limits: isolation.Limits,
  how: Mapping[str, Any],
) -> Judgement:
  # All calls in one process: starting it costs more than most of them.
  calls = [
    [json.loads(v) for v in test.input.split('\n') if v.strip()]
    for test in tests
  ]
  wanted = [json.loads(test.output) for test in tests]
  result = isolation.run(
    command,
    ''.join(json.dumps(call) + '\n' for call in calls).encode(),
    dataclasses.replace(
      limits,
      wall_s=limits.wall_s * len(tests),
      output=_room(*(t.output for t in tests)),
    ),
    files=files,
    **how,
  )
  if result.status == 'refused':
    return _failed(result)
  # A line that is not ended is not a reply.
  *replies, _ = result.output.split(b'\n')
  for reply, value in zip(replies, wanted, strict=False):
    if not _is_reply(reply, value):
      return Judgement(Verdict.WRONG, 'A value is another one.')
  if result.status != 'ok':
    return _failed(result)
  if len(replies) != len(wanted):
    return Judgement(
      Verdict.CRASH,
      f'{len(replies)} values came of {len(wanted)} calls: it ended too early '
      'or wrote where it should not.',
    )
  return Judgement(Verdict.ACCEPTED, '')


def _is_reply(reply: bytes, value: Any) -> bool:
  try:
    return json.loads(reply) == [value]
  except (ValueError, RecursionError):
    return False


def _failed(result: isolation.Result) -> Judgement:
  status = 'crash' if result.status == 'output' else result.status
  return Judgement(Verdict(status), result.reason)


def _room(*outputs: str) -> int:
  """Bytes that a program may write: a right one needs no more."""
  return min(_MAX_OUTPUT, (1 << 20) + 16 * sum(map(len, outputs)))


@functools.cache
def _harness() -> bytes:
  with open(harness.__file__, 'rb') as file:
    return file.read()


@functools.cache
def _packages() -> tuple[str, ...]:
  """Folders of NumPy, which programs may import."""
  spec = importlib.util.find_spec('numpy')
  assert spec and spec.origin  # the package needs it
  folder = os.path.dirname(spec.origin)
  libraries = os.path.join(os.path.dirname(folder), 'numpy.libs')
  return folder, *([libraries] if os.path.isdir(libraries) else [])


def _compiler() -> str | None:
  """A C++ compiler of the system, the only ones that the sandbox shows."""
  return next(
    filter(None, (shutil.which(n, path='/usr/bin:/bin') for n in _COMPILERS)),
    None,
  )


def _compiled(source: bytes, how: Mapping[str, Any]) -> bytes | Judgement:
  """The executable, or why there is none."""
  if not _compiler():
    return Judgement(
      Verdict.REFUSED,
      'There is no C++ compiler in /usr/bin; install one (apt-get install '
      'g++), or ask for programs in Python.',
    )
  script = f'{_compiler()} -O2 -std=gnu++17 -x c++ - -o program && cat program'
  result = isolation.run(['/bin/sh', '-c', script], source, _COMPILING, **how)
  if result.status == 'ok':
    return result.output
  if result.status == 'refused':
    return _failed(result)
  return Judgement(Verdict.CRASH, f'It does not compile: {result.reason}')
