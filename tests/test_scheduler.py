"""Slots change the order of the work, not what is written."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
from helpers import GEMMA, V3, mostly_slow, noisy

from rlzero.models import kv_cache, padding, transformer
from rlzero.models.config import ModelConfig
from rlzero.rl import learner
from rlzero.rl.objective import Objective
from rlzero.rollout import (
  buckets,
  decode_layout,
  engine,
  programs,
  sampling,
  scheduler,
)
from rlzero.rollout.device import Device
from rlzero.rollout.sampling import Finish, Sampling, StopCriteria
from rlzero.runtime import hosts
from rlzero.train import packing
from rlzero.types import Tokens

CONFIG = ModelConfig(
  vocab_size=13,
  num_layers=2,
  width=16,
  mlp_width=24,
  num_heads=4,
  num_kv_heads=2,
  head_dim=4,
  max_position=64,
)
EOS = 1
STOP = StopCriteria((EOS,))
SEED = 3
GROUP = 4
WIDTH = 48  # tokens of the longest prompt and completion here
# Five steps do not divide sixteen tokens.
SHORT = dict(max_len=16, max_prompt_len=8, decode_steps=5)


pytestmark = [
  pytest.mark.model,
  pytest.mark.usefixtures('quick_compilation'),
]


@pytest.fixture(scope='module')
def params():
  return noisy(CONFIG)


def make_prompts(num=12):
  rng = np.random.default_rng(1)
  return [
    scheduler.Prompt(100 + i, rng.integers(2, 13, 1 + i % 8).tolist())
    for i in range(num)
  ]


def generate(
  params, prompts, *, seed=SEED, finished=None, on_finished=None, **settings
):
  return scheduler.generate(
    CONFIG,
    params,
    prompts,
    GROUP,
    Sampling(**settings),
    stop=STOP,
    seed=seed,
    finished=finished or {},
    on_finished=on_finished,
  )


@pytest.fixture(scope='module')
def by_slots(params):
  """Completions and usage, by number of slots."""
  return functools.cache(
    lambda num_slots: generate(
      params, make_prompts(), num_slots=num_slots, **SHORT
    )
  )


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params, rows):
  hidden, _, _ = transformer.forward(config, params, rows)
  return hidden @ transformer.head(config, params)


def full_logits(params, prompts, completions):
  """The full forward's logits before each token of each completion."""
  ids = np.zeros((len(completions), WIDTH), np.int32)
  for i, (row, completion) in enumerate(zip(ids, completions, strict=True)):
    whole = [*prompts[i // GROUP].tokens, *completion.tokens]
    row[: len(whole)] = whole
  places = np.broadcast_to(np.arange(WIDTH, dtype=np.int32), ids.shape)
  logits = _logits(CONFIG, params, Tokens(ids, places, np.ones_like(ids)))
  starts = [len(prompts[i // GROUP].tokens) - 1 for i in range(len(ids))]
  return [
    np.float64(row[start : start + len(completion.tokens)])
    for row, start, completion in zip(
      np.asarray(logits), starts, completions, strict=True
    )
  ]


@jax.jit
def _uniform(draw, sample, position):
  key = sampling.row_keys(SEED, draw[None], sample[None])[0]
  key = jax.random.fold_in(jax.random.wrap_key_data(key), position)
  return jax.random.uniform(key, (2,))[1]  # the vocabulary is one block


def off_the_border(logits, draw, sample, position, token):
  """How far the uniform number is from the token's share of the sum."""
  uniform = float(_uniform(*np.int32([draw, sample, position])))
  weights = np.exp(logits - logits.max())
  upper = np.cumsum(weights) / weights.sum()
  lower = np.append(0, upper)[token]
  return max(lower - uniform, uniform - upper[token], 0)


def count_equal(params, prompts, ones, others):
  """Tokens that are equal, and all up to the first that is not, as (n, m).

  Fails unless rounding explains each difference: the random number of the token
  falls on the border between the two that were sampled.
  """
  logits = full_logits(params, prompts, ones)
  equal = total = 0
  for i, (one, other) in enumerate(zip(ones, others, strict=True)):
    size = min(len(one.tokens), len(other.tokens))
    differ = one.tokens[:size] != other.tokens[:size]
    first = int(np.argmax(differ)) if differ.any() else size
    np.testing.assert_allclose(
      one.logprobs[:first], other.logprobs[:first], atol=1e-5
    )
    equal += first
    total += first + bool(differ.any())
    if not differ.any():
      assert len(one.tokens) == len(other.tokens)
      assert one.finish == other.finish
      continue
    for token in (one.tokens[first], other.tokens[first]):
      draw = prompts[i // GROUP].draw
      assert 1e-5 > off_the_border(
        logits[i][first], draw, i % GROUP, first, token
      )
  return equal, total


@pytest.mark.slow
def test_other_slot_counts_write_the_same(params, by_slots):
  few, some, many = (by_slots(n)[0] for n in (4, 16, 64))
  counts = [
    count_equal(params, make_prompts(), some, other) for other in (few, many)
  ]
  equal, total = np.sum(counts, axis=0)
  assert total > 500 and equal / total >= 0.999


@pytest.mark.usefixtures('short_shared_prefixes')
@mostly_slow(
  ('of', 'unstacked'),
  {
    f'{name}-{kind}': (config, kind == 'unstacked')
    for name, config in (('gqa', CONFIG), ('windows', GEMMA), ('v3', V3))
    for kind in ('stacked', 'unstacked')
  },
  quick=('gqa-unstacked', 'windows-stacked'),
)
def test_a_shared_prefix_is_computed_once_and_changes_nothing(
  of, unstacked, monkeypatch
):
  config = dataclasses.replace(of, vocab_size=13)
  params = noisy(config)
  prompts = [p._replace(tokens=[9, 4, 6, 2, *p.tokens]) for p in make_prompts()]
  settings = Sampling(num_slots=5, **SHORT | {'max_prompt_len': 12})
  if not unstacked:  # as on an accelerator
    monkeypatch.setattr(decode_layout, 'convert', lambda config, params: params)
  shared_prefixes, prefill = [], engine.prefill_shared_prefix

  def counting(config, params, shared_prefix):
    shared_prefixes.append(shared_prefix.ids.tolist())
    return prefill(config, params, shared_prefix)

  def completions():
    return scheduler.generate(
      config, params, prompts, GROUP, settings, stop=STOP, seed=SEED
    )[0]

  monkeypatch.setattr(engine, 'prefill_shared_prefix', counting)
  monkeypatch.setattr(buckets, '_PREFILL_BATCH', 4)
  shared = completions()
  # Latent attention does without.
  assert shared_prefixes == ([] if config.latent else [[[9, 4, 6, 2]]])
  monkeypatch.setattr(padding, '_PREFIX_PROMPTS', 99)
  once = list(shared_prefixes)
  for one, other in zip(shared, completions(), strict=True):
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)
  assert shared_prefixes == once


@pytest.mark.slow
def test_stacked_layers_write_what_unstacked_layers_do(
  params, by_slots, monkeypatch
):
  # As on an accelerator.
  monkeypatch.setattr(decode_layout, 'convert', lambda config, params: params)
  stacked, _ = generate(params, make_prompts(), num_slots=16, **SHORT)
  for one, other in zip(stacked, by_slots(16)[0], strict=True):
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)


def test_every_token_is_the_one_its_number_falls_on(params, by_slots):
  # So a difference between runs would be told from an explained one: the
  # drawn token is on its place, and its neighbours are not.
  prompts = make_prompts()
  completions, _ = by_slots(16)
  logits = full_logits(params, prompts, completions)
  for i in range(0, 48, 6):
    for t, token in enumerate(completions[i].tokens):
      place = logits[i][t], prompts[i // GROUP].draw, i % GROUP, t
      assert off_the_border(*place, token) < 1e-5
      assert off_the_border(*place, (token + 1) % 13) > 1e-5


def test_completions_end_with_eos_or_at_the_limit(by_slots):
  completions, _ = by_slots(4)
  kinds = [c.finish for c in completions]
  assert set(kinds) == {Finish.EOS, Finish.LENGTH}
  for completion in completions:
    tokens = completion.tokens
    assert len(tokens) == len(completion.logprobs) <= 16
    assert EOS not in tokens[:-1]
    if completion.finish is Finish.EOS:
      assert tokens[-1] == EOS
    else:
      assert len(tokens) == 16 and tokens[-1] != EOS
    assert (completion.logprobs < 0).all()


def test_noise_differs_by_draw_sample_and_seed(params, by_slots):
  completions, _ = by_slots(4)
  for start in range(0, 48, GROUP):
    group = {tuple(c.tokens) for c in completions[start : start + GROUP]}
    assert len(group) > 1
  tokens = [5, 6, 7]
  prompts = [scheduler.Prompt(draw, tokens) for draw in (0, 1, 0)]
  settings = SHORT | {'num_slots': 4}
  written, _ = generate(params, prompts, **settings)
  written = [c.tokens.tolist() for c in written]
  assert written[:4] != written[4:8]
  assert written[:4] == written[8:]
  again, _ = generate(params, prompts, **settings)
  assert written == [c.tokens.tolist() for c in again]
  other, _ = generate(params, prompts, seed=4, **settings)
  assert written != [c.tokens.tolist() for c in other]


def test_slots_are_refilled_and_prompts_prefilled_once(params, monkeypatch):
  prompts = make_prompts(10)
  monkeypatch.setattr(buckets, '_PREFILL_BATCH', 4)
  prefilled, decoded, handed = [], [], {}
  prefill, decode = engine.prefill, engine.decode

  def counting_prefill(config, params, tokens, shared_prefix):
    assert shared_prefix is None  # the prompts have nothing in common
    lengths = tokens.segments.sum(axis=1)
    prefilled.extend(
      ids[:n].tolist() for ids, n in zip(tokens.ids, lengths, strict=True)
    )
    return prefill(config, params, tokens, shared_prefix)

  def counting_decode(*args, **kwargs):
    decoded.append(kwargs['num_steps'])
    return decode(*args, **kwargs)

  monkeypatch.setattr(engine, 'prefill', counting_prefill)
  monkeypatch.setattr(engine, 'decode', counting_decode)
  completions, usage = generate(
    params, prompts, num_slots=4, on_finished=handed.__setitem__, **SHORT
  )
  # Three blocks of four; what the last one lacks is padding.
  assert prefilled[:10] == [p.tokens for p in prompts]
  assert len(prefilled) == 12

  assert len(completions) == 40
  assert usage.tokens == sum(len(c.tokens) for c in completions)
  assert usage.computed == 4 * sum(decoded) >= usage.tokens
  assert usage.steps == sum(decoded)
  # Groups of four that wait for their longest member would take longer.
  calls = [-(-len(c.tokens) // 5) for c in completions]
  assert len(decoded) < sum(map(max, zip(*[iter(calls)] * 4, strict=True)))
  # Each is handed over as it ends, not in the order of the prompts.
  assert [handed[i] for i in range(40)] == completions
  assert list(handed) != sorted(handed)


@pytest.mark.parametrize('num_slots', [16, 5])
def test_what_is_finished_leaves_the_bits_of_the_rest(
  params, by_slots, num_slots, monkeypatch
):
  """A rollout that a kill cut anywhere ends as one that nothing cut."""
  ended = []
  whole, usage = generate(
    params,
    make_prompts(),
    num_slots=num_slots,
    on_finished=lambda index, _: ended.append(index),
    **SHORT,
  )
  calls = []
  decode = engine.decode
  monkeypatch.setattr(
    engine, 'decode', lambda *a, **k: calls.append(1) or decode(*a, **k)
  )
  for cut in (1, 7, 20, 33, 47):
    kept = {i: whole[i] for i in ended[:cut]}
    drawn = []
    calls.clear()
    again, same_usage = generate(
      params,
      make_prompts(),
      num_slots=num_slots,
      finished=kept,
      on_finished=lambda index, _, drawn=drawn: drawn.append(index),
      **SHORT,
    )
    assert drawn == [i for i in ended if i not in kept]
    assert all(again[i] is whole[i] for i in kept)
    for one, other in zip(again, whole, strict=True):
      np.testing.assert_array_equal(one.tokens, other.tokens)
      np.testing.assert_array_equal(one.logprobs, other.logprobs)
      assert one.finish == other.finish
    assert same_usage == usage
  assert len(calls) <= 4  # those that the last one took
  nothing = dict(enumerate(whole))
  calls.clear()
  assert generate(
    params, make_prompts(), num_slots=num_slots, finished=nothing, **SHORT
  ) == (whole, usage)
  assert not calls


@pytest.mark.slow
def test_the_batch_shrinks_with_the_rows_that_run(params, monkeypatch):
  """Lengths are geometric here: EOS comes at about the same rate always."""
  settings = dict(max_len=40, max_prompt_len=8, num_slots=64, decode_steps=2)
  shrunk, usage = generate(params, make_prompts(64), **settings)
  assert usage.tokens / usage.computed > 0.8
  monkeypatch.setattr(buckets, '_MIN_SLOTS', 64)
  whole, more = generate(params, make_prompts(64), **settings)
  assert usage.computed < 0.9 * more.computed
  same = [
    np.array_equal(a.tokens, b.tokens)
    for a, b in zip(shrunk, whole, strict=True)
  ]
  assert np.mean(same) > 0.99  # rounding may turn a token


@pytest.mark.parametrize('num_slots', [32, 64])
def test_of_geometric_lengths_most_rows_computed_are_alive(params, num_slots):
  """16 x 16 completions; `finished` plays the schedule without a model."""
  rng = np.random.default_rng(0)
  shares = []
  for _ in range(3):
    lengths = np.minimum(rng.geometric(1 / 128, 256), 1024)
    _, usage = scheduler.generate(
      dataclasses.replace(CONFIG, max_position=2048),
      params,
      make_prompts(16),
      16,
      Sampling(num_slots=num_slots, decode_steps=8, max_len=1024),
      stop=STOP,
      seed=SEED,
      finished={
        i: scheduler.Completion(
          np.zeros(n, np.int32), np.zeros(n, np.float32), Finish.EOS
        )
        for i, n in enumerate(lengths)
      },
    )
    assert usage.tokens == lengths.sum()
    shares.append(usage.tokens / usage.computed)
  print(f'{num_slots} slots, rows computed alive: {np.round(shares, 3)}')
  assert np.mean(shares) >= 0.85


@pytest.mark.parametrize('temperature', [1.0, 0.7])
def test_logprobs_are_those_of_the_learner(params, temperature, by_slots):
  prompts = make_prompts()
  if temperature == 1:
    completions, _ = by_slots(16)
  else:
    completions, _ = generate(
      params, prompts, num_slots=16, temperature=temperature, **SHORT
    )
  rows = packing.RolloutBatch(
    prompts=[p.tokens for p in prompts],
    prompt_index=np.repeat(np.arange(12), GROUP),
    completions=[c.tokens for c in completions],
    old_logprobs=[c.logprobs for c in completions],
    ref_logprobs=None,
    advantages=np.zeros(48, np.float32),
  )
  update = learner.Learner(
    CONFIG,
    Objective(),
    optax.sgd(0.1),
    micro_tokens=48 * 32,
    sampling=Sampling(temperature=temperature),
  )
  for mine, completion in zip(
    update.logprobs(params, rows), completions, strict=True
  ):
    np.testing.assert_allclose(mine, completion.logprobs, atol=1e-5)


def test_greedy_takes_the_full_forwards_best_over_a_growing_cache(params):
  prompts = make_prompts(4)
  completions, _ = generate(
    params,
    prompts,
    temperature=0.0,
    num_slots=3,
    max_len=40,
    max_prompt_len=8,
    decode_steps=7,
  )
  logits = full_logits(params, prompts, completions)
  for row, completion in zip(logits, completions, strict=True):
    best = row.max(axis=1)
    chosen = row[np.arange(len(row)), completion.tokens]
    assert (best - chosen < 1e-5).all()
    log_z = np.log(np.exp(row - best[:, None]).sum(axis=1)) + best
    np.testing.assert_allclose(completion.logprobs, chosen - log_z, atol=1e-5)
  # Past the first 32 places of the cache, where decoding is compiled anew.
  assert max(len(c.tokens) for c in completions) == 40


@pytest.mark.parametrize(
  'prompts, change, message',
  [
    ([], {}, 'no prompts to continue'),
    ([scheduler.Prompt(7, [])], {}, 'Prompt 7 is empty'),
    (
      [scheduler.Prompt(7, [2] * 9)],
      {},
      'Prompt 7 has 9 tokens, but Sampling.max_prompt_len is 8',
    ),
    (
      [scheduler.Prompt(7, [2] * 5)],
      {'max_len': 60},
      r'make 65 tokens, but the model takes 64 .*lower Sampling.max_len',
    ),
  ],
)
def test_refused_prompts(params, prompts, change, message):
  with pytest.raises(ValueError, match=message):
    generate(params, prompts, **(SHORT | change))


@pytest.mark.parametrize(
  'change, message',
  [
    ({'max_len': 0}, 'Sampling.max_len is 0'),
    ({'num_slots': 0}, 'Sampling.num_slots is 0'),
    ({'decode_steps': -1}, 'Sampling.decode_steps is -1'),
    ({'temperature': -0.5}, r'temperature is -0.5; .*\(0 is greedy\)'),
    ({'top_p': 0.0}, r'top_p is 0.0; it must be above 0 and at most 1'),
    ({'top_p': 1.5}, r'top_p is 1.5'),
  ],
)
def test_refused_settings(change, message):
  with pytest.raises(ValueError, match=message):
    Sampling(**change)


@pytest.mark.parametrize('capacity', [32, 128, 576, 4064])
def test_cache_sizes_are_few_and_not_much_too_long(capacity):
  lens = buckets.cache_buckets(capacity, 16)
  assert lens[-1] == capacity and lens[0] <= 64
  for smaller, cache_len in zip(lens, lens[1:], strict=False):
    assert cache_len <= smaller / 0.6 + 32
  assert len(lens) <= 14
  # An eighth of the slots looks at no less than all of them do at least.
  fewer = buckets.cache_buckets(capacity, 16, 1 / 8)
  assert set(fewer) <= set(lens)
  assert fewer[0] >= min(8 * lens[0], capacity)
  # Prompts have room.
  wide = buckets.cache_buckets(capacity, capacity // 2)
  assert set(wide) <= set(lens) and wide[0] >= capacity // 2


def test_batches_that_are_passed_at_once_were_compiled_ahead(
  params, monkeypatch
):
  # All but four rows end at the first look: each batch on the way is made. What
  # is finished plays the schedule without a device.
  settings = dict(max_len=64, max_prompt_len=8, num_slots=64, decode_steps=4)
  config = dataclasses.replace(CONFIG, max_position=128)
  arguments = config, params, make_prompts(16), GROUP
  sampling, end = Sampling(**settings), Finish.LENGTH
  lengths = [2] * 60 + [64] * 4
  finished = {
    i: scheduler.Completion(np.full(n, 2), np.zeros(n), end)
    for i, n in enumerate(lengths)
  }
  planned, done = set(), set()

  def noting(device, seen):
    resize = device.resize

    def resized(self, chosen, cache_len):
      rows = self.slots.token.shape[0]
      before = kv_cache.capacity(config, self.slots.cache)
      number = rows if chosen is None else chosen.size
      seen.add((rows, before, number, cache_len))
      resize(self, chosen, cache_len)

    monkeypatch.setattr(device, 'resize', resized)

  noting(programs.LoweringDevice, planned)
  programs.lower_all(*arguments, sampling, (EOS,))
  monkeypatch.undo()
  noting(Device, done)
  scheduler.generate(
    *arguments, sampling, stop=STOP, seed=SEED, finished=finished
  )
  assert {number for *_, number, _ in done} >= {48, 40, 32, 24, 16, 8, 4}
  assert done <= planned


@pytest.mark.parametrize(
  'num_slots, batches',
  [
    (64, [48, 40, 32, 24, 16, 8, 4]),
    (40, [30, 25, 20, 15, 10, 5]),
    (12, [7]),
    (6, []),
    (1, []),
  ],
)
def test_smaller_batches_are_few(num_slots, batches):
  assert buckets.batch_buckets(num_slots) == batches


def test_windows_reach_over_the_calls_of_decoding():
  """A window of three tokens, five a call: log-probs of the full forward."""
  config = dataclasses.replace(GEMMA, vocab_size=13)
  params = noisy(config)
  prompts = make_prompts(4)
  completions, _ = scheduler.generate(
    config,
    params,
    prompts,
    1,
    Sampling(num_slots=3, **SHORT),
    stop=STOP,
    seed=SEED,
  )
  assert max(len(c.tokens) for c in completions) > 5
  for prompt, completion in zip(prompts, completions, strict=True):
    whole = np.array([*prompt.tokens, *completion.tokens], np.int32)
    ids = np.zeros((1, WIDTH), np.int32)
    ids[0, : whole.size] = whole
    places = np.arange(WIDTH, dtype=np.int32)[None]
    logits = _logits(config, params, Tokens(ids, places, np.ones_like(ids)))
    before = np.arange(len(prompt.tokens), whole.size) - 1
    logprobs = jax.nn.log_softmax(logits[0, before])
    np.testing.assert_allclose(
      completion.logprobs,
      np.asarray(logprobs)[np.arange(before.size), completion.tokens],
      atol=1e-5,
    )


def make_scheduler(params, num_slots=4, shared_prefix=(), **settings):
  return scheduler.Scheduler(
    CONFIG,
    params,
    Sampling(num_slots=num_slots, **SHORT | settings),
    stop=STOP,
    seed=SEED,
    shared_prefix=shared_prefix,
    prefill_batch=12,
  )


def submit(queue, prompts, indices):
  for i in indices:
    queue.submit(prompts[i // GROUP], i % GROUP, i)


def test_requests_that_come_later_get_the_tokens_they_get_alone(
  params, by_slots, monkeypatch
):
  """The second half comes when the first has nearly left the batch."""
  rows, decode = [], engine.decode

  def counting(params, slots, *args, **kwargs):
    rows.append(slots.token.shape[0])
    return decode(params, slots, *args, **kwargs)

  monkeypatch.setattr(engine, 'decode', counting)
  prompts, queue = make_prompts(), make_scheduler(params, 16)
  submit(queue, prompts, range(24))
  done = {}
  while queue.num_unfinished > 3:
    done |= queue.step()
  assert rows[-1] < 16
  rows.clear()
  submit(queue, prompts, range(24, 48))
  done |= queue.drain()
  assert rows[0] == 16 and rows[-1] < 16  # it grew, and shrank again
  found = [done[i] for i in range(48)]
  equal, total = count_equal(params, prompts, by_slots(16)[0], found)
  assert total > 250 and equal / total >= 0.999
  assert queue.usage.tokens == sum(len(c.tokens) for c in found)
  # Alone, in a batch of the same size, there is no rounding either.
  for i in (0, 21, 22, 47):
    alone = make_scheduler(params, 4)
    submit(alone, prompts, [i])
    ((index, completion),) = alone.drain()
    assert index == i
    other = by_slots(4)[0][i]
    np.testing.assert_array_equal(completion.tokens, other.tokens)


def test_completions_are_handed_back_once_in_the_order_of_slots(params):
  queue = make_scheduler(params)
  assert queue.step() == [] and list(queue.drain()) == []
  assert queue.num_unfinished == 0 and queue.usage == (0, 0, 0)
  # A replay takes a round for each five tokens, like any other.
  for name, length in {'a': 11, 'b': 3, 'c': 16, 'd': 5, 'e': 1}.items():
    replay = scheduler.Completion(
      np.full(length, 2), np.zeros(length), Finish.LENGTH
    )
    queue.submit(scheduler.Prompt(0, [2, 3]), 0, name, replay)
  assert queue.num_unfinished == 5
  rounds = []
  while queue.num_unfinished:
    rounds.append([name for name, _ in queue.step()])
  # The fifth one gets the slot of the second.
  assert rounds == [['b', 'd'], ['e'], ['a'], ['c']]
  assert queue.usage == (36, 4 * 4 * 5, 4 * 5)


def test_a_drained_scheduler_takes_the_next_turn_of_an_episode(params):
  """The answer of the first turn is in the prompt of the second."""
  prefix, first = [9, 4, 6, 2], scheduler.Prompt(100, [9, 4, 6, 2, 5])

  def episode(**settings):
    queue, turns = make_scheduler(params, max_prompt_len=24, **settings), {}
    queue.submit(first, 0, 'first')
    for name, completion in queue.drain():
      turns[name] = completion
      if name == 'first':
        tokens = [*first.tokens, *completion.tokens.tolist(), 7]
        queue.submit(scheduler.Prompt(101, tokens), 0, 'second')
    assert queue.num_unfinished == 0
    queue.submit(first, 0, 'first')  # the id is free again
    ((_, again),) = queue.drain()
    np.testing.assert_array_equal(again.tokens, turns['first'].tokens)
    return turns

  shared, plain = episode(shared_prefix=prefix), episode()
  assert list(shared) == ['first', 'second']
  for name, completion in shared.items():
    np.testing.assert_array_equal(completion.tokens, plain[name].tokens)
    np.testing.assert_allclose(
      completion.logprobs, plain[name].logprobs, atol=1e-5
    )


@pytest.mark.parametrize(
  'tokens, name, message',
  [
    ([], 'new', 'Prompt 7 is empty'),
    ([2] * 9, 'new', 'has 9 tokens, but Sampling.max_prompt_len is 8'),
    ([3, 2, 2], 'new', 'Prompt 7 does not begin with the 2 tokens that the'),
    ([2, 2], 'new', 'does not begin with the 2 tokens .* one of its own'),
    ([2, 2, 3], 'old', "Request 'old' has not ended yet"),
  ],
)
def test_a_request_that_never_fits_is_refused(params, tokens, name, message):
  queue = make_scheduler(params, shared_prefix=[2, 2])
  queue.submit(scheduler.Prompt(0, [2, 2, 4]), 0, 'old')
  with pytest.raises(ValueError, match=message):
    queue.submit(scheduler.Prompt(7, tokens), 0, name)
  assert queue.num_unfinished == 1  # the others are as they were


def test_what_ended_is_fetched_and_no_other_slots(params, monkeypatch):
  moved, fetch = [], hosts.fetch

  def counting(tree):
    moved.append(sum(x.nbytes for x in jax.tree.leaves(tree)))
    return fetch(tree)

  monkeypatch.setattr(hosts, 'fetch', counting)
  config = dataclasses.replace(CONFIG, max_position=1024)
  settings = Sampling(
    max_len=512, max_prompt_len=8, num_slots=32, decode_steps=16
  )
  completions, _ = scheduler.generate(
    config, params, make_prompts(16), 4, settings, stop=STOP, seed=SEED
  )
  size = sum(c.tokens.nbytes + c.logprobs.nbytes for c in completions)
  # All slots would be more than that at once: [32, 512] tokens and log-probs.
  assert 10 * size < 32 * 512 * 8
  assert sum(moved) < 10 * size
