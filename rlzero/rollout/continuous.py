"""Continuous batching: requests with settings of their own, as they come."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rlzero.models.config import ModelConfig
from rlzero.rollout import buckets
from rlzero.rollout.row_decoding import NUM_TOP, RowDevice
from rlzero.rollout.row_sampling import RowDistribution
from rlzero.rollout.sampling import Finish, Sampling, StopCriteria
from rlzero.rollout.scheduler import Prompt, Scheduler
from rlzero.runtime import hosts
from rlzero.types import Params


class Options(NamedTuple):
  """Settings of one request."""

  max_len: int  # tokens of the completion, EOS included
  temperature: float = 1.0
  top_p: float = 1.0
  num_top: int = 0  # most likely tokens wanted at each step; at most `NUM_TOP`


class Top(NamedTuple):
  """The K most likely tokens of T steps, the first first; see `Tops`."""

  ids: np.ndarray  # [T, K]
  logprobs: np.ndarray  # [T, K]


class Piece(NamedTuple):
  """The tokens that a request got in a round."""

  tokens: np.ndarray  # [T]
  logprobs: np.ndarray  # [T]
  finish: Finish | None  # why it ended, if it has
  top: Top | None  # of the tokens, if the request asked


class ContinuousScheduler(Scheduler[int]):
  """A scheduler whose requests are followed, and may be given up.

  They differ in length, temperature and nucleus. One program decodes them all,
  in a batch that keeps its size. The key of a token is made of `Prompt.draw`,
  sample and position, as ever.

  Args:
    config: of the model.
    params: of the policy.
    num_slots: requests that run at a time.
    context: the most tokens of a prompt and its completion.
    decode_steps: tokens a round.
    stop: what ends a completion.
  """

  def __init__(
    self,
    config: ModelConfig,
    params: Params,
    *,
    num_slots: int,
    context: int,
    decode_steps: int,
    stop: StopCriteria,
  ):
    settings = Sampling(
      max_len=context,
      max_prompt_len=context,
      num_slots=num_slots,
      decode_steps=decode_steps,
    )
    self._sizes = buckets.server_sizes(settings, context)
    num_together = buckets.prefill_batch(1)
    self._rows = RowDevice(
      config,
      params,
      settings,
      eos_ids=stop.eos_ids,
      seed=0,
      prefill_batch=num_together,
      prompt_widths=self._sizes.prompt_widths,
    )
    super().__init__(
      config,
      params,
      settings,
      stop=stop,
      seed=0,
      prefill_batch=num_together,
      sizes=self._sizes,
      device=self._rows,
    )
    self._context = context
    self._options: dict[int, Options] = {}
    self._num_read: dict[int, int] = {}  # tokens handed over, by request
    # Of the round, for requests that ask: their slots, and what is in them.
    self._asking: dict[int, int] = {}
    self._tops: Any = None  # `Tops`, on the devices or the host

  @property
  def num_free(self) -> int:
    """Slots that nothing runs in."""
    return len(self._batch) - len(self._options)

  def add(
    self, prompt: Prompt, sample: int, request_id: int, options: Options
  ) -> None:
    """Gives a request a free slot, from the next round on.

    Args:
      prompt: see `submit`.
      sample: see `submit`.
      request_id: see `submit`.
      options: of the request.

    Raises:
      ValueError: no slot is free, prompt and completion are longer than the
        context, too many likely tokens are wanted, or what `submit` refuses.
    """
    if not self.num_free:
      raise ValueError('All slots are taken; wait until a request has ended.')
    if not prompt.tokens:
      raise ValueError('A prompt is empty; it needs at least one token.')
    if len(prompt.tokens) + options.max_len > self._context:
      raise ValueError(
        f'A prompt of {len(prompt.tokens)} tokens and a completion of '
        f'{options.max_len} are longer than the context of {self._context}; '
        'ask for fewer tokens.'
      )
    if not 0 <= options.num_top <= NUM_TOP:
      raise ValueError(
        f'A request asks for the {options.num_top} most likely tokens; ask '
        f'for 0 to {NUM_TOP}.'
      )
    self.submit(prompt, sample, request_id)
    self._options[request_id] = options
    self._num_read[request_id] = 0

  def cancel(self, request_id: int) -> None:
    """Frees the slot of a running request; nothing more is heard of it.

    One that has ended, or was never there, is passed over.

    Raises:
      ValueError: it has not had a round yet.
    """
    if request_id not in self._options:
      return
    requests = self._batch.requests
    slots = [i for i, r in enumerate(requests) if r and r.id == request_id]
    if not slots:
      raise ValueError(
        f'Request {request_id} waits for its first round; cancel it after.'
      )
    requests[slots[0]] = None
    del self._options[request_id], self._num_read[request_id]
    self._ids.discard(request_id)

  def advance(self) -> list[tuple[int, Piece]]:
    """Runs one round; what each request has got in it."""
    pieces = []
    ended = self.step()
    if self._asking:
      self._tops = hosts.fetch(self._tops)
    for request_id, completion in ended:
      start = self._num_read.pop(request_id)
      tokens = completion.tokens[start:]
      piece = Piece(
        tokens,
        completion.logprobs[start:],
        completion.finish,
        self._top(request_id, len(tokens)),
      )
      del self._options[request_id]
      pieces.append((request_id, piece))
    return pieces + self._read_running()

  def compile_ahead(self) -> None:
    """Compiles what requests of any length need, while none is there."""
    for width in self._sizes.prompt_widths:
      prompt = Prompt(0, [0] * min(width, self._context - 1))
      self.add(prompt, 0, -1, Options(max_len=1))
      self.advance()
    for cache_len in reversed(self._batch.cache_lens()):
      self._batch.fit_cache(cache_len)
      self._decode()

  def _read_running(self) -> list[tuple[int, Piece]]:
    """Reads the new tokens of those that still run, in one transfer."""
    if not self._options:
      return []
    count, pieces = self._sampling.decode_steps, []
    last = self._rows.read_last(min(count, self._context))
    for slot, request in enumerate(self._batch.requests):
      if request is None:
        continue
      length = int(self._batch.cached[slot]) - (len(request.suffix) - 1)
      end = min(length, last.tokens.shape[1])
      start = end - (length - self._num_read[request.id])
      self._num_read[request.id] = length
      piece = Piece(
        last.tokens[slot, start:end],
        last.logprobs[slot, start:end],
        None,
        self._top(request.id, end - start),
      )
      pieces.append((request.id, piece))
    return pieces

  def _top(self, request_id, num_tokens):
    """The likely tokens of those that a request got in the round, or None.

    A request that runs at the start of a round runs until it ends, so its
    tokens are those of the first steps.
    """
    if request_id not in self._asking:
      return None
    slot, num_top = self._asking[request_id], self._options[request_id].num_top
    return Top(*(part[slot, :num_tokens, :num_top] for part in self._tops))

  def _check_prompt(self, prompt):
    """Lengths are checked by `add`, which knows those of the request."""

  def _decode(self):
    running: Sequence[Options] = [
      _FREE if request is None else self._options[request.id]
      for request in self._batch.requests
    ]
    max_len, temperature, top_p, num_top = zip(*running, strict=True)
    asks_top = np.array(num_top) > 0
    slots = np.flatnonzero(asks_top).tolist()
    self._asking = {self._batch.requests[slot].id: slot for slot in slots}
    self._tops = self._rows.decode_rows(
      np.array(max_len, np.int32),
      RowDistribution._make(
        (
          np.array(temperature, np.float32),
          np.array(top_p, np.float32),
          asks_top,
        )
      ),
    )


# A slot that was given up ends by itself.
_FREE = Options(max_len=0, temperature=0.0)
