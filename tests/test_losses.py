"""Each equation against numbers worked out by hand."""

import functools
import math

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from rlzero.models import vocab_head
from rlzero.rl import losses

pytestmark = pytest.mark.model


def test_group_advantages_by_hand():
  # Rewards 1, 0, 0, 1: mean 1/2, deviations +-1/2, standard deviation 1/2.
  # Rewards 2, 0, 0, 0: mean 1/2, variance (9 + 3) / 16 = 3/4.
  rewards = jnp.array([[1.0, 0, 0, 1], [2.0, 0, 0, 0]])
  std = math.sqrt(3) / 2
  np.testing.assert_allclose(
    losses.group_advantages(rewards),
    [[1, -1, -1, 1], [1.5 / std, -0.5 / std, -0.5 / std, -0.5 / std]],
    rtol=1e-6,
  )
  np.testing.assert_allclose(
    losses.group_advantages(rewards, normalize_std=False),
    [[0.5, -0.5, -0.5, 0.5], [1.5, -0.5, -0.5, -0.5]],
    rtol=1e-6,
  )


@pytest.mark.parametrize('normalize_std', [True, False])
def test_equal_rewards_are_no_signal(normalize_std):
  # The float32 mean of equal rewards is not always that reward.
  values = np.float32([0, 1, 0.1, 0.3, 1.1, 2.7, -0.7, 1e6 / 3, 1e-7])
  for size in (2, 3, 7, 11, 16):
    rewards = jnp.asarray(np.repeat(values[:, None], size, axis=1))
    advantages = losses.group_advantages(rewards, normalize_std)
    np.testing.assert_array_equal(advantages, np.zeros_like(rewards))


@pytest.mark.parametrize('unit', [1e-7, 1.0, 1e6])
def test_a_signal_is_one_whatever_its_unit(unit):
  rewards = np.float32(unit) * np.float32([[1, 0, 0, 1], [3, 3, 3, 3]])
  np.testing.assert_allclose(
    losses.group_advantages(rewards), [[1, -1, -1, 1], [0, 0, 0, 0]], rtol=1e-5
  )
  # A sum in another order differs in its last bit: not a signal.
  rewards[1, 0] = np.nextafter(rewards[1, 0], np.float32(np.inf))
  np.testing.assert_array_equal(losses.group_advantages(rewards)[1], 0)


