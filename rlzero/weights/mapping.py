"""Between files and parameters, by the tables of the families.

All names and shapes are checked both ways before the first tensor is read,
and everything wrong is said at once. Parameters then come straight to where
they lie: each device's part of them is read from the files, a few layers at a
time, so that the host holds one block of one parameter and never the model.
"""

import dataclasses
import fnmatch
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rlzero.models import parameters
from rlzero.models.config import ModelConfig
from rlzero.runtime import memory, sharding
from rlzero.types import Params
from rlzero.weights.families import FAMILIES, GGUF_FAMILIES, llama
from rlzero.weights.metadata import Metadata, WeightsError
from rlzero.weights.rows import Lazy, Row, Stored

_BLOCK_BYTES = 32 * 2**20  # of a parameter that the host holds at a time

# Fields of ModelConfig that say how it is computed and are in no file.
_OF_A_RUN = ('dtype', 'remat', 'fused_attention', 'adapter_scale')


def table(config: ModelConfig) -> tuple[Row, ...]:
  """The rows of a model: every parameter it has and no other."""
  return _family(config).table(config)


def shapes(config: ModelConfig) -> Params:
  """The parameter tree of a model, a float32 shape for each."""
  lengths = parameters.axis_sizes(config)
  return _nested(
    {
      row.path: jax.ShapeDtypeStruct(row.shape(lengths), np.float32)
      for row in table(config)
    }
  )


def model_config_from_hf(
  hf: Mapping[str, Any], source: str = 'config.json'
) -> ModelConfig:
  """The model a Hugging Face config.json describes.

  Args:
    hf: the file's object.
    source: what an error calls it, usually its path.

  Raises:
    WeightsError: an architecture or option that is not implemented, or a
      size that is missing.
  """
  metadata = Metadata(hf, source)
  kind = metadata.get('model_type')
  if not isinstance(kind, str) or kind not in FAMILIES:
    raise metadata.refusal(f'model_type {kind!r}', _listed(FAMILIES))
  return FAMILIES[kind].config_from_hf(metadata)


def model_config_from_gguf(
  metadata: Mapping[str, Any], tied: bool, source: str
) -> ModelConfig:
  """The model the head of a GGUF file describes.

  Args:
    metadata: its keys and values.
    tied: whether the file has no head, so that the embedding is it.
    source: what an error calls it, usually its path.

  Raises:
    WeightsError: as `model_config_from_hf`.
  """
  kind = metadata.get('general.architecture')
  if not isinstance(kind, str) or kind not in GGUF_FAMILIES:
    raise Metadata({}, source).refusal(
      f'architecture {kind!r}', _listed(GGUF_FAMILIES)
    )
  config = GGUF_FAMILIES[kind].config_from_gguf(
    Metadata(metadata, source, f'{kind}.')
  )
  return dataclasses.replace(config, tied_embedding=tied)


def hf_config(
  config: ModelConfig,
  eos_ids: Sequence[int],
  bos_id: int | None = None,
  dtype: str = 'float32',
) -> dict[str, Any]:
  """The config.json with which transformers loads our weights.

  Args:
    config: the model.
    eos_ids: ids that end a completion.
    bos_id: id a text starts with, or None.
    dtype: of the weights in the files.

  Raises:
    WeightsError: options that the family's files cannot say, found by
      reading back what would be written.
  """
  hf = {
    'model_type': config.family,
    **_family(config).hf_from_config(config),
    'eos_token_id': list(eos_ids),
    'bos_token_id': bos_id,
    'torch_dtype': dtype,
  }
  if lost := differing(config, model_config_from_hf(hf)):
    raise WeightsError(
      f'ModelConfig has {", ".join(lost)}, which family {config.family!r} '
      'cannot say in its config.json; set another family, or the values that '
      'it has.'
    )
  return hf


def differing(config: ModelConfig, back: ModelConfig) -> list[str]:
  """Lists what a file does not hold of a model's config, 'name = value' each.

  Args:
    config: of the model.
    back: what was read from a file that was written from it.
  """
  found = dataclasses.asdict(back)
  return [
    f'{name} = {value!r}'
    for name, value in dataclasses.asdict(config).items()
    if name not in _OF_A_RUN and value != found[name]
  ]


class Read(NamedTuple):
  """A model's configuration and parameters, and what was passed over."""

  config: ModelConfig
  params: Params  # of `Lazy` or `jax.Array`
  left_out: tuple[str, ...]  # a sentence for each pattern of the family


