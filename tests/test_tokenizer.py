"""Tokenizers from words, from GGUF metadata and from folders."""

import datetime
import json
import sys

import pytest
import tokenizers
from helpers import byte_level_metadata, gguf_metadata, sentencepiece_metadata
from tokenizers import (
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
)

from rlzero.text import chat
from rlzero.text.tokenizer import Tokenizer
from rlzero.weights import gguf_tokenizer


def words():
  return Tokenizer.word_level(['3', '+', 'wait'], '<eos>', '<pad>')


def test_words_have_ids_in_order():
  tokenizer = words()
  assert tokenizer.encode('wait 3 + 3 <eos>') == [4, 2, 3, 2, 1]
  assert tokenizer.decode([4, 2, 3, 2, 1, 0]) == 'wait 3 + 3'
  assert tokenizer.decode([3, 1], skip_special=False) == '+ <eos>'
  assert (tokenizer.eos_ids, tokenizer.pad_id) == ((1,), 0)
  assert tokenizer.vocab_size == 5
  assert tokenizer.bos_id is None


def test_unknown_word_is_named():
  with pytest.raises(ValueError, match="no id for 'four'; use only words"):
    words().encode('3 + four')


@pytest.mark.parametrize('wrong', ['', 'two words', '<eos>', 'twice'])
def test_word_that_cannot_be_one_is_refused(wrong):
  with pytest.raises(ValueError, match='cannot be a word'):
    Tokenizer.word_level(['twice', wrong], '<eos>', '<pad>')


@pytest.mark.parametrize(
  'pre, expected',
  [
    ('gpt-2', ['ab', ' a', ' ', '123', '12', ' 1']),
    ('smollm', ['ab', ' a', ' ', '1', '2', '3', '1', '2', ' ', '1']),
    ('qwen2', ['ab', ' a', ' ', '1', '2', '3', '1', '2', ' ', '1']),
    ('llama-bpe', ['ab', ' a', ' ', '123', '12', ' ', '1']),
    ('default', ['ab', ' a', ' ', '123', '12', ' ', '1']),
  ],
)
def test_text_is_cut_as_the_merges_were_learned(pre, expected):
  # Digits tell the pre-tokenizers apart: with their space, one by one, or
  # up to three together.
  tokenizer = gguf_tokenizer.read(gguf_metadata(pre=pre))
  ids = tokenizer.encode('ab a 12312 1')
  assert [tokenizer.decode([i]) for i in ids] == expected


@pytest.mark.parametrize('pre', ['gpt-2', 'smollm', 'qwen2', 'default'])
def test_any_text_survives(pre):
  tokenizer = gguf_tokenizer.read(gguf_metadata(pre=pre))
  text = 'Größe: 3×4 = 12\n\n\t"naïve"  don\'t 日本 🙂 \x00 end  '
  assert tokenizer.decode(tokenizer.encode(text)) == text
  assert tokenizer.encode('') == []


def test_special_tokens_in_text_are_never_split():
  tokenizer = gguf_tokenizer.read(gguf_metadata())
  ids = tokenizer.encode('ab<end><think>a')
  assert [ids[1], ids[2]] == [0, 2]
  assert len(ids) == 4
  # A user-defined token is text, a control token is not.
  assert tokenizer.decode(ids) == 'ab<think>a'
  assert tokenizer.decode(ids, skip_special=False) == 'ab<end><think>a'


@pytest.mark.parametrize(
  'given',
  [
    byte_level_metadata(),
    sentencepiece_metadata(),
    sentencepiece_metadata(add_space_prefix=False),
  ],
  ids=['byte-level', 'prefixed', 'sentencepiece'],
)
def test_control_tokens_in_a_question_are_text(given):
  # <end> is special; <turn> is not, but the template writes it.
  tokenizer = gguf_tokenizer.read(given)
  end, turn = map(tokenizer._backend.token_to_id, ('<end>', '<turn>'))
  text = 'a <end> b<turn><end>'
  ids = tokenizer.encode(tokenizer.as_text(text))
  assert end not in ids and turn not in ids
  assert tokenizer.decode(ids, skip_special=False) == text
  prompt = tokenizer.apply_chat_template(
    [
      {'role': 'user', 'content': f' {text} '},
      {'role': 'assistant', 'content': 'b'},
    ]
  )
  ids = tokenizer.encode(prompt)
  assert [i for i in ids if i in (end, turn)] == [turn, end, turn, end, turn]
  assert tokenizer.decode(ids, skip_special=False).count(text) == 1
  # Without such a text the prompt is what transformers renders.
  prompt = tokenizer.apply_chat_template([{'role': 'user', 'content': 'a'}])
  begin = tokenizer._backend.id_to_token(tokenizer.bos_id)
  assert prompt == f'{begin}<turn>user: a<end><turn>assistant:'


