"""Models by name, against a hub that runs here."""

import pathlib

import huggingface_hub
import jax
import numpy as np
import pytest
from helpers import Hub, serve

from rlzero import weights
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
