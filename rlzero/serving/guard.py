"""Looks at key, host, type and size of a request before it is read."""

import asyncio
import hmac
import json
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from rlzero.runtime import keys
from rlzero.serving.requests import ApiError

_MAX_BODY = 4 << 20  # bytes of a request
_MAX_DISCARDED = 64 << 20  # bytes that are read of one that is too large
_BODY_TIMEOUT_S = 60.0


class Guard:
  """Asks for the key before anything else is looked at.

  A server without a key listens to this machine, where a page in a browser may
  reach it too: the page's own host name is refused (DNS rebinding), and so are
  bodies that a form could send.
  """

  def __init__(self, app: ASGIApp, api_key: str, only_local_names: bool):
    self._app, self._key = app, api_key.encode()
    self._only_local_names = only_local_names

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope['type'] == 'http' and (error := self._refusal(scope)):
      await error_response(error)(scope, receive, send)
      return
    await self._app(scope, receive, send)

  def _refusal(self, scope: Scope) -> ApiError | None:
    headers = dict(scope['headers'])
    if self._only_local_names:
      host = headers.get(b'host', b'').decode('latin-1')
      if not _is_local(host):
        return ApiError(
          403,
          f'This server answers to this machine alone, not to {host[:100]!r}; '
          'ask 127.0.0.1 or localhost.',
        )
    if self._key and scope['path'] != '/health':
      scheme, _, key = headers.get(b'authorization', b'').partition(b' ')
      right = hmac.compare_digest(key.strip(), self._key)
      if scheme.lower() != b'bearer' or not right:
        return ApiError(
          401,
          'The API key is missing or wrong; send it as "Authorization: Bearer '
          'KEY".',
          code='invalid_api_key',
          headers={'WWW-Authenticate': 'Bearer'},
        )
    if scope['method'] == 'POST':
      kind = headers.get(b'content-type', b'').partition(b';')[0].strip()
      if kind.lower() != b'application/json':
        return ApiError(
          415, 'The body must be JSON; send "Content-Type: application/json".'
        )
    return None


def _is_local(host: str) -> bool:
  """Whether a Host header names this machine."""
  name = host.rpartition(':')[0] if not host.endswith(']') else host
  name = (name or host).strip('[]')
  return keys.is_loopback_host(name)


def error_response(error: ApiError) -> JSONResponse:
  """An error as the client gets it."""
  return JSONResponse(error.body(), error.status, error.headers)


async def read_json(request: Request) -> Any:
  """The body of a request.

  Raises:
    ApiError: it is too large, too slow, or no JSON.
  """
  size, parts = 0, []
  try:
    async with asyncio.timeout(_BODY_TIMEOUT_S):
      async for part in request.stream():
        size += len(part)
        if size <= _MAX_BODY:
          parts.append(part)
        elif size > _MAX_DISCARDED:
          break  # else it is read to its end, so that the answer is heard
  except TimeoutError as error:
    raise ApiError(
      408, f'The body did not come within {_BODY_TIMEOUT_S:g} s; send it again.'
    ) from error
  except ClientDisconnect as error:
    raise ApiError(400, 'The client has gone.') from error
  if size > _MAX_BODY:
    raise ApiError(
      413,
      f'The body is larger than {_MAX_BODY} bytes; send a shorter prompt.',
    )
  try:
    return json.loads(b''.join(parts))
  except (ValueError, RecursionError) as error:
    raise ApiError(400, f'The body is not JSON ({error}).') from error
