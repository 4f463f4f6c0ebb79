"""Meshes, and how arrays are sharded over them: one table of rules.

Axes have the letters of `types.py`. A program that runs on a mesh sets it once
(`use`); parameters are then sharded by the letters their model gives them, rows
by B, and XLA's partitioner does the rest (GSPMD, arXiv 2105.04663). An axis
that the table does not know is an error, never a copy on every device. Without
a mesh every function here leaves things as they are.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rlzero.runtime import fields, lifecycle
from rlzero.runtime.fields import at_least
from rlzero.types import Params

# Letter of an axis -> the mesh axes that shard it; none leaves it whole.
RULES: dict[str, tuple[str, ...]] = {
  'B': ('data', 'fsdp', 'expert'),
  'P': ('data', 'fsdp', 'expert'),
  'V': ('tensor',),
  'D': ('fsdp',),
  'E': ('expert',),
  'F': ('tensor',),
  'N': ('tensor',),
  'K': ('tensor',),
  'W': ('tensor',),
  'Z': ('tensor',),
  'A': (),
  'H': (),
  'J': (),
  'L': (),
  'M': (),
  'O': ('data', 'fsdp', 'expert', 'tensor'),
  'Q': ('fsdp',),
  'R': ('fsdp',),
  'S': (),
  'T': (),
  'U': (),
  'X': (),
  '_': (),  # the width of activations, which D would shard
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
  """The shape of the mesh; -1 takes the devices that are left.

  Raises:
    ValueError: a number below 1 other than one -1.
  """

  data: int = 1  # copies of the parameters, each with rows of its own
  fsdp: int = 1  # shards of every parameter, each with rows of its own
  expert: int = 1  # shards of the experts, each with rows of its own
  tensor: int = 1  # shards of heads, MLP and vocabulary, with the same rows

  def __post_init__(self):
    sizes = dataclasses.asdict(self)
    size = at_least(1).or_else(-1, 'all devices that are left')
    fields.check(self, **dict.fromkeys(sizes, size))
    if list(sizes.values()).count(-1) > 1:
      raise ValueError(
        f'sharding.Mesh has more than one -1 ({sizes}); only one axis can '
        'take the devices that are left.'
      )

  def sizes(self, num_devices: int) -> dict[str, int]:
    """Sizes of the axes, over so many devices.

    Raises:
      ValueError: they do not multiply to the number of devices.
    """
    sizes = dataclasses.asdict(self)
    rest = num_devices // math.prod(n for n in sizes.values() if n > 0)
    sizes = {name: rest if n == -1 else n for name, n in sizes.items()}
    if math.prod(sizes.values()) != num_devices:
      shape = ' x '.join(f'{n} {name}' for name, n in sizes.items())
      raise ValueError(
        f'sharding.Mesh is {shape}, which is {math.prod(sizes.values())} '
        f'devices, but there are {num_devices}; make the product '
        f'{num_devices}, or one axis -1.'
      )
    return sizes

  def build(self, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """The mesh over these devices, all by default."""
    devices = jax.devices() if devices is None else devices
    sizes = self.sizes(len(devices))
    # 8 x 8 on a torus of 4 x 4 x 4 takes half an axis of it.
    grid = mesh_utils.create_device_mesh(
      tuple(sizes.values()), devices, allow_split_physical_axes=True
    )
    return jax.sharding.Mesh(
      grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes)
    )


@contextlib.contextmanager
def use(mesh: Mesh, devices: Sequence[Any] | None = None) -> Iterator[None]:
  """Everything inside runs on this mesh; a mesh of one device is none.

  Raises:
    ValueError: no device, settings of JAX that rlzero is not written for, or a
      mesh that does not have the number of devices.
  """
  lifecycle.check_backend()
  if devices is None and mesh == Mesh():
    if jax.process_count() > 1:
      raise ValueError(
        f'There are {jax.process_count()} processes, but sharding.Mesh is of '
        'one device; use the devices of all of them: --mesh.data=-1 gives each '
        'the whole model, --mesh.fsdp=-1 a part of it.'
      )
    yield  # the first device, as JAX has it
    return
  with jax.set_mesh(mesh.build(devices)):
    yield


def abstract_mesh(
  mesh: Mesh, num_devices: int, platform: str = 'gpu'
) -> contextlib.AbstractContextManager:
  """Context with a mesh of devices that are not here, for lowering alone.

  Args:
    mesh: its shape.
    num_devices: that there would be.
    platform: of theirs.
  """
  sizes = mesh.sizes(num_devices)
  return jax.sharding.use_abstract_mesh(
    jax.sharding.AbstractMesh(
      tuple(sizes.values()),
      tuple(sizes),
      axis_types=(AxisType.Auto,) * len(sizes),
      abstract_device=jax.sharding.AbstractDevice(
        device_kind=platform, num_cores=None, platform=platform
      ),
    )
  )


def without_mesh() -> contextlib.AbstractContextManager:
  """Context without a mesh: for `jax.pmap`, which brings its own."""
  return jax.set_mesh(None)


def _sizes() -> Mapping[str, int]:
  """Sizes of the current mesh's axes; {} without one, or under `jax.pmap`."""
  sizes = jax.sharding.get_abstract_mesh().shape
  return sizes if 'data' in sizes else {}


