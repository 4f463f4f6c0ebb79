"""Records of JSONL, Hugging Face parquet, CSV or a TFDS folder."""

import csv
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow
from pyarrow import parquet

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
    if self.num_examples < 0:
      raise ValueError(
        f'Source.num_examples is {self.num_examples}; it must be 0 (all) or '
        'more.'
      )


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
    found = _tfds(path, source.split)
  else:
    files = [path]
    if path.is_dir():
      files = sorted(p for p in path.iterdir() if p.suffix in _READERS)
    if not path.exists() or not files or files[0].suffix not in _READERS:
      raise FileNotFoundError(
        f'{path} {"holds no examples" if path.exists() else "does not exist"}; '
        'give a .jsonl, .parquet or .csv file, a folder of these, or the '
        'folder of a TFDS dataset.'
      )
    found = itertools.chain(*(_READERS[file.suffix](file) for file in files))
  place = None
  for place, row in found:
    yield place, {source.rename.get(k, k): v for k, v in row.items()}
  if place is None:
    raise ValueError(f'{path} has no records; give a file that has some.')


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
  if not isinstance(row[name], kind) or not row[name]:
    raise ValueError(
      f'{place} has {row[name]!r} as its {name!r}; it must be a '
      f'{kind.__name__} that is not empty.'
    )
  return row[name]


def _jsonl(path: pathlib.Path):
  with open(path, encoding='utf-8') as file:
    for number, line in enumerate(file, start=1):
      if not line.strip():
        continue
      try:
        row = json.loads(line)
      except json.JSONDecodeError as error:
        raise ValueError(
          f'{path}:{number} is not JSON ({error.msg}); remove or correct the '
          'line.'
        ) from error
      if not isinstance(row, dict):
        raise ValueError(
          f'{path}:{number} is a JSON {type(row).__name__}; each line must be '
          'an object with a column for each key.'
        )
      yield f'{path}:{number}', row


def _parquet(path: pathlib.Path):
  try:
    batches = parquet.ParquetFile(path).iter_batches()
    rows = itertools.chain.from_iterable(b.to_pylist() for b in batches)
    for i, row in enumerate(rows):
      yield f'{path}, row {i}', row
  except (OSError, pyarrow.ArrowException) as error:
    raise ValueError(
      f'{path} is not a parquet file ({error}); copy or download it again.'
    ) from error


def _csv(path: pathlib.Path):
  with open(path, encoding='utf-8', newline='') as file:
    for number, row in enumerate(csv.DictReader(file), start=1):
      yield f'{path}, row {number}', row


_READERS = {'.jsonl': _jsonl, '.parquet': _parquet, '.csv': _csv}


def _tfds(path: pathlib.Path, split: str):
  # Seconds to import, for the sources that need it.
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(path)
  if builder.info.file_format.value != 'array_record':
    raise FileNotFoundError(
      f'{path} holds {builder.info.file_format.value} files, and only '
      'array_record is read without TensorFlow; prepare the dataset with '
      "file_format='array_record'."
    )
  if split not in builder.info.splits:
    raise ValueError(
      f'{path} has no split {split!r}; it has {", ".join(builder.info.splits)}.'
    )
  for i, row in enumerate(builder.as_data_source(split)):
    yield f'{path}, {split} {i}', {k: _plain(v) for k, v in row.items()}


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
