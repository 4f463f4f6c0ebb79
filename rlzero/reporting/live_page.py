"""Serves the live page of runs: static files, and their numbers as JSON.

  python -m rlzero.report --workdir=DIR --serve

The page comes from `static/`, which is read when this module is loaded, so no
request opens a file of it. A request names a run by its number and a file of
completions by its key in the run's list, never by a path. What a model wrote
is sent as JSON and shown by `textContent`; the Content-Security-Policy allows
no script but the page's own.
"""

import hmac
import importlib.resources
import ipaddress
import secrets
import socket
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn
from starlette import applications, exceptions, requests, responses, routing
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlzero.reporting import aha, charts, stored_samples
from rlzero.reporting.completion_index import Query
from rlzero.reporting.live_run import LiveRun
from rlzero.runtime import files, keys

# Names of the page's files, and what they are.
FILES = {
  'icon.svg': 'image/svg+xml',
  'index.html': 'text/html; charset=utf-8',
  'style.css': 'text/css; charset=utf-8',
  'page.js': 'text/javascript; charset=utf-8',
  'charts.js': 'text/javascript; charset=utf-8',
  'completions.js': 'text/javascript; charset=utf-8',
  'dom.js': 'text/javascript; charset=utf-8',
  'gallery.js': 'text/javascript; charset=utf-8',
  'tokens.js': 'text/javascript; charset=utf-8',
}
STATIC = {
  name: importlib.resources.files('rlzero.reporting')
  .joinpath('static', name)
  .read_bytes()
  for name in FILES
}
_HEADERS = {
  'Content-Security-Policy': (
    "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
  ),
  'Cache-Control': 'no-store',
  'Cross-Origin-Resource-Policy': 'same-origin',
  'Referrer-Policy': 'no-referrer',
  'X-Content-Type-Options': 'nosniff',
}
_EXTEND_S = 0.3  # seconds of reading completions for one request
_MOST_SHOWN = 60  # completions of one answer
_MIN_TOKEN = 16  # characters


def make_token(host: str, token: str) -> str:
  """The token that a page needs, which is '' for a local host without one.

  Args:
    host: name or address to listen at.
    token: of who may see the page; '' makes one for any but a local host.

  Raises:
    ValueError: a token that may be guessed.
  """
  if token and (len(token) < _MIN_TOKEN or not token.isascii()):
    raise ValueError(
      f'report.Config.token has {len(token)} characters; give at least '
      f'{_MIN_TOKEN} ASCII characters that nobody guesses, or none to have one '
      'made.'
    )
  if token or keys.is_loopback_host(host):
    return token
  return secrets.token_urlsafe(24)


def serve(runs: Sequence[LiveRun], host: str, port: int, token: str) -> None:
  """Serves the page until it is interrupted, and prints its address.

  Args:
    runs: what it shows.
    host: name or address to listen at.
    port: 0 takes a free one.
    token: of who may see the page; '' for a local host alone.

  Raises:
    ValueError: nothing can listen there.
  """
  opened = _listen(host, port)
  address, port = opened.getsockname()[:2]
  if not token and not keys.is_loopback_host(address):
    opened.close()
    raise ValueError(
      f'The host {host!r} is {address}, which others reach; give --host='
      '127.0.0.1, or a --token.'
    )
  if ipaddress.ip_address(address).is_unspecified:
    host = socket.gethostname()
  shown = f'[{host}]' if ':' in host else host
  query = f'?token={urllib.parse.quote(token)}' if token else ''
  names = ', '.join(run.workdir for run in runs)
  print(
    f'{names}: live at http://{shown}:{port}/{query} (Ctrl-C ends it)',
    flush=True,
  )
  server = uvicorn.Server(
    # Its log of requests would hold the token.
    uvicorn.Config(app(runs, token), log_level='warning', access_log=False)
  )
  with opened:
    server.run(sockets=[opened])


def _listen(host: str, port: int) -> socket.socket:
  try:
    found = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    # IPv4 first, which every browser and tunnel takes.
    family, _, _, _, address = min(found, key=lambda one: one[0])
    return socket.create_server(address[:2], family=family)
  except OSError as error:
    reason = (error.strerror or str(error)).partition(' (')[0]
    # Waiting is no cure, so the error that led to it is not told as one.
    raise ValueError(
      f'Nothing can listen at port {port} of {host!r} ({reason}); choose '
      'another with --port=N (0 takes a free one) or --host=HOST.'
    ) from None


