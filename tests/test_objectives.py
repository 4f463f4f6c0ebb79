"""Each choice of an objective: values by hand, slopes by finite differences."""

import math
import typing

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from rlzero import grpo
from rlzero.rl.objective import Objective
from rlzero.rl.objectives import (
  advantages,
  aggregation,
  behaviour,
  describe,
  gates,
  kl,
  ratios,
)
from rlzero.runtime import functions, saved_config
from rlzero.train import packing

pytestmark = [
  pytest.mark.model,
  pytest.mark.usefixtures('quick_compilation'),
]

# Rewards 1, 0, 0, 1: mean 1/2, deviations +-1/2, standard deviation 1/2.
# Rewards 2, 0, 0, 0: mean 1/2, variance (9 + 3) / 16 = 3/4.
REWARDS = np.float32([[1, 0, 0, 1], [2, 0, 0, 0]])
STD = math.sqrt(3) / 2
CENTRED = [[0.5, -0.5, -0.5, 0.5], [1.5, -0.5, -0.5, -0.5]]


@pytest.mark.parametrize(
  ('baseline', 'scale', 'expected'),
  [
    (
      'group_mean',
      'group_std',
      [[1, -1, -1, 1], [1.5 / STD, -0.5 / STD, -0.5 / STD, -0.5 / STD]],
    ),
    ('group_mean', 'none', CENTRED),
    # Of the eight centred rewards: mean 0, mean square (4/4 + 9/4 + 3/4) / 8.
    ('group_mean', 'batch_std', np.array(CENTRED) / math.sqrt(0.5)),
    ('group_mean', 'mean', [[1, -1, -1, 1], [3, -1, -1, -1]]),
    ('group_mean', 'signal_share', CENTRED),
    # The mean of the three others.
    (
      'leave_one_out',
      'none',
      [[2 / 3, -2 / 3, -2 / 3, 2 / 3], [2, -2 / 3, -2 / 3, -2 / 3]],
    ),
    ('batch_mean', 'none', REWARDS - 0.5),
    ('none', 'none', REWARDS),
    # About their mean of 1/2: (4/4 + 9/4 + 3/4) / 8, too.
    ('none', 'batch_std', REWARDS / math.sqrt(0.5)),
  ],
)
def test_advantages_by_hand(baseline, scale, expected):
  found = advantages.of_rewards(jnp.asarray(REWARDS), baseline, scale)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_groups_without_a_signal_do_not_dilute_the_mean():
  rewards = np.float32([[1, 0], [1, 1], [0, 0], [0, 0]])
  found = advantages.of_rewards(rewards, 'group_mean', 'signal_share')
  # One group of four has a signal: alpha = 4.
  np.testing.assert_allclose(found, [[2, -2], [0, 0], [0, 0], [0, 0]])
  # And with none, nothing is divided by 0.
  found = advantages.of_rewards(rewards[1:], 'group_mean', 'signal_share')
  np.testing.assert_array_equal(found, np.zeros((3, 2)))


def test_a_group_that_earned_nothing_has_no_advantage():
  found = advantages.of_rewards(np.float32([[0, 0, 0]]), 'none', 'mean')
  np.testing.assert_array_equal(found, [[0, 0, 0]])


@pytest.mark.parametrize('scale', list(advantages.SCALES))
@pytest.mark.parametrize('baseline', ['group_mean', 'leave_one_out'])
def test_equal_rewards_are_no_signal(baseline, scale):
  # The float32 mean of equal rewards is not always that reward.
  values = np.float32([0, 1, 0.1, 0.3, 1.1, 2.7, -0.7, 1e6 / 3, 1e-7])
  for size in (2, 3, 7, 11, 16):
    rewards = np.repeat(values[:, None], size, axis=1)
    found = advantages.of_rewards(rewards, baseline, scale)
    np.testing.assert_array_equal(found, np.zeros_like(rewards))


def test_equal_rewards_of_a_rollout_are_no_signal():
  rewards = np.full((3, 5), 0.1, np.float32)
  for scale in ('none', 'batch_std', 'group_std'):
    found = advantages.of_rewards(rewards, 'batch_mean', scale)
    np.testing.assert_array_equal(found, np.zeros_like(rewards))


