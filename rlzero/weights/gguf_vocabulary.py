"""Describes a tokenizer as GGUF files do: `gguf_tokenizer`, inverted.

A GGUF file has no tokenizer.json. It has the vocabulary, the merges or scores,
and the name of a way to cut text that readers know by heart. A tokenizer that
this does not describe is refused, by reading back what would be written.
"""

import collections
import json
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

from rlzero.runtime import files
from rlzero.text.tokenizer import Tokenizer
from rlzero.weights import gguf_tokenizer
from rlzero.weights.gguf_tokenizer import (
  BYTE,
  CONTROL,
  EOS_KINDS,
  GPT2,
  NORMAL,
  SPLITS,
  UNKNOWN,
  UNUSED,
  USER_DEFINED,
)
from rlzero.weights.metadata import WeightsError

_PREFIX = 'tokenizer.ggml.'
# What cuts at spaces, where the normaliser has replaced each of them.
_NO_SPLIT = {
  'type': 'Split',
  'pattern': {'String': ' '},
  'behavior': 'MergedWithPrevious',
  'invert': False,
}


def describe(
  tokenizer: Tokenizer, num_rows: int, source: str = 'this model'
) -> dict[str, Any]:
  """The tokenizer's keys and values of a GGUF file.

  Args:
    tokenizer: of the model.
    num_rows: of its embedding; ids without a token get one that is unused.
    source: what an error calls the model, usually its path.

  Raises:
    WeightsError: a tokenizer that a GGUF file cannot describe.
  """
  parts = _parts(tokenizer)
  model = parts['model']
  if model['type'] != 'BPE':
    raise _refusal(source, f'is of type {model["type"]}')
  _check_added(parts, source)
  is_pieces = bool(model.get('byte_fallback'))
  tokens, types = _vocabulary(parts, num_rows, is_pieces)
  values: dict[str, Any] = {
    'model': 'llama' if is_pieces else 'gpt2',
    'tokens': tokens,
    'token_type': types,
  }
  if is_pieces:
    values['pre'] = 'default'
    values['scores'] = _scores(tokens, _merges(parts))
    unknown = model.get('unk_token')
    if unknown is not None:
      values['unknown_token_id'] = tokens.index(unknown)
    values['add_space_prefix'] = (parts['normalizer'] or {}).get(
      'type'
    ) == 'Sequence'
  else:
    values['pre'] = _pre_tokenizer(parts, source)
    values['merges'] = [' '.join(pair) for pair in _merges(parts)]
  if len(tokenizer.eos_ids) > len(EOS_KINDS):
    raise _refusal(
      source, f'ends a completion at {len(tokenizer.eos_ids)} tokens'
    )
  for kind, token_id in zip(EOS_KINDS, tokenizer.eos_ids, strict=False):
    values[f'{kind}_token_id'] = token_id
  values['padding_token_id'] = tokenizer.pad_id
  if tokenizer.bos_id is not None:
    values['bos_token_id'] = tokenizer.bos_id
  begun = tokenizer.encode('', add_special=True)
  values['add_bos_token'] = begun[:1] == [tokenizer.bos_id]
  found = {_PREFIX + key: value for key, value in values.items()}
  if tokenizer.chat_template is not None:
    found['tokenizer.chat_template'] = tokenizer.chat_template
  _check(parts, _parts(gguf_tokenizer.read(found, source)), num_rows, source)
  return found


def _parts(tokenizer: Tokenizer) -> dict[str, Any]:
  """The tokenizer as its tokenizer.json has it."""
  with tempfile.TemporaryDirectory() as folder:
    tokenizer.save(folder)
    path = pathlib.Path(folder) / 'tokenizer.json'
    return json.loads(path.read_text(encoding='utf-8'))


def _vocabulary(
  parts: Mapping[str, Any], num_rows: int, is_pieces: bool
) -> tuple[list[str], list[int]]:
  """Tokens and their types, one for each row of the embedding."""
  model = parts['model']
  known = {
    i: (token, UNUSED if token == f'[PAD{i}]' else NORMAL)
    for token, i in model['vocab'].items()
  }
  if is_pieces:
    for i, (token, _) in list(known.items()):
      if token == model.get('unk_token'):
        known[i] = token, UNKNOWN
      elif len(token) == 6 and token.startswith('<0x') and token[-1] == '>':
        known[i] = token, BYTE
  for token in parts['added_tokens']:
    kind = CONTROL if token['special'] else USER_DEFINED
    if known.get(token['id'], ('', NORMAL))[1] != UNKNOWN:
      known[token['id']] = token['content'], kind
  used = {token for token, _ in known.values()}
  for i in range(num_rows):
    if i not in known:
      name = f'[PAD{i}]'
      while name in used:
        name = f'[{name}]'
      known[i] = name, UNUSED
  found = [known[i] for i in range(num_rows)]
  return [token for token, _ in found], [kind for _, kind in found]


