"""Hugging Face folders and GGUF files: round trips and refusals."""

import dataclasses
import json
import re
import struct

import gguf
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from helpers import (
  GEMMA3,
  GGUF_CONFIGS,
  LLAMA,
  as_dict,
  each_config,
  random_params,
  words,
  write_gguf,
)

from rlzero import weights
from rlzero.models import parameters
from rlzero.models.config import (
  LinearScaling,
  RopeScaling,
)
from rlzero.runtime import sharding
from rlzero.text.tokenizer import Tokenizer
from rlzero.train import folders
from rlzero.weights import hf, mapping, rows
from rlzero.weights.families import llama

pytestmark = pytest.mark.model


@pytest.fixture
def folder(tmp_path):
  hf.write_folder(tmp_path, LLAMA, random_params(LLAMA), words())
  return tmp_path


def tensors_of(folder):
  return safetensors.numpy.load_file(folder / 'model.safetensors')


def write_tensors(folder, tensors):
  safetensors.numpy.save_file(tensors, folder / 'model.safetensors')


def edit_config(folder, **changes):
  path = folder / 'config.json'
  values = {**json.loads(path.read_text()), **changes}
  path.write_text(json.dumps(values))


def assert_same(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, actual, expected)
  assert all(x.dtype == np.float32 for x in jax.tree.leaves(actual))


@each_config
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_folder_byte_for_byte(config, dtype, tmp_path):
  hf.write_folder(tmp_path / 'a', config, random_params(config), words(), dtype)
  loaded = weights.load(tmp_path / 'a', dtype)
  assert {x.dtype.name for x in jax.tree.leaves(loaded.params)} == {dtype}
  for name, params in (
    ('same', loaded.params),
    ('by_float32', weights.load(tmp_path / 'a').params),
  ):
    hf.write_folder(tmp_path / name, config, params, loaded.tokenizer, dtype)
    for file in (tmp_path / 'a').iterdir():
      assert (tmp_path / name / file.name).read_bytes() == file.read_bytes()


@each_config
def test_folder_round_trip(config, tmp_path):
  params = random_params(config)
  hf.write_folder(tmp_path / 'new', config, params, words())
  loaded = weights.load(tmp_path / 'new')
  assert loaded.config == config
  assert_same(loaded.params, params)
  assert loaded.tokenizer.encode('b a') == [3, 2]
  assert loaded.tokenizer.eos_ids == (1,)
  assert not list((tmp_path / 'new').glob('.writing-*'))


def test_layout_of_each_kind_of_axis():
  params = random_params(LLAMA)
  tensors = as_dict(mapping.tensors_from_params(LLAMA, params))
  ours = params['layers']['attention']
  layer, head, h, d = 1, 1, 3, 20
  row = head * LLAMA.head_dim + h
  prefix = f'model.layers.{layer}.'
  key = tensors[prefix + 'self_attn.k_proj.weight']
  assert key.shape == (16, 32)
  assert key[row, d] == ours['key'][layer, d, head, h]
  output = tensors[prefix + 'self_attn.o_proj.weight']
  assert output[d, row] == ours['output'][layer, head, h, d]
  gate = tensors[prefix + 'mlp.gate_proj.weight']
  assert gate[50, d] == params['layers']['mlp']['gate'][layer, d, 50]


def test_shards_and_half_precision(folder):
  tensors = tensors_of(folder)
  names = sorted(tensors)
  (folder / 'model.safetensors').unlink()
  index = {}
  for number, dtype in enumerate((np.float16, np.float32)):
    file = f'shard-{number}.safetensors'
    part = {n: tensors[n].astype(dtype) for n in names[number::2]}
    safetensors.numpy.save_file(part, folder / file)
    index |= dict.fromkeys(part, file)
  (folder / 'model.safetensors.index.json').write_text(
    json.dumps({'metadata': {}, 'weight_map': index})
  )
  params = hf.read_folder(folder).params
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3, rtol=0),
    params,
    random_params(LLAMA),
  )
  (folder / 'shard-1.safetensors').unlink()
  with pytest.raises(FileNotFoundError, match='shard-1.safetensors is missing'):
    hf.read_folder(folder)
  (folder / 'model.safetensors.index.json').write_text('{"metadata": {}}')
  with pytest.raises(weights.WeightsError, match='index.json has no weight_m'):
    hf.read_folder(folder)


