"""The parent's end of a reward worker: starts it, reads it, ends it.

What comes back is JSON and is checked, never unpickled.
"""

import collections
import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rlzero.scoring import frames

_REAPED_S = 1.0  # at most, until a process that has ended has a status
_PROGRAM = 'rlzero.scoring.worker'


class WorkerProcess:
  """The parent's end of one worker.

  Args:
    setup: its first frame.
    limits: how long tasks may take, by name.

  Attributes:
    batch: jobs, by index, that it has not answered; the first is under way.
    deadline: when the job under way, or the start, takes too long.
    failure: status of the job under way if the worker is of no more use.
    is_idle: whether it waits for jobs.
  """

  def __init__(self, setup: bytes, limits: Mapping[str, frames.Limit]):
    self._limits = limits
    self._socket, theirs = socket.socketpair()
    with theirs:
      self._process = subprocess.Popen(
        [sys.executable, '-m', _PROGRAM],
        stdin=theirs.fileno(),
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
        start_new_session=True,  # so that its own children die with it
      )
    self._inbox = frames.Inbox(self._socket)
    self._serial = 0  # of the reply awaited; another one is junk
    self._has_answered = False
    self.batch: list[int] = []
    self._ahead: collections.deque[float] = collections.deque()  # seconds
    self.failure: str | None = None
    self.is_idle = False
    self.deadline = time.monotonic() + frames.START_S
    self._send(setup)

  def fileno(self) -> int:
    return self._socket.fileno()

  @property
  def may_be_ruined(self) -> bool:
    """Whether the failure's cause may be another than the job under way.

    An earlier job may be, or whoever has killed the worker.
    """
    if self.failure == 'timeout':
      return False
    return self._has_answered or self._was_killed()

  def begin(self, batch: list[int], jobs: Sequence[tuple]) -> None:
    """Starts on jobs; `poll` tells how each of them ended.

    Args:
      batch: the index of each job.
      jobs: verb, name of the task, and what the verb needs.
    """
    self.batch = batch
    self.is_idle = False
    self._ahead = collections.deque(
      frames.limit_s(self._limits, job) for job in jobs
    )
    self.deadline = time.monotonic() + self._ahead.popleft()
    self._serial += 1
    self._send(pickle.dumps((self._serial, jobs)))

  def poll(self) -> list[tuple[int, tuple[str, Any]]]:
    """The jobs done since the last call, with status and reply of each.

    Afterwards the worker is busy, idle, or has a `failure`.
    """
    done = []
    is_open = self._inbox.receive()
    while self.failure is None and (body := self._inbox.next()) is not None:
      reply = self._parse(body)
      if reply is None:
        self.failure = 'junk'
      elif self.batch:
        done.append((self.batch.pop(0), reply))
        self._has_answered = True
        self.is_idle = not self.batch
        if self.batch:
          self.deadline = time.monotonic() + self._ahead.popleft()
          self._serial += 1
      elif reply[0] == 'crash':
        why = str(reply[1]).rstrip('.')
        raise RuntimeError(f'A reward worker could not start: {why}.')
      else:
        self.is_idle = True
    if self.is_idle:
      # Bytes behind the last reply make the next one junk.
      return done
    if self.failure is None and not is_open:
      self.failure = 'crash'
    if self.failure is None and time.monotonic() > self.deadline:
      self.failure = 'timeout'
    if self.failure and not self.batch:
      raise RuntimeError(
        f'A reward worker could not start ({self.failure}); its standard '
        'error may say why.'
      )
    return done

  def _was_killed(self) -> bool:
    try:
      return self._process.wait(_REAPED_S) == -signal.SIGKILL
    except subprocess.TimeoutExpired:  # it lives, and has closed the socket
      return False

  def kill(self) -> None:
    """Ends the worker and what it started."""
    self._socket.close()
    with contextlib.suppress(OSError):
      os.killpg(self._process.pid, signal.SIGKILL)
    self._process.wait()

  def _send(self, body: bytes) -> None:
    longest_s = [limit.deadline_s for limit in self._limits.values()]
    self._socket.settimeout(max(longest_s, default=None))
    # If nobody reads, poll finds that out as well, and says so.
    with contextlib.suppress(OSError):
      frames.send(self._socket, body)

  def _parse(self, body: bytes) -> tuple[str, Any] | None:
    """Status and reply of a frame; None if it is not the one awaited."""
    try:
      serial, status, reply = json.loads(body)
    except (ValueError, TypeError, RecursionError):
      return None
    if self.is_idle or serial != self._serial or status not in ('ok', 'crash'):
      return None
    return status, reply