def on_mesh() -> bool:
  """Whether this runs on a mesh."""
  return bool(_sizes())


def axis_names() -> tuple[str, ...]:
  """Axes of the current mesh that have more than one device."""
  return tuple(name for name, size in _sizes().items() if size > 1)


def platform() -> str:
  """Platform of the current mesh's devices, which may not be this host's."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if on_mesh() and device else jax.default_backend()


def axis_size(axis: str) -> int:
  """Shards of an array axis on the current mesh."""
  sizes = _sizes()
  return math.prod(sizes.get(name, 1) for name in RULES[axis])


def spec(axes: str, shape: Sequence[int], name: str) -> PartitionSpec:
  """Which mesh axes shard which axes of an array.

  A mesh axis shards an array once, along the first axis it may.

  Args:
    axes: a letter for each dimension.
    shape: of the array.
    name: what an error calls the array.

  Raises:
    ValueError: an axis that no rule knows, or a size that the mesh does not
      divide.
  """
  if len(axes) != len(shape):
    raise ValueError(
      f'{name} has axes {axes!r} but {len(shape)} dimensions; give a letter '
      'for each.'
    )
  sizes = _sizes()
  parts, used = [], set()
  for axis, size in zip(axes, shape, strict=True):
    if axis not in RULES:
      raise ValueError(
        f'{name} has an axis {axis!r} that sharding.RULES does not know; say '
        'there which axes of the mesh shard it.'
      )
    chosen = tuple(
      other
      for other in RULES[axis]
      if sizes.get(other, 1) > 1 and other not in used
    )
    used.update(chosen)
    num_shards = math.prod(sizes[other] for other in chosen)
    if size % num_shards:
      by = ' x '.join(f'{sizes[other]} {other}' for other in chosen)
      raise ValueError(
        f'{name} has {size} along axis {axis}, of which the mesh makes '
        f'{num_shards} shards ({by}); choose a mesh whose part of it divides '
        f'{size}.'
      )
    parts.append(chosen or None)
  return PartitionSpec(*parts)


def constrain(x: jax.Array, axes: str) -> jax.Array:
  """Says inside a compiled function how an array is sharded."""
  if not _sizes():
    return x
  where = spec(axes, x.shape, f'An array of shape {x.shape}')
  return jax.lax.with_sharding_constraint(x, where)


def device_put(x: Any, axes: str) -> Any:
  """An array of the host, sharded over the devices."""
  if not _sizes():
    return x
  where = spec(axes, x.shape, f'An array of shape {x.shape}')
  where = NamedSharding(jax.sharding.get_mesh(), where)
  # A host hands over the parts that lie on its own devices.
  return jax.make_array_from_callback(x.shape, where, x.__getitem__)


def array_sharding(
  axes: str, shape: Sequence[int], name: str
) -> jax.sharding.Sharding | None:
  """The sharding of an array on the current mesh; None without one."""
  if not _sizes():
    return None
  return NamedSharding(jax.sharding.get_mesh(), spec(axes, shape, name))


def abstract(x: Any, axes: str) -> jax.ShapeDtypeStruct:
  """Shape and sharding of an array, for a program that is only compiled."""
  if not _sizes():
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
  where = spec(axes, x.shape, f'An array of shape {x.shape}')
  mesh = jax.sharding.get_abstract_mesh()
  return jax.ShapeDtypeStruct(
    x.shape, x.dtype, sharding=NamedSharding(mesh, where)
  )


def bytes_per_device(tree: Any) -> int:
  """Bytes of arrays that one device holds, by their shapes and shardings."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape) if x.sharding else x.shape)
    * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def param_specs(axes: Mapping[str, str], params: Params) -> Params:
  """Which mesh axes shard which axes of each parameter.

  Args:
    axes: by the last name of a parameter, its letters; those below a
      stack of layers have an L before them.
    params: arrays or their shapes.

  Raises:
    ValueError: a parameter without letters, or one the mesh does not divide.
  """

  def of_one(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    letters = axes.get(path[-1].key)
    if letters is None:
      raise ValueError(
        f'Parameter {name} has no axes beside its model; give them, or it '
        'would be copied to every device.'
      )
    letters = 'L' * ('layers/' in name) + letters
    return spec(letters, leaf.shape, f'Parameter {name}')

  return jax.tree_util.tree_map_with_path(of_one, params)


def constrain_params(axes: Mapping[str, str], params: Params) -> Params:
  """Says inside a compiled function that these are sharded as parameters."""
  if not _sizes():
    return params
  return jax.lax.with_sharding_constraint(params, param_specs(axes, params))


def param_shardings(axes: Mapping[str, str], params: Params) -> Params | None:
  """Shardings of the parameters, or None without a mesh."""
  if not _sizes():
    return None
  mesh = jax.sharding.get_mesh()
  return jax.tree.map(
    lambda where: NamedSharding(mesh, where), param_specs(axes, params)
  )


def abstract_params(axes: Mapping[str, str], params: Params) -> Params:
  """Shapes and shardings of parameters, for programs only compiled."""
  if not _sizes():
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params
    )
  mesh = jax.sharding.get_abstract_mesh()
  return jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=NamedSharding(mesh, where)
    ),
    params,
    param_specs(axes, params),
  )


