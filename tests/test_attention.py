"""Fused attention: the plain path's values and gradients, on every backend."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
from jax import numpy as jnp

from rlzero.models import attention, parameters, splash, transformer
from rlzero.models.config import Latent, ModelConfig
from rlzero.rl import learner, programs
from rlzero.rl.objective import Objective
from rlzero.rollout.sampling import Sampling
from rlzero.runtime import sharding
from rlzero.train import packing

pytestmark = [
  pytest.mark.model,
  pytest.mark.usefixtures('quick_compilation'),
]

GQA = ModelConfig(
  vocab_size=32,
  num_layers=1,
  width=16,
  mlp_width=24,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
)
LATENT = dataclasses.replace(
  GQA,
  num_kv_heads=4,
  head_dim=6,
  latent=Latent(kv_rank=8, rope_dim=2, value_dim=5),
)
OBJECTIVE = Objective(kl_coef=0.1)
SAMPLING = Sampling(max_len=128)


def _rows() -> packing.RolloutBatch:
  """Completions of two prompts, some of which share a row of 128 tokens."""
  rng = np.random.default_rng(0)
  lengths = [50, 40, 128, 35, 120, 110]  # four rows, hardly a token empty

  def draw(size):
    return rng.integers(1, 31, size)

  return packing.RolloutBatch(
    # With a beginning in common, which is shared under `short_shared_prefixes`.
    prompts=[[5, 9, *draw(7).tolist()], [5, 9, *draw(12).tolist()]],
    prompt_index=np.array([0, 0, 0, 1, 1, 1]),
    completions=[draw(n) for n in lengths],
    old_logprobs=[np.float32(rng.normal(-3.4, 0.3, n)) for n in lengths],
    ref_logprobs=[np.float32(rng.normal(-3.4, 0.3, n)) for n in lengths],
    advantages=np.float32([1, -1, 0.5, 2, -1, -1]),
  )


def _micro() -> packing.Microbatch:
  ((_, micro),) = packing.microbatches(
    _rows(), np.arange(6), 512, 128, multiple=2
  )
  assert micro.prompts.shared_prefix.ids.tolist() == [[5, 9]] * 2
  assert np.any(micro.prompts.which > 0)
  assert np.any(micro.tokens.segments == 0)
  return micro


def _loss_and_gradient(config, params, micro):
  loss = functools.partial(learner._loss, config, OBJECTIVE, SAMPLING)
  (value, _), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
    params, {}, micro
  )
  return value, grads


def _assert_same(first, second):
  """Each array to 1e-5 of its norm."""

  def check(a, b):
    assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a)

  jax.tree.map(check, first, second)


def _params(config):
  params = transformer.init(config, jax.random.key(0))
  return jax.tree.map(lambda x: 3 * x, params)  # attention is not flat


@pytest.fixture
def on_tpu(monkeypatch):
  """As on a TPU, but kernels run as plain JAX."""
  interpreted = functools.partial(splash.attend, interpret=True)
  monkeypatch.setattr(splash, 'attend', interpreted)
  monkeypatch.setattr(sharding, 'platform', lambda: 'tpu')


@pytest.mark.slow
@pytest.mark.usefixtures('short_shared_prefixes')
def test_splash_attention_is_the_plain_path_on_a_mesh_too(request):
  params, micro = _params(LATENT), _micro()
  plain = _loss_and_gradient(LATENT, params, micro)
  request.getfixturevalue('on_tpu')
  assert attention.fuses(LATENT, 128)
  with sharding.use(sharding.Mesh(data=2, tensor=2), jax.devices()[:4]):
    on_mesh = sharding.device_put_params(parameters.AXES, params)
    fused = _loss_and_gradient(LATENT, on_mesh, learner.put(micro))
    _assert_same(plain, jax.device_get(fused))


@pytest.mark.parametrize('platform', ['tpu', 'gpu'])
def test_a_token_looks_at_parts_that_are_not_joined(platform, monkeypatch):
  """Decoding: a shared prefix, a cache that is empty in row 1, the token."""
  rng = np.random.default_rng(3)
  visible = [np.ones((2, 1, 5), bool), rng.random((2, 1, 9)) < 0.5]
  visible += [np.ones((2, 1, 1), bool)]
  visible[1][1] = False
  rows = 1, 2, 2  # the prefix is there once

  def numbers(*shape):
    return jnp.float32(3 * rng.normal(size=shape))

  parts = [
    attention.Part(
      numbers(num_rows, 2, seen.shape[2], 8),
      numbers(num_rows, 2, seen.shape[2], 8),
      jnp.array(seen),
    )
    for num_rows, seen in zip(rows, visible, strict=True)
  ]
  query = numbers(2, 2, 3, 1, 8)
  plain = attention.attend(query, parts, 0.4)
  monkeypatch.setattr(sharding, 'platform', lambda: platform)
  apart = attention.attend(query, parts, 0.4)
  assert np.isfinite(plain).all()
  np.testing.assert_allclose(apart, plain, rtol=1e-5, atol=1e-6)
  text = str(jax.make_jaxpr(lambda q: attention.attend(q, parts, 0.4))(query))
  assert 'concatenate' not in text


@pytest.mark.usefixtures('short_shared_prefixes')
def test_the_call_for_gpus_is_the_plain_path(monkeypatch):
  """All but the kernel itself, for which there is no device here."""
  params, micro = _params(GQA), _micro()
  plain = _loss_and_gradient(GQA, params, micro)
  monkeypatch.setattr(attention, 'fuses', lambda config, length: length >= 128)
  monkeypatch.setattr(sharding, 'platform', lambda: 'gpu')
  monkeypatch.setattr(
    attention,
    '_cudnn',
    functools.partial(attention._cudnn, implementation='xla'),
  )
  _assert_same(plain, _loss_and_gradient(GQA, params, micro))


def test_what_has_a_kernel(monkeypatch):
  short = dataclasses.replace(GQA, dtype='bfloat16')
  windowed = dataclasses.replace(GQA, window=4, global_every=2)
  off = dataclasses.replace(GQA, fused_attention=False)
  assert not attention.fuses(short, 128)  # of this CPU
  monkeypatch.setattr(sharding, 'platform', lambda: 'tpu')
  assert attention.fuses(GQA, 128)
  assert not attention.fuses(GQA, 127)
  assert not attention.fuses(windowed, 128)
  assert not attention.fuses(off, 128)
  monkeypatch.setattr(sharding, 'platform', lambda: 'gpu')
  assert attention.fuses(short, 128)
  assert not attention.fuses(GQA, 128)  # float32
  assert not attention.fuses(dataclasses.replace(short, head_dim=12), 128)
  assert not attention.fuses(dataclasses.replace(LATENT, dtype='bfloat16'), 128)


@pytest.mark.parity
@pytest.mark.usefixtures('short_shared_prefixes')
def test_the_update_compiles_for_a_tpu_with_the_kernels(tpu_devices):
  config = dataclasses.replace(GQA, head_dim=64, dtype='bfloat16')
  update = learner.Learner(
    config, OBJECTIVE, optax.sgd(1.0), 512, sampling=SAMPLING
  )
  with sharding.use(sharding.Mesh(data=2, tensor=2), tpu_devices):
    shapes = jax.eval_shape(lambda: transformer.init(config, jax.random.key(0)))
    state = programs.abstract_state(update, shapes)
    lowered = programs.lower(update, state, _rows())['update']
    text = lowered.compile().as_text()
  # Forward and backward, of queries and of keys, of three parts: the shared
  # prefix, the prompts and the rows' own.
  assert text.count('tpu_custom_call') >= 9