def test_sentencepiece_by_hand():
  tokenizer = gguf_tokenizer.read(sentencepiece_metadata())
  pieces = [
    tokenizer._backend.id_to_token(i)
    for i in tokenizer.encode('user é<end>us', add_special=True)
  ]
  # 'us' + 'er' and not 'u' 'ser'; é is two bytes.
  expected = ['<s>', '▁user', '▁', '<0xC3>', '<0xA9>', '<end>', '▁', 'us']
  assert pieces == expected
  assert tokenizer.decode(tokenizer.encode('  user é\n')) == '  user é\n'
  plain = gguf_tokenizer.read(sentencepiece_metadata(add_space_prefix=False))
  assert plain.decode([plain.encode('user')[0]]) == 'user'


def test_runs_of_spaces_come_first():
  given = sentencepiece_metadata(add_space_prefix=False)
  given['tokenizer.ggml.tokens'] += ['  ', '   ']
  given['tokenizer.ggml.token_type'] += [4, 4]
  given['tokenizer.ggml.scores'] += [-1000.0, -1000.0]
  tokenizer = gguf_tokenizer.read(given)
  pieces = [
    tokenizer._backend.id_to_token(i) for i in tokenizer.encode('a   a')
  ]
  assert pieces == ['a', '▁▁▁', 'a']


def test_begin_token_is_added_only_where_asked_and_wanted():
  plain = gguf_tokenizer.read(gguf_metadata())
  adding = gguf_tokenizer.read(gguf_metadata(add_bos_token=True))
  llama3 = gguf_tokenizer.read(gguf_metadata(pre='llama-bpe'))
  assert plain.encode('a', add_special=True) == plain.encode('a')
  assert adding.encode('a') == plain.encode('a')
  assert adding.encode('a', add_special=True) == [1, *plain.encode('a')]
  assert llama3.encode('a', add_special=True) == [1, *plain.encode('a')]


def test_end_of_turn_also_ends_and_pads_by_default():
  assert gguf_tokenizer.read(gguf_metadata(eot_token_id=2)).eos_ids == (0, 2)
  assert gguf_tokenizer.read(gguf_metadata(eot_token_id=2)).pad_id == 0
  assert gguf_tokenizer.read(gguf_metadata(padding_token_id=2)).pad_id == 2


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'model': 'rwkv'}, "tokenizer of kind 'rwkv'"),
    ({'model': 'llama'}, 'lacks tokenizer.ggml.scores'),
    ({'pre': 'tekken'}, "pre-tokenizer 'tekken'"),
    ({'tokens': None}, 'lacks tokenizer.ggml.tokens'),
    ({'token_type': None}, 'lacks tokenizer.ggml.token_type'),
    ({'eos_token_id': None}, 'no end-of-sequence token'),
    ({'eos_token_id': 99999}, 'names 99999 as a special token'),
    ({'bos_token_id': -1}, 'names -1 as a special token'),
    ({'eot_token_id': 'end'}, "names 'end' as a special token"),
    ({'merges': ['x y z']}, "m.gguf has the merge 'x y z', but a merge is two"),
    ({'merges': ['xy']}, "m.gguf has the merge 'xy'"),
    ({'merges': ['x y']}, "m.gguf has the merge 'x y'"),
    ({'merges': ['é ü']}, "m.gguf has the merge 'é ü'"),
    ({'merges': [3]}, 'm.gguf has tokenizer.ggml.merges of another type'),
    ({'tokens': 5}, 'm.gguf has tokenizer.ggml.tokens of another type'),
    ({'pre': ['qwen2']}, r"m.gguf has the pre-tokenizer \['qwen2'\]"),
    ({'token_type': [1]}, 'm.gguf has 264 tokens, but 1 entries in token'),
    ({'tokens': ['a', 'a'], 'token_type': [1, 1]}, "has the token 'a' twice"),
    ({'bos_token_id': None, 'add_bos_token': True}, 'has add_bos_token, but'),
  ],
)
def test_gguf_tokenizer_that_cannot_be_built(changes, message):
  with pytest.raises(ValueError, match=message):
    gguf_tokenizer.read(gguf_metadata(**changes), 'm.gguf')