def _scores(tokens: list[str], merges: list[tuple[str, str]]) -> list[float]:
  """Scores that put the merges into their order: the first is the best."""
  order = {token: i for i, token in enumerate(_products(merges))}
  return [-float(order.get(token, len(order))) for token in tokens]


def _products(merges: list[tuple[str, str]]) -> dict[str, None]:
  return dict.fromkeys(first + second for first, second in merges)


def _merges(parts: Mapping[str, Any]) -> list[tuple[str, str]]:
  pairs = (
    merge.split(' ') if isinstance(merge, str) else merge
    for merge in parts['model']['merges']
  )
  return [(first, second) for first, second in pairs]


def _pre_tokenizer(parts: Mapping[str, Any], source: str) -> str:
  """The name of the way in which text is cut before merging."""
  found = parts['pre_tokenizer'] or {}
  steps = found.get('pretokenizers', [found])
  cuts: list[str] = []
  for step in steps:
    match step:
      case {
        'type': 'Split',
        'pattern': {'Regex': cut},
        'behavior': 'Isolated',
        'invert': False,
      }:
        cuts.append(cut)
      case {'type': 'Digits', 'individual_digits': True}:
        cuts.append(r'\p{N}')
      case {'type': 'ByteLevel', 'add_prefix_space': False}:
        cuts += [GPT2] if step.get('use_regex', True) else []
      case _:
        raise _refusal(source, f'cuts text by {step.get("type")!r}')
  if not steps or steps[-1].get('type') != 'ByteLevel':
    raise _refusal(source, 'is not byte-level')
  for name, known in SPLITS.items():
    if known == tuple(cuts):
      return name
  raise _refusal(source, 'cuts text in a way without a name')


def _check_added(parts: Mapping[str, Any], source: str) -> None:
  for token in parts['added_tokens']:
    wrong = [k for k in ('lstrip', 'rstrip', 'single_word') if token.get(k)]
    if wrong:
      raise _refusal(
        source, f'matches {token["content"]!r} with {wrong[0]} = True'
      )


def _check(
  wanted: Mapping[str, Any],
  back: Mapping[str, Any],
  num_rows: int,
  source: str,
) -> None:
  """Refuses what a reader of the file would take for another tokenizer."""
  if bool(wanted['model'].get('ignore_merges')) != bool(
    back['model'].get('ignore_merges')
  ):
    raise _refusal(
      source, f'has ignore_merges = {wanted["model"].get("ignore_merges")}'
    )
  for part in ('normalizer', 'decoder'):
    if _plain(wanted[part]) != _plain(back[part]):
      raise _refusal(
        source, f'has the {part} {files.to_json(wanted[part])[:200]}'
      )
  if wanted['model'].get('byte_fallback'):
    if wanted['pre_tokenizer'] not in (None, _NO_SPLIT):
      raise _refusal(source, 'cuts pieces before merging')
    if _grouped(_merges(wanted)) != _grouped(_merges(back)):
      raise _refusal(source, 'has merges that no scores give')
  ours, theirs = (
    {
      token['content']: token['special']
      for token in parts['added_tokens']
      if token['id'] < num_rows and token['content'].strip('▁')
    }
    for parts in (wanted, back)
  )
  # The unknown piece is one of its own kind, whether it was added or not.
  unknown = wanted['model'].get('unk_token')
  for added in (ours, theirs):
    added.pop(unknown, None)
  if ours != theirs:
    odd = sorted(dict(ours.items() ^ theirs.items()))[0]
    raise _refusal(source, f'has the added token {odd!r}')


def _grouped(
  merges: list[tuple[str, str]],
) -> list[tuple[str, frozenset[tuple[str, str]]]]:
  """The pairs that make each token, in the order of the tokens."""
  pairs: dict[str, set[tuple[str, str]]] = collections.defaultdict(set)
  for pair in merges:
    pairs[''.join(pair)].add(pair)
  return [(token, frozenset(made)) for token, made in pairs.items()]


def _plain(part: Any) -> Any:
  """A normaliser or decoder without what does not change it."""
  if isinstance(part, Mapping) and part.get('type') == 'ByteLevel':
    return {'type': 'ByteLevel'}  # its options are those of a pre-tokenizer
  if isinstance(part, Mapping) and part.get('type') == 'Sequence':
    (steps,) = (value for value in part.values() if isinstance(value, list))
    return steps[0] if len(steps) == 1 else (steps or None)
  return part


def _refusal(source: str, what: str) -> WeightsError:
  return WeightsError(
    f'The tokenizer of {source} {what}, which a GGUF file cannot say; write a '
    "Hugging Face folder (--kind=folder), which llama.cpp's converter reads."
  )
