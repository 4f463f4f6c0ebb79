"""Scores completions in worker processes, each under a hard deadline.

A verifier runs on text that a model wrote, so it may hang, eat memory or
crash. It does so in a worker of its own: the worker is killed and replaced,
the completion scores 0 and is counted, and the run continues.

This is the parent's pool; `worker` is the program of a worker, and
`worker_process` starts it and speaks to it over a socket, in `frames`. A
worker ends when the socket does, so none outlives its parent.
"""

import collections
import dataclasses
import itertools
import pickle
import sys
import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from multiprocessing import connection
from typing import Any

from rlzero.scoring import frames, worker_process
from rlzero.tasks import base
from rlzero.text import template

STATUSES = ('ok', 'timeout', 'crash', 'junk')
_MAX_BATCH = 32  # jobs sent at once: a socket's round trip is a job's cost
_BATCHES_PER_WORKER = 4  # at least, so that all workers end together
_FEW = 4  # jobs left to a worker, which will soon want others
_PAUSE_S = 5e-4  # in which a worker answers several jobs
_MAX_TEXTS = 8  # compared in one job, under one deadline
_MAX_FAILURES = 2  # comparisons of an answer that may fail
_MIN_SILENCE = 8  # completions of which none could be scored: say so
_CHARS_PER_TOKEN = 16  # above the mean of any text that is worth a reward


@dataclasses.dataclass(frozen=True)
class Request:
  """One completion to score."""

  task: str  # key of the task in the pool
  completion: str
  target: str  # of the example
  # Whether the prompt has begun the thought, as some chat templates do.
  in_thought: bool = False
  # Of the problem: adjacent requests that share it are judged together, where
  # the task judges groups. '' shares with none.
  uid: str = ''
  token_ids: Sequence[int] | None = None  # for tasks that take them