@pytest.mark.parametrize('unit', [1e-7, 1.0, 1e6])
def test_a_signal_is_one_whatever_its_unit(unit):
  rewards = np.float32(unit) * np.float32([[1, 0, 0, 1], [3, 3, 3, 3]])
  np.testing.assert_allclose(
    advantages.of_rewards(rewards), [[1, -1, -1, 1], [0, 0, 0, 0]], rtol=1e-5
  )
  # A sum in another order differs in its last bit: not a signal.
  rewards[1, 0] = np.nextafter(rewards[1, 0], np.float32(np.inf))
  np.testing.assert_array_equal(advantages.of_rewards(rewards)[1], 0)


@pytest.mark.parametrize('scale', ['group_std', 'mean', 'none'])
@pytest.mark.parametrize('baseline', ['group_mean', 'leave_one_out', 'none'])
def test_what_nothing_judges_is_no_part_of_its_group(baseline, scale):
  nan = np.nan
  rewards = np.float32(
    [[1, nan, 0, 3], [nan, nan, nan, nan], [2, 0, 0, 1], [nan, nan, 5, nan]]
  )
  found = np.asarray(advantages.of_rewards(rewards, baseline, scale))
  for values, row in zip(found, rewards, strict=True):
    judged = ~np.isnan(row)
    np.testing.assert_array_equal(values[~judged], 0)
    if judged.sum() > 1:
      alone = advantages.of_rewards(row[None, judged], baseline, scale)
      np.testing.assert_allclose(values[judged], alone[0], rtol=1e-6)
  if baseline != 'none':
    assert found[3, 2] == 0  # alone in its group


@pytest.mark.parametrize('scale', list(advantages.SCALES))
def test_what_nothing_judges_is_no_part_of_the_rollout(scale):
  rewards = np.float32([[1, np.nan, 0], [2, 4, np.nan], [np.nan] * 3])
  found = np.asarray(advantages.of_rewards(rewards, 'batch_mean', scale))
  judged = ~np.isnan(rewards)
  np.testing.assert_array_equal(found[~judged], 0)
  if scale in ('none', 'batch_std'):
    alone = advantages.of_rewards(rewards[judged][None], 'batch_mean', scale)
    np.testing.assert_allclose(found[judged], alone[0], rtol=1e-6)
  assert np.isfinite(found).all() and found.any()


CLIP = {'clip_low': 0.1, 'clip_high': 0.3}


@pytest.mark.parametrize(
  ('settings', 'ratio', 'advantage', 'gain', 'slope', 'limited'),
  [
    # Slopes are in the log-ratio: the ratio times those in the ratio.
    ({}, 1.1, 2.0, 2.2, 2.2, False),  # inside
    ({}, 1.5, 2.0, 2.6, 0.0, True),  # good and likelier: 1.3 * 2, no push
    ({}, 1.5, -2.0, -3.0, -3.0, False),  # bad and likelier: not clipped
    ({}, 0.5, 2.0, 1.0, 1.0, False),  # good and less likely: not clipped
    ({}, 0.5, -2.0, -1.8, 0.0, True),  # bad and less likely already: 0.9 * -2
    # As PPO's clip, but a bad token's gain stops at 2 * -2.
    ({'gate': 'dual_clip', 'dual_clip': 2.0}, 1.5, -2.0, -3.0, -3.0, False),
    ({'gate': 'dual_clip', 'dual_clip': 2.0}, 2.5, -2.0, -4.0, 0.0, True),
    ({'gate': 'dual_clip', 'dual_clip': 2.0}, 2.5, 2.0, 2.6, 0.0, True),
    # The weight is clipped; the slope is weight * A.
    ({'gate': 'cispo'}, 1.1, 2.0, 2.2 * math.log(1.1), 2.2, False),
    ({'gate': 'cispo'}, 1.5, 2.0, 2.6 * math.log(1.5), 2.6, True),
    ({'gate': 'cispo'}, 0.5, -2.0, -1.8 * math.log(0.5), -1.8, True),
    # sigmoid(0) = 1/2, of slope 1/4: gain 2 / tau A, slope A.
    ({'gate': 'soft'}, 1.0, 2.0, 4.0, 2.0, False),
    ({'gate': 'soft', 'soft_negative': 2.0}, 1.0, -2.0, -2.0, -2.0, False),
    # A l - tau / 2 l^2 with l = 1.
    (
      {'gate': 'mirror_descent', 'regularization': 0.5},
      math.e,
      2.0,
      1.75,
      1.5,
      False,
    ),
    ({'gate': 'reinforce'}, math.e, -2.0, -2.0, -2.0, False),
    ({'gate': 'none'}, 7.0, -2.0, -14.0, -14.0, False),
  ],
)
def test_gates_by_hand(settings, ratio, advantage, gain, slope, limited):
  objective = Objective(**{**CLIP, **settings})
  value, of_ratio = jax.value_and_grad(
    lambda x: gates.gain(objective, x, jnp.float32(advantage)), has_aux=True
  )(jnp.float32(math.log(ratio)))
  np.testing.assert_allclose(value[0], gain, rtol=1e-5)
  np.testing.assert_allclose(of_ratio, slope, rtol=1e-5)
  assert bool(value[1]) is limited


