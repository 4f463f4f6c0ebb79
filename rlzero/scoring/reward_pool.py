"""Scores completions in worker processes, each under a hard deadline.

A verifier runs on text that a model wrote, so it may hang, eat memory or
crash. It does so in a worker of its own: the worker is killed and replaced,
the completion scores 0 and is counted, and the run goes on.

Parent and worker talk over one socket in frames of a length and a body. What
comes back is JSON and is checked, never unpickled. A worker ends when the
socket does, so none outlives its parent.
"""

import collections
import contextlib
import dataclasses
import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing import connection
from typing import Any

from rlzero.tasks import base
from rlzero.text import language, template

STATUSES = ('ok', 'timeout', 'crash', 'junk')
_START_S = 60.0  # for imports, which the deadline of a request leaves out
_MAX_REPLY = 1 << 26  # bytes
_MAX_MEMORY = 4 << 30  # bytes of address space
_LENGTH = struct.Struct('>I')


@dataclasses.dataclass(frozen=True)
class Request:
  """One completion to score."""

  task: str  # key of the task in the pool
  completion: str
  target: str  # of the example


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What a completion is worth."""

  accuracy: float  # reward: 1 if right, in the format where there is one
  format: float  # reward: 1 if well formed
  correct: bool  # the last stated answer is right, in whatever format
  answer: str | None  # the last stated answer
  tries: int  # attempts at a solution
  reflections: int  # reflective words
  status: str  # one of STATUSES
  # Of the task's `parts`; none where the rewards are 0.
  parts: dict[str, float] = dataclasses.field(default_factory=dict)
  # Words of the thought, by language; see text/language.py.
  words: Mapping[str, int] = dataclasses.field(default_factory=dict)


class RewardPool:
  """Workers that score completions; use it as a context manager.

  A task may have a method `warm_up()`, called once a worker, where it loads
  what the first verification would otherwise wait for.

  Attributes:
    counts: how many verdicts of each status were given.
  """

  def __init__(
    self,
    tasks: Mapping[str, base.Task],
    kind: str,
    num_workers: int = 2,
    deadline_s: float = 5.0,
    max_chars: int = 20_000,
  ):
    """Starts the workers.

    Args:
      tasks: by the name that requests use; they are pickled.
      kind: of the template, one of `template.KINDS`.
      num_workers: processes.
      deadline_s: seconds that one completion may take.
      max_chars: of a completion; of a longer one only the end is read, and
        its rewards are 0.

    Raises:
      ValueError: a field out of range.
    """
    if num_workers < 1 or deadline_s <= 0 or max_chars < 1:
      raise ValueError(
        f'RewardPool has num_workers {num_workers}, deadline_s {deadline_s} '
        f'and max_chars {max_chars}; each must be positive.'
      )
    self.counts = dict.fromkeys(STATUSES, 0)
    self._has_format = template.Template(kind).has_format
    self._deadline_s = deadline_s
    self._max_chars = max_chars
    self._tasks = frozenset(tasks)
    self._setup = pickle.dumps(
      (self._has_format, deadline_s, pickle.dumps(dict(tasks)))
    )
    self._workers = [self._start() for _ in range(num_workers)]

  def __enter__(self) -> 'RewardPool':
    return self

  def __exit__(self, *error) -> None:
    self.close()

  def close(self) -> None:
    """Ends the workers."""
    for worker in self._workers:
      worker.kill()
    self._workers = []

  def score(self, requests: Sequence[Request]) -> list[Verdict]:
    """Verdicts, in the order of the requests.

    Raises:
      ValueError: a task that the pool does not have.
      RuntimeError: a worker that cannot start.
    """
    self._check_tasks({r.task for r in requests})
    too_long = [len(r.completion) > self._max_chars for r in requests]
    replies = self._run(
      [
        ('score', r.task, r.completion[-self._max_chars :], r.target)
        for r in requests
      ]
    )
    verdicts = []
    for (status, reply), is_long in zip(replies, too_long, strict=True):
      if status == 'ok':
        well_formed, correct, answer, tries, reflections, parts, words = reply
        verdicts.append(
          Verdict(
            accuracy=float(
              correct and not is_long and (well_formed or not self._has_format)
            ),
            format=float(well_formed and not is_long and self._has_format),
            correct=correct,
            answer=answer,
            tries=tries,
            reflections=reflections,
            status='junk' if is_long else 'ok',
            parts={} if is_long else parts,
            words=words,
          )
        )
      else:
        verdicts.append(Verdict(0.0, 0.0, False, None, 0, 0, status))
      self.counts[verdicts[-1].status] += 1
    return verdicts

  def classes(self, task: str, answers: Sequence[str | None]) -> list[int]:
    """The class of each answer, equal ones alike; -1 for no answer.

    Classes are numbered by first appearance. Where the task cannot tell
    within the deadline, answers are alike only if their texts are.

    Raises:
      ValueError: a task that the pool does not have.
      RuntimeError: a worker that cannot start.
    """
    self._check_tasks({task})
    found = {None: -1}
    leaders = []  # the first answer of each class
    for answer in answers:
      if answer in found:
        continue
      found[answer] = len(leaders)
      for index, leader in enumerate(leaders):
        texts = [t[-self._max_chars :] for t in (leader, answer)]
        ((status, alike),) = self._run([('same', task, *texts)])
        if status != 'ok':
          break
        if alike:
          found[answer] = index
          break
      if found[answer] == len(leaders):
        leaders.append(answer)
    return [found[answer] for answer in answers]

  def _check_tasks(self, names: set[str]) -> None:
    if unknown := names - self._tasks:
      raise ValueError(
        f'The reward pool has no task {min(unknown)!r}; it has '
        f'{", ".join(sorted(self._tasks))}.'
      )

  def _run(self, jobs: Sequence[tuple]) -> list[tuple[str, Any]]:
    """A status and, if it is 'ok', a reply for each job."""
    try:
      return self._dispatch(jobs)
    except BaseException:  # workers are left with jobs that nobody awaits
      self.close()
      raise

  def _dispatch(self, jobs: Sequence[tuple]) -> list[tuple[str, Any]]:
    replies: list = [None] * len(jobs)
    waiting = collections.deque(range(len(jobs)))
    num_left = len(jobs)
    while num_left:
      for worker in self._workers:
        if waiting and worker.is_idle:
          worker.begin(waiting.popleft(), jobs)
      busy = [w for w in self._workers if not w.is_idle]
      patience_s = min(w.deadline for w in busy) - time.monotonic()
      readable = connection.wait(busy, max(patience_s, 0.0))
      for worker in busy:
        outcome = worker.poll(worker in readable)
        if outcome is None:
          continue
        replies[worker.job] = outcome
        num_left -= 1
        if not worker.is_idle:  # it did not answer, and is of no more use
          worker.kill()
          self._workers[self._workers.index(worker)] = self._start()
    return replies

  def _start(self) -> '_Worker':
    return _Worker(self._setup, self._deadline_s)


class _Worker:
  """The parent's end of one worker."""

  def __init__(self, setup: bytes, deadline_s: float):
    self._deadline_s = deadline_s
    self._socket, theirs = socket.socketpair()
    with theirs:
      self._process = subprocess.Popen(
        [sys.executable, '-m', 'rlzero.scoring.reward_pool'],
        stdin=theirs,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
        start_new_session=True,  # so that its own children die with it
      )
    self._buffer = b''
    self._serial = 0  # of the frame awaited; a stray old one is junk
    self.job = None  # index, None while starting
    self.is_idle = False
    self.deadline = time.monotonic() + _START_S
    self._send(setup)

  def fileno(self) -> int:
    return self._socket.fileno()

  def begin(self, job: int, jobs: Sequence[tuple]) -> None:
    """Starts on a job; `poll` tells how it ended."""
    self.job = job
    self.is_idle = False
    self._serial += 1
    self.deadline = time.monotonic() + self._deadline_s
    self._send(pickle.dumps((self._serial, *jobs[job])))

  def poll(self, readable: bool) -> tuple[str, Any] | None:
    """The status and reply of the job, or None while it is not done.

    The worker is idle afterwards, unless it has to be killed.
    """
    if readable:
      try:
        received = self._socket.recv(1 << 16)
      except OSError:
        received = b''
      if not received:
        return self._fail('crash')
      self._buffer += received
      if len(self._buffer) >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(self._buffer)
        end = _LENGTH.size + length
        if length > _MAX_REPLY or len(self._buffer) > end:
          return self._fail('junk')
        if len(self._buffer) == end:
          return self._accept(self._buffer[_LENGTH.size :])
    if time.monotonic() > self.deadline:
      return self._fail('timeout')
    return None

  def kill(self) -> None:
    """Ends the worker and what it started."""
    self._socket.close()
    with contextlib.suppress(OSError):
      os.killpg(self._process.pid, signal.SIGKILL)
    self._process.wait()

  def _send(self, body: bytes) -> None:
    self._socket.settimeout(self._deadline_s)
    # If nobody reads, poll finds that out as well, and says so.
    with contextlib.suppress(OSError):
      self._socket.sendall(_LENGTH.pack(len(body)) + body)

  def _accept(self, body: bytes) -> tuple[str, Any] | None:
    try:
      serial, status, reply = json.loads(body)
    except ValueError:
      return self._fail('junk')
    if serial != self._serial or status not in ('ok', 'crash'):
      return self._fail('junk')
    self._buffer = b''
    if self.job is None and status == 'crash':
      raise RuntimeError(f'A reward worker could not start: {reply}.')
    self.is_idle = True
    return None if self.job is None else (status, reply)

  def _fail(self, status: str) -> tuple[str, None]:
    if self.job is None:
      raise RuntimeError(
        f'A reward worker could not start ({status}); its standard error may '
        'say why.'
      )
    return status, None


