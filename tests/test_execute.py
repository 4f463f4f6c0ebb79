"""Programs against their tests, and what they may not do."""

import time

import pytest

from rlzero.tasks import execute
from rlzero.tasks.execute import Test as Case

_DOUBLE = 'print(2 * int(input()))'


def test_standard_input_and_output():
  tests = [Case('3\n', '6\n'), Case('5', '10.0')]
  assert execute.passes(_DOUBLE, tests)
  assert not execute.passes(_DOUBLE, [*tests, Case('1', '3')])
  # Space at the ends of lines and of the output is nothing; lines are.
  assert execute.passes('print("a  b \\n c\\n")', [Case('', 'a b\nc')])
  assert not execute.passes('print("a b c")', [Case('', 'a b\nc')])


def test_functions_and_the_class_solution():
  tests = [Case('[1, 2]\n3', '[1, 2, 3]'), Case('[]\n0', '[0]')]
  free = 'def join(xs, x):\n  print("noise")\n  return (*xs, x)'
  assert execute.passes(free, tests, 'join')
  method = 'class Solution:\n  def join(self, xs, x): return xs + [x]'
  assert execute.passes(method, tests, 'join')
  assert not execute.passes(free, tests, 'other')
  assert not execute.passes(free, [*tests, Case('[]\n1', '[2]')], 'join')


@pytest.mark.parametrize(
  'source',
  [
    'import sys; print(2); sys.exit(1)',
    'x = bytearray(3 << 30); print(2)',
    'import socket; socket.socket(); print(2)',
    'import os; os.system("echo 2")',
    'import subprocess; print(subprocess.check_output(["echo", "2"]))',
    'import ctypes; ctypes.CDLL("libc.so.6"); print(2)',
    'open("here", "w"); print(2)',
  ],
)
def test_failures_and_forbidden_things_do_not_pass(source):
  assert not execute.passes(source, [Case('', '2')])


def test_time_and_output_are_limited():
  start = time.monotonic()
  for source in ('while True: pass', 'import time; time.sleep(60)'):
    assert not execute.passes(source, [Case('', '2')], limit_s=1)
  assert not execute.passes(
    'while True: print("x" * 10**6)', [Case('', '2')], limit_s=3
  )
  assert time.monotonic() - start < 20


def test_the_expected_output_is_out_of_reach():
  look = 'import sys; print(sys.argv, sys.stdin.read())'
  assert not execute.passes(look, [Case('', 'secret')])
  walk = (
    'def f():\n  import sys\n  g = sys._getframe(1).f_globals\n'
    '  return g.get("wanted", g.get("calls"))'
  )
  assert not execute.passes(walk, [Case('', '"secret"')], 'f')


def test_the_last_block_of_python_is_the_program():
  text = 'So\n```python\nx = 1\n```\nor\n```py\nx = 2\n```\n```cpp\nint x;\n```'
  assert execute.program(text) == 'x = 2\n'
  assert execute.program('no code') is None
  assert execute.program('```python\nnever closed') is None


def test_no_tests():
  with pytest.raises(ValueError, match='without tests cannot be judged'):
    execute.passes(_DOUBLE, [])
