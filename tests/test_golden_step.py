"""One update of the tiny base, held to numbers that were written down.

Did this test fail after your change?
- You did not mean to change what an update computes: the change has a fault.
  `tests/test_learner.py` compares the update with the papers' formula and will
  often say where.
- You did mean to: print the new numbers with

    python tests/test_golden_step.py

  put them into `_GOLDEN`, and say in the commit which of them moved and why.

Relative tolerances are 1e-5, not 0: processors differ in the width of their
vectors, so they add float32 numbers in another order. Compiled for SSE4.2
instead of AVX2, these numbers move by up to 2e-7. A wrong sign, mask, divisor
or coefficient moves them by far more than 1e-5.
"""

import json

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from rlzero.rl import learner
from rlzero.rl.objective import Objective
from rlzero.train import folders, optim, packing

pytestmark = pytest.mark.model

_GOLDEN = {
  'loss': -0.28786003589630127,
  'grad_norm': 11.474885940551758,
  'kl': 0.01959883509658453,
  'entropy': 0.9807249654935101,
  'clip_fraction': 0.08267716535433071,
  'mean_logprob': -11.36098861694336,
  'param_norm': 81.8176157775863,
  'update_norm': 0.9318684272639848,
}


def _step() -> dict[str, float]:
  """Updates the tiny base once, on completions from a fixed generator."""
  loaded = folders.load_model(folders.embedded('tiny_base'))
  update = learner.Learner(
    loaded.config,
    Objective(kl_coef=0.01),
    optim.Optimizer(learning_rate=1e-3, weight_decay=0.1).transform(10),
    micro_tokens=256,  # two microbatches
  )
  rng = np.random.default_rng(0)
  high = loaded.config.vocab_size
  completions = [
    rng.integers(2, high, n) for n in (3, 40, 17, 90, 8, 61, 5, 30)
  ]
  batch = packing.RolloutBatch(
    prompts=[rng.integers(2, high, n).tolist() for n in (9, 14)],
    prompt_index=np.repeat([0, 1], 4),
    completions=completions,
    old_logprobs=[np.zeros(len(c), np.float32) for c in completions],
    ref_logprobs=None,
    # Unlike those of groups they do not add up to 0, nor does the loss then,
    # which would be hardly more than rounding.
    advantages=np.float32([1.5, -0.5, 0.8, 0.0, 2.0, -1.0, 0.3, -0.7]),
  )
  # Policies near the one that is updated: some ratios are clipped, not all.
  now = update.logprobs(loaded.params, batch)
  near = [
    [np.float32(p + rng.normal(0, 0.2, len(p))) for p in now] for _ in range(2)
  ]
  batch = batch._replace(old_logprobs=near[0], ref_logprobs=near[1])
  # A copy: the update takes the buffers of its state.
  params = jax.tree.map(jnp.array, loaded.params)
  state, metrics = update.update(update.init(params), batch)
  moved = jax.tree.map(lambda a, b: a - b, state.params, loaded.params)
  return {
    'loss': metrics['policy/loss'],
    'grad_norm': metrics['policy/grad_norm'],
    'kl': metrics['policy/kl'],
    'entropy': metrics['policy/entropy'],
    'clip_fraction': metrics['policy/clip_fraction'],
    'mean_logprob': float(np.mean(np.concatenate(now))),
    'param_norm': _norm(state.params),
    'update_norm': _norm(moved),
  }


def _norm(tree) -> float:
  leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
  return float(np.linalg.norm(np.concatenate(leaves)))


@pytest.mark.usefixtures('quick_compilation')
def test_an_update_of_the_tiny_base_gives_the_golden_numbers():
  found = _step()
  assert 0.05 < found['clip_fraction'] < 0.5  # the clip is at work
  assert found == pytest.approx(_GOLDEN, rel=1e-5)


if __name__ == '__main__':
  print(json.dumps(_step(), indent=2))
