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
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from rlzero.models.config import ModelConfig
from rlzero.rollout import buckets, prefill
from rlzero.rollout.batch import Batch
from rlzero.rollout.device import Device
from rlzero.rollout.prefill import PrefillBlock, shared_prefix_len
from rlzero.rollout.sampling import Finish, Sampling, StopCriteria
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
  """Tokens that were wanted, and what was computed for them."""

  tokens: int
  computed: int  # tokens of all slots, whether they run or not
  steps: int  # tokens that the slots decode one after the other


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
  device: Device | None = None,
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
    device: as of `Scheduler`.

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
    device=device,
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
    device: runs the programs; by default one is made of the other arguments.

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
    device: Device | None = None,
  ):
    if sampling.keep_routes and not config.experts:
      raise ValueError(
        'Sampling.keep_routes is True, but the model has no experts; turn it '
        'off.'
      )
    self._config, self._sampling = config, sampling
    self._stop, self._shared_prefix = stop, list(shared_prefix)
    sizes = sizes or buckets.sizes(sampling, len(shared_prefix))
    num_together = prefill_batch or buckets.prefill_batch(sizes.num_slots)
    self._device = device or Device(
      config,
      params,
      sampling,
      eos_ids=stop.eos_ids,
      seed=seed,
      prefill_batch=num_together,
      prompt_widths=sizes.prompt_widths,
      shared_prefix=self._shared_prefix,
    )
    self._batch = Batch(self._device, sampling, sizes)
    self._block = PrefillBlock(self._device, num_together)
    self._queue: collections.deque[_Request[Id]] = collections.deque()
    self._ids: set[Id] = set()  # of requests that have not ended
    self._last: Prompt | None = None  # submitted last
    self._num_prompts = 0
    self._usage = dict.fromkeys(Usage._fields, 0)
    self._decoding = False  # a round has begun and not ended
    # Requests that ended, with what reads their completions; what was read.
    self._ended: collections.deque[Any] = collections.deque()
    self._done: collections.deque[tuple[Id, Completion]] = collections.deque()

  @property
  def usage(self) -> Usage:
    """Tokens and steps that the requests so far have taken."""
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
    self._begin()
    self._end()
    return list(self._hand_over())

  def drain(
    self, poll: Callable[[], None] | None = None
  ) -> Iterator[tuple[Id, Completion]]:
    """Runs rounds until no request is left; yields completions as they end.

    What ended in a round is read and yielded while the next one decodes.
    Requests may be submitted meanwhile; they join the round after that.

    Args:
      poll: called before each round; what it raises ends the iteration.
    """
    while self._ids:
      if poll:
        poll()
      self._begin()
      yield from self._hand_over()
      self._end()

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
        batch.make_room(block.width)
        self._device.insert(source, counters)

  def _begin(self):
    """Fills the slots and has them decode some tokens, if there are any."""
    batch, num_steps = self._batch, self._sampling.decode_steps
    if self._decoding or not (self._queue or batch.occupied().any()):
      return
    batch.grow(len(self._queue))
    self._fill()
    batch.shrink()
    batch.resize_cache()
    if self._live().any():
      self._decode()
    self._decoding = True
    self._usage['computed'] += len(batch) * num_steps
    self._usage['steps'] += num_steps

  def _decode(self):
    self._device.decode()

  def _live(self):
    """Whether each slot has a completion that is being sampled, [B]."""
    return self._batch.occupied() & (self._batch.replay_left == 0)

  def _end(self):
    """Takes the completions that ended in the round out of their slots."""
    batch, live = self._batch, self._live()
    if not self._decoding:
      return
    # How far a replayed completion has come is known without the device.
    replayed = np.minimum(batch.replay_left, self._sampling.decode_steps)
    batch.cached = batch.cached + replayed
    batch.replay_left = batch.replay_left - replayed
    running = batch.replay_left > 0
    if live.any():
      alive, cached = self._device.flags()
      running = np.where(live, alive, running)
      batch.cached = np.where(live, cached, batch.cached)
    self._decoding = False
    ended = np.flatnonzero(batch.occupied() & ~running).tolist()
    new = [slot for slot in ended if live[slot]]
    # The cache holds the prompt but for its last token, and what was sampled.
    prompt_lens = [len(batch.requests[slot].suffix) - 1 for slot in new]
    lengths = (batch.cached[new] - prompt_lens).tolist()
    read = self._device.read(new, lengths) if new else list
    self._ended.append(([batch.requests[slot] for slot in ended], read))
    for slot in ended:
      batch.requests[slot] = None

  def _hand_over(self):
    """Yields the completions that ended, by the ids of their requests."""
    while self._ended:
      requests, read = self._ended.popleft()
      written = iter(read())
      self._done.extend(
        (r.id, r.replay or self._completion(*next(written))) for r in requests
      )
    while self._done:
      request_id, completion = self._done.popleft()
      self._ids.discard(request_id)
      self._usage['tokens'] += len(completion.tokens)
      yield request_id, completion

  def _completion(self, tokens, logprobs, routes):
    return Completion(tokens, logprobs, self._stop.finish(tokens), routes)
