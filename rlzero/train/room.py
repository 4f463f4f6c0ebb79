"""Checks that this machine has room to train a model, before it is read."""

import jax
from jax import numpy as jnp

from rlzero.models.lora import Adapter
from rlzero.runtime import memory, sharding
from rlzero.train import adapters
from rlzero.train.optim import Optimizer
from rlzero.types import Params


def check(
  path: str, params: Params, optimizer: Optimizer, adapter: Adapter | None
) -> None:
  """Checks that an update can fit, by what it holds at least.

  That is the parameters, and of those that are trained the optimiser's state
  and the gradient. Activations and rollouts come on top. Without this check the
  kernel ends the process, without a word, when memory is gone. Devices with
  memory of their own are not looked at: there XLA says what does not fit.

  Args:
    path: of the model, for the message.
    params: anything with shapes.
    optimizer: which trains it.
    adapter: what is trained, if not the model.

  Raises:
    ValueError: this machine has less memory.
  """
  if jax.default_backend() != 'cpu':
    return
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), params
  )
  trained = adapters.fresh_shapes(adapter, shapes) if adapter else shapes
  state = jax.eval_shape(optimizer.transform(1).init, trained)
  wanted = sharding.bytes_per_device((shapes, state, trained))
  there = memory.total()
  if wanted <= there:
    return
  instead = (
    'take a smaller model'
    if adapter
    else 'train an adapter (docs/howto/adapters.md), take a smaller model'
  )
  raise ValueError(
    f'{path} with optimiser state and gradients needs at least '
    f'{wanted / memory.GIB:.1f} GiB, and this machine has '
    f'{there / memory.GIB:.1f} GiB; {instead}, or a machine with more memory.'
  )
