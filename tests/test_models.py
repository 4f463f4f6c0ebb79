"""The named models of configs/: each is what its name says, by its shape."""

import dataclasses
import functools
import math
import pathlib

import jax
import numpy as np
import pytest

from rlzero import bench, grpo
from rlzero.models import parameters, transformer
from rlzero.runtime import config, sharding
from rlzero.types import Tokens
from rlzero.weights import mapping

_MODELS = pathlib.Path(__file__).parents[1] / 'configs' / 'models'
# Parameters as published, in millions; a tied embedding counts once.
SIZES = {
  'deepseek_r1': 671_026,
  'deepseek_r1_distill_llama_70b': 70_554,
  'deepseek_r1_distill_llama_8b': 8_030,
  'deepseek_r1_distill_qwen_14b': 14_770,
  'deepseek_r1_distill_qwen_1p5b': 1_777,
  'deepseek_r1_distill_qwen_32b': 32_764,
  'deepseek_r1_distill_qwen_7b': 7_616,
  'deepseek_r1_zero': 671_026,
  'deepseek_v3_base': 671_026,
  'gemma3_1b': 1_000,
  'gemma3_270m': 268,
  'gemma3_4b': 3_880,
  'llama3p1_8b': 8_030,
  'llama3p2_1b': 1_236,
  'llama3p2_3b': 3_213,
  'llama3p3_70b': 70_554,
  'qwen2p5_0p5b': 494,
  'qwen2p5_14b': 14_770,
  'qwen2p5_1p5b': 1_544,
  'qwen2p5_32b': 32_764,
  'qwen2p5_3b': 3_086,
  'qwen2p5_7b': 7_616,
  'qwen2p5_math_1p5b': 1_544,
  'qwen2p5_math_7b': 7_616,
  'qwen3_0p6b': 596,
  'tiny': 1,
}
# Runs that a user with accelerators starts from, and their models.
RUNS = {
  'r1_zero_llama3p2_1b_gsm8k': 'llama3p2_1b',
  'r1_zero_qwen2p5_1p5b_gsm8k': 'qwen2p5_1p5b',
  'r1_zero_qwen2p5_3b_countdown': 'qwen2p5_3b',
  'r1_zero_qwen3_0p6b_math': 'qwen3_0p6b',
}


def model(path):
  """The ModelConfig of a gin file, as a stage builds it."""
  return config.build(
    bench, [f'--gin_file={path}', '--model=@config.ModelConfig()']
  ).model


@pytest.mark.parametrize('name', SIZES)
def test_named_models_have_their_size(name):
  cfg = model(_MODELS / f'{name}.gin')
  shapes = jax.eval_shape(lambda: transformer.init(cfg, jax.random.key(0)))
  rows = {
    row.path: row.shape(parameters.axis_sizes(cfg))
    for row in mapping.table(cfg)
  }
  paths = jax.tree_util.tree_leaves_with_path(shapes)
  for path, leaf in paths:
    name_of = jax.tree_util.keystr(path, simple=True, separator='/')
    assert rows.pop(name_of) == leaf.shape, name_of
  assert not rows
  total = sum(math.prod(leaf.shape) for _, leaf in paths)
  assert round(total / 1e6) == SIZES[name]
  # It can be written, and read back as the same model.
  hf = mapping.hf_config(cfg, [0])
  assert mapping.model_config_from_hf(hf) == cfg


@pytest.mark.parametrize('run, name', RUNS.items())
def test_runs_to_start_from(run, name, monkeypatch):
  """Each builds, and its model is one whose shape is known here."""
  monkeypatch.chdir(_MODELS.parents[1])
  path = f'configs/runs/{run}.gin'
  cfg = config.build(grpo, [f'--gin_file={path}', '--workdir=somewhere'])
  text = (_MODELS.parents[1] / path).read_text()
  assert f'configs/models/{name}.gin' in text and 'Not run yet' in text
  assert cfg.checkpoint.startswith('hf://')
  shape = dataclasses.replace(
    model(_MODELS / f'{name}.gin'), dtype=cfg.dtype, remat=cfg.remat
  )
  assert (
    cfg.sampling.max_prompt_len + cfg.sampling.max_len <= shape.max_position
  )
  # A microbatch of the update, and the cache of the rollout.
  params = jax.eval_shape(lambda: transformer.init(shape, jax.random.key(0)))
  tokens = Tokens(*[jax.ShapeDtypeStruct((4, 32), np.int32)] * 3)
  hidden, _, own = jax.eval_shape(
    functools.partial(transformer.forward, shape), params, tokens
  )
  assert hidden.shape == (4, 32, shape.width) and hidden.dtype == cfg.dtype
  size = shape.num_layers, 4, shape.num_kv_heads
  assert own.key.shape == (*size, shape.head_dim, 32)
  assert own.value.shape == (*size, 32, shape.head_dim)


def test_deepseek_v3_divides_on_a_mesh():
  cfg = model(_MODELS / 'deepseek_v3_base.gin')
  shapes = jax.eval_shape(lambda: transformer.init(cfg, jax.random.key(0)))
  sizes = {'data': 1, 'fsdp': 8, 'expert': 32, 'tensor': 2}
  mesh = jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))
  with jax.sharding.use_abstract_mesh(mesh):
    specs = sharding.param_specs(parameters.AXES, shapes)
  held = sum(
    math.prod(jax.sharding.NamedSharding(mesh, spec).shard_shape(leaf.shape))
    for leaf, spec in zip(
      jax.tree.leaves(shapes), jax.tree.leaves(specs), strict=True
    )
  )
  # 653.9B parameters of experts on 512 devices, the others on 16.
  assert held < 671e9 / 512 * 1.9, held
