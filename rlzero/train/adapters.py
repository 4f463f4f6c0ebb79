"""Trees of parameters with an adapter: begun, taken apart, merged.

The base stays as it is, in the dtype that the model computes in, and there is
one copy of it: whoever needs the model without its adapter, or with another,
takes other leaves beside the same base. What is trained is the adapter, and the
last layer of a reward model. `models/lora.py` has the equation.
"""

import functools
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax import numpy as jnp

from rlzero.models import lora, parameters
from rlzero.models.config import ModelConfig
from rlzero.models.lora import Adapter
from rlzero.runtime import files, sharding
from rlzero.text import files as text_files
from rlzero.types import Params
from rlzero.weights import finite, mapping, peft

_DESCRIBED = 'adapter.json'  # in a run's folder: what its checkpoints hold

# A parameter by its path, ('layers', 'attention', 'query').
_Flat = Mapping[tuple[str, ...], Any]


def start(
  adapter: Adapter | None, config: ModelConfig, params: Params, seed: int
) -> Params:
  """Parameters with the adapter that a run begins with.

  Args:
    adapter: its settings; without, the parameters are returned.
    config: of the model, as the run computes it.
    params: on the devices. They are given away: those that the model computes
      with in another dtype are freed.
    seed: of a fresh adapter.

  Raises:
    ValueError: a target that the model does not have, or a PEFT folder that
      does not fit.
  """
  if adapter is None:
    return params
  # The base gives its shapes alone.
  base = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
  fresh = functools.partial(init, adapter, base)
  shapes = jax.eval_shape(fresh, jax.random.key(seed))
  if adapter.start:
    leaves = _read(adapter, config, shapes)
  else:
    where = sharding.param_shardings(parameters.AXES, shapes)
    leaves = jax.jit(fresh, out_shardings=where)(jax.random.key(seed))
  return join(leaves, _frozen(config, params))


def init(adapter: Adapter, params: Params, key: jax.Array) -> Params:
  """A fresh adapter: A is uniform in +-1 / sqrt(inputs), B is zero.

  Args:
    adapter: its settings.
    params: arrays or their shapes.
    key: of the random numbers.

  Raises:
    ValueError: a target that is none of the model's.
  """
  flat, leaves = _flatten(params), {}
  chosen = _chosen(adapter, flat)
  for path, name in zip(
    chosen, jax.random.split(key, len(chosen)), strict=True
  ):
    shape, param = flat[path].shape, parameters.PARAMS[path[-1]]
    last = len(shape) - len(param.outputs)
    first = last - len(param.inputs)
    a, b = (path[:-1] + (path[-1] + side,) for side in lora.SIDES)
    bound = math.prod(shape[first:last]) ** -0.5
    leaves[a] = jax.random.uniform(
      name, (*shape[:last], adapter.rank), jnp.float32, -bound, bound
    )
    leaves[b] = jnp.zeros((*shape[:first], adapter.rank, *shape[last:]))
  return traverse_util.unflatten_dict(leaves)


def _chosen(adapter: Adapter, flat: _Flat) -> list[tuple[str, ...]]:
  """Paths of the matrices that the targets name, in order."""
  able = sorted(
    path
    for path in flat
    if path[-1] in parameters.PARAMS and parameters.PARAMS[path[-1]].adapts
  )
  names = {name for path in able for name in path[-2:]}
  # A model without experts has no `moe`, and one with nothing else no `mlp`.
  unknown = [t for t in adapter.targets if t not in names | {'mlp', 'moe'}]
  chosen = [path for path in able if {*path[-2:]} & {*adapter.targets}]
  if unknown or not chosen:
    raise ValueError(
      f'lora.Adapter.targets has {", ".join(unknown or adapter.targets)}, '
      f'which this model does not have; choose among '
      f'{", ".join(sorted(names))}.'
    )
  return chosen


def _read(adapter: Adapter, config: ModelConfig, shapes: Params) -> Params:
  """The leaves of the PEFT folder to start from, on the devices."""
  scale, leaves = peft.open_folder(adapter.start, config)
  if not math.isclose(scale, adapter.scale):
    raise ValueError(
      f'lora.Adapter has alpha / rank = {adapter.scale:g}, but the adapter '
      f'in {adapter.start!r} has {scale:g}; set alpha and rank to its own.'
    )
  found, wanted = (
    {path: x.shape for path, x in _flatten(tree).items()}
    for tree in (leaves, shapes)
  )
  if found != wanted:
    path = min(found.items() ^ wanted.items())[0]
    raise ValueError(
      f'lora.Adapter makes {"/".join(path)} of shape {wanted.get(path)}, but '
      f'the adapter in {adapter.start!r} has {found.get(path)}; set rank and '
      'targets to its own.'
    )
  leaves = mapping.place(leaves, 'float32')
  finite.check(leaves, adapter.start)
  return leaves


