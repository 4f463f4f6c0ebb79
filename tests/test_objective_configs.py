"""Every published objective, cut in every way, has one gradient.

Microbatches, packing, a mesh and `pmap` may move the last bits alone. The
objectives differ in what is summed over a completion, a prompt or the batch,
which is what a cut could break.
"""

import functools
import pathlib

import jax
import numpy as np
import optax
import pytest
from helpers import EOS, SMALL, distance, mostly_slow, noisy

from rlzero import grpo
from rlzero.models import parameters
from rlzero.rl import learner
from rlzero.rl.objectives import advantages, behaviour
from rlzero.rollout.sampling import Sampling
from rlzero.runtime import config, sharding
from rlzero.train import packing

pytestmark = [
  pytest.mark.model,
  pytest.mark.usefixtures('quick_compilation'),
]

_FOLDER = pathlib.Path(__file__).parent.parent / 'configs' / 'objectives'
NAMES = sorted(path.stem for path in _FOLDER.glob('*.gin'))
SAMPLING = Sampling(max_len=9)  # rows of 18 tokens


@functools.cache
def objective_of(name):
  flags = [f'--gin_file={_FOLDER}/{name}.gin', '--workdir=']
  return config.build(grpo, flags).objective


@functools.cache
def params():
  return noisy(SMALL)


@functools.cache
def rollout(name):
  """Three groups, near the policy, so that sequence ratios are not all cut."""
  objective = objective_of(name)
  rng = np.random.default_rng(3)
  completions = [
    np.append(rng.integers(2, 13, n), EOS) for n in rng.integers(3, 9, 12)
  ]
  rewards = np.float32(rng.integers(0, 2, (3, 4)))
  rewards[:, 0], rewards[:, 1] = 0, 1
  found = advantages.of_rewards(rewards, objective.baseline, objective.scale)
  batch = packing.RolloutBatch(
    prompts=[rng.integers(2, 13, n).tolist() for n in (2, 5, 3)],
    prompt_index=np.repeat(np.arange(3), 4),
    completions=completions,
    old_logprobs=[np.zeros(len(c), np.float32) for c in completions],
    ref_logprobs=None,
    advantages=np.asarray(found).reshape(-1),
  )
  now = make(name).logprobs(params(), batch)
  spread = 5e-4 if objective.ratio == 'sequence' else 0.2

  def near(scale):
    return [np.float32(x + rng.normal(0, scale, len(x))) for x in now]

  batch = batch._replace(old_logprobs=near(spread))
  if objective.kl_coef:
    batch = batch._replace(ref_logprobs=near(0.3))
  if objective.old_logprobs == 'recomputed':
    batch, _ = behaviour.corrected(objective, batch, near(0.4))
  return batch


@functools.cache
def make(name, micro_tokens=1000, pmapped=False):
  return learner.Learner(
    SMALL,
    objective_of(name),
    optax.sgd(0.1),
    micro_tokens,
    pmapped=pmapped,
    sampling=SAMPLING,
  )


@functools.cache
def whole(name):
  """In one microbatch."""
  return make(name).gradient(params(), rollout(name))


def check(found, name):
  grads, totals = found
  expected, sums = whole(name)
  assert distance(grads, expected) < 1e-5
  for field in ('objective', 'kl', 'clipped', 'tokens', 'mismatch_kl'):
    np.testing.assert_allclose(
      getattr(totals, field), getattr(sums, field), rtol=2e-5, atol=1e-5
    )


def cut_up(name, micro_tokens):
  learner_of_few = make(name, micro_tokens)
  batch = rollout(name)
  chosen = learner_of_few.chosen(batch)
  number = len(list(learner_of_few.microbatches(batch, chosen)))
  return number, learner_of_few.gradient(params(), batch)


def in_two(name):
  number, found = cut_up(name, 54)
  assert number == 2
  return found


def in_four(name):
  number, found = cut_up(name, 18)
  assert number >= 4
  return found


def alone(name):
  """Each completion in a row of its own."""

  def fill(order, lengths, prompt_index, width, most):
    del lengths, prompt_index, width
    places = [packing.Placement(int(i), n, 0) for n, i in enumerate(order)]
    return places[:most], order[most:]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(packing, '_fill', fill)
    return make(name, 18 * 12).gradient(params(), rollout(name))


def on_mesh(name):
  batch = rollout(name)
  with sharding.use(sharding.Mesh(data=4, fsdp=2)):
    placed = sharding.device_put_params(parameters.AXES, params())
    return jax.device_get(make(name, 1000).gradient(placed, batch))


def by_pmap(name):
  batch = rollout(name)
  with sharding.use(sharding.Mesh(data=8)):
    placed = sharding.device_put_params(parameters.AXES, params())
    found = make(name, 18, pmapped=True).gradient(placed, batch)
    return jax.device_get(found)


CUTS = in_two, in_four, alone, on_mesh, by_pmap
# Of them all a cut breaks GSPO first: its ratio is a sum over the completion.
CASES = {
  f'{name}-{cut.__name__}': (name, cut) for name in NAMES for cut in CUTS
}


@pytest.fixture(autouse=True)
def programs_of_one_objective(name):
  """Drops those of the objective before: together they are hundreds."""
  if _LAST != [name]:
    for made in (rollout, make, whole):
      made.cache_clear()
    jax.clear_caches()
    _LAST[:] = [name]


_LAST: list[str] = []


@mostly_slow(
  ('name', 'cut'),
  CASES,
  quick=('gspo-on_mesh',),
  others='nightly',
)
def test_a_cut_changes_nothing(name, cut):
  check(cut(name), name)