def test_tensor_in_two_shards_is_named(folder):
  for file in 'ab':
    write = {k: v for k, v in tensors_of(folder).items() if file == 'a'}
    write |= {'model.norm.weight': np.ones(32, np.float32)}
    safetensors.numpy.save_file(write, folder / f'{file}.safetensors')
  (folder / 'model.safetensors').unlink()
  index = {'weight_map': {'x': 'a.safetensors', 'y': 'b.safetensors'}}
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
  with pytest.raises(
    weights.WeightsError,
    match=r'there twice: model.norm.weight \(b.safetensors\)',
  ):
    hf.read_folder(folder)


def test_bfloat16_is_read(folder):
  # NumPy's safetensors may not write this type everywhere, so by hand.
  tensors = tensors_of(folder)
  header, body = {}, b''
  for name, array in tensors.items():
    data = array.astype(ml_dtypes.bfloat16).tobytes()
    header[name] = {
      'dtype': 'BF16',
      'shape': array.shape,
      'data_offsets': [len(body), len(body) + len(data)],
    }
    body += data
  head = json.dumps(header).encode()
  (folder / 'model.safetensors').write_bytes(
    len(head).to_bytes(8, 'little') + head + body
  )
  params = hf.read_folder(folder).params
  expected = jax.tree.map(
    lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32),
    random_params(LLAMA),
  )
  assert_same(params, expected)


def test_every_difference_is_named_at_once(folder):
  tensors = tensors_of(folder)
  tensors['model.norm.bias'] = np.zeros(32, np.float32)
  tensors['model.layers.2.mlp.up_proj.weight'] = np.zeros((64, 32), np.float32)
  del tensors['model.layers.1.mlp.up_proj.weight']
  tensors['model.norm.weight'] = np.zeros(31, np.float32)
  write_tensors(folder, tensors)
  with pytest.raises(weights.WeightsError) as error:
    hf.read_folder(folder)
  message = str(error.value)
  assert message.startswith(str(folder))
  for part in (
    'unknown: ',
    'model.norm.bias (model.safetensors)',
    'model.layers.2.mlp.up_proj.weight (model.safetensors)',
    'missing: model.layers.1.mlp.up_proj.weight;',
    'model.norm.weight (model.safetensors) is [31] and should be [32]',
  ):
    assert part in message
  assert 'twice' not in message


def test_head_of_a_tied_model_must_be_its_embedding(folder):
  tensors = tensors_of(folder)
  embedding = tensors['model.embed_tokens.weight']
  write_tensors(folder, {**tensors, 'lm_head.weight': embedding.copy()})
  assert_same(hf.read_folder(folder).params, random_params(LLAMA))
  write_tensors(folder, {**tensors, 'lm_head.weight': embedding + 1})
  with pytest.raises(weights.WeightsError, match='ties them: lm_head.weight'):
    hf.read_folder(folder)


def test_constants_of_old_files_are_passed_over(folder):
  name = 'model.layers.0.self_attn.rotary_emb.inv_freq'
  write_tensors(folder, {**tensors_of(folder), name: np.ones(4, np.float32)})
  assert_same(hf.read_folder(folder).params, random_params(LLAMA))


def test_quantised_tensors_are_refused(folder):
  name = 'model.norm.weight'
  write_tensors(folder, {**tensors_of(folder), name: np.ones(32, np.int8)})
  with pytest.raises(weights.WeightsError, match=f'{name} as I8'):
    hf.read_folder(folder)


@pytest.mark.parametrize('length', [4, 100, -1])
def test_truncated_safetensors(folder, length):
  path = folder / 'model.safetensors'
  path.write_bytes(path.read_bytes()[:length])
  with pytest.raises(
    weights.WeightsError, match=r'model.safetensors is damaged or cut short'
  ):
    hf.read_folder(folder)


def test_header_that_is_longer_than_any(folder):
  path = folder / 'model.safetensors'
  path.write_bytes((1 << 60).to_bytes(8, 'little') + path.read_bytes()[8:])
  with pytest.raises(
    weights.WeightsError, match=r'model.safetensors is damaged or cut short'
  ):
    hf.read_folder(folder)


