"""Records of JSONL, Hugging Face parquet, CSV or a TFDS folder."""

import csv
import dataclasses
import itertools
import math
import pathlib
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import pyarrow
from pyarrow import parquet

from rlzero.runtime import fields
from rlzero.runtime.fields import at_least
from rlzero.text import files, warn

_BATCH = 1024  # rows of parquet that are read together

Record = tuple[str, dict[str, Any]]  # its place, for errors, and its columns


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """Where examples of one kind come from, and how many an epoch has.

  Raises:
    ValueError: a number below 0.
  """

  path: str  # .jsonl, .parquet, .csv or a folder of them, or a folder of TFDS
  split: str = 'train'  # of a folder of TFDS
  num_examples: int = 0  # an epoch, the next ones in each; 0 takes all
  # Columns by their names in the source: {'problem': 'prompt'}.
  rename: dict[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    fields.check(self, num_examples=at_least(0).because('0 takes all'))


def sources(data: str | Sequence[Source]) -> tuple[Source, ...]:
  """Several sources, or the one that a path stands for."""
  return (Source(path=data),) if isinstance(data, str) else tuple(data)


def read(source: Source) -> Iterator[Record]:
  """The records of a source in its order, each with its place for errors.

  Raises:
    FileNotFoundError: nothing there, or nothing that is read here.
    ValueError: a file that is damaged, or has no records.
  """
  path = pathlib.Path(source.path).expanduser()
  if (path / 'dataset_info.json').is_file():
    found = read_tfds(path, source.split)
  else:
    found = itertools.chain(*(read_file(file) for file in files_of(path)))
  place = None
  for place, row in found:
    yield place, {source.rename.get(k, k): v for k, v in row.items()}
  if place is None:
    raise ValueError(f'{path} has no records; give one that has some.')


def files_of(path: pathlib.Path) -> list[pathlib.Path]:
  """The files that a path stands for: itself, or those of a folder.

  Raises:
    FileNotFoundError: nothing there, or nothing that is read here.
  """
  paths = [path]
  if path.is_dir():
    paths = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
  if not path.exists() or not paths or paths[0].suffix not in SUFFIXES:
    raise FileNotFoundError(
      f'{path} {"holds no examples" if path.exists() else "does not exist"}; '
      'give a .jsonl, .parquet or .csv file, a folder of these, or the '
      'folder of a TFDS dataset.'
    )
  return paths


def read_file(
  path: pathlib.Path, columns: Collection[str] | None = None
) -> Iterator[Record]:
  """The records of one file: an empty one was not copied whole.

  Args:
    path: one of SUFFIXES.
    columns: that are wanted, where others can be left unread; None takes all.

  Raises:
    ValueError: the file is damaged, or has no records.
  """
  place = None
  for place, row in _READERS[path.suffix](path, columns):
    yield place, row
  if place is None:
    raise ValueError(f'{path} has no records; remove it or copy it again.')


def field(record: Record, name: str, kind: type) -> Any:
  """A column of a record that must be there, and not empty.

  Raises:
    ValueError: it is missing, empty or of another type.
  """
  place, row = record
  if name not in row:
    raise ValueError(
      f'{place} has no {name!r} but {", ".join(map(repr, row))}; add the '
      'column, or set Source.rename to the one that is meant.'
    )
  value = row[name].strip() if isinstance(row[name], str) else row[name]
  if not isinstance(value, kind) or not value:
    raise ValueError(
      f'{place} has {row[name]!r} as its {name!r}; it must be a '
      f'{kind.__name__} that is not empty.'
    )
  return row[name]


def text(record: Record, name: str) -> str:
  """A column as text that is not empty; a number is the text it is written as.

  Raises:
    ValueError: it is missing, empty or neither text nor a number.
  """
  place, row = record
  value = row.get(name)
  if isinstance(value, (int, float)) and not isinstance(value, bool):
    if math.isfinite(value):
      return str(value)
  return field((place, row), name, str)


def tell_duplicates(name: str, placed: Iterable[tuple[str, str, str]]) -> None:
  """Prints how many questions a data set has more than once, if any.

  Args:
    name: of the data set.
    placed: place, question and answer of each problem.
  """
  first: dict[str, tuple[str, str]] = {}
  repeated, different = 0, 0
  places: tuple[str, str] | None = None  # of the first that is repeated
  for place, question, answer in placed:
    before = first.setdefault(question, (place, answer))
    if before[0] != place:
      repeated += 1
      places = places or (before[0], place)
      different += before[1] != answer
  if places:
    warn.once(
      f'{name} repeats {repeated} of its questions, the first at '
      f'{places[0]} and {places[1]}'
      + (f', {different} of them with another answer' if different else '')
      + '; each counts as often as it is there.'
    )


def _jsonl(path: pathlib.Path, _: Collection[str] | None) -> Iterator[Record]:
  name = str(path)  # which a Path takes longer to say than a line to read
  for number, line in files.lines(path):
    if not line.strip():
      continue
    place = f'{name}:{number}'
    row = files.parse_json(line, place, 'remove or correct the line')
    if not isinstance(row, dict):
      raise ValueError(
        f'{place} is a JSON {type(row).__name__}; each line must be an object '
        'with a column for each key.'
      )
    yield place, row


def _parquet(
  path: pathlib.Path, wanted: Collection[str] | None
) -> Iterator[Record]:
  number, done, name = 0, 0, str(path)
  try:
    # Buffered: else it holds whole row groups, and files may have only one.
    file = parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    names = file.schema_arrow.names
    # Where none of them is there, all are: the error can name them.
    names = [n for n in names if wanted is None or n in wanted] or names
    for batch in file.iter_batches(_BATCH, columns=names):
      columns = []
      for column in batch.columns:
        done = number
        try:
          columns.append(column.to_pylist())
        except UnicodeDecodeError:
          for value in column:
            value.as_py()
            done += 1
          raise
      for row in zip(*columns, strict=True):
        yield f'{name}, row {number}', dict(zip(names, row, strict=True))
        number += 1
  except UnicodeDecodeError as error:
    raise ValueError(
      f'{path}, row {done} holds text that is not UTF-8 ({error.reason}); '
      'correct the row or write the file again.'
    ) from error
  except (OSError, pyarrow.ArrowException) as error:
    if getattr(error, 'errno', None):  # the disk's fault, not the file's
      raise
    raise ValueError(
      f'{path} is not a parquet file ({error}); copy or download it again.'
    ) from error


def _csv(path: pathlib.Path, _: Collection[str] | None) -> Iterator[Record]:
  csv.field_size_limit(sys.maxsize)  # a program or a text may be a field
  reader = csv.reader(
    (line for _, line in files.lines(path, newline='')), strict=True
  )
  header: list[str] = []
  start = 1  # line on which a record begins
  try:
    for row in reader:
      place, start = f'{path}:{start}', reader.line_num + 1
      if not row:  # an empty line
        continue
      if not header:
        header = row
        if twice := {name for name in row if row.count(name) > 1}:
          raise ValueError(
            f'{place} names the column {min(twice)!r} more than once; give '
            'each a name of its own.'
          )
        continue
      if len(row) != len(header):
        raise ValueError(
          f'{place} has {len(row)} fields, but the header has {len(header)}; '
          'remove or correct the line.'
        )
      yield place, dict(zip(header, row, strict=True))
  except csv.Error as error:
    raise ValueError(
      f'{path}:{start} is not CSV ({error}); a quote may be left open there. '
      'Remove or correct the line.'
    ) from error


_READERS = {'.jsonl': _jsonl, '.parquet': _parquet, '.csv': _csv}
SUFFIXES = tuple(_READERS)


def tfds_splits(path: pathlib.Path) -> list[str]:
  """The splits of a folder of TFDS."""
  import tensorflow_datasets as tfds

  return list(tfds.builder_from_directory(path).info.splits)


def read_tfds(path: pathlib.Path, split: str) -> Iterator[Record]:
  """The records of a split of a folder of TFDS.

  Raises:
    FileNotFoundError: it is in a format that needs TensorFlow.
    ValueError: no such split, or text that is damaged.
  """
  # Seconds to import, for the sources that need it.
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(path)
  kind = builder.info.file_format
  if kind is None or kind.value != 'array_record':
    raise FileNotFoundError(
      f'{path} holds {kind and kind.value} files, and only '
      'array_record is read without TensorFlow; prepare the dataset with '
      "file_format='array_record'."
    )
  if split not in builder.info.splits:
    raise ValueError(
      f'{path} has no split {split!r}; it has {", ".join(builder.info.splits)}.'
    )
  # A decorator hides that it takes the split.
  rows = builder.as_data_source(split)  # pyright: ignore[reportCallIssue]
  for i, row in enumerate(rows):
    place = f'{path}, {split} {i}'
    try:
      yield place, {k: _plain(v) for k, v in row.items()}
    except UnicodeDecodeError as error:
      raise ValueError(
        f'{place} holds text that is not UTF-8 ({error.reason}); prepare the '
        'dataset again.'
      ) from error


def _plain(value: Any) -> Any:
  """A value of TFDS as JSON would have it: bytes are text, a dict of columns
  a list of objects."""
  if isinstance(value, bytes):
    return value.decode()
  if isinstance(value, dict):
    columns = {key: _plain(column) for key, column in value.items()}
    if all(isinstance(column, list) for column in columns.values()):
      rows = zip(*columns.values(), strict=True)
      return [dict(zip(columns, row, strict=True)) for row in rows]
    return columns
  if hasattr(value, 'tolist'):  # of NumPy
    value = value.tolist()
  if isinstance(value, list):
    return [_plain(one) for one in value]
  return value