def params_from_tensors(
  config: ModelConfig,
  tensors: Iterable[tuple[str, Stored]],
  naming: str,
  source: str,
) -> Read:
  """Parameters, not read yet, from the tensors of a model's files.

  Args:
    config: the model they must be.
    tensors: each name in the files, and what is there.
    naming: 'hf' or 'gguf'.
    source: what an error calls the whole, usually a path.

  Raises:
    WeightsError: names every tensor that is unknown, missing, there twice,
      of a wrong shape, or an untied head in a tied model.
  """
  found, left_out = _checked(config, tensors, naming, source)
  flat = {
    row.path: Lazy(row, found, naming, parameters.axis_sizes(config))
    for row in table(config)
  }
  return Read(config, _nested(flat), left_out)


def place(params: Params, dtype: str) -> Params:
  """Parameters on the current mesh; those that are `Lazy` are read."""

  def read(leaf: Any) -> jax.Array:
    if isinstance(leaf, Lazy):
      array = jax.block_until_ready(_load(leaf, np.dtype(dtype)))
      memory.release_free()  # blocks that fit no array
      return array
    return leaf.astype(dtype)

  return jax.tree.map(read, params)


class Written(NamedTuple):
  """A tensor of a file to be; `read` makes it."""

  name: str
  shape: tuple[int, ...]
  read: Callable[[], np.ndarray]


def tensors_from_params(
  config: ModelConfig, params: Params, naming: str = 'hf'
) -> Iterator[Written]:
  """The tensors of a file: `params_from_tensors`, inverted, one at a time.

  Args:
    config: the model.
    params: nested dicts of arrays of any floating type.
    naming: 'hf' or 'gguf'.

  Raises:
    WeightsError: names every parameter the config does not expect, lacks,
      or expects in another shape; at once, not at the first tensor.
  """
  lengths = parameters.axis_sizes(config)
  rows = {row.path: row for row in table(config)}
  flat = dict(_flatten(params))
  _raise_all(
    'The parameter tree',
    {
      'unknown': [path for path in flat if path not in rows],
      'missing': [path for path in rows if path not in flat],
      'of a wrong shape': [
        f'{path} is {list(flat[path].shape)} and should be '
        f'{list(row.shape(lengths))}'
        for path, row in rows.items()
        if path in flat and flat[path].shape != row.shape(lengths)
      ],
    },
  )

  def written() -> Iterator[Written]:
    for path, row in rows.items():
      for name, place in row.parts(naming, lengths):

        def read(row=row, array=flat[path], place=place):
          part = np.asarray(_part(array, place))
          return row.to_file(part, naming, lengths)

        yield Written(name, row.file_shape(naming, lengths), read)

  return written()


def _part(array: Any, place: tuple[int | slice, ...]) -> Any:
  """array[place]; of an array on devices with one program for all places."""
  if not isinstance(array, jax.Array):
    return array[place]
  for number in place:
    if isinstance(number, slice):
      break
    array = jax.lax.dynamic_index_in_dim(array, number, keepdims=False)
  return array


def _family(config: ModelConfig) -> Any:
  if config.family not in FAMILIES:
    raise WeightsError(
      f'ModelConfig.family is {config.family!r}; choose one of '
      f'{", ".join(FAMILIES)}.'
    )
  return FAMILIES[config.family]


def _listed(names: Iterable[str]) -> str:
  *most, last = sorted(names)
  return f'{", ".join(most)} and {last}'