@pytest.mark.parametrize(
  'name',
  [
    '../model.safetensors',
    'a/../../model.safetensors',
    '/etc/model.safetensors',
    '..\\model.safetensors',
    'pytorch_model.bin',
    'model.safetensors\0.bin',
    None,
    {'file': 'model.safetensors'},
  ],
)
def test_index_that_leads_out_of_its_folder(folder, name):
  inner = folder / 'inner'
  inner.mkdir()
  (inner / 'config.json').write_bytes((folder / 'config.json').read_bytes())
  index = inner / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': {'model.norm.weight': name}}))
  with pytest.raises(
    weights.WeightsError, match='index.json has model.norm.weight in .*, but'
  ):
    hf.read_folder(inner)
  for wrong in ({}, [], None):
    index.write_text(json.dumps({'weight_map': wrong}))
    with pytest.raises(weights.WeightsError, match='has no weight_map'):
      hf.read_folder(inner)


def test_missing_files(folder):
  (folder / 'model.safetensors').unlink()
  with pytest.raises(FileNotFoundError, match='holds neither model.safetens'):
    hf.read_folder(folder)
  (folder / 'config.json').write_text('{"model_type": ')
  with pytest.raises(weights.WeightsError, match='config.json is not JSON'):
    hf.read_folder(folder)
  (folder / 'config.json').unlink()
  with pytest.raises(FileNotFoundError, match='config.json is missing'):
    hf.read_folder(folder)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'model_type': 'mistral'}, "model_type 'mistral', but only"),
    ({'model_type': ['llama']}, "model_type ['llama'], but only"),
    ({'hidden_act': 'gelu'}, "hidden_act = 'gelu'"),
    ({'rope_scaling': {'type': 'dynamic'}}, "rope_type = 'dynamic'"),
    ({'rope_scaling': {'type': 'linear'}}, "rope_type 'linear' without factor"),
    ({'rope_parameters': {'rope_type': 'longrope'}}, "rope_type = 'longrope'"),
    ({'rope_scaling': {'rope_type': 'llama3', 'factor': 8.0}}, 'without low_f'),
    ({'rope_scaling': {'factor': 8.0}}, 'by factor without a type'),
    (
      {'rope_parameters': {'factor': 8, 'rope_theta': 1.0}},
      'by factor without',
    ),
    ({'rope_scaling': {'type': None, 'factor': 8.0}}, 'by factor without a t'),
    (
      {'rope_scaling': {'original_max_position_embeddings': 64}},
      'by original_max_position_embeddings without a type',
    ),
    (
      {'rope_scaling': {'type': 'linear', 'rope_type': 'yarn', 'factor': 2.0}},
      "a rotary embedding of the types 'linear' and 'yarn'",
    ),
    (
      {
        'rope_parameters': {'rope_theta': 1e4},
        'rope_scaling': {'type': 'linear', 'factor': 4.0},
      },
      'which are not the same stretch',
    ),
    ({'rope_scaling': 8.0}, 'rope_scaling = 8.0, but an object or null'),
    ({'rope_scaling': {'type': 'linear', 'factor': '8'}}, "factor = '8'"),
    ({'rope_scaling': {'type': 'linear', 'factor': 0.5}}, 'factor is 0.5'),
    ({'rope_theta': 0}, 'rope_theta = 0.0, but a number above 0'),
    ({'rope_theta': True}, 'rope_theta = True, but a number'),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor = 0.5'),
    ({'model_type': 'qwen2', 'use_sliding_window': True}, 'use_sliding_w'),
    ({'layer_types': ['sliding_attention']}, 'layer_types'),
    ({'attention_bias': True}, 'attention_bias = True'),
    ({'mlp_bias': True}, 'mlp_bias = True'),
    ({'quantization_config': {'bits': 4}}, 'quantization_config'),
    ({'hidden_size': None}, 'hidden_size = None, but a whole number'),
    (
      {'num_key_value_heads': 3},
      'a multiple of 3 (as many query heads share each',
    ),
  ],
)
def test_config_that_is_not_implemented(folder, change, message):
  edit_config(folder, **change)
  with pytest.raises(ValueError, match=re.escape(message)):
    hf.read_folder(folder)


