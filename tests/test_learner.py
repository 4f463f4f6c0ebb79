"""The update against the plain formula, a row at a time."""

import functools

import jax
import numpy as np
import optax
import pytest
from helpers import (
  EOS,
  GROUP,
  GRPO,
  NO_KL,
  NUM_PROMPTS,
  NUM_ROWS,
  SHARED_PREFIX,
  SMALL,
  distance,
  make_rows,
  mostly_slow,
  noisy,
)
from jax import numpy as jnp

from rlzero.models import padding, transformer
from rlzero.models.config import ModelConfig
from rlzero.rl import learner
from rlzero.rl.objective import Objective
from rlzero.rl.objectives import advantages
from rlzero.rollout import scheduler
from rlzero.rollout.sampling import Sampling, StopCriteria
from rlzero.train import optim, packing
from rlzero.types import Tokens

MICRO = 24  # five microbatches, fewer without KL
DR_GRPO = Objective(
  kl_coef=0.05,
  clip_low=0.1,
  clip_high=0.3,
  scale='none',
  aggregation='constant',
)
# The sampling that goes with it in the tests; the others have the default.
SAMPLING = {DR_GRPO: Sampling(temperature=0.7, max_len=20)}


pytestmark = [
  pytest.mark.model,
  pytest.mark.usefixtures('quick_compilation'),
]


@pytest.fixture(scope='module')
def params():
  return noisy(SMALL)


@functools.cache
def make_learner(objective, micro_tokens=MICRO, rate=0.05, sampling=None):
  return learner.Learner(
    SMALL,
    objective,
    optax.sgd(rate),
    micro_tokens,
    sampling=sampling or SAMPLING.get(objective, Sampling()),
  )


def plain_logprobs(params, temperature, ids, start, size):
  """Of the tokens ids[start : start + size], padded; from one whole row."""
  places = jnp.arange(ids.shape[0])[None]
  rows = Tokens(ids[None], places, jnp.ones_like(places))
  hidden, _, _ = transformer.forward(SMALL, params, rows)
  logits = hidden[0] @ transformer.head(SMALL, params) / temperature
  logprobs = jax.nn.log_softmax(logits)
  at = start + jnp.arange(9)
  real = jnp.arange(9) < size
  return jnp.where(real, logprobs[at - 1, ids[at]], 0.0), real


@functools.cache
def plain(objective):
  """The formula of one row as the papers write it, with its gradient."""
  o, s = objective, SAMPLING.get(objective, Sampling())

  def gain(params, ids, start, size, old, ref, advantage, mask):
    logprobs, real = plain_logprobs(params, s.temperature, ids, start, size)
    real &= mask
    ratio = jnp.exp(logprobs - old)
    surrogate = jnp.minimum(
      ratio * advantage,
      jnp.clip(ratio, 1 - o.clip_low, 1 + o.clip_high) * advantage,
    )
    kl = jnp.exp(ref - logprobs) - (ref - logprobs) - 1
    count = jnp.sum(real)
    divisor = count if o.aggregation == 'sequence_mean' else s.max_len
    terms = jnp.where(real, surrogate - o.kl_coef * kl, 0)
    return -jnp.sum(terms) / divisor, jnp.sum(jnp.where(real, kl, 0))

  return jax.jit(jax.value_and_grad(gain, has_aux=True))


def whole_row(rows, i):
  """Prompt and completion of row i in one padded row, and where it starts."""
  prompt = rows.prompts[rows.prompt_index[i]]
  ids = np.zeros(16, np.int32)
  whole = [*prompt, *rows.completions[i]]
  ids[: len(whole)] = whole
  return ids, len(prompt), len(rows.completions[i])


def padded(values):
  return np.pad(values, (0, 9 - len(values)))


