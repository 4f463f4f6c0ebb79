"""Requests of OpenAI's protocol, from JSON to checked fields.

What is not known or not served is refused in plain words: a field that is
passed over in silence would be a wrong answer.
"""

import dataclasses
import hashlib
import reprlib
import secrets
from collections.abc import Mapping
from typing import Any

from rlzero.text import files as text_files

_MAX_STOPS = 4
_MAX_STOP_CHARS = 256
_MAX_MESSAGES = 1000
_MAX_INTEGER = 1 << 63
_MAX_SENTENCE = 600  # characters of an error
_DEFAULT_TOKENS = 16  # of /completions, as OpenAI has it
_SEED_BITS = 31  # a seed is a counter of the keys
# Most likely tokens at each step, as OpenAI has them.
_MAX_TOP = {'top_logprobs': 20, 'logprobs': 5}

# Fields that say who asks, and change no answer.
_IGNORED = frozenset(
  {
    *('user', 'metadata', 'store', 'service_tier', 'safety_identifier'),
    *('prompt_cache_key', 'parallel_tool_calls'),
  }
)
# Fields that are taken with the values that change nothing, and no others.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
  'frequency_penalty': (0,),
  'presence_penalty': (0,),
  'logit_bias': ({},),
  'tools': ([],),
  'functions': ([],),
  'tool_choice': ('none', 'auto'),
  'function_call': ('none', 'auto'),
  'response_format': ({'type': 'text'},),
  'modalities': (['text'],),
  'echo': (False,),
  'suffix': ('',),
  'best_of': (1,),
}
_ROLES = {
  'system': 'system',
  'developer': 'system',  # its name since the models that reason
  'user': 'user',
  'assistant': 'assistant',
}


class ApiError(Exception):
  """A request that gets no answer.

  Args:
    status: of HTTP.
    message: one sentence.
    param: the field that is wrong, if one is.
    code: OpenAI's name of the error, if it has one.
    headers: of the response.
  """

  def __init__(
    self,
    status: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
  ):
    super().__init__(message)
    self.param = None if param is None else _printable(param)
    self.status, self.code = status, code
    self.headers = dict(headers or {})

  def body(self) -> dict[str, Any]:
    """The error as JSON."""
    kind = 'invalid_request_error' if self.status < 500 else 'server_error'
    if self.status == 429:
      kind = 'rate_limit_error'
    return {
      'error': {
        'message': _printable(str(self)),
        'type': kind,
        'param': self.param,
        'code': self.code,
      }
    }


def _printable(text: str) -> str:
  """The text, not too long; half of a surrogate pair could not be sent."""
  if len(text) > _MAX_SENTENCE:
    text = f'{text[:_MAX_SENTENCE]}...'
  return text.encode(errors='replace').decode()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """The bounds of a server."""

  model: str  # its name
  context: int  # tokens of a prompt and its completion
  max_choices: int  # of a request, all prompts together


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
  """A request, checked but for the length of its prompt."""

  messages: tuple[dict[str, str], ...] = ()  # of a conversation
  prompts: tuple[str | list[int], ...] = ()  # of /completions
  max_tokens: int | None = None  # None: as many as the context has room for
  n: int = 1
  temperature: float = 1.0
  top_p: float = 1.0
  stops: tuple[str, ...] = ()
  seed: int = 0
  logprobs: bool = False
  num_top: int = 0  # most likely tokens beside each
  stream: bool = False
  include_usage: bool = False  # in a chunk of its own

  @property
  def is_chat(self) -> bool:
    """Whether it is a conversation."""
    return bool(self.messages)


def parse_chat(body: Any, limits: Limits) -> Asked:
  """Reads a request for /chat/completions.

  Raises:
    ApiError: something in it is wrong, or not served here.
  """
  fields = _Fields(body)
  common = _common(fields, limits)
  newer = fields.integer('max_completion_tokens', 1)
  older = fields.integer('max_tokens', 1)
  logprobs = fields.flag('logprobs')
  num_top = fields.num_top('top_logprobs')
  if num_top and not logprobs:
    raise ApiError(
      400,
      'top_logprobs is for log-probabilities alone; set logprobs to true, or '
      'leave it out.',
      'top_logprobs',
    )
  asked = Asked(
    messages=_messages(fields.take('messages')),
    max_tokens=older if newer is None else newer,
    logprobs=logprobs,
    num_top=num_top or 0,
    **common,
  )
  fields.check_rest()
  return asked


