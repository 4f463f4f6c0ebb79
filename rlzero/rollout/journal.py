"""A rollout's journal: completions and scores, appended as they finish.

A rollout may take hours and be killed at any moment. The journal, one for each
round of prompts, is a file of lines, each a checksum and a JSON object: a
completion, the scores of some groups, or what the learner says of a completion.
A kill tears at most the last line, which is skipped. The first line, the
header, names the rollout: step, configuration, fingerprint of the policy,
prompts. A journal with another header is never read; it is started anew.
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
from rlzero.runtime import files, hosts

_SYNC_S = 1.0  # seconds between two waits for the disk


class Journal:
  """The journal of one rollout, open for reading and appending.

  Attributes:
    completions: those in the journal, by their index in the rollout.
    scores: of the first completions, in their order.
    logprobs: the learner's, by completion, where a run wants them.

  Args:
    path: the file; with None the journal is in memory alone.
    header: what names the rollout; a file with another header is overwritten.
  """

  def __init__(self, path: str | None, header: dict[str, Any]):
    self.completions: dict[int, Completion] = {}
    self.scores: list[dict[str, Any]] = []
    self.logprobs: dict[int, np.ndarray] = {}
    self._file, self._synced = None, time.monotonic()
    if path is None:
      return
    lines = _intact_lines(path)
    if not lines or lines[0][0] != header:
      lines = []
    lines = lines[: hosts.all_min(len(lines))]
    for line, _ in lines[1:]:
      self._replay(line)
    if not hosts.is_first():
      return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    self._file = open(path, 'ab')
    self._file.truncate(lines[-1][1] if lines else 0)
    if not lines:
      self._write(header)

  def add_completion(self, index: int, completion: Completion) -> None:
    """Appends a completion, by its index in the rollout."""
    self._append(
      {
        'index': index,
        'tokens': _encode(completion.tokens, np.int32),
        'logprobs': _encode(completion.logprobs, np.float32),
        'finish': completion.finish.value,
        **_encode_routes(completion.routes),
        **_encode_mask(completion.mask),
      }
    )

  def add_scores(self, records: Sequence[dict[str, Any]]) -> None:
    """Appends the records of the completions after those scored so far.

    They share one line, so that a kill never leaves part of a group.
    """
    self._append({'scores': list(records)})

  def add_logprobs(self, index: int, logprobs: np.ndarray) -> None:
    """Appends the learner's log-probs of a completion, by its index."""
    self._append({'learner': index, 'logprobs': _encode(logprobs, np.float32)})

  def sync(self) -> None:
    """Waits until everything is on disk."""
    if self._file:
      files.sync(self._file.fileno())
      self._synced = time.monotonic()

  def close(self) -> None:
    if self._file:
      self.sync()
      self._file.close()
      self._file = None

  def _append(self, line):
    self._write(line)
    self._replay(json.loads(files.to_json(line)))  # as a later process reads it

  def _replay(self, line):
    if 'scores' in line:
      self.scores += line['scores']
      return
    if 'learner' in line:
      self.logprobs[line['learner']] = _decode(line['logprobs'], np.float32)
      return
    self.completions[line['index']] = Completion(
      _decode(line['tokens'], np.int32),
      _decode(line['logprobs'], np.float32),
      Finish(line['finish']),
      _decode(line['routes'], np.int16).reshape(line['routes_shape'])
      if 'routes' in line
      else None,
      _decode(line['mask'], bool) if 'mask' in line else None,
    )

  def _write(self, line):
    if not self._file:
      return
    text = files.to_json(line).encode()
    self._file.write(b'%08x %s\n' % (zlib.crc32(text), text))
    self._file.flush()  # a killed process loses nothing; a machine, a second
    if time.monotonic() - self._synced > _SYNC_S:
      self.sync()


def _encode_routes(routes: np.ndarray | None) -> dict[str, Any]:
  """The entries of a completion's routes; none where they are not replayed."""
  if routes is None:
    return {}
  return {'routes': _encode(routes, np.int16), 'routes_shape': routes.shape}


def _encode_mask(mask: np.ndarray | None) -> dict[str, Any]:
  """The entry of a completion's token mask; none where all tokens count."""
  return {} if mask is None else {'mask': _encode(mask, bool)}


def digest(value: Any) -> str:
  """SHA-256 of a value, of anything that JSON can hold."""
  return hashlib.sha256(files.to_json(value).encode()).hexdigest()


def path_of(workdir: str, step: int, number: int = 0) -> str:
  """Path of a journal of the rollout that starts at this step.

  Args:
    workdir: of the run.
    step: updates before the rollout.
    number: of the round of prompts, from 0.
  """
  name = f'step_{step:06d}' + (f'_{number}' if number else '')
  return os.path.join(workdir, 'journal', f'{name}.jsonl')


def prune(workdir: str, first_step: int) -> None:
  """Removes the journals of rollouts that started before `first_step`."""
  for path in pathlib.Path(workdir, 'journal').glob('step_*.jsonl'):
    if int(path.stem.split('_')[1]) < first_step:
      path.unlink()


def is_complete(
  path: str, header: dict[str, Any], count: int, num_logprobs: int = 0
) -> bool:
  """Whether the journal belongs to this rollout and nothing is missing.

  Args:
    path: of the journal.
    header: that names the rollout.
    count: completions of the rollout, which all have scores.
    num_logprobs: completions that have the learner's log-probs, too.
  """
  lines = _intact_lines(path)
  if not lines or lines[0][0] != header:
    return False
  scores = sum(len(line.get('scores', ())) for line, _ in lines[1:])
  logprobs = {line['learner'] for line, _ in lines[1:] if 'learner' in line}
  return scores == count and len(logprobs) == num_logprobs


def _intact_lines(path):
  """Pairs (object, end in the file) of the lines before the first torn one."""
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


def _encode(array, dtype):
  return base64.b64encode(np.asarray(array, dtype).tobytes()).decode()


def _decode(text, dtype):
  return np.frombuffer(base64.b64decode(text), dtype)