def _serve() -> None:
  """The worker's end: scores what it is sent until the socket closes."""
  import resource

  channel = socket.socket(fileno=os.dup(0))
  # A verifier that prints or reads must not reach the socket.
  null = os.open(os.devnull, os.O_RDWR)
  for standard in (0, 1):
    os.dup2(null, standard)
  with contextlib.suppress(ValueError, OSError):
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
  # A scheduler that ends a job may tell its workers too, while the parent is
  # still saving what they say.
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  # The parent kills a worker that hangs. Should the parent be gone, the alarm
  # does: nothing handles it, so it ends even a loop inside C.
  signal.setitimer(signal.ITIMER_REAL, 2 * _START_S)
  try:
    has_format, deadline_s, pickled = pickle.loads(_read(channel))
    tasks = pickle.loads(pickled)
    for task in tasks.values():
      if warm_up := getattr(task, 'warm_up', None):
        warm_up()
  except Exception as error:
    _write(channel, [0, 'crash', f'{type(error).__name__}: {error}'])
    return
  _write(channel, [0, 'ok', None])
  os.dup2(null, 2)
  while True:
    signal.setitimer(signal.ITIMER_REAL, 0)
    serial, verb, name, *texts = pickle.loads(_read(channel))
    signal.setitimer(signal.ITIMER_REAL, 2 * deadline_s)
    try:
      if verb == 'score':
        reply = _score(tasks[name], has_format, *texts)
      else:
        reply = _true_or_false(tasks[name].same(*texts))
    except BaseException:  # a verifier may even call sys.exit
      _write(channel, [serial, 'crash', None])
    else:
      _write(channel, [serial, 'ok', reply])


