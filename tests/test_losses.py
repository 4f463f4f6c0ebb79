"""Every published objective against its formula, written from the paper.

The formulas are NumPy in float64, over whole completions and groups, without
packing: `log_pi[i]` are the log-probs of completion i. `at` is the policy at
which a stop-gradient stands still; slopes are finite differences.
"""

import dataclasses
import functools
import math
import pathlib

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from rlzero import grpo
from rlzero.rl import losses
from rlzero.rl.objective import Objective
from rlzero.rl.objectives import advantages, aggregation, behaviour, kl
from rlzero.runtime import config
from rlzero.train import packing

pytestmark = [
  pytest.mark.model,
  pytest.mark.usefixtures('quick_compilation'),
]

_FOLDER = pathlib.Path(__file__).parent.parent / 'configs' / 'objectives'
NAMES = sorted(path.stem for path in _FOLDER.glob('*.gin'))
GROUPS, GROUP, MAX_LEN = 3, 4, 12
REWARDS = np.array([[1.0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 2, 0]])


@functools.cache
def objective_of(name: str) -> Objective:
  flags = [f'--gin_file={_FOLDER}/{name}.gin', '--workdir=']
  return config.build(grpo, flags).objective


class Rollout:
  """Log-probs of completions under four policies near each other."""

  def __init__(self, spread: float):
    rng = np.random.default_rng(2)
    lengths = rng.integers(1, 9, GROUPS * GROUP)

    def near(values, scale):
      return [x + rng.normal(0, scale, len(x)) for x in values]

    self.old = [rng.normal(-2, 0.5, n) for n in lengths]
    self.new = near(self.old, spread)
    self.ref = near(self.old, 0.4)
    self.sampler = near(self.old, 0.7)


# The papers' formulas. R [P, G]; the policies' log-probs as lists of arrays.


def per_group(values):
  return np.asarray(values, float).reshape(GROUPS, GROUP)


def a_grpo(R):
  A = np.zeros_like(R)
  for g, r in enumerate(R):
    if r.std():
      A[g] = (r - r.mean()) / r.std()
  return A.ravel()


def a_centred(R):
  return (R - R.mean(axis=1, keepdims=True)).ravel()


def a_batch_std(R):
  A = a_centred(R)
  return A / A.std()


def ppo(rho, A, low, high):
  return np.minimum(rho * A, np.clip(rho, 1 - low, 1 + high) * A)


def k3(pi, ref):
  return np.exp(ref - pi) - (ref - pi) - 1


def sequence_mean(terms):
  return np.mean([t.sum() / len(t) for t in terms])


def prompt_mean(terms):
  groups = [
    np.concatenate(terms[g * GROUP : (g + 1) * GROUP]) for g in range(GROUPS)
  ]
  return np.mean([g.sum() / g.size for g in groups])


def token_mean(terms):
  return np.concatenate(terms).mean()


def grpo_formula(data, pi, low=0.2, high=0.2, beta=0.001, weights=None):
  A, terms = a_grpo(REWARDS), []
  for i, p in enumerate(pi):
    w = 1.0 if weights is None else weights[i]
    gain = w * ppo(np.exp(p - data.old[i]), A[i], low, high)
    terms.append(gain - beta * k3(p, data.ref[i]))
  return sequence_mean(terms)


def dr_grpo(data, pi):
  A = a_centred(REWARDS)
  return np.mean(
    [
      ppo(np.exp(p - old), a, 0.2, 0.2).sum() / MAX_LEN
      for p, old, a in zip(pi, data.old, A, strict=True)
    ]
  )


def dapo(data, pi):
  A = a_grpo(REWARDS)
  return prompt_mean(
    [
      ppo(np.exp(p - old), a, 0.2, 0.28)
      for p, old, a in zip(pi, data.old, A, strict=True)
    ]
  )


def gspo(data, pi, lengths=False):
  A, gains = a_grpo(REWARDS), []
  for p, old, a in zip(pi, data.old, A, strict=True):
    s = math.exp((p.sum() - old.sum()) / len(p))
    gains.append(ppo(s, a, 3e-4, 4e-4) * (len(p) if lengths else 1))
  return np.mean(gains)


def cispo(data, pi, at, A):
  terms = []
  for p, old, here, a in zip(pi, data.old, at, A, strict=True):
    weight = np.minimum(np.exp(here - old), 5.0)
    terms.append(weight * a * (p - old))
  return prompt_mean(terms)


def rloo(data, pi):
  R = REWARDS.ravel() - 0.03 * np.array(
    [old.sum() - ref.sum() for old, ref in zip(data.old, data.ref, strict=True)]
  )
  total = 0.0
  for i, (p, old) in enumerate(zip(pi, data.old, strict=True)):
    first = i - i % GROUP
    others = [R[j] for j in range(first, first + GROUP) if j != i]
    total += (R[i] - np.mean(others)) * (p.sum() - old.sum())
  return total / len(pi)


