"""Text to token ids and back, and the chat templates around the text.

A control token is one that the tokenizer marks as special or that the chat
template writes, such as the end of a turn. Text that comes from outside never
becomes one: `as_text` marks those that are written in a question, and `encode`
spells what is marked in ordinary tokens. What the template itself writes, and
what the model has written, become the ids of control tokens.
"""

import datetime
import functools
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import tokenizers
from tokenizers import models, pre_tokenizers

# Cuts a control token that is meant as text. It is no character: no text that
# is valid Unicode for interchange holds it.
_CUT = '\ufdd0'


class Tokenizer:
  """A `tokenizers` tokenizer with the ids and the template a model needs.

  Attributes:
    eos_ids: ids that end a completion, the tokenizer's own first.
    bos_id: id a text starts with, or None.
    pad_id: id that fills rows; the first EOS if the tokenizer names none.
    chat_template: Jinja source, or None.
  """

  def __init__(
    self,
    backend: tokenizers.Tokenizer,
    *,
    eos_ids: Sequence[int],
    bos_id: int | None = None,
    pad_id: int | None = None,
    chat_template: str | None = None,
    source: str = 'this tokenizer',
  ):
    """Wraps a backend.

    Args:
      backend: the tokenizer proper.
      eos_ids: at least one id.
      bos_id: see the class.
      pad_id: see the class.
      chat_template: see the class.
      source: what error messages call it, usually a path.

    Raises:
      ValueError: no EOS, or an id outside the vocabulary.
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
    self._source = source
    self._backend = backend
    # A saved tokenizer may carry both; either would silently change prompts.
    backend.no_truncation()
    backend.no_padding()
    for i in (*self.eos_ids, self.pad_id, bos_id):
      if i is not None and backend.id_to_token(i) is None:
        raise ValueError(
          f'{source} names {i} as a special token, but its vocabulary of '
          f'{self.vocab_size} has no such id; correct the id.'
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
        that one of them names as EOS ends a completion.

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
    try:
      backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
      raise ValueError(
        f'{path} is not a tokenizer ({error}); copy or download it again.'
      ) from error
    config = {
      **_read_json(folder / 'special_tokens_map.json'),
      **_read_json(folder / 'tokenizer_config.json'),
    }

    def special(name: str) -> int | None:
      token = config.get(name)
      if isinstance(token, Mapping):
        token = token['content']
      if token is None:
        return None
      token_id = backend.token_to_id(token)
      if token_id is None:
        raise ValueError(
          f'{folder} names {token!r} as its {name}, but tokenizer.json has '
          'no such token; correct tokenizer_config.json.'
        )
      return token_id

    eos = special('eos_token')
    more = []
    for file in ('generation_config.json', 'config.json'):
      ids = _read_json(folder / file).get('eos_token_id')
      more += [ids] if isinstance(ids, int) else ids or []
    template = config.get('chat_template')
    if isinstance(template, list):  # several, by name
      template = {t['name']: t['template'] for t in template}.get('default')
    template_path = folder / 'chat_template.jinja'
    if template_path.is_file():
      template = template_path.read_text(encoding='utf-8')
    return cls(
      backend,
      eos_ids=([] if eos is None else [eos]) + list(more),
      bos_id=special('bos_token'),
      pad_id=special('pad_token'),
      chat_template=template,
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
    ids = self._encode(first, add_special)
    for piece in rest:
      ids += self._encode_on(piece)
    return ids

  def as_text(self, text: str) -> str:
    """The text, for `encode` to spell its control tokens like other words."""
    return self._control.sub(
      lambda found: found[0][0] + _CUT + found[0][1:], text.replace(_CUT, '')
    )

  @functools.cached_property
  def _control(self) -> re.Pattern:
    added = self._backend.get_added_tokens_decoder().values()
    names = [
      t.content
      for t in added
      if len(t.content) > 1
      and (t.special or t.content in (self.chat_template or ''))
    ]
    # The longest first, as the tokenizer matches them; (?!) matches nothing.
    names.sort(key=len, reverse=True)
    return re.compile('|'.join(map(re.escape, names)) or '(?!)')

  def _encode_on(self, piece: str) -> list[int]:
    """Ids of a text that goes on inside a word."""
    start = self._backend.id_to_token(self._encode('|', False)[0])
    if not start.startswith('▁'):
      return self._encode(piece, False)
    # SentencePiece puts a space before a text, but none after a newline.
    newline = self._encode('\n', False)
    return self._encode('\n' + piece, False)[len(newline) :]

  def _encode(self, text: str, add_special: bool) -> list[int]:
    try:
      return self._backend.encode(text, add_special_tokens=add_special).ids
    except Exception as error:  # the library raises nothing narrower
      words = self._backend.pre_tokenizer.pre_tokenize_str(text)
      unknown = [w for w, _ in words if self._backend.token_to_id(w) is None]
      raise ValueError(
        f'{self._source} has no id for {", ".join(map(repr, unknown))}; use '
        'only words of its vocabulary.'
      ) from error

  def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
    """Text of token ids.

    Args:
      ids: one row.
      skip_special: leave special tokens out.
    """
    return self._backend.decode(
      [int(i) for i in ids], skip_special_tokens=skip_special
    )

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
        f'{self._source} has no chat template; use a plain prompt template, '
        'or a model that was trained to chat.'
      )
    try:
      return _compile(self.chat_template).render(
        messages=[self._from_outside(m) for m in messages],
        add_generation_prompt=add_generation_prompt,
        tools=None,
        documents=None,
        **self._special_tokens(),
      )
    except jinja2.TemplateError as error:
      raise ValueError(
        f'The chat template of {self._source} does not accept the messages '
        f'({error}); change their roles or order.'
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
    return {
      name: self._backend.id_to_token(i)
      for name, i in ids.items()
      if i is not None
    }


class _Generation(jinja2.ext.Extension):
  """{% generation %} marks what the model says, for training; text here."""

  tags = {'generation'}

  def parse(self, parser):
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    return jinja2.nodes.Scope(body).set_lineno(line)


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
  """Compiles in a sandbox: templates come with weights, from anyone."""
  env = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[_Generation, jinja2.ext.loopcontrols],
  )

  def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)

  def tojson(
    value, ensure_ascii=False, indent=None, separators=None, sort_keys=False
  ):
    return json.dumps(
      value,
      ensure_ascii=ensure_ascii,
      indent=indent,
      separators=separators,
      sort_keys=sort_keys,
    )

  # Jinja's own filter escapes HTML, which would change the prompt.
  env.filters['tojson'] = tojson
  env.globals['raise_exception'] = raise_exception
  env.globals['strftime_now'] = lambda f: datetime.datetime.now().strftime(f)
  return env.from_string(template)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a file, or {} if there is no such file."""
  if not path.is_file():
    return {}
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(
      f'{path} is not JSON ({error}); copy or download it again.'
    ) from error


def _write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
  path.write_text(
    json.dumps(value, indent=2, ensure_ascii=False) + '\n', encoding='utf-8'
  )