@pytest.mark.parametrize(
  'tokenizer',
  [
    words(),
    gguf_tokenizer.read(gguf_metadata(pre='qwen2', eot_token_id=2)),
    gguf_tokenizer.read(gguf_metadata(add_bos_token=True)),
  ],
)
def test_folder_round_trip(tokenizer, tmp_path):
  tokenizer.save(tmp_path)
  loaded = Tokenizer.load(tmp_path)
  assert loaded.eos_ids == tokenizer.eos_ids
  assert loaded.pad_id == tokenizer.pad_id
  assert loaded.bos_id == tokenizer.bos_id
  assert loaded.chat_template == tokenizer.chat_template
  assert loaded.vocab_size == tokenizer.vocab_size
  ids = tokenizer.encode('3 + 3', add_special=True)
  assert loaded.encode('3 + 3', add_special=True) == ids


def edit(path, **changes):
  values = json.loads(path.read_text()) if path.exists() else {}
  path.write_text(json.dumps({**values, **changes}))


def test_folder_as_others_write_it(tmp_path):
  words().save(tmp_path)
  (tmp_path / 'generation_config.json').unlink()
  edit(
    tmp_path / 'tokenizer_config.json',
    eos_token={'content': 'wait', 'special': True},
    pad_token=None,
    chat_template=[
      {'name': 'tool_use', 'template': 'tools'},
      {'name': 'default', 'template': 'plain'},
    ],
  )
  loaded = Tokenizer.load(tmp_path)
  assert (loaded.eos_ids, loaded.pad_id) == ((4,), 4)
  assert loaded.chat_template == 'plain'
  edit(tmp_path / 'generation_config.json', eos_token_id=1)
  (tmp_path / 'chat_template.jinja').write_text('newer')
  loaded = Tokenizer.load(tmp_path)
  assert loaded.eos_ids == (4, 1)
  assert loaded.chat_template == 'newer'
  edit(tmp_path / 'config.json', eos_token_id=[1, 0])
  assert Tokenizer.load(tmp_path).eos_ids == (4, 1, 0)


def test_saved_truncation_is_not_obeyed(tmp_path):
  words().save(tmp_path)
  edit(
    tmp_path / 'tokenizer.json',
    truncation={
      'direction': 'Right',
      'max_length': 2,
      'strategy': 'LongestFirst',
      'stride': 0,
    },
  )
  assert len(Tokenizer.load(tmp_path).encode('3 + 3 + 3')) == 5


def test_folder_that_cannot_be_read(tmp_path):
  with pytest.raises(FileNotFoundError, match='no tokenizer.json'):
    Tokenizer.load(tmp_path)
  words().save(tmp_path)
  config = tmp_path / 'tokenizer_config.json'
  edit(config, eos_token='<none>')
  with pytest.raises(ValueError, match="'<none>' as its eos_token"):
    Tokenizer.load(tmp_path)
  config.write_text('{')
  with pytest.raises(ValueError, match='tokenizer_config.json is not JSON'):
    Tokenizer.load(tmp_path)
  config.unlink()
  (tmp_path / 'generation_config.json').unlink()
  with pytest.raises(ValueError, match='no end-of-sequence token'):
    Tokenizer.load(tmp_path)
  (tmp_path / 'tokenizer.json').write_text('{"model"')
  with pytest.raises(ValueError, match='is not a tokenizer'):
    Tokenizer.load(tmp_path)


def test_chat_template_trims_blocks():
  tokenizer = gguf_tokenizer.read(gguf_metadata())
  messages = [{'role': 'user', 'content': 'a < b'}]
  # Neither the newline after a block nor the space before one is text.
  text = '<user>a < b<end>'
  assert tokenizer.apply_chat_template(messages, False) == text
  assert tokenizer.apply_chat_template(messages) == text + '<assistant>'


def with_template(source):
  tokenizer = words()
  tokenizer.chat_template = source
  return tokenizer