def parse_completion(body: Any, limits: Limits) -> Asked:
  """Reads a request for /completions.

  Raises:
    ApiError: something in it is wrong, or not served here.
  """
  fields = _Fields(body)
  common = _common(fields, limits)
  max_tokens = fields.integer('max_tokens', 1)
  num_top = fields.num_top('logprobs')
  prompts = _prompts(fields.take('prompt'))
  if len(prompts) * common['n'] > limits.max_choices:
    raise _too_many(len(prompts) * common['n'], limits, 'prompt')
  asked = Asked(
    prompts=prompts,
    max_tokens=_DEFAULT_TOKENS if max_tokens is None else max_tokens,
    logprobs=num_top is not None,
    num_top=num_top or 0,
    **common,
  )
  fields.check_rest()
  return asked


def _common(fields: '_Fields', limits: Limits) -> dict[str, Any]:
  """The fields that both kinds of requests have."""
  model = fields.text('model')
  if model is None:
    raise ApiError(400, f'Name the model: {limits.model!r}.', 'model')
  if model != limits.model:
    raise ApiError(
      404,
      f'The model {_short(model)} is not served here; ask {limits.model!r}.',
      'model',
      'model_not_found',
    )
  n = fields.integer('n', 1) or 1
  if n > limits.max_choices:
    raise _too_many(n, limits, 'n')
  temperature = fields.number('temperature', 0, 2)
  top_p = fields.number('top_p', 0, 1)
  if top_p == 0:
    raise ApiError(400, 'top_p is 0; it must be above 0.', 'top_p')
  stream = fields.flag('stream')
  options = fields.take('stream_options')
  if options is not None and not stream:
    raise ApiError(
      400,
      'stream_options is for streams alone; set stream to true, or leave it '
      'out.',
      'stream_options',
    )
  return {
    'n': n,
    'temperature': 1.0 if temperature is None else temperature,
    'top_p': 1.0 if top_p is None else top_p,
    'stops': _stops(fields.take('stop')),
    'seed': _seed(fields.integer('seed', None)),
    'stream': stream,
    'include_usage': _includes_usage(options),
  }


def _too_many(count, limits, param):
  return ApiError(
    400,
    f'The request asks for {count} completions, but this server takes '
    f'{limits.max_choices} at a time; ask for fewer.',
    param,
  )


class _Fields:
  """The fields of a request, each taken once; null is as if it were not there.

  Raises:
    ApiError: the body is no object.
  """

  def __init__(self, body: Any):
    if not isinstance(body, dict):
      raise ApiError(400, 'The body is no JSON object; send one.')
    self._left = {k: v for k, v in body.items() if v is not None}

  def take(self, name: str) -> Any:
    return self._left.pop(name, None)

  def text(self, name: str) -> str | None:
    value = self.take(name)
    if value is not None and not isinstance(value, str):
      raise _wrong(name, value, 'a string')
    return value

  def flag(self, name: str) -> bool:
    value = self.take(name)
    if value is not None and not isinstance(value, bool):
      raise _wrong(name, value, 'true or false')
    return bool(value)

  def integer(self, name: str, low: int | None) -> int | None:
    value = self.take(name)
    if value is None:
      return None
    if isinstance(value, bool) or not isinstance(value, int):
      raise _wrong(name, value, 'a whole number')
    if low is not None and value < low:
      raise _wrong(name, value, f'at least {low}')
    if abs(value) >= _MAX_INTEGER:
      raise _wrong(name, value, 'a number of at most 64 bits')
    return value

  def number(self, name: str, low: float, high: float) -> float | None:
    value = self.take(name)
    if value is None:
      return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
      raise _wrong(name, value, 'a number')
    if not low <= value <= high:  # NaN is not either
      raise _wrong(name, value, f'between {low} and {high}')
    return float(value)

  def num_top(self, name: str) -> int | None:
    """How many of the most likely tokens are wanted; None if it is not said."""
    value = self.integer(name, 0)
    if value is not None and value > _MAX_TOP[name]:
      raise _wrong(name, value, f'between 0 and {_MAX_TOP[name]}')
    return value

  def check_rest(self) -> None:
    """Refuses fields that would change the answer, or that nobody knows."""
    for name, value in self._left.items():
      if name in _IGNORED:
        continue
      if name not in _NEUTRAL:
        raise ApiError(
          400,
          f'This server does not know the field {_short(name)}; leave it out.',
          name[:64],
        )
      if value not in _NEUTRAL[name]:
        raise ApiError(
          400,
          f'{name} is {_short(value)}, which this server cannot do; leave it '
          'out.',
          name,
        )


