"""Finds stored completions by step, prompt and content, reading little.

The names of the files say the steps. A file is read as a whole when somebody
looks at its step, or when `extend` comes to it; what remains in memory are a
few numbers a completion and where its line begins. What is shown is read from
there again. Files that come later, or that a resumed run writes anew, are taken
up by `refresh`.
"""

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rlzero.reporting import aha, recorded

COMPLETIONS = 'completions'  # folder in the workdir
TOKENS = 'tokens'  # folder of the tokens of some of the completions

_STEP = re.compile(r'step_(\d+)')
_FOLDERS = {COMPLETIONS: 'training', recorded.EVALUATIONS: 'evaluation'}


class Entry(NamedTuple):
  """The little that is kept of a completion."""

  start: int  # of its line in the file, in bytes
  end: int
  group: int  # number of its prompt in the file
  reward: float | None
  correct: bool
  length: float  # tokens


class Group(NamedTuple):
  """A prompt of a file, and its completions."""

  uid: str
  question: str
  members: list[int]  # places in `Indexed.entries`


class Indexed(NamedTuple):
  """A file that has been read."""

  entries: list[Entry]
  groups: list[Group]
  # Places, kinds and words of its self-corrections; None: not looked for yet.
  corrections: list[tuple[int, str, str]] | None = None


class Stored(NamedTuple):
  """A file of completions in the folder of a run."""

  key: str  # 'completions/step_000010'
  kind: str  # 'training' or 'evaluation'
  label: str  # 'step 10' or 'before'
  step: int | None  # None: an evaluation that has no step in its name
  path: str
  stamp: tuple[int, int, int]  # changes with the content


class Query(NamedTuple):
  """Completions that are looked for; a bound of None does not bind."""

  min_reward: float | None = None
  max_reward: float | None = None
  min_length: float | None = None
  max_length: float | None = None
  correct: bool | None = None
  words: tuple[str, ...] = ()  # all of them, in any case

  def takes(self, entry: Entry) -> bool:
    """Whether a completion passes, its words aside."""
    return (
      _within(entry.reward, self.min_reward, self.max_reward)
      and _within(entry.length, self.min_length, self.max_length)
      and self.correct in (None, entry.correct)
    )


class CompletionIndex:
  """The completions of one run.

  Attributes:
    listing: how often the names of the files have changed.

  Args:
    workdir: folder of the run.
  """

  def __init__(self, workdir: str):
    self._workdir, self.listing = workdir, 0
    self._files: dict[str, Stored] = {}
    self._indexed: dict[str, Indexed] = {}

  def refresh(self) -> None:
    """Lists the files: of training by step, then of evaluations."""
    found = {
      stored.key: stored
      for folder, kind in _FOLDERS.items()
      for stored in _listed(self._workdir, folder, kind)
    }
    for key, stored in self._files.items():
      if key in self._indexed and found.get(key) != stored:
        del self._indexed[key]
    self.listing += list(self._files) != list(found)
    self._files = found

  @property
  def keys(self) -> list[str]:
    """Names of the files, such as 'completions/step_000010'."""
    return list(self._files)

  @property
  def num_indexed(self) -> int:
    """Files of training that have been read."""
    return sum(s.key in self._indexed for s in self._of_training())

  @property
  def num_looked_at(self) -> int:
    """Files of training whose self-corrections are known."""
    known = (self._indexed.get(s.key) for s in self._of_training())
    return sum(i is not None and i.corrections is not None for i in known)

  @property
  def num_files(self) -> int:
    """Files of training."""
    return sum(1 for _ in self._of_training())

  def find(self, key: str) -> Stored:
    """The file with this key.

    Raises:
      KeyError: the run has no such file.
    """
    if key not in self._files:
      self.refresh()
    return self._files[key]

  def index_of(self, key: str) -> Indexed:
    """Reads a file, unless that has been done.

    Raises:
      KeyError: the run has no such file.
    """
    if key not in self._indexed:
      self._indexed[key] = _read(self.find(key).path)
    return self._indexed[key]

  def records(self, key: str, places: Sequence[int]) -> list[dict[str, Any]]:
    """Reads completions of a file by their places in its entries."""
    entries = self.index_of(key).entries
    found = []
    with open(self.find(key).path, 'rb') as file:
      for place in places:
        file.seek(entries[place].start)
        line = file.read(entries[place].end - entries[place].start)
        found.append(_parse(line) or {})
    return found

  def tokens(self, key: str) -> dict[int, dict[str, Any]]:
    """The tokens that were kept of a file's completions, by their places."""
    stored = self.find(key)
    path = os.path.join(self._workdir, TOKENS, os.path.basename(stored.path))
    if stored.kind != 'training' or not os.path.isfile(path):
      return {}
    with open(path, 'rb') as file:
      rows = [row for row in map(_parse, file) if row]
    return {row['place']: row for row in rows if 'place' in row}

  def extend(self, seconds: float) -> bool:
    """Looks for self-corrections for about so long; True if all is done."""
    self.refresh()
    until = time.monotonic() + seconds
    for stored in list(self._of_training()):
      known = self._indexed.get(stored.key)
      if known is None or known.corrections is None:
        if time.monotonic() > until:
          return False
        self._indexed[stored.key] = _read(stored.path, corrections=True)
    return True

  def corrections(self) -> Iterator[tuple[Stored, int, str, str]]:
    """The self-corrections that were found: file, place, kind and word."""
    for stored in self._of_training():
      indexed = self._indexed.get(stored.key)
      for place, kind, word in (indexed and indexed.corrections) or ():
        yield stored, place, kind, word

  def search(
    self,
    query: Query,
    after: tuple[str, int] | None = None,
    limit: int = 50,
    seconds: float = 0.5,
  ) -> tuple[list[tuple[Stored, int]], tuple[str, int] | None]:
    """Looks for completions of training, by step.

    Args:
      query: what to look for.
      after: where an earlier search stopped: key and place.
      limit: most to be found.
      seconds: after about so long it stops.

    Returns:
      what was found, and where to continue; None at the end.
    """
    self.refresh()
    until = time.monotonic() + seconds
    found: list[tuple[Stored, int]] = []
    key, first = after or ('', 0)
    for stored in list(self._of_training()):
      if stored.key < key:
        continue
      begin = first if stored.key == key else 0
      if time.monotonic() > until:
        return found, (stored.key, begin)
      entries = self.index_of(stored.key).entries
      places = [
        place
        for place in range(begin, len(entries))
        if query.takes(entries[place])
      ]
      if query.words and places:
        places = self._with_words(stored, places, query.words)
      for place in places:
        if len(found) == limit:
          return found, (stored.key, place)
        found.append((stored, place))
    return found, None

  def _with_words(
    self, stored: Stored, places: Sequence[int], words: Sequence[str]
  ) -> list[int]:
    records = self.records(stored.key, places)
    wanted = [word.casefold() for word in words]
    kept = []
    for place, record in zip(places, records, strict=True):
      text = str(record.get('completion', '')).casefold()
      if all(word in text for word in wanted):
        kept.append(place)
    return kept

  def _of_training(self) -> Iterator[Stored]:
    return (s for s in self._files.values() if s.kind == 'training')


