"""The rows of a table on disk, for reading in any order.

A table is read once, row by row. What can be used goes into a file of Arrow
batches in rlzero's cache, which is then mapped into memory: ten million rows
take no more of it than their numbers do. The file has the place of each row in
its source, a hash of its question and its split.
"""

import collections
import functools
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow

from rlzero.runtime import files
from rlzero.tasks import base
from rlzero.tasks.datasets import locate, records
from rlzero.tasks.datasets.table_rows import Columns, Unusable
from rlzero.text import files as text_files
from rlzero.text import warn
from rlzero.text.template import Chat

_VERSION = 1  # of the files
_CHUNK = 64  # rows that are looked at together; they stay in the CPU's cache
_BATCH_ROWS, _BATCH_CHARS = 4096, 1 << 23
_HOPELESS = 1024  # rows at the beginning of which none can be used: say so
_TOLD_EVERY = 1_000_000  # rows
_SHARES = 10_000  # in which the hash of a question divides a table
_SPLIT_NUMBERS = {split: i for i, split in enumerate(locate.SPLITS)}
_SCHEMA = pyarrow.schema(
  [
    ('question', pyarrow.large_string()),  # JSON, if it is a conversation
    ('is_chat', pyarrow.bool_()),
    ('target', pyarrow.large_string()),
    ('number', pyarrow.int64()),  # of the row in the source, from 0
    ('split', pyarrow.int8()),  # index in `locate.SPLITS`
    ('digest', pyarrow.uint64()),  # of the question
  ]
)


class Source(NamedTuple):
  """Where rows come from, and how each becomes a problem."""

  parts: dict[str, list[locate.Part]]  # by split
  columns: Columns
  target_of: Callable[[Any], Any]  # of the verifier
  key: str  # names what `target_of` depends on
  name: str  # for messages


class Rows(Sequence[base.Example]):
  """The problems of one split, read from disk one by one.

  Args:
    store: of the table.
    places: of the rows there.
    name: of the task.
    system: a message put first, in place of the question's own; '' leaves it.
    with_prompt: whether targets hold the question, for functions that judge.
  """

  def __init__(
    self,
    store: 'Store',
    places: np.ndarray,
    name: str,
    system: str = '',
    with_prompt: bool = False,
  ):
    self._store, self._places, self._name = store, places, name
    self._system, self._with_prompt = system, with_prompt

  @property
  def fingerprint(self) -> str:
    """Digest of the whole table: another one is another table."""
    return self._store.facts['fingerprint']

  def __len__(self) -> int:
    return len(self._places)

  @overload
  def __getitem__(self, index: int) -> base.Example: ...
  @overload
  def __getitem__(self, index: slice) -> list[base.Example]: ...

  def __getitem__(
    self, index: int | slice
  ) -> base.Example | list[base.Example]:
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    row = self._store.row(int(self._places[index]))
    question, target = row['question'], row['target']
    if row['is_chat']:
      question = Chat.unpack(json.loads(question))
    if self._system:
      question = _with_system(question, self._system)
    if self._with_prompt:
      prompt = Chat.pack(question)
      target = files.to_json({**json.loads(target), 'prompt': prompt})
    return base.Example(f'{self._name}-{row["number"]}', question, target)


def _with_system(question: str, system: str) -> Chat:
  messages = [{'role': 'user', 'content': question}]
  if isinstance(question, Chat):
    messages = [m for m in question.messages if m['role'] != 'system']
  return Chat([{'role': 'system', 'content': system}, *messages])