@pytest.mark.parametrize(
  'ratio, advantage, gain, slope',
  [
    (1.1, 2.0, 2.2, 2.0),  # inside
    (1.5, 2.0, 2.6, 0.0),  # good and already likelier: 1.3 * 2, no push
    (1.5, -2.0, -3.0, -2.0),  # bad and likelier: not clipped
    (0.5, 2.0, 1.0, 2.0),  # good and less likely: not clipped
    (0.5, -2.0, -1.8, 0.0),  # bad and less likely already: 0.9 * -2
  ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, gain, slope):
  def surrogate(ratio):
    return losses.clipped_surrogate(
      ratio, jnp.float32(advantage), clip_low=0.1, clip_high=0.3
    )

  value, gradient = jax.value_and_grad(surrogate)(jnp.float32(ratio))
  np.testing.assert_allclose(value, gain, rtol=1e-6)
  np.testing.assert_allclose(gradient, slope, rtol=1e-6)


def test_kl_k3_by_hand():
  # ref/pi = 2: 2 - log 2 - 1; ref/pi = 1/2: 1/2 + log 2 - 1; equal: 0.
  kl = losses.kl_k3(
    jnp.log(jnp.array([0.2, 0.4, 0.3])), jnp.log(jnp.array([0.4, 0.2, 0.3]))
  )
  np.testing.assert_allclose(
    kl, [1 - math.log(2), math.log(2) - 0.5, 0], rtol=1e-6, atol=1e-7
  )
  rng = np.random.default_rng(0)
  kl = losses.kl_k3(*jnp.asarray(rng.normal(-2, 2, (2, 500)), jnp.float32))
  assert kl.min() >= 0


def test_gradient_of_k3_pulls_to_the_reference_and_that_of_k1_does_not():
  # Tokens are drawn from pi, so the expected gradient of a loss taken on the
  # drawn tokens is sum_a pi(a) d/dtheta loss(a): all four tokens counted.
  logits = jnp.array([1.0, -0.5, 0.3, 0.0])
  reference = jax.nn.log_softmax(jnp.array([0.2, 0.4, -1.0, 0.6]))
  drawn = jax.nn.softmax(logits)

  def expected(loss):
    return jax.grad(
      lambda x: jnp.sum(drawn * loss(jax.nn.log_softmax(x), reference))
    )(logits)

  k1 = expected(lambda logprobs, ref: logprobs - ref)
  np.testing.assert_allclose(k1, np.zeros(4), atol=1e-6)
  # That of k3 is the gradient of the KL from the reference to the policy.
  forward_kl = jax.grad(
    lambda x: -jnp.sum(jnp.exp(reference) * jax.nn.log_softmax(x))
  )(logits)
  k3 = expected(losses.kl_k3)
  np.testing.assert_allclose(k3, forward_kl, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    k3, drawn - jnp.exp(reference), rtol=1e-5, atol=1e-6
  )


def test_token_weights_by_hand():
  mask = jnp.array([[1.0, 1, 0, 0], [1.0, 1, 1, 1], [0.0, 0, 0, 0]])
  lengths = mask * jnp.array([[2.0], [4.0], [0.0]])
  np.testing.assert_allclose(
    losses.token_weights(mask, lengths, 'sequence_mean', 8),
    [[0.5, 0.5, 0, 0], [0.25] * 4, [0] * 4],
  )
  np.testing.assert_allclose(
    losses.token_weights(mask, lengths, 'constant', 8),
    [[0.125, 0.125, 0, 0], [0.125] * 4, [0] * 4],
  )


# One piece; pieces that fit; a ragged last piece.
@pytest.mark.parametrize('chunk', [64, 5, 4])
def test_chunked_logprobs_equal_log_softmax(chunk):
  rng = np.random.default_rng(1)
  hidden = jnp.asarray(rng.normal(size=(3, 5, 6)), jnp.float32)
  head = jnp.asarray(rng.normal(size=(6, 11)), jnp.float32)
  targets = jnp.asarray(rng.integers(0, 11, (3, 5)))
  weights = jnp.asarray(rng.normal(size=(2, 3, 5)), jnp.float32)
  temperature = 0.7

  def chunked(hidden, head):
    out = vocab_head.logprobs_and_entropy(
      hidden, head, targets, temperature, chunk
    )
    return jnp.sum(jnp.stack(out) * weights), out

  def plain(hidden, head):
    logprobs = jax.nn.log_softmax(hidden @ head / temperature)
    chosen = jnp.take_along_axis(logprobs, targets[..., None], -1)[..., 0]
    entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
    out = chosen, entropy
    return jnp.sum(jnp.stack(out) * weights), out

  first, second = (
    jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(hidden, head)
    for f in (chunked, plain)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    first,
    second,
  )


@pytest.mark.parametrize(('chunk', 'shape'), [(64, (1, 2, 8)), (1, (3, 2, 4))])
def test_chunks_divide_where_a_mesh_shards_the_sequence(
  chunk, shape, monkeypatch
):
  shards = {'B': 1, 'T': 4}
  monkeypatch.setattr(vocab_head.sharding, 'axis_size', shards.get)
  rows = jnp.arange(10.0).reshape(2, 5)
  chunks = vocab_head.split_chunks(rows, chunk)
  assert chunks.shape == shape
  np.testing.assert_array_equal(vocab_head.merge_chunks(chunks, rows), rows)


@pytest.mark.parametrize('chunk', [64, 5, 4])
def test_one_pass_equals_the_plain_gradient(chunk):
  rng = np.random.default_rng(4)
  hidden = jnp.asarray(rng.normal(size=(3, 5, 6)), jnp.float32)
  head = jnp.asarray(rng.normal(size=(6, 11)), jnp.float32)
  targets = jnp.asarray(rng.integers(0, 11, (3, 5)))
  weights = jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)

  def terms(logprobs, entropy, weights):
    value = jnp.sum(weights * jnp.exp(logprobs))
    return value, jnp.sum(jnp.where(weights != 0, logprobs + entropy, 0.0))

  def plain(hidden, head):
    logprobs = jax.nn.log_softmax(hidden @ head / 0.7)
    entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
    return terms(
      jnp.take_along_axis(logprobs, targets[..., None], -1)[..., 0],
      entropy,
      weights,
    )

  def one_pass(hidden, head):
    return vocab_head.fused_logprob_loss(
      terms, 0.7, chunk, hidden, head, targets, weights
    )

  # The gradient of a multiple of the sum.
  first, second = (
    jax.jit(
      jax.value_and_grad(
        lambda h, w, f=f: jax.tree.map(lambda x: -2 * x, f(h, w)),
        argnums=(0, 1),
        has_aux=True,
      )
    )(hidden, head)
    for f in (one_pass, plain)
  )
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, first, second)
  jax.tree.map(close, one_pass(hidden, head), plain(hidden, head))


