"""Special tokens and chat template as the files of a model's folder say.

Hugging Face folders say the same thing in up to four files, and not all of
them are right: what each is worth is decided here.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import tokenizers

from rlzero.text import files, warn

MAX_TEMPLATE_BYTES = 1 << 20


def special_id(
  config: Mapping[str, Any],
  backend: tokenizers.Tokenizer,
  folder: pathlib.Path,
  name: str,
) -> int | None:
  """The id of a token that tokenizer_config.json names.

  Args:
    config: of that file.
    backend: has the ids.
    folder: of the file, for errors.
    name: such as eos_token.

  Raises:
    ValueError: no such token.
  """
  token = config.get(name)
  if isinstance(token, Mapping):
    token = token.get('content')
  if token is None:
    return None
  token_id = backend.token_to_id(token) if isinstance(token, str) else None
  if token_id is None:
    raise ValueError(
      f'{folder} names {token!r} as its {name}, but tokenizer.json has '
      'no such token; correct tokenizer_config.json.'
    )
  return token_id


def eos_ids(
  folder: pathlib.Path, backend: tokenizers.Tokenizer, named: int | None
) -> list[int]:
  """The tokenizer's own EOS, and those of the model's two files.

  config.json often keeps the default of the model's class, which may be any
  word of this vocabulary: an id that it alone names counts if it is an added
  token, or if no other file names one.

  Args:
    folder: of the files.
    backend: of tokenizer.json.
    named: id of what tokenizer_config.json calls eos_token.

  Raises:
    ValueError: an id that is none.
  """
  found = [] if named is None else [named]
  found += _ids(folder / 'generation_config.json')
  added = backend.get_added_tokens_decoder()
  for token_id in _ids(folder / 'config.json'):
    if not found or token_id in added or token_id in found:
      found.append(token_id)
    else:
      warn.once(
        f'{folder / "config.json"} has eos_token_id {token_id}, which is no '
        f'added token; it does not end completions, {found} does.'
      )
  return found


def _ids(path: pathlib.Path) -> list[int]:
  value = read_object(path).get('eos_token_id')
  if value is None:
    return []
  ids = value if isinstance(value, list) else [value]
  for i in ids:
    whole = isinstance(i, int) or (isinstance(i, float) and i.is_integer())
    if not whole or isinstance(i, bool) or i < 0:
      raise ValueError(
        f'{path} has eos_token_id = {value!r}, but an id or a list of ids is '
        'needed; correct it.'
      )
  return [int(i) for i in ids]


def chat_template(folder: pathlib.Path, template: Any) -> str | None:
  """The chat template: its file, or what tokenizer_config.json has.

  Raises:
    ValueError: one that is no text.
  """
  path = folder / 'chat_template.jinja'
  if path.is_file():
    return files.read(path, MAX_TEMPLATE_BYTES)
  if isinstance(template, list):  # several, by name
    named = [t for t in template if isinstance(t, Mapping)]
    template = {t.get('name'): t.get('template') for t in named}.get('default')
  if not isinstance(template, str | None):
    raise ValueError(
      f'{folder} has a chat_template that is a {type(template).__name__}, but '
      'text is needed; correct tokenizer_config.json.'
    )
  return template


def read_object(path: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file, or {} if there is no such file.

  Raises:
    ValueError: the file holds something else.
  """
  return files.read_json(path) if path.is_file() else {}
