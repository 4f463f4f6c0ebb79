"""A scheduler that completes prompts: requests fill slots and leave them.

`Scheduler.step` is one round: free slots are filled, all slots decode some
tokens, and completions that ended are handed back. A round depends on token
counts and on the order of `submit`, never on a clock. Token ids come in and go
out; text and rewards are not known here.
"""

import collections
import itertools
import types
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from rlzero.models.config import ModelConfig
from rlzero.rollout import buckets, engine, prefill
from rlzero.rollout.batch import Batch
from rlzero.rollout.prefill import PrefillBlock, shared_prefix_len
from rlzero.rollout.sampling import Finish, Sampling, StopCriteria
from rlzero.runtime import hosts
from rlzero.types import Params

Id = TypeVar('Id', bound=Hashable)  # of requests


class Prompt(NamedTuple):
  """Tokens to continue.

  `draw` counts the prompts sampled in a run and is part of the keys, so that a
  prompt that is sampled twice gets fresh noise.
  """

  draw: int
  tokens: list[int]


class Completion(NamedTuple):
  """A policy's continuation of a prompt: tokens, EOS included, [T] each."""

  tokens: np.ndarray
  logprobs: np.ndarray
  finish: Finish
  routes: np.ndarray | None = None  # [L, T, C], experts of the tokens
  # Whether a token counts in the loss, bool; None counts them all. A token that
  # does not (another program wrote it, say) is context for those behind it, and
  # its log-prob is never read.
  mask: np.ndarray | None = None


class Usage(NamedTuple):
  """Tokens that were wanted, and row-steps that were computed."""

  tokens: int
  computed: int


class _Request(NamedTuple, Generic[Id]):
  """A completion that is wanted."""

  id: Id
  prompt: int  # number of the prompt, in the order of submission
  suffix: Sequence[int]  # the prompt's tokens behind the shared prefix
  draw: int
  sample: int
  replay: Completion | None


def generate(
  config: ModelConfig,
  params: Params,
  prompts: Sequence[Prompt],
  group_size: int,
  sampling: Sampling,
  *,
  stop: StopCriteria,
  seed: int,
  finished: Mapping[int, Completion] = types.MappingProxyType({}),
  on_finished: Callable[[int, Completion], None] | None = None,
  poll: Callable[[], None] | None = None,
) -> tuple[list[Completion], Usage]:
  """Samples `group_size` completions of each prompt, groups adjacent.

  Args:
    config: of the model.
    params: of the policy.
    prompts: P of them.
    group_size: G.
    sampling: settings.
    stop: what ends a completion, as `encoding.stop_criteria` has it.
    seed: of the run.
    finished: completions that exist already, by their index in the result, as
      a journal has them. They are replayed; see `Scheduler.submit`.
    on_finished: called with index and completion as soon as each new one ends.
    poll: called before each round; what it raises ends the generation.

  Returns:
    the completions, and what sampling all of them takes.

  Raises:
    ValueError: no prompts, one that is empty or too long, or a model that is
      too short for prompt and completion.
  """
  if not prompts:
    raise ValueError('There are no prompts to continue; give at least one.')
  total = len(prompts) * group_size
  shared_len = shared_prefix_len(config, [p.tokens for p in prompts])
  longest = min(max(len(p.tokens) for p in prompts), sampling.max_prompt_len)
  scheduler: Scheduler[int] = Scheduler(
    config,
    params,
    buckets.narrow(sampling, total, longest),
    stop=stop,
    seed=seed,
    shared_prefix=prompts[0].tokens[:shared_len],
    prefill_batch=buckets.prefill_batch(len(prompts)),
  )
  for index in range(total):
    prompt, sample = divmod(index, group_size)
    scheduler.submit(prompts[prompt], sample, index, finished.get(index))
  done: dict[int, Completion] = {}
  for index, completion in scheduler.drain(poll):
    done[index] = completion
    if on_finished and index not in finished:
      on_finished(index, completion)
  return [done[index] for index in range(total)], scheduler.usage


