"""A conversation with a model, turn by turn."""

import contextlib
import dataclasses
import queue
import secrets
import time
from collections.abc import Generator

from rlzero.rollout.scheduler import Prompt
from rlzero.serving.engine import Event, Request
from rlzero.serving.settings import Served


@dataclasses.dataclass(kw_only=True)
class Turn:
  """A question and its answer, as much of it as there is."""

  prompt: str
  thought: str = ''
  answer: str = ''
  finish: str = ''  # 'stop', 'length' or 'interrupted'
  prompt_tokens: int = 0  # of the whole conversation
  tokens: int = 0  # of thought and answer
  seconds: float = 0.0


class Conversation:
  """Asks, and remembers what was asked and said.

  The model does not see its earlier thoughts again, as chat templates of
  models that think have it. Under the template 'short' it sees the last
  question alone: a model so small has never met a second one.

  Args:
    served: the model; its engine runs.
    system: a system message; '' is none.
    temperature: 0 is greedy.
    top_p: nucleus; 1 keeps every token.
    max_tokens: of a turn; 0 takes what the context has room for.
    seed: of the conversation; None draws a fresh one at each turn.

  Attributes:
    turns: since the last reset; the last may be under way.
  """

  def __init__(
    self,
    served: Served,
    *,
    system: str = '',
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_tokens: int = 0,
    seed: int | None = None,
  ):
    self._served, self._system = served, system
    self._temperature, self._top_p = temperature, top_p
    self._max_tokens, self._seed = max_tokens, seed
    self.turns: list[Turn] = []

  def reset(self) -> None:
    """Forgets all turns."""
    self.turns.clear()

  def ask(self, prompt: str) -> Generator[Event, None, None]:
    """News of the answer as it comes; closing the iterator ends it.

    What has come by then stays in the conversation.

    Raises:
      ValueError: a prompt that the model cannot take; it is not remembered.
      RuntimeError: the engine has failed.
    """
    turn = Turn(prompt=prompt)
    request = self._request(turn)
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    began = time.monotonic()
    ticket = self._served.engine.submit([request], events.put)
    self.turns.append(turn)
    try:
      while not turn.finish:
        event = events.get()
        if event.finish == 'error':
          raise self._served.engine.failure or RuntimeError(event.error)
        turn.thought += event.delta.thought
        turn.answer += event.delta.text
        turn.tokens, turn.finish = event.num_tokens, event.finish
        yield event
    finally:
      self._served.engine.cancel(ticket)
      turn.finish = turn.finish or 'interrupted'
      turn.seconds = time.monotonic() - began

  def _request(self, turn: Turn) -> Request:
    encoder, engine = self._served.encoder, self._served.engine
    tokens = encoder.encode_chat(self._messages(turn.prompt))
    turn.prompt_tokens = len(tokens)
    room = engine.context - len(tokens)
    if room < 1:
      raise ValueError(
        f'The conversation has {len(tokens)} tokens, and the context has room '
        f'for {engine.context}; begin a new one, or raise --context.'
      )
    draw = secrets.randbits(31) if self._seed is None else self._seed
    return Request(
      prompt=Prompt(draw, tokens),
      sample=len(self.turns),
      max_tokens=min(self._max_tokens or room, room),
      temperature=self._temperature,
      top_p=self._top_p,
      splits_thought=True,
      in_thought=encoder.begins_thought(tokens),
    )

  def _messages(self, prompt: str) -> list[dict[str, str]]:
    found = []
    if self._system:
      found.append({'role': 'system', 'content': self._system})
    remembered = [] if self._served.template == 'short' else self.turns
    for turn in remembered:
      found.append({'role': 'user', 'content': turn.prompt})
      found.append({'role': 'assistant', 'content': turn.answer})
    return [*found, {'role': 'user', 'content': prompt}]


def answer(conversation: Conversation, prompt: str) -> Turn:
  """The whole answer to a prompt; Ctrl-C ends it early."""
  with (
    contextlib.suppress(KeyboardInterrupt),
    contextlib.closing(conversation.ask(prompt)) as events,
  ):
    for _ in events:
      pass
  return conversation.turns[-1]
