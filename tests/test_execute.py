"""Programs against their tests, and what they may not do."""

import time

import pytest

from rlzero.tasks import execute, fences, isolation
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
    'import os; os.fork() or print(2)',
    'open("/here", "w"); print(2)',
  ],
)
def test_failures_and_forbidden_things_do_not_pass(source):
  assert not execute.passes(source, [Case('', '2')])


@pytest.mark.parametrize(
  'source, verdict',
  {
    _DOUBLE: 'accepted',
    'print(5)': 'wrong',
    'while True: pass': 'time',
    'import time; time.sleep(60)': 'time',
    'x = bytearray(8 << 30)': 'memory',
    '1 / 0': 'crash',
    'not a program': 'crash',
    '(' * 1000: 'crash',
    'while True: print("x" * 10**6)': 'crash',
    'import os; os.abort()': 'crash',
    'import os\nfor i in range(9): os.write(2, bytes(1 << 20))\n'
    + _DOUBLE: 'accepted',
    # Programs that read all, end by exit and ask how they are run.
    'import sys\nprint(2 * int(sys.stdin.read()))': 'accepted',
    'print(2 * int(input())); exit(0)': 'accepted',
    'print(2 * int(input())); quit()': 'accepted',
    'import sys\nprint(2 * int(input())); sys.exit()': 'accepted',
    f'if __name__ == "__main__":\n  {_DOUBLE}': 'accepted',
    'print(int(open(0).read()) * 2)': 'accepted',
    'input(); input()': 'crash',
    # Deep recursion, and a thread with a large stack, as contestants do it.
    'def f(n): return n and 1 + f(n - 1)\nprint(f(50000) - 49994)': 'accepted',
    'import threading\nthreading.stack_size(1 << 27)\n'
    't = threading.Thread(target=lambda: print(6))\nt.start(); t.join()': (
      'accepted'
    ),
    'import numpy as np\nprint(np.array([2]).dot([3]))': 'accepted',
    # Names of starters, used without an import.
    'print(gcd(12, 18))': 'accepted',
    'print(2 * int(stdin.readline()))': 'accepted',
    'print(unheard_of)': 'crash',
    # A dataclass whose annotations are text looks for its module.
    'from __future__ import annotations\nimport dataclasses\n'
    '@dataclasses.dataclass\nclass A:\n  x: int = 6\nprint(A().x)': 'accepted',
    '\ufeffprint(6)': 'accepted',
    'print("\u00e9" and 6)': 'accepted',
    'print("\\ud800")': 'crash',
  }.items(),
)
def test_verdicts(source, verdict):
  tests = [Case('3', '6')]
  assert execute.run(source, tests, limit_s=2.0) == verdict, execute.judge(
    source, tests, limit_s=2.0
  )


def test_memory_is_limited_piece_by_piece():
  source = 'x = []\nwhile True: x.append(bytearray(1 << 20))'
  found = execute.judge(source, [Case('3', '6')], memory=1 << 26)
  assert found.verdict == 'memory', found


@pytest.mark.parametrize(
  'body, verdict',
  {
    'return list(x)': 'accepted',
    'return tuple(x)': 'accepted',
    'return [1.0, 2.0]': 'accepted',
    'import numpy as np\n  return [np.int64(1), 2]': 'accepted',
    'print("[[1, 2]]")\n  return x': 'accepted',
    'return set(x)': 'wrong',
    'return None': 'wrong',
    'return x + [float("nan")]': 'wrong',
    'return [inf, -inf]': 'wrong',
    'return x * 10**6': 'crash',  # more than a right one could write
    'return object()': 'wrong',
    'return 1 / 0': 'crash',
    'raise SystemExit': 'crash',
    'import time\n  time.sleep(9)': 'time',
    'return bytearray(8 << 30)': 'memory',
    'return f(x)': 'crash',
  }.items(),
)
def test_verdicts_on_functions(body, verdict):
  source = f'def f(x):\n  {body}'
  found = execute.judge(source, [Case('[1, 2]', '[1, 2]')], 'f', limit_s=2.0)
  assert found.verdict == verdict, found


