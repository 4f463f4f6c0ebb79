"""What a rollout has finished, appended to a file as it is finished.

A rollout may take hours and a kill comes when it comes. Each completion, and
later the scores of some groups, is a line: a checksum and JSON. A kill leaves
at most the last line torn, which is passed over. The first line says of what
rollout the rest are: step, configuration, fingerprint of the policy, prompts.
A journal of anything else is never used.
"""

import base64
import hashlib
import json
import os
import pathlib
import time
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlzero.rollout.sampling import Finish
from rlzero.rollout.scheduler import Completion
from rlzero.runtime import hosts

_SYNC_S = 1.0  # seconds between two waits for the disk


class Journal:
  """Of one rollout; `completions` and `scores` hold what is in it.

  Args:
    path: of the file; None keeps nothing.
    header: of what rollout; a file that says otherwise is begun anew.
  """

  def __init__(self, path: str | None, header: dict[str, Any]):
    self.completions: dict[int, Completion] = {}
    self.scores: list[dict[str, Any]] = []  # of the first completions
    self._file, self._synced = None, time.monotonic()
    if path is None:
      return
    lines = _sound_lines(path)
    if not lines or lines[0][0] != header:
      lines = []
    lines = lines[: hosts.least(len(lines))]
    for line, _ in lines[1:]:
      self._take(line)
    if not hosts.is_first():
      return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    self._file = open(path, 'ab')
    self._file.truncate(lines[-1][1] if lines else 0)
    if not lines:
      self._write(header)

  def add_completion(self, index: int, completion: Completion) -> None:
    """Keeps a completion, by its index in the rollout."""
    self._keep(
      {
        'index': index,
        'tokens': _text(completion.tokens, np.int32),
        'logprobs': _text(completion.logprobs, np.float32),
        'finish': completion.finish.value,
        **_routes(completion.routes),
      }
    )

  def add_scores(self, records: Sequence[dict[str, Any]]) -> None:
    """Keeps the records of the completions after those scored so far.

    One line for all of them, so that a kill leaves no part of a group.
    """
    self._keep({'scores': list(records)})

  def sync(self) -> None:
    """Until everything is on disk."""
    if self._file:
      os.fsync(self._file.fileno())
      self._synced = time.monotonic()

  def close(self) -> None:
    if self._file:
      self.sync()
      self._file.close()
      self._file = None

  def _keep(self, line):
    self._write(line)
    self._take(json.loads(json.dumps(line)))  # as a later process reads it

  def _take(self, line):
    if 'scores' in line:
      self.scores += line['scores']
      return
    self.completions[line['index']] = Completion(
      _array(line['tokens'], np.int32),
      _array(line['logprobs'], np.float32),
      Finish(line['finish']),
      _array(line['routes'], np.int16).reshape(line['routes_shape'])
      if 'routes' in line
      else None,
    )

  def _write(self, line):
    if not self._file:
      return
    text = json.dumps(line).encode()
    self._file.write(b'%08x %s\n' % (zlib.crc32(text), text))
    self._file.flush()  # a killed process loses nothing; a machine, a second
    if time.monotonic() - self._synced > _SYNC_S:
      self.sync()


def _routes(routes: np.ndarray | None) -> dict[str, Any]:
  """Of a model with experts, where they are to be taken again."""
  if routes is None:
    return {}
  return {'routes': _text(routes, np.int16), 'routes_shape': routes.shape}


def digest(value: Any) -> str:
  """Of anything that JSON holds."""
  return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def path_of(workdir: str, step: int) -> str:
  """Where the journal of the rollout that begins at this step lies."""
  return os.path.join(workdir, 'journal', f'step_{step:06d}.jsonl')


def prune(workdir: str, first_step: int) -> None:
  """Removes the journals of rollouts that began before `first_step`."""
  for path in pathlib.Path(workdir, 'journal').glob('step_*.jsonl'):
    if int(path.stem.removeprefix('step_')) < first_step:
      path.unlink()


def holds(path: str, header: dict[str, Any], num_scores: int) -> bool:
  """Whether the journal is of this rollout and has all of its scores."""
  lines = _sound_lines(path)
  scores = sum(len(line.get('scores', ())) for line, _ in lines[1:])
  return bool(lines) and lines[0][0] == header and scores == num_scores


def _sound_lines(path):
  """The objects of the lines before the first torn one; where each ends."""
  lines, size = [], 0
  if not os.path.exists(path):
    return lines
  with open(path, 'rb') as file:
    for line in file:
      number, _, text = line.rstrip(b'\n').partition(b' ')
      if not line.endswith(b'\n') or number != b'%08x' % zlib.crc32(text):
        break
      size += len(line)
      lines.append((json.loads(text), size))
  return lines


def _text(array, dtype):
  return base64.b64encode(np.asarray(array, dtype).tobytes()).decode()


def _array(text, dtype):
  return np.frombuffer(base64.b64decode(text), dtype)
