"""Log-probs, losses and KL in chunks against the plain computation."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from rlzero.models import vocab_head

pytestmark = pytest.mark.model


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


@pytest.mark.parametrize('of_entropy', [False, True])
@pytest.mark.parametrize('chunk', [64, 5, 4])
def test_one_pass_equals_the_plain_gradient(chunk, of_entropy):
  rng = np.random.default_rng(4)
  hidden = jnp.asarray(rng.normal(size=(3, 5, 6)), jnp.float32)
  head = jnp.asarray(rng.normal(size=(6, 11)), jnp.float32)
  targets = jnp.asarray(rng.integers(0, 11, (3, 5)))
  weights = jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)

  def terms(logprobs, entropy, weights):
    value = jnp.sum(weights * jnp.exp(logprobs))
    if of_entropy:
      value += jnp.sum(weights**2 * entropy**2)
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
      terms, 0.7, chunk, of_entropy, hidden, head, targets, weights
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
      terms, 1.0, 8, False, hidden, head, targets, ()
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