def test_config_defaults_are_those_of_the_architecture():
  small = {
    'vocab_size': 8,
    'num_hidden_layers': 1,
    'hidden_size': 64,
    'intermediate_size': 8,
    'num_attention_heads': 4,
  }
  llama = mapping.model_config_from_hf({'model_type': 'llama', **small})
  assert (llama.head_dim, llama.num_kv_heads) == (16, 4)
  assert (llama.rope_theta, llama.rms_norm_eps) == (1e4, 1e-6)
  assert not llama.tied_embedding
  rope = {'rope_parameters': {'rope_type': 'default', 'rope_theta': 7.0}}
  qwen3 = mapping.model_config_from_hf({'model_type': 'qwen3', **small, **rope})
  assert (qwen3.head_dim, qwen3.rope_theta) == (128, 7.0)
  assert qwen3.qk_norm


def test_nothing_is_written_from_wrong_parameters(tmp_path):
  params = random_params(LLAMA)
  params['head'] = {'kernel': np.zeros((32, 11), np.float32)}
  params['final_norm']['scale'] = np.zeros(3, np.float32)
  del params['layers']['mlp']['up']
  target = tmp_path / 'new'
  with pytest.raises(weights.WeightsError) as error:
    hf.write_folder(target, LLAMA, params, words())
  assert 'unknown: head/kernel; missing: layers/mlp/up;' in str(error.value)
  assert 'final_norm/scale is [3] and should be [32]' in str(error.value)
  assert not target.exists()
  both = dataclasses.replace(LLAMA, qkv_bias=True, qk_norm=True)
  with pytest.raises(weights.WeightsError, match='has qkv_bias = True, qk_n'):
    hf.write_folder(target, both, random_params(both), words())


def damaged(kind, folder):
  """Makes one thing wrong; returns what must be named, and what to do."""
  tensors, shard = tensors_of(folder), folder / 'b.safetensors'
  match kind:
    case 'missing shard' | 'truncated shard':
      first = (folder / 'model.safetensors').rename(folder / 'a.safetensors')
      places = dict.fromkeys(tensors, first.name)
      places['model.norm.weight'] = shard.name
      (folder / 'model.safetensors.index.json').write_text(
        json.dumps({'weight_map': places})
      )
      if kind == 'missing shard':
        return shard, 'copy or download it'
      safetensors.numpy.save_file({'a': np.ones(9, np.float32)}, shard)
      shard.write_bytes(shard.read_bytes()[:-1])
      return shard, 'copy or download it again'
    case 'architecture':
      edit_config(folder, model_type='mamba2')
      return folder / 'config.json', 'choose another model'
    case 'sliding window':
      edit_config(folder, model_type='qwen2', use_sliding_window=True)
      return folder / 'config.json', 'but only False is implemented'
    case 'shape':
      tensors['model.norm.weight'] = np.ones(31, np.float32)
      name = 'model.norm.weight (model.safetensors) is [31] and should be [32]'
    case 'extra':
      tensors['model.more.weight'] = np.ones(1, np.float32)
      name = 'unknown: model.more.weight (model.safetensors)'
    case 'eos':
      edit_config(folder, eos_token_id=None)
      (folder / 'generation_config.json').unlink()
      (folder / 'tokenizer_config.json').unlink()
      return folder, 'set eos_token in tokenizer_config.json'
    case 'vocabulary':
      many = [f'w{i}' for i in range(12)]
      Tokenizer.word_level(many, '<eos>', '<pad>').save(folder)
      return folder, 'put the tokenizer of this very model there'
  write_tensors(folder, tensors)
  return f'{folder} does not match its config: ', name, 'Use the weights and '


@pytest.mark.parametrize(
  'kind',
  ['missing shard', 'truncated shard', 'architecture', 'sliding window',
   'shape', 'extra', 'eos', 'vocabulary'],
)  # fmt: skip
def test_bad_input_is_named_with_what_to_do(kind, folder):
  parts = damaged(kind, folder)
  with pytest.raises((weights.WeightsError, ValueError, OSError)) as error:
    weights.load(folder)
  for part in parts:
    assert str(part) in str(error.value)


def test_unpermute_by_hand():
  # One head of four: the converter stores rows 0 1 | 2 3 as 0 2 1 3.
  stored = np.array([[0], [2], [1], [3], [4], [6], [5], [7]])
  assert llama.unpermute(stored, 2).ravel().tolist() == list(range(8))


