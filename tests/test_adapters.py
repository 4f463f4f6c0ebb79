"""Runs that train an adapter: resume, what they leave, PEFT folders."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util
from helpers import (
  CONFIGS,
  as_dict,
  grpo_config,
  mostly_slow,
  random_params,
  write_lines,
)

from rlzero import convert, distill, grpo, reward_model, sft, weights
from rlzero.models.lora import Adapter
from rlzero.rl import update
from rlzero.runtime import lifecycle, metrics
from rlzero.text.template import Template
from rlzero.train import adapters, checkpoint, folders, supervised
from rlzero.train.optim import Optimizer
from rlzero.weights import hf, mapping, peft
from rlzero.weights.metadata import WeightsError

pytestmark = pytest.mark.model

ADAPTER = Adapter(rank=4, alpha=8.0)


def _config(workdir, **changes):
  settings = {'num_steps': 4, 'save_every': 2, 'learning_rate': 3e-3}
  return grpo_config(workdir, adapter=ADAPTER, **settings | changes)


def _flat(params):
  return traverse_util.flatten_dict(jax.device_get(params), sep='/')


def _same(first, second):
  first, second = _flat(first), _flat(second)
  assert first.keys() == second.keys()
  for path, leaf in first.items():
    np.testing.assert_array_equal(leaf, second[path], err_msg=path)


def _rows(workdir):
  return [
    {k: v for k, v in row.items() if not k.startswith(('time/', 'perf/'))}
    for row in metrics.read_metrics(str(workdir))
  ]


def _base():
  return folders.load_model(folders.embedded('tiny_base'))


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run of four steps that nothing disturbed."""
  workdir = tmp_path_factory.mktemp('whole')
  grpo.run(_config(workdir))
  return workdir


@pytest.mark.slow
def test_sampler_and_learner_agree(whole):
  rows = metrics.read_metrics(str(whole))
  assert len(rows) == 4
  for row in rows:
    assert row['policy/sampler_learner_max'] <= 3e-5  # as in test_grpo
    # The reference is the adapter of step 0, and again of step 2.
    assert (row['policy/kl'] < 1e-9) == (row['step'] % 2 == 0)


@pytest.mark.slow
def test_the_model_is_the_base_with_the_adapter_merged(whole):
  base = _base()
  written = hf.read_folder(whole / 'model')
  tensors = safetensors.numpy.load_file(
    whole / 'adapter' / 'adapter_model.safetensors'
  )
  described = json.loads(
    (whole / 'adapter' / 'adapter_config.json').read_text()
  )
  assert (described['r'], described['lora_alpha']) == (4, 8)
  assert described['target_modules'] == sorted(
    (
      'q_proj',
      'k_proj',
      'v_proj',
      'o_proj',
      'gate_proj',
      'up_proj',
      'down_proj',
    )
  )
  before = as_dict(mapping.tensors_from_params(base.config, base.params))
  after = as_dict(mapping.tensors_from_params(written.config, written.params))
  moved = 0
  for name, old in before.items():
    module = 'base_model.model.' + name.removesuffix('.weight')
    a = tensors.pop(f'{module}.lora_A.weight', None)
    more = np.zeros_like(old)
    if a is not None:
      more = 2.0 * tensors.pop(f'{module}.lora_B.weight') @ a
      moved += np.abs(more).max() > 1e-4
    np.testing.assert_allclose(after[name], old + more, atol=1e-6)
  assert not tensors and moved == 7 * base.config.num_layers


@pytest.mark.slow
def test_a_checkpoint_holds_the_adapter_and_a_run_is_a_model(whole):
  size = sum(x.nbytes for x in jax.tree.leaves(_base().params))
  saved = whole / 'checkpoints' / '4'
  held = sum(f.stat().st_size for f in saved.rglob('*') if f.is_file())
  # The adapter, two moments of it, its reference, and their descriptions.
  assert held < size / 2
  loaded = folders.load_model(str(whole))
  assert loaded.config == _base().config
  _same(loaded.params, folders.load_model(str(whole / 'model')).params)