def plain_gradient(objective, params, rows):
  """Sums of loss, KL and gradient over every row, none skipped."""
  loss = kl = 0.0
  grads = jax.tree.map(np.zeros_like, params)
  ref_logprobs = rows.ref_logprobs or rows.old_logprobs
  for i in range(len(rows.completions)):
    (one, more), new = plain(objective)(
      params,
      *whole_row(rows, i),
      padded(rows.old_logprobs[i]),
      padded(ref_logprobs[i]),
      rows.advantages[i],
      padded(rows.masks[i] if rows.masks else np.ones(9, bool)),
    )
    loss, kl = loss + one, kl + more
    grads = jax.tree.map(np.add, grads, new)
  return grads, loss, kl


@pytest.mark.slow
@pytest.mark.parametrize('micro_tokens', [36, 18, 10])
def test_microbatches_change_nothing(params, micro_tokens):
  rows = make_rows(GRPO)
  whole, totals = make_learner(GRPO, 1000).gradient(params, rows)
  parts, same = make_learner(GRPO, micro_tokens).gradient(params, rows)
  assert distance(parts, whole) < 1e-6
  # Padding is all that the cut changes.
  assert same.padded_tokens >= totals.padded_tokens
  same = same._replace(padded_tokens=totals.padded_tokens)
  np.testing.assert_allclose(same[:-1], totals[:-1], rtol=1e-5)


@pytest.mark.slow
def test_a_group_may_be_cut_into_several_microbatches(params):
  short = Sampling(max_len=24)
  rows = make_rows(GRPO, shortest=12, longest=24)
  everything = np.arange(NUM_ROWS)
  parts = [
    {rows.prompt_index[place.completion] for place in places}
    for places, _ in packing.microbatches(rows, everything, 48, 24)
  ]
  for group in range(NUM_PROMPTS):
    assert sum(group in part for part in parts) > 1
  whole, totals = make_learner(GRPO, 1000, sampling=short).gradient(
    params, rows
  )
  cut, same = make_learner(GRPO, 48, sampling=short).gradient(params, rows)
  assert distance(cut, whole) < 1e-5  # rounding of longer sums
  np.testing.assert_allclose(same.objective, totals.objective, rtol=1e-5)
  np.testing.assert_allclose(same.kl, totals.kl, rtol=1e-5)


@mostly_slow(
  ('objective', 'shared_prefix'),
  {
    'grpo-whole': (GRPO, ()),
    'grpo-shared': (GRPO, SHARED_PREFIX),
    'no-kl-whole': (NO_KL, ()),
    'no-kl-shared': (NO_KL, SHARED_PREFIX),
    'dr-grpo-whole': (DR_GRPO, ()),
    'dr-grpo-shared': (DR_GRPO, SHARED_PREFIX),
  },
  quick=('grpo-shared', 'no-kl-whole', 'dr-grpo-whole'),
)
def test_gradient_equals_the_plain_formula(
  params, objective, shared_prefix, request
):
  rows = make_rows(objective, shared_prefix=shared_prefix)
  if shared_prefix:
    request.getfixturevalue('short_shared_prefixes')
  assert padding.shared_prefix_len(rows.prompts) == len(shared_prefix)
  assert (rows.advantages == 0).sum() == GROUP  # skipped without KL
  grads, totals = make_learner(objective).gradient(params, rows)
  expected, loss, kl = plain_gradient(objective, params, rows)
  for (path, one), other in zip(
    jax.tree_util.tree_leaves_with_path(grads),
    jax.tree.leaves(expected),
    strict=True,
  ):
    name = jax.tree_util.keystr(path)
    assert distance(one, other) < 1e-5, name
  np.testing.assert_allclose(-totals.objective, loss, rtol=1e-5)
  if objective.kl_coef:
    np.testing.assert_allclose(totals.kl, kl, rtol=1e-5)
    assert totals.tokens == sum(map(len, rows.completions))
  # The clip is at work, or half of the formula would not be tested.
  assert 0.1 < totals.clipped / totals.tokens < 0.9