@pytest.mark.parametrize('name', GGUF_CONFIGS)
def test_gguf_is_read(name, tmp_path):
  config = GGUF_CONFIGS[name]
  write_gguf(
    tmp_path / 'm.gguf', config, name.split('_')[0].replace('llama3', 'llama')
  )
  loaded = weights.load(tmp_path)
  assert loaded.config == config
  expected = random_params(config)
  if config.unit_offset_norm:  # 1 + x - 1 is x up to rounding
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=0),
      loaded.params,
      expected,
    )
  else:
    assert_same(loaded.params, expected)
  assert loaded.tokenizer.decode(loaded.tokenizer.encode('ab 12')) == 'ab 12'


def test_gguf_with_an_unknown_stretch(tmp_path):
  scaling = RopeScaling(factor=5.0)
  config = dataclasses.replace(GGUF_CONFIGS['llama'], rope_scaling=scaling)
  write_gguf(tmp_path / 'm.gguf', config, 'llama')
  with pytest.raises(weights.WeightsError, match='rope_freqs.weight in a way'):
    weights.load(tmp_path)


def test_quantised_gguf_is_close(tmp_path):
  kind = gguf.GGMLQuantizationType.Q8_0
  config = GGUF_CONFIGS['llama']
  path = write_gguf(tmp_path / 'm.gguf', config, 'llama', quantised=kind)
  loaded = weights.load(path)
  # Steps of Q8_0 are max/127 of a block of 32: at most 4.5/127/2 here.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=0.02, rtol=0),
    loaded.params,
    random_params(config),
  )


@pytest.mark.parametrize(
  'kind, arguments, message',
  [
    ('mamba', {}, "architecture 'mamba', but only gemma3, llama"),
    ('llama', {'rope.scaling.type': 'yarn'}, "rope.scaling.type = 'yarn'"),
    ('llama', {'rope.scaling.factor': 8}, 'scaling.factor without a type'),
    ('gemma3', {'rope.scaling.factor': 8}, 'scaling.factor without a type'),
    ('qwen2', {'rope.scale_linear': 4}, 'rope.scale_linear without a type'),
    ('llama', {'rope.dimension_count': 4}, 'rope.dimension_count = 4'),
    ('llama', {'expert_count': 8}, 'llama.expert_count = 8'),
    ('llama', {'block_count': 'two'}, "block_count = 'two', but a whole num"),
    ('llama', {'block_count': 1}, 'unknown: blk.1.attn_q.weight (m.gguf)'),
    ('llama', {'drop': ['output_norm.weight']}, 'missing: output_norm.weight'),
    (
      'llama',
      {'embedding_length': 64},
      'blk.0.attn_q.weight (m.gguf) is [32, 32] and should be [32, 64]',
    ),
    ('qwen2', {}, 'missing: blk.0.attn_q.bias'),
  ],
)
def test_gguf_that_is_refused(kind, arguments, message, tmp_path):
  config = GGUF_CONFIGS['llama']
  path = write_gguf(tmp_path / 'm.gguf', config, kind, **arguments)
  with pytest.raises(weights.WeightsError, match=re.escape(message)):
    weights.load(path)


def test_gguf_type_nobody_undoes(tmp_path):
  path = write_gguf(tmp_path / 'm.gguf', GGUF_CONFIGS['llama'], 'llama')
  # Relabel the last norm (float32) as int32, same size.
  name = b'output_norm.weight'
  data = bytearray(path.read_bytes())
  at = data.index(name) + len(name) + 4 + 8  # number of axes, one axis
  data[at : at + 4] = gguf.GGMLQuantizationType.I32.to_bytes(4, 'little')
  path.write_bytes(data)
  with pytest.raises(
    weights.WeightsError,
    match=f'{path} stores output_norm.weight as I32, .* use a file of another',
  ):
    weights.load(path)


@pytest.mark.parametrize('share', [0.0, 0.0001, 0.1, 0.5, 0.99])
def test_truncated_gguf(share, tmp_path):
  path = write_gguf(tmp_path / 'm.gguf', GGUF_CONFIGS['llama'], 'llama')
  data = path.read_bytes()
  path.write_bytes(data[: int(share * len(data))])
  with pytest.raises(weights.WeightsError, match='damaged or cut short'):
    weights.load(path)