@pytest.mark.parametrize('name', list(gates.GATES))
def test_slopes_of_gates_equal_finite_differences(name):
  objective = Objective(**CLIP, gate=name)
  rng = np.random.default_rng(0)
  log_ratio = rng.normal(0, 0.5, 200)
  # Away from the corners, where a slope has two values.
  corners = np.log([0.9, 1.3, 3.0])
  far = np.abs(log_ratio[:, None] - corners).min(axis=1) > 1e-4
  log_ratio = log_ratio[far]
  with jax.enable_x64(True):
    advantage = jnp.asarray(rng.normal(size=far.sum()))

    def gain(x):
      return gates.gain(objective, jnp.asarray(x), advantage)[0]

    slopes = jax.grad(lambda x: jnp.sum(gain(x)))(jnp.asarray(log_ratio))
    step = 1e-6
    differences = (gain(log_ratio + step) - gain(log_ratio - step)) / (2 * step)
  if name == 'cispo':
    # Its weight stands still: the slope is that of the logarithm alone.
    weight = np.clip(np.exp(log_ratio), 0.9, 1.3)
    assert np.abs(slopes - differences).max() > 0.1
    differences = weight * np.asarray(advantage)
  np.testing.assert_allclose(slopes, differences, rtol=1e-5, atol=1e-7)


def test_kl_by_hand():
  # ref/pi = 2, 1/2, 1.
  logprobs = jnp.log(jnp.array([0.2, 0.4, 0.3]))
  reference = jnp.log(jnp.array([0.4, 0.2, 0.3]))
  two = math.log(2)
  for name, expected in {
    'k1': [-two, two, 0],
    'k2': [two**2 / 2, two**2 / 2, 0],
    'k3': [1 - two, two - 0.5, 0],
  }.items():
    found = kl.KL[name].function(logprobs, reference)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
  rng = np.random.default_rng(0)
  found = kl.k3(*jnp.asarray(rng.normal(-2, 2, (2, 500)), jnp.float32))
  assert found.min() >= 0


def test_gradients_of_kl_estimates_in_a_loss():
  # Tokens are drawn from pi, so the expected gradient of a loss taken on the
  # drawn tokens is sum_a pi(a) d/dtheta loss(a): all four tokens counted.
  logits = jnp.array([1.0, -0.5, 0.3, 0.0])
  reference = jax.nn.log_softmax(jnp.array([0.2, 0.4, -1.0, 0.6]))
  drawn = jax.nn.softmax(logits)
  close = {'rtol': 1e-5, 'atol': 1e-6}

  def expected(estimate, weighted=False):
    def loss(x):
      logprobs = jax.nn.log_softmax(x)
      weights = jnp.exp(logprobs) if weighted else drawn
      return jnp.sum(weights * estimate(logprobs, reference))

    return jax.grad(loss)(logits)

  true = jax.grad(
    lambda x: jnp.sum(jax.nn.softmax(x) * (jax.nn.log_softmax(x) - reference))
  )(logits)
  np.testing.assert_allclose(expected(kl.k1), np.zeros(4), atol=1e-6)
  np.testing.assert_allclose(expected(kl.k2), true, **close)
  # That of k3 is the gradient of the KL from the reference to the policy.
  np.testing.assert_allclose(
    expected(kl.k3), drawn - jnp.exp(reference), **close
  )
  # With the ratio as weight, those of k1 and k3 are the KL's.
  np.testing.assert_allclose(expected(kl.k1, weighted=True), true, **close)
  np.testing.assert_allclose(expected(kl.k3, weighted=True), true, **close)


