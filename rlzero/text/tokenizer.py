"""Text to token ids and back, and the chat templates around the text.

A control token is one that the tokenizer marks as special or that the chat
template writes, such as the end of a turn. Text that comes from outside never
becomes one: `as_text` marks those that are written in a question, and `encode`
spells what is marked in ordinary tokens. What the template itself writes, and
what the model has written, become the ids of control tokens.
"""

import datetime
import functools
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers, processors

from rlzero.runtime import files
from rlzero.text import chat, model_files, warn
from rlzero.text import files as text_files

# Cuts a control token that is meant as text. It is no character: no text that
# is valid Unicode for interchange holds it.
_CUT = '\ufdd0'
# The day that chat templates are told is today, the one Llama 3's templates
# have by themselves: prompts are the same tomorrow.
TODAY = datetime.datetime(2024, 7, 26)
# Special tokens that are no text whatever the chat template says.
_MARKER = re.compile(r'<\|.*\|>|<｜.*｜>')
_TAG = re.compile(r'</?([\w-]+)>')
_MOST_IDS = 1 << 32


class Tokenizer:
  """A `tokenizers` tokenizer with the ids and the template a model needs.

  Attributes:
    eos_ids: ids that end a completion, the tokenizer's own first.
    bos_id: id a text starts with, or None.
    pad_id: id that fills rows; the first EOS if the tokenizer names none.
    chat_template: Jinja source, or None.
    source: what error messages call it, usually a path.
  """

  def __init__(
    self,
    backend: tokenizers.Tokenizer,
    *,
    eos_ids: Sequence[int],
    bos_id: int | None = None,
    pad_id: int | None = None,
    chat_template: str | None = None,
    add_bos: bool | None = None,
    source: str = 'this tokenizer',
  ):
    """Wraps a backend.

    Args:
      backend: the tokenizer proper.
      eos_ids: at least one id.
      bos_id: see the class.
      pad_id: see the class.
      chat_template: see the class.
      add_bos: whether a text starts with BOS; None leaves it to the backend.
      source: what error messages call it, usually a path.

    Raises:
      ValueError: no EOS, an id outside the vocabulary, or `add_bos` without
        a BOS.
    """
    if not eos_ids:
      raise ValueError(
        f'{source} names no end-of-sequence token, so a completion could '
        'never end; set eos_token in tokenizer_config.json or eos_token_id '
        'in generation_config.json.'
      )
    self.eos_ids = tuple(dict.fromkeys(int(i) for i in eos_ids))
    self.bos_id = bos_id
    self.pad_id = self.eos_ids[0] if pad_id is None else pad_id
    self.chat_template = chat_template
    self.source = source
    self._backend = backend
    # A saved tokenizer may carry both; either would silently change prompts.
    backend.no_truncation()
    backend.no_padding()
    for i in (*self.eos_ids, self.pad_id, bos_id):
      if i is not None and not (
        0 <= i < _MOST_IDS and backend.id_to_token(i) is not None
      ):
        raise ValueError(
          f'{source} names {i} as a special token, but its vocabulary of '
          f'{self.vocab_size} has no such id; correct the id.'
        )
    if add_bos is not None:
      self._set_bos(add_bos)
    self._warn_of_turns()

  def _set_bos(self, wanted: bool) -> None:
    """Makes the post-processor start texts with BOS, or not."""
    begun = self._backend.encode('', add_special_tokens=True).ids
    if wanted == (begun[:1] == [self.bos_id]):
      return
    if not wanted:
      self._backend.post_processor = processors.TemplateProcessing(single='$A')
      return
    if self.bos_id is None:
      raise ValueError(
        f'{self.source} has add_bos_token, but names no bos_token; set one, '
        'or set add_bos_token to false.'
      )
    bos = self._token(self.bos_id)
    self._backend.post_processor = processors.TemplateProcessing(
      single=f'{bos} $A', special_tokens=[(bos, self.bos_id)]
    )

  def _token(self, token_id: int) -> str:
    token = self._backend.id_to_token(token_id)
    assert token is not None, f'{self.source} has no id {token_id}'
    return token

  def _warn_of_turns(self) -> None:
    """Warns of a chat template whose turns end in a token that is no EOS."""
    said = 'Certainly'
    turns = (('user', 'a'), ('assistant', said), ('user', 'b'))
    if self.chat_template is None:
      return
    try:
      text = self.apply_chat_template(
        [{'role': role, 'content': content} for role, content in turns], False
      )
    except ValueError:  # said when a prompt is made
      return
    _, found, after = text.rpartition(said)
    mark = self._control.search(after)
    token_id = mark and self._backend.token_to_id(mark[0])
    if found and token_id not in self.eos_ids:
      names = ', '.join(map(self._token, self.eos_ids))
      warn.once(
        f'the chat template of {self.source} ends a turn with '
        f'{mark[0] if mark else after[:20]!r}, which does not end a completion '
        f'({names} does); add its id to eos_token_id of '
        'generation_config.json, or completions run on to their length.'
      )

  @property
  def vocab_size(self) -> int:
    """Number of ids, added tokens included; the model may have more rows."""
    return self._backend.get_vocab_size(with_added_tokens=True)

  def beyond(self, num_ids: int) -> set[str]:
    """Tokens whose ids are not below `num_ids`."""
    vocabulary = self._backend.get_vocab(with_added_tokens=True)
    return {token for token, i in vocabulary.items() if i >= num_ids}

  @classmethod
  def load(cls, folder: str | os.PathLike[str]) -> 'Tokenizer':
    """Reads the tokenizer of a Hugging Face folder.

    Args:
      folder: holds tokenizer.json and, where they exist,
        tokenizer_config.json, special_tokens_map.json,
        generation_config.json, config.json and chat_template.jinja. Each id
        that one of them names as EOS ends a completion, but for one that
        config.json alone names and that is no added token: such a default of
        a model's class is corrected by the other files.

    Raises:
      FileNotFoundError: no tokenizer.json.
      ValueError: a file that cannot be parsed, or no EOS.
    """
    folder = pathlib.Path(folder)
    path = folder / 'tokenizer.json'
    if not path.is_file():
      raise FileNotFoundError(
        f'{folder} holds no tokenizer.json; save the tokenizer of the model '
        'there.'
      )
    text_files.check_size(path)
    try:
      backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
      raise ValueError(
        f'{path} is not a tokenizer ({error}); copy or download it again.'
      ) from error
    config = {
      **model_files.read_object(folder / 'special_tokens_map.json'),
      **model_files.read_object(folder / 'tokenizer_config.json'),
    }
    add_bos = config.get('add_bos_token')
    if not isinstance(add_bos, bool | None):
      raise ValueError(
        f'{folder} has add_bos_token = {add_bos!r}, but true or false is '
        'needed; correct tokenizer_config.json.'
      )
    special = functools.partial(model_files.special_id, config, backend, folder)
    return cls(
      backend,
      eos_ids=model_files.eos_ids(folder, backend, special('eos_token')),
      bos_id=special('bos_token'),
      pad_id=special('pad_token'),
      chat_template=model_files.chat_template(
        folder, config.get('chat_template')
      ),
      add_bos=add_bos,
      source=str(folder),
    )

  @classmethod
  def word_level(cls, words: Sequence[str], eos: str, pad: str) -> 'Tokenizer':
    """One id a word, words separated by white space; no unknown word.

    Args:
      words: the vocabulary; ids are pad 0, EOS 1, then these in order.
      eos: the end-of-sequence word.
      pad: the padding word.

    Raises:
      ValueError: a word that is empty, repeated or holds white space.
    """
    vocab = (pad, eos, *words)
    wrong = [w for w in vocab if w.split() != [w] or vocab.count(w) > 1]
    if wrong:
      raise ValueError(
        f'{wrong[0]!r} cannot be a word of the vocabulary; each word must be '
        'there once (pad and EOS included) and hold no white space.'
      )
    backend = tokenizers.Tokenizer(
      models.WordLevel({word: i for i, word in enumerate(vocab)})
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([pad, eos])
    return cls(backend, eos_ids=[1], pad_id=0)

  def save(self, folder: str | os.PathLike[str]) -> None:
    """Writes the files that `load`, and transformers, read back."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    self._backend.save(str(folder / 'tokenizer.json'))
    ids = {
      'eos_token_id': list(self.eos_ids),
      'bos_token_id': self.bos_id,
      'pad_token_id': self.pad_id,
    }
    _write_json(folder / 'generation_config.json', ids)
    config = {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'clean_up_tokenization_spaces': False,
      **self._special_tokens(),
    }
    if self.chat_template is not None:
      config['chat_template'] = self.chat_template
    _write_json(folder / 'tokenizer_config.json', config)

  def encode(self, text: str, add_special: bool = False) -> list[int]:
    """Token ids of a text; special tokens written in it become their ids.

    But for those that `as_text` has marked.

    Args:
      text: any text.
      add_special: also add what the model expects around a text (BOS).

    Raises:
      ValueError: a word that a word-level vocabulary does not have.
    """
    first, *rest = text.split(_CUT)
    found = self._encode(first, add_special)
    size = len(found.ids)
    # What a post-processor adds behind a text, such as EOS, would end a prompt.
    while size and found.special_tokens_mask[size - 1]:
      if not first and found.ids[size - 1] == self.bos_id:
        break
      size -= 1
    ids = found.ids[:size]
    for piece in rest:
      ids += self._encode_on(piece)
    return ids

  def as_text(self, text: str) -> str:
    """The text, for `encode` to spell its control tokens like other words.

    Also those that only the tokenizer sees, in look-alike characters that it
    normalises.

    Raises:
      ValueError: a character that alone is a control token.
    """
    text = self._control.sub(
      lambda found: found[0][0] + _CUT + found[0][1:], text.replace(_CUT, '')
    )
    pieces = text.split(_CUT)
    while (cut := [p for piece in pieces for p in self._cut(piece)]) != pieces:
      pieces = cut
    return _CUT.join(pieces)

  def _cut(self, piece: str) -> list[str]:
    """A text, cut inside each control token that its encoding has."""
    try:
      encoding = self._encode(piece, False)
    except ValueError:  # said by `encode`, if the text is encoded
      return [piece]
    parts, last = [], 0
    for token_id, (start, end) in zip(
      encoding.ids, encoding.offsets, strict=True
    ):
      if token_id not in self._control_tokens:
        continue
      if end - start < 2:
        raise ValueError(
          f'{self.source} reads {piece[start:end]!r} of a question as its '
          f'control token {self._control_tokens[token_id]!r}; write the '
          'question without it.'
        )
      middle = (start + end) // 2
      parts.append(piece[last:middle])
      last = middle
    return [*parts, piece[last:]]

  @functools.cached_property
  def _control(self) -> re.Pattern:
    # The longest first, as the tokenizer matches them; (?!) matches nothing.
    names = sorted(self._control_tokens.values(), key=len, reverse=True)
    return re.compile('|'.join(map(re.escape, names)) or '(?!)')

  @functools.cached_property
  def _control_tokens(self) -> dict[int, str]:
    added = self._backend.get_added_tokens_decoder()
    return {
      i: t.content
      for i, t in added.items()
      if len(t.content) > 1
      and (t.special or t.content in (self.chat_template or ''))
    }

  def _encode_on(self, piece: str) -> list[int]:
    """Ids of a text that begins inside a word."""
    start = self._token(self._encode('|', False).ids[0])
    if not start.startswith('▁'):
      return self._encode(piece, False).ids
    # SentencePiece puts a space before a text, but none after a newline.
    newline = self._encode('\n', False).ids
    return self._encode('\n' + piece, False).ids[len(newline) :]

  def _encode(self, text: str, add_special: bool) -> tokenizers.Encoding:
    text_files.check_text(text, f'A text for {self.source}')
    try:
      return self._backend.encode(text, add_special_tokens=add_special)
    except Exception as error:  # the library raises nothing narrower
      words = self._backend.pre_tokenizer.pre_tokenize_str(text)
      unknown = [w for w, _ in words if self._backend.token_to_id(w) is None]
      raise ValueError(
        f'{self.source} has no id for {", ".join(map(repr, unknown))}; use '
        'only words of its vocabulary.'
      ) from error

  def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
    """Text of token ids.

    Args:
      ids: one row.
      skip_special: leave out the special tokens that are no part of a text:
        EOS, BOS, padding and the marks of turns. Tags such as <think> stay,
        special or not.
    """
    hidden = self._hidden if skip_special else frozenset()
    return self._backend.decode(
      [int(i) for i in ids if int(i) not in hidden], skip_special_tokens=False
    )

  @functools.cached_property
  def _hidden(self) -> frozenset[int | None]:
    added = self._backend.get_added_tokens_decoder()
    names = {token.content for token in added.values()}

    def marks_turns(name: str) -> bool:
      tag = _TAG.fullmatch(name)
      if tag and {f'<{tag[1]}>', f'</{tag[1]}>'} <= names:
        return False
      return bool(_MARKER.fullmatch(name)) or name in (self.chat_template or '')

    marks = {
      i for i, t in added.items() if t.special and marks_turns(t.content)
    }
    return frozenset({*self.eos_ids, self.bos_id, self.pad_id, *marks})

  def difference(self, other: 'Tokenizer') -> str | None:
    """A token to which another tokenizer gives another id, or none; or None."""
    mine, theirs = (
      t._backend.get_vocab(with_added_tokens=True) for t in (self, other)
    )
    tokens = sorted(mine.keys() | theirs.keys())
    return next((t for t in tokens if mine.get(t) != theirs.get(t)), None)

  def apply_chat_template(
    self,
    messages: Sequence[Mapping[str, str]],
    add_generation_prompt: bool = True,
  ) -> str:
    """The prompt text of a conversation, as transformers renders it.

    Args:
      messages: each with `role` and `content`; what the assistant has not
        said goes through `as_text`.
      add_generation_prompt: end with the opening of the model's turn.

    Raises:
      ValueError: no chat template, or one that refuses the messages.
    """
    if self.chat_template is None:
      raise ValueError(
        f'{self.source} has no chat template; use a plain prompt template, '
        'or a model that was trained to chat.'
      )
    variables = {
      'messages': [self._from_outside(m) for m in messages],
      'add_generation_prompt': add_generation_prompt,
      'tools': None,
      'documents': None,
      **self._special_tokens(),
    }
    try:
      return chat.render(self.chat_template, TODAY, variables)
    except chat.ChatTemplateError as error:
      raise ValueError(
        f'The chat template of {self.source} does not accept the messages '
        f'({error}); change their roles or order, or the template.'
      ) from error

  def _from_outside(self, message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get('content')
    if message.get('role') == 'assistant' or not isinstance(content, str):
      return dict(message)
    return {**message, 'content': self.as_text(content)}

  def _special_tokens(self) -> dict[str, str]:
    ids = {
      'eos_token': self.eos_ids[0],
      'bos_token': self.bos_id,
      'pad_token': self.pad_id,
    }
    return {name: self._token(i) for name, i in ids.items() if i is not None}


def _write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
  files.write_json(path, value, indent=2, ensure_ascii=False)
