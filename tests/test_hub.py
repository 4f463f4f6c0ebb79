"""Models by name, against a hub that runs here."""

import contextlib
import hashlib
import http.server
import json
import pathlib
import threading

import huggingface_hub
import jax
import numpy as np
import pytest

from rlzero import weights
from rlzero.runtime import failures
from rlzero.train import folders
from rlzero.weights import hub

_TINY = pathlib.Path(folders.embedded('tiny_base'))
_COMMIT = 'c' * 40


class _Hub(http.server.BaseHTTPRequestHandler):
  """The two calls of the hub's protocol that a download makes."""

  served: list[str] = []
  files = {
    **{f.name: f.read_bytes() for f in _TINY.iterdir() if f.is_file()},
    'pytorch_model.bin': b'not to be fetched',
  }

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
    elif 'org/tiny' not in path:
      self._send(404, b'', {'X-Error-Code': 'RepoNotFound'}, body)
    elif 'nowhere' in path:
      self._send(404, b'', {'X-Error-Code': 'RevisionNotFound'}, body)
    elif path.startswith('/api/models/org/tiny'):
      names = [{'rfilename': name} for name in self.files]
      if '/tree/' in path:
        found = [
          {'type': 'file', 'path': n, 'size': len(d), 'oid': _etag(d)}
          for n, d in self.files.items()
        ]
      else:
        found = {'id': 'org/tiny', 'sha': _COMMIT, 'siblings': names}
      self._send(200, json.dumps(found).encode(), {}, body)
    else:
      name = path.rpartition('/')[2]
      data = self.files[name]
      if body:
        self.served.append(name)
      headers = {'X-Repo-Commit': _COMMIT, 'ETag': f'"{_etag(data)}"'}
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


def _etag(data):
  return hashlib.sha1(data).hexdigest()


@pytest.fixture
def local_hub(tmp_path, monkeypatch):
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Hub)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  real = huggingface_hub.snapshot_download

  def here(*args, **kwargs):
    address = f'http://127.0.0.1:{server.server_port}'
    return real(*args, endpoint=address, cache_dir=tmp_path, **kwargs)

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', here)
  _Hub.served.clear()
  yield server
  server.shutdown()
  server.server_close()
  thread.join()


def test_a_model_by_name(local_hub):
  by_name = folders.load_model('hf://org/tiny')
  from_folder = weights.load(_TINY)
  assert by_name.config == from_folder.config
  jax.tree.map(
    np.testing.assert_array_equal, by_name.params, from_folder.params
  )
  assert 'model.safetensors' in _Hub.served
  assert 'pytorch_model.bin' not in _Hub.served
  fetched = len(_Hub.served)
  hub.download(f'hf://org/tiny@{_COMMIT}')
  assert len(_Hub.served) == fetched  # it was in the cache


@pytest.mark.parametrize(
  'url, why',
  [
    ('hf://org/none', 'there is no such model'),
    ('hf://org/gated', 'accept terms first'),
    ('hf://org/tiny@nowhere', "no revision 'nowhere'"),
    ('hf://a/b/c', 'write hf://org/name'),
  ],
)
def test_models_that_cannot_be_had(local_hub, url, why):
  with pytest.raises(ValueError, match=why) as found:
    weights.load(url)
  assert failures.exit_code(found.value) == failures.USAGE


def test_no_connection(local_hub, monkeypatch):
  local_hub.shutdown()
  local_hub.server_close()
  with pytest.raises(
    ValueError, match='cannot be reached and the model is n'
  ) as found:
    weights.load('hf://org/tiny')
  assert failures.exit_code(found.value) == failures.TRY_AGAIN
