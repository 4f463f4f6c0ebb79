"""Requests with settings of their own, in one batch, as they come and go."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import SMALL, noisy
from jax import numpy as jnp
from scipy import special

from rlzero.models import padding, transformer
from rlzero.rollout import buckets, continuous, row_decoding, scheduler
from rlzero.rollout.continuous import Options
from rlzero.rollout.sampling import Finish, Sampling, StopCriteria
from rlzero.rollout.scheduler import Prompt

pytestmark = [
  pytest.mark.model,
  pytest.mark.usefixtures('quick_compilation'),
]

CONFIG = dataclasses.replace(SMALL, max_position=1024)
STOP = StopCriteria((1,))
CONTEXT = 300  # two sizes of cache, two widths of prompts


@pytest.fixture(scope='module')
def params():
  return noisy(CONFIG)


def make(params, num_slots=5):
  return continuous.ContinuousScheduler(
    CONFIG,
    params,
    num_slots=num_slots,
    context=CONTEXT,
    decode_steps=4,
    stop=STOP,
  )


def make_requests(count=14):
  rng = np.random.default_rng(0)
  kinds = (1.0, 1.0), (0.0, 1.0), (0.7, 0.8)
  found = []
  for i in range(count):
    tokens = rng.integers(2, 13, rng.integers(1, 20)).tolist()
    options = Options(int(rng.integers(1, 40)), *kinds[i % len(kinds)])
    found.append((Prompt(100 + i, tokens), i % 3, i, options))
  # One whose prompt and completion need the larger sizes.
  tokens = rng.integers(2, 13, 260).tolist()
  found.append((Prompt(7, tokens), 0, count, Options(40, 1.0, 1.0)))
  return found


def run(queue, requests):
  """Tokens, log-probs and finish of each, in the order they are given."""
  waiting, found = list(requests), {r[2]: ([], [], None) for r in requests}
  while waiting or queue.num_unfinished:
    while waiting and queue.num_free:
      queue.add(*waiting.pop(0))
    for number, piece in queue.advance():
      tokens, logprobs, _ = found[number]
      assert len(piece.tokens) <= 4
      tokens += piece.tokens.tolist()
      logprobs += piece.logprobs.tolist()
      found[number] = tokens, logprobs, piece.finish
  return found


@pytest.fixture(scope='module')
def together(params):
  return run(make(params), make_requests())


def test_each_row_gets_what_its_settings_say(params, together):
  by_kind = {}
  for request in make_requests()[:-1]:  # the longest would cost compilations
    by_kind.setdefault(request[3][1:3], []).append(request)
  assert len(by_kind) == 3
  for (temperature, top_p), requests in by_kind.items():
    completions, _ = scheduler.generate(
      CONFIG,
      params,
      [request[0] for request in requests],
      3,
      Sampling(
        max_len=40,
        temperature=temperature,
        top_p=top_p,
        num_slots=3,
        decode_steps=4,
      ),
      stop=STOP,
      seed=0,
    )
    for place, (_, sample, number, options) in enumerate(requests):
      expected = completions[3 * place + sample]
      tokens, logprobs, finish = together[number]
      assert tokens == expected.tokens[: options.max_len].tolist()
      np.testing.assert_allclose(
        logprobs, expected.logprobs[: options.max_len], atol=1e-4
      )
      cut = options.max_len < len(expected.tokens)
      assert finish is (Finish.LENGTH if cut else expected.finish)
  assert {finish for *_, finish in together.values()} == set(Finish)


def test_a_request_gets_the_same_bits_alone(params, together):
  queue = make(params)
  for request in make_requests():
    assert run(queue, [request])[request[2]] == together[request[2]]


def logits_of(params, tokens):
  """Logits of what follows each token, [T, V], by one pass over all."""
  rows = padding.pad([tokens], 1, len(tokens))
  params = jax.tree.map(jnp.asarray, params)
  hidden, _, _ = transformer.forward(CONFIG, params, rows)
  return np.asarray(
    transformer.next_logits(CONFIG, params, hidden[0]), np.float64
  )


def test_the_most_likely_tokens_are_those_of_a_log_softmax(params, together):
  """Of requests that ask, while others that do not run beside them."""
  wanted = {0: 20, 1: 5, 2: 1, 4: 3, 7: 13}  # the vocabulary has 13 tokens
  queue, tops = make(params), {}
  waiting = [
    (*r[:3], r[3]._replace(num_top=wanted.get(r[2], 0)))
    for r in make_requests()[:-1]
  ]
  requests = list(waiting)
  while waiting or queue.num_unfinished:
    while waiting and queue.num_free:
      queue.add(*waiting.pop(0))
    for number, piece in queue.advance():
      assert (piece.top is not None) == (number in wanted)
      if piece.top is not None:
        assert len(piece.top.ids) == len(piece.tokens)
        tops.setdefault(number, []).append((piece, piece.top))
  for prompt, _, number, options in requests:
    if number not in wanted:
      continue
    tokens, logprobs, ids, values = (
      np.concatenate(parts)
      for parts in zip(
        *((p.tokens, p.logprobs, *top) for p, top in tops[number]), strict=True
      )
    )
    # That it asks changes no token.
    assert tokens.tolist() == together[number][0]
    assert logprobs.tolist() == together[number][1]
    before = prompt.tokens + tokens.tolist()[:-1]
    logits = logits_of(params, before)[len(prompt.tokens) - 1 :]
    expected = special.log_softmax(
      logits / (options.temperature or 1.0), axis=-1
    )
    count = min(wanted[number], CONFIG.vocab_size)
    order = np.argsort(-expected, axis=-1)[:, :count]
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_allclose(
      values, np.take_along_axis(expected, order, axis=-1), atol=1e-4
    )
    if options.temperature == 0:
      np.testing.assert_array_equal(ids[:, 0], tokens)
      np.testing.assert_allclose(values[:, 0], logprobs, atol=1e-5)
  queue = make(params)
  with pytest.raises(ValueError, match='asks for the 21 most likely tokens'):
    queue.add(Prompt(0, [2]), 0, 0, Options(1, num_top=21))


def test_one_that_is_given_up_frees_its_slot_and_changes_nothing(
  params, together
):
  queue = make(params, num_slots=5)
  first, *others = [r for r in make_requests() if r[3].max_len > 8]
  queue.add(*first)
  with pytest.raises(ValueError, match='waits for its first round'):
    queue.cancel(first[2])
  for request in others[:4]:
    queue.add(*request)
  assert queue.num_free == 0
  with pytest.raises(ValueError, match='All slots are taken'):
    queue.add(*others[4])
  before = dict(queue.advance())
  if before[first[2]].finish is None:
    queue.cancel(first[2])
  queue.cancel(first[2])  # once more does no harm
  queue.cancel(12345)
  assert queue.num_free >= 1
  queue.add(*others[4])
  heard = {}
  while queue.num_unfinished:
    for number, piece in queue.advance():
      assert number != first[2]
      heard.setdefault(number, []).extend(piece.tokens.tolist())
  for *_, number, _ in others[:5]:
    start = before[number].tokens.tolist() if number in before else []
    assert start + heard.get(number, []) == together[number][0]


def test_compiling_ahead_leaves_nothing_to_compile(params, monkeypatch):
  queue = make(params)
  queue.compile_ahead()
  assert queue.num_free == 5 and queue.num_unfinished == 0
  compiled = row_decoding.decode._cache_size()
  run(queue, make_requests())
  assert row_decoding.decode._cache_size() == compiled


@pytest.mark.parametrize('context', [2, 24, 60, 100, 5000])
def test_no_prompt_is_padded_beyond_the_cache(context):
  settings = Sampling(num_slots=2, decode_steps=4)
  sizes = buckets.server_sizes(settings, context)
  *shorter, widest = sizes.prompt_widths
  assert all(2 * width <= widest for width in shorter)
  assert context <= widest == sizes.cache_len == sizes.cache_lens(2)[-1]


@pytest.mark.parametrize(
  'tokens, max_len, message',
  [
    ([], 1, 'A prompt is empty'),
    ([2] * 290, 11, 'longer than the context of 300'),
  ],
)
def test_what_never_fits_is_refused(params, tokens, max_len, message):
  queue = make(params)
  with pytest.raises(ValueError, match=message):
    queue.add(Prompt(0, tokens), 0, 0, Options(max_len))
  assert queue.num_free == 5
