"""Files of DeepSeek-V3's 8-bit weights, and what else is theirs alone."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from helpers import CONFIGS, EXPERTS, as_dict, random_params, words

from rlzero import weights
from rlzero.models.config import Latent, ModelConfig
from rlzero.weights import fp8, hf, mapping
from rlzero.weights.rows import Stored

QUANTISED = {
  'quant_method': 'fp8',
  'fmt': 'e4m3',
  'weight_block_size': [128, 128],
  'activation_scheme': 'dynamic',
}
# Matrices of more than one block, cut through.
CONFIG = ModelConfig(
  vocab_size=11,
  num_layers=1,
  width=160,
  mlp_width=140,
  num_heads=2,
  num_kv_heads=2,
  head_dim=100,
  rms_norm_eps=1e-6,
  tied_embedding=False,
  latent=Latent(kv_rank=130, rope_dim=4, value_dim=70),
  experts=EXPERTS,
  family='deepseek_v2',
)


def quantise(array, rng):
  """An 8-bit matrix, its scales, and what both say, worked out by block."""
  blocks = [-(-size // 128) for size in array.shape]
  scales = rng.uniform(0.5, 2, blocks).astype(np.float32)
  small = (array / 4).astype(ml_dtypes.float8_e4m3fn)
  value = small.astype(np.float32)
  for i, j in np.ndindex(*blocks):
    part = np.s_[128 * i : 128 * (i + 1), 128 * j : 128 * (j + 1)]
    value[part] *= scales[i, j]
  return small, scales, value


def edit_config(folder, **changes):
  path = folder / 'config.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def folder(tmp_path):
  """Written in 8 bits, and the tensors that it stands for."""
  hf.write_folder(tmp_path, CONFIG, random_params(CONFIG), words())
  edit_config(tmp_path, quantization_config=QUANTISED)
  path = tmp_path / 'model.safetensors'
  rng = np.random.default_rng(1)
  stored, expected = {}, {}
  for name, array in safetensors.numpy.load_file(path).items():
    stored[name] = expected[name] = array
    if '_proj' in name:
      small, scales, value = quantise(array, rng)
      stored |= {name: small, f'{name}_scale_inv': scales}
      expected[name] = value
  safetensors.numpy.save_file(stored, path)
  return tmp_path, stored, expected


def test_blocks_are_scaled(folder, tmp_path):
  path, _, expected = folder
  loaded = weights.load(path)
  ours = as_dict(mapping.tensors_from_params(CONFIG, loaded.params))
  assert ours.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(ours[name], array, err_msg=name)
  # Exported, it is the model that it stood for, in plain numbers.
  out = tmp_path / 'out'
  hf.write_folder(out, CONFIG, loaded.params, loaded.tokenizer, 'bfloat16')
  back = safetensors.numpy.load_file(out / 'model.safetensors')
  for name, array in expected.items():
    np.testing.assert_array_equal(back[name], array.astype(ml_dtypes.bfloat16))
  assert 'quantization_config' not in json.loads(
    (out / 'config.json').read_text()
  )


def test_any_part_of_a_weight_is_read():
  rng = np.random.default_rng(0)
  small, scales, value = quantise(rng.normal(size=(300, 200)), rng)
  stored = {'w.weight': small, 'w.weight_scale_inv': scales}

  tensors = [
    (name, Stored('f', array.shape, array.__getitem__, ''))
    for name, array in stored.items()
  ]
  ((name, found),) = fp8.dequantised(tensors, 'somewhere')
  assert name == 'w.weight'
  for index in (np.s_[0:300, 0:200], np.s_[130:131, 5:200], np.s_[:7, 127:129]):
    np.testing.assert_array_equal(found.read(index), value[index])


@pytest.mark.parametrize(
  'change, message',
  [
    ({'quant_method': 'awq'}, r"quantization_config.quant_method = 'awq', but"),
    ({'weight_block_size': [64, 64]}, r'weight_block_size = \[64, 64\], but'),
    ({'fmt': 'e5m2'}, r"quantization_config.fmt = 'e5m2', but"),
  ],
)
def test_other_quantisations_are_refused(folder, change, message):
  edit_config(folder[0], quantization_config={**QUANTISED, **change})
  with pytest.raises(
    weights.WeightsError, match=f'config.json has .*{message}'
  ):
    weights.load(folder[0])


def test_scales_must_fit(folder):
  path, stored, _ = folder
  name = 'model.layers.0.self_attn.o_proj.weight'

  def refused(match, **changes):
    tensors = {k: v for k, v in {**stored, **changes}.items() if v is not None}
    safetensors.numpy.save_file(tensors, path / 'model.safetensors')
    with pytest.raises(weights.WeightsError, match=match):
      weights.load(path)

  scale = f'{name}_scale_inv'
  refused('o_proj.weight .* as F8_E4M3 without .*_scale_inv', **{scale: None})
  needed = r'of shape \[1, 1\], but \[160, 140\] in blocks .* needs \[2, 2\]'
  refused(needed, **{scale: np.ones((1, 1), np.float32)})
  refused('scales without their weights: .*o_proj', **{name: None})


def test_the_layer_after_the_last_is_left_out(tmp_path):
  config = CONFIGS['deepseek_v3']
  hf.write_folder(tmp_path, config, random_params(config), words())
  path = tmp_path / 'model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  extra = {
    f'model.layers.2.{name}.weight': np.ones((3, 3), np.float32)
    for name in ('eh_proj', 'enorm', 'mlp.experts.0.up_proj')
  }
  safetensors.numpy.save_file({**tensors, **extra}, path)
  loaded = weights.load(tmp_path)
  assert [s for s in loaded.left_out if 'model.layers.2.*' in s] == [
    '3 tensors model.layers.2.* are left out: the layer that predicts a '
    'second token, which no stage here trains or uses'
  ]
  jax.tree.map(
    np.testing.assert_array_equal, loaded.params, random_params(config)
  )
  further = {'model.layers.3.enorm.weight': np.ones(3, np.float32)}
  safetensors.numpy.save_file({**tensors, **further}, path)
  with pytest.raises(
    weights.WeightsError, match='unknown: model.layers.3.enorm'
  ):
    weights.load(tmp_path)


@pytest.mark.parametrize(
  'name, change, message',
  [
    ('deepseek_v2', {'topk_method': 'best'},
     "topk_method = 'best', but only 'greedy' and 'group_limited_greedy' are"),
    ('deepseek_v2', {'norm_topk_prob': True}, 'norm_topk_prob = True'),
    ('deepseek_v2', {'scoring_func': 'sigmoid'}, "scoring_func = 'sigmoid'"),
    ('deepseek_v3', {'topk_method': 'greedy'}, "topk_method = 'greedy'"),
    ('deepseek_v3', {'rope_interleave': False}, 'rope_interleave = False'),
    ('deepseek_v3', {'moe_layer_freq': 2}, 'moe_layer_freq = 2'),
    ('deepseek_v3', {'rms_norm_eps': 1e-5}, 'rms_norm_eps = 1e-05'),
    ('deepseek_v3', {'num_key_value_heads': 2}, 'num_key_value_heads = 2'),
    ('deepseek_v3', {'rope_scaling': {'type': 'yarn', 'factor': 4.0}},
     'without original_max_position_embeddings'),
    ('qwen3_moe', {'decoder_sparse_step': 2}, 'decoder_sparse_step = 2'),
    ('qwen3_moe', {'mlp_only_layers': [1]}, r'mlp_only_layers = \[1\]'),
    ('qwen3_moe', {'num_experts': 'six'}, "num_experts = 'six'"),
  ],
)  # fmt: skip
def test_what_is_not_implemented_is_refused(name, change, message):
  values = {**mapping.hf_config(CONFIGS[name], [1]), **change}
  with pytest.raises(
    weights.WeightsError, match=f'a/config.json has .*{message}'
  ):
    mapping.model_config_from_hf(values, 'a/config.json')


def test_absent_keys_are_those_of_the_class():
  # null says that there is no rank; absent, it is that of the class.
  described = mapping.hf_config(CONFIGS['deepseek_v2'], [1])
  assert described['q_lora_rank'] is None
  del described['q_lora_rank']
  assert mapping.model_config_from_hf(described).latent.query_rank == 1536