def test_values_that_json_has_no_word_for():
  def accepts(body, output):
    source = f'def f():\n  return {body}'
    return execute.passes(source, [Case('', output)], 'f')

  assert accepts('inf', 'Infinity') and accepts('None', 'null')
  assert accepts('{1: (2,)}', '{"1": [2]}') and accepts('True', 'true')
  assert accepts('nan', 'NaN') and not accepts('nan', '0')
  assert not accepts('0.1 + 0.2', '0.3')  # as the benchmark's own judge


def test_each_call_has_its_own_limit():
  source = 'import time\ndef f(x):\n  time.sleep(x)\n  return x'
  tests = [Case('0.1', '0.1')] * 4
  assert execute.run(source, tests, 'f', limit_s=0.7) == 'accepted'
  tests = [Case('0.9', '0.9'), *[Case('0', '0')] * 4]
  assert execute.run(source, tests, 'f', limit_s=0.7) == 'time'


def test_starters_have_their_usual_names():
  source = """
class Solution:
  def f(self, nums: List[int], k: Optional[int]) -> Dict[str, Set[Tuple]]:
    heap, queue, count = [], deque(nums), Counter(nums)
    heappush(heap, 1), heapq.heappush(heap, 2)
    table = defaultdict(list)
    @cache
    def g(n): return n and 1 + g(n - 1)
    @lru_cache(None)
    def h(n): return math.sqrt(n) + sqrt(n)
    node = ListNode(1, ListNode(2))
    tree = TreeNode(3, None, TreeNode(4))
    assert bisect.bisect_left(nums, 2) == bisect_left(nums, 2)
    assert list(accumulate(nums)) == list(itertools.accumulate(nums))
    assert pow(2, 3, 5) == 3 and reduce(operator.add, nums) == sum(nums)
    assert max(-inf, inf, 3) == inf and OrderedDict() == {}
    assert isinstance(string.ascii_lowercase, str) and re.match('a', 'a')
    return [node.next.val, tree.right.val, g(5), h(4), count[1], heap[0]]
"""
  tests = [Case('[1, 2]\nnull', '[2, 4, 5, 4.0, 1, 1]')]
  assert execute.judge(source, tests, 'f') == ('accepted', '')


_CPP = """#include <iostream>
int main() { int x; std::cin >> x; std::cout << 2 * x << std::endl; }
"""


@pytest.mark.skipif(not execute._compiler(), reason='no C++ compiler')
@pytest.mark.parametrize('using', isolation.MECHANISMS)
@pytest.mark.long
def test_programs_in_cpp(using):
  if why := isolation.fault(using):
    pytest.skip(f'{using} does not work here: {why}')

  def run(source):
    return execute.run(
      source, [Case('3', '6')], language='cpp', using=using, limit_s=2.0
    )

  assert run(_CPP) == 'accepted'
  assert run(_CPP.replace('2 *', '3 *')) == 'wrong'
  assert run('int main() { return x; }') == 'crash'
  assert run('#include "/etc/hostname"\nint main() {}') == 'crash'
  assert run('int main() { for (;;) ; }') == 'time'
  bad = '#include <vector>\nint main() { std::vector<char> x(8ull << 30); }'
  assert run(bad) == 'memory'
  fork = '#include <unistd.h>\n#include <cstdio>\nint main() { fork(); %s }'
  assert run(fork % 'puts("6");') == 'accepted'  # it fails: one line comes
  assert run('#include <cstdlib>\nint main() { abort(); }') == 'crash'


def test_no_compiler_is_refused_with_a_sentence(monkeypatch):
  monkeypatch.setattr(execute, '_compiler', lambda: None)
  found = execute.judge(_CPP, [Case('3', '6')], language='cpp')
  assert found.verdict == 'refused' and 'no C++ compiler' in found.reason


def test_no_sandbox_is_refused_with_a_sentence(monkeypatch):
  monkeypatch.setattr(isolation, 'mechanism', lambda: None)
  found = execute.judge(_DOUBLE, [Case('3', '6')])
  assert found.verdict == 'refused' and 'no sandbox works' in found.reason
  assert execute.passes(_DOUBLE, [Case('3', '6')], allow_unsandboxed=True)


def test_programs_that_cannot_be_judged():
  with pytest.raises(ValueError, match="'perl' .* cannot be judged"):
    execute.judge(_DOUBLE, [Case('', '')], language='perl')
  with pytest.raises(ValueError, match='called in Python alone'):
    execute.judge(_CPP, [Case('', '')], 'f', language='cpp')


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


