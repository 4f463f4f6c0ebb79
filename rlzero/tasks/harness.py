"""Runs a Python program inside the sandbox; run as a script.

Arguments: the program's file, the function to call or '', and seconds that a
call may take. Packages stand beside it.

A program without a function runs as a script would. Of one with a function
each line of standard input is the JSON of a call's arguments, and each line of
output is the JSON of `[value]`, or of `[]` for a value that JSON cannot hold.
Expected values are never here, so there is nothing that could be forged.

Names that the usual starters use without importing them are there, as in the
benchmark's own judge. They are looked up only where a program needs them: the
imports cost more time than most programs.
"""

import sys

# `from ... import *`, the last first, for a later one hides an earlier one.
_STAR = (
  *('typing', 'json', 'sys', 'io', 'operator', 'functools', 'itertools'),
  *('statistics', 'random', 'math', 'copy', 'bisect', 'heapq', 'collections'),
  *('datetime', 're', 'string'),
)
_MODULES = frozenset((*_STAR, 'queue', 'os', 'time'))
_NODES = """
class ListNode:
  def __init__(self, val=0, next=None):
    self.val = val
    self.next = next

class TreeNode:
  def __init__(self, val=0, left=None, right=None):
    self.val = val
    self.left = left
    self.right = right
"""


def _missing(tree) -> set[str]:
  """Names that a program reads and nothing in it defines."""
  read, defined, nodes = set(), set(dir(__builtins__)), [tree]
  while nodes:
    node = nodes.pop()
    kind = type(node).__name__
    if kind == 'Name':
      named = read if type(node.ctx).__name__ == 'Load' else defined
      named.add(node.id)
    elif kind == 'alias':
      defined.add((node.asname or node.name).partition('.')[0])
    elif kind == 'arg':
      defined.add(node.arg)
    elif kind in ('FunctionDef', 'AsyncFunctionDef', 'ClassDef'):
      defined.add(node.name)
    for field in node._fields:
      value = getattr(node, field, None)
      for child in value if isinstance(value, list) else (value,):
        if hasattr(child, '_fields'):
          nodes.append(child)
  return read - defined


def _provided(name: str):
  """A pair of what a name stands for and whether there is such a thing."""
  if name in _MODULES:
    return __import__(name), True
  for module in map(__import__, _STAR):
    public = getattr(module, '__all__', None)
    if name in (public or vars(module)) and not name.startswith('_'):
      return getattr(module, name), True
  return None, False


def _namespace(tree, name: str) -> dict:
  """The globals of a program, in a module, where dataclasses look for them."""
  module = type(sys)(name)
  sys.modules[name] = module
  names = vars(module)
  names['__builtins__'] = __builtins__
  for missing in sorted(_missing(tree)):
    if missing in ('exit', 'quit'):
      names[missing] = sys.exit
    elif missing in ('ListNode', 'TreeNode'):
      exec(_NODES, names)
    else:
      value, is_there = _provided(missing)
      if is_there:
        names[missing] = value
  return names


def _plain(value):
  """A number of NumPy as one of Python."""
  return value.item()


def _call_each(names: dict, function: str, limit_s: float) -> None:
  import json
  import os
  import signal

  out = os.fdopen(os.dup(1), 'w')
  # What it prints is no answer.
  os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
  calls = [json.loads(line) for line in sys.stdin]
  call = (
    getattr(names['Solution'](), function)
    if 'Solution' in names
    else names[function]
  )
  for arguments in calls:
    signal.setitimer(signal.ITIMER_REAL, limit_s)  # which ends the process
    value = call(*arguments)
    signal.setitimer(signal.ITIMER_REAL, 0)
    try:
      reply = json.dumps([value], default=_plain)
    except (TypeError, ValueError, AttributeError):
      reply = '[]'
    out.write(reply + '\n')
    out.flush()


def main() -> None:
  """Runs the program."""
  path, function, limit_s = sys.argv[1:]
  sys.argv = [path]
  sys.setrecursionlimit(100_000)
  # Threads would get as much as the first one, and not many would fit.
  import _thread

  _thread.stack_size(16 << 20)
  with open(path, 'rb') as file:
    source = file.read()
  tree = compile(source, 'program.py', 'exec', 0x400)  # as a syntax tree
  names = _namespace(tree, 'solution' if function else '__main__')
  exec(compile(source, 'program.py', 'exec'), names)
  if function:
    _call_each(names, function, float(limit_s))


if __name__ == '__main__':
  main()