def rollout(masks=None):
  """Two completions of a prompt and one of another: 2, 4 and 3 tokens."""
  return packing.RolloutBatch(
    prompts=[[5], [6]],
    prompt_index=np.array([0, 0, 1]),
    completions=[np.arange(n) for n in (2, 4, 3)],
    old_logprobs=[np.full(n, -1.0, np.float32) for n in (2, 4, 3)],
    ref_logprobs=[np.full(n, -1.5, np.float32) for n in (2, 4, 3)],
    advantages=np.ones(3, np.float32),
    masks=masks,
  )


@pytest.mark.parametrize(
  ('settings', 'counts', 'divisor'),
  [
    ({'aggregation': 'sequence_mean'}, [2, 4, 3], 3),
    ({'aggregation': 'prompt_mean'}, [6, 6, 3], 2),
    ({'aggregation': 'token_mean'}, [1, 1, 1], 9),
    ({'aggregation': 'constant'}, [8, 8, 8], 3),
    ({'aggregation': 'constant', 'constant': 5}, [5, 5, 5], 3),
  ],
)
def test_divisors_by_hand(settings, counts, divisor):
  found = aggregation.divisors(Objective(**settings), rollout(), max_len=8)
  np.testing.assert_array_equal(found[0], counts)
  assert found[1] == divisor


def test_tokens_outside_the_mask_divide_nothing():
  masks = [None, np.array([True, False, False, True]), np.zeros(3, bool)]
  batch = rollout(masks)
  found = aggregation.divisors(Objective(), batch, 8)
  np.testing.assert_array_equal(found[0], [2, 2, 0])
  settings = Objective(aggregation='token_mean')
  assert aggregation.divisors(settings, batch, 8)[1] == 4
  nothing = rollout([np.zeros(n, bool) for n in (2, 4, 3)])
  assert aggregation.divisors(settings, nothing, 8)[1] == 1


def test_token_weights_by_hand():
  mask = jnp.array([[1.0, 1, 0, 0], [1.0, 1, 1, 1], [0.0, 0, 0, 0]])
  counts = jnp.array([[2.0] * 4, [4.0] * 4, [0.0] * 4])
  np.testing.assert_allclose(
    aggregation.token_weights(mask, counts),
    [[0.5, 0.5, 0, 0], [0.25] * 4, [0] * 4],
  )


def test_sums_of_completions():
  x = jnp.array([[1.0, 2, 3, 4, 5], [1.0, 2, 3, 4, 5]])
  ids = jnp.array([[7, 7, 8, 0, 0], [3, 3, 3, 3, 3]])
  np.testing.assert_array_equal(
    ratios.completion_sums(x, ids), [[3, 3, 3, 9, 9], [15] * 5]
  )
  # Each token's slope goes to all tokens of its completion.
  slopes = jnp.array([[1.0, 10, 100, 0, 0], [1, 0, 0, 0, 10]])
  found = jax.grad(lambda x: jnp.sum(slopes * ratios.completion_sums(x, ids)))(
    x
  )
  np.testing.assert_array_equal(found, [[11, 11, 100, 0, 0], [11] * 5])


def test_a_sum_is_the_same_bit_for_bit_wherever_its_completion_stands():
  # All tokens take one sum, and what stands elsewhere is not part of it. Where
  # a completion begins changes the order of its sum: the last bit alone.
  rng = np.random.default_rng(1)
  own = np.float32(rng.normal(size=11))
  sums = jax.jit(ratios.completion_sums)

  def placed(start):
    x, ids = np.float32(rng.normal(size=32) * 1e6), np.zeros(32, np.int32)
    x[start : start + 11], ids[start : start + 11] = own, 5
    found = sums(jnp.asarray(x)[None], jnp.asarray(ids)[None])
    return np.unique(found[0, start : start + 11])

  at_0, at_0_again, at_13 = placed(0), placed(0), placed(13)
  assert at_0.size == at_13.size == 1
  np.testing.assert_array_equal(at_0, at_0_again)
  np.testing.assert_allclose(at_13, own.sum(dtype=np.float64), rtol=1e-6)


