"""Every parameter of the decoder, declared once.

The table `PARAMS` holds, by a parameter's last name, its axes and what follows
from its kind. All else reads it: the modules that make parameters (`declare`),
the mesh (`AXES`), the compute dtype (`cast`), layers unstacked for decoding
(`unstack`), the optimiser (`train/optim.py`) and the files of weights
(`weights/rows.py`). Letters of axes are those of `rlzero/types.py`; a stack of
layers puts an L before them. A matrix that an adapter may change has two more
parameters beside it where there is one (`models/lora.py`).
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
from jax import numpy as jnp

from rlzero.models import lora
from rlzero.models.config import ModelConfig
from rlzero.types import Params

INIT = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Param:
  """Axes and use of one parameter, without the axis of layers.

  Its axes are those of `stack`, then `inputs`, then `outputs`.
  """

  kind: Literal['matrix', 'embedding', 'norm', 'bias']
  outputs: str  # axes that a product with it makes; all axes of a vector
  inputs: str = ''  # axes that a product with it sums over
  stack: str = ''  # axis of which each index is a matrix of its own
  # `layers.multiply` takes it to all tokens at once: unstacked layers hold it
  # as [outputs, inputs].
  transposes: bool = False
  muon: bool = False  # updated by Muon, where that is the optimiser
  float32: bool = False  # computed with in float32 whatever the model's dtype
  adapts: bool = False  # an adapter may stand beside it
  trains: bool = False  # also where an adapter leaves the model as it is

  @property
  def axes(self) -> str:
    """A letter for each axis."""
    return self.stack + self.inputs + self.outputs

  @property
  def unstacked_axes(self) -> str:
    """A letter for each axis where layers are unstacked."""
    return self.outputs + self.inputs if self.transposes else self.axes

  def initializer(self, config: ModelConfig) -> nn.initializers.Initializer:
    """Normal(0.02) for matrices, zero for biases; norms multiply by one."""
    if self.kind == 'bias':
      return nn.initializers.zeros
    if self.kind == 'norm':
      return nn.initializers.constant(0.0 if config.unit_offset_norm else 1.0)
    return INIT


def _dense(inputs: str, outputs: str, muon: bool = False) -> Param:
  """A matrix that multiplies all tokens."""
  return Param(
    kind='matrix',
    inputs=inputs,
    outputs=outputs,
    transposes=True,
    muon=muon,
    adapts=True,
  )


def _expert(inputs: str, outputs: str) -> Param:
  """A matrix for each expert."""
  return Param(
    kind='matrix', stack='E', inputs=inputs, outputs=outputs, adapts=True
  )


def _norm(axis: str) -> Param:
  """The scale of an RMSNorm."""
  return Param(kind='norm', outputs=axis, float32=True)


def _bias(axes: str, float32: bool = False) -> Param:
  return Param(kind='bias', outputs=axes, float32=float32)


PARAMS: dict[str, Param] = {
  'embedding': Param(kind='embedding', inputs='V', outputs='D'),
  'kernel': Param(  # of the head
    kind='matrix', inputs='D', outputs='V', transposes=True
  ),
  'scale': _norm('D'),
  # Attention with heads
  'query': _dense('D', 'NH', muon=True),
  'key': _dense('D', 'KH', muon=True),
  'value': _dense('D', 'KH', muon=True),
  'output': _dense('NH', 'D', muon=True),
  'query_bias': _bias('NH'),
  'key_bias': _bias('KH'),
  'value_bias': _bias('KH'),
  'query_norm': _norm('H'),
  'key_norm': _norm('H'),
  # Latent attention
  'query_down': _dense('D', 'Q'),
  'query_down_norm': _norm('Q'),
  'query_up': _dense('Q', 'NH'),
  'latent_down': _dense('D', 'A'),
  'latent_norm': _norm('R'),
  'latent_up': Param(kind='matrix', inputs='R', outputs='NX', adapts=True),
  'latent_output': _dense('NU', 'D'),
  # The MLP
  'gate': _dense('D', 'F', muon=True),
  'up': _dense('D', 'F', muon=True),
  'down': _dense('F', 'D', muon=True),
  # A mixture of experts
  'router': Param(kind='matrix', inputs='D', outputs='E', float32=True),
  'router_bias': _bias('E', float32=True),
  'expert_gate': _expert('D', 'W'),
  'expert_up': _expert('D', 'W'),
  'expert_down': _expert('W', 'D'),
  'shared_gate': _dense('D', 'Z'),
  'shared_up': _dense('D', 'Z'),
  'shared_down': _dense('Z', 'D'),
  # The last layer of a reward model
  'weight': Param(kind='matrix', inputs='D', outputs='', trains=True),
  'bias': Param(kind='bias', outputs='', trains=True),
}


def _adapter(param: Param) -> tuple[Param, Param]:
  """A and B beside a matrix; J is their rank."""
  side = dataclasses.replace(param, muon=False, adapts=False, trains=True)
  return (
    dataclasses.replace(side, outputs='J'),
    dataclasses.replace(side, inputs='J'),
  )


PARAMS |= {
  name + side: part
  for name, param in PARAMS.items()
  if param.adapts
  for side, part in zip(lora.SIDES, _adapter(param), strict=True)
}

# Axes by last name, for `runtime/sharding.py`: of stacked layers, and of
# unstacked ones.
AXES = {name: param.axes for name, param in PARAMS.items()}
UNSTACKED_AXES = {name: p.unstacked_axes for name, p in PARAMS.items()}


def axis_sizes(config: ModelConfig) -> dict[str, int]:
  """Length of each axis that a parameter of this model has, by its letter."""
  sizes = {
    'V': config.vocab_size,
    'D': config.width,
    'F': config.mlp_width,
    'N': config.num_heads,
    'K': config.num_kv_heads,
    'H': config.head_dim,
  }
  if latent := config.latent:
    sizes |= {
      'A': latent.kv_rank + latent.rope_dim,
      'Q': latent.query_rank,
      'R': latent.kv_rank,
      'U': latent.value_dim,
      'X': config.head_dim - latent.rope_dim + latent.value_dim,
    }
  if experts := config.experts:
    sizes |= {
      'E': experts.num_experts,
      'W': experts.width,
      'Z': experts.shared_width,
    }
  return sizes


def shape(config: ModelConfig, axes: str) -> tuple[int, ...]:
  """Sizes of these axes in this model."""
  sizes = axis_sizes(config)
  return tuple(sizes[axis] for axis in axes)


def declare(module: nn.Module, name: str) -> jax.Array:
  """The parameter of that name in a Flax module.

  Args:
    module: has `config`, and `transposed` where it has matrices.
    name: a key of `PARAMS`.
  """
  param = PARAMS[name]
  transposed = getattr(module, 'transposed', False)
  axes = param.unstacked_axes if transposed else param.axes
  return module.param(
    name, param.initializer(module.config), shape(module.config, axes)
  )


def declare_matrix(module: nn.Module, name: str) -> lora.Matrix:
  """`declare`, with the adapter that stands beside the matrix, if any."""
  kernel = declare(module, name)
  a, b = (name + side for side in lora.SIDES)
  if not module.has_variable('params', a):
    return kernel
  return lora.Adapted(
    kernel,
    module.get_variable('params', a),
    module.get_variable('params', b),
    module.config.adapter_scale,
  )


def of_path(path: tuple[jax.tree_util.DictKey, ...]) -> Param:
  """The declaration of a leaf of a parameter tree.

  Raises:
    ValueError: `PARAMS` does not know its name.
  """
  name = path[-1].key
  if name not in PARAMS:
    whole = jax.tree_util.keystr(path, simple=True, separator='/')
    raise ValueError(
      f'Parameter {whole} is not declared; add {name!r} to '
      'models/parameters.py.'
    )
  return PARAMS[name]


def cast(config: ModelConfig, params: Params) -> Params:
  """Parameters as the forward computes with them, in the compute dtype.

  Results are the same to the bit; nothing is copied that has the dtype.
  """
  dtype = jnp.dtype(config.dtype)
  return jax.tree_util.tree_map_with_path(
    lambda path, x: x if of_path(path).float32 else x.astype(dtype), params
  )


def unstack(params: Params) -> Params:
  """The same parameters, each layer by itself: `layers_0`, `layers_1`, ...

  Matrices that multiply all tokens are transposed, as `UNSTACKED_AXES` says.
  Done ahead, not inside what is compiled, where each use would copy its part.
  """
  rest, layers = dict(params), []
  for name in ('dense_layers', 'layers'):
    stack = rest.pop(name, {})
    number = len(jax.tree.leaves(stack)[0]) if stack else 0
    layers += [jax.tree.map(lambda x, i=i: x[i], stack) for i in range(number)]
  rest |= {f'layers_{i}': layer for i, layer in enumerate(layers)}
  return jax.tree_util.tree_map_with_path(_transposed, rest)


def _transposed(path, x):
  """A matrix, but no other parameter, from [in, out] to [out, in]."""
  param = of_path(path)
  inputs = len(param.inputs) if param.transposes else 0
  return jnp.moveaxis(x, range(inputs), range(-inputs, 0))