def test_chat_template_has_the_functions_templates_use():
  messages = [{'role': 'user', 'content': '<ü>'}]
  for source, expected in (
    ('{{ messages | tojson }}', '[{"role": "user", "content": "<ü>"}]'),
    ('{{ strftime_now("%Y")[:2] }}', '20'),
    ('{% for i in [1, 2] %}{{ i }}{% break %}{% endfor %}', '1'),
    ('{% if tools %}no{% endif %}{{ pad_token }}', '<pad>'),
    ('{% if bos_token is defined %}no{% endif %}yes', 'yes'),
    ('{{ [1] | tojson(indent=1) }}', '[\n 1\n]'),
    ('{% generation %}a{% set x = 1 %}{% endgeneration %}{{ x }}', 'a'),
  ):
    assert with_template(source).apply_chat_template(messages) == expected


def test_chat_template_that_refuses():
  messages = [{'role': 'nobody', 'content': ''}]
  with pytest.raises(ValueError, match='has no chat template'):
    words().apply_chat_template(messages)
  with pytest.raises(ValueError, match=r'does not accept .*\(who\?\)'):
    gguf_tokenizer.read(gguf_metadata()).apply_chat_template(messages)
  # The sandbox: templates come from strangers.
  with pytest.raises(ValueError, match='does not accept'):
    with_template('{{ messages.append(1) }}').apply_chat_template(messages)


@pytest.mark.parametrize(
  'template, message',
  [
    (
      '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}'
      '{% endfor %}',
      'has not ended after',
    ),
    (
      '{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}'
      '{% endmacro %}{{ f(99) }}',
      'has not ended after',
    ),
    ('{% for i in range(99) %}{{ "x" * 999999 }}{% endfor %}', 'writes more'),
    ('{{ "x" * 10 ** 12 }}', 'too large a value'),
    ('{{ 9 ** (9 ** 9) }}', 'too large a value'),
    ('{% set n = namespace(x="x") %}{% for i in range(99) %}'
     '{% set n.x = n.x ~ n.x %}{% endfor %}', 'too large a value'),
    ('{% set n = namespace(x=9) %}{% for i in range(99) %}'
     '{% set n.x = n.x * n.x %}{% endfor %}', '(too large|not ended)'),
    ('{% for i in range(10 ** 6) %}{% endfor %}', 'OverflowError'),
    ('{{ 1 // 0 }}', 'ZeroDivisionError'),
    ('{{ messages[0].content + 1 }}', 'TypeError'),
    ('{{ [1, 2] | random }}', "No filter named 'random'"),
    ('{{ lipsum() }}', "'lipsum' is undefined"),
    ('{% for', 'unexpected'),
  ],
)  # fmt: skip
def test_chat_template_without_end_or_sense(template, message, monkeypatch):
  if 'not ended' in message:
    monkeypatch.setattr(chat, 'DEADLINE_S', 0.5)
  before = sys.gettrace()
  with pytest.raises(ValueError, match=f'does not accept the.*{message}'):
    with_template(template).apply_chat_template(
      [{'role': 'user', 'content': 'a'}]
    )
  assert sys.gettrace() is before