class Store:
  """A table in the cache, mapped into memory.

  Args:
    path: of the file of batches; that with its facts lies beside it.

  Attributes:
    facts: `rows` in the source, `batches` (rows of each), `reasons` why rows
      are left out (how many by reason), the `first` of those, `repeated`
      questions, `splits` that the source itself has, `fingerprint`.
  """

  def __init__(self, path: str):
    self.facts = text_files.read_json(_facts_of(path))
    self._starts = np.cumsum([0, *self.facts['batches']])
    self._file = pyarrow.ipc.open_file(pyarrow.memory_map(path))
    self._batch = functools.lru_cache(maxsize=8)(self._file.get_batch)

  def row(self, place: int) -> dict[str, Any]:
    """The row at a place among those that can be used, by its columns."""
    batch = int(np.searchsorted(self._starts, place, 'right')) - 1
    inside = place - int(self._starts[batch])
    return {
      name: column[inside].as_py()
      for name, column in zip(
        _SCHEMA.names[:4], self._batch(batch).columns, strict=False
      )
    }

  def places(self, split: str, validation: float, test: float) -> np.ndarray:
    """Places of the rows of a split, in the source's order.

    Args:
      split: one of `locate.SPLITS`.
      validation: percent of 'train' that are taken for validation, by hash of
        the question, if the source has no such split.
      test: percent for testing, likewise.
    """
    own = self.column('split')
    index = _SPLIT_NUMBERS[split]
    has = set(self.facts['splits'])
    share = self.column('digest') % _SHARES
    # From both ends, so that one share can grow and leave the other as it is.
    taken = {
      'test': share < round(test * _SHARES / 100),
      'validation': share >= _SHARES - round(validation * _SHARES / 100),
    }
    held_out = [name for name in taken if name not in has]
    chosen = own == index
    if split == 'train':
      for name in held_out:
        chosen &= ~taken[name]
    elif split in held_out:
      chosen = (own == _SPLIT_NUMBERS['train']) & taken[split]
    return np.flatnonzero(chosen).astype(np.int32)

  def column(self, name: str) -> np.ndarray:
    """All values of a column of numbers."""
    batches = range(self._file.num_record_batches)
    found = [self._file.get_batch(i).column(name).to_numpy() for i in batches]
    return np.concatenate(found)


def open_store(source: Source) -> Store:
  """The table in the cache, read from its source if it is not there yet.

  Says how many rows cannot be used, and the place of the first.

  Raises:
    ValueError: a damaged file, or no row that can be used.
  """
  states = [part.state() for parts in source.parts.values() for part in parts]
  settings = [repr(source.columns), source.key]
  key = files.to_json([_VERSION, list(source.parts), states, *settings])
  digest = hashlib.sha256(key.encode()).hexdigest()[:24]
  path = os.path.join(files.cache_folder('tables'), f'{digest}.arrow')
  if not os.path.exists(_facts_of(path)):
    _Writer(source, path).write()
  store = _opened(path)
  _tell(source.name, store.facts)
  return store


@functools.lru_cache(maxsize=16)
def _opened(path: str) -> Store:
  return Store(path)


def _facts_of(path: str) -> str:
  return f'{path}.json'


