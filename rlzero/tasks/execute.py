"""Runs programs that a model wrote against tests.

Each run is a process of its own with limits of time, memory and output, in a
network namespace without a network where the kernel allows one, and under an
audit hook that refuses sockets, processes, native libraries and writing. The
expected output never reaches it. That stops accidents and easy cheats; it is
no wall against someone who means harm.
"""

import decimal
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

DEADLINE_S = 300.0  # for all tests of a program together
_MAX_OUTPUT = 64 << 20  # bytes
_BLOCK = re.compile(r'```(?:python3?|py)?[ \t]*\n(.*?)```', re.DOTALL)
_NUMBERS = 1000  # tokens of a line that are compared as numbers

_GUARD = r"""
import os, resource, sys
path, function, memory, seconds, size = sys.argv[1:]
for kind, most in (
  (resource.RLIMIT_AS, int(memory)), (resource.RLIMIT_CPU, int(seconds)),
  (resource.RLIMIT_FSIZE, int(size)), (resource.RLIMIT_CORE, 0)):
  resource.setrlimit(kind, (most, most))
import builtins, json, runpy
try:
  import ctypes
  ctypes.CDLL(None).unshare(0x10000000 | 0x40000000)  # user, network
except Exception:
  pass
write = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
def hook(event, args):
  if event.startswith(('socket.', 'subprocess.', 'ctypes.dlopen', 'os.fork',
      'os.exec', 'os.spawn', 'os.posix_spawn', 'os.system', 'os.kill',
      'os.remove', 'os.rename', 'os.rmdir', 'os.truncate', 'os.chmod',
      'os.link', 'os.symlink', 'os.mkdir', 'shutil.', 'pty.')):
    raise ImportError(event + ' is not allowed')
  if event == 'open' and isinstance(args[2], int) and args[2] & write:
    raise PermissionError('writing is not allowed')
sys.setrecursionlimit(100_000)
sys.argv = [path]
if function:
  calls, out = json.load(sys.stdin), os.dup(1)
  os.dup2(os.open(os.devnull, os.O_RDWR), 1)
sys.addaudithook(hook)
names = runpy.run_path(path, run_name='solution' if function else '__main__')
if function:
  call = getattr(names['Solution'](), function) if 'Solution' in names else (
    names[function])
  reply = json.dumps([call(*arguments) for arguments in calls])
  sys.stdout.flush()
  os.write(out, reply.encode())
"""


class Test(NamedTuple):
  """What goes in and what must come out, as text.

  For a function the input is a JSON value a line, its arguments, and the
  output a JSON value.
  """

  input: str
  output: str


def program(text: str) -> str | None:
  """The last block of Python in a completion, or None."""
  found = _BLOCK.findall(text)
  return found[-1] if found else None


def passes(
  source: str,
  tests: Sequence[Test],
  function: str = '',
  limit_s: float = 6.0,
  memory: int = 1 << 30,
) -> bool:
  """Whether a program passes all tests; it stops at the first that fails.

  Args:
    source: Python.
    tests: at least one.
    function: of the program, or of its class Solution, that is called; empty
      for a program that reads standard input and writes standard output.
    limit_s: seconds a test.
    memory: bytes of address space.

  Raises:
    ValueError: no tests.
  """
  if not tests:
    raise ValueError('A program without tests cannot be judged; give one.')
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, 'program.py')
    with open(path, 'w', encoding='utf-8') as file:
      file.write(source)
    if not function:
      return all(
        _same_text(_run(path, '', t.input, limit_s, memory), t.output)
        for t in tests
      )
    calls = [[json.loads(v) for v in t.input.splitlines()] for t in tests]
    wanted = [json.loads(test.output) for test in tests]
    # All calls in one process: starting it costs more than most of them.
    found = _run(
      path, function, json.dumps(calls), limit_s * len(tests), memory
    )
    try:
      return found is not None and json.loads(found) == wanted
    except ValueError:
      return False


def _run(
  path: str, function: str, given: str, limit_s: float, memory: int
) -> str | None:
  """What the program writes, or None if it fails."""
  limits = map(str, (memory, int(limit_s) + 1, _MAX_OUTPUT))
  with tempfile.TemporaryFile() as output:
    try:
      done = subprocess.run(
        [sys.executable, '-I', '-c', _GUARD, path, function, *limits],
        input=given.encode(),
        stdout=output,
        stderr=subprocess.DEVNULL,
        cwd=os.path.dirname(path),
        env={'PATH': os.defpath, 'PYTHONHASHSEED': '0'},
        timeout=limit_s,
      )
    except subprocess.TimeoutExpired:
      return None
    output.seek(0)
    written = output.read(_MAX_OUTPUT)
  return None if done.returncode else written.decode(errors='replace')


def _same_text(found: str | None, wanted: str) -> bool:
  """Line by line, without the space around; numbers by their value."""
  if found is None:
    return False
  lines = [text.strip().splitlines() for text in (found, wanted)]
  return len(lines[0]) == len(lines[1]) and all(
    _same_line(a.split(), b.split()) for a, b in zip(*lines, strict=True)
  )


def _same_line(found: list[str], wanted: list[str]) -> bool:
  if found == wanted:
    return True
  if len(found) != len(wanted) or len(found) > _NUMBERS:
    return False
  try:
    return all(
      a == b or decimal.Decimal(a) == decimal.Decimal(b)
      for a, b in zip(found, wanted, strict=True)
    )
  except decimal.InvalidOperation:
    return False
