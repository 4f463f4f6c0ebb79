"""Sums microbatches on each device of one host, then over the devices.

For a mesh that only copies the parameters: each device takes whole
microbatches, where `jax.jit` would shard every microbatch over the mesh. The
sums meet once, at the end of the update.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from rlzero.runtime import sharding
from rlzero.train.packing import Microbatch
from rlzero.types import Params


class DeviceSums:
  """Adds up microbatches by `jax.pmap`.

  Args:
    zeros: makes the carry before the first microbatch from the parameters.
    accumulate: (parameters, carry, microbatch) -> carry.
    add: sums a carry over the devices, by the name of their axis.
  """

  def __init__(
    self,
    zeros: Callable[[Params], Any],
    accumulate: Callable[[Params, Any, Microbatch], Any],
    add: Callable[[Any, str], Any],
  ):
    # The second argument says how many devices there are.
    self._zeros = jax.pmap(lambda params, _: zeros(params), in_axes=(None, 0))
    self._accumulate = jax.pmap(
      accumulate, in_axes=(None, 0, 0), donate_argnums=1
    )
    self._add = jax.pmap(
      lambda carry: add(carry, 'devices'), axis_name='devices', out_axes=None
    )

  def __call__(self, params: Params, microbatches: Iterable[Microbatch]) -> Any:
    """Returns the carry after all microbatches, on every device."""
    number = sharding.axis_size('B')
    with sharding.without_mesh():
      carry = self._zeros(params, np.arange(number))
      for stacked in stack_by_shape(microbatches, number):
        carry = self._accumulate(params, carry, stacked)
      return self._add(carry)


def stack_by_shape(
  microbatches: Iterable[Microbatch], number: int
) -> Iterator[Microbatch]:
  """Stacks `number` microbatches of one shape, in order; empty ones fill up.

  Yields:
    microbatches with an axis before their own, for as many devices.
  """
  waiting: dict[Any, list[Microbatch]] = {}

  def stacked(group):
    empty = jax.tree.map(np.zeros_like, group[0])
    # A prompt that only pads has one token, so that it has a last one.
    empty.prompts.tokens.segments[:, 0] = 1
    if empty.prompts.shared_prefix:
      empty.prompts.shared_prefix.segments[:] = 1
    group = group + [empty] * (number - len(group))
    return jax.tree.map(lambda *parts: np.stack(parts), *group)

  for microbatch in microbatches:
    shapes = tuple(x.shape for x in jax.tree.leaves(microbatch))
    group = waiting.setdefault(shapes, [])
    group.append(microbatch)
    if len(group) == number:
      yield stacked(waiting.pop(shapes))
  for group in waiting.values():
    yield stacked(group)
