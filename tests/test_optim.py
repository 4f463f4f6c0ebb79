"""Rates, clipping and update rules by hand."""

import math

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from rlzero.train import optim


def rates(num_steps, steps, **settings):
  rate = optim.Optimizer(learning_rate=2.0, **settings).rate(num_steps)
  return [float(rate(step)) for step in steps]


def test_warmup_starts_above_zero_and_ends_at_the_peak():
  np.testing.assert_allclose(
    rates(10, range(6), warmup_steps=4), [0.5, 1, 1.5, 2, 2, 2]
  )
  np.testing.assert_allclose(rates(10, range(3), warmup_steps=1), [2, 2, 2])
  np.testing.assert_allclose(rates(10, range(3)), [2, 2, 2])


def test_schedules_end_at_the_final_fraction():
  # Two updates of warm-up, then four from 2 to 0.2.
  settings = dict(warmup_steps=2, final_fraction=0.1)
  np.testing.assert_allclose(
    rates(6, [0, 1, 2, 4, 6, 9], schedule='linear', **settings),
    [1, 2, 2, 1.1, 0.2, 0.2],
    rtol=1e-6,
  )
  quarter = 0.2 + 1.8 * (1 + math.cos(math.pi / 4)) / 2
  np.testing.assert_allclose(
    rates(6, [0, 1, 2, 3, 4, 6, 9], schedule='cosine', **settings),
    [1, 2, 2, quarter, 1.1, 0.2, 0.2],
    rtol=1e-6,
  )


@pytest.mark.parametrize('scale, norm', [(1.0, 1.0), (0.1, 0.5), (9.0, 1.0)])
def test_clipping_and_adamw_by_hand(scale, norm):
  # The first moments without their bias are g and g^2, so that the update is
  # -rate * (g / (|g| + eps) + decay * p); g is (3, 4) scaled to norm 1 if it
  # is longer.
  optimizer = optim.Optimizer(
    learning_rate=0.1, eps=1.0, weight_decay=0.5, max_grad_norm=1.0
  )
  transform = optimizer.transform(10)
  params = {'a': jnp.array([2.0]), 'b': jnp.array([-1.0])}
  grads = {'a': jnp.array([3.0 * scale]), 'b': jnp.array([4.0 * scale])}
  updates, _ = transform.update(grads, transform.init(params), params)
  a, b = 0.6 * norm, 0.8 * norm
  # 1 - 0.999 in float32 has four digits less.
  np.testing.assert_allclose(
    updates['a'], [-0.1 * (a / (a + 1) + 1.0)], rtol=1e-4
  )
  np.testing.assert_allclose(
    updates['b'], [-0.1 * (b / (b + 1) - 0.5)], rtol=1e-4
  )


def test_muon_takes_the_matrices_and_adam_the_rest():
  layers, width, heads, size, inner, vocab = 2, 8, 4, 4, 32, 9
  matrices = {
    'query': (layers, width, heads, size),
    'key': (layers, width, heads, size),
    'value': (layers, width, heads, size),
    'output': (layers, heads, size, width),
    'gate': (layers, width, inner),
    'up': (layers, width, inner),
    'down': (layers, inner, width),
  }
  others = {
    'embedding': (vocab, width),
    'kernel': (width, vocab),
    'scale': (layers, width),
    'query_bias': (layers, heads, size),
    'key_norm': (layers, size),
  }
  rng = np.random.default_rng(0)
  grads = {
    name: jnp.asarray(rng.normal(size=shape), jnp.float32)
    for name, shape in (matrices | others).items()
  }
  optimizer = optim.Optimizer(kind='muon', learning_rate=0.1)
  transform = optimizer.transform(10)
  params = jax.tree.map(jnp.zeros_like, grads)
  updates, _ = jax.jit(transform.update)(grads, transform.init(params), params)
  for name in others:  # Adam's first step has one size for every entry
    step = -np.sign(grads[name]) * updates[name]
    assert step.min() > 0.1 and step.max() / step.min() < 1.001, name
  for name in matrices:  # Muon's has singular values of nearly one size
    rows = 16 if name == 'output' else width
    for layer in np.asarray(updates[name]):
      singular = np.linalg.svd(layer.reshape(rows, -1), compute_uv=False)
      assert singular.max() / singular.min() < 2.5, name
    # The size of Adam's steps: 0.2 of the rate in the mean square.
    size = math.sqrt(np.mean(np.square(updates[name])))
    assert 0.01 < size < 0.04, name


@pytest.mark.parametrize(
  'change, message',
  [
    ({'learning_rate': -1.0}, 'learning_rate is -1.0; .* at least 0'),
    ({'b1': 1.0}, r'b1 is 1.0; it must be at least 0 and below 1'),
    ({'b2': -0.1}, r'b2 is -0.1; it must be at least 0 and below 1'),
    ({'max_grad_norm': 0.0}, 'max_grad_norm is 0.0; .* above 0'),
    ({'warmup_steps': -1}, 'warmup_steps is -1; .* at least 0'),
  ],
)
def test_refused_settings(change, message):
  with pytest.raises(ValueError, match=message):
    optim.Optimizer(**change)
