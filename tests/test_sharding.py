"""Rules, meshes and their errors; sharded work equals unsharded work."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from helpers import (
  EOS,
  GRPO,
  NO_KL,
  SHARED_PREFIX,
  SMALL,
  V3,
  distance,
  grpo_config,
  make_rows,
  mostly_slow,
)

from rlzero.models import parameters, transformer
from rlzero.rl import learner, programs, settings
from rlzero.rollout import programs as rollout_programs
from rlzero.rollout import scheduler
from rlzero.rollout.sampling import Sampling, StopCriteria
from rlzero.runtime import metrics, sharding
from rlzero.train import optim

pytestmark = [
  pytest.mark.model,
  pytest.mark.usefixtures('quick_compilation'),
]

EVEN = dataclasses.replace(SMALL, vocab_size=16)
DEEPSEEK = dataclasses.replace(V3, vocab_size=16)
MESHES = {
  'data': (SMALL, sharding.Mesh(data=8)),
  'fsdp': (SMALL, sharding.Mesh(fsdp=8)),
  'all': (EVEN, sharding.Mesh(data=2, fsdp=2, tensor=2)),
  'experts': (DEEPSEEK, sharding.Mesh(fsdp=2, expert=4)),
}


on_meshes = mostly_slow(('config', 'mesh'), MESHES, quick=('fsdp',))


def params_of(config):
  init = jax.jit(transformer.init, static_argnums=0)
  # On the host: a copy on a device would be given away with the state.
  return jax.device_get(init(config, jax.random.key(3)))


@pytest.mark.parametrize(('config', 'mesh'), MESHES.values(), ids=MESHES)
def test_parameters_are_made_in_their_parts(config, mesh):
  whole = params_of(config)
  with sharding.use(mesh):
    parts = transformer.initialise(config, jax.random.key(3))
    placed = sharding.device_put_params(parameters.AXES, whole)
  jax.tree.map(np.testing.assert_array_equal, parts, whole)
  jax.tree.map(np.testing.assert_array_equal, placed, whole)
  held = sum(
    x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(parts)
  )
  total = sum(x.nbytes for x in jax.tree.leaves(whole))
  cuts = mesh.fsdp * mesh.tensor
  assert held < 1.1 * total / cuts
  assert jax.tree.map(lambda x: x.sharding, parts) == jax.tree.map(
    lambda x: x.sharding, placed
  )


@on_meshes
@pytest.mark.usefixtures('short_shared_prefixes')
def test_gradient_on_a_mesh_is_the_one_without(config, mesh):
  rows = make_rows(GRPO, shared_prefix=SHARED_PREFIX)
  params = params_of(config)
  rule = optim.Optimizer(learning_rate=0.05).transform(4)
  alone = learner.Learner(config, GRPO, rule, 48)
  expected, totals = alone.gradient(params, rows)
  with sharding.use(mesh):
    together = learner.Learner(config, GRPO, rule, 48)
    state = together.init(params)
    grads, sums = together.gradient(state.params, rows)
    for leaf, param in zip(
      jax.tree.leaves(grads), jax.tree.leaves(state.params), strict=True
    ):
      assert leaf.sharding.is_equivalent_to(param.sharding, leaf.ndim)
    logprobs = together.logprobs(state.params, rows)
    _, facts = together.update(state, rows)
  assert distance(grads, expected) < 1e-5
  np.testing.assert_array_equal(sums.loads, totals.loads)
  for name in ('objective', 'kl', 'entropy', 'tokens', 'clipped'):
    np.testing.assert_allclose(
      getattr(sums, name), getattr(totals, name), rtol=1e-5, atol=1e-5
    )
  for one, other in zip(logprobs, alone.logprobs(params, rows), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)
  assert np.isfinite(list(facts.values())).all()


@mostly_slow('objective', {'kl': GRPO, 'no-kl': NO_KL}, quick=())
@pytest.mark.usefixtures('short_shared_prefixes')
def test_pmapped_gradient_is_the_one_of_one_device(objective):
  # Five microbatches, fewer without KL, of unlike token counts on 8 devices.
  rows = make_rows(objective, shared_prefix=SHARED_PREFIX)
  params = params_of(SMALL)
  rule = optim.Optimizer(learning_rate=0.05).transform(4)
  alone = learner.Learner(SMALL, objective, rule, 24)
  expected, totals = alone.gradient(params, rows)
  with sharding.use(sharding.Mesh(data=8)):
    each = learner.Learner(SMALL, objective, rule, 24, pmapped=True)
    state = each.init(params)
    grads, sums = each.gradient(state.params, rows)
    _, facts = each.update(state, rows)
  assert distance(grads, expected) < 1e-5
  for name, sum_of_devices in sums._asdict().items():
    if name != 'padded_tokens':  # idle devices pad
      np.testing.assert_allclose(
        sum_of_devices, getattr(totals, name), rtol=1e-5, err_msg=name
      )
  _, same = alone.update(alone.init(params), rows)
  np.testing.assert_allclose(
    facts['policy/grad_norm'], same['policy/grad_norm'], rtol=1e-5
  )


@on_meshes
@pytest.mark.usefixtures('short_shared_prefixes')
def test_completions_on_a_mesh_are_those_without(config, mesh):
  params = params_of(config)
  prompts = [scheduler.Prompt(i, [2, 3, 4 + i]) for i in range(3)]
  settings = Sampling(
    max_len=12, max_prompt_len=8, num_slots=16, decode_steps=4
  )

  def completions(params):
    return scheduler.generate(
      config, params, prompts, 8, settings, stop=StopCriteria((EOS,)), seed=5
    )[0]

  alone = completions(params)
  with sharding.use(mesh):
    placed = sharding.device_put_params(parameters.AXES, params)
    together = completions(placed)
  for one, other in zip(together, alone, strict=True):
    # Logits of noise are far apart: rounding decides no token here.
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)


def test_resharded_parameters_are_the_same_and_their_bytes_counted():
  params = params_of(EVEN)
  with sharding.use(sharding.Mesh(fsdp=8)):
    before = sharding.device_put_params(parameters.AXES, params)
    with sharding.use(sharding.Mesh(data=4, tensor=2)):
      after = sharding.device_put_params(parameters.AXES, before)
  jax.tree.map(np.testing.assert_array_equal, after, params)
  # Width 16 in 8 parts of 2, then heads in 2 parts: a device that holds an
  # eighth of the kernel gets its half of it, less the sixteenth it has.
  query = params['layers']['attention']['query']
  one = before['layers']['attention']['query']
  other = after['layers']['attention']['query']
  assert sharding.moved_bytes({'q': one}, {'q': other}) == 8 * (
    query.nbytes // 2 - query.nbytes // 16
  )
  assert sharding.moved_bytes(before, before) == 0


def _collectives(text):
  """(kind, elements of the result) of each collective of a compiled program."""
  found = []
  for line in text.splitlines():
    match = re.search(
      r'= \(?\w+\[([\d,]*)\].* (all-gather|all-reduce|all-to-all|'
      r'reduce-scatter|collective-permute)(-start)?\(',
      line,
    )
    if match:
      sizes = [int(n) for n in match[1].split(',') if n]
      found.append((match[2], int(np.prod(sizes)), sizes))
  return found


@pytest.mark.parametrize(
  'mesh', [sharding.Mesh(fsdp=8), sharding.Mesh(data=2, fsdp=2, tensor=2)]
)
def test_update_gathers_neither_the_model_nor_logits(mesh):
  # Wide enough that a layer, the tree and the logits are of different sizes.
  config = dataclasses.replace(
    EVEN, vocab_size=512, num_layers=4, width=32, mlp_width=64
  )
  params = params_of(config)
  rows = make_rows(GRPO)
  with sharding.use(mesh):
    update = learner.Learner(
      config, GRPO, optim.Optimizer(learning_rate=0.05).transform(4), 256
    )
    state = update.init(params)
    compiled = programs.lower(update, state, rows)['update'].compile()
  found = _collectives(compiled.as_text())
  total = sum(x.size for x in jax.tree.leaves(params))
  kinds = {kind for kind, _, _ in found}
  assert 'all-gather' in kinds and 'all-reduce' in kinds
  for kind, size, sizes in found:
    if kind == 'all-gather':
      # A layer's part or the head's, never the stacked layers of all.
      assert size <= 32 * 512, sizes
      if {256, 512} & set(sizes):  # of the vocabulary: a table, no logits
        assert set(sizes) <= {16, 32, 256, 512}, sizes
    assert size < total / 2, (kind, sizes)


@mostly_slow(
  ('num_slots', 'rows'), {'even': (8, 1), 'uneven': (4, 1)}, quick=('even',)
)
def test_devices_share_out_the_rows_that_are_sampled(num_slots, rows):
  """Of a compiled decoding on 4 x 2 devices; 4 rows are not for all 8."""
  config = dataclasses.replace(EVEN, vocab_size=4096)
  with sharding.use(sharding.Mesh(data=4, tensor=2)):
    lowered = rollout_programs.lower(
      config,
      sharding.abstract_params(
        parameters.AXES,
        jax.eval_shape(lambda: transformer.init(config, jax.random.key(0))),
      ),
      num_prompts=2,
      group_size=num_slots // 2,
      prompt_len=8,
      sampling=Sampling(max_len=8, max_prompt_len=8, num_slots=num_slots),
      eos_ids=(EOS,),
      seed=0,
    )
    compiled = lowered['decode'][0].lowered.compile()
  sizes = [
    size
    for _, size, axes in _collectives(compiled.as_text())
    if {4096, 2048} & set(axes)
  ]
  assert sizes and max(sizes) <= rows * 4096, sizes


@pytest.mark.parametrize(
  ('mesh', 'sentence'),
  [
    ({'data': 0}, 'Mesh.data is 0; it must be at least 1, or -1'),
    ({'data': -1, 'fsdp': -1}, 'more than one -1'),
    ({'data': 3}, '3 devices, but there are 8'),
    ({'fsdp': 5, 'tensor': -1}, '5 devices, but there are 8'),
  ],
)
def test_meshes_that_cannot_be(mesh, sentence):
  with pytest.raises(ValueError, match=sentence):
    sharding.Mesh(**mesh).build()


def test_what_does_not_divide_is_named():
  with (
    sharding.use(sharding.Mesh(data=2, tensor=4)),
    pytest.raises(
      ValueError, match=r'attention/key has 2 along axis K.*4 shards \(4 tensor'
    ),
  ):
    transformer.initialise(EVEN, jax.random.key(0))


def test_what_no_rule_knows_is_named():
  with sharding.use(sharding.Mesh(data=8)):
    with pytest.raises(ValueError, match="axis 'Y' that sharding.RULES"):
      sharding.spec('BY', (8, 2), 'An array')
    with pytest.raises(ValueError, match='Parameter layers/extra has no axes'):
      sharding.device_put_params(
        parameters.AXES, {'layers': {'extra': np.ones(2)}}
      )


def test_no_mesh_changes_nothing():
  x = np.ones((3, 2))
  assert sharding.axis_size('B') == 1
  assert sharding.device_put(x, 'BT') is x
  y = jax.numpy.ones((3, 2))
  assert sharding.constrain(y, 'BT') is y


@pytest.mark.slow
def test_run_on_a_mesh_learns_what_one_device_does(tmp_path):

  from rlzero import grpo

  for name, changes in (
    ('one', {}),
    ('mesh', {'mesh': sharding.Mesh(data=4, fsdp=2)}),
    ('pmap', {'mesh': sharding.Mesh(data=8), 'update': 'pmap'}),
  ):
    grpo.run(
      grpo_config(
        tmp_path / name, num_steps=2, save_every=2, num_prompts=4, **changes
      )
    )
  one, *others = (
    metrics.read_metrics(str(tmp_path / name))
    for name in ('one', 'mesh', 'pmap')
  )
  for first, second in zip(one * 2, sum(others, []), strict=True):
    for key in ('completion/len_mean', 'reward/mean', 'policy/grad_norm'):
      np.testing.assert_allclose(first[key], second[key], rtol=1e-4)


@pytest.mark.slow
def test_rollouts_in_a_layout_of_their_own(tmp_path):

  from rlzero.rl import collect, update

  found = []
  for layout in (None, sharding.Mesh(data=8)):
    cfg = grpo_config(
      tmp_path, mesh=sharding.Mesh(fsdp=8), rollout_mesh=layout, kl_coef=0.0
    )
    drawn = list(enumerate(cfg.task.examples('train')[: cfg.num_prompts]))
    with sharding.use(cfg.mesh), settings.make_reward_pool(cfg) as pool:
      loaded = settings.load_start(cfg)
      trainer = update.Trainer(cfg, loaded)
      collector = collect.Collector(
        cfg, trainer.learner, loaded.tokenizer, pool
      )
      found.append(collector.collect(trainer.policy, drawn))
      row = trainer.update(found[-1])
    assert np.isfinite(row['policy/grad_norm'])
  same, other = found
  assert same.records == other.records
  assert 'reshard/bytes' not in same.metrics
  assert other.metrics['reshard/bytes'] > 0
  assert other.metrics['time/reshard_s'] > 0