def test_chat_template_is_told_the_same_day_for_ever(monkeypatch):
  class Tomorrow(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
      return cls(2031, 1, 2, tzinfo=tz)

  monkeypatch.setattr(datetime, 'datetime', Tomorrow)
  template = '{{ strftime_now("%d %b %Y %H:%M") }}'
  text = with_template(template).apply_chat_template([])
  assert text == '26 Jul 2024 00:00'


@pytest.mark.parametrize('operator', ['~', '+'])
def test_chat_template_joins_text(operator):
  template = "{{ 'a' ~ messages[0].role ~ 'b' * 2 }}".replace('~', operator)
  tokenizer = with_template(template + '{{ 1 ~ none ~ [2] }}')
  messages = [{'role': 'user', 'content': ''}]
  assert tokenizer.apply_chat_template(messages) == 'auserbb1None[2]'


def test_config_that_generation_config_corrects(tmp_path, capsys):
  # config.json keeps the default of its class, here the word '3'.
  words().save(tmp_path)
  edit(tmp_path / 'config.json', eos_token_id=2)
  assert Tokenizer.load(tmp_path).eos_ids == (1,)
  warning = 'config.json has eos_token_id 2, which is no added token'
  assert warning in capsys.readouterr().err
  # Nothing else names an EOS: then it is what it says.
  (tmp_path / 'generation_config.json').unlink()
  edit(tmp_path / 'tokenizer_config.json', eos_token=None)
  assert Tokenizer.load(tmp_path).eos_ids == (2,)


def test_eos_in_all_its_forms(tmp_path):
  words().save(tmp_path)
  edit(tmp_path / 'tokenizer_config.json', eos_token=None)
  path = tmp_path / 'generation_config.json'
  for value, expected in (
    (1, (1,)),
    ([1, 0], (1, 0)),
    (1.0, (1,)),
    ([0, 0, 1], (0, 1)),
  ):
    edit(path, eos_token_id=value)
    assert Tokenizer.load(tmp_path).eos_ids == expected
  for value in (-1, [1, None], '</s>', True, 1.5, [[1]], {'id': 1}):
    edit(path, eos_token_id=value)
    with pytest.raises(ValueError, match=rf'{path} has eos_token_id = .*an id'):
      Tokenizer.load(tmp_path)
  for value in (99, 1 << 40):
    edit(path, eos_token_id=value)
    with pytest.raises(ValueError, match=f'{tmp_path} names {value} as a spec'):
      Tokenizer.load(tmp_path)
  for value in (None, []):
    edit(path, eos_token_id=value)
    with pytest.raises(ValueError, match='no end-of-sequence token'):
      Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'eos_token': 3}, 'names 3 as its eos_token'),
    ({'eos_token': {}, 'pad_token': ['a']}, r"names \['a'\] as its pad_token"),
    ({'chat_template': 3}, 'has a chat_template that is a int'),
    ({'add_bos_token': 'yes'}, "has add_bos_token = 'yes'"),
    ({'add_bos_token': True}, 'has add_bos_token, but names no bos_token'),
  ],
)
def test_tokenizer_config_that_makes_no_sense(changes, message, tmp_path):
  words().save(tmp_path)
  edit(tmp_path / 'tokenizer_config.json', **changes)
  with pytest.raises(ValueError, match=f'^{tmp_path} .*{message}|{message}'):
    Tokenizer.load(tmp_path)


def test_files_that_are_no_text(tmp_path):
  words().save(tmp_path)
  path = tmp_path / 'tokenizer_config.json'
  path.write_bytes(path.read_bytes() + b'\n\xff')
  with pytest.raises(ValueError, match='tokenizer_config.json:8 is not UTF-8'):
    Tokenizer.load(tmp_path)
  path.write_text('[]')
  with pytest.raises(ValueError, match='holds a JSON list, not an object'):
    Tokenizer.load(tmp_path)
  path.write_text('[' * 100_000)
  with pytest.raises(ValueError, match='too deeply nested'):
    Tokenizer.load(tmp_path)
  path.write_text('{}', encoding='utf-8-sig')
  (tmp_path / 'chat_template.jinja').write_bytes(b'a\n\xe9')
  with pytest.raises(ValueError, match='chat_template.jinja:2 is not UTF-8'):
    Tokenizer.load(tmp_path)
  (tmp_path / 'chat_template.jinja').write_bytes(b'a' * (1 << 20) + b'a')
  with pytest.raises(ValueError, match='chat_template.jinja has 1048577 bytes'):
    Tokenizer.load(tmp_path)


