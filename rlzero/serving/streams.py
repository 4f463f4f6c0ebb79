"""From tokens to text, while they come: whole characters, stops, thoughts."""

from collections.abc import Sequence
from typing import NamedTuple

from rlzero.text.tokenizer import Tokenizer

_BEGIN, _END = '<think>', '</think>'
_UNFINISHED = '\ufffd'  # what the bytes of half a character decode to
# Tokens that may wait for the rest of a character, which has four bytes at
# most. Each token decodes all of them again.
_MOST_HELD = 32


class Token(NamedTuple):
  """A token that was sampled, with its log-prob in nats."""

  id: int
  logprob: float
  # The most likely ones and their log-probs, the first first, if asked for.
  top: tuple[tuple[int, float], ...] = ()


class Delta(NamedTuple):
  """New text, of which the thought comes first."""

  thought: str = ''
  text: str = ''


class Detokenizer:
  """Text of tokens that come one after the other.

  All that `push` and `flush` return, put together, is what
  `Tokenizer.decode` makes of all tokens, as long as their bytes are
  characters. Half a character is held back, but not a long run of bytes that
  are none.
  """

  def __init__(self, tokenizer: Tokenizer):
    self._tokenizer = tokenizer
    self._ids: list[int] = []  # since the last piece but one
    self._old = 0  # how many of them have been shown

  def push(self, token: int) -> str:
    """The text that a token adds; '' if it is not known yet."""
    if self._is_hidden(token):
      return ''
    self._ids.append(token)
    new = self._new_text()
    if not new or new.endswith(_UNFINISHED):
      is_long = len(self._ids) - self._old >= _MOST_HELD
      return self.flush() if is_long else ''
    # Decoded again with what comes next: spaces depend on what is before.
    del self._ids[: self._old]
    self._old = len(self._ids)
    return new

  def flush(self) -> str:
    """Returns what was held back, once no token follows."""
    new = self._new_text()
    self._ids, self._old = [], 0
    return new

  def _new_text(self):
    old = self._tokenizer.decode(self._ids[: self._old])
    return self._tokenizer.decode(self._ids)[len(old) :]

  def _is_hidden(self, token):
    """Whether it is a mark that is no part of a text, such as EOS."""
    shown = self._tokenizer.decode([token])
    return not shown and bool(
      self._tokenizer.decode([token], skip_special=False)
    )


class StopFilter:
  """Ends a text before the first of some strings.

  Text that may be the beginning of one is held back, so that no part of a stop
  string is ever shown.
  """

  def __init__(self, stops: Sequence[str]):
    self._stops, self._held = stops, ''
    self.stopped = False

  def push(self, text: str) -> str:
    """The text that can be shown now; '' once it has stopped."""
    if self.stopped:
      return ''
    self._held += text
    found = [i for s in self._stops if (i := self._held.find(s)) >= 0]
    if found:
      self.stopped = True
      return self._held[: min(found)]
    size = len(self._held) - self._num_open()
    shown, self._held = self._held[:size], self._held[size:]
    return shown

  def flush(self) -> str:
    """Returns what was held back, once no text follows."""
    held, self._held = self._held, ''
    return '' if self.stopped else held

  def _num_open(self):
    """Characters at the end that begin a stop string."""
    return max((_overlap(self._held, stop) for stop in self._stops), default=0)


class ThoughtSplitter:
  """Keeps the thought apart that a completion begins with.

  White space around the thought is left out. Of a text that does not begin
  with <think> nothing is changed.

  Args:
    in_thought: whether the prompt has begun the thought.
  """

  def __init__(self, in_thought: bool = False):
    self.in_thought = in_thought
    self._decided = in_thought
    self._fresh = True  # white space comes next and is left out
    self._held = ''

  def push(self, text: str) -> Delta:
    """The parts of the thought and of the answer that can be shown now."""
    self._held += text
    if not self._decided:
      start = self._held.lstrip()
      if len(start) < len(_BEGIN) and _BEGIN.startswith(start):
        return Delta()
      self._decided, self._fresh = True, False
      if start.startswith(_BEGIN):
        self.in_thought = self._fresh = True
        self._held = start[len(_BEGIN) :]
    thought = ''
    if self.in_thought:
      thought = self._push_thought()
      if self.in_thought:
        return Delta(thought)
    if self._fresh:
      self._held = self._held.lstrip()
      self._fresh = not self._held
    answer, self._held = self._held, ''
    return Delta(thought, answer)

  def flush(self) -> Delta:
    """Returns what was held back, once no text follows."""
    held, self._held = self._held, ''
    return Delta(held.rstrip()) if self.in_thought else Delta('', held)

  def _push_thought(self):
    if self._fresh:
      self._held = self._held.lstrip()
      self._fresh = not self._held
    thought, ended, rest = self._held.partition(_END)
    if ended:
      self.in_thought, self._fresh, self._held = False, True, rest
      return thought.rstrip()
    size = len(self._held) - _overlap(self._held, _END)
    size = len(self._held[:size].rstrip())
    thought, self._held = self._held[:size], self._held[size:]
    return thought


class CompletionStream:
  """The text of one completion, token by token.

  Args:
    tokenizer: of the model.
    stops: strings that end the completion; they are no part of it.
    splitter: keeps the thought apart; None leaves it where it is.

  Attributes:
    num_tokens: tokens so far, the one that completed a stop string included.
    num_thought_tokens: those of them in the thought.
  """

  def __init__(
    self,
    tokenizer: Tokenizer,
    stops: Sequence[str] = (),
    splitter: ThoughtSplitter | None = None,
  ):
    self._detokenizer = Detokenizer(tokenizer)
    self._stop, self._splitter = StopFilter(stops), splitter
    self.num_tokens = self.num_thought_tokens = 0

  @property
  def stopped(self) -> bool:
    """Whether a stop string has come; nothing may follow but `flush`."""
    return self._stop.stopped

  def push(self, token: int) -> Delta:
    """Takes a token; returns the new text."""
    self.num_tokens += 1
    delta = self._split(self._stop.push(self._detokenizer.push(token)))
    if self._splitter and self._splitter.in_thought:
      self.num_thought_tokens += 1
    return delta

  def flush(self) -> Delta:
    """Returns what was held back, once no token follows."""
    text = self._stop.push(self._detokenizer.flush()) + self._stop.flush()
    thought, answer = self._split(text)
    if self._splitter is None:
      return Delta('', answer)
    last = self._splitter.flush()
    return Delta(thought + last.thought, answer + last.text)

  def _split(self, text):
    return self._splitter.push(text) if self._splitter else Delta('', text)


def _overlap(text: str, word: str) -> int:
  """Characters at the end of a text that begin a word, but not all of it."""
  longest = min(len(word) - 1, len(text))
  return next((n for n in range(longest, 0, -1) if text.endswith(word[:n])), 0)