def _score(
  task: base.Task, has_format: bool, completion: str, target: str
) -> tuple:
  parsed = template.parse(completion)
  if has_format and parsed.well_formed:
    stated = parsed.answer
  else:
    stated = task.extract(completion)
  correct = stated is not None and _true_or_false(task.verify(stated, target))
  parts = {}
  if judge := getattr(task, 'parts', None):
    parts = {n: float(v) for n, v in judge(completion, target).items()}
  return (
    parsed.well_formed,
    correct,
    stated if stated is None else str(stated),
    int(task.count_tries(completion)),
    template.reflective_words(completion),
    parts,
    language.count_words(language.thought(completion)),
  )


def _true_or_false(value: Any) -> bool:
  # Anything else is true far too easily: a string, an array, a score of 0.1.
  if not isinstance(value, bool):
    raise TypeError(f'expected a bool, found {type(value).__name__}')
  return value


def _read(channel: socket.socket) -> bytes:
  (length,) = _LENGTH.unpack(_read_bytes(channel, _LENGTH.size))
  return _read_bytes(channel, length)


def _read_bytes(channel: socket.socket, size: int) -> bytes:
  received = b''
  while len(received) < size:
    part = channel.recv(size - len(received))
    if not part:  # the parent is done, or dead
      os._exit(0)
    received += part
  return received


def _write(channel: socket.socket, reply: list) -> None:
  body = json.dumps(reply).encode()
  channel.sendall(_LENGTH.pack(len(body)) + body)


if __name__ == '__main__':
  _serve()