@pytest.mark.parametrize('objective', [GRPO, DR_GRPO], ids=['grpo', 'dr-grpo'])
def test_tokens_outside_the_mask_are_context_alone(params, objective):
  rows = make_rows(objective, shortest=3)
  rng = np.random.default_rng(5)
  masks = [rng.random(len(c)) < 0.6 for c in rows.completions]
  for mask in masks:
    mask[0], mask[-1] = False, True  # none is left without a token
  masks[7] = None  # all of its tokens count

  def poisoned(values):
    return [
      v if m is None else np.where(m, v, np.float32('nan'))
      for v, m in zip(values, masks, strict=True)
    ]

  whole = [
    np.ones(len(c), bool) if m is None else m
    for c, m in zip(rows.completions, masks, strict=True)
  ]
  expected, loss, kl = plain_gradient(
    objective, params, rows._replace(masks=whole)
  )
  # No one has to know the log-probs of tokens that another program wrote.
  grads, totals = make_learner(objective).gradient(
    params,
    rows._replace(
      masks=masks,
      old_logprobs=poisoned(rows.old_logprobs),
      ref_logprobs=poisoned(rows.ref_logprobs),
    ),
  )
  assert distance(grads, expected) < 1e-5
  np.testing.assert_allclose(-totals.objective, loss, rtol=1e-5)
  np.testing.assert_allclose(totals.kl, kl, rtol=1e-5)
  assert totals.tokens == sum(mask.sum() for mask in whole)
  # And those who leave the mask out get something else.
  other, _ = make_learner(objective).gradient(params, rows)
  assert distance(other, expected) > 0.01


def test_update_divides_by_all_rows_once(params):
  rows = make_rows(NO_KL)
  update = make_learner(NO_KL)
  expected, loss, _ = plain_gradient(NO_KL, params, rows)
  state, metrics = update.update(
    update.init(jax.tree.map(jnp.array, params)), rows
  )
  moved = jax.tree.map(lambda new, old: new - old, state.params, params)
  step = jax.tree.map(lambda g: -0.05 * g / NUM_ROWS, expected)
  assert distance(moved, step) < 1e-3  # of a difference of float32 numbers
  np.testing.assert_allclose(metrics['policy/loss'], loss / NUM_ROWS, rtol=1e-4)
  np.testing.assert_allclose(
    metrics['policy/grad_norm'],
    np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(step))) / 0.05,
    rtol=1e-5,
  )


@pytest.mark.usefixtures('short_shared_prefixes')
def test_logprobs_equal_a_direct_forward(params):
  rows = make_rows(DR_GRPO, shared_prefix=SHARED_PREFIX)
  direct = jax.jit(plain_logprobs, static_argnums=1)
  for i, row in enumerate(make_learner(DR_GRPO).logprobs(params, rows)):
    expected, _ = direct(params, 0.7, *whole_row(rows, i))
    assert len(row) == len(rows.completions[i])
    np.testing.assert_allclose(row, expected[: len(row)], atol=1e-5)


def test_stopping_gets_credit(params):
  # Two completions of one token each: stopping at once was right.
  rows = make_rows(NO_KL)
  update = make_learner(NO_KL)
  completions = [np.array([EOS]), np.array([5])] * 6
  rows = rows._replace(
    completions=completions,
    old_logprobs=[np.float32([-2.5])] * 12,
    advantages=np.float32([1, -1] * 6),
  )
  before = update.logprobs(params, rows)
  rows = rows._replace(old_logprobs=before)
  state, _ = update.update(update.init(jax.tree.map(jnp.array, params)), rows)
  after = update.logprobs(state.params, rows)
  for i in range(0, 12, 2):
    assert after[i][0] > before[i][0] + 0.01
    assert after[i + 1][0] < before[i + 1][0]


