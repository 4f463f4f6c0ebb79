"""Slots filled, decoded and emptied until every completion is there.

What is scheduled depends on token counts, never on a clock. Token ids come
in and go out; text and rewards are not known here.
"""

import collections
import itertools
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from rlzero.models import padding
from rlzero.models.config import ModelConfig
from rlzero.rollout import engine
from rlzero.rollout.sampling import Finish, Sampling
from rlzero.runtime import hosts, sharding
from rlzero.types import Params, Tokens

_SPAN_STEP = 32  # cache positions, at least, between compiled sizes
_SPAN_SHARE = 0.6  # of a size, the next smaller one
_PREFILL_BLOCK = 32  # prompts prefilled together
_FEW_SLOTS = 4  # a batch of fewer, or of so many fewer, costs little less


class Prompt(NamedTuple):
  """Tokens to continue; `draw` counts the prompts drawn in a run."""

  draw: int
  tokens: Sequence[int]


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


def generate(
  config: ModelConfig,
  params: Params,
  prompts: Sequence[Prompt],
  group_size: int,
  sampling: Sampling,
  *,
  eos_ids: tuple[int, ...],
  seed: int,
  finished: Mapping[int, Completion] = types.MappingProxyType({}),
  on_finished: Callable[[int, Completion], None] | None = None,
  poll: Callable[[], None] | None = None,
) -> tuple[list[Completion], Usage]:
  """Draws `group_size` completions of each prompt, groups adjacent.

  Args:
    config: of the model.
    params: of the policy.
    prompts: P of them.
    group_size: G.
    sampling: settings.
    eos_ids: tokens that end a completion.
    seed: of the run; with draw, sample and position it makes the keys.
    finished: completions that are there already, by their index in the
      result; they are handed back as they are. They take part in the schedule
      all the same, so that every other row is drawn in the slot, the batch and
      the span that it would have had, and has the same bits.
    on_finished: called with index and completion as soon as each ends, so
      that it can be kept, or counted.
    poll: called between two calls to the device; what it raises ends the
      generation.

  Returns:
    the completions, and what drawing all of them takes.

  Raises:
    ValueError: a prompt that is empty or too long, or a model that is too
      short for prompt and completion.
  """
  _check(config, prompts, sampling)
  total = len(prompts) * group_size
  prefix_len = _shared_prefix_len(config, prompts)
  suffixes = [p.tokens[prefix_len:] for p in prompts]
  most, widest, capacity = sizes(sampling, total, max(map(len, suffixes)))
  num_slots, span = most, _spans(capacity, widest)[0]
  batches = _batches(most)
  params = engine.prepare(config, params)
  slots = _slots(engine.empty, config, params, sampling, num_slots, span)
  held = np.full(num_slots, -1)  # completion in each slot
  cached = np.zeros(num_slots, int)
  left = np.zeros(num_slots, int)  # tokens to come of a finished one, else 0
  done: list[Completion | None] = [finished.get(i) for i in range(total)]
  queue = collections.deque(range(total))
  block = _Block(
    config, params, prompts[0].tokens[:prefix_len], suffixes, widest
  )
  num_left, computed = total, 0

  def settle():
    """Gives the cache that size of this batch which the next call needs."""
    nonlocal slots, span
    furthest = int(cached[held >= 0].max()) + sampling.decode_steps
    spans = _spans(capacity, widest, num_slots / most)
    needed = next(n for n in spans if n >= furthest)
    if needed != span:
      slots, span = engine.fit(config, slots, None, needed), needed

  while num_left:
    if poll:
      poll()
    while queue and (held < 0).any():
      block.reach(queue[0] // group_size)
      source = np.full(num_slots, -1, np.int32)
      counters = np.zeros((num_slots, 2), np.int32)
      for slot in np.flatnonzero(held < 0):
        if not queue or not block.holds(queue[0] // group_size):
          break
        held[slot] = queue.popleft()
        prompt, sample = divmod(held[slot], group_size)
        cached[slot] = len(suffixes[prompt]) - 1
        if known := done[held[slot]]:
          left[slot] = len(known.tokens)
          continue
        source[slot] = prompt - block.start
        counters[slot] = prompts[prompt].draw, sample
      if (source >= 0).any():
        block.load()
        slots = engine.insert(
          config,
          slots,
          block.prefilled,
          block.ids,
          block.lengths,
          source,
          counters,
          seed,
        )
    alive = np.flatnonzero(held >= 0)
    # Only when the queue is empty, or the slots would have been filled.
    for fewer in batches:
      if alive.size > fewer:
        break
      if fewer >= num_slots:
        continue
      chosen = np.append(alive, np.flatnonzero(held < 0))[:fewer]
      slots = engine.fit(config, slots, np.int32(chosen), span)
      held, cached, left = held[chosen], cached[chosen], left[chosen]
      num_slots, alive = fewer, np.flatnonzero(held >= 0)
      settle()
    settle()
    drawn = (held >= 0) & (left == 0)
    # What a finished one would have done is known without the device.
    ahead = np.minimum(left, sampling.decode_steps)
    cached, left = cached + ahead, left - ahead
    running = left > 0
    if drawn.any():
      slots = engine.decode(
        params,
        slots,
        np.int32(sampling.max_len),
        block.shared_prefix,
        config=config,
        eos_ids=eos_ids,
        num_steps=sampling.decode_steps,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
      )
      alive, places = hosts.fetch((slots.running, slots.cached))
      running = np.where(drawn, alive, running)
      cached = np.where(drawn, places, cached)
    computed += num_slots * sampling.decode_steps
    ended = np.flatnonzero((held >= 0) & ~running)
    if drawn[ended].any():
      tokens, logprobs, length, routes = hosts.fetch(
        (slots.tokens, slots.logprobs, slots.length, slots.routes)
      )
    for slot in ended:
      if drawn[slot]:
        size = length[slot]
        stopped = tokens[slot, size - 1] in eos_ids
        completion = Completion(
          tokens[slot, :size].copy(),
          logprobs[slot, :size].copy(),
          Finish.EOS if stopped else Finish.LENGTH,
          None if routes is None else routes[:, slot, :size].copy(),
        )
        done[held[slot]] = completion
        if on_finished:
          on_finished(int(held[slot]), completion)
      held[slot] = -1
    num_left -= ended.size
  return done, Usage(sum(len(c.tokens) for c in done), computed)


def lower_all(
  config: ModelConfig,
  params: Params,
  prompts: Sequence[Prompt],
  group_size: int,
  sampling: Sampling,
  eos_ids: tuple[int, ...],
) -> list[jax.stages.Lowered]:
  """The programs that `generate` has in several sizes, in each of them.

  Arguments as there.
  """
  prefix_len = _shared_prefix_len(config, prompts)
  most, widest, capacity = sizes(
    sampling,
    len(prompts) * group_size,
    max(len(p.tokens) for p in prompts) - prefix_len,
  )
  params = engine.prepare(config, params)
  shared_prefix = engine.abstract_shared_prefix(
    config, prefix_len, 'layers' not in params
  )
  lowered, before, spans_before = [], None, []
  for num_slots in [most, *_batches(most)]:
    spans = _spans(capacity, widest, num_slots / most)
    slots = {
      span: _slots(engine.abstract, config, params, sampling, num_slots, span)
      for span in {*spans, *spans_before}
    }
    for span in spans_before:
      lowered += engine.lower_fit(config, before[span], num_slots, span)
    for span, into in itertools.product(slots, spans):
      if span != into:
        lowered += engine.lower_fit(config, slots[span], None, into)
    lowered += [
      _lower_decode(
        config, params, slots[span], sampling, eos_ids, shared_prefix
      )
      for span in spans
    ]
    before, spans_before = slots, spans
  return lowered


def lower(
  config: ModelConfig,
  params: Params,
  num_prompts: int,
  group_size: int,
  prompt_len: int,
  sampling: Sampling,
  eos_ids: tuple[int, ...],
) -> dict[str, jax.stages.Lowered]:
  """The programs of `generate`, prefill and decode, to be looked at.

  Args:
    config: of the model.
    params: shapes and places of the policy's parameters.
    num_prompts: P.
    group_size: G.
    prompt_len: of the longest prompt, in tokens; without a shared prefix.
    sampling: settings.
    eos_ids: tokens that end a completion.

  Returns:
    `decode` looks at the whole cache, as the longest completions make it.
  """
  num_slots, widest, capacity = sizes(
    sampling, num_prompts * group_size, prompt_len
  )
  slots = engine.abstract(
    config, num_slots, capacity, sampling.max_len, sampling.keep_routes
  )
  block = jax.ShapeDtypeStruct((block_size(num_prompts), widest), np.int32)
  block = Tokens(*(sharding.abstract(block, 'PT'),) * 3)
  return {
    'prefill': engine.prefill.lower(config, params, block),
    'decode': _lower_decode(config, params, slots, sampling, eos_ids),
  }


def _shared_prefix_len(config, prompts):
  """Tokens that prompts begin with, to be prefilled once.

  Latent attention has none here: over what is cached it is absorbed, which
  costs the many queries of a prompt more than a shared prefix would save.
  """
  if config.latent:
    return 0
  return padding.shared_prefix_len([p.tokens for p in prompts])


def _slots(make, config, params, sampling, num_slots, span):
  """Slots for the parameters of `engine.prepare`, by one of its functions."""
  return make(
    config,
    num_slots,
    span,
    sampling.max_len,
    sampling.keep_routes,
    'layers' not in params,
  )


def _lower_decode(config, params, slots, sampling, eos_ids, shared_prefix=None):
  return engine.decode.lower(
    params,
    slots,
    jax.ShapeDtypeStruct((), np.int32),
    shared_prefix,
    config=config,
    eos_ids=eos_ids,
    num_steps=sampling.decode_steps,
    temperature=sampling.temperature,
    top_p=sampling.top_p,
  )


def sizes(
  sampling: Sampling, total: int, prompt_len: int
) -> tuple[int, int, int]:
  """Slots, width of the prompts, and cache positions of a slot."""
  num_slots = padding.round_up(
    min(sampling.num_slots, total), sharding.axis_size('B')
  )
  widest = padding.prompt_width(prompt_len)
  capacity = padding.round_up(
    widest + sampling.max_len + sampling.decode_steps, _SPAN_STEP
  )
  return num_slots, widest, capacity


def block_size(num_prompts: int) -> int:
  """Prompts that are prefilled together."""
  return padding.round_up(
    min(_PREFILL_BLOCK, num_prompts), sharding.axis_size('P')
  )


def _spans(capacity: int, widest: int, share: float = 1) -> list[int]:
  """Sizes of the cache, in positions, the smallest first.

  Few, since decoding is compiled for each; of positions looked at, most hold
  something. Every size has room for the prompts, `widest` tokens. A batch with
  this share of the slots has no size so small that it would look at less than
  the whole batch does at its smallest: there would be more sizes and little to
  gain.
  """
  spans, size = {capacity}, capacity * _SPAN_SHARE
  while size > max(_SPAN_STEP, widest):
    spans.add(padding.round_up(math.ceil(size), _SPAN_STEP))
    size *= _SPAN_SHARE
  least = min(min(spans) / share, capacity)
  return sorted(n for n in spans if n >= least)


def _batches(num_slots: int) -> list[int]:
  """Smaller batches that are worth having, as far as the devices divide them.

  Few, since decoding is compiled for each: eighths of the slots, while a row
  costs more than what all rows share, and then halves. Seven eighths save
  nothing: 56 rows take a CPU longer than 64.
  """
  eighths = [num_slots * k // 8 for k in range(6, 0, -1)]
  halves = [eighths[-1] >> k for k in range(1, num_slots.bit_length())]
  sizes = [num_slots]
  for size in eighths + halves:
    saved = sizes[-1] - size
    if min(size, saved) >= _FEW_SLOTS and size % sharding.axis_size('B') == 0:
      sizes.append(size)
  return sizes[1:]


class _Block:
  """Neighbouring prompts, prefilled together when the first is needed.

  Args:
    config: of the model.
    params: of the policy.
    shared_prefix: tokens that all prompts begin with; they are prefilled once.
    suffixes: what each prompt has behind them.
    widest: of these.
  """

  def __init__(self, config, params, shared_prefix, suffixes, widest):
    self._config, self._params = config, params
    self._prefix_ids = shared_prefix
    self._suffixes, self._widest = suffixes, widest
    self._size = block_size(len(suffixes))
    self.start, self.prefilled, self.shared_prefix = -self._size, None, None

  def holds(self, prompt: int) -> bool:
    return self.start <= prompt < self.start + self._size

  def reach(self, prompt: int) -> None:
    """Moves on to the block that begins with the prompt, if it is not here."""
    if not self.holds(prompt):
      self.start, self.prefilled = prompt, None

  def load(self) -> None:
    """Prefills the block, unless that has been done."""
    if self.prefilled is not None:
      return
    length = len(self._prefix_ids)
    if length and self.shared_prefix is None:
      ways = sharding.axis_size('P')  # a row for each device, all the same
      self.shared_prefix = engine.prefill_shared_prefix(
        self._config,
        self._params,
        _place(padding.pad([self._prefix_ids] * ways, ways, length)),
      )
    chosen = self._suffixes[self.start : self.start + self._size]
    padded = padding.pad(chosen, self._size, self._widest, length)
    self.ids, self.lengths = padded.ids, padded.segments.sum(axis=1)
    self.prefilled = engine.prefill(
      self._config, self._params, _place(padded), self.shared_prefix
    )


def _place(prompts):
  return jax.tree.map(lambda x: sharding.device_put(x, 'PT'), prompts)


def _check(config, prompts, sampling):
  if sampling.keep_routes and not config.experts:
    raise ValueError(
      'Sampling.keep_routes is True, but the model has no experts; turn it off.'
    )
  if not prompts:
    raise ValueError('There are no prompts to continue; give at least one.')
  for prompt in prompts:
    if not prompt.tokens:
      raise ValueError(
        f'Prompt {prompt.draw} is empty; a prompt needs at least one token.'
      )
    if len(prompt.tokens) > sampling.max_prompt_len:
      raise ValueError(
        f'Prompt {prompt.draw} has {len(prompt.tokens)} tokens, but '
        f'Sampling.max_prompt_len is {sampling.max_prompt_len}; raise the '
        'limit or leave the prompt out.'
      )
  longest = max(len(p.tokens) for p in prompts) + sampling.max_len
  if longest > config.max_position:
    raise ValueError(
      f'The longest prompt and Sampling.max_len = {sampling.max_len} make '
      f'{longest} tokens, but the model takes {config.max_position} '
      '(ModelConfig.max_position); lower Sampling.max_len.'
    )