@pytest.mark.slow
def test_killed_between_updates_it_ends_with_the_same_bits(
  whole, tmp_path, monkeypatch
):
  original = update.Trainer.update

  def killed(self, experience):
    if self.step == 3:
      raise KeyboardInterrupt
    return original(self, experience)

  monkeypatch.setattr(update.Trainer, 'update', killed)
  with pytest.raises(KeyboardInterrupt):
    grpo.run(_config(tmp_path))
  monkeypatch.undo()
  assert checkpoint.Store(str(tmp_path), read_only=True).latest() == 2
  grpo.run(_config(tmp_path))
  assert _rows(whole) == _rows(tmp_path)
  _same(
    folders.load_model(str(whole)).params,
    folders.load_model(str(tmp_path)).params,
  )
  for name in ('model/model', 'adapter/adapter_model'):
    one, other = (
      (folder / f'{name}.safetensors').read_bytes()
      for folder in (whole, tmp_path)
    )
    assert one == other


@pytest.mark.slow
def test_a_run_without_its_base_says_so(whole, tmp_path):
  description = json.loads((whole / 'base.json').read_text())
  moved = tmp_path / 'run'
  moved.mkdir()
  for name in ('checkpoints', 'model', 'adapter.json'):
    os.symlink(whole / name, moved / name)
  file = moved / 'base.json'
  file.write_text(
    json.dumps(description | {'checkpoint': str(tmp_path / 'no')})
  )
  with pytest.raises(ValueError, match='an adapter of .*/no.*model'):
    folders.open_model(str(moved))
  file.write_text(json.dumps(description | {'fingerprint': 1}))
  with pytest.raises(ValueError, match='began with a base of fingerprint 1'):
    folders.open_model(str(moved))


@pytest.mark.slow
def test_convert_merges_a_peft_folder(whole, tmp_path, capsys):
  base = folders.embedded('tiny_base')
  out = tmp_path / 'merged'
  convert.run(
    convert.Config(
      checkpoint=base, adapter=str(whole / 'adapter'), output=str(out)
    )
  )
  assert 'weights equal' in capsys.readouterr().out
  written, expected = (hf.read_folder(d) for d in (out, whole / 'model'))
  _same(written.params, expected.params)


@pytest.mark.slow
def test_a_peft_folder_is_no_model(whole):
  with pytest.raises(FileNotFoundError, match='rlzero.convert .*--adapter='):
    weights.open_model(whole / 'adapter')


@pytest.mark.slow
def test_a_run_starts_from_a_peft_folder(whole):
  config = dataclasses.replace(_base().config, adapter_scale=ADAPTER.scale)
  began = dataclasses.replace(ADAPTER, start=str(whole / 'adapter'))
  params = adapters.start(began, config, _base().params, 0)
  _same(
    adapters.merge(ADAPTER.scale, params),
    folders.load_model(str(whole / 'model')).params,
  )
  for change, sentence in (
    ({'rank': 8, 'alpha': 16.0}, 'set rank and targets'),
    ({'alpha': 4.0}, 'has 2; set alpha and rank'),
    ({'targets': ('query',)}, 'set rank and targets'),
  ):
    with pytest.raises(ValueError, match=sentence):
      adapters.start(
        dataclasses.replace(began, **change), config, _base().params, 0
      )


@mostly_slow(
  'name',
  {n: n for n in ('qwen2', 'qwen3_moe_dense_first', 'deepseek_v3')},
  quick=('qwen3_moe_dense_first',),
)
def test_peft_folders_go_out_and_come_back(name, tmp_path):
  config = dataclasses.replace(CONFIGS[name], adapter_scale=0.75)
  params = random_params(config)
  leaves = adapters.init(Adapter(rank=3), params, jax.random.key(0))
  leaves = jax.tree.map(
    lambda x: np.random.default_rng(1).normal(size=x.shape).astype(np.float32),
    leaves,
  )
  peft.write_folder(tmp_path, config, leaves, 'org/base')
  scale, back = peft.open_folder(tmp_path, config)
  assert scale == 0.75
  back = jax.tree.map(lambda x: x[(slice(None),) * len(x.shape)], back)
  _same(back, leaves)


@pytest.mark.parametrize(
  ('changes', 'sentence'),
  [
    ({'peft_type': 'IA3'}, "peft_type 'IA3'.*only 'LORA'"),
    ({'use_dora': True}, 'use_dora = True'),
    ({'rank_pattern': {'q_proj': 8}}, 'rank_pattern'),
    ({'modules_to_save': ['lm_head']}, 'modules_to_save'),
    ({'init_lora_weights': 'pissa'}, 'init_lora_weights'),
    ({'r': 5}, 'of a wrong shape: .*lora_A.weight is'),
    ({'r': 0}, 'r = 0'),
    ({'lora_alpha': None}, 'lora_alpha'),
  ],
)
def test_adapters_that_cannot_be_read(tmp_path, changes, sentence):
  config = CONFIGS['llama']
  leaves = adapters.init(
    Adapter(rank=3), random_params(config), jax.random.key(0)
  )
  peft.write_folder(tmp_path, config, leaves, 'org/base')
  file = tmp_path / peft.CONFIG
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))
  with pytest.raises(WeightsError, match=sentence):
    peft.open_folder(tmp_path, config)


