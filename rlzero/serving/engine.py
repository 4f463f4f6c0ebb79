"""A thread that completes requests, many at a time, as they come.

The device belongs to this thread: it gives waiting requests free slots, runs a
round of `ContinuousScheduler`, hands over what each request has got, and begins
again. Others submit and cancel from any thread. What a request gets depends on
its prompt, its settings and its seed, and not on what runs beside it.
"""

import collections
import dataclasses
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from rlzero import weights
from rlzero.rollout import encoding
from rlzero.rollout.continuous import ContinuousScheduler, Options, Piece
from rlzero.rollout.sampling import Finish
from rlzero.rollout.scheduler import Prompt
from rlzero.runtime import sharding
from rlzero.serving.streams import (
  CompletionStream,
  Delta,
  ThoughtSplitter,
  Token,
)

_MAX_WAIT_S = 60  # what a client that is refused is told to wait at most


class Busy(Exception):
  """The queue is full."""

  def __init__(self, retry_after_s: int):
    super().__init__(
      f'The queue is full; try again in {retry_after_s} s, or start the server '
      'with a larger --max_queue.'
    )
    self.retry_after_s = retry_after_s


class Closing(Exception):
  """No request is taken any more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """A completion that is wanted.

  Its tokens are a function of these fields: `prompt.draw` and `sample` make the
  keys. Requests of one `Prompt` object share its prefill.
  """

  prompt: Prompt
  max_tokens: int  # EOS included
  sample: int = 0  # index among the completions of the prompt
  temperature: float = 1.0  # 0 is greedy
  top_p: float = 1.0
  num_top: int = 0  # most likely tokens that come with each; at most `NUM_TOP`
  stops: tuple[str, ...] = ()  # strings that end it, and are no part of it
  splits_thought: bool = False  # keeps the thought apart
  in_thought: bool = False  # the prompt has begun it


class Event(NamedTuple):
  """News of one completion."""

  choice: int  # index among the requests that were submitted together
  delta: Delta
  tokens: list[Token]  # new ones; their text may come with a later event
  num_tokens: int  # so far
  num_thought_tokens: int  # of those, in the thought
  finish: str = ''  # at its end 'stop' or 'length'; 'error' if it has none
  error: str = ''  # in a sentence


class _Job:
  """A request under way."""

  def __init__(
    self,
    number: int,
    choice: int,
    request: Request,
    deliver: Callable[[Event], None],
    stream: CompletionStream,
  ):
    self.number, self.choice, self.request = number, choice, request
    self.deliver, self.stream = deliver, stream
    self.cancelled = False
    self.began_s = 0.0


class Ticket(NamedTuple):
  """Requests that were submitted together."""

  jobs: tuple[_Job, ...]


class Engine:
  """Completes requests in a thread of its own.

  Args:
    loaded: the model, its parameters on the devices of the mesh.
    slots: requests that run at a time.
    max_queue: requests that wait beyond those.
    context: the most tokens of a prompt and its completion.
    decode_steps: tokens of a request that come together.
    mesh: that the model is on.
    on_failure: called, in the thread, if it ends by an error.

  Attributes:
    failure: the error by which the thread has ended, or None.
  """

  def __init__(
    self,
    loaded: weights.Loaded,
    *,
    slots: int,
    max_queue: int,
    context: int,
    decode_steps: int,
    mesh: sharding.Mesh | None = None,
    on_failure: Callable[[], None] | None = None,
  ):
    self._loaded: weights.Loaded | None = loaded
    self._tokenizer = loaded.tokenizer
    self._mesh = mesh or sharding.Mesh()
    self._sizes = {
      'num_slots': slots,
      'context': context,
      'decode_steps': decode_steps,
    }
    self.context, self._slots, self._max_queue = context, slots, max_queue
    self._on_failure = on_failure
    self._changed = threading.Condition()
    self._waiting: collections.deque[_Job] = collections.deque()
    self._running: dict[int, _Job] = {}
    self._numbers = itertools.count()
    self._closing = self._stopped = False
    self._mean_s = 1.0  # seconds of a request in its slot
    self._ready = threading.Event()
    self.failure: BaseException | None = None
    self._thread = threading.Thread(
      target=self._run, name='rlzero-engine', daemon=True
    )

  @property
  def max_requests(self) -> int:
    """Requests that can be submitted together."""
    return self._slots + self._max_queue

  def start(self, compile_ahead: bool = True) -> None:
    """Starts the thread, and waits until it takes requests.

    Args:
      compile_ahead: compile first what requests of any length need.
    """
    self._compile_ahead = compile_ahead
    self._thread.start()
    self._ready.wait()
    if self.failure:
      raise self.failure

  def submit(
    self, requests: Sequence[Request], deliver: Callable[[Event], None]
  ) -> Ticket:
    """Queues requests, all of them or none.

    Args:
      requests: at least one.
      deliver: called with each event, in the engine's thread; it must return
        at once.

    Returns:
      what `cancel` takes.

    Raises:
      Busy: the queue has no room for them.
      Closing: the engine is being closed, or has failed.
      ValueError: one that the context has no room for.
    """
    for request in requests:
      length = len(request.prompt.tokens)
      if not length or length + request.max_tokens > self.context:
        raise ValueError(
          f'A prompt of {length} tokens and a completion of '
          f'{request.max_tokens} do not fit in the context of {self.context}.'
        )
    with self._changed:
      if self._closing:
        raise Closing(
          'The server has failed.'
          if self.failure
          else 'The server is shutting down.'
        )
      given_up = sum(job.cancelled for job in self._running.values())
      num_open = self._num_open() - given_up
      if num_open + len(requests) > self.max_requests:
        raise Busy(self._retry_after_s())
      jobs = []
      for choice, request in enumerate(requests):
        splitter = None
        if request.splits_thought:
          splitter = ThoughtSplitter(request.in_thought)
        stream = CompletionStream(self._tokenizer, request.stops, splitter)
        jobs.append(_Job(next(self._numbers), choice, request, deliver, stream))
      self._waiting.extend(jobs)
      self._changed.notify_all()
    return Ticket(tuple(jobs))

  def cancel(self, ticket: Ticket) -> None:
    """Gives requests up; their slots are free before the next round."""
    with self._changed:
      for job in ticket.jobs:
        job.cancelled = True
      if any(job.cancelled for job in self._waiting):
        self._waiting = collections.deque(
          job for job in self._waiting if not job.cancelled
        )
      self._changed.notify_all()

  def status(self) -> dict[str, int]:
    """How many requests run and wait, how many could, and if it is open."""
    with self._changed:
      return {
        'running': sum(not j.cancelled for j in self._running.values()),
        'waiting': len(self._waiting),
        'slots': self._slots,
        'max_queue': self._max_queue,
        'open': int(not self._closing),
      }

  def drain(self, grace_s: float) -> bool:
    """Takes no more requests, and waits for those under way.

    Args:
      grace_s: the longest wait, in seconds.

    Returns:
      whether all have ended.
    """
    with self._changed:
      self._closing = True
      return self._changed.wait_for(lambda: not self._num_open(), grace_s)

  def close(self) -> None:
    """Ends the thread; requests under way get an error as their last event."""
    with self._changed:
      self._closing = self._stopped = True
      self._changed.notify_all()
    if self._thread.is_alive():
      self._thread.join()

  def _num_open(self):
    return len(self._waiting) + len(self._running)

  def _retry_after_s(self):
    rounds = self._num_open() / self._slots
    return min(max(math.ceil(self._mean_s * rounds / 2), 1), _MAX_WAIT_S)

  def _run(self):
    try:
      with sharding.use(self._mesh):
        scheduler = self._make_scheduler()
        if self._compile_ahead:
          scheduler.compile_ahead()
        self._ready.set()
        while self._await_work():
          self._admit(scheduler)
          for number, piece in scheduler.advance():
            self._hand_over(scheduler, self._running[number], piece)
    except BaseException as error:
      self.failure = error
    self._give_up()

  def _make_scheduler(self):
    loaded, self._loaded = self._loaded, None  # the scheduler has its own copy
    assert loaded is not None
    return ContinuousScheduler(
      loaded.config,
      loaded.params,
      stop=encoding.stop_criteria(loaded.tokenizer),
      **self._sizes,
    )

  def _await_work(self):
    """Sleeps while there is nothing to do; False once it is over."""
    with self._changed:
      self._changed.wait_for(lambda: self._stopped or self._num_open())
      return not self._stopped

  def _admit(self, scheduler):
    """Frees the slots of requests that were given up, and fills free ones."""
    with self._changed:
      for number in [n for n, job in self._running.items() if job.cancelled]:
        scheduler.cancel(number)
        del self._running[number]
      while self._waiting and scheduler.num_free:
        job = self._waiting.popleft()
        request = job.request
        scheduler.add(
          request.prompt,
          request.sample,
          job.number,
          Options(
            request.max_tokens,
            request.temperature,
            request.top_p,
            request.num_top,
          ),
        )
        job.began_s = time.monotonic()
        self._running[job.number] = job
      self._changed.notify_all()

  def _hand_over(self, scheduler: ContinuousScheduler, job: _Job, piece: Piece):
    """Delivers what a request has got; ends it at a stop string."""
    stream, deltas, tokens, finish = job.stream, [], [], ''
    for token in _tokens(piece):
      tokens.append(token)
      deltas.append(stream.push(token.id))
      if stream.stopped:
        finish = 'stop'
        if piece.finish is None:
          scheduler.cancel(job.number)
        break
    if piece.finish and not finish:
      finish = 'stop' if piece.finish is Finish.EOS else 'length'
    if finish:
      deltas.append(stream.flush())
      # Held-back text may complete a stop string at the very end.
      finish = 'stop' if stream.stopped else finish
      with self._changed:
        del self._running[job.number]
        taken_s = time.monotonic() - job.began_s
        self._mean_s += (taken_s - self._mean_s) / 8
        self._changed.notify_all()
    delta = Delta(
      ''.join(d.thought for d in deltas), ''.join(d.text for d in deltas)
    )
    self._deliver(job, delta, tokens, finish)

  def _deliver(self, job, delta, tokens, finish, error=''):
    stream = job.stream
    event = Event(
      job.choice,
      delta,
      tokens,
      stream.num_tokens,
      stream.num_thought_tokens,
      finish,
      error,
    )
    if job.cancelled:
      return
    try:
      job.deliver(event)
    except RuntimeError:  # the loop of whoever listens is closed
      job.cancelled = True

  def _give_up(self):
    """Ends all requests by an error, and takes no more."""
    with self._changed:
      self._closing = True
      jobs = [*self._running.values(), *self._waiting]
      self._running.clear()
      self._waiting.clear()
      self._changed.notify_all()
    sentence = 'The server was shut down before the completion ended.'
    if self.failure:
      sentence = 'The server has failed; its log says why.'
    for job in jobs:
      self._deliver(job, Delta(), [], 'error', sentence)
    self._ready.set()
    if self.failure and self._on_failure:
      self._on_failure()


def _tokens(piece: Piece) -> Iterator[Token]:
  """The tokens of a piece, each with the most likely ones if they are there."""
  for i, token in enumerate(
    zip(piece.tokens.tolist(), piece.logprobs.tolist(), strict=True)
  ):
    top = ()
    if piece.top is not None:
      ids, logprobs = (part[i].tolist() for part in piece.top)
      top = tuple(zip(ids, logprobs, strict=True))
    yield Token(*token, top)