def app(runs: Sequence[LiveRun], token: str = '') -> ASGIApp:
  """The page as an ASGI application.

  Args:
    runs: what it shows.
    token: that a request needs; with '' only requests to a local host's name
      are answered, so that no other site's name leads here.
  """

  def static(request: requests.Request) -> responses.Response:
    name = request.path_params.get('name', 'index.html')
    if name not in STATIC:
      raise exceptions.HTTPException(404, f'There is no file {name!r}.')
    return responses.Response(STATIC[name], media_type=FILES[name])

  def of_run(answer: Callable[[LiveRun, requests.Request], Any]) -> Any:
    def endpoint(request: requests.Request) -> responses.Response:
      number = request.path_params['run']
      if number >= len(runs):
        raise exceptions.HTTPException(404, f'There is no run {number}.')
      try:
        return _json(answer(runs[number], request))
      except KeyError as error:
        raise exceptions.HTTPException(
          404, f'The run has no {error.args[0]!r}.'
        ) from error
      except (OSError, ValueError) as error:
        raise exceptions.HTTPException(400, str(error)) from error

    return endpoint

  def overview(request: requests.Request) -> responses.Response:
    del request
    return _json(
      {
        'runs': [{'name': r.name, 'workdir': r.workdir} for r in runs],
        'charts': [
          chart._asdict() for chart in (*charts.CHARTS, *charts.LIVE_CHARTS)
        ],
        'kinds': aha.KINDS,
      }
    )

  api = {
    'state': _state,
    'settings': lambda run, request: run.settings(),
    'step': _step,
    'group': _group,
    'search': _search,
    'gallery': _gallery,
  }
  inner = applications.Starlette(
    routes=[
      routing.Route('/', static),
      routing.Route('/static/{name}', static),
      routing.Route('/api/overview', overview),
      *(
        routing.Route(f'/api/runs/{{run:int}}/{name}', of_run(answer))
        for name, answer in api.items()
      ),
    ],
    exception_handlers={exceptions.HTTPException: _sentence},
  )
  return _Guard(inner, token)


class _Guard:
  """Lets in who may, and adds the headers that every answer has."""

  def __init__(self, inner: ASGIApp, token: str):
    self._inner, self._token = inner, token

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope['type'] != 'http':
      await self._inner(scope, receive, send)
      return

    async def send_with_headers(message: Message) -> None:
      if message['type'] == 'http.response.start':
        message['headers'] = [
          *message.get('headers', []),
          *((k.lower().encode(), v.encode()) for k, v in _HEADERS.items()),
        ]
      await send(message)

    answer = self._refusal(requests.Request(scope)) or self._inner
    await answer(scope, receive, send_with_headers)

  def _refusal(self, request: requests.Request) -> ASGIApp | None:
    if not self._token:
      if keys.is_loopback_host(request.url.hostname or ''):
        return None
      return _error(403, 'This page is for requests to a local host.')
    name = f'rlzero_token_{(request.scope.get("server") or ("", 0))[1]}'
    if self._is_token(request.query_params.get('token', '')):
      # The address bar and the history need not keep it.
      answer = responses.RedirectResponse('/', 303)
      answer.set_cookie(name, self._token, httponly=True, samesite='lax')
      return answer
    scheme, _, given = request.headers.get('authorization', '').partition(' ')
    if scheme.lower() == 'bearer' and self._is_token(given):
      return None
    if self._is_token(request.cookies.get(name, '')):
      return None
    return _error(
      401, 'Open the address with ?token=..., as the program has printed it.'
    )

  def _is_token(self, given: str) -> bool:
    return hmac.compare_digest(given.encode(), self._token.encode())


# The answers. Each takes a run and a request, and gives what JSON can hold.


def _state(run: LiveRun, request: requests.Request) -> dict[str, Any]:
  return run.state(
    _int(request, 'version', -1),
    _int(request, 'since', 0),
    _int(request, 'listing', -1),
  )


def _step(run: LiveRun, request: requests.Request) -> dict[str, Any]:
  with run.lock:
    return stored_samples.step(run.index, _text(request, 'key'))


def _group(run: LiveRun, request: requests.Request) -> dict[str, Any]:
  with run.lock:
    return stored_samples.group(
      run.index, _text(request, 'key'), _int(request, 'group', 0)
    )


def _search(run: LiveRun, request: requests.Request) -> dict[str, Any]:
  right = request.query_params.get('right', '')
  query = Query(
    min_reward=_number(request, 'min_reward'),
    max_reward=_number(request, 'max_reward'),
    min_length=_number(request, 'min_length'),
    max_length=_number(request, 'max_length'),
    correct=None if right not in ('yes', 'no') else right == 'yes',
    words=tuple(request.query_params.get('words', '').split()),
  )
  after = None
  if key := request.query_params.get('after_key'):
    after = key, _int(request, 'after_place', 0)
  with run.lock:
    return stored_samples.search(run.index, query, after, _MOST_SHOWN)


def _gallery(run: LiveRun, request: requests.Request) -> dict[str, Any]:
  with run.lock:
    return stored_samples.gallery(
      run.index,
      request.query_params.get('kind', ''),
      _int(request, 'skip', 0),
      _MOST_SHOWN,
      _EXTEND_S,
    )


def _text(request: requests.Request, name: str) -> str:
  return request.query_params.get(name, '')


def _number(request: requests.Request, name: str) -> float | None:
  text = request.query_params.get(name, '').strip()
  try:
    return float(text) if text else None
  except ValueError:
    raise ValueError(f'{name} is {text!r}; give a number.') from None


def _int(request: requests.Request, name: str, default: int) -> int:
  value = _number(request, name)
  if value is None:
    return default
  if not value.is_integer():
    raise ValueError(f'{name} is {value}; give a whole number.')
  return int(value)


def _json(value: Any, status: int = 200) -> responses.Response:
  return responses.Response(
    files.to_json(value), status, media_type='application/json'
  )


def _error(status: int, sentence: str) -> responses.Response:
  return _json({'error': sentence}, status)


async def _sentence(
  request: requests.Request, error: Exception
) -> responses.Response:
  del request
  assert isinstance(error, exceptions.HTTPException)
  return _error(error.status_code, error.detail)