def _wrong(name: str, value: Any, wanted: str) -> ApiError:
  return ApiError(400, f'{name} is {_short(value)}; it must be {wanted}.', name)


def _short(value: Any) -> str:
  """A value in a message, however long or deep it is."""
  text = _REPR.repr(value)
  return text if len(text) <= 60 else f'{text[:57]}...'


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxlong = 80  # cut by `_short`


def _messages(value: Any) -> tuple[dict[str, str], ...]:
  if not isinstance(value, list) or not value:
    raise ApiError(
      400, 'messages must be a list with at least one message.', 'messages'
    )
  if len(value) > _MAX_MESSAGES:
    raise ApiError(
      400,
      f'There are {len(value)} messages, and {_MAX_MESSAGES} are taken; send '
      'fewer.',
      'messages',
    )
  return tuple(_message(one, f'messages[{i}]') for i, one in enumerate(value))


def _message(value: Any, place: str) -> dict[str, str]:
  if not isinstance(value, dict):
    raise _wrong(place, value, "an object with 'role' and 'content'")
  role = value.get('role')
  if not isinstance(role, str) or role not in _ROLES:
    raise _wrong(f'{place}.role', role, f'one of {", ".join(_ROLES)}')
  if value.get('tool_calls') or value.get('function_call'):
    raise ApiError(
      400, f'{place} calls a tool, and there are none here.', place
    )
  content = value.get('content')
  if isinstance(content, list):
    content = ''.join(_part(p, f'{place}.content') for p in content)
  if not isinstance(content, str):
    raise _wrong(f'{place}.content', content, 'a text')
  return {'role': _ROLES[role], 'content': content}


def _part(value: Any, place: str) -> str:
  if isinstance(value, dict) and value.get('type') == 'text':
    if isinstance(value.get('text'), str):
      return value['text']
  raise _wrong(place, value, 'a text, or a list of parts of type text')


def _prompts(value: Any) -> tuple[str | list[int], ...]:
  """One prompt or several, each a text or token ids."""
  several = value if isinstance(value, list) else [value]
  if several and all(_is_id(one) for one in several):
    several = [several]
  for one in several:
    if not isinstance(one, str) and not (
      isinstance(one, list) and one and all(map(_is_id, one))
    ):
      raise _wrong('prompt', one, 'a text, token ids, or a list of either')
  if not several:
    raise ApiError(400, 'prompt is an empty list; send one.', 'prompt')
  return tuple(several)


def _is_id(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _stops(value: Any) -> tuple[str, ...]:
  stops = [value] if isinstance(value, str) else value or []
  if not isinstance(stops, list) or not all(
    isinstance(stop, str) and stop for stop in stops
  ):
    raise _wrong('stop', value, 'a string, or a list of strings')
  if len(stops) > _MAX_STOPS or any(len(s) > _MAX_STOP_CHARS for s in stops):
    raise ApiError(
      400,
      f'stop takes {_MAX_STOPS} strings of at most {_MAX_STOP_CHARS} '
      'characters; send fewer or shorter ones.',
      'stop',
    )
  for stop in stops:
    try:
      text_files.check_text(stop, 'stop')
    except ValueError as error:
      raise ApiError(400, str(error), 'stop') from error
  return tuple(stops)


def _includes_usage(options: Any) -> bool:
  if options is None:
    return False
  known = {'include_usage', 'include_obfuscation'}
  if not isinstance(options, dict) or not options.keys() <= known:
    raise _wrong('stream_options', options, "an object with 'include_usage'")
  wanted = options.get('include_usage') or False
  if not isinstance(wanted, bool):
    raise _wrong('stream_options.include_usage', wanted, 'true or false')
  return wanted


def _seed(value: int | None) -> int:
  """The counter that a seed stands for; a fresh one without a seed."""
  if value is None:
    return secrets.randbits(_SEED_BITS)
  if 0 <= value < 1 << _SEED_BITS:
    return value
  digest = hashlib.sha256(str(value).encode()).digest()
  return int.from_bytes(digest[:4]) >> (32 - _SEED_BITS)
