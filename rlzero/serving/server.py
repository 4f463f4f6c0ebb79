"""A server in a thread: the socket, uvicorn, and how it ends."""

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

_GRACE_S = 5  # for answers that are complete to leave
# Longer than clients keep a connection that is idle, or one that a client is
# about to use is closed.
_IDLE_S = 60


def bind(host: str, port: int) -> socket.socket:
  """A socket at an address; 0 is any free port.

  Raises:
    ValueError: the address cannot be used; one sentence.
  """
  try:
    ((family, kind, protocol, _, address), *_) = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    found = socket.socket(family, kind, protocol)
    try:
      found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      found.bind(address)
    except OSError:
      found.close()
      raise
  except OSError as error:
    raise ValueError(
      f'The server cannot listen at {host}:{port} ({error.strerror or error}); '
      'choose another --host or --port.'
    ) from error
  return found


class Server:
  """Serves an application until it leaves the `with` block.

  Args:
    app: that is served.
    listener: from `bind`; it is closed at the end.

  Attributes:
    url: of the server, such as http://127.0.0.1:8000.
  """

  def __init__(self, app: ASGIApp, listener: socket.socket):
    self._listener = listener
    self._server = uvicorn.Server(
      uvicorn.Config(
        app,
        loop='asyncio',
        http='h11',
        ws='none',
        lifespan='off',
        log_config=None,
        log_level='warning',
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=_GRACE_S,
      )
    )
    self._thread = threading.Thread(
      target=self._server.run, args=([listener],), name='rlzero-http'
    )
    host, port = listener.getsockname()[:2]
    self.url = f'http://{f"[{host}]" if ":" in host else host}:{port}'

  def __enter__(self) -> 'Server':
    self._thread.start()
    while not self._server.started:
      self._thread.join(0.01)
      if not self._thread.is_alive():
        raise RuntimeError('The server did not start; its log says why.')
    return self

  def __exit__(self, *_: object) -> None:
    self._server.should_exit = True
    self._thread.join()
    self._listener.close()


@contextlib.contextmanager
def on_signals(react: Callable[[], None]) -> Iterator[None]:
  """Inside, the first SIGTERM or SIGINT calls a function and ends nothing.

  A second one does what the first would have done outside.
  """
  signals = signal.SIGTERM, signal.SIGINT
  before = {}

  def note(*_: object) -> None:
    for number in signals:
      signal.signal(number, before[number])
    react()

  for number in signals:
    before[number] = signal.signal(number, note)
  try:
    yield
  finally:
    for number in signals:
      signal.signal(number, before[number])
