"""GGUF files: the head, every quantisation, and what we write."""

import dataclasses
import struct

import gguf
import jax
import numpy as np
import pytest
import tokenizers
from helpers import (
  CONFIGS,
  GGUF_CONFIGS,
  byte_level_metadata,
  gguf_metadata,
  random_params,
  sentencepiece_metadata,
  words,
)
from helpers import write_gguf as write_theirs
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from rlzero import convert, weights
from rlzero.models.config import Yarn
from rlzero.text.tokenizer import Tokenizer
from rlzero.train import folders
from rlzero.weights import gguf as gguf_files
from rlzero.weights import gguf_head, gguf_tokenizer, mapping, rows

pytestmark = pytest.mark.model

ODD = (
  'ab 12  a\n\n\tb\r\n ',
  'Größe, naïve 日本語 Здравствуй عربي 🙂🏳️‍🌈 e\u0301 ½ ² Ⅳ ١٢٣',
  '<think>ab</think><end> <begin><turn>user as 12 1 2',
  "'re 'RE  don't a1b2c3 <0x41> ▁a [PAD7]",
  '',
)


def head_of(path):
  """What the library's own reader finds, and where."""
  reader = gguf.GGUFReader(path)
  metadata = {
    key: field.contents()
    for key, field in reader.fields.items()
    if not key.startswith('GGUF.')
  }
  tensors = {
    t.name: (tuple(reversed(t.shape.tolist())), t.tensor_type, t.data_offset)
    for t in reader.tensors
  }
  return metadata, tensors, reader


def test_head_is_what_the_library_reads(tmp_path):
  path = write_theirs(
    tmp_path / 'm.gguf',
    GGUF_CONFIGS['gemma3'],
    'gemma3',
    **{'more.numbers': 7},
  )
  head = gguf_head.read(path)
  metadata, tensors, reader = head_of(path)
  assert head.metadata == metadata
  assert {
    t.name: (t.shape, t.kind, t.start) for t in head.tensors.values()
  } == (tensors)
  assert [t.num_bytes for t in head.tensors.values()] == [
    t.n_bytes for t in reader.tensors
  ]