@pytest.mark.parametrize(
  'head, message',
  [
    (struct.pack('<QQ', 0, 1 << 60), 'its head goes to byte'),
    (struct.pack('<QQ', 1 << 60, 0), 'its head goes to byte'),
    (struct.pack('<QQQ', 0, 1, 1 << 62), 'its head goes to byte'),
    (  # an array of 2^60 numbers, which would take no bytes at the end
      struct.pack('<QQQcIIQ', 0, 1, 1, b'k', 9, 4, 1 << 60),
      'an array has 1152921504606846976 entries',
    ),
    (struct.pack('<QQQcIIQ', 0, 1, 1, b'k', 9, 99, 1), 'a value is of type 99'),
    (
      struct.pack('<QQQcI', 0, 1, 1, b'k', 9) + struct.pack('<IQ', 9, 1) * 5,
      'a value is of type 9',
    ),
    (struct.pack('<QQQcI', 0, 1, 1, b'k', 8), 'its head goes to byte'),
  ],
)
def test_gguf_whose_head_promises_too_much(head, message, tmp_path):
  path = tmp_path / 'm.gguf'
  path.write_bytes(b'GGUF' + struct.pack('<I', 3) + head)
  with pytest.raises(
    weights.WeightsError, match=f'damaged or cut short .{message}'
  ):
    weights.load(path)


def test_what_is_no_model(tmp_path):
  with pytest.raises(FileNotFoundError, match='nowhere does not exist'):
    weights.load(tmp_path / 'nowhere')
  with pytest.raises(FileNotFoundError, match='x.gguf does not exist'):
    weights.open_gguf(tmp_path / 'x.gguf')
  with pytest.raises(FileNotFoundError, match='exactly one .gguf file'):
    weights.load(tmp_path)
  for name in ('a.gguf', 'b.gguf', 'c.bin'):
    (tmp_path / name).touch()
  with pytest.raises(FileNotFoundError, match='it has 2'):
    weights.load(tmp_path)
  with pytest.raises(FileNotFoundError, match='c.bin is no model'):
    weights.load(tmp_path / 'c.bin')


def test_the_text_model_of_one_that_sees_images(tmp_path, capsys):
  hf.write_folder(tmp_path, GEMMA3, random_params(GEMMA3), words())
  config = json.loads((tmp_path / 'config.json').read_text())
  (tmp_path / 'config.json').write_text(
    json.dumps({'model_type': 'gemma3', 'text_config': config})
  )
  plain = tensors_of(tmp_path)
  for beginning in ('language_model.model.', 'model.language_model.'):
    write_tensors(
      tmp_path,
      {
        **{beginning + n.removeprefix('model.'): x for n, x in plain.items()},
        'vision_tower.patch.weight': np.ones(2, np.float32),
        'multi_modal_projector.weight': np.ones(2, np.float32),
      },
    )
    loaded = weights.load(tmp_path)
    assert loaded.config == GEMMA3
    assert_same(loaded.params, random_params(GEMMA3))
    assert loaded.left_out == (
      '1 tensors *vision_tower.* are left out: the part that sees images',
      '1 tensors *multi_modal_projector.* are left out: the part that sees '
      'images',
    )
  folders.load_model(str(tmp_path))
  assert 'the part that sees images.' in capsys.readouterr().err