def reinforce_pp(data, pi, beta=0.001):
  A, terms = a_batch_std(REWARDS), []
  for i, p in enumerate(pi):
    gain = ppo(np.exp(p - data.old[i]), A[i], 0.2, 0.2)
    terms.append(gain - beta * (p - data.ref[i]) ** 2 / 2)
  return token_mean(terms)


def gpg(data, pi):
  signal = np.ptp(REWARDS, axis=1) > 0
  alpha = GROUPS / signal.sum()
  A = alpha * a_centred(REWARDS)
  return prompt_mean(
    [a * (p - old) for p, old, a in zip(pi, data.old, A, strict=True)]
  )


def kimi(data, pi, tau=0.1):
  # -(r - mean - tau log(pi/old))^2 / (2 tau), up to its constant.
  A = a_centred(REWARDS)
  return np.mean(
    [
      (a**2 - (a - tau * (p.sum() - old.sum())) ** 2) / (2 * tau)
      for p, old, a in zip(pi, data.old, A, strict=True)
    ]
  )


def maxrl(data, pi):
  means = REWARDS.mean(axis=1, keepdims=True)
  A = ((REWARDS - means) / means).ravel()
  ways = [p.sum() - old.sum() for p, old in zip(pi, data.old, strict=True)]
  return np.mean(A * ways)


def sapo(data, pi):
  A, terms = a_grpo(REWARDS), []
  for p, old, a in zip(pi, data.old, A, strict=True):
    tau = 1.0 if a > 0 else 1.05
    gate = 4 / tau / (1 + np.exp(-tau * (np.exp(p - old) - 1)))
    terms.append(gate * a)
  return sequence_mean(terms)


def unbiased_kl(data, pi):
  A, terms = a_grpo(REWARDS), []
  for i, p in enumerate(pi):
    rho = np.exp(p - data.old[i])
    terms.append(ppo(rho, A[i], 0.2, 0.2) - 0.001 * rho * k3(p, data.ref[i]))
  return sequence_mean(terms)


def tis(data, pi):
  weights = [
    np.minimum(np.exp(old - mu), 2.0)
    for old, mu in zip(data.old, data.sampler, strict=True)
  ]
  return grpo_formula(data, pi, weights=weights)


def icepop(data, pi):
  ratios = [
    np.exp(old - mu) for old, mu in zip(data.old, data.sampler, strict=True)
  ]
  weights = [np.where((k >= 0.5) & (k <= 5), k, 0) for k in ratios]
  return grpo_formula(data, pi, weights=weights)


# name: (formula of data, policy and where a stop-gradient stands; spread of
# the policy about the old one).
FORMULAS = {
  'grpo': (lambda d, pi, at: grpo_formula(d, pi), 0.3),
  'grpo_r1': (lambda d, pi, at: grpo_formula(d, pi, 10, 10), 2.0),
  'grpo_deepseekmath': (lambda d, pi, at: grpo_formula(d, pi, beta=0.04), 0.3),
  'dr_grpo': (lambda d, pi, at: dr_grpo(d, pi), 0.3),
  'dapo': (lambda d, pi, at: dapo(d, pi), 0.3),
  'gspo': (lambda d, pi, at: gspo(d, pi), 1e-3),
  'luspo': (lambda d, pi, at: gspo(d, pi, lengths=True), 1e-3),
  'cispo': (lambda d, pi, at: cispo(d, pi, at, a_grpo(REWARDS)), 1.5),
  'scalerl': (lambda d, pi, at: cispo(d, pi, at, a_batch_std(REWARDS)), 1.5),
  'rloo': (lambda d, pi, at: rloo(d, pi), 0.3),
  'reinforce_pp_baseline': (lambda d, pi, at: reinforce_pp(d, pi), 0.3),
  'lite_ppo': (lambda d, pi, at: reinforce_pp(d, pi, beta=0), 0.3),
  'gpg': (lambda d, pi, at: gpg(d, pi), 0.3),
  'kimi_k1p5': (lambda d, pi, at: kimi(d, pi), 0.3),
  'maxrl': (lambda d, pi, at: maxrl(d, pi), 0.3),
  'sapo': (lambda d, pi, at: sapo(d, pi), 0.3),
  'unbiased_kl': (lambda d, pi, at: unbiased_kl(d, pi), 0.3),
  'tis': (lambda d, pi, at: tis(d, pi), 0.3),
  'icepop': (lambda d, pi, at: icepop(d, pi), 0.3),
}