def device_put_params(axes: Mapping[str, str], params: Params) -> Params:
  """Parameters of the host, or of another mesh, sharded over the devices."""

  def of_one(x, where):
    if isinstance(x, jax.Array) and (
      where.is_fully_addressable or not x.is_fully_addressable
    ):
      return jax.device_put(x, where)
    x = np.asarray(x)  # every host has it and hands over its parts
    return jax.make_array_from_callback(x.shape, where, x.__getitem__)

  where = param_shardings(axes, params)
  return (
    jax.device_put(params)
    if where is None
    else jax.tree.map(of_one, params, where)
  )


def moved_bytes(before: Params, after: Params) -> int:
  """Bytes that the devices did not hold before arrays were resharded."""

  def volume(index, shape, other=None):
    size = 1
    for axis, dimension in enumerate(shape):
      start, stop, _ = index[axis].indices(dimension)
      if other is not None:
        left, right, _ = other[axis].indices(dimension)
        start, stop = max(start, left), min(stop, right)
      size *= max(stop - start, 0)
    return size

  def of_one(old, new):
    had = old.sharding.devices_indices_map(old.shape)
    return new.dtype.itemsize * sum(
      volume(index, new.shape)
      - (volume(index, new.shape, had[device]) if device in had else 0)
      for device, index in new.sharding.devices_indices_map(new.shape).items()
    )

  return sum(jax.tree.leaves(jax.tree.map(of_one, before, after)))
