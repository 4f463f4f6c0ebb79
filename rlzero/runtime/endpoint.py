"""Servers that speak OpenAI's protocol: asks until there is an answer.

What is refused for now (429), broken (5xx), slow or gone is asked again, after
waits that double; OPENAI_API_KEY, where set, is the key. It goes to this host
alone: no redirect is followed.
"""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple

from rlzero.runtime import files, keys

_KEY = 'OPENAI_API_KEY'
_MAX_REPLY = 1 << 28  # bytes
_MAX_WAIT_S = 60.0


class Reply(NamedTuple):
  """The one choice of a reply."""

  text: str
  thought: str  # where the server keeps it apart
  is_cut: bool  # at the longest length
  prompt_tokens: int  # 0 where the server does not say
  completion_tokens: int


class Client:
  """A model behind a URL.

  Args:
    url: http://host/v1#model.
    max_tries: of one request.
    first_wait_s: before the second try.
    timeout_s: of one try.

  Attributes:
    base: the URL without the model.
    model: its name.

  Raises:
    ValueError: a URL that cannot be used; one sentence.
  """

  def __init__(
    self,
    url: str,
    max_tries: int = 8,
    first_wait_s: float = 1.0,
    timeout_s: float = 3600.0,
  ):
    self.base, _, self.model = url.partition('#')
    if not self.model:
      raise ValueError(
        f'{url} names no model; write it after the address, as in '
        'http://host:8000/v1#model.'
      )
    keys.check_address(self.base)
    keys.headers(self.base, _KEY)  # refused before anything is written
    self._max_tries, self._first_wait_s = max_tries, first_wait_s
    self._timeout_s = timeout_s

  def ask(self, path: str, body: Mapping[str, Any]) -> Reply:
    """The reply to a request.

    Args:
      path: behind the address, such as 'chat/completions'.
      body: of the request, without the model.

    Raises:
      ValueError: the server refuses it, or does not speak the protocol.
      ConnectionError: no answer in all tries.
    """
    url = f'{self.base.rstrip("/")}/{path}'
    headers = {'Content-Type': 'application/json', **keys.headers(url, _KEY)}
    opener = keys.opener(url)
    data = files.to_json({'model': self.model, **body}).encode()
    wait_s = self._first_wait_s
    why = ''
    for tries_left in reversed(range(self._max_tries)):
      request = urllib.request.Request(url, data, headers)
      try:
        with opener.open(request, timeout=self._timeout_s) as response:
          return _parse(url, response.read(_MAX_REPLY))
      except urllib.error.HTTPError as error:
        if 300 <= error.code < 400:
          error.close()
          raise ValueError(
            f'{url} redirects to {error.headers["Location"]!r}, where the key '
            'is not sent; give that address, if you trust it.'
          ) from error
        if error.code != 429 and error.code < 500:
          raise ValueError(
            f'{url} refuses the request ({error.code}: '
            f'{error.read(500).decode(errors="replace")}); correct the '
            'model, the key or the sampling settings.'
          ) from error
        why, asked_s = f'status {error.code}', error.headers['Retry-After']
        error.close()
      except (OSError, http.client.HTTPException) as error:
        why, asked_s = str(error) or type(error).__name__, None
      if tries_left:
        asked_s = asked_s or ''
        least_s = float(asked_s) if asked_s.isdecimal() else 0.0
        time.sleep(min(max(wait_s, least_s), _MAX_WAIT_S))
        wait_s *= 2
    raise ConnectionError(
      f'{url} gave no answer in {self._max_tries} tries (last: {why})'
    )


def longest_s(max_tries: int, first_wait_s: float, timeout_s: float) -> float:
  """Seconds after which a `Client` of these settings has given up."""
  waits = [min(first_wait_s * 2**i, _MAX_WAIT_S) for i in range(max_tries - 1)]
  return max_tries * timeout_s + sum(waits)


def _parse(url: str, body: bytes) -> Reply:
  try:
    reply = json.loads(body)
    (choice,) = reply['choices']
    message = choice.get('message', choice)
    usage = reply['usage']
    return Reply(
      str(message.get('content', message.get('text')) or ''),
      str(message.get('reasoning_content') or ''),
      choice['finish_reason'] == 'length',
      int(usage.get('prompt_tokens') or 0),
      int(usage['completion_tokens']),
    )
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise ValueError(
      f'{url} answers with what is not a completion: '
      f'{body[:200].decode(errors="replace")!r}; give the address of a server '
      "that speaks OpenAI's protocol, up to and with /v1."
    ) from error
