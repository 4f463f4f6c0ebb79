"""Data sets by name from the Hugging Face hub, or from files put in place.

What has been fetched is written once as a TFDS dataset (array_record) and is
read from there afterwards, without the network.
"""

import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rlzero.tasks import base
from rlzero.tasks.datasets import downloads, materialise, records

Row = tuple[str, dict[str, Any]]  # where it stands, and its columns


def examples(
  name: str,
  data_dir: str,
  repo: str,
  files: Sequence[str],
  convert: Callable[[Iterable[Row]], Iterable[base.Example]],
) -> list[base.Example]:
  """The problems of an evaluation set, from disk or from the hub.

  Args:
    name: of the task; files by hand are looked for in DATA_DIR/NAME/raw.
    data_dir: folder of TFDS datasets.
    repo: of the data set on the hub.
    files: patterns of the files to read there: JSONL, parquet or CSV.
    convert: makes examples of rows.

  Raises:
    FileNotFoundError: the data is neither there nor to be had; says how to
      bring it by hand.
    ValueError: a file that is damaged, or lacks a column.
  """
  root = pathlib.Path(data_dir).expanduser()
  folder = root / 'problems' / name / str(materialise.Problems.VERSION)
  if not (folder / 'dataset_info.json').exists():
    found = list(convert(_rows(root / name / 'raw', repo, files)))
    _check(name, found)
    materialise.write(name, {'test': found}, str(root))
  found = materialise.read(folder, 'test')
  records.tell_duplicates(
    name, [(f'problem {e.uid}', e.question, e.target) for e in found]
  )
  return found


def column(row: Row, name: str) -> Any:
  """A column of a row.

  Raises:
    ValueError: it is missing.
  """
  place, columns = row
  if name not in columns:
    raise ValueError(
      f'{place} has no column {name!r}; it has '
      f'{", ".join(map(repr, columns))}. Bring a version of the data set that '
      'has it.'
    )
  return columns[name]


def text(row: Row, name: str) -> str:
  """A column of a row as text that is not empty; a number is its text.

  Raises:
    ValueError: it is missing, empty or something else.
  """
  column(row, name)
  return records.text(row, name)


def check_split(name: str, split: str) -> None:
  """Evaluation sets have one split.

  Raises:
    ValueError: another one.
  """
  if split != 'test':
    raise ValueError(f'{name} has the split test alone, not {split!r}.')


def _check(name: str, found: Sequence[base.Example]) -> None:
  """Samples and metrics go by the uid, so each must be there once."""
  first: dict[str, int] = {}
  for number, example in enumerate(found, start=1):
    before = first.setdefault(example.uid, number)
    if before != number:
      raise ValueError(
        f'{name} has the id {example.uid!r} twice, as problems {before} and '
        f'{number}; bring a version of the data set with ids of its own for '
        'each.'
      )


def _rows(
  by_hand: pathlib.Path, repo: str, files: Sequence[str]
) -> Iterable[Row]:
  paths = sorted(p for p in by_hand.glob('*') if p.is_file())
  if not paths:
    paths = _fetch(by_hand, repo, files)
  for path in paths:
    yield from records.read(records.Source(path=str(path)))


def _fetch(
  by_hand: pathlib.Path, repo: str, files: Sequence[str]
) -> list[pathlib.Path]:
  try:
    return list(downloads.fetch(repo, files).values())
  except downloads.NotFetched as error:
    raise FileNotFoundError(
      f'The data set {repo} cannot be loaded: {error}. To bring it by hand, '
      f'put {" and ".join(files)} of https://huggingface.co/datasets/{repo} '
      f'into {by_hand} and run this again.'
    ) from error.__cause__
