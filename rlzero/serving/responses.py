"""Answers of OpenAI's protocol, as JSON."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from rlzero.serving.requests import Asked
from rlzero.serving.streams import Token


@dataclasses.dataclass(kw_only=True)
class Choice:
  """A completion, as much of it as there is."""

  thought: str = ''
  text: str = ''
  tokens: list[Token] = dataclasses.field(default_factory=list)
  num_tokens: int = 0
  num_thought_tokens: int = 0
  finish: str | None = None

  def add(self, new: 'Choice') -> None:
    """Adds what has come of it; counts of tokens are totals."""
    self.thought += new.thought
    self.text += new.text
    self.tokens += new.tokens
    self.num_tokens = new.num_tokens
    self.num_thought_tokens = new.num_thought_tokens
    self.finish = new.finish


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writer:
  """Writes the answers to one request.

  Args:
    asked: the request.
    model: its name.
    id: of the answer.
    created: seconds since 1970.
    token_text: the text of a token alone.
  """

  asked: Asked
  model: str
  id: str
  created: int
  token_text: Callable[[int], str]

  def whole(
    self, choices: Sequence[Choice], prompt_tokens: int
  ) -> dict[str, Any]:
    """The answer that is not streamed."""
    kind = 'chat.completion' if self.asked.is_chat else 'text_completion'
    return {
      **self._head(kind),
      'choices': [
        self._whole_choice(i, choice) for i, choice in enumerate(choices)
      ],
      'usage': usage(choices, prompt_tokens),
    }

  def chunk(self, index: int, new: Choice, first: bool) -> dict[str, Any]:
    """A piece of a stream.

    Args:
      index: of the choice.
      new: what is new of it.
      first: whether it is the first piece of this choice.
    """
    choice: dict[str, Any] = {'index': index, 'finish_reason': new.finish}
    if self.asked.is_chat:
      delta = {'role': 'assistant', 'content': ''} if first else {}
      if new.thought:
        delta['reasoning_content'] = new.thought
      if new.text:
        delta['content'] = new.text
      choice['delta'] = delta
    else:
      choice['text'] = new.text
    choice['logprobs'] = self._logprobs(new.tokens)
    return {**self._chunk_head(), 'choices': [choice]}

  def last_chunk(
    self, choices: Sequence[Choice], prompt_tokens: int
  ) -> dict[str, Any]:
    """The piece that has the usage and no choice."""
    return {
      **self._chunk_head(),
      'choices': [],
      'usage': usage(choices, prompt_tokens),
    }

  def _head(self, kind):
    return {
      'id': self.id,
      'object': kind,
      'created': self.created,
      'model': self.model,
    }

  def _chunk_head(self):
    head = self._head(
      'chat.completion.chunk' if self.asked.is_chat else 'text_completion'
    )
    # Every chunk has the field, if the last one has a value in it.
    return head | ({'usage': None} if self.asked.include_usage else {})

  def _whole_choice(self, index, choice):
    found = {
      'index': index,
      'finish_reason': choice.finish,
      'logprobs': self._logprobs(choice.tokens),
    }
    if not self.asked.is_chat:
      return found | {'text': choice.text}
    message = {'role': 'assistant', 'content': choice.text}
    if choice.thought:
      message['reasoning_content'] = choice.thought
    return found | {'message': message}

  def _logprobs(self, tokens):
    if not self.asked.logprobs:
      return None
    if self.asked.is_chat:
      return {
        'content': [
          {
            **self._about(token.id, token.logprob),
            'top_logprobs': [self._about(*one) for one in token.top],
          }
          for token in tokens
        ]
      }
    top = None
    if self.asked.num_top:
      top = [self._by_text(token) for token in tokens]
    return {
      'tokens': [self.token_text(token.id) for token in tokens],
      'token_logprobs': [token.logprob for token in tokens],
      'top_logprobs': top,
      'text_offset': None,
    }

  def _about(self, token_id, logprob):
    text = self.token_text(token_id)
    # A part of a character has bytes of its own, which its text does not tell.
    is_part = '\ufffd' in text
    return {
      'token': text,
      'logprob': logprob,
      'bytes': None if is_part else list(text.encode()),
    }

  def _by_text(self, token):
    """Log-probs of likely tokens, and of the one that was sampled, by text.

    Of tokens with the same text, that of the most likely one.
    """
    found = {}
    for token_id, logprob in (*token.top, (token.id, token.logprob)):
      found.setdefault(self.token_text(token_id), logprob)
    return found


def usage(choices: Sequence[Choice], prompt_tokens: int) -> dict[str, Any]:
  """Tokens of a request: each prompt counts once, whatever n is."""
  completion_tokens = sum(choice.num_tokens for choice in choices)
  thought_tokens = sum(choice.num_thought_tokens for choice in choices)
  return {
    'prompt_tokens': prompt_tokens,
    'completion_tokens': completion_tokens,
    'total_tokens': prompt_tokens + completion_tokens,
    'completion_tokens_details': {'reasoning_tokens': thought_tokens},
  }
