"""A hub of one repository that runs here, for tests of downloads."""

import contextlib
import hashlib
import http.server
import json
import threading


class Hub(http.server.BaseHTTPRequestHandler):
  """The calls of the hub's protocol that a listing and a download make.

  A test derives a class of its own. `org/gated` asks to accept terms, and any
  other repository is not found; nor is the revision `nowhere`.
  """

  repo: str
  commit: str  # 40 hexadecimal digits
  files: dict[str, bytes]
  served: list[str]  # names of the files whose content was sent

  def do_HEAD(self):
    self._answer(body=False)

  def do_GET(self):
    self._answer(body=True)

  def log_message(self, *_):
    pass

  def _answer(self, body):
    path = self.path.partition('?')[0]
    if 'org/gated' in path:
      self._send(403, b'', {'X-Error-Code': 'GatedRepo'}, body)
    elif self.repo not in path:
      self._send(404, b'', {'X-Error-Code': 'RepoNotFound'}, body)
    elif 'nowhere' in path:
      self._send(404, b'', {'X-Error-Code': 'RevisionNotFound'}, body)
    elif path.startswith('/api/'):
      tree = [
        {'type': 'file', 'path': n, 'size': len(d), 'oid': _etag(d)}
        for n, d in self.files.items()
      ]
      names = [{'rfilename': name} for name in self.files]
      info = {'id': self.repo, 'sha': self.commit, 'siblings': names}
      found = tree if '/tree/' in path else info
      self._send(200, json.dumps(found).encode(), {}, body)
    else:
      name = path.rpartition(f'/{self.commit}/')[2]
      data = self.files[name]
      if body:
        self.served.append(name)
      headers = {'X-Repo-Commit': self.commit, 'ETag': f'"{_etag(data)}"'}
      self._send(200, data, headers, body)

  def _send(self, status, data, headers, body):
    self.send_response(status)
    for key, value in headers.items():
      self.send_header(key, value)
    self.send_header('Content-Length', str(len(data)))
    self.end_headers()
    if body:
      with contextlib.suppress(BrokenPipeError):
        self.wfile.write(data)


@contextlib.contextmanager
def serve(hub):
  """Runs a hub in a thread; yields the server and its address."""
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), hub) as server:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server, f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    thread.join()


def _etag(data):
  return hashlib.sha1(data).hexdigest()
