"""One row of a table: its columns, checked, as a question and a target."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rlzero.tasks.datasets import locate
from rlzero.text.template import Chat

# `json.dumps` would make an encoder for every row.
_to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_quote = json.encoder.encode_basestring  # as `_to_json` does a string
_ROLES = ('system', 'user', 'assistant', 'tool', 'developer')


class Unusable(ValueError):
  """Why a row cannot be used, in words that are the same for many rows."""


class Row(NamedTuple):
  """A row that can be used."""

  question: str  # a `Chat`, if it has several messages
  target: str  # JSON: see `Columns.parse`
  split: str  # that the row says, or ''


class Columns(NamedTuple):
  """The columns of a table that are used, by name.

  `a.b` is the column of that name, or else the entry 'b' of column 'a';
  `a.0` is the first entry of a list.
  """

  question: str
  target: str
  others: tuple[str, ...] = ()  # for functions that judge
  optional: tuple[str, ...] = ()  # for them too, where a row has them
  split: str = ''
  min_chars: int = 1  # of a question
  max_chars: int = 100_000

  @property
  def read(self) -> tuple[str, ...]:
    """Names that may be those of whole columns."""
    names = [self.question, self.target, *self.others, *self.optional]
    names.append(self.split)
    heads = [name.partition('.')[0] for name in names]
    return tuple(dict.fromkeys(n for n in (*names, *heads) if n))

  @property
  def asked(self) -> str:
    """The columns and who asks for each, for a message."""
    found = [f'Table.question = {self.question!r}']
    if self.target:
      found.append(f'Table.target = {self.target!r}')
    if self.split:
      found.append(f'Table.split_column = {self.split!r}')
    if others := [name for name in self.others if name != self.target]:
      named = ', '.join(map(repr, others))
      found.append(f'{named} (of Table.columns, or taken by a function)')
    return ', '.join(found)

  def parse(
    self, target_of: Callable[[Any], Any], row: Mapping[str, Any]
  ) -> Row:
    """A row as a question and a target.

    The target is JSON: `target`, what the verifier needs, and `columns`, the
    other ones by the last part of their names.

    Raises:
      Unusable: something is missing, empty, too long or of another type.
    """
    question = _lookup(row, self.question)
    if not isinstance(question, str):
      question = _chat(question, self.question)
    question = question.strip() if type(question) is str else question
    if not self.min_chars <= len(question) <= self.max_chars:
      raise self._length(question)
    value = _lookup(row, self.target) if self.target else None
    try:
      target = target_of(value)
    except ValueError as error:
      raise Unusable(f'{self.target!r} {error}') from None
    split = self._split(row) if self.split else ''
    others = [n for n in self.optional if n in row]
    if isinstance(target, str) and not (self.others or others):
      return Row(question, f'{{"target": {_quote(target)}}}', split)
    values: dict[str, Any] = {'target': target}
    if self.others or others:
      values['columns'] = {
        name.rpartition('.')[2]: _lookup(row, name)
        for name in (*self.others, *others)
      }
    try:
      return Row(question, _to_json(values), split)
    except (TypeError, ValueError):
      raise Unusable(
        f'{", ".join((self.target, *self.others, *others))} hold what JSON '
        'does not'
      ) from None

  def parse_plain(
    self, target_of: Callable[[Any], Any], rows: Sequence[Mapping[str, Any]]
  ) -> tuple[list[str], list[str]] | None:
    """Questions and targets of plain rows, as `parse` has them but faster.

    Returns:
      None where a row is anything else, or cannot be used.
    """
    if self.others or self.optional or self.split or not self.target:
      return None
    try:
      questions = [row[self.question].strip() for row in rows]
      targets = [target_of(row[self.target]) for row in rows]
      lengths = [len(question) for question in questions]
      if self.min_chars > min(lengths) or max(lengths) > self.max_chars:
        return None
      packed = [f'{{"target": {_quote(target)}}}' for target in targets]
    except (AttributeError, KeyError, TypeError, ValueError):
      return None
    return questions, packed

  def _length(self, question: str) -> Unusable:
    if not question.strip():
      return Unusable(f'{self.question!r} is empty')
    if len(question) < self.min_chars:
      limit = f'fewer than Table.min_chars = {self.min_chars}'
    else:
      limit = f'more than Table.max_chars = {self.max_chars}'
    return Unusable(f'{self.question!r} has {limit} characters')

  def _split(self, row: Mapping[str, Any]) -> str:
    value = _lookup(row, self.split)
    split = locate.SPLIT_NAMES.get(str(value).strip().lower(), '')
    if not split:
      raise Unusable(f'{self.split!r} names none of {", ".join(locate.SPLITS)}')
    return split


def _chat(value: Any, name: str) -> str:
  """A conversation up to the last message of its user.

  Raises:
    Unusable: it is none.
  """
  if not isinstance(value, (list, tuple)):
    raise Unusable(f'{name!r} is neither text nor a list of messages')
  messages = []
  for message in value:
    if not isinstance(message, Mapping) or message.get('role') not in _ROLES:
      raise Unusable(f'{name!r} has a message without a known role')
    content = _content(message.get('content'), name)
    messages.append({'role': message['role'], 'content': content})
  # What follows is an answer: it is not to be read by whom it is asked of.
  while messages and messages[-1]['role'] != 'user':
    messages.pop()
  if not messages:
    raise Unusable(f'{name!r} has no message of the user')
  return Chat(messages)


def _content(value: Any, name: str) -> str:
  """The text of a message, whose content may be a list of parts."""
  if isinstance(value, str):
    return value
  parts = value if isinstance(value, Sequence) else ()
  texts = [
    part.get('text')
    for part in parts
    if isinstance(part, Mapping) and part.get('type', 'text') == 'text'
  ]
  if not parts or len(texts) < len(parts) or None in texts:
    raise Unusable(f'{name!r} has a message that is not text')
  return ''.join(map(str, texts))


def _lookup(row: Mapping[str, Any], name: str) -> Any:
  """A value by the name of its column, or by a path into one.

  Raises:
    Unusable: the row has none.
  """
  if name in row:
    return row[name]
  value: Any = row
  for part in _parts(name):
    if isinstance(value, Mapping) and part in value:
      value = value[part]
    elif isinstance(value, (list, tuple)) and part.isdigit():
      if int(part) >= len(value):
        raise Unusable(f'{name!r} is missing')
      value = value[int(part)]
    else:
      raise Unusable(f'{name!r} is missing')
  return value


@functools.cache
def _parts(name: str) -> list[str]:
  return name.split('.')
