"""The program of a reward worker: scores what it is sent until told to end.

`worker_process` starts it. It loads no JAX: a worker starts fast and is small.
"""

import contextlib
import math
import os
import pickle
import signal
import socket
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from rlzero.runtime import files
from rlzero.scoring import frames
from rlzero.tasks import base
from rlzero.text import language, template

_MAX_MEMORY = 4 << 30  # bytes of address space
_MAX_ERROR = 300  # characters of what a verifier raised


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
  signal.setitimer(signal.ITIMER_REAL, 2 * frames.START_S)
  try:
    has_format, limits, pickled = pickle.loads(frames.receive_or_exit(channel))
    tasks = pickle.loads(pickled)
    for task in tasks.values():
      if warm_up := getattr(task, 'warm_up', None):
        warm_up()
  except Exception as error:
    frames.send(channel, _encode(0, 'crash', _describe(error)))
    return
  frames.send(channel, _encode(0, 'ok', None))
  os.dup2(null, 2)
  while True:
    signal.setitimer(signal.ITIMER_REAL, 0)
    first, jobs = pickle.loads(frames.receive_or_exit(channel))
    for serial, job in enumerate(jobs, first):
      limit_s = frames.limit_s(limits, job)
      signal.setitimer(signal.ITIMER_REAL, 2 * limit_s)
      verb, name, *rest = job
      try:
        reply = _VERBS[verb](tasks[name], has_format, *rest)
        body = _encode(serial, 'ok', reply)
      except BaseException as error:  # a verifier may even call sys.exit
        body = _encode(serial, 'crash', _describe(error))
      frames.send(channel, body)


# Fields of a `reward_pool.Verdict`, by name.
Scores = dict[str, Any]


class Judged(NamedTuple):
  """A completion that was judged whole, as it is sent."""

  scores: Scores | None
  error: str  # why there are no scores
  logged: dict[str, float]
  notes: dict[str, Any]


def score(
  task: base.Task,
  has_format: bool,
  completion: str,
  target: str,
  in_thought: bool,
) -> Scores:
  """Scores a completion by the answer that it states."""
  parts = {}
  if find := getattr(task, 'parts', None):
    parts = {n: _finite(n, v) for n, v in find(completion, target).items()}
  own = base.Judgement(parts=parts)
  return _scores(task, has_format, completion, target, in_thought, own)


def judge(
  task: Any,
  has_format: bool,
  completions: Sequence[str],
  target: str,
  in_thought: bool,
  token_ids: Sequence[Sequence[int] | None],
) -> list[Judged]:
  """Scores completions of a problem by what is said of them as a whole."""
  responses = [
    base.Response(text, ids, in_thought)
    for text, ids in zip(completions, token_ids, strict=True)
  ]
  found = []
  for text, one in zip(completions, task.judge(responses, target), strict=True):
    scores, error = None, one.error
    if not error:
      try:
        scores = _scores(task, has_format, text, target, in_thought, one)
      except Exception as raised:
        error = _describe(raised)
    found.append(Judged(scores, error, dict(one.logged), dict(one.notes)))
  return found


def same(
  task: base.Task, has_format: bool, leader: str, others: Sequence[str]
) -> list[bool]:
  """Whether each of the answers is the same as the leader."""
  del has_format
  return [_true_or_false(task.same(leader, other), 'same') for other in others]


_VERBS = {'score': score, 'judge': judge, 'same': same}


def _scores(
  task: base.Task,
  has_format: bool,
  completion: str,
  target: str,
  in_thought: bool,
  judgement: base.Judgement,
) -> Scores:
  parsed = template.parse(completion)
  stated = _stated(task, completion, parsed if has_format else None, in_thought)
  answer, correct, outcome = None, False, ''
  if judgement.correct is not None:
    answer, correct = next(stated, None), judgement.correct
  elif find := getattr(task, 'outcome', None):
    if readings := list(stated):
      answer = readings[-1]
      # `verify` says no more, and would run the program again.
      outcome = str(find(answer, target))
      correct = outcome == base.ACCEPTED
  else:
    for answer in stated:
      if correct := _true_or_false(task.verify(answer, target), 'verify'):
        break
  accuracy = float(correct and (parsed.well_formed or not has_format))
  applies = judgement.correct is None or judgement.score is not None
  if judgement.correct is not None:
    # Who judges the whole completion has judged its format, too.
    accuracy = judgement.score or 0.0
  return dict(
    accuracy=accuracy,
    format=float(parsed.well_formed and has_format),
    correct=correct,
    answer=answer if answer is None else str(answer),
    tries=int(task.count_tries(completion)),
    reflections=template.reflective_words(completion),
    parts=dict(judgement.parts),
    words=language.count_words(language.thought(completion, in_thought)),
    outcome=outcome,
    applies=applies,
  )


def _stated(
  task: base.Task,
  completion: str,
  parsed: template.Parsed | None,
  in_thought: bool,
) -> Iterator[str]:
  """The readings of the answer that is judged: never one of the thought.

  Where tags enclose an answer, it may be all of their text (a grid of many
  lines) or what the text states ('Answer: B').

  Args:
    task: of the completion.
    completion: what the model wrote.
    parsed: its tags, where the template has a format.
    in_thought: whether its prompt has begun the thought.
  """
  if parsed and parsed.well_formed and parsed.answer is not None:
    yield parsed.answer
    reading = task.extract(parsed.answer)
    if reading is not None and reading != parsed.answer:
      yield reading
  elif behind := template.summary(completion, in_thought):
    reading = task.extract(behind)
    if reading is not None:
      yield reading


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


def _encode(serial: int, status: str, reply: Any) -> bytes:
  return files.to_json([serial, status, reply]).encode()


if __name__ == '__main__':
  _serve()