class Scheduler(Generic[Id]):
  """Completes requests, which may come while others run.

  Array sizes are fixed by the settings, so that nothing has to be known of
  requests that come later: `sampling.max_prompt_len` is the longest prompt that
  will be taken, and `sampling.num_slots` the most completions decoded at a
  time.

  The key of a token is made of seed, draw, sample and position. So a request
  gets the same tokens whatever runs beside it, but for rounding: batches and
  caches of other sizes add in another order, and a token may differ where its
  random number falls on the border between two tokens to within that rounding.

  Args:
    config: of the model.
    params: of the policy.
    sampling: settings.
    stop: what ends a completion, as `encoding.stop_criteria` has it.
    seed: of the run.
    shared_prefix: tokens that every prompt begins with; they are computed once.
      Prompts that come later must begin with them too.
    prefill_batch: prompts that are prefilled together, padding included; by
      default as many as are ever worth it.

  Raises:
    ValueError: routes are wanted of a model without experts.
  """

  def __init__(
    self,
    config: ModelConfig,
    params: Params,
    sampling: Sampling,
    *,
    stop: StopCriteria,
    seed: int,
    shared_prefix: Sequence[int] = (),
    prefill_batch: int | None = None,
    sizes: buckets.Sizes | None = None,
  ):
    if sampling.keep_routes and not config.experts:
      raise ValueError(
        'Sampling.keep_routes is True, but the model has no experts; turn it '
        'off.'
      )
    self._config, self._sampling, self._seed = config, sampling, seed
    self._stop, self._shared_prefix = stop, list(shared_prefix)
    self._params = engine.to_decode_layout(config, params)
    sizes = sizes or buckets.sizes(sampling, len(shared_prefix))
    self._batch = Batch(config, sampling, sizes, 'layers' not in self._params)
    self._block = PrefillBlock(
      config,
      self._params,
      self._shared_prefix,
      prefill_batch or buckets.prefill_batch(sizes.num_slots),
      sizes.prompt_widths,
    )
    self._queue: collections.deque[_Request[Id]] = collections.deque()
    self._ids: set[Id] = set()  # of requests that have not ended
    self._last: Prompt | None = None  # submitted last
    self._num_prompts = 0
    self._usage = {'tokens': 0, 'computed': 0}

  @property
  def usage(self) -> Usage:
    """Tokens and row-steps that the requests so far have taken."""
    return Usage(**self._usage)

  @property
  def num_unfinished(self) -> int:
    """Requests that wait or run."""
    return len(self._ids)

  def submit(
    self,
    prompt: Prompt,
    sample: int,
    request_id: Id,
    replay: Completion | None = None,
  ) -> None:
    """Adds a request to the end of the queue.

    Requests of one `Prompt` object that follow each other share its prefill.

    Args:
      prompt: what to continue.
      sample: index of the completion in its group; with `prompt.draw` it makes
        the keys.
      request_id: what `step` names the completion by.
      replay: the completion, if it exists already. It is handed back as it is,
        after as many rounds as it took; so every other request has the slot,
        batch and cache size that it would have had, and the same bits.

    Raises:
      ValueError: a prompt that is empty or too long for the scheduler or the
        model, or lacks the shared prefix; an id that is in use.
    """
    self._check_prompt(prompt)
    if request_id in self._ids:
      raise ValueError(
        f'Request {request_id!r} has not ended yet; give each request an id '
        'of its own.'
      )
    if prompt is not self._last:
      self._last, self._num_prompts = prompt, self._num_prompts + 1
    suffix = prompt.tokens[len(self._shared_prefix) :]
    self._ids.add(request_id)
    self._queue.append(
      _Request(
        request_id, self._num_prompts, suffix, prompt.draw, sample, replay
      )
    )

  def step(self) -> list[tuple[Id, Completion]]:
    """Runs one round.

    Returns:
      ids and completions of the requests that ended, in the order of their
      slots; none if there are no requests.
    """
    if not self._ids:
      return []
    self._batch.grow(len(self._queue))
    self._fill()
    self._batch.shrink()
    self._batch.resize_cache()
    return self._collect(self._decode())

  def drain(
    self, poll: Callable[[], None] | None = None
  ) -> Iterator[tuple[Id, Completion]]:
    """Runs rounds until no request is left; yields completions as they end.

    Requests may be submitted meanwhile.

    Args:
      poll: called before each round; what it raises ends the iteration.
    """
    while self._ids:
      if poll:
        poll()
      yield from self.step()

  def _check_prompt(self, prompt):
    prefill.check(
      self._config,
      prompt.draw,
      prompt.tokens,
      self._shared_prefix,
      self._sampling.max_prompt_len,
      self._sampling.max_len,
    )

  def _fill(self):
    """Moves requests from the queue to free slots, a block at a time."""
    batch, block, queue = self._batch, self._block, self._queue
    while queue and None in batch.requests:
      if not block.contains(queue[0].prompt):
        groups = itertools.groupby(queue, key=lambda request: request.prompt)
        groups = itertools.islice(groups, block.size)
        block.seek(queue[0].prompt, [next(same).suffix for _, same in groups])
      source = np.full(len(batch), -1, np.int32)
      counters = np.zeros((len(batch), 2), np.int32)
      for slot in batch.free():
        if not queue or not block.contains(queue[0].prompt):
          break
        request = queue.popleft()
        batch.requests[slot] = request
        batch.cached[slot] = len(request.suffix) - 1
        if request.replay:
          batch.replay_left[slot] = len(request.replay.tokens)
          continue
        source[slot] = request.prompt - block.start
        counters[slot] = request.draw, request.sample
      if (source >= 0).any():
        block.prefill()
        batch.make_room(block.ids.shape[1])
        batch.arrays = engine.insert(
          self._config,
          batch.arrays,
          block.keys_values,
          block.ids,
          block.lengths,
          source,
          counters,
          self._seed,
        )

  def _decode(self):
    """Decodes some tokens in every slot; returns the slots that ended."""
    batch, sampling = self._batch, self._sampling
    occupied = batch.occupied()
    live = occupied & (batch.replay_left == 0)
    # How far a replayed completion has come is known without the device.
    replayed = np.minimum(batch.replay_left, sampling.decode_steps)
    batch.cached = batch.cached + replayed
    batch.replay_left = batch.replay_left - replayed
    running = batch.replay_left > 0
    if live.any():
      batch.arrays = self._decode_slots()
      alive, cached = hosts.fetch((batch.arrays.running, batch.arrays.cached))
      running = np.where(live, alive, running)
      batch.cached = np.where(live, cached, batch.cached)
    self._usage['computed'] += len(batch) * sampling.decode_steps
    return np.flatnonzero(occupied & ~running).tolist()

  def _decode_slots(self):
    """The slots after a call of `engine.decode`."""
    return engine.decode(
      self._params,
      self._batch.arrays,
      np.int32(self._sampling.max_len),
      self._block.shared_prefix,
      config=self._config,
      eos_ids=self._stop.eos_ids,
      num_steps=self._sampling.decode_steps,
      distribution=self._sampling.distribution,
    )

  def _collect(self, ended):
    """Takes the completions that ended out of their slots."""
    batch = self._batch
    live = [slot for slot in ended if batch.requests[slot].replay is None]
    # The cache holds the prompt but for its last token, and what was sampled.
    prompt_lens = [len(batch.requests[slot].suffix) - 1 for slot in live]
    read = batch.read(live, (batch.cached[live] - prompt_lens).tolist())
    new = dict(zip(live, read, strict=True))
    done = []
    for slot in ended:
      request = batch.requests[slot]
      completion = request.replay
      if completion is None:
        tokens, logprobs, routes = new[slot]
        completion = Completion(
          tokens, logprobs, self._stop.finish(tokens), routes
        )
      done.append((request.id, completion))
      self._ids.discard(request.id)
      self._usage['tokens'] += len(completion.tokens)
      batch.requests[slot] = None
    return done
