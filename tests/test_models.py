"""The named models of configs/: each is what its name says, by its shape."""

import math
import pathlib

import jax
import pytest

from rlzero import bench, config
from rlzero.models import transformer
from rlzero.weights import mapping
from rlzero.weights import rows as rows_of

_MODELS = pathlib.Path(__file__).parents[1] / 'configs' / 'models'
# Parameters as published, in millions; a tied embedding counts once.
SIZES = {
  'deepseek_r1_distill_llama_70b': 70_554,
  'deepseek_r1_distill_llama_8b': 8_030,
  'deepseek_r1_distill_qwen_14b': 14_770,
  'deepseek_r1_distill_qwen_1p5b': 1_777,
  'deepseek_r1_distill_qwen_32b': 32_764,
  'deepseek_r1_distill_qwen_7b': 7_616,
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


def model(path):
  """The ModelConfig of a gin file, as a stage builds it."""
  return config.build(
    bench, [f'--gin_file={path}', '--model=@config.ModelConfig()']
  ).model


@pytest.mark.parametrize('name', SIZES)
def test_named_models_have_their_size(name):
  cfg = model(_MODELS / f'{name}.gin')
  shapes = jax.eval_shape(lambda: transformer.init(cfg, jax.random.key(0)))
  rows = {row.path: row.shape(rows_of.sizes(cfg)) for row in mapping.table(cfg)}
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