def test_ratios_by_hand():
  log_ratio = jnp.array([[0.1, 0.3, 0.5, 0.7]])
  mask = jnp.array([[1.0, 1, 1, 0]])
  ids = jnp.array([[1, 1, 2, 2]])

  def of(name):
    return ratios.RATIOS[name].function(log_ratio, mask, ids)

  np.testing.assert_array_equal(of('token'), log_ratio)
  np.testing.assert_allclose(of('sequence'), [[0.2, 0.2, 0.5, 0.5]], rtol=1e-6)
  np.testing.assert_allclose(
    of('trajectory'), [[0.4, 0.4, 0.5, 0.5]], rtol=1e-6
  )
  far = ratios.trajectory(jnp.full((1, 4), 30.0), jnp.ones((1, 4)), ids)
  np.testing.assert_array_equal(far, [[20.0] * 4])


RECOMPUTED = {'old_logprobs': 'recomputed'}


@pytest.mark.parametrize(
  ('settings', 'expected', 'limited'),
  [
    ({'behaviour': 'truncated'}, [[2, 1], [0.25, 2, 1]], 1 / 5),
    (
      {'behaviour': 'masked', 'behaviour_low': 0.5},
      [[2, 1], [0, 0, 1]],
      2 / 5,
    ),
    # The products are 2 and 1.
    (
      {'behaviour': 'truncated', 'behaviour_level': 'sequence'},
      [[2, 2], [1, 1, 1]],
      0,
    ),
    (
      {
        'behaviour': 'masked',
        'behaviour_level': 'sequence',
        'behaviour_high': 1.5,
      },
      [[0, 0], [1, 1, 1]],
      2 / 5,
    ),
  ],
)
def test_behaviour_weights_by_hand(settings, expected, limited):
  old = [np.log(np.float32([2, 1])), np.log(np.float32([0.25, 4, 1]))]
  sampler = [np.zeros(2, np.float32), np.zeros(3, np.float32)]
  objective = Objective(**RECOMPUTED, **settings)
  found, share = behaviour.weights(objective, old, sampler, [None, None])
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-6)
  assert share == pytest.approx(limited)


def test_mismatch_by_hand():
  old = [np.float32([math.log(2), 0]), np.float32([np.nan, 0])]
  sampler = [np.zeros(2, np.float32), np.zeros(2, np.float32)]
  masks = [None, np.array([False, True])]
  found = behaviour.mismatch(old, sampler, masks)
  # |d|: log 2, 0, 0; exp(d) - d - 1: 1 - log 2, 0, 0.
  assert found.mean == pytest.approx(math.log(2) / 3)
  assert found.max == pytest.approx(math.log(2))
  assert found.kl == pytest.approx((1 - math.log(2)) / 3)
  # The token that does not count has a weight all the same, but no say.
  objective = Objective(**RECOMPUTED, behaviour='truncated')
  weights, _ = behaviour.weights(objective, old, sampler, masks)
  assert np.isfinite(np.concatenate(weights)).all()


def test_kl_of_completions_by_hand():
  masks = [None, np.array([True, False, False, True]), np.zeros(3, bool)]
  objective = Objective(kl_estimator='k1', kl_in='reward')
  found = kl.of_completions(objective, rollout(masks))
  np.testing.assert_allclose(found, [1.0, 1.0, 0.0])  # half a nat a token


def test_settings_name_every_choice():
  hints = typing.get_type_hints(Objective)
  for field, table in {
    'baseline': advantages.BASELINES,
    'scale': advantages.SCALES,
    'ratio': ratios.RATIOS,
    'gate': gates.GATES,
    'kl_estimator': kl.KL,
    'aggregation': aggregation.AGGREGATIONS,
    'behaviour': {'none': None, **behaviour.BEHAVIOUR},
  }.items():
    assert list(typing.get_args(hints[field])) == list(table), field


