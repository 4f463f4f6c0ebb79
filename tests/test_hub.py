"""Models by name, read and written, against a hub that runs here."""

import base64
import json
import pathlib
import time

import huggingface_hub
import jax
import numpy as np
import pytest
from helpers import Hub, serve

from rlzero import convert, weights
from rlzero.runtime import failures
from rlzero.train import folders
from rlzero.weights import hub

_TINY = pathlib.Path(folders.embedded('tiny_base'))
_COMMIT = 'c' * 40


class _Hub(Hub):
  repo = 'org/tiny'
  commit = _COMMIT
  served = []
  files = {
    **{f.name: f.read_bytes() for f in _TINY.iterdir() if f.is_file()},
    'pytorch_model.bin': b'not to be fetched',
  }


@pytest.fixture
def local_hub(tmp_path, monkeypatch):
  real = huggingface_hub.snapshot_download
  with serve(_Hub) as (server, address):
    monkeypatch.setattr(
      huggingface_hub,
      'snapshot_download',
      lambda *args, **options: real(
        *args, endpoint=address, cache_dir=tmp_path, **options
      ),
    )
    _Hub.served.clear()
    yield server


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


class _Writable(Hub):
  """A hub that takes commits; it answers as one that has org/old with files."""

  repo = 'org/old'
  commit = _COMMIT
  served = []
  files = {}
  seen = []  # headers of every request
  made = []  # bodies of requests that make repositories
  refuses = 0  # status of the answer to those

  def do_GET(self):
    self.seen.append(dict(self.headers))
    super().do_GET()

  def do_POST(self):
    self.seen.append(dict(self.headers))
    body = self.rfile.read(int(self.headers['Content-Length']))
    path = self.path.partition('?')[0]
    if path == '/api/repos/create':
      if self.refuses:
        return self._send(self.refuses, b'{"error": "no"}', {}, True)
      self.made.append(json.loads(body))
      type(self).repo = 'org/'
      answer = {'url': f'http://{self.headers["Host"]}/org/new'}
    elif path == '/api/validate-yaml':
      answer = {'errors': [], 'warnings': []}
    elif '/preupload/' in path:
      names = [file['path'] for file in json.loads(body)['files']]
      answer = {
        'files': [
          {'path': n, 'uploadMode': 'regular', 'shouldIgnore': False}
          for n in names
        ]
      }
    else:
      assert '/commit/' in path
      for line in body.splitlines():
        operation = json.loads(line)
        value = operation['value']
        if operation['key'] == 'file':
          self.files[value['path']] = base64.b64decode(value['content'])
        elif operation['key'] == 'deletedFile':
          del self.files[value['path']]
      url = f'http://{self.headers["Host"]}/org/new/commit/{_COMMIT}'
      answer = {'commitUrl': url, 'commitOid': _COMMIT}
    return self._send(200, json.dumps(answer).encode(), {}, True)


@pytest.fixture
def writable(monkeypatch):
  _Writable.repo, _Writable.refuses = 'org/old', 0
  _Writable.files = {'model.safetensors': b'old', 'notes.txt': b'kept'}
  _Writable.seen, _Writable.made = [], []
  with serve(_Writable) as (server, address):
    monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', address)
    monkeypatch.setenv('HF_TOKEN', 'hf_secret')
    yield server


def _push(tmp_path, name, **options):
  convert.run(
    convert.Config(
      checkpoint=str(_TINY),
      output=str(tmp_path / 'out'),
      push=name,
      compare_logprobs=False,
      **options,
    )
  )


def test_a_model_is_pushed_with_its_card(writable, tmp_path, capsys):
  _Writable.files = {}
  _push(tmp_path, 'org/new')
  out = {f.name: f.read_bytes() for f in (tmp_path / 'out').iterdir()}
  card = _Writable.files.pop('README.md')
  assert _Writable.files == out
  assert b'# new' in card and 'README.md' not in out  # not on the disk
  (made,) = _Writable.made
  assert made['name'] == 'new' and made['organization'] == 'org'
  assert made.get('private') is True or made.get('visibility') == 'private'
  said = capsys.readouterr()
  assert 'pushed 6 files to' in said.out
  # Only https://huggingface.co gets the token.
  assert 'hf_secret' not in str(_Writable.seen) + said.out + said.err


def test_files_that_are_there_stay_unless_told(writable, tmp_path):
  with pytest.raises(ValueError, match='org/old has 2 files already, such as'):
    _push(tmp_path, 'org/old')
  assert not (tmp_path / 'out').exists()
  assert _Writable.files['model.safetensors'] == b'old'
  _Writable.files['model-00001-of-00002.safetensors'] = b'stale'
  _push(tmp_path, 'org/old', overwrite=True)
  assert _Writable.files['notes.txt'] == b'kept'
  assert len(_Writable.files['model.safetensors']) > 1e6
  assert 'model-00001-of-00002.safetensors' not in _Writable.files


@pytest.mark.parametrize(
  'status, why, code',
  [
    (403, 'the token may not write there', failures.USAGE),
    (400, 'the hub answered with status 400', failures.USAGE),
  ],
)
def test_a_hub_that_refuses(status, why, code, writable, tmp_path):
  _Writable.refuses = status
  with pytest.raises(ValueError, match=f'org/new cannot be .*{why}') as found:
    hub.upload({'a': b'b'}, 'org/new', False, False)
  assert failures.exit_code(found.value) == code
  assert 'hf_secret' not in str(found.value)


def test_a_push_that_cannot_begin(writable, tmp_path, monkeypatch):
  monkeypatch.setattr(time, 'sleep', lambda seconds: None)  # between tries
  writable.shutdown()
  writable.server_close()
  with pytest.raises(ValueError, match='the hub cannot be reached') as found:
    hub.check_upload('org/new', False)
  assert failures.exit_code(found.value) == failures.TRY_AGAIN
  with pytest.raises(ValueError, match='that is no name of a model'):
    hub.check_upload('org/-new-', False)
  # The real hub, which is not asked for want of a token.
  monkeypatch.setattr(
    huggingface_hub.constants, 'ENDPOINT', 'https://huggingface.co'
  )
  monkeypatch.setattr(huggingface_hub, 'get_token', lambda: None)
  with pytest.raises(
    ValueError, match='there is no token; make one with write'
  ):
    _push(tmp_path, 'org/new')
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  'options, message',
  [
    ({'push': 'name'}, "push is 'name'; write it as org/name"),
    ({'push': 'a/b', 'kind': 'run'}, "the hub takes a 'folder' or 'gguf'"),
    ({'public': True}, 'public and overwrite are about the hub'),
  ],
)
def test_settings_of_a_push(options, message):
  with pytest.raises(ValueError, match=message):
    convert.Config(checkpoint='x', output='y', **options)