@pytest.mark.parametrize('number', [np.inf, np.nan])
def test_a_loss_that_is_not_finite_changes_nothing(params, number):
  update = learner.Learner(
    SMALL, NO_KL, optim.Optimizer(learning_rate=0.1).transform(10), MICRO
  )
  rows = make_rows(NO_KL)
  advantages = rows.advantages.copy()
  advantages[0] = number
  before = jax.tree.map(np.array, update.init(params))
  state = jax.tree.map(jnp.array, before)
  state, metrics = update.update(state, rows._replace(advantages=advantages))
  jax.tree.map(np.testing.assert_array_equal, state, before)
  assert not np.isfinite(metrics['policy/loss'])
  # And the next sound rows train it.
  state, metrics = update.update(state, rows)
  assert np.isfinite(list(metrics.values())).all()
  assert distance(state.params, before.params) > 0.01


def test_rows_without_any_signal_are_no_error(params):
  update = make_learner(NO_KL)
  rows = make_rows(NO_KL)._replace(advantages=np.zeros(NUM_ROWS, np.float32))
  state, metrics = update.update(
    update.init(jax.tree.map(jnp.array, params)), rows
  )
  jax.tree.map(np.testing.assert_array_equal, state.params, params)
  # A mean over no token is no number; 0 would look like collapsed entropy.
  means = 'kl', 'entropy', 'clip_fraction'
  means += 'old_mismatch_mean', 'old_mismatch_kl'
  for name in means:
    assert np.isnan(metrics.pop(f'policy/{name}'))
  assert set(metrics.values()) == {0.0}


@pytest.mark.slow
def test_learns_to_stop_after_three_tokens():
  """Every part together: a model of noise, a reward that only EOS earns."""
  config = ModelConfig(
    vocab_size=8,
    num_layers=1,
    width=16,
    mlp_width=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
  )
  params = jax.jit(transformer.init, static_argnums=0)(
    config, jax.random.key(0)
  )
  update = learner.Learner(
    config,
    NO_KL,
    optim.Optimizer(learning_rate=0.02, warmup_steps=2).transform(40),
    micro_tokens=64 * 32,
  )
  state = update.init(params)
  settings = Sampling(max_len=8, max_prompt_len=8, num_slots=64, decode_steps=8)

  def rollout(params, step):
    prompts = [scheduler.Prompt(8 * step + i, [2, 3]) for i in range(8)]
    completions, _ = scheduler.generate(
      config, params, prompts, 8, settings, stop=StopCriteria((EOS,)), seed=0
    )
    rewards = np.float32([len(c.tokens) == 3 for c in completions])
    found = advantages.of_rewards(jnp.asarray(rewards.reshape(8, 8)))
    return rewards.mean(), packing.RolloutBatch(
      prompts=[p.tokens for p in prompts],
      prompt_index=np.repeat(np.arange(8), 8),
      completions=[c.tokens for c in completions],
      old_logprobs=[c.logprobs for c in completions],
      ref_logprobs=None,
      advantages=np.asarray(found).reshape(-1),
    )

  means = []
  first = jax.tree.map(np.array, params)
  for step in range(40):
    mean, rows = rollout(state.params, step)
    means.append(mean)
    if step == 3:
      # The sampler's log-probs are those of the policy that it was given, and
      # no longer those of the initial one.
      current = update.logprobs(state.params, rows)
      initial = update.logprobs(first, rows)
      for old, same, other in zip(
        rows.old_logprobs, current, initial, strict=True
      ):
        np.testing.assert_allclose(old, same, atol=1e-5)
        assert np.abs(old - other).max() > 1e-3
    state, metrics = update.update(state, rows)
    if rows.advantages.any():  # else no row is computed, and nothing compared
      assert metrics['policy/old_mismatch_mean'] < 1e-6
  assert means[0] < 0.3
  assert np.mean(means[-5:]) > 0.9
  # 2 sizes of rows, 4 of prompts.
  assert update.programs.accumulate._cache_size() <= 8