def test_values_of_every_type(tmp_path):
  path = tmp_path / 'm.gguf'
  writer = gguf.GGUFWriter(path, 'llama')
  written = {}
  for name, value in (
    ('uint8', 200), ('int8', -100), ('uint16', 60000), ('int16', -30000),
    ('uint32', 4 * 10**9), ('int32', -2 * 10**9), ('float32', 0.5),
    ('uint64', 2**63), ('int64', -(2**62)), ('float64', 0.1), ('bool', True),
    ('string', 'ä🙂'), ('array', [3, -4]), ('array', ['', 'ö']),
    ('array', [0.5, 2.0]), ('array', [True, False]),
  ):  # fmt: skip
    key = f'{name}.{len(written)}'
    getattr(writer, f'add_{name}')(key, value)
    written[key] = value
  writer.add_custom_alignment(64)
  writer.add_tensor('x', np.arange(5, dtype=np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  head = gguf_head.read(path)
  assert written.items() <= head.metadata.items()
  assert head.tensors['x'].start % 64 == 0
  (only,) = gguf_files.tensors(path).values()
  np.testing.assert_array_equal(only.read((slice(1, 4),)), [1, 2, 3])


def _types():
  """Types that the library undoes."""
  for kind, (_, size) in gguf.GGML_QUANT_SIZES.items():
    try:
      gguf.dequantize(np.zeros((1, size), np.uint8), kind)
    except NotImplementedError:
      continue
    yield kind


@pytest.mark.filterwarnings('ignore::RuntimeWarning')
def test_every_quantisation_byte_for_byte(tmp_path, monkeypatch):
  """Cut into pieces, transposed and by several threads, the bits are theirs."""
  path, kinds = tmp_path / 'm.gguf', list(_types())
  assert len(kinds) > 15
  writer, rng = gguf.GGUFWriter(path, 'llama'), np.random.default_rng(0)
  for kind in kinds:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    for layer in range(2):
      data = rng.integers(0, 256, (48, 512 // block * size), np.uint8)
      writer.add_tensor(f'{layer}.{kind.name}.weight', data, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  expected = {
    t.name: gguf.dequantize(t.data, t.tensor_type)
    for t in gguf.GGUFReader(path).tensors
  }
  lengths = {'F': 48, 'D': 512}
  for numbers in (2**9, 2**13, 2**20):
    monkeypatch.setattr(rows, '_GGUF_PIECE', numbers)
    monkeypatch.setattr(gguf_files, '_PIECE', max(numbers // 2, 256))
    tensors = gguf_files.tensors(path)
    for kind in kinds:
      name = '{L}.' + kind.name + '.weight'
      row = rows.Row('layers/mlp/up', '', name, range(2))
      found = row.read(tensors, 'gguf', lengths, (slice(None),) * 3)
      whole = np.stack([expected[name.format(L=layer)].T for layer in range(2)])
      assert found.shape == (2, 512, 48)
      assert found.tobytes() == whole.tobytes(), kind.name


@pytest.mark.parametrize(
  'change, message',
  [
    (('magic', b'GGML'), 'it does not begin with GGUF'),
    (('version', 1), 'its version is 1'),
    (('version', 3 << 24), 'the highest byte first; convert it'),
    (('kind', 1000), 'as type 1000, which the gguf library does not know'),
    (('axes', 5), 'has 5 axes'),
    (('axis', 0), 'has an axis of 0'),
    (('axis', 1 << 62), 'ends at byte'),
  ],
)
def test_heads_that_make_no_sense(change, message, tmp_path):
  path = write_theirs(tmp_path / 'm.gguf', GGUF_CONFIGS['llama'], 'llama')
  data = bytearray(path.read_bytes())
  name = b'output_norm.weight'
  place = data.index(name) + len(name)
  match change:
    case 'magic', value:
      data[:4] = value
    case 'version', value:
      data[4:8] = value.to_bytes(4, 'little')
    case 'axes', value:
      data[place : place + 4] = value.to_bytes(4, 'little')
    case 'axis', value:
      data[place + 4 : place + 12] = value.to_bytes(8, 'little')
    case 'kind', value:
      data[place + 12 : place + 16] = value.to_bytes(4, 'little')
  path.write_bytes(data)
  with pytest.raises(weights.WeightsError, match=message):
    weights.open_gguf(path)


def test_what_is_there_twice(tmp_path):
  pair = struct.pack('<Q1sIB', 1, b'k', 0, 1)
  tensor = struct.pack('<Q1sIQIQ', 1, b't', 1, 1, 0, 0)
  for body, name in (
    (struct.pack('<QQ', 0, 2) + pair * 2, 'k'),
    (struct.pack('<QQ', 2, 0) + tensor * 2, 't'),
  ):
    path = tmp_path / 'm.gguf'
    path.write_bytes(b'GGUF' + struct.pack('<I', 3) + body)
    with pytest.raises(weights.WeightsError, match=f"'{name}' is there twice"):
      weights.open_gguf(path)


def model(name, **changes):
  config = dataclasses.replace(GGUF_CONFIGS[name], **changes)
  tokenizer = gguf_tokenizer.read(gguf_metadata(add_bos_token=True))
  return config, random_params(config), tokenizer


@pytest.mark.parametrize('name', GGUF_CONFIGS)
def test_what_is_written_is_read(name, tmp_path):
  config, params, tokenizer = model(name)
  path = tmp_path / 'deep' / 'm.gguf'
  weights.write_gguf(path, config, params, tokenizer)
  assert [f.name for f in path.parent.iterdir()] == ['m.gguf']
  back = weights.open_model(path)
  assert back.config == config
  ours = mapping.tensors_from_params(config, params)
  theirs = mapping.tensors_from_params(config, back.params)
  for one, other in zip(ours, theirs, strict=True):
    if config.unit_offset_norm and 'norm' in one.name:
      # 1 + x is stored, and x is that up to rounding.
      np.testing.assert_allclose(other.read(), one.read(), atol=5e-7, rtol=0)
    else:
      assert one.read().tobytes() == other.read().tobytes(), one.name
  assert_same_tokenizer(back.tokenizer, tokenizer)


def assert_same_tokenizer(ours, theirs):
  for text in ODD:
    for special in (True, False):
      ids = theirs.encode(text, special)
      assert ours.encode(text, special) == ids, text
    assert ours.decode(ids) == theirs.decode(ids)
  for name in ('eos_ids', 'bos_id', 'pad_id', 'chat_template'):
    assert getattr(ours, name) == getattr(theirs, name)


def test_they_read_what_the_converter_writes(tmp_path):
  """The permutation and the offset, as another program undoes them."""
  for name, architecture in (('llama', 'llama'), ('gemma3', 'gemma3')):
    config, params, tokenizer = model(name)
    weights.write_gguf(tmp_path / 'ours.gguf', config, params, tokenizer)
    write_theirs(tmp_path / 'theirs.gguf', config, architecture)
    ours, theirs = (
      {t.name: t.data for t in gguf.GGUFReader(tmp_path / file).tensors}
      for file in ('ours.gguf', 'theirs.gguf')
    )
    assert ours.keys() == theirs.keys()
    for key, array in theirs.items():
      np.testing.assert_array_equal(ours[key], array, err_msg=key)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'q8_0'])
def test_types_of_tensors(dtype, tmp_path):
  config, params, tokenizer = model('qwen2', width=40)
  shown = []
  weights.write_gguf(
    tmp_path / 'm.gguf',
    config,
    params,
    tokenizer,
    dtype,
    lambda *done: shown.append(done),
  )
  metadata, tensors, reader = head_of(tmp_path / 'm.gguf')
  kind = {'float16': 'F16', 'bfloat16': 'BF16', 'q8_0': 'Q8_0'}[dtype]
  assert metadata['general.file_type'] == gguf.LlamaFileType[f'MOSTLY_{kind}']
  for name, (shape, found, _) in tensors.items():
    wanted = 'F32' if len(shape) == 1 else kind
    if wanted == 'Q8_0' and shape[-1] == 40:  # no whole blocks
      wanted = 'F16'
    assert found.name == wanted, name
  assert tensors['blk.0.ffn_down.weight'][1].name == kind
  total = sum(t.n_bytes for t in reader.tensors)
  assert shown[-1] == (total, total) and len(shown) == len(tensors)
  back = weights.load(tmp_path / 'm.gguf')
  step = {'float16': 2e-3, 'bfloat16': 2e-2, 'q8_0': 2e-2}[dtype]
  differences = [
    np.abs(np.asarray(a) - b).max()
    for a, b in zip(
      jax.tree.leaves(back.params), jax.tree.leaves(params), strict=True
    )
  ]
  assert 1e-4 < max(differences) < step


def test_a_number_that_is_too_large(tmp_path):
  config, params, tokenizer = model('llama')
  params['layers']['mlp']['up'][1, 3, 5] = 1e5
  path = tmp_path / 'm.gguf'
  with pytest.raises(weights.WeightsError, match='blk.1.ffn_up.weight .* 65,5'):
    weights.write_gguf(path, config, params, tokenizer, 'float16')
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'name, change, message',
  [
    ('qwen3_moe', {}, "family 'qwen3_moe' are not written as GGUF"),
    ('deepseek_v3', {}, "family 'deepseek_v3' are not written as GGUF"),
    (
      'llama',
      {'rope_scaling': Yarn(factor=2.0, original_max_position=9)},
      'has rope_scaling = .*, which a GGUF file',
    ),
    ('gemma3', {'query_scalar': 7}, 'has query_scalar = 7, which a GGUF'),
  ],
)
def test_models_that_gguf_files_do_not_have(name, change, message, tmp_path):
  config = dataclasses.replace({**CONFIGS, **GGUF_CONFIGS}[name], **change)
  with pytest.raises(weights.WeightsError, match=message):
    weights.write_gguf(tmp_path / 'm.gguf', config, {}, words())
  assert not list(tmp_path.iterdir())


def byte_level_backend(*steps, normalizer=None):
  """A tokenizer as a tokenizer.json has it, with those steps before merging."""
  values = gguf_metadata()
  tokens = values['tokenizer.ggml.tokens'][3:]
  backend = tokenizers.Tokenizer(
    models.BPE(
      vocab={token: i for i, token in enumerate(tokens)},
      merges=[tuple(m.split()) for m in values['tokenizer.ggml.merges']],
    )
  )
  backend.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
  backend.decoder = decoders.ByteLevel()
  if normalizer is not None:
    backend.normalizer = normalizer
  backend.add_special_tokens(['<end>', '<begin>'])
  backend.add_tokens(['<think>'])
  return backend


def split(name):
  (cut,) = gguf_tokenizer.SPLITS[name]
  return pre_tokenizers.Split(tokenizers.Regex(cut), 'isolated')


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Digits(individual_digits=True)


def test_tokenizers_as_the_hub_has_them(tmp_path):
  """With their own names for the same cuts, and fewer tokens than rows."""
  config, params, _ = model('qwen2')
  end = len(gguf_metadata()['tokenizer.ggml.tokens']) - 3
  config = dataclasses.replace(config, vocab_size=end + 9)
  params = random_params(config)
  for backend, name in (
    (byte_level_backend(split('qwen2'), BYTES, normalizer=normalizers.NFC()),
     'qwen2'),
    (byte_level_backend(DIGITS, WORDS), 'smollm'),
    (byte_level_backend(WORDS), 'gpt-2'),
  ):  # fmt: skip
    tokenizer = Tokenizer(backend, eos_ids=[end, end + 1], pad_id=3)
    weights.write_gguf(tmp_path / 'm.gguf', config, params, tokenizer)
    metadata, _, _ = head_of(tmp_path / 'm.gguf')
    assert metadata['tokenizer.ggml.pre'] == name
    types = metadata['tokenizer.ggml.token_type']
    assert types == [1] * end + [3, 3, 4] + [5] * 6
    back = weights.open_model(tmp_path / 'm.gguf')
    assert_same_tokenizer(back.tokenizer, tokenizer)


@pytest.mark.parametrize(
  'given',
  [
    byte_level_metadata(),
    sentencepiece_metadata(),
    sentencepiece_metadata(add_space_prefix=False),
  ],
  ids=['byte-level', 'prefixed', 'sentencepiece'],
)
def test_tokenizers_of_both_kinds(given, tmp_path):
  tokenizer = gguf_tokenizer.read(given)
  size = len(given['tokenizer.ggml.tokens'])
  config = dataclasses.replace(GGUF_CONFIGS['llama'], vocab_size=size)
  params = random_params(config)
  weights.write_gguf(tmp_path / 'm.gguf', config, params, tokenizer)
  back = weights.open_model(tmp_path / 'm.gguf').tokenizer
  assert_same_tokenizer(back, tokenizer)
  chat = [{'role': 'user', 'content': 'as us <end>'}]
  assert back.apply_chat_template(chat) == tokenizer.apply_chat_template(chat)


def refused_tokenizer(kind):
  backend = byte_level_backend(WORDS)
  match kind:
    case 'word level':
      return words()
    case 'cut':
      cut = pre_tokenizers.Split(tokenizers.Regex('x+'), 'isolated')
      backend = byte_level_backend(cut, BYTES)
    case 'step':
      backend = byte_level_backend(pre_tokenizers.Punctuation(), WORDS)
    case 'normaliser':
      backend = byte_level_backend(WORDS, normalizer=normalizers.NFKC())
    case 'strip':
      backend.add_tokens([AddedToken('<b>', lstrip=True)])
    case 'ends':
      return Tokenizer(backend, eos_ids=[1, 2, 3, 4])
  return Tokenizer(backend, eos_ids=[backend.token_to_id('<end>')])


@pytest.mark.parametrize(
  'kind, message',
  [
    ('word level', 'is of type WordLevel'),
    ('cut', 'cuts text in a way without a name'),
    ('step', "cuts text by 'Punctuation'"),
    ('normaliser', 'has the normalizer .*NFKC'),
    ('strip', "matches '<b>' with lstrip = True"),
    ('ends', 'ends a completion at 4 tokens'),
  ],
)
def test_tokenizers_that_gguf_files_do_not_have(kind, message, tmp_path):
  config, params, _ = model('llama')
  tokenizer = refused_tokenizer(kind)
  with pytest.raises(weights.WeightsError, match=f'{message}.*GGUF file can'):
    weights.write_gguf(tmp_path / 'm.gguf', config, params, tokenizer)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('dtype', ['float32', 'q8_0'])
def test_a_folder_becomes_a_file_and_a_folder_again(dtype, tmp_path, capsys):
  config, params, tokenizer = model('qwen3')
  source, file, out = (tmp_path / name for name in ('a', 'b/m.gguf', 'c'))
  weights.write_folder(source, config, params, tokenizer)
  settings = {'checkpoint': str(source), 'kind': 'gguf', 'dtype': dtype}
  convert.run(convert.Config(**settings, output=str(file)))
  said = capsys.readouterr().out
  assert f'weights equal after rounding to {dtype}; log-probs differ' in said
  assert 'by 0 at most' in said if dtype == 'float32' else 'by 0 ' not in said
  size = f'{file.stat().st_size / 1e6:,.1f}'
  assert f'wrote {size} MB to {file}' in said
  convert.run(convert.Config(checkpoint=str(file), output=str(out)))
  if dtype == 'float32':
    names = 'model.safetensors', 'config.json'
    for name in names:
      assert (out / name).read_bytes() == (source / name).read_bytes()


def test_a_written_file_that_differs_is_noticed(tmp_path, monkeypatch):
  opened = weights.open_model

  def damaged(path):
    if str(path).endswith('.gguf'):
      data = bytearray((tmp_path / 'm.gguf').read_bytes())
      data[-9] ^= 1
      (tmp_path / 'm.gguf').write_bytes(data)
    return opened(path)

  weights.write_folder(tmp_path / 'a', *model('llama'))
  monkeypatch.setattr(weights, 'open_model', damaged)
  with pytest.raises(ValueError, match='output_norm.weight in .*m.gguf is not'):
    convert.run(
      convert.Config(
        checkpoint=str(tmp_path / 'a'),
        output=str(tmp_path / 'm.gguf'),
        kind='gguf',
      )
    )


def test_settings_of_a_gguf_file():
  for kind, output, dtype, message in (
    ('gguf', 'folder', 'q8_0', "kind is 'gguf' and the output 'folder'"),
    ('folder', 'm.gguf', 'float32', "kind is 'folder' and the output 'm.gg"),
    ('folder', 'out', 'q8_0', "dtype is 'q8_0', which GGUF files alone"),
    ('run', 'out', 'float16', "dtype is 'float16', which GGUF files alone"),
  ):
    with pytest.raises(ValueError, match=message):
      convert.Config(checkpoint='x', kind=kind, output=output, dtype=dtype)


def test_the_tiny_base_has_words_and_no_bytes(tmp_path):
  cfg = convert.Config(
    checkpoint=folders.embedded('tiny_base'),
    output=str(tmp_path / 'm.gguf'),
    kind='gguf',
  )
  with pytest.raises(ValueError, match='is of type WordLevel, which a GGUF'):
    convert.run(cfg)
  assert not list(tmp_path.iterdir())
