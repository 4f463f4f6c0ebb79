"""Each parameter is declared once, and all that needs it reads it there."""

import ast
import dataclasses
import functools
import pathlib

import jax
import numpy as np
import pytest
from helpers import CONFIGS

import rlzero
from rlzero.costs import flops
from rlzero.models import lora, parameters, transformer
from rlzero.runtime import sharding
from rlzero.train import adapters, optim
from rlzero.weights import mapping
from rlzero.weights.families import FAMILIES

pytestmark = pytest.mark.model

# By hand: what it means that a parameter has these axes and this kind.
_QUERY = parameters.PARAMS['query']
_OUTPUT = parameters.PARAMS['output']
_EXPERT = parameters.PARAMS['expert_down']


def leaves(tree):
  """Leaves by path, 'layers/attention/query'."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def shapes_of(config):
  return jax.eval_shape(lambda: transformer.init(config, jax.random.key(0)))


def test_axes_by_hand():
  assert (_QUERY.axes, _QUERY.unstacked_axes) == ('DNH', 'NHD')
  assert (_OUTPUT.axes, _OUTPUT.unstacked_axes) == ('NHD', 'DNH')
  a, b = (parameters.PARAMS['query' + side] for side in lora.SIDES)
  assert (a.axes, a.unstacked_axes) == ('DJ', 'JD')
  assert (b.axes, b.unstacked_axes) == ('JNH', 'NHJ')
  # An expert's matrices never move.
  assert (_EXPERT.axes, _EXPERT.unstacked_axes) == ('EWD', 'EWD')


def test_all_families_are_looked_at():
  # gemma3 is read as gemma3_text.
  assert {c.family for c in CONFIGS.values()} == set(FAMILIES) - {'gemma3'}


@pytest.mark.parametrize('name', CONFIGS)
def test_all_that_needs_a_parameter_reads_its_declaration(name):
  config = dataclasses.replace(CONFIGS[name], dtype='bfloat16')
  shapes = shapes_of(config)
  sizes = parameters.axis_sizes(config)
  rows = {row.path: row for row in mapping.table(config)}
  narrow = leaves(jax.eval_shape(lambda p: parameters.cast(config, p), shapes))
  muon = optim.muon_matrices(shapes)
  specs = leaves(sharding.param_specs(parameters.AXES, shapes))
  assert rows.keys() == leaves(shapes).keys() == specs.keys()
  for path, leaf in leaves(shapes).items():
    param = parameters.PARAMS[path.split('/')[-1]]
    stacked = 'layers' in path
    axes = 'L' * stacked + param.axes
    layers = len(rows[path].layers)
    assert leaf.shape == tuple((sizes | {'L': layers})[a] for a in axes), path
    assert rows[path].letters == axes
    assert narrow[path].dtype == ('float32' if param.float32 else 'bfloat16')
    found = muon
    for key in path.split('/'):
      found = found[key]
    assert (found is not None) == param.muon
    if found is not None:
      assert ''.join(axes[i] for i in found.reduction_axis) == param.inputs
      assert ''.join(axes[i] for i in found.output_axis) == param.outputs
  matrices = [axes for _, axes, _ in flops.matrices(config)]
  assert sorted(matrices) == sorted(
    parameters.PARAMS[path.split('/')[-1]].axes
    for path in rows
    if 'layers' in path
    and parameters.PARAMS[path.split('/')[-1]].kind == 'matrix'
  )


@pytest.mark.parametrize('name', CONFIGS)
def test_unstacked_layers_have_the_declared_axes(name):
  config = CONFIGS[name]
  sizes = parameters.axis_sizes(config)
  unstacked = jax.eval_shape(parameters.unstack, shapes_of(config))
  for path, leaf in leaves(unstacked).items():
    axes = parameters.UNSTACKED_AXES[path.split('/')[-1]]
    assert leaf.shape == tuple(sizes[axis] for axis in axes), path


def test_nothing_is_declared_that_no_model_has():
  used = {'weight', 'bias'}  # of the last layer of a reward model
  for config in CONFIGS.values():
    shapes = shapes_of(config)
    adapter = jax.eval_shape(
      functools.partial(adapters.init, lora.Adapter(), shapes),
      jax.random.key(0),
    )
    for tree in (shapes, adapter):
      used |= {path.split('/')[-1] for path in leaves(tree)}
  assert used == parameters.PARAMS.keys()


def test_no_other_module_has_a_table_of_parameters():
  root = pathlib.Path(rlzero.__file__).parent
  for path in root.rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Dict):
        keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
        known = keys & parameters.PARAMS.keys()
        declares = path == root / 'models' / 'parameters.py'
        assert declares or len(known) < 3, (path, known)


def test_a_parameter_without_a_declaration_is_named():
  tree = {'layers': {'attention': {'extra': np.zeros(2)}}}
  with pytest.raises(ValueError, match='layers/attention/extra is not declare'):
    optim.muon_matrices(tree)
