"""A conversation in a terminal, or through pipes.

What a model writes is text: escape sequences and other control characters in
it are shown as symbols, and never obeyed by the terminal.
"""

import contextlib
import dataclasses
import re
import readline  # noqa: F401
import sys
from collections.abc import Iterator

import rich.console
import rich.status
import rich.text

from rlzero.runtime import files
from rlzero.serving import conversation
from rlzero.serving.conversation import Conversation, Turn

_HELP = (
  '/reset forgets the conversation, /thought shows the last thought, /exit or '
  'Ctrl-D ends, Ctrl-C ends an answer'
)
# Of what could move the cursor, colour, rename windows or reorder a line.
_UNSAFE = re.compile(
  r'[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069'
  r'\ud800-\udfff]'
)


def printable(text: str) -> str:
  """The text with a symbol for each character that a terminal would obey.

  New lines and tabs stay.
  """
  return _UNSAFE.sub(_symbol, text)


def _symbol(found: re.Match[str]) -> str:
  code = ord(found[0])
  if code < 0x20:
    return chr(0x2400 + code)  # the picture of it
  return '\u2421' if code == 0x7F else '\ufffd'


class Display:
  """Writes an answer while it comes.

  Args:
    console: where to.
    thoughts: 'show' writes them dimmed, 'fold' says how long they are, 'hide'
      leaves them out.
  """

  def __init__(self, console: rich.console.Console, thoughts: str):
    self._console, self._thoughts = console, thoughts
    self._in_thought = False
    self._status: rich.status.Status | None = None

  def write(self, talk: Conversation, prompt: str) -> None:
    """Asks, and writes the answer; Ctrl-C ends it.

    Raises:
      ValueError: a prompt that the model cannot take.
    """
    with contextlib.ExitStack() as stack:
      events = stack.enter_context(contextlib.closing(talk.ask(prompt)))
      stack.callback(self._end_thought, talk)
      try:
        for event in events:
          if event.delta.thought:
            self._think(event.delta.thought, event.num_thought_tokens)
          if event.delta.text:
            self._end_thought(talk)
            self._put(event.delta.text)
      except KeyboardInterrupt:
        events.close()
        self._end_thought(talk)
        self._console.print(' [interrupted]', style='dim', markup=False)
        return
      self._end_thought(talk)
      if talk.turns[-1].finish == 'length':
        self._put(' [cut: no room for more]', 'dim')
      self._console.print()

  def show_thought(self, turn: Turn) -> None:
    """Writes a thought that was folded or hidden."""
    self._put(turn.thought or 'There was no thought.', 'dim')
    self._console.print()

  def _think(self, text: str, num_tokens: int) -> None:
    self._in_thought = True
    if self._thoughts == 'show':
      self._put(text, 'dim')
    elif self._thoughts == 'fold' and self._console.is_terminal:
      if self._status is None:
        self._status = self._console.status('thinking', spinner='dots')
        self._status.start()
      self._status.update(f'thinking, {num_tokens} tokens')

  def _end_thought(self, talk: Conversation) -> None:
    if not self._in_thought:
      return
    self._in_thought = False
    if self._status is not None:
      self._status.stop()
      self._status = None
    if self._thoughts == 'fold':
      words = len(talk.turns[-1].thought.split())
      self._put(f'[a thought of {words} words; /thought shows it]', 'dim')
    if self._thoughts != 'hide':
      self._console.print('\n')

  def _put(self, text: str, style: str = '') -> None:
    self._console.print(
      rich.text.Text(printable(text), style),
      end='',
      soft_wrap=True,
      highlight=False,
    )


def converse(talk: Conversation, thoughts: str) -> None:
  """Reads prompts and writes answers until the input ends."""
  console = rich.console.Console(highlight=False)
  display = Display(console, thoughts)
  if sys.stdin.isatty():
    console.print(_HELP, style='dim', markup=False)
  for line in _lines('> ' if sys.stdin.isatty() else ''):
    command = line.strip()
    if not command:
      continue
    if command == '/exit':
      return
    if command == '/reset':
      talk.reset()
    elif command == '/thought' and talk.turns:
      display.show_thought(talk.turns[-1])
    elif command.startswith('/'):
      console.print(_HELP, style='dim', markup=False)
    else:
      try:
        display.write(talk, line)
      except ValueError as error:
        console.print(printable(f'error: {error}'), style='red', markup=False)


def converse_in_json(talk: Conversation) -> None:
  """Reads a prompt a line, and writes a JSON object a line for each."""
  for line in _lines(''):
    command = line.strip()
    if command == '/exit':
      return
    if command == '/reset':
      talk.reset()
    elif command:
      try:
        found = dataclasses.asdict(conversation.answer(talk, line))
      except ValueError as error:
        found = {'prompt': line, 'error': str(error)}
      print(files.to_json(found), flush=True)


def _lines(mark: str) -> Iterator[str]:
  """Lines of the input; Ctrl-C at the mark begins a new one."""
  while True:
    try:
      yield input(mark)  # `readline`, once imported, edits and repeats lines
    except EOFError:
      if mark:
        print()
      return
    except KeyboardInterrupt:
      print()