@dataclasses.dataclass(frozen=True)
class Verdict:
  """The scores of a completion."""

  # Reward: 1 if right, in the format where there is one; or what a function
  # says of the whole completion.
  accuracy: float
  format: float  # reward: 1 if well formed
  correct: bool  # the last stated answer is right, in whatever format
  answer: str | None  # the last stated answer
  tries: int  # attempts at a solution
  reflections: int  # reflective words
  status: str  # one of STATUSES
  # Further scores, by name; none where the rewards are 0. None is of one that
  # does not apply.
  parts: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
  # Words of the thought, by language; see text/language.py.
  words: Mapping[str, int] = dataclasses.field(default_factory=dict)
  outcome: str = ''  # of the task's `outcome`, such as how a program did
  applies: bool = True  # else the function has left it out
  # Metrics by name, and what is kept with the completion; see `Judgement`.
  logged: Mapping[str, float] = dataclasses.field(default_factory=dict)
  notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _unscored(
  status: str, logged: Mapping[str, float] | None = None
) -> Verdict:
  return Verdict(0.0, 0.0, False, None, 0, 0, status, logged=logged or {})


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
    takes_token_ids: names of the tasks that read the tokens of completions.
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
      deadline_s: seconds that one completion may take; more for a task with a
        larger `deadline_s` of its own. Those that are judged together share
        theirs.
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
    self.counts: dict[str, int] = dict.fromkeys(STATUSES, 0)
    self._warned: set[tuple[str, str]] = set()
    self._has_format = template.Template(kind).has_format
    self._max_chars = max_chars
    self._tasks = frozenset(tasks)
    self.takes_token_ids = frozenset(
      n for n, t in tasks.items() if getattr(t, 'takes_token_ids', False)
    )
    self._judged = frozenset(n for n, t in tasks.items() if hasattr(t, 'judge'))
    self._grouped = frozenset(
      n for n, t in tasks.items() if getattr(t, 'judges_groups', False)
    )
    self._limits = {
      name: frames.Limit(
        max(deadline_s, getattr(task, 'deadline_s', deadline_s)),
        getattr(task, 'parallel', 1),
      )
      for name, task in tasks.items()
    }
    self._setup = pickle.dumps(
      (self._has_format, self._limits, pickle.dumps(dict(tasks)))
    )
    says = [getattr(task, 'notice', None) for task in tasks.values()]
    for sentence in dict.fromkeys(say() for say in says if say):
      print(sentence, file=sys.stderr, flush=True)
    self._workers = [self._start() for _ in range(num_workers)]

  def __enter__(self) -> 'RewardPool':
    return self

  def __exit__(self, *error) -> None:
    self.close()

  def wait(self) -> None:
    """Waits until the workers have started.

    Raises:
      ValueError: one cannot start; says why.
    """
    try:
      while starting := [w for w in self._workers if not w.is_idle]:
        connection.wait(starting, 1.0)  # pyright: ignore[reportArgumentType]
        for worker in starting:
          worker.poll()
    except RuntimeError as error:
      self.close()
      raise ValueError(str(error)) from error

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
    verdicts = [_unscored('junk')] * len(requests)
    groups = self._groups(requests, short)
    jobs = [self._job([requests[i] for i in group]) for group in groups]
    for group, job, reply in zip(groups, jobs, self._run(jobs), strict=True):
      found = self._verdicts(job, len(group), *reply)
      for index, verdict in zip(group, found, strict=True):
        verdicts[index] = verdict
    for verdict in verdicts:
      self.counts[verdict.status] += 1
    if len(verdicts) >= _MIN_SILENCE and not any(
      v.status == 'ok' for v in verdicts
    ):
      self._warn_of_silence(verdicts)
    return verdicts

  def _groups(
    self, requests: Sequence[Request], chosen: Sequence[int]
  ) -> list[list[int]]:
    """The chosen requests, by index: those that are judged in one job."""
    groups: list[list[int]] = []
    before = None
    for index in chosen:
      request = requests[index]
      key = request.task, request.uid
      if key == before and request.uid and request.task in self._grouped:
        groups[-1].append(index)
      else:
        groups.append([index])
      before = key
    return groups

  def _job(self, group: Sequence[Request]) -> tuple:
    first = group[0]
    if first.task not in self._judged:
      told = first.completion, first.target, first.in_thought
      return 'score', first.task, *told
    wanted = first.task in self.takes_token_ids
    token_ids = [r.token_ids if wanted else None for r in group]
    texts = [r.completion for r in group]
    told = texts, first.target, first.in_thought
    return 'judge', first.task, *told, token_ids

  def _verdicts(
    self, job: tuple, count: int, status: str, reply: Any
  ) -> list[Verdict]:
    """The verdicts of a job, of `count` completions."""
    verb, task, *_ = job
    if status != 'ok':
      if reply:
        self._warn(task, reply)
      elif status == 'timeout':
        limit_s = frames.limit_s(self._limits, job)
        self._say_once(
          (task, status),
          f'The verifier of task {task!r} took more than {limit_s:g} s for '
          f'{count} completion{"s" * (count > 1)}. Such completions earn 0 and '
          'count in scoring/timeout; deadline_s is the limit of each. This is '
          'said once.',
        )
      return [_unscored(status)] * count
    if verb == 'score':
      return [Verdict(status='ok', **reply)]
    verdicts = []
    for scores, error, logged, notes in reply:
      if scores is None:
        self._warn(task, error)
        verdicts.append(_unscored('crash', logged))
      else:
        own = {'logged': logged, 'notes': notes}
        verdicts.append(Verdict(status='ok', **scores, **own))
    return verdicts

  def _warn(self, task: str, error: str) -> None:
    """Says what a verifier raised, once for each task and type."""
    line, _, trace = error.partition('\n')
    self._say_once(
      (task, line.partition(': ')[0]),
      f'The verifier of task {task!r} raised {line}. Such completions earn '
      '0 and count in completion/unscored. This is said once for each type '
      'of error.' + (f'\n{trace}' if trace else ''),
    )

  def _warn_of_silence(self, verdicts: Sequence[Verdict]) -> None:
    found = collections.Counter(v.status for v in verdicts)
    self._say_once(
      ('', 'silence'),
      f'None of {len(verdicts)} completions could be scored ('
      + ', '.join(f'{count} {status}' for status, count in found.items())
      + '), so all of them earn 0. Check the verifier of the task, or raise '
      'deadline_s if most are timeouts. This is said once.',
    )

  def _say_once(self, kind: tuple[str, str], sentence: str) -> None:
    if kind not in self._warned:
      self._warned.add(kind)
      print(sentence, file=sys.stderr, flush=True)

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
    texts = [text for text in texts if text not in apart]
    alike, rest = self._alike_at_once(task, leader, texts)
    failed, num_compared = set(), len(texts) - len(rest)
    size = len(self._workers)
    while rest and not _MAX_FAILURES <= len(failed) == num_compared:
      chosen, rest = rest[:size], rest[size:]
      size *= 2  # few at first, for a leader that always fails
      replies = self._run([('same', task, leader, [text]) for text in chosen])
      for text, (status, is_same) in zip(chosen, replies, strict=True):
        num_compared += 1
        if status != 'ok':
          failed.add(text)
        elif is_same[0]:
          alike.append(text)
    return alike, failed if len(failed) < num_compared else set()

  def _alike_at_once(
    self, task: str, leader: str, texts: Sequence[str]
  ) -> tuple[list[str], list[str]]:
    """The texts that are the same as the leader, and those not compared.

    A job compares many texts, for most comparisons cost less than a job. Where
    one of them fails, they are left to be compared one by one.
    """
    chunks = [
      texts[i : i + _MAX_TEXTS] for i in range(0, len(texts), _MAX_TEXTS)
    ]
    replies = self._run([('same', task, leader, chunk) for chunk in chunks])
    alike, rest = [], []
    for chunk, (status, found) in zip(chunks, replies, strict=True):
      if status == 'ok':
        alike += itertools.compress(chunk, found)
      else:
        rest += chunk
    return alike, rest

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
          chosen = waiting.popleft()
          worker.begin(chosen, [jobs[job] for job in chosen])
      busy = [w for w in self._workers if not w.is_idle]
      patience_s = min(w.deadline for w in busy) - time.monotonic()
      # It takes all that have a `fileno`.
      connection.wait(busy, max(patience_s, 0.0))  # pyright: ignore[reportArgumentType]
      if all(len(worker.batch) > _FEW for worker in busy):
        time.sleep(_PAUSE_S)  # to wake up costs as much as a verdict
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

  def _start(self) -> worker_process.WorkerProcess:
    return worker_process.WorkerProcess(self._setup, self._limits)