def _within(
  value: float | None, lowest: float | None, highest: float | None
) -> bool:
  if value is None:
    return lowest is None and highest is None
  return (lowest is None or value >= lowest) and (
    highest is None or value <= highest
  )


def _listed(workdir: str, folder: str, kind: str) -> Iterator[Stored]:
  path = os.path.join(workdir, folder)
  try:
    found = sorted(os.scandir(path), key=lambda entry: _order(entry.name))
  except (FileNotFoundError, NotADirectoryError):
    return
  for entry in found:
    stem, ending = os.path.splitext(entry.name)
    # A link may lead out of the run's folder.
    if ending != '.jsonl' or not entry.is_file(follow_symlinks=False):
      continue
    stat = entry.stat(follow_symlinks=False)
    step = _STEP.fullmatch(stem)
    yield Stored(
      key=f'{folder}/{stem}',
      kind=kind,
      label=f'step {int(step[1])}' if step else stem,
      step=int(step[1]) if step else None,
      path=entry.path,
      stamp=(stat.st_mtime_ns, stat.st_size, stat.st_ino),
    )


def _order(name: str) -> tuple[int, str]:
  """Sorts files: what was before the steps, the steps, and the rest."""
  if name.startswith('before.'):
    return 0, name
  return (1 if name.startswith('step_') else 2), name


def _read(path: str, corrections: bool = False) -> Indexed:
  """Reads a file; lines that are no JSON objects are passed over.

  Args:
    path: of the file.
    corrections: whether to look for self-corrections, which takes longer.
  """
  found: list[tuple[int, str, str]] = []
  entries: list[Entry] = []
  groups: list[Group] = []
  numbers: dict[tuple[str, str], int] = {}  # of prompts, by task and uid
  end = 0
  with open(path, 'rb') as file:
    for line in file:
      start, end = end, end + len(line)
      if (record := _parse(line)) is None:
        continue
      uid = str(record.get('uid', record.get('question', '')))
      key = str(record.get('task', '')), uid
      number = numbers.setdefault(key, len(groups))
      if number == len(groups):
        groups.append(Group(uid, str(record.get('question', '')), []))
      groups[number].members.append(len(entries))
      if corrections and record.get('reflections', True):
        if correction := aha.find(record):
          found.append((len(entries), correction.kind, correction.word))
      entries.append(_entry(record, start, end, number))
  return Indexed(entries, groups, found if corrections else None)


def _entry(
  record: Mapping[str, Any], start: int, end: int, group: int
) -> Entry:
  return Entry(
    start,
    end,
    group,
    recorded.number(record.get('reward')),
    bool(record.get('correct', record.get('accuracy'))),
    recorded.number(record.get('len')) or 0.0,
  )


def _parse(line: bytes) -> dict[str, Any] | None:
  try:
    value = json.loads(line)
  except (ValueError, RecursionError):  # nested too deeply
    return None
  return value if isinstance(value, dict) else None
