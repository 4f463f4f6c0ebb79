"""A small DeepSeek-V3 with all features on goes through the GRPO step."""

import contextlib
import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
from helpers import EOS, GRPO, NO_KL, V3, grpo_config, make_rows, noisy
from jax import numpy as jnp

from rlzero import weights
from rlzero.models import transformer
from rlzero.rl import collect, learner, settings, update
from rlzero.rollout import journal, scheduler
from rlzero.rollout.sampling import Sampling, StopCriteria
from rlzero.runtime import sharding
from rlzero.train import folders, packing

pytestmark = [
  pytest.mark.model,
  pytest.mark.usefixtures('quick_compilation'),
]

CONFIG = dataclasses.replace(V3, vocab_size=16)
SPEED = 0.125


@pytest.fixture(scope='module')
def params():
  return noisy(CONFIG)


@pytest.mark.slow
def test_bias_of_the_router_follows_the_load_alone(params):
  rows = make_rows(GRPO)
  # Weight decay and a large rate would move it.
  rule = optax.adamw(0.1, weight_decay=0.5)
  update = learner.Learner(CONFIG, GRPO, rule, 64, balance_speed=SPEED)
  state = update.init(jax.tree.map(jnp.array, params))
  grads, totals = update.gradient(state.params, rows)
  assert not np.any(grads['layers']['moe']['router_bias'])
  tokens = sum(map(len, rows.completions)) + sum(map(len, rows.prompts))
  np.testing.assert_array_equal(
    totals.loads.sum(axis=1), 3 * tokens * np.ones(1)
  )
  state, facts = update.update(state, rows)
  mean = totals.loads.mean(axis=1, keepdims=True)
  moved = state.params['layers']['moe']['router_bias']
  moved -= params['layers']['moe']['router_bias']
  np.testing.assert_allclose(
    moved, SPEED * np.sign(mean - totals.loads), atol=1e-6
  )
  share = totals.loads[0] / totals.loads.sum()
  np.testing.assert_allclose(
    facts['experts/load_max_over_mean'], 8 * share.max(), rtol=1e-6
  )
  np.testing.assert_allclose(
    facts['experts/load_entropy'],
    -np.sum(share * np.log(np.maximum(share, 1e-9))) / np.log(8),
    rtol=1e-5,
  )


@pytest.mark.slow
def test_rows_without_advantage_count_in_the_load(params):
  # Leaving them out would change the router's bias, and not the time alone.
  rows = make_rows(GRPO)
  rows = rows._replace(
    advantages=np.where(np.arange(len(rows.advantages)), 0, 1.0)
  )
  free = dataclasses.replace(GRPO, kl_coef=0.0)
  loads = []
  for skip in (True, False):
    update = learner.Learner(
      CONFIG, free, optax.sgd(0.1), 64, skip, balance_speed=SPEED
    )
    state = update.init(jax.tree.map(jnp.array, params))
    loads.append(update.gradient(state.params, rows)[1].loads)
  np.testing.assert_array_equal(*loads)
  lean = learner.Learner(CONFIG, free, optax.sgd(0.1), 64)
  state = lean.init(jax.tree.map(jnp.array, params))
  assert lean.gradient(state.params, rows)[1].loads.sum() < loads[0].sum()


