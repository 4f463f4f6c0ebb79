"""Finds the program in what a model wrote.

Fences are those of CommonMark, of backticks or tildes, and a few that models
write beside it: an opening fence after text, a closing one after code. A block
that is never closed goes to the end.
"""

import re
import textwrap
import warnings
from typing import NamedTuple

LANGUAGES = {
  'python': ('python', 'py', 'ipython', 'cpython', 'pypy'),
  'cpp': ('cpp', 'c++', 'cc', 'cxx'),
}
_MARK = re.compile(r'`{3,}|~{3,}')
_LANGUAGE = re.compile(r'[ \t]*(?:\{?\.?([\w+#.-]+))?')
_VERSION = re.compile(r'(?<=[a-z+])[\d.]+$')  # of a language, as in python3


class Block(NamedTuple):
  """The text inside a fence, and its language."""

  language: str  # in small letters and without a version; may be empty
  code: str


class _Opening(NamedTuple):
  """A line that opens a block."""

  before: str
  mark: str
  language: str
  rest: str


def blocks(text: str) -> list[Block]:
  """The fenced blocks of a text, in order."""
  found = []
  opening, lines = None, []
  for line in text.replace('\r\n', '\n').split('\n'):
    if opening is None:
      start = _opening(line)
      # Prose may speak of fences: after text, a fence has a language at most.
      if start and not (start.before.strip() and start.rest.strip()):
        opening, lines = start, []
      continue
    last = _before_closing(line, opening.mark)
    if last is None:
      lines.append(line)
      continue
    found.append(_block(opening, [*lines, last] if last.strip() else lines))
    opening = None
  if opening is not None:
    if lines and not lines[-1]:
      lines.pop()
    found.append(_block(opening, lines))
  return found


def program(text: str, language: str = 'python') -> str | None:
  """The program that a completion states, or None.

  It is the last block of the language or, where no block says so, the last
  that says no language. Where there are answer tags it stands between the last
  of them, and is all that stands there if nothing is fenced. A thought that
  ends states nothing.

  Args:
    text: the completion.
    language: one of LANGUAGES.
  """
  after = text.rpartition('</think>')[2]
  _, tag, answer = after.rpartition('<answer>')
  if tag:
    return stated(answer.partition('</answer>')[0], language)
  return _last(blocks(after), language)


def stated(answer: str, language: str = 'python') -> str | None:
  """The program of an answer: a block as in `program`, or all of it."""
  found = blocks(answer)
  if not found or (language == 'python' and _compiles(answer)):
    return _left(answer.strip('\r\n')) + '\n' if answer.strip() else None
  return _last(found, language)


def _last(found: list[Block], language: str) -> str | None:
  for names in (LANGUAGES[language], ('',)):
    own = [block.code for block in found if block.language in names]
    if own:
      return own[-1]
  return None


def _opening(line: str) -> _Opening | None:
  """The parts of a line that opens a block."""
  mark = _MARK.search(line)
  if mark is None:
    return None
  language = _LANGUAGE.match(line, mark.end())
  assert language  # it may be empty
  rest = line[language.end() :]
  if '`' in rest:
    return None
  return _Opening(line[: mark.start()], mark[0], language[1] or '', rest)


def _before_closing(line: str, mark: str) -> str | None:
  """Cuts a line before its closing fence; None if it has none."""
  before = line.rstrip().rstrip(mark[0])
  length = len(line.rstrip()) - len(before)
  if length < len(mark) or (mark[0] == '~' and before.strip()):
    return None
  return before


def _block(opening: _Opening, lines: list[str]) -> Block:
  before = opening.before
  indent = 0 if before.strip() else len(before)
  kept = [line[min(indent, len(line) - len(line.lstrip())) :] for line in lines]
  language = _VERSION.sub('', opening.language.lower())
  return Block(language, _left(''.join(f'{line}\n' for line in kept)))


def _left(code: str) -> str:
  """Code that begins at the left, where all of it is indented."""
  first = next((line for line in code.split('\n') if line.strip()), '')
  return textwrap.dedent(code) if first[:1].isspace() else code


def _compiles(answer: str) -> bool:
  """Whether it is Python as it stands: fences may stand in its strings."""
  if answer.lstrip().startswith(('```', '~~~')):
    return False
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      compile(_left(answer.strip('\r\n')), 'answer', 'exec')
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return False
  return True
