"""The policy in the layout of rollouts, where that is another."""

import contextlib
from collections.abc import Iterator

import jax

from rlzero.models import parameters
from rlzero.models.config import ModelConfig
from rlzero.runtime import sharding
from rlzero.types import Params


@contextlib.contextmanager
def resharded(
  model: ModelConfig, params: Params, mesh: sharding.Mesh | None
) -> Iterator[tuple[Params, int | None]]:
  """Enters the mesh of rollouts, if that is another than the update's.

  Yields:
    the parameters there, and the bytes that devices were sent; without such a
    mesh, the parameters as they are, and None.
  """
  if mesh is None:
    yield params, None
    return
  narrow = parameters.cast(model, params)
  with sharding.use(mesh):
    moved = sharding.device_put_params(parameters.AXES, narrow)
    jax.block_until_ready(moved)
    sent = sharding.moved_bytes(narrow, moved)
    del narrow  # a copy in the update's layout, which no one reads
    yield moved, sent