class _Writer:
  """Reads a table and writes the rows that can be used."""

  def __init__(self, source: Source, path: str):
    self._source, self._path = source, path
    # Rows that are not written yet, by column.
    self._columns: dict[str, list] = {name: [] for name in _SCHEMA.names}
    self._chars = 0  # in these
    self._batches: list[int] = []
    self._digests: list[np.ndarray] = []
    self._content = hashlib.sha256()
    self._reasons: collections.Counter[str] = collections.Counter()
    self._first, self._splits = '', dict.fromkeys(source.parts)

  def write(self) -> None:
    """Writes the file and then its facts, each whole or not at all."""
    # Another process may read the same table, on another host too.
    with (
      files.open_whole(self._path, files.own_suffix()) as sink,
      pyarrow.ipc.new_file(sink, _SCHEMA) as writer,
    ):
      number = self._write_rows(writer)
    digests = np.concatenate(self._digests)
    facts = {
      'rows': number,
      'batches': self._batches,
      'reasons': self._reasons,
      'first': self._first,
      'repeated': len(digests) - len(np.unique(digests)),
      'splits': [s for s in locate.SPLITS if s in self._splits],
      'fingerprint': self._content.hexdigest(),
    }
    files.write_json(_facts_of(self._path), facts, files.own_suffix())

  def _write_rows(self, writer: pyarrow.ipc.RecordBatchFileWriter) -> int:
    number, row = 0, {}
    for split, chunk in self._chunks():
      row = chunk[-1][1]
      self._take(number, split, chunk)
      before, number = number, number + len(chunk)
      waiting = len(self._columns['number'])
      if before < _HOPELESS <= number and not (self._batches or waiting):
        raise self._hopeless(number, row)
      if waiting >= _BATCH_ROWS or self._chars > _BATCH_CHARS:
        self._flush(writer)
      if before // _TOLD_EVERY < number // _TOLD_EVERY:
        print(
          f'{self._source.name}: {number:,} rows read',
          file=sys.stderr,
          flush=True,
        )
    if self._columns['number']:
      self._flush(writer)
    if not self._batches:
      raise self._hopeless(number, row)
    return number

  def _chunks(self) -> Iterator[tuple[str, list[records.Record]]]:
    """Some rows at a time, with the split that their file is of."""
    for split, parts in self._source.parts.items():
      for part in parts:
        rows = part.read(self._source.columns.read)
        while chunk := list(itertools.islice(rows, _CHUNK)):
          yield split, chunk

  def _take(
    self, first: int, split: str, chunk: Sequence[records.Record]
  ) -> None:
    """Keeps the rows that can be used, the first of which has this number."""
    source = self._source
    plain = source.columns.parse_plain(
      source.target_of, [row for _, row in chunk]
    )
    if plain is not None:
      self._add(*plain, range(first, first + len(chunk)), split)
      return
    for number, (place, row) in enumerate(chunk, first):
      try:
        parsed = source.columns.parse(source.target_of, row)
      except Unusable as error:
        self._reasons[str(error)] += 1
        self._first = self._first or place
        continue
      is_chat = isinstance(parsed.question, Chat)
      self._add(
        [parsed.question],
        [parsed.target],
        [number],
        parsed.split or split,
        is_chat,
      )

  def _add(
    self,
    questions: Sequence[str],
    targets: Sequence[str],
    numbers: Sequence[int],
    split: str,
    is_chat: bool = False,
  ) -> None:
    """Takes rows of one split; their numbers are those in the source."""
    columns, count = self._columns, len(questions)
    columns['digest'] += [_digest(question) for question in questions]
    if is_chat:
      questions = [
        files.to_json(Chat.pack(q), ensure_ascii=False) for q in questions
      ]
    columns['question'] += questions
    columns['is_chat'] += [is_chat] * count
    columns['target'] += targets
    columns['number'] += numbers
    columns['split'] += [_SPLIT_NUMBERS[split]] * count
    self._splits.setdefault(split)
    self._chars += sum(map(len, questions)) + sum(map(len, targets))

  def _flush(self, writer: pyarrow.ipc.RecordBatchFileWriter) -> None:
    columns = self._columns
    hashed = b''.join(columns['digest'])
    digests = np.frombuffer(hashed, '>u8').astype(np.uint64)
    values = {**columns, 'digest': digests}
    arrays = [pyarrow.array(values[f.name], f.type) for f in _SCHEMA]
    writer.write_batch(pyarrow.record_batch(arrays, _SCHEMA))
    self._digests.append(digests)
    self._batches.append(len(digests))
    self._content.update(hashed)
    self._content.update('\0'.join(columns['target']).encode())
    for column in columns.values():
      column.clear()
    self._chars = 0

  def _hopeless(self, number: int, row: dict[str, Any]) -> ValueError:
    reasons = ', '.join(
      f'{reason}: {count:,}' for reason, count in self._reasons.most_common(5)
    )
    return ValueError(
      f'None of the first {number:,} rows of {self._source.name} can be used '
      f'({reasons}). Its columns are {", ".join(map(repr, row))}; the columns '
      f'that are asked for are {self._source.columns.asked}.'
    )


def _digest(question: str) -> bytes:
  return hashlib.sha256(question.encode()).digest()[:8]


def _tell(name: str, facts: dict[str, Any]) -> None:
  """Says what was left out, and that questions repeat; once a process."""
  reasons = facts['reasons']
  if reasons:
    listed = ', '.join(f'{r}: {count:,}' for r, count in reasons.items())
    warn.once(
      f'{sum(reasons.values()):,} of the {facts["rows"]:,} rows of {name} '
      f'cannot be used and are left out ({listed}); the first is '
      f'{facts["first"]}.'
    )
  if facts['repeated']:
    warn.once(
      f'{name} repeats {facts["repeated"]:,} of its questions; each counts as '
      'often as it is there.'
    )
