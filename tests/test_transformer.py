"""One forward: however tokens are laid out, the same numbers come out."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from helpers import GEMMA, MHA, MQA, V3, mostly_slow, noisy
from jax import numpy as jnp

from rlzero.models import (
  attention,
  kv_cache,
  layers,
  parameters,
  rope,
  transformer,
)
from rlzero.models.config import (
  Experts,
  Latent,
  RopeScaling,
)
from rlzero.runtime import sharding
from rlzero.types import CachedContext, KeyValues, Prompts, Tokens

GQA = dataclasses.replace(MHA, num_kv_heads=2, qkv_bias=True)
FULL = dataclasses.replace(MQA, qkv_bias=True)
V2 = dataclasses.replace(
  MHA,
  head_dim=6,
  latent=Latent(kv_rank=8, rope_dim=2, value_dim=5),
  experts=Experts(num_experts=6, num_chosen=2, width=8),
)
ARCHITECTURES = {
  'mha': MHA,
  'gqa-bias': GQA,
  'mqa-norm-untied': MQA,
  'gemma': GEMMA,
  'v2': V2,
  'v3': V3,
}
CONFIGS = pytest.mark.parametrize(
  'config', ARCHITECTURES.values(), ids=ARCHITECTURES
)


pytestmark = [
  pytest.mark.model,
  pytest.mark.usefixtures('quick_compilation'),
]


def test_rope_scaling_by_hand():
  # theta = 4 pi and H = 4: one and 1 / sqrt(4 pi) radians a position; within
  # 40 positions 6.366 and 1.796 turns.
  scaling = RopeScaling(
    factor=10.0,
    low_freq_factor=1.0,
    high_freq_factor=3.0,
    original_max_position=40,
  )
  plain = rope.frequencies(4, 4 * np.pi, None)
  np.testing.assert_allclose(plain, [1.0, 0.2820948], rtol=1e-6)
  # The first stays; of the second 0.398 stays and the rest is divided by ten.
  scaled = rope.frequencies(4, 4 * np.pi, scaling)
  kept = (40 * 0.2820948 / (2 * np.pi) - 1) / 2
  expected = [1.0, 0.2820948 * (kept + (1 - kept) / 10)]
  np.testing.assert_allclose(scaled, expected, rtol=1e-6)
  # Slow ones are divided whole.
  slow = rope.frequencies(4, 1e6, scaling)
  np.testing.assert_allclose(slow, [1.0, 1e-4], rtol=1e-6)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'factor': 0.5}, 'factor is 0.5'),
    ({'factor': 2.0, 'low_freq_factor': 4.0}, 'low_freq_factor is 4.0'),
  ],
)
def test_rope_scaling_out_of_range(change, message):
  with pytest.raises(ValueError, match=message):
    RopeScaling(**change)


def padded(sequences, width, starts=None, junk=0):
  """Token lists as right-padded rows; row i starts at position starts[i]."""
  ids = np.full((len(sequences), width), junk, np.int32)
  segments = np.zeros_like(ids)
  for i, sequence in enumerate(sequences):
    ids[i, : len(sequence)] = sequence
    segments[i, : len(sequence)] = 1
  starts = np.zeros(len(sequences)) if starts is None else np.array(starts)
  positions = starts[:, None] + np.arange(width)[None]
  return Tokens(ids, positions.astype(np.int32), segments)


def sequences(seed, lengths):
  rng = np.random.default_rng(seed)
  return [rng.integers(0, MHA.vocab_size, n).tolist() for n in lengths]


@functools.partial(jax.jit, static_argnums=0)
def forward(config, params, rows, prompts=None, context=None):
  return transformer.forward(config, params, rows, prompts, context)


@functools.partial(jax.jit, static_argnums=0)
def predicted(config, params, rows, prompts):
  hidden, prompt_hidden, _ = transformer.forward(config, params, rows, prompts)
  return transformer.predictors(hidden, prompt_hidden, rows, prompts)


def distance(first, second):
  """Largest relative distance of two trees, over their leaves."""
  return max(
    np.linalg.norm(np.subtract(a, b)) / (np.linalg.norm(b) or 1.0)
    for a, b in zip(
      jax.tree.leaves(first), jax.tree.leaves(second), strict=True
    )
  )


PROMPTS = sequences(1, (3, 6, 1))
INDEX = np.array([0, 0, 0, 1, 2, 2], np.int32)  # groups of 3, 1 and 2
ROWS = sequences(2, (5, 2, 7, 4, 1, 6))
STARTS = [len(PROMPTS[p]) for p in INDEX]


def continued(prompts, width, index, row_width, junk=0):
  """Prompts of rows that continue one each."""
  which = np.zeros((len(index), row_width), np.int32)
  return Prompts(padded(prompts, width, junk=junk), index[:, None], which)


@mostly_slow(
  ('config', 'size'),
  {
    f'{name}-{kind}': (config, size)
    for name, config in ARCHITECTURES.items()
    for kind, size in (('whole', 0), ('shared', 4))
  },
  quick=('mha-whole', 'gqa-bias-shared'),
)
def test_shared_prompt_equals_repeated_prompt(config, size):
  (shared_prefix,) = sequences(5, (size,))
  starts = [size + start for start in STARTS]
  rng = np.random.default_rng(3)
  weights = [rng.normal(size=len(row)) for row in ROWS]

  def scores(params, before, ids):
    logits = before @ transformer.head(config, params)
    logprobs = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(logprobs, ids[..., None], axis=-1)[..., 0]

  @functools.partial(jax.value_and_grad, has_aux=True)
  def shared(params):
    rows = padded(ROWS, 7, starts)
    prompts = continued(PROMPTS, 6, INDEX, 7)
    if size:
      tokens = padded(PROMPTS, 6, [size] * len(PROMPTS))
      prompts = prompts._replace(
        tokens=tokens, shared_prefix=padded([shared_prefix], size)
      )
    before = predicted(config, params, rows, prompts)
    out = scores(params, before, rows.ids)
    weight = np.zeros((6, 7), np.float32)
    for row, w in zip(weight, weights, strict=True):
      row[: len(w)] = w
    return jnp.sum(out * weight), out

  @functools.partial(jax.value_and_grad, has_aux=True)
  def repeated(params):
    whole = [
      shared_prefix + PROMPTS[p] + r for p, r in zip(INDEX, ROWS, strict=True)
    ]
    rows = padded(whole, 17)
    hidden, _, _ = forward(config, params, rows)
    out = scores(params, hidden[:, :-1], rows.ids[:, 1:])
    weight = np.zeros((6, 16), np.float32)
    for row, start, w in zip(weight, starts, weights, strict=True):
      row[start - 1 : start - 1 + len(w)] = w
    return jnp.sum(out * weight), out

  params = noisy(config)
  (_, first), first_grads = jax.jit(shared)(params)
  (_, second), second_grads = jax.jit(repeated)(params)
  for i, (start, row) in enumerate(zip(starts, ROWS, strict=True)):
    np.testing.assert_allclose(
      first[i, : len(row)],
      second[i, start - 1 : start - 1 + len(row)],
      rtol=1e-5,
    )
  assert distance(first_grads, second_grads) < 1e-5


def test_packed_rows_equal_separate_rows():
  params = noisy(GQA)
  first, second = sequences(4, (4, 3))
  packed = Tokens(
    np.array([first + second + [0]] * 2, np.int32),
    np.array([[0, 1, 2, 3, 0, 1, 2, 0]] * 2, np.int32),
    np.array([[1, 1, 1, 1, 2, 2, 2, 0]] * 2, np.int32),
  )
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  together, _, _ = forward(GQA, params, packed)
  apart, _, _ = forward(GQA, params, padded([first, second], 8))
  close(together[0, :4], apart[0, :4])
  close(together[0, 4:7], apart[1, :3])


@pytest.mark.parametrize('shared', [(0, 0), (0, 1), (1, 0)])
def test_packed_completions_see_their_own_prompt_alone(shared):
  # One row holds a completion of prompt 1 and one of prompt 0, or two of one.
  params = noisy(GQA)
  first, second = sequences(4, (4, 3))
  starts = [len(PROMPTS[p]) for p in shared]
  rows = padded([first, second], 8, starts)
  index = np.array(shared, np.int32)
  apart = predicted(GQA, params, rows, continued(PROMPTS, 6, index, 8))
  packed = Tokens(
    np.array([first + second + [0]], np.int32),
    np.array(
      [[*range(starts[0], starts[0] + 4), *range(starts[1], starts[1] + 3), 0]],
      np.int32,
    ),
    np.array([[1, 1, 1, 1, 2, 2, 2, 0]], np.int32),
  )
  prompts = Prompts(
    padded(PROMPTS, 6),
    np.array([[1, 0]], np.int32),
    np.array([[1 - shared[0]] * 4 + [1 - shared[1]] * 3 + [0]], np.int32),
  )
  together = predicted(GQA, params, packed, prompts)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  close(together[0, :4], apart[0, :4])
  close(together[0, 4:7], apart[1, :3])


@CONFIGS
def test_cached_decoding_equals_full_forward(config):
  params = noisy(config)
  lengths = np.array([5, 8])  # of the prompts; then three tokens each
  whole = sequences(5, lengths + 3)
  full, _, _ = forward(config, params, padded(whole, 11))
  starts = [w[:n] for w, n in zip(whole, lengths, strict=True)]
  _, _, held = forward(config, params, padded(starts, 8))
  axes = kv_cache.position_axes(config)
  fresh = jax.tree.map(np.array, kv_cache.empty_cache(config, 2, 3))
  rows = np.arange(2)
  for i in range(3):
    here = Tokens(
      np.array([w[n + i] for w, n in zip(whole, lengths, strict=True)])[
        :, None
      ].astype(np.int32),
      (lengths + i)[:, None].astype(np.int32),
      np.ones((2, 1), np.int32),
    )
    valid = (
      np.arange(8)[None] < lengths[:, None],
      np.broadcast_to(np.arange(3) < i, (2, 3)),
    )
    places = (
      np.broadcast_to(np.arange(8, dtype=np.int32), (2, 8)),
      (lengths[:, None] + np.arange(3)).astype(np.int32),
    )
    hidden, _, own = forward(
      config, params, here, context=CachedContext((held, fresh), valid, places)
    )
    np.testing.assert_allclose(
      hidden[:, 0], full[rows, lengths + i], rtol=1e-5, atol=1e-5
    )
    for axis, buffer, new in zip(axes, fresh, own, strict=True):
      if buffer is not None:
        np.moveaxis(buffer, axis, 0)[i] = np.moveaxis(new, axis, 0)[0]
  # The same of layers that are apart, over caches that are.
  each = jax.tree.map(
    lambda x: tuple(np.split(x, len(x))),
    CachedContext((held, fresh), valid, places),
  )
  each = each._replace(valid=valid, positions=places)
  alone, _, mine = forward(
    config, parameters.unstack(params), here, context=each
  )
  np.testing.assert_allclose(alone, hidden, rtol=1e-5, atol=1e-5)
  joined = KeyValues(*(part and np.concatenate(part) for part in mine))
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
    joined,
    own,
  )


@pytest.mark.parametrize('config', [GEMMA, V3], ids=['gemma', 'v3'])
def test_parameters_in_the_compute_dtype_give_the_same_bits(config):
  config = dataclasses.replace(config, dtype='bfloat16')
  params = noisy(config)
  rows = padded(sequences(5, (8, 5)), 8)
  before, _, keys = forward(config, params, rows)
  narrow = parameters.cast(config, params)
  after, _, same = forward(config, narrow, rows)
  jax.tree.map(np.testing.assert_array_equal, (before, keys), (after, same))
  sizes = [x.nbytes for x in jax.tree.leaves((params, narrow))]
  half = len(sizes) // 2
  assert sum(sizes[half:]) < 0.6 * sum(sizes[:half])


def test_a_later_token_changes_nothing_earlier():
  params = noisy(GQA)
  rows = padded(sequences(6, (8,)), 8)
  before, _, _ = forward(GQA, params, rows)
  ids = rows.ids.copy()
  ids[0, 5] = (ids[0, 5] + 1) % GQA.vocab_size
  after, _, _ = forward(GQA, params, rows._replace(ids=ids))
  np.testing.assert_array_equal(before[0, :5], after[0, :5])
  assert (np.abs(before - after)[0, 5:].max(axis=-1) > 1e-3).all()


def test_padding_changes_nothing():
  params = noisy(GQA)

  def run(junk):
    rows = padded(ROWS, 7, STARTS, junk)
    prompts = continued(PROMPTS, 6, INDEX, 7, junk)
    return predicted(GQA, params, rows, prompts)

  first, second = run(0), run(9)
  for i, row in enumerate(ROWS):
    np.testing.assert_array_equal(first[i, : len(row)], second[i, : len(row)])
  # Wider rows are other shapes: equal to rounding.
  rows = padded(ROWS, 11, STARTS)
  wide = predicted(GQA, params, rows, continued(PROMPTS, 9, INDEX, 11))
  for i, row in enumerate(ROWS):
    # 1e-5: wider products add in another order, and on some AMD EPYCs a value
    # near 0.1 moves by 2.4e-6.
    np.testing.assert_allclose(
      first[i, : len(row)], wide[i, : len(row)], rtol=1e-5, atol=1e-5
    )


def test_only_differences_of_positions_matter():
  params = noisy(GQA)
  rows = padded(ROWS, 7)
  here, _, _ = forward(GQA, params, rows)
  moved = rows._replace(positions=rows.positions + 50)
  there, _, _ = forward(GQA, params, moved)
  np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-4)
  stretched = rows._replace(positions=rows.positions * 2)
  other, _, _ = forward(GQA, params, stretched)
  assert np.abs(here - other).max() > 0.01


def test_bfloat16_is_close_and_keeps_float32_parameters():
  config = dataclasses.replace(GQA, dtype='bfloat16')
  params = noisy(config, scale=0.05)
  assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  rows = padded(ROWS, 7)
  exact, _, _ = forward(GQA, params, rows)
  close, _, own = forward(config, params, rows)
  assert close.dtype == own.key.dtype == jnp.bfloat16
  assert distance(np.float32(close), exact) < 1e-2
  grads = jax.eval_shape(
    jax.grad(lambda p: jnp.sum(jnp.float32(forward(config, p, rows)[0]))),
    params,
  )
  assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype('float32')}


@pytest.mark.parametrize('platform, barriers', [('cpu', 2), ('tpu', 0)])
def test_only_a_cpu_keeps_the_products_of_an_mlp_apart(
  platform, barriers, monkeypatch
):
  monkeypatch.setattr(sharding, 'platform', lambda: platform)
  arrays = np.ones((2, 3, 4)), *[np.ones(s) for s in ((4, 8), (4, 8), (8, 4))]
  jaxpr = jax.make_jaxpr(lambda *a: layers.glu(*a, MHA))(*arrays)
  assert str(jaxpr).count('optimization_barrier') == barriers


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('config', [GQA, MQA], ids=['tied', 'untied'])
def test_next_logits_are_float32_whether_layers_are_unstacked_or_not(
  config, dtype
):
  config = dataclasses.replace(config, dtype=dtype)
  params = transformer.init(config, jax.random.key(0))
  hidden = jax.random.normal(jax.random.key(1), (3, config.width), dtype)
  exact = np.float32(hidden) @ np.float32(transformer.head(config, params))
  for held in (params, parameters.unstack(params)):
    logits = transformer.next_logits(config, held, hidden)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, exact, rtol=1e-5, atol=1e-6)


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.grad, argnums=1)
def gradients(config, params):
  rows = padded(ROWS, 7, STARTS)
  prompts = continued(PROMPTS, 6, INDEX, 7)
  before = predicted(config, params, rows, prompts)
  logits = before @ transformer.head(config, params)
  chosen = jnp.take_along_axis(
    jax.nn.log_softmax(logits), rows.ids[..., None], axis=-1
  )
  return jnp.sum(chosen[..., 0] * (rows.segments > 0))


def test_every_parameter_of_every_layer_gets_a_gradient():
  config = FULL
  params = jax.jit(transformer.init, static_argnums=0)(
    config, jax.random.key(1)
  )
  assert {'embed', 'layers', 'final_norm', 'head'} == set(params)
  for path, grad in jax.tree_util.tree_leaves_with_path(
    gradients(config, params)
  ):
    name = jax.tree_util.keystr(path)
    layers = grad if 'layers' in name else grad[None]
    for layer in layers:
      assert np.abs(layer).max() > 1e-7, name


def test_remat_changes_nothing():
  params = noisy(FULL)
  again = gradients(dataclasses.replace(FULL, remat=True), params)
  assert distance(again, gradients(FULL, params)) < 1e-6


@pytest.mark.parametrize('remat', [False, True])
def test_what_going_back_finds(remat):
  """Of a layer: its input, and without remat its products and its heads; no
  scores, which here would be more than all of that."""
  config = dataclasses.replace(GQA, remat=remat)
  params = noisy(config)
  tokens = 3 * 64
  rows = Tokens(*(jnp.ones((3, 64), jnp.int32),) * 3)
  _, back = jax.vjp(lambda p: transformer.forward(config, p, rows)[0], params)
  weights = {x.shape for x in jax.tree.leaves(params)}
  kept = sum(
    x.size
    for x in jax.tree.leaves(back)
    if x.shape[:1] == (config.num_layers,) and x.shape not in weights
  )
  heads = 2 * (config.num_heads + config.num_kv_heads) * config.head_dim
  wanted = config.width
  if not remat:
    wanted += config.width + heads + 2 * config.mlp_width
  assert kept == wanted * tokens * config.num_layers


def test_predictors_shift_by_one():
  # Prompts of 1 and 2 tokens with hidden states 10 and 20, 30; row 0 holds
  # completions of prompts 1 and 0, row 1 one of prompt 0 and padding.
  prompts = Prompts(
    padded([[5], [6, 7]], 2),
    index=np.array([[1, 0], [0, 0]], np.int32),
    which=np.array([[0, 0, 1], [1, 1, 0]], np.int32),
  )
  prompt_hidden = jnp.array([[[10.0], [99.0]], [[20.0], [30.0]]])
  rows = Tokens(
    np.zeros((2, 3), np.int32),
    np.zeros((2, 3), np.int32),
    np.array([[1, 1, 2], [1, 1, 0]], np.int32),
  )
  hidden = jnp.array([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]])
  before = transformer.predictors(hidden, prompt_hidden, rows, prompts)
  np.testing.assert_array_equal(before[0, :, 0], [30, 1, 10])
  np.testing.assert_array_equal(before[1, :2, 0], [10, 4])


def test_prompts_and_prefix_together_are_refused():
  rows = padded(ROWS, 7)
  with pytest.raises(ValueError, match='prompts or a context, not both'):
    transformer.forward(
      MHA,
      noisy(MHA),
      rows,
      continued(PROMPTS, 6, INDEX, 7),
      CachedContext((), (), ()),
    )


@pytest.mark.parametrize('t', [1, 4])  # decoding, and many queries a row
def test_attend_equals_a_plain_loop(t):
  rng = np.random.default_rng(7)
  b, k, r, h = 2, 2, 3, 6
  query = rng.normal(size=(b, k, r, t, h)).astype(np.float32)
  parts = []
  for size in (5, t):
    key, value = rng.normal(size=(2, b, k, size, h)).astype(np.float32)
    visible = rng.random((b, t, size)) < 0.6
    visible[..., 0] = True
    parts.append(attention.Part(*map(jnp.asarray, (key, value, visible))))
  out = attention.attend(jnp.asarray(query), parts, h**-0.5)
  for i, j, n, q in np.ndindex(b, k, r, t):
    seen = [np.flatnonzero(part.visible[i, q]) for part in parts]
    keys, values = (
      np.concatenate(
        [
          np.asarray(part[f])[i, j, s]
          for part, s in zip(parts, seen, strict=True)
        ]
      )
      for f in (0, 1)
    )
    weights = np.exp(keys @ query[i, j, n, q] / np.sqrt(h))
    expected = weights @ values / weights.sum()
    # A sum near 0 of numbers near 1 is as exact as these are.
    np.testing.assert_allclose(out[i, j, n, q], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'num_kv_heads': 3}, 'num_heads is .* multiple of 3'),
    ({'head_dim': 5}, 'head_dim is 5; .* multiple of 2'),
    ({'width': 0}, 'ModelConfig.width is 0'),
    ({'dtype': 'float16'}, "is 'float16'; choose one of"),
  ],
)
def test_refused_configs(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(MHA, **change)
