"""Text to token ids and back: tokenizer.json, GGUF metadata, whole words."""

import datetime
import functools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
import tokenizers
from tokenizers import (
  AddedToken,
  Regex,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
)

# How text is cut before merging, by the name GGUF files give it. A vocabulary
# only makes sense with the cut its merges were learned on.
_GPT2 = (
  r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
  r'|\s+(?!\S)|\s+'
)
_LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_GGUF_SPLITS = {
  'gpt-2': (_GPT2,),
  'smollm': (r'\p{N}', _GPT2),
  'qwen2': (_LLAMA3.replace('{1,3}', ''),),
  'llama-bpe': (_LLAMA3,),
  'default': (r'[\p{P}\$\+<=>\^~\|]+', _GPT2, r'\p{N}+', r'[0-9]{3}'),
}
_GGUF_CONTROL, _GGUF_USER_DEFINED = 3, 4  # entries of token_type


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

  @classmethod
  def load(cls, folder: str | os.PathLike[str]) -> 'Tokenizer':
    """Reads the tokenizer of a Hugging Face folder.

    Args:
      folder: holds tokenizer.json and, where they exist,
        tokenizer_config.json, special_tokens_map.json,
        generation_config.json and chat_template.jinja.

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
    more = _read_json(folder / 'generation_config.json').get('eos_token_id')
    if more is None:
      more = []
    elif isinstance(more, int):
      more = [more]
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
  def from_gguf(
    cls, metadata: Mapping[str, Any], source: str = 'this GGUF file'
  ) -> 'Tokenizer':
    """Builds the byte-level BPE tokenizer a GGUF file describes.

    Args:
      metadata: the file's key-value pairs, as Python values.
      source: what error messages call it, usually a path.

    Raises:
      ValueError: another kind of tokenizer, an unknown pre-tokenizer, or a
        missing key.
    """

    def get(key: str) -> Any:
      return metadata.get(f'tokenizer.ggml.{key}')

    if get('model') != 'gpt2':
      raise ValueError(
        f'{source} has a tokenizer of kind {get("model")!r}, but only '
        "byte-level BPE ('gpt2') is built from GGUF; use the model's Hugging "
        'Face folder instead.'
      )
    pre = get('pre') or 'default'
    if pre not in _GGUF_SPLITS:
      raise ValueError(
        f'{source} has the pre-tokenizer {pre!r}, but only '
        f"{', '.join(_GGUF_SPLITS)} are known; use the model's Hugging Face "
        'folder instead.'
      )
    for key in ('tokens', 'token_type', 'merges'):
      if not get(key):
        raise ValueError(
          f'{source} lacks tokenizer.ggml.{key}; convert the model again, '
          'vocabulary included.'
        )
    tokens, merges = get('tokens'), get('merges')
    backend = tokenizers.Tokenizer(
      models.BPE(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[tuple(merge.split(' ')) for merge in merges],
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
          for split in _GGUF_SPLITS[pre]
        ),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
      ]
    )
    backend.decoder = decoders.ByteLevel()
    for wanted, add in (
      (_GGUF_CONTROL, backend.add_special_tokens),
      (_GGUF_USER_DEFINED, backend.add_tokens),
    ):
      add(
        [
          AddedToken(token, normalized=False, special=wanted == _GGUF_CONTROL)
          for token, kind in zip(tokens, get('token_type'), strict=True)
          if kind == wanted
        ]
      )
    bos = get('bos_token_id')
    # What llama.cpp assumes where the file does not say.
    add_bos = metadata.get('tokenizer.ggml.add_bos_token', pre == 'llama-bpe')
    if add_bos and bos is not None:
      backend.post_processor = processors.TemplateProcessing(
        single=f'{tokens[bos]} $A', special_tokens=[(tokens[bos], bos)]
      )
    eos = [get('eos_token_id'), get('eot_token_id')]
    return cls(
      backend,
      eos_ids=[i for i in eos if i is not None],
      bos_id=bos,
      pad_id=get('padding_token_id'),
      chat_template=metadata.get('tokenizer.chat_template'),
      source=source,
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

    Args:
      text: any text.
      add_special: also add what the model expects around a text (BOS).

    Raises:
      ValueError: a word that a word-level vocabulary does not have.
    """
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

  def apply_chat_template(
    self,
    messages: Sequence[Mapping[str, str]],
    add_generation_prompt: bool = True,
  ) -> str:
    """The prompt text of a conversation, as transformers renders it.

    Args:
      messages: each with `role` and `content`.
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
        messages=[dict(m) for m in messages],
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


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
  """Compiles in a sandbox: templates come with weights, from anyone."""
  env = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[jinja2.ext.loopcontrols],
  )

  def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)

  # Jinja's own filter escapes HTML, which would change the prompt.
  env.filters['tojson'] = functools.partial(json.dumps, ensure_ascii=False)
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