_PROGRAM = '```python\nprint(1)\n```'


@pytest.mark.parametrize(
  'text',
  [
    _PROGRAM,
    f'{_PROGRAM}\nInput:\n```text\n3\n```\nOutput:\n```text\n6\n```',
    f'{_PROGRAM}\nIt prints\n```\n1\n```',
    f'{_PROGRAM}\n```output\n1\n```\n```json\n{{}}\n```',
    f'```bash\npip install x\n```\n{_PROGRAM}',
    f'```json\n{{}}\n```\nso\n{_PROGRAM}\n```bash\nls\n```\nor\n```bash\nls\n```',
    f'```python\nprint(0)\n```\nno:\n{_PROGRAM}',
    f'```cpp\nint x;\n```\n{_PROGRAM}\n```cpp\nint x;\n```',
    '```\nprint(0)\n```\n```\nprint(1)\n```',
    '```Python3\nprint(1)\n```',
    '```py\nprint(1)\n```',
    '``` python title="x.py"\nprint(1)\n```',
    '```{.python}\nprint(1)\n```',
    '````python\nprint(1)\n````',
    '~~~python\nprint(1)\n~~~',
    '~~~\nprint(1)\n~~~',
    '```python\r\nprint(1)\r\n```\r\n',
    '1. So:\n\n   ```python\n   print(1)\n   ```\n',
    '\t```python\n\tprint(1)\n\t```',
    '```python\n  print(1)\n```',
    'Here it is: ```python\nprint(1)\n```',
    '```python\nprint(1)```',
    '```python\nprint(1)',
    '```python\nprint(1)\n',
    'Use ```x``` there.\n```python\nprint(1)\n``` ',
    f'<think> {_PROGRAM.replace("1", "0")} </think>\n{_PROGRAM}',
    f'<think> x </think> <answer>\n{_PROGRAM}\n</answer>',
    f'<think> x </think> <answer>{_PROGRAM}</answer>',
    f'<think> x </think> <answer>So:\n{_PROGRAM}\nDone.</answer>',
    f'{_PROGRAM.replace("1", "0")}\n<answer>\n{_PROGRAM}\n</answer>',
    '<think> x </think> <answer>\nprint(1)\n</answer>',
    '<think> x </think> <answer> print(1) </answer>',
    '<answer>\n    print(1)\n</answer>',
    '<answer>\n```python\nprint(1)\n</answer>',
    '<answer>\n```python\nprint(1)',
  ],
)
def test_the_program_of_a_completion(text):
  assert execute.program(text).strip() == 'print(1)'


def test_what_states_no_program():
  assert execute.program('no code') is None
  assert execute.program('```bash\nls\n```') is None
  assert execute.program('<answer> </answer>') is None
  # A draft is no answer.
  assert execute.program(f'<think> {_PROGRAM} </think> so it is') is None
  assert execute.program(f'{_PROGRAM} <answer>```text\n1\n```</answer>') is None


def test_the_program_keeps_its_text():
  code = 'x = """\n  a\n\n\tb  \n"""\nif x:\n  print(x)\n'
  assert execute.program(f'```python\n{code}```') == code
  assert execute.program(f'<answer>{code}</answer>') == code
  quoted = 'def f():\n  """Like so:\n  ```\n  f()\n  ```\n  """\nf()\n'
  assert fences.stated(quoted) == quoted
  assert fences.stated(f'Mine:\n{_PROGRAM}') == 'print(1)\n'
  cpp = '```cpp\nint x;\n```'
  assert execute.program(f'{cpp}\n{_PROGRAM}', 'cpp') == 'int x;\n'
  assert execute.program('```c++17\nint x;\n```', 'cpp') == 'int x;\n'


@pytest.mark.parametrize(
  'line', ['```' + 'a' * 200_000 + '`', '`' * 200_000, '``` ' * 50_000]
)
def test_a_long_line_is_read_in_no_time(line):
  start = time.monotonic()
  fences.blocks(f'{line}\n' * 3)
  assert time.monotonic() - start < 5


def test_no_tests():
  with pytest.raises(ValueError, match='without tests cannot be judged'):
    execute.passes(_DOUBLE, [])