def rollout_batch(objective: Objective, data: Rollout) -> packing.RolloutBatch:
  """The batch that a collector would make of it."""

  def floats(values):
    return [np.float32(x) for x in values]

  old = data.old if objective.old_logprobs == 'sampler' else data.sampler
  batch = packing.RolloutBatch(
    prompts=[[2, 3]] * GROUPS,
    prompt_index=np.repeat(np.arange(GROUPS), GROUP),
    completions=[np.full(len(x), 5) for x in data.new],
    old_logprobs=floats(old),
    ref_logprobs=floats(data.ref) if objective.kl_coef else None,
    advantages=np.zeros(GROUPS * GROUP, np.float32),
  )
  if objective.old_logprobs == 'recomputed':
    batch, _ = behaviour.corrected(objective, batch, floats(data.old))
  rewards = np.float32(REWARDS)
  if objective.kl_coef and objective.kl_in == 'reward':
    penalty = objective.kl_coef * kl.of_completions(objective, batch)
    rewards = rewards - penalty.reshape(rewards.shape)
  found = advantages.of_rewards(rewards, objective.baseline, objective.scale)
  counts, _ = aggregation.divisors(objective, batch, MAX_LEN)
  return batch._replace(advantages=np.asarray(found).reshape(-1), counts=counts)


def value_and_slopes(objective: Objective, data: Rollout):
  """J and dJ / d log pi of every token, through packed rows."""
  batch = rollout_batch(objective, data)
  _, divisor = aggregation.divisors(objective, batch, MAX_LEN)
  total, slopes = 0.0, [None] * len(data.new)
  every = np.arange(len(data.new))
  for places, micro in packing.microbatches(batch, every, 1000, MAX_LEN):
    packed = np.zeros(micro.mask.shape, np.float32)
    for i, row, start in places:
      packed[row, start : start + len(data.new[i])] = data.new[i]
    inputs = jax.tree.map(jnp.asarray, losses.inputs(objective, micro))

    def value(x, inputs=inputs):
      return losses.terms(objective, x, jnp.zeros_like(x), inputs)[0]

    part, slope = jax.jit(jax.value_and_grad(value))(jnp.asarray(packed))
    total += float(part)
    for i, row, start in places:
      slopes[i] = slope[row, start : start + len(data.new[i])] / divisor
    outside = np.asarray(slope)[~micro.mask]
    np.testing.assert_array_equal(outside, np.zeros_like(outside))
  return total / divisor, np.concatenate(slopes)


def differences(formula, data):
  step, out = 1e-6, []
  for i, values in enumerate(data.new):
    for t in range(len(values)):
      sides = []
      for sign in (1, -1):
        moved = [x.copy() for x in data.new]
        moved[i][t] += sign * step
        sides.append(formula(data, moved, data.new))
      out.append((sides[0] - sides[1]) / (2 * step))
  return np.array(out)


def test_every_config_has_a_formula():
  assert NAMES == sorted(FORMULAS)


@pytest.mark.parametrize('name', NAMES)
def test_the_published_formula(name):
  formula, spread = FORMULAS[name]
  data = Rollout(spread)
  value, slopes = value_and_slopes(objective_of(name), data)
  expected = formula(data, data.new, data.new)
  assert value == pytest.approx(expected, rel=1e-5, abs=1e-6)
  np.testing.assert_allclose(
    slopes, differences(formula, data), rtol=1e-5, atol=1e-6
  )
  assert np.abs(slopes).max() > 0.01


def test_an_objective_undoes_what_the_run_has_set(tmp_path):
  run = tmp_path / 'run.gin'
  run.write_text(
    'from __gin__ import dynamic_registration\n'
    'from rlzero.rl import objective\n'
    "objective.Objective.gate = 'soft'\n"
    'objective.Objective.constant = 3\n'
    'objective.Objective.kl_coef = 0.3\n'
  )
  flags = [f'--gin_file={run}', f'--gin_file={_FOLDER}/gpg.gin', '--workdir=']
  assert config.build(grpo, flags).objective == objective_of('gpg')
  text = (_FOLDER / 'grpo.gin').read_text()
  for field in dataclasses.fields(Objective):
    assert f'objective.Objective.{field.name} = ' in text, field.name
  assert objective_of('grpo') == Objective()


def test_entropy_bonus():
  objective = Objective(entropy_coef=0.5, aggregation='token_mean', kl_coef=0)
  batch = rollout_batch(objective, Rollout(0.3))
  every = np.arange(len(batch.completions))
  (_, micro), *_ = packing.microbatches(batch, every, 1000, MAX_LEN)
  inputs = jax.tree.map(jnp.asarray, losses.inputs(objective, micro))
  logprobs = jnp.asarray(micro.old_logprobs)

  def value(entropy):
    return losses.terms(objective, logprobs, entropy, inputs)[0]

  slope = jax.grad(value)(jnp.ones(micro.mask.shape))
  np.testing.assert_allclose(slope, 0.5 * micro.mask)
