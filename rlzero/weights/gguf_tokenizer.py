"""Tokenizers from the metadata of GGUF files: byte-level BPE, SentencePiece.

A SentencePiece vocabulary (kind 'llama': Llama 2, Gemma) has scores in place of
merges: of all neighbours the pair with the best score of the whole is joined
first. What no piece covers is spelled in bytes, <0x00> to <0xFF>.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import (
  AddedToken,
  Regex,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
)

from rlzero.text.tokenizer import Tokenizer

# How text is cut before merging, by the name GGUF files give it. A vocabulary
# only makes sense with the cut its merges were learned on.
GPT2 = (
  r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
  r'|\s+(?!\S)|\s+'
)
_LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
SPLITS = {
  'gpt-2': (GPT2,),
  'smollm': (r'\p{N}', GPT2),
  'qwen2': (_LLAMA3.replace('{1,3}', ''),),
  'llama-bpe': (_LLAMA3,),
  'default': (r'[\p{P}\$\+<=>\^~\|]+', GPT2, r'\p{N}+', r'[0-9]{3}'),
}
# Entries of token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
EOS_KINDS = 'eos', 'eot', 'eom'  # of a text, a turn, a message


def read(
  metadata: Mapping[str, Any], source: str = 'this GGUF file'
) -> Tokenizer:
  """Builds the tokenizer a GGUF file describes.

  Args:
    metadata: the file's key-value pairs, as Python values.
    source: what error messages call it, usually a path.

  Raises:
    ValueError: another kind of tokenizer, an unknown pre-tokenizer, or a
      missing key.
  """

  def get(key: str) -> Any:
    return metadata.get(f'tokenizer.ggml.{key}')

  kind = get('model')
  if kind not in ('gpt2', 'llama'):
    raise ValueError(
      f'{source} has a tokenizer of kind {kind!r}, but only byte-level BPE '
      "('gpt2') and SentencePiece ('llama') are built from GGUF; use the "
      "model's Hugging Face folder instead."
    )
  _check_vocabulary(get, kind, source)
  tokens = get('tokens')
  bos, unknown = (_id(get, f'{k}_token_id', source) for k in ('bos', 'unknown'))
  if kind == 'llama':  # a run of spaces is spelled as it is looked up
    tokens = [t if t.strip(' ') else '▁' * len(t) for t in tokens]
  if kind == 'gpt2':
    backend = _byte_level(tokens, get('merges'), get('pre'), source)
    adds_bos = get('pre') == 'llama-bpe'
  else:
    prefix = metadata.get('tokenizer.ggml.add_space_prefix', True)
    backend = _sentencepiece(
      tokens,
      get('scores'),
      get('token_type'),
      None if unknown is None else tokens[unknown],
      prefix,
    )
    adds_bos = True
  _add_special(backend, tokens, get('token_type'))
  template = metadata.get('tokenizer.chat_template')
  if not isinstance(template, str | None):
    raise ValueError(
      f'{source} has a tokenizer.chat_template that is no text; convert the '
      'model again.'
    )
  # What llama.cpp assumes where the file does not say.
  add_bos = metadata.get('tokenizer.ggml.add_bos_token')
  if add_bos is None and bos is not None:
    add_bos = adds_bos
  eos = (_id(get, f'{kind}_token_id', source) for kind in EOS_KINDS)
  return Tokenizer(
    backend,
    eos_ids=[i for i in eos if i is not None],
    bos_id=bos,
    pad_id=_id(get, 'padding_token_id', source),
    chat_template=template,
    add_bos=add_bos,
    source=source,
  )


def _check_vocabulary(
  get: Callable[[str], Any], kind: str, source: str
) -> None:
  """Checks that a file has the lists of its kind of tokenizer."""
  needed: dict[str, Any] = {'tokens': str, 'token_type': int}
  needed |= {'merges': str} if kind == 'gpt2' else {'scores': (int, float)}
  for key, type_ in needed.items():
    found = get(key)
    if not found:
      raise ValueError(
        f'{source} lacks tokenizer.ggml.{key}; convert the model again, '
        'vocabulary included.'
      )
    if not isinstance(found, list) or not all(
      isinstance(one, type_) for one in found
    ):
      raise ValueError(
        f'{source} has tokenizer.ggml.{key} of another type than it should '
        'be; convert the model again.'
      )
    if key != 'merges' and len(found) != len(get('tokens')):
      raise ValueError(
        f'{source} has {len(get("tokens"))} tokens, but {len(found)} entries '
        f'in tokenizer.ggml.{key}; convert the model again.'
      )
  counted = collections.Counter(get('tokens'))
  if twice := [token for token, n in counted.items() if n > 1]:
    raise ValueError(
      f'{source} has the token {twice[0]!r} twice; convert the model again.'
    )


def _add_special(
  backend: tokenizers.Tokenizer, tokens: Sequence[str], types: Sequence[int]
) -> None:
  """Adds control tokens and those of users, which no merge makes."""
  for wanted, add in (
    (CONTROL, backend.add_special_tokens),
    (USER_DEFINED, backend.add_tokens),
  ):
    add(
      [
        AddedToken(token, normalized=False, special=wanted == CONTROL)
        for token, type_ in zip(tokens, types, strict=True)
        if type_ == wanted and token.strip('▁')
      ]
    )


def _id(get: Callable[[str], Any], key: str, source: str) -> int | None:
  """An id that the file gives to a kind of token, if it does."""
  found = get(key)
  if found is None:
    return None
  if not isinstance(found, int) or not 0 <= found < len(get('tokens')):
    raise ValueError(
      f'{source} names {found!r} as a special token ({key}), but its '
      f'vocabulary of {len(get("tokens"))} has no such id; correct the id.'
    )
  return found


def _byte_level(
  tokens: Sequence[str], merges: Sequence[str], pre: Any, source: str
) -> tokenizers.Tokenizer:
  pre = pre or 'default'
  if not isinstance(pre, str) or pre not in SPLITS:
    raise ValueError(
      f'{source} has the pre-tokenizer {pre!r}, but only '
      f"{', '.join(SPLITS)} are known; use the model's Hugging Face folder "
      'instead.'
    )
  vocabulary = {token: i for i, token in enumerate(tokens)}
  pairs: list[tuple[str, str]] = []
  for merge in merges:
    pair = merge.split(' ')
    if len(pair) != 2 or not {*pair, ''.join(pair)} <= vocabulary.keys():
      raise ValueError(
        f'{source} has the merge {merge!r}, but a merge is two tokens with a '
        'space between them that make a third; convert the model again.'
      )
    pairs.append((pair[0], pair[1]))
  backend = tokenizers.Tokenizer(
    models.BPE(
      vocab=vocabulary,
      merges=pairs,
      # Llama 3 has whole words that no sequence of merges reaches.
      ignore_merges=pre == 'llama-bpe',
    )
  )
  if pre == 'qwen2':
    backend.normalizer = normalizers.NFC()
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [
      *(
        pre_tokenizers.Split(Regex(split), behavior='isolated')
        for split in SPLITS[pre]
      ),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  backend.decoder = decoders.ByteLevel()
  return backend


def _sentencepiece(
  tokens: Sequence[str],
  scores: Sequence[float],
  types: Sequence[int],
  unknown: str | None,
  prefix: bool,
) -> tokenizers.Tokenizer:
  ids = {token: i for i, token in enumerate(tokens)}
  # A piece that is matched before all others joins first, in their order.
  rank = {
    token: (0.0, i) if kind == USER_DEFINED else (1.0, -score)
    for i, (token, score, kind) in enumerate(
      zip(tokens, scores, types, strict=True)
    )
    if kind == NORMAL or (kind == USER_DEFINED and not token.strip('▁'))
  }
  merges = []
  for token in sorted(rank, key=rank.__getitem__):
    for at in reversed(range(1, len(token))):  # the longest left part first
      if token[:at] in rank and token[at:] in rank:
        merges.append((token[:at], token[at:]))
  backend = tokenizers.Tokenizer(
    models.BPE(
      vocab=ids,
      merges=merges,
      unk_token=unknown,
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  space = normalizers.Replace(' ', '▁')
  undo = [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()]
  if prefix:  # a text starts like a word inside one
    space = normalizers.Sequence([normalizers.Prepend('▁'), space])
    undo.append(decoders.Strip(content=' ', left=1))
  backend.normalizer = space
  backend.decoder = decoders.Sequence(undo)
  return backend