def test_one_pass_has_three_products_with_the_head():
  hidden, head = jnp.zeros((2, 4, 4)), jnp.zeros((4, 512))
  targets = jnp.zeros((2, 4), jnp.int32)

  def terms(logprobs, entropy, _):
    return jnp.sum(logprobs), jnp.sum(entropy)

  def loss(hidden, head):
    return vocab_head.fused_logprob_loss(
      terms, 1.0, 8, hidden, head, targets, ()
    )[0]

  text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(hidden, head).as_text()
  assert text.count('dot_general') == 3


def test_logits_of_all_tokens_are_never_held():
  hidden, head = jnp.zeros((2, 32, 4)), jnp.zeros((4, 512))
  targets = jnp.zeros((2, 32), jnp.int32)

  def loss(hidden):
    logprobs, _ = vocab_head.logprobs_and_entropy(
      hidden, head, targets, chunk=8
    )
    return jnp.sum(logprobs)

  text = jax.jit(jax.grad(loss)).lower(hidden).as_text()
  assert '8x512xf32' in text
  for whole in ('64x512xf32', '2x32x512xf32', '8x8x512xf32', '8x2x4x512xf32'):
    assert whole not in text


def log_odds(*probabilities):
  """Hidden states whose logits, with the identity as head, are log p."""
  return jnp.log(jnp.asarray(probabilities, jnp.float32))[None, None]


@pytest.mark.parametrize(
  ('direction', 'kl', 'slopes'),
  [
    # Teacher p = (1/4, 3/4), student q = (1/2, 1/2).
    # KL(p||q) = 1/4 ln(1/2) + 3/4 ln(3/2); its slope in the logits is q - p.
    ('forward', 0.25 * np.log(0.5) + 0.75 * np.log(1.5), (0.25, -0.25)),
    # KL(q||p) = 1/2 ln 2 + 1/2 ln(2/3); slope q (log(q/p) - KL).
    (
      'reverse',
      0.5 * np.log(2) + 0.5 * np.log(2 / 3),
      (0.25 * np.log(3), -0.25 * np.log(3)),
    ),
  ],
)
def test_distillation_kl_by_hand(direction, kl, slopes):
  identity, teacher = jnp.eye(2), log_odds(0.25, 0.75)

  def loss(hidden):
    return vocab_head.distillation_kl(
      hidden, identity, teacher, identity, direction
    )[0, 0]

  value, gradient = jax.value_and_grad(loss)(log_odds(0.5, 0.5))
  assert value == pytest.approx(kl, abs=1e-6)
  np.testing.assert_allclose(gradient[0, 0], slopes, atol=1e-6)
  assert loss(teacher) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize('direction', ['forward', 'reverse'])
@pytest.mark.parametrize('chunk', [7, 512])
def test_chunked_kl_equals_the_plain_one(direction, chunk):
  keys = jax.random.split(jax.random.key(0), 4)
  hidden, other = (jax.random.normal(k, (2, 5, 3)) for k in keys[:2])
  head, other_head = (jax.random.normal(k, (3, 11)) for k in keys[2:])

  def plain(hidden, head):
    q = jax.nn.log_softmax(hidden @ head)
    p = jax.nn.log_softmax(other @ other_head)
    a, b = (p, q) if direction == 'forward' else (q, p)
    return jnp.sum(jnp.exp(a) * (a - b), axis=-1)

  def chunked(hidden, head):
    return vocab_head.distillation_kl(
      hidden, head, other, other_head, direction, chunk
    )

  np.testing.assert_allclose(
    chunked(hidden, head), plain(hidden, head), atol=1e-5
  )
  first, second = (
    jax.grad(lambda h, w, f=f: jnp.sum(f(h, w) ** 2), argnums=(0, 1))(
      hidden, head
    )
    for f in (chunked, plain)
  )
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  jax.tree.map(close, first, second)


def test_kl_never_holds_the_logits_of_all_tokens():
  hidden, head = jnp.zeros((2, 32, 4)), jnp.zeros((4, 512))

  def loss(hidden):
    kl = vocab_head.distillation_kl(hidden, head, hidden, head, 'forward', 8)
    return jnp.sum(kl)

  text = jax.jit(jax.grad(loss)).lower(hidden).as_text()
  assert '8x512xf32' in text
  for whole in ('64x512xf32', '2x32x512xf32', '8x8x512xf32', '8x2x4x512xf32'):
    assert whole not in text
