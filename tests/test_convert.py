"""Any checkpoint becomes a Hugging Face folder, and the same model again."""

import json
import re

import jax
import numpy as np
import pytest
from helpers import GGUF_CONFIGS, write_gguf

from rlzero import convert, weights
from rlzero.train import checkpoint, folders

pytestmark = pytest.mark.model

_TINY = folders.embedded('tiny_base')


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_sharded_folder_holds_the_model(tmp_path, dtype, capsys):
  out = tmp_path / 'out'
  convert.run(
    convert.Config(
      checkpoint=_TINY, output=str(out), dtype=dtype, shard_gb=0.0005
    )
  )
  shards = sorted(out.glob('model-*.safetensors'))
  index = json.loads((out / 'model.safetensors.index.json').read_text())
  assert len(shards) > 3
  assert {s.name for s in shards} == set(index['weight_map'].values())
  assert not (out / 'model.safetensors').exists()
  assert json.loads((out / 'config.json').read_text())['torch_dtype'] == dtype
  before, after = weights.load(_TINY), weights.load(out)
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(
      a.astype(dtype).astype(np.float32), b
    ),
    before.params,
    after.params,
  )
  text = 'User: 3 + 4'
  assert after.tokenizer.encode(text) == before.tokenizer.encode(text)
  said = float(
    re.search(r'differ by (\S+) at most', capsys.readouterr().out).group(1)
  )
  assert said == 0 if dtype == 'float32' else 0 < said < 0.5


def test_an_earlier_models_shards_go(tmp_path):
  loaded = weights.load(_TINY)
  for shard_bytes in (500_000, 10**9, 800_000):
    weights.write_folder(
      tmp_path,
      loaded.config,
      loaded.params,
      loaded.tokenizer,
      shard_bytes=shard_bytes,
    )
    files = {f.name for f in tmp_path.glob('model*.safetensors')}
    if shard_bytes == 10**9:
      assert files == {'model.safetensors'}
      assert not (tmp_path / 'model.safetensors.index.json').exists()
    else:
      index = json.loads(
        (tmp_path / 'model.safetensors.index.json').read_text()
      )
      assert files == set(index['weight_map'].values())
    jax.tree.map(
      np.testing.assert_array_equal,
      weights.load(tmp_path).params,
      loaded.params,
    )


def test_a_written_folder_that_differs_is_noticed(tmp_path, monkeypatch):
  opened = weights.open_folder

  def damaged(folder):
    model = opened(folder)
    if str(folder) != _TINY:
      scale = np.array(model.params['final_norm']['scale'].read((slice(None),)))
      scale[3] += 1e-3
      model.params['final_norm']['scale'] = scale
    return model

  monkeypatch.setattr(weights, 'open_folder', damaged)
  with pytest.raises(ValueError, match=r'model\.norm\.weight in .*out'):
    convert.run(convert.Config(checkpoint=_TINY, output=str(tmp_path / 'out')))


def test_a_folder_becomes_a_run_and_a_folder_again(tmp_path, capsys):
  run, out = (str(tmp_path / name) for name in ('run', 'out'))
  for source, output, kind in ((_TINY, run, 'run'), (run, out, 'folder')):
    convert.run(convert.Config(checkpoint=source, output=output, kind=kind))
    assert 'log-probs differ by 0 at most' in capsys.readouterr().out
  before, after = weights.load(_TINY), weights.load(out)
  jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
  assert after.config == before.config
  with pytest.raises(ValueError, match='folder of a run that has checkpoints'):
    convert.run(convert.Config(checkpoint=_TINY, output=run, kind='run'))


def test_refusals(tmp_path):
  with pytest.raises(ValueError, match="'run' with dtype 'bfloat16'"):
    convert.Config(checkpoint='a', output='b', kind='run', dtype='bfloat16')
  with pytest.raises(ValueError, match='is the checkpoint itself'):
    convert.run(convert.Config(checkpoint=_TINY, output=_TINY))
  with pytest.raises(ValueError, match='shard_gb is 0'):
    convert.Config(checkpoint=_TINY, output='x', shard_gb=0.0)
  with pytest.raises(FileNotFoundError, match='does not exist'):
    convert.run(
      convert.Config(checkpoint=str(tmp_path / 'no'), output=str(tmp_path))
    )


def test_gguf_and_runs_become_folders(tmp_path, capsys):
  config = GGUF_CONFIGS['gemma3']
  file = write_gguf(tmp_path / 'm.gguf', config, 'gemma3')
  loaded = weights.load(file)
  run = tmp_path / 'run'
  folders.write_description(str(run), loaded.config, loaded.tokenizer)
  store = checkpoint.Store(str(run))
  store.save(3, loaded.params, {'step': np.int32(3)})
  store.close()
  for source in (file, run):
    out = tmp_path / f'of_{source.stem}'
    convert.run(
      convert.Config(
        checkpoint=str(source),
        output=str(out),
        dtype='bfloat16',
        compare_logprobs=False,
      )
    )
    said = capsys.readouterr().out
    assert 'is a gemma3_text of 42,752 par' in said
    assert 'convert, MB' in said and 'differ' not in said
    back = weights.load(out)
    assert back.config == config
    assert {f.name for f in out.iterdir()} == {
      'config.json',
      'generation_config.json',
      'model.safetensors',
      'tokenizer.json',
      'tokenizer_config.json',
    }
    jax.tree.map(
      lambda a, b: np.testing.assert_array_equal(
        np.asarray(a.astype('bfloat16'), np.float32), b
      ),
      loaded.params,
      back.params,
    )