def letters(special, **settings):
  """A byte-level tokenizer of single letters and special tokens."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  backend = tokenizers.Tokenizer(
    models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[])
  )
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens(special)
  eos = backend.token_to_id('</s>')
  return Tokenizer(
    backend, eos_ids=[eos], bos_id=backend.token_to_id('<s>'), **settings
  )


TAGS = ['<think>', '</think>', '<answer>', '</answer>']


@pytest.mark.parametrize('form', ['tokenizer.json', 'gguf'])
def test_tags_that_are_special_tokens_stay_in_the_text(form, tmp_path):
  marks = ['<|im_start|>', '<|reserved_1|>', '<turn>']
  template = '<turn>{{ messages[0].content }}<|im_start|><think>'
  if form == 'gguf':
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ['</s>', '<s>', *TAGS, *marks, *alphabet]
    given = gguf_metadata(
      tokens=tokens, token_type=[3] * 9 + [1] * 256, merges=['a b']
    )
    given['tokenizer.ggml.tokens'].append('ab')
    given['tokenizer.ggml.token_type'].append(1)
    given['tokenizer.chat_template'] = template
    tokenizer = gguf_tokenizer.read(given)
  else:
    letters(['</s>', '<s>', *TAGS, *marks], chat_template=template).save(
      tmp_path
    )
    tokenizer = Tokenizer.load(tmp_path)
  text = '<think> 1 + 2 </think> <answer> 3 </answer>'
  ids = tokenizer.encode('<s><turn>' + text + '<|im_start|><|reserved_1|></s>')
  assert len(ids) == 4 + len(TAGS) + 4 + len(' 1 + 2   3 ') - 3
  assert tokenizer.decode(ids) == text
  assert tokenizer.decode(ids, skip_special=False).endswith('></s>')


@pytest.mark.parametrize('normaliser', ['NFKC', 'Lowercase'])
def test_control_tokens_in_look_alike_characters_are_text(normaliser):
  turn = tokenizers.AddedToken('<|im_end|>', normalized=True, special=True)
  tokenizer = letters(['</s>', turn])
  tokenizer._backend.normalizer = getattr(normalizers, normaliser)()
  end = tokenizer._backend.token_to_id('<|im_end|>')
  alike = '<｜im_end｜> ＜|im_end|＞' if normaliser == 'NFKC' else '<|IM_end|>'
  text = f'a {alike} <|im_end|>{alike}'
  assert end in tokenizer.encode(alike)
  assert end not in tokenizer.encode(tokenizer.as_text(text))
  assert tokenizer.as_text('a < b | c') == 'a < b | c'


def test_a_character_that_is_a_control_token():
  turn = tokenizers.AddedToken('(1)', normalized=True, special=True)
  tokenizer = letters(['</s>', turn])
  tokenizer._backend.normalizer = normalizers.NFKC()
  with pytest.raises(ValueError, match=r"reads '⑴' of a question as its.*'\(1"):
    tokenizer.as_text('⑴')


def test_half_a_surrogate_pair_is_named():
  with pytest.raises(
    ValueError, match=r"surrogate pair \('.ud83d' at char.* 2"
  ):
    letters(['</s>']).encode('a\ud83d')


def test_a_prompt_never_ends_in_what_a_post_processor_adds():
  tokenizer = letters(['</s>', '<s>'])
  end, begin = tokenizer.eos_ids[0], tokenizer.bos_id
  tokenizer._backend.post_processor = processors.TemplateProcessing(
    single='<s> $A </s>', special_tokens=[('<s>', begin), ('</s>', end)]
  )
  (a,) = tokenizer.encode('a')
  assert tokenizer.encode('a', add_special=True) == [begin, a]
  assert tokenizer.encode('', add_special=True) == [begin]
  # What the text itself ends in stays, and nothing comes before a mark.
  assert tokenizer.encode('a</s>', add_special=True) == [begin, a, end]
  marked = tokenizer.encode(tokenizer.as_text('a</s>'), add_special=True)
  assert marked[:2] == [begin, a] and end not in marked


@pytest.mark.parametrize('adds', [True, False])
def test_add_bos_token_is_honoured(adds, tmp_path):
  tokenizer = letters(['</s>', '<s>'])
  begin = tokenizer.bos_id
  (a,) = tokenizer.encode('a')
  if adds:
    tokenizer._backend.post_processor = processors.TemplateProcessing(
      single='<s> $A', special_tokens=[('<s>', begin)]
    )
  tokenizer.save(tmp_path)
  for wanted in (None, True, False):
    edit(tmp_path / 'tokenizer_config.json', add_bos_token=wanted)
    loaded = Tokenizer.load(tmp_path)
    starts = adds if wanted is None else wanted
    expected = [begin, a] if starts else [a]
    assert loaded.encode('a', add_special=True) == expected
    loaded.save(tmp_path / 'again')
    again = Tokenizer.load(tmp_path / 'again')
    assert again.encode('a', add_special=True) == expected


@pytest.mark.parametrize(
  'end, token',
  [('<|im_end|>\n', "'<|im_end|>'"), ('\n', "'\\n"), ('</s>', None)],
)
def test_a_turn_that_ends_in_no_eos_is_warned_about(end, token, capsys):
  template = (
    '{% for m in messages %}{{ m.role }}: {{ m.content }}END{% endfor %}'
  ).replace('END', end)
  source = f'a model with {end!r}'
  letters(['</s>', '<|im_end|>'], chat_template=template, source=source)
  told = capsys.readouterr().err
  if token is None:
    assert not told
  else:
    assert f'template of {source} ends a turn with {token}' in told
    assert told.count('warning') == 1
