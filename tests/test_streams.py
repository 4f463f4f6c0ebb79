"""Text of tokens that come one by one, stop strings and thoughts."""

import random

import pytest
import tokenizers
from helpers import letters
from tokenizers import decoders, models, pre_tokenizers

from rlzero.serving import streams
from rlzero.serving.streams import CompletionStream, Delta, ThoughtSplitter
from rlzero.text.tokenizer import Tokenizer


def _bytes():
  """Every byte is a token, so that characters fall apart; EOS is 256."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  backend = tokenizers.Tokenizer(
    models.BPE({char: i for i, char in enumerate(alphabet)}, [])
  )
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens(['<eos>', '<pad>'])
  return Tokenizer(backend, eos_ids=[256], pad_id=257)


def _sentencepiece():
  """Pieces that bear their space, and bytes for what has no piece."""
  pieces = ['<unk>', '</s>', '▁', 'a', 'b', '▁a', '▁b', 'é']
  pieces += [f'<0x{byte:02X}>' for byte in range(256)]
  backend = tokenizers.Tokenizer(
    models.BPE(
      {piece: i for i, piece in enumerate(pieces)},
      [('▁', 'a'), ('▁', 'b')],
      unk_token='<unk>',
      byte_fallback=True,
    )
  )
  backend.decoder = decoders.Sequence(
    [
      decoders.Replace('▁', ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(' ', 1, 0),
    ]
  )
  backend.add_special_tokens(['</s>'])
  return Tokenizer(backend, eos_ids=[1])


@pytest.mark.parametrize('make', [_bytes, _sentencepiece, letters])
def test_pieces_make_the_text_of_all_tokens(make):
  tokenizer, rng = make(), random.Random(0)
  size = tokenizer.vocab_size
  # Bytes in any order are no characters, and what is made of them depends on
  # those that follow.
  units = [[i] for i in range(size)]
  if make is _sentencepiece:
    characters = [tokenizer.encode(c) for c in 'éü→漢😀']
    units = units[: size - 256] + characters
  cases = [sum(rng.choices(units, k=rng.randrange(40)), []) for _ in range(200)]
  for ids in cases:
    text = streams.Detokenizer(tokenizer)
    pieces = [text.push(i) for i in ids]
    assert ''.join(pieces) + text.flush() == tokenizer.decode(ids), ids


def test_half_a_character_is_held_back():
  tokenizer = _bytes()
  ids = tokenizer.encode('é→😀!')
  text = streams.Detokenizer(tokenizer)
  assert [text.push(i) for i in ids] == [
    *('', 'é'),
    *('', '', '→'),
    *('', '', '', '😀'),
    '!',
  ]
  text.push(ids[0])
  assert text.flush() == '\ufffd'  # no other half came


def test_bytes_that_are_no_characters_are_not_held_back_for_ever():
  """Each token would decode all that came before it once more."""
  tokenizer = _bytes()
  half, *_ = tokenizer.encode('é')
  text = streams.Detokenizer(tokenizer)
  pieces = [text.push(half) for _ in range(100)]
  assert len(''.join(pieces)) > 60
  pieces += [text.push(i) for i in tokenizer.encode('é!')]
  whole = ''.join(pieces) + text.flush()
  assert whole == tokenizer.decode([half] * 100 + tokenizer.encode('é!'))


def _cut(text, rng):
  """The text in pieces of one to four characters."""
  while text:
    size = rng.randint(1, 4)
    yield text[:size]
    text = text[size:]


@pytest.mark.parametrize(
  'text, stops, expected',
  [
    ('one two three', ('two',), 'one '),
    ('one two three', ('three', 'two'), 'one '),
    ('one two', ('twofold', 'x'), 'one two'),
    ('aaab', ('aab',), 'a'),
    ('abcabcabd', ('abcabd',), 'abc'),
    ('stop', ('stop',), ''),
    ('ends in sto', ('stop',), 'ends in sto'),
    ('none', (), 'none'),
  ],
)
def test_no_part_of_a_stop_string_is_shown(text, stops, expected):
  rng = random.Random(1)
  for _ in range(50):
    found, shown = streams.StopFilter(stops), ''
    for piece in _cut(text, rng):
      shown += found.push(piece)
      assert expected.startswith(shown)
    shown += found.flush()
    assert shown == expected
    assert found.stopped == (expected != text)


@pytest.mark.parametrize(
  'text, in_thought, thought, answer',
  [
    ('<think> a b </think> c', False, 'a b', 'c'),
    (' \n<think>\na\n\n</think>\n\nc </think> d', False, 'a', 'c </think> d'),
    ('a b\n</think>\nc', True, 'a b', 'c'),
    ('no thought <think> x </think>', False, None, None),
    ('  <thin', False, None, None),
    ('<think>never ends </thin', False, 'never ends </thin', ''),
    ('cut ', True, 'cut', ''),
    ('<think></think>', False, '', ''),
    ('', False, '', ''),
  ],
)
def test_the_thought_comes_apart(text, in_thought, thought, answer):
  if thought is None:  # left as it is
    thought, answer = '', text
  rng = random.Random(2)
  for _ in range(50):
    splitter = ThoughtSplitter(in_thought)
    deltas = [splitter.push(piece) for piece in _cut(text, rng)]
    deltas.append(splitter.flush())
    assert ''.join(d.thought for d in deltas) == thought
    assert ''.join(d.text for d in deltas) == answer
    # The answer does not begin before the thought has ended.
    kinds = [bool(d.text) for d in deltas if d.text or d.thought]
    assert kinds == sorted(kinds)


def test_a_stream_counts_tokens_and_ends_at_a_stop():
  tokenizer = letters()
  a, b, c = (tokenizer.encode(x)[0] for x in 'abc')
  stream = CompletionStream(tokenizer, ['b c'])
  assert [stream.push(t) for t in (a, b)] == [Delta('', 'a'), Delta('', ' ')]
  assert not stream.stopped
  assert stream.push(c) == Delta() and stream.stopped
  assert stream.flush() == Delta()
  assert (stream.num_tokens, stream.num_thought_tokens) == (3, 0)


def test_tokens_of_the_thought_are_counted():
  tokenizer = Tokenizer.word_level(
    ['<think>', '</think>', 'a', 'b'], '<eos>', '<pad>'
  )
  stream = CompletionStream(tokenizer, (), ThoughtSplitter())
  ids = tokenizer.encode('<think> a a </think> b')
  deltas = [*map(stream.push, [*ids, 1]), stream.flush()]
  assert ''.join(d.thought for d in deltas) == 'a a'
  assert ''.join(d.text for d in deltas) == 'b'
  assert (stream.num_tokens, stream.num_thought_tokens) == (6, 3)