def test_routes_of_the_rollout_are_taken_in_the_update(params, tmp_path):
  prompts = [scheduler.Prompt(i, [2, 3, 4 + i]) for i in range(2)]
  settings = Sampling(
    max_len=12,
    max_prompt_len=8,
    num_slots=8,
    decode_steps=4,
    keep_routes=True,
  )
  generate = functools.partial(
    scheduler.generate,
    CONFIG,
    params,
    prompts,
    4,
    settings,
    stop=StopCriteria((EOS,)),
  )
  path = str(tmp_path / 'journal')
  with contextlib.closing(journal.Journal(path, {})) as kept:
    drawn, _ = generate(seed=5, on_finished=kept.add_completion)
  # A run that goes on after a kill has them from the journal.
  with contextlib.closing(journal.Journal(path, {})) as kept:
    completions, _ = generate(seed=5, finished=kept.completions)
  for one, other in zip(completions, drawn, strict=True):
    np.testing.assert_array_equal(one.routes, other.routes)
  rows = packing.RolloutBatch(
    prompts=[p.tokens for p in prompts],
    prompt_index=np.repeat(np.arange(2), 4),
    completions=[c.tokens for c in completions],
    old_logprobs=[c.logprobs for c in completions],
    ref_logprobs=None,
    advantages=np.ones(8, np.float32),
    routes=[c.routes for c in completions],
  )
  for c in completions:
    assert c.routes.shape == (1, len(c.tokens), 3)
    # The last token went in nowhere: nothing follows it.
    assert (c.routes[:, :-1] >= 0).all() and (c.routes[:, -1] == -1).all()
  update = learner.Learner(CONFIG, NO_KL, optax.sgd(0.1), 64)

  def difference(params, rows):
    pairs = zip(update.logprobs(params, rows), rows.old_logprobs, strict=True)
    return max(np.abs(new - old).max() for new, old in pairs)

  assert difference(params, rows) < 1e-4
  assert difference(params, rows._replace(routes=None)) < 1e-4
  # Other routes give other log-probs, so these are really taken.
  turned = [np.where(r < 0, r, (r + 1) % 8) for r in rows.routes]
  assert difference(params, rows._replace(routes=turned)) > 1e-2
  # Where the router has changed its mind, the old routes are the nearer ones.
  moe = params['layers']['moe']
  bias = moe['router_bias'] + 0.3 * np.arange(8, dtype=np.float32)
  changed = {**params['layers'], 'moe': {**moe, 'router_bias': bias}}
  changed = {**params, 'layers': changed}
  free = difference(changed, rows._replace(routes=None))
  assert difference(changed, rows) < free


def test_routes_of_a_model_without_experts_are_refused():
  dense = dataclasses.replace(CONFIG, experts=None)
  with pytest.raises(
    ValueError, match='keep_routes is True, but the model has'
  ):
    scheduler.generate(
      dense,
      {},
      [scheduler.Prompt(0, [2])],
      2,
      Sampling(keep_routes=True),
      stop=StopCriteria((EOS,)),
      seed=0,
    )


@pytest.mark.slow
def test_grpo_steps_on_a_mesh_of_experts(tmp_path):
  tokenizer = folders.load_model(folders.embedded('tiny_base')).tokenizer
  config = dataclasses.replace(V3, vocab_size=123, max_position=64)
  cfg = grpo_config(
    tmp_path,
    num_prompts=2,
    replay_routes=True,
    balance_speed=SPEED,
    mesh=sharding.Mesh(fsdp=2, expert=4),
  )
  examples = cfg.task.examples('train')[:4]
  with sharding.use(cfg.mesh), settings.make_reward_pool(cfg) as pool:
    fresh = transformer.initialise(config, jax.random.key(0))
    trainer = update.Trainer(cfg, weights.Loaded(config, fresh, tokenizer))
    collector = collect.Collector(cfg, trainer.learner, tokenizer, pool)
    bias = [_bias(trainer)]
    for number in range(2):
      drawn = list(enumerate(examples[2 * number : 2 * number + 2]))
      row = trainer.update(collector.collect(trainer.policy, drawn))
      assert row['policy/sampler_learner_max'] < 1e-4
      assert 1 <= row['experts/load_max_over_mean'] <= 8
      bias.append(_bias(trainer))
  # A second step may take the first one back.
  steps = np.diff(bias, axis=0) / SPEED
  np.testing.assert_allclose(steps, np.round(steps), atol=1e-5)
  assert (np.abs(steps).max(axis=(1, 2)) == 1).all()


def _bias(trainer):
  return np.array(trainer.state.params['layers']['moe']['router_bias'])
