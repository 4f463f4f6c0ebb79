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
import math
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from multiprocessing import connection
from typing import Any

from rlzero.tasks import base
from rlzero.text import language, template

STATUSES = ('ok', 'timeout', 'crash', 'junk')
_START_S = 60.0  # for imports, which the deadline of a request leaves out
_MAX_REPLY = 1 << 26  # bytes
_MAX_MEMORY = 4 << 30  # bytes of address space
_MAX_BATCH = 32  # jobs sent at once: a socket's round trip is a job's cost
_BATCHES_PER_WORKER = 4  # at least, so that all workers end together
_MAX_FAILURES = 2  # comparisons of an answer that may fail
_MIN_SILENCE = 8  # completions of which none could be scored: say so
_MAX_ERROR = 300  # characters of what a verifier raised
_CHARS_PER_TOKEN = 16  # above the mean of any text that is worth a reward
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
  outcome: str = ''  # of the task's `outcome`, such as how a program did


def chars_of(max_len: int) -> int:
  """Characters that a completion of at most `max_len` tokens may have."""
  return max(20_000, _CHARS_PER_TOKEN * max_len)


class RewardPool:
  """Workers that score completions; use it as a context manager.

  A task may have a method `warm_up()`, called once a worker, where it loads
  what the first verification would otherwise wait for, and a method `notice()`,
  a sentence that is said once before the workers start.

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
      max_chars: of a completion; a longer one is 'junk', is not read and
        earns 0. `chars_of` gives the limit that goes with `max_len`.

    Raises:
      ValueError: a field out of range.
      RuntimeError: a task that cannot judge on this machine.
    """
    if num_workers < 1 or deadline_s <= 0 or max_chars < 1:
      raise ValueError(
        f'RewardPool has num_workers {num_workers}, deadline_s {deadline_s} '
        f'and max_chars {max_chars}; each must be positive.'
      )
    self.counts = dict.fromkeys(STATUSES, 0)
    self._warned: set[tuple[str, str]] = set()
    self._warned_of_silence = False
    self._has_format = template.Template(kind).has_format
    self._deadline_s = deadline_s
    self._max_chars = max_chars
    self._tasks = frozenset(tasks)
    self._setup = pickle.dumps(
      (self._has_format, deadline_s, pickle.dumps(dict(tasks)))
    )
    says = [getattr(task, 'notice', None) for task in tasks.values()]
    for sentence in dict.fromkeys(say() for say in says if say):
      print(sentence, file=sys.stderr, flush=True)
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

    What a verifier raises is written to standard error, once for each task
    and type of exception.

    Raises:
      ValueError: a task that the pool does not have.
      RuntimeError: a worker that cannot start.
    """
    self._check_tasks({r.task for r in requests})
    short = [
      i for i, r in enumerate(requests) if len(r.completion) <= self._max_chars
    ]
    replies: list[tuple[str, Any]] = [('junk', None)] * len(requests)
    jobs = [('score', *dataclasses.astuple(requests[i])) for i in short]
    for index, reply in zip(short, self._run(jobs), strict=True):
      replies[index] = reply
    verdicts = []
    for request, (status, reply) in zip(requests, replies, strict=True):
      if status == 'ok':
        verdict = self._verdict(reply)
      else:
        verdict = Verdict(0.0, 0.0, False, None, 0, 0, status)
        if reply:
          self._warn(request.task, reply)
      verdicts.append(verdict)
      self.counts[verdict.status] += 1
    if len(verdicts) >= _MIN_SILENCE and not any(
      v.status == 'ok' for v in verdicts
    ):
      self._warn_of_silence(verdicts)
    return verdicts

  def _verdict(self, reply: Sequence[Any]) -> Verdict:
    well_formed, correct, answer, tries, reflections, parts, words, outcome = (
      reply
    )
    return Verdict(
      accuracy=float(correct and (well_formed or not self._has_format)),
      format=float(well_formed and self._has_format),
      correct=correct,
      answer=answer,
      tries=tries,
      reflections=reflections,
      status='ok',
      parts=parts,
      words=words,
      outcome=outcome,
    )

  def _warn(self, task: str, error: str) -> None:
    """Says what a verifier raised, once for each task and type."""
    kind = task, error.partition(':')[0]
    if kind not in self._warned:
      self._warned.add(kind)
      print(
        f'The verifier of task {task!r} raised {error}. Such completions earn '
        '0 and count in completion/unscored. This is said once for each type '
        'of error.',
        file=sys.stderr,
        flush=True,
      )

  def _warn_of_silence(self, verdicts: Sequence[Verdict]) -> None:
    if not self._warned_of_silence:
      self._warned_of_silence = True
      found = collections.Counter(v.status for v in verdicts)
      print(
        f'None of {len(verdicts)} completions could be scored ('
        + ', '.join(f'{count} {status}' for status, count in found.items())
        + '), so all of them earn 0. Check the verifier of the task, or raise '
        'deadline_s if most are timeouts. This is said once.',
        file=sys.stderr,
        flush=True,
      )

  def classes(self, task: str, answers: Sequence[str | None]) -> list[int]:
    """The class of each answer, equal ones alike; -1 for no answer.

    Classes are numbered by first appearance. Where the task cannot tell
    within the deadline, answers are alike only if their texts are; such an
    answer is compared with no other, so that it costs little time.

    Raises:
      ValueError: a task that the pool does not have.
      RuntimeError: a worker that cannot start.
    """
    self._check_tasks({task})
    texts = list(dict.fromkeys(a for a in answers if a is not None))
    leaders: dict[str, str] = {}  # the first answer of the class of each
    apart = {t for t in texts if len(t) > self._max_chars}
    for place, leader in enumerate(texts):
      if leader not in leaders:
        leaders[leader] = leader
        rest = [t for t in texts[place + 1 :] if t not in leaders]
        if leader not in apart:
          alike, failed = self._alike(task, leader, rest, apart)
          leaders |= dict.fromkeys(alike, leader)
          apart |= failed
    numbers = {t: n for n, t in enumerate(dict.fromkeys(leaders.values()))}
    return [-1 if a is None else numbers[leaders[a]] for a in answers]

  def _alike(
    self, task: str, leader: str, texts: Sequence[str], apart: AbstractSet[str]
  ) -> tuple[list[str], set[str]]:
    """The texts that are the same as the leader, and those that failed.

    Texts that are `apart` are not compared. Where every comparison fails,
    the leader is at fault, and no text is said to have failed.
    """
    alike, failed, num_compared = [], set(), 0
    rest = [text for text in texts if text not in apart]
    size = len(self._workers)
    while rest and not _MAX_FAILURES <= len(failed) == num_compared:
      chosen, rest = rest[:size], rest[size:]
      size *= 2  # few at first, for a leader that always fails
      replies = self._run([('same', task, leader, text) for text in chosen])
      for text, (status, is_same) in zip(chosen, replies, strict=True):
        num_compared += 1
        if status != 'ok':
          failed.add(text)
        elif is_same:
          alike.append(text)
    return alike, failed if len(failed) < num_compared else set()

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
    size = len(jobs) // (_BATCHES_PER_WORKER * len(self._workers))
    size = min(max(size, 1), _MAX_BATCH)
    waiting = collections.deque(
      list(range(first, min(first + size, len(jobs))))
      for first in range(0, len(jobs), size)
    )
    retried = set()
    num_left = len(jobs)
    while num_left:
      for worker in self._workers:
        if waiting and worker.is_idle:
          worker.begin(waiting.popleft(), jobs)
      busy = [w for w in self._workers if not w.is_idle]
      patience_s = min(w.deadline for w in busy) - time.monotonic()
      connection.wait(busy, max(patience_s, 0.0))
      for worker in busy:
        for job, reply in worker.poll():
          replies[job] = reply
          num_left -= 1
        if worker.failure is None:
          continue
        guilty, *rest = worker.batch
        if rest:
          waiting.appendleft(rest)
        # An earlier job may have left the worker in ruins: ask once more.
        if worker.may_be_ruined and guilty not in retried:
          retried.add(guilty)
          waiting.appendleft([guilty])
        else:
          replies[guilty] = worker.failure, None
          num_left -= 1
        worker.kill()
        self._workers[self._workers.index(worker)] = self._start()
    return replies

  def _start(self) -> '_Worker':
    return _Worker(self._setup, self._deadline_s)


class _Worker:
  """The parent's end of one worker.

  Attributes:
    batch: jobs, by index, that it has not answered; the first is under way.
    deadline: when the job under way, or the start, takes too long.
    failure: status of the job under way if the worker is of no more use.
    is_idle: whether it waits for jobs.
  """

  def __init__(self, setup: bytes, deadline_s: float):
    self._deadline_s = deadline_s
    self._socket, theirs = socket.socketpair()
    with theirs:
      self._process = subprocess.Popen(
        [sys.executable, '-m', __spec__.name],
        stdin=theirs,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
        start_new_session=True,  # so that its own children die with it
      )
    self._buffer = b''
    self._serial = 0  # of the reply awaited; another one is junk
    self._has_answered = False
    self.batch: list[int] = []
    self.failure: str | None = None
    self.is_idle = False
    self.deadline = time.monotonic() + _START_S
    self._send(setup)

  def fileno(self) -> int:
    return self._socket.fileno()

  @property
  def may_be_ruined(self) -> bool:
    """Whether an earlier job may be the cause of the failure."""
    return self._has_answered and self.failure != 'timeout'

  def begin(self, batch: list[int], jobs: Sequence[tuple]) -> None:
    """Starts on jobs; `poll` tells how each of them ended."""
    self.batch = batch
    self.is_idle = False
    self.deadline = time.monotonic() + self._deadline_s
    self._serial += 1
    self._send(pickle.dumps((self._serial, [jobs[job] for job in batch])))

  def poll(self) -> list[tuple[int, tuple[str, Any]]]:
    """The jobs done since the last call, with status and reply of each.

    Afterwards the worker is busy, idle, or has a `failure`.
    """
    done = []
    is_open = self._receive()
    while self.failure is None and (body := self._frame()) is not None:
      reply = self._parse(body)
      if reply is None:
        self.failure = 'junk'
      elif self.batch:
        done.append((self.batch.pop(0), reply))
        self._has_answered = True
        self.deadline = time.monotonic() + self._deadline_s
        self._serial += bool(self.batch)
        self.is_idle = not self.batch
      elif reply[0] == 'crash':
        raise RuntimeError(f'A reward worker could not start: {reply[1]}.')
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

  def _receive(self) -> bool:
    """Reads what has arrived; False if the worker is gone."""
    self._socket.setblocking(False)
    try:
      while received := self._socket.recv(1 << 16):
        self._buffer += received
        if len(self._buffer) > _MAX_REPLY:
          break
    except BlockingIOError:
      return True
    except OSError:
      return False
    return bool(received)

  def _frame(self) -> bytes | None:
    """The next whole frame, taken from the buffer; b'' if it is too long."""
    if len(self._buffer) < _LENGTH.size:
      return None
    (length,) = _LENGTH.unpack_from(self._buffer)
    end = _LENGTH.size + length
    if length > _MAX_REPLY:
      return b''
    if len(self._buffer) < end:
      return None
    body, self._buffer = self._buffer[_LENGTH.size : end], self._buffer[end:]
    return body

  def _parse(self, body: bytes) -> tuple[str, Any] | None:
    """Status and reply of a frame; None if it is not the one awaited."""
    try:
      serial, status, reply = json.loads(body)
    except (ValueError, TypeError, RecursionError):
      return None
    if self.is_idle or serial != self._serial or status not in ('ok', 'crash'):
      return None
    return status, reply


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
    _write(channel, json.dumps([0, 'crash', _describe(error)]))
    return
  _write(channel, json.dumps([0, 'ok', None]))
  os.dup2(null, 2)
  while True:
    signal.setitimer(signal.ITIMER_REAL, 0)
    first, jobs = pickle.loads(_read(channel))
    for serial, (verb, name, *texts) in enumerate(jobs, first):
      signal.setitimer(signal.ITIMER_REAL, 2 * deadline_s)
      try:
        if verb == 'score':
          reply = _score(tasks[name], has_format, *texts)
        else:
          reply = _true_or_false(tasks[name].same(*texts), 'same')
        body = json.dumps([serial, 'ok', reply])
      except BaseException as error:  # a verifier may even call sys.exit
        body = json.dumps([serial, 'crash', _describe(error)])
      _write(channel, body)


def _score(
  task: base.Task, has_format: bool, completion: str, target: str
) -> tuple:
  parsed = template.parse(completion)
  stated = _stated(task, completion, parsed if has_format else None)
  correct, outcome = False, ''
  if stated and (find := getattr(task, 'outcome', None)):
    # `verify` says no more, and would run the program again.
    stated = stated[-1:]
    outcome = str(find(stated[0], target))
    correct = outcome == base.ACCEPTED
  else:
    for place, reading in enumerate(stated):
      if correct := _true_or_false(task.verify(reading, target), 'verify'):
        stated = stated[: place + 1]
        break
  answer = stated[-1] if stated else None
  parts = {}
  if judge := getattr(task, 'parts', None):
    parts = {n: _finite(n, v) for n, v in judge(completion, target).items()}
  return (
    parsed.well_formed,
    correct,
    answer if answer is None else str(answer),
    int(task.count_tries(completion)),
    template.reflective_words(completion),
    parts,
    language.count_words(language.thought(completion)),
    outcome,
  )


def _stated(
  task: base.Task, completion: str, parsed: template.Parsed | None
) -> list[str]:
  """The readings of the answer that is judged: never one of the thought.

  Where tags enclose an answer, it may be all of their text (a grid of many
  lines) or what the text states ('Answer: B').

  Args:
    task: of the completion.
    completion: what the model wrote.
    parsed: its tags, where the template has a format.
  """
  if parsed and parsed.well_formed:
    readings = [parsed.answer, task.extract(parsed.answer)]
  else:
    behind = template.summary(completion)
    readings = [task.extract(behind) if behind else None]
  return [r for r in dict.fromkeys(readings) if r is not None]


def _true_or_false(value: Any, method: str) -> bool:
  # Anything else is true far too easily: a string, an array, a score of 0.1.
  if isinstance(value, bool):
    return value
  kind = type(value)
  if kind.__module__ == 'numpy' and kind.__name__ in ('bool', 'bool_'):
    return bool(value)
  raise TypeError(
    f'{method} gave {value!r:.40}, of type {kind.__name__}; it must give True '
    'or False'
  )


def _finite(name: str, value: Any) -> float:
  number = float(value)
  if not math.isfinite(number):
    raise ValueError(f'part {name!r} is {number}; it must be a finite number')
  return number


def _describe(error: BaseException) -> str:
  """The exception in one printable line."""
  try:
    text = f'{type(error).__name__}: {error}'
  except Exception:  # its own __str__ may raise
    text = type(error).__name__
  return ascii(text)[1:-1][:_MAX_ERROR]


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


def _write(channel: socket.socket, text: str) -> None:
  body = text.encode()
  channel.sendall(_LENGTH.pack(len(body)) + body)


if __name__ == '__main__':
  _serve()
