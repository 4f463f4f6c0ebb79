"""The policy's parameters as a rollout reads them."""

import functools

import jax

from rlzero.models import parameters
from rlzero.models.config import ModelConfig
from rlzero.runtime import sharding
from rlzero.types import Params


def convert(config: ModelConfig, params: Params) -> Params:
  """The policy's parameters as decoding reads them; made once a rollout.

  In the compute dtype, which halves what a token reads where that is bfloat16.
  On a CPU a scan over layers would copy weights and cache of each, token by
  token, so layers are unstacked there; elsewhere they stay stacked, since the
  time to compile would grow with their number.
  """
  params = parameters.cast(config, params)
  return _unstack(params) if sharding.platform() == 'cpu' else params


def shapes(config: ModelConfig, params: Params) -> Params:
  """Shapes and shardings of `convert`.

  Args:
    config: of the model.
    params: arrays, or their shapes.
  """
  found = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
  found = jax.eval_shape(functools.partial(parameters.cast, config), found)
  if sharding.platform() != 'cpu':
    return sharding.abstract_params(parameters.AXES, found)
  found = jax.eval_shape(parameters.unstack, found)
  return sharding.abstract_params(parameters.UNSTACKED_AXES, found)


@jax.jit
def _unstack(params):
  params = parameters.unstack(params)
  return sharding.constrain_params(parameters.UNSTACKED_AXES, params)
