"""Where the rows of a table are: files, folders, the hub, TFDS; by split."""

import collections
import fnmatch
import glob
import os
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from rlzero.tasks.datasets import downloads, records

SPLITS = ('train', 'validation', 'test')
# What data sets call them.
SPLIT_NAMES = {
  'train': 'train',
  'training': 'train',
  'validation': 'validation',
  'valid': 'validation',
  'val': 'validation',
  'dev': 'validation',
  'test': 'test',
}
_WORD = re.compile('[a-z]+')


class Part(NamedTuple):
  """Rows that are read together: a file, or a split of a folder of TFDS."""

  path: pathlib.Path
  tfds_split: str = ''

  def read(self, columns: Collection[str]) -> Iterator[records.Record]:
    """The rows; other columns than the wanted ones may be left out.

    Raises:
      ValueError: it is damaged, or empty.
    """
    if self.tfds_split:
      return records.read_tfds(self.path, self.tfds_split)
    return records.read_file(self.path, columns)

  def state(self) -> list[str | int]:
    """Tells the part from what it was before somebody changed it."""
    paths = [self.path]
    if self.tfds_split:
      paths = sorted(p for p in self.path.iterdir() if p.is_file())
    stats = [path.stat() for path in paths]
    return [
      str(self.path.absolute()),
      self.tfds_split,
      *(n for s in stats for n in (s.st_size, s.st_mtime_ns)),
    ]


def locate(address: str) -> dict[str, list[Part]]:
  """The parts of each split of a data set, in their order.

  Args:
    address: a .jsonl, .parquet or .csv file, a folder of these or a pattern;
      hf://org/name[@revision][/pattern]; tfds://name[/config][:version] or a
      folder of TFDS.

  Returns:
    parts by split. Files of a folder or a data set of the hub are of the split
    that their names have, such as test-00000-of-00001.parquet; if no name has
    one, all are of 'train'.

  Raises:
    FileNotFoundError: nothing there, or nothing that is read here.
    ValueError: files of several data sets.
  """
  scheme, mark, rest = address.partition('://')
  if mark and scheme == 'hf':
    return _of_hub(address, rest)
  if mark and scheme == 'tfds':
    return _of_tfds(_tfds_folder(address, rest))
  if mark:
    raise FileNotFoundError(
      f'{address} begins with {scheme}://; give a file, a folder, a pattern, '
      'hf://org/name or tfds://name.'
    )
  path = pathlib.Path(address).expanduser()
  if (path / 'dataset_info.json').is_file():
    return _of_tfds(path)
  if not path.exists() and glob.has_magic(address):
    found = sorted(map(pathlib.Path, glob.glob(str(path), recursive=True)))
    found = [p for p in found if p.is_file()]
    if not found:
      raise FileNotFoundError(
        f'{address} matches no file; correct the pattern.'
      )
    found = [f for p in found for f in records.files_of(p)]
    root = os.path.commonpath([p.parent for p in found])
    return _by_name({os.path.relpath(p, root): p for p in found})
  found = records.files_of(path)
  if path.is_file():
    return {'train': [Part(path)]}
  return _by_name({p.name: p for p in found})


def _by_name(paths: Mapping[str, pathlib.Path]) -> dict[str, list[Part]]:
  """Parts by the split that the name of each says."""
  found = collections.defaultdict(list)
  for name, path in paths.items():
    found[_split_of(name)].append(Part(path))
  if len(found) == 1 and '' in found:
    return {'train': found['']}
  if unnamed := found.pop('', None):
    named = ', '.join(p.path.name for parts in found.values() for p in parts)
    raise ValueError(
      f'{unnamed[0].path} has no split in its name, and others have ({named}); '
      'give a pattern of the files that are meant.'
    )
  return {split: found[split] for split in SPLITS if split in found}


def _split_of(name: str) -> str:
  """The split that the name of a file or its folder says; '' if not one."""
  words = _WORD.findall(name.lower().rpartition('.')[0])
  found = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
  return found.pop() if len(found) == 1 else ''


def _of_hub(address: str, rest: str) -> dict[str, list[Part]]:
  owner, _, rest = rest.partition('/')
  name, _, pattern = rest.partition('/')
  name, _, revision = name.partition('@')
  repo = f'{owner}/{name}'
  try:
    names = downloads.listed(repo, revision or None)
    names = [n for n in names if n.endswith(records.SUFFIXES)]
    if pattern:
      names = [n for n in names if fnmatch.fnmatch(n, pattern)]
    if not names:
      raise downloads.NotFetched(
        f'it has no file {pattern or " or ".join(records.SUFFIXES)}'
      )
    _check_one_set(address, names)
    return _by_name(downloads.fetch(repo, names, revision or None))
  except downloads.NotFetched as error:
    raise FileNotFoundError(
      f'{address} cannot be loaded: {error}.'
    ) from error.__cause__


def _check_one_set(address: str, names: Sequence[str]) -> None:
  """Refuses several data sets in one repository, and formats side by side."""
  folders = sorted(
    {
      '/'.join(p for p in n.split('/')[:-1] if p.lower() not in SPLIT_NAMES)
      for n in names
    }
  )
  suffixes = sorted({os.path.splitext(n)[1] for n in names})
  if len(folders) > 1:
    what = ', '.join(f'{f or "its root"}' for f in folders[:8])
    example = f'{folders[-1]}/*'
  elif len(suffixes) > 1:
    what = f'files of {" and ".join(suffixes)}'
    example = os.path.join(folders[0], f'*{suffixes[-1]}')
  else:
    return
  raise ValueError(
    f'{address} has several sets of files ({what}); name one, as in '
    f'{address.rstrip("/")}/{example}.'
  )


def _of_tfds(folder: pathlib.Path) -> dict[str, list[Part]]:
  found = collections.defaultdict(list)
  for name in records.tfds_splits(folder):
    if split := SPLIT_NAMES.get(name):
      found[split].append(Part(folder, name))
  if not found:
    raise ValueError(
      f'{folder} has none of the splits {", ".join(SPLITS)}; prepare the data '
      'set with one of them.'
    )
  return {split: found[split] for split in SPLITS if split in found}


def _tfds_folder(address: str, rest: str) -> pathlib.Path:
  """The newest version of a data set that TFDS has prepared."""
  name, _, version = rest.partition(':')
  root = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  folder = pathlib.Path(root).expanduser() / name
  found = [p.parent for p in folder.glob(f'{version or "*"}/dataset_info.json')]
  if not found:
    set_name, *config = name.split('/')
    argument = f"'{set_name}/{config[0]}'" if config else f"'{set_name}'"
    raise FileNotFoundError(
      f'{address} is not in {folder}; prepare it once with '
      f'tensorflow_datasets.builder({argument}, data_dir={str(root)!r}, '
      "file_format='array_record').download_and_prepare(), or set "
      'TFDS_DATA_DIR to the folder that has it.'
    )
  return max(found, key=lambda p: [int(n) for n in re.findall(r'\d+', p.name)])