def test_description():
  text = describe.describe(Objective(kl_coef=0.04, soft_positive=2.0))
  formula, symbols, table, unread = text.split('\n\n')
  assert formula == (
    'J = 1/B Σ_i 1/|o_i| Σ_t [ min(ρ A, clip(ρ, 1 − 0.2, 1 + 0.2) A) − 0.04 D ]'
  )
  assert 'D = π_ref/π − log(π_ref/π) − 1' in symbols
  rows = {line.split()[0]: line for line in table.splitlines()}
  assert 'clip_low = 0.2, clip_high = 0.2' in rows['gate']
  assert unread == 'not part of it, though set: soft_positive = 2.0'


GATE = """
from jax import numpy as jnp

def gate(log_ratio, advantage):
  return jnp.minimum(log_ratio, 0.1) * advantage

def scalar(log_ratio, advantage):
  return jnp.sum(log_ratio)

def broken(log_ratio, advantage):
  raise KeyError('what?')

number = 3
"""


@pytest.fixture
def own_gate(tmp_path):
  path = tmp_path / 'my_objective.py'
  path.write_text(GATE)
  return path


def test_a_gate_of_ones_own(own_gate):
  objective = Objective(function=f'{own_gate}:gate')
  gain, limited = gates.gain(
    objective, jnp.array([0.0, 0.05, 0.2]), jnp.array([2.0, 2.0, 2.0])
  )
  np.testing.assert_allclose(gain, [0, 0.1, 0.2], rtol=1e-6)
  np.testing.assert_array_equal(limited, [False, False, True])
  text = describe.describe(objective)
  assert '[ gate(log ρ, A) − 0.001 D ]' in text
  assert f'sha256 {functions.digest(objective.function)}' in text


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('none', 'names no function; write the file and the name'),
    ('away.py:gate', 'cannot be read .No such file'),
    ('FILE:other', "has no function 'other'"),
    ('FILE:number', "'number' in .* is int, not a function"),
    ('FILE:scalar', 'it must make a gain for each token'),
    ('FILE:broken', 'cannot be called .KeyError'),
  ],
)
def test_refused_gates(own_gate, name, message):
  with pytest.raises(ValueError, match=message):
    Objective(function=name.replace('FILE', str(own_gate)))


def test_a_file_that_cannot_run_is_said(tmp_path):
  (tmp_path / 'bad.py').write_text('import nowhere_at_all')
  with pytest.raises(ValueError, match='cannot be run .ModuleNotFoundError'):
    Objective(function=f'{tmp_path}/bad.py:gate')


def test_a_changed_gate_is_refused_on_resume(own_gate, tmp_path):
  def cfg():
    objective = Objective(function=f'{own_gate}:gate')
    return grpo.Config(workdir=str(tmp_path / 'run'), objective=objective)

  saved_config.save(cfg(), str(tmp_path / 'run'))
  saved_config.check_resume_compatible(cfg(), str(tmp_path / 'run'))
  own_gate.write_text(GATE.replace('0.1', '0.2'))
  with pytest.raises(ValueError, match=r'function is .*sha256 .* now and'):
    saved_config.check_resume_compatible(cfg(), str(tmp_path / 'run'))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'kl_coef': -0.1}, 'Objective.kl_coef is -0.1; .* at least 0'),
    ({'clip_low': 0.0}, 'Objective.clip_low is 0.0; .* above 0'),
    ({'clip_high': -1.0}, 'Objective.clip_high is -1.0; .* above 0'),
    ({'dual_clip': 1.0}, 'Objective.dual_clip is 1.0; .* above 1'),
    ({'behaviour': 'masked'}, "set it to 'recomputed'"),
    (
      {'behaviour_low': 3.0},
      'behaviour_low is 3.0, above behaviour_high = 2.0',
    ),
    ({'kl_estimator': 'k1'}, 'its expected gradient is 0'),
  ],
)
def test_refused_objectives(changes, message):
  with pytest.raises(ValueError, match=message):
    Objective(**changes)