def _frozen(config: ModelConfig, params: Params) -> Params:
  """The base in the compute dtype; leaf by leaf, since both may not fit."""
  out = {}
  for path, leaf in _flatten(params).items():
    out[path] = parameters.cast(config, {path[-1]: leaf})[path[-1]]
    if out[path].dtype != leaf.dtype:
      jax.block_until_ready(out[path])
      leaf.delete()
  return traverse_util.unflatten_dict(out)


def fresh_shapes(adapter: Adapter, params: Params) -> Params:
  """Shapes and dtypes of what `init` returns, from shapes of the base."""
  # The key is traced too: the devices of a plan are not here to make it.
  return jax.eval_shape(lambda: init(adapter, params, jax.random.key(0)))


def shapes(
  adapter: Adapter | None, config: ModelConfig, params: Params
) -> Params:
  """Shapes and dtypes of what `start` returns, from shapes of the base."""
  if adapter is None:
    return params
  leaves = fresh_shapes(adapter, params)
  frozen = jax.eval_shape(functools.partial(parameters.cast, config), params)
  return join(leaves, frozen)


def exists(params: Params) -> bool:
  """Whether there is an adapter among the parameters."""
  return any(path[-1].endswith(lora.SIDES) for path in _flatten(params))


def split(params: Params) -> tuple[Params, Params]:
  """Parameters that are trained, and those that are not.

  Without an adapter all are trained, and the same tree is returned.
  """
  if not exists(params):
    return params, {}
  trained, frozen = {}, {}
  for path, leaf in _flatten(params).items():
    param = parameters.PARAMS.get(path[-1])
    (trained if param and param.trains else frozen)[path] = leaf
  return traverse_util.unflatten_dict(trained), traverse_util.unflatten_dict(
    frozen
  )


def join(trained: Params, frozen: Params) -> Params:
  """Undoes `split`, also with other leaves of the same names."""
  if not frozen:
    return trained
  return traverse_util.unflatten_dict(_flatten(frozen) | _flatten(trained))


def merge(scale: float, params: Params) -> Params:
  """Parameters without an adapter: W + s A B, in float32.

  Args:
    scale: s.
    params: with an adapter; arrays of the devices, or of the host.
  """
  flat = _flatten(params)
  merged = {}
  for path, leaf in flat.items():
    if path[-1].endswith(lora.SIDES):
      continue
    a, b = (path[:-1] + (path[-1] + side,) for side in lora.SIDES)
    merged[path] = leaf
    if a in flat:
      merged[path] = _merged(path[-1], scale, leaf, flat[a], flat[b])
  return traverse_util.unflatten_dict(merged)


def _merged(name, scale, kernel, a, b):
  """W + s A B of a stack of matrices, which may have several axes each."""
  param = parameters.PARAMS[name]
  stack = kernel.shape[: kernel.ndim - len(param.inputs + param.outputs)]
  rank = a.shape[-1]
  sides = a.reshape(*stack, -1, rank), b.reshape(*stack, rank, -1)
  sides = [side.astype(np.float32) for side in sides]
  if isinstance(kernel, jax.Array):
    product = jnp.matmul(*sides, precision=jax.lax.Precision.HIGHEST)
  else:
    product = np.matmul(*sides)
  return kernel.astype(np.float32) + scale * product.reshape(kernel.shape)


def describe(workdir: str, config: ModelConfig, params: Params) -> None:
  """Writes what the checkpoints of a run hold, if it trains an adapter."""
  if not exists(params):
    return
  leaves = {'/'.join(p): leaf for p, leaf in _flatten(split(params)[0]).items()}
  files.write_json(
    os.path.join(workdir, _DESCRIBED),
    {
      'scale': config.adapter_scale,
      'shapes': {path: list(leaf.shape) for path, leaf in leaves.items()},
    },
    indent=2,
  )


def described(workdir: str) -> tuple[float, Params] | None:
  """Undoes `describe`: the scale and the shapes of what checkpoints hold.

  None for a run that trains all parameters.
  """
  path = os.path.join(workdir, _DESCRIBED)
  if not os.path.exists(path):
    return None
  found = text_files.read_json(path)
  shapes = {
    path: jax.ShapeDtypeStruct(tuple(shape), np.float32)
    for path, shape in found['shapes'].items()
  }
  return found['scale'], traverse_util.unflatten_dict(shapes, sep='/')


def _flatten(params: Params) -> dict[tuple[str, ...], Any]:
  return traverse_util.flatten_dict(params)