def test_gemmas_as_the_hub_has_them():
  # What google/gemma-3-4b-pt says of its text model, and no more.
  text = {
    'hidden_size': 2560,
    'intermediate_size': 10240,
    'model_type': 'gemma3_text',
    'num_hidden_layers': 34,
    'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'},
    'sliding_window': 1024,
  }
  config = mapping.model_config_from_hf(
    {'model_type': 'gemma3', 'text_config': text}
  )
  assert (config.num_heads, config.num_kv_heads) == (8, 4)
  assert (config.rope_theta, config.local_rope_theta) == (1e6, 1e4)
  assert config.rope_scaling == LinearScaling(factor=8.0)
  assert [i for i, x in enumerate(config.local_layers) if not x] == [
    5, 11, 17, 23, 29,
  ]  # fmt: skip
  with pytest.raises(weights.WeightsError, match='layer_types'):
    types = ['sliding_attention', 'full_attention', 'full_attention']
    mapping.model_config_from_hf(
      {**text, 'num_hidden_layers': 3, 'layer_types': types}
    )
  with pytest.raises(weights.WeightsError, match='final_logit_softcapping'):
    mapping.model_config_from_hf({**text, 'final_logit_softcapping': 30.0})
  for stretch, message in (
    ({'rope_scaling': {'factor': 8.0}}, 'by factor without a type'),
    ({'rope_parameters': {'full_attention': {'factor': 8.0}}}, 'by factor wi'),
    ({'rope_parameters': {'sliding_attention': {'factor': 8.0}}}, 'by factor'),
    (
      {'rope_parameters': {'rope_type': 'linear', 'factor': 8.0}},
      'rope_type, factor, but only sliding_attention and full_attention',
    ),
  ):
    with pytest.raises(weights.WeightsError, match=message):
      mapping.model_config_from_hf({**text, 'rope_scaling': None, **stretch})


def test_tokenizer_that_is_too_large_for_the_embedding(folder):
  many = Tokenizer.word_level([f'w{i}' for i in range(12)], '<eos>', '<pad>')
  many.save(folder)
  with pytest.raises(
    weights.WeightsError,
    match=f"{folder} has a tokenizer with ids past the 11 rows .* of 'w10'",
  ):
    weights.load(folder)


@pytest.mark.parametrize('piece', [1, 9, 10**6])
def test_a_row_with_names_for_experts(piece, monkeypatch):
  """Layers from the third on, an expert each in a tensor of its own."""
  monkeypatch.setattr(rows, '_PIECE', piece)
  row = rows.Row(
    'layers/expert_up',
    'model.layers.{L}.experts.{E}.up.weight',
    'blk.{L}.up_exps.weight',
    range(2, 4),
  )
  lengths = {'E': 3, 'W': 4, 'D': 5}
  whole = np.arange(2 * 3 * 5 * 4).reshape(2, 3, 5, 4)
  names = row.names('hf', lengths)
  assert names[:4:3] == [
    'model.layers.2.experts.0.up.weight',
    'model.layers.3.experts.0.up.weight',
  ]
  assert row.names('gguf', lengths) == [
    'blk.2.up_exps.weight',
    'blk.3.up_exps.weight',
  ]
  for naming in ('hf', 'gguf'):
    tensors = {}
    for name, place in row.parts(naming, lengths):
      array = row.to_file(whole[place], naming, lengths)
      assert array.shape == row.file_shape(naming, lengths)
      tensors[name] = rows.Stored('f', array.shape, array.__getitem__)
    lazy = rows.Lazy(row, tensors, naming, lengths)
    index = (slice(1, 2), slice(1, 3), slice(0, 5), slice(2, 4))
    np.testing.assert_array_equal(lazy.read(index), whole[index])
    np.testing.assert_array_equal(
      lazy[(1, 2, slice(None), slice(None))], whole[1, 2]
    )


@pytest.mark.parametrize('block_bytes', [1, 9000])
def test_each_device_reads_its_own_part(folder, block_bytes, monkeypatch):
  """Cut over a mesh, in blocks of a layer or so: the same numbers."""
  monkeypatch.setattr(mapping, '_BLOCK_BYTES', block_bytes)
  asked = []
  read = rows.Lazy.read

  def spy(self, index, dtype=None):
    part = read(self, index, dtype)
    asked.append(part.nbytes)
    return part

  monkeypatch.setattr(rows.Lazy, 'read', spy)
  config = dataclasses.replace(LLAMA, vocab_size=12)
  params = random_params(config)
  hf.write_folder(folder, config, params, words())
  with sharding.use(sharding.Mesh(fsdp=4, tensor=2)):
    loaded = weights.load(folder)
    where = sharding.param_shardings(parameters.AXES, loaded.params)
    same = jax.tree.map(
      lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), loaded.params, where
    )
    assert all(jax.tree.leaves(same))
    query = loaded.params['layers']['attention']['query']
    assert query.addressable_shards[0].data.shape == (2, 8, 2, 8)
  assert_same(loaded.params, params)
  # A layer of the MLP, in eight parts.
  assert max(asked[8 * 2 :]) <= max(block_bytes, 32 * 64 * 4 // 8)