def _checked(
  config: ModelConfig,
  tensors: Iterable[tuple[str, Stored]],
  naming: str,
  source: str,
) -> tuple[dict[str, Stored], tuple[str, ...]]:
  """The tensors by name, and sentences about those passed over."""
  lengths = parameters.axis_sizes(config)
  targets = {
    name: row for row in table(config) for name in row.names(naming, lengths)
  }
  embedding = getattr(llama.EMBEDDING, naming)
  head = getattr(llama.HEAD, naming) if config.tied_embedding else None
  patterns = {
    pattern.format(after=config.num_layers): what
    for pattern, what in _family(config).SKIPPED.items()
  }
  passed = dict.fromkeys(patterns, 0)
  found: dict[str, Stored] = {}
  unknown, twice, shapes = [], [], []
  for name, stored in tensors:
    for theirs, ours in _family(config).RENAMES.items():
      if name.startswith(theirs):
        name = ours + name.removeprefix(theirs)
        break
    if name in found:
      twice.append(f'{name} ({stored.file})')
      continue
    pattern = next((p for p in patterns if fnmatch.fnmatch(name, p)), None)
    if name in targets or name == head:
      found[name] = stored
    elif pattern is not None:
      passed[pattern] += 1
    else:
      unknown.append(f'{name} ({stored.file})')
    if name in targets:
      wanted = targets[name].file_shape(naming, lengths)
      if tuple(stored.shape) != wanted:
        shapes.append(
          f'{name} ({stored.file}) is {list(stored.shape)} and should be '
          f'{list(wanted)}'
        )
  # Some tied models ship the head all the same.
  untied = []
  if head in found and embedding in found and not shapes:
    if not _equal(found[head], found[embedding]):
      untied.append(head)
  _raise_all(
    source,
    {
      'unknown': unknown,
      'missing': [name for name in targets if name not in found],
      'there twice': twice,
      'of a wrong shape': shapes,
      'not the embedding, though the config ties them': untied,
    },
  )
  return found, tuple(
    f'{number} tensors {pattern} are left out: {patterns[pattern]}'
    for pattern, number in passed.items()
    if number
  )


def _equal(first: Stored, second: Stored) -> bool:
  """Whether two tensors are one, compared a block of rows at a time."""
  if first.shape != second.shape:
    return False
  height = max(1, _BLOCK_BYTES // (8 * math.prod(first.shape[1:])))
  rest = tuple(slice(0, size) for size in first.shape[1:])
  blocks = (
    (slice(start, min(start + height, first.shape[0])), *rest)
    for start in range(0, first.shape[0], height)
  )
  return all(np.array_equal(first.read(b), second.read(b)) for b in blocks)


def _load(lazy: Lazy, dtype: np.dtype) -> jax.Array:
  """One parameter where it lies on the current mesh.

  Stacked layers that do not fit into a block together are written into the
  array, which is on the devices from the start, one block after another.
  """
  row, shape = lazy.row, lazy.shape

  def block(start: int, stop: int) -> jax.Array:
    """parameter[start:stop]; what a device keeps is read, and read once."""
    parts: dict[str, np.ndarray] = {}

    def part(index):
      first, *rest = index
      low, high, _ = first.indices(stop - start)
      index = (slice(start + low, start + high), *rest)
      if str(index) not in parts:  # slices have no hash
        parts[str(index)] = lazy.read(index, dtype)
      return parts[str(index)]

    size = (stop - start, *shape[1:])
    where = sharding.array_sharding(row.letters, size, f'Parameter {row.path}')
    if where is None:
      # Not committed to its device, as all that is computed from shapes alone
      # (`sharding.abstract`) is taken to be; else programs compile twice.
      return jax.device_put(part((slice(None),) * len(size)))
    return jax.make_array_from_callback(size, where, part)

  fitting = _BLOCK_BYTES // (math.prod(shape[1:]) * dtype.itemsize)
  if not row.layers or fitting >= shape[0]:
    return block(0, shape[0])
  where = sharding.array_sharding(row.letters, shape, f'Parameter {row.path}')
  zeros = functools.partial(jax.numpy.zeros, shape, dtype)
  whole = jax.jit(zeros, out_shardings=where)()
  for start in range(0, shape[0], max(1, fitting)):
    part = block(start, min(start + max(1, fitting), shape[0]))
    # Waiting keeps the host from running ahead with further blocks; on a CPU
    # the device's own copy of one is the host's memory too.
    whole = jax.block_until_ready(_write(whole, part, start))
    part.delete()
  return whole


@functools.partial(jax.jit, donate_argnums=0)
def _write(whole, part, start):
  return jax.lax.dynamic_update_slice_in_dim(whole, part, start, axis=0)


def _nested(flat: Mapping[str, Any]) -> Params:
  params: Params = {}
  for path, array in flat.items():
    *parents, leaf = path.split('/')
    node = params
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = array
  return params


def _flatten(tree: Params, path: str = '') -> Iterator[tuple[str, Any]]:
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from _flatten(value, f'{path}{key}/')
    else:
      yield f'{path}{key}', value


def _raise_all(source: str, problems: Mapping[str, Sequence[str]]) -> None:
  found = [f'{k}: {", ".join(v)}' for k, v in problems.items() if v]
  if found:
    raise WeightsError(
      f'{source} does not match its config: {"; ".join(found)}. Use the '
      'weights and the config of one and the same model.'
    )