def test_an_adapter_of_another_model_is_named(tmp_path):
  config = CONFIGS['llama']
  leaves = adapters.init(
    Adapter(rank=3), random_params(config), jax.random.key(0)
  )
  peft.write_folder(tmp_path, config, leaves, 'org/base')
  deeper = dataclasses.replace(config, num_layers=3)
  with pytest.raises(WeightsError, match='missing: .*layers.2.mlp'):
    peft.open_folder(tmp_path, deeper)
  with pytest.raises(WeightsError, match='unknown: .*layers.1.mlp'):
    peft.open_folder(tmp_path, dataclasses.replace(config, num_layers=1))
  (tmp_path / 'adapter_model.safetensors').unlink()
  with pytest.raises(FileNotFoundError, match='adapter_model.safetensors is'):
    peft.open_folder(tmp_path, config)


@pytest.mark.parametrize(
  ('changes', 'sentence'),
  [
    ({'balance_speed': 0.001}, 'balance_speed is 0.001 with an adapter'),
    ({'optimizer': Optimizer(kind='muon')}, "'muon' with an adapter"),
  ],
)
def test_settings_that_make_no_sense(tmp_path, changes, sentence):
  with pytest.raises(ValueError, match=sentence):
    _config(tmp_path, **{'learning_rate': 1e-3} | changes)


_PAIRS = [
  {'prompt': f'{x} {y}', 'chosen': f'{x} a', 'rejected': f'{x} {y}'}
  for x in 'bcdefg'
  for y in 'hijk'
]
_EXAMPLES = [
  {'prompt': x, 'completion': f'{y} {z}'}
  for x, y, z in zip('abcdef', 'bcdefg', 'cdefgh', strict=True)
]


def _supervised(stage, base, workdir, folder):
  settings = {
    'checkpoint': base,
    'workdir': str(workdir),
    'template': Template('plain'),
    'adapter': ADAPTER,
    'batch_size': 4,
    'max_len': 32,
    'micro_tokens': 128,
    'num_steps': 12,
    'save_every': 4,
    'optimizer': Optimizer(learning_rate=3e-2),
  }
  rows = _PAIRS if stage is reward_model else _EXAMPLES
  settings['data'] = write_lines(folder / 'data.jsonl', rows)
  if stage is distill:
    settings |= {'loss': 'forward_kl', 'teacher': str(folder / 'teacher')}
  return stage.Config(**settings)


@mostly_slow(
  'stage',
  {'sft': sft, 'distill': distill, 'reward_model': reward_model},
  quick=(),
)
def test_supervised_stages_train_an_adapter_and_resume(
  stage, base, tmp_path, monkeypatch
):
  loaded = folders.load_model(base)
  louder = jax.tree.map(lambda x: 3 * x, jax.device_get(loaded.params))
  hf.write_folder(tmp_path / 'teacher', loaded.config, louder, loaded.tokenizer)
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  stage.run(_supervised(stage, base, whole, tmp_path))
  losses = [row['loss/mean'] for row in metrics.read_metrics(str(whole))]
  assert np.mean(losses[-3:]) < np.mean(losses[:3])
  batch = supervised.Order.batch

  def stopped(self, step):
    if step == 6:  # saves and ends
      os.kill(os.getpid(), signal.SIGTERM)
    return batch(self, step)

  monkeypatch.setattr(supervised.Order, 'batch', stopped)
  with pytest.raises(SystemExit, match=str(lifecycle.PREEMPTED)):
    stage.run(_supervised(stage, base, cut, tmp_path))
  monkeypatch.undo()
  stage.run(_supervised(stage, base, cut, tmp_path))
  for name in (
    'model/model.safetensors',
    'adapter/adapter_model.safetensors',
    *(('model/score.json',) if stage is reward_model else ()),
  ):
    assert (whole / name).read_bytes() == (cut / name).read_bytes(), name
  after = folders.load_model(str(whole / 'model')).params
  for path, leaf in _flat(loaded.params).items():
    same = np.array_equal(leaf, _flat(after)[path])
    assert same != path.startswith(('layers/attention/', 'layers/mlp/')), path
