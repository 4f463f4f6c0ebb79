"""Several hosts: the same program on each of them, and one that writes.

Every host draws the same prompts, since draws are counted, and plays the same
schedule; the arrays are sharded over the devices of all of them. A host reads
its share of the data, scores its share of the completions and hands over its
own rows of a batch. What one host alone may know (which files are there,
whether a signal came, that its share cannot be used) is agreed upon before it
decides anything.
"""

import base64
import contextlib
import itertools
import json
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from rlzero.runtime import failures, files, lifecycle

_ARRAY = '__array__'  # names an array among what hosts exchange
_SMALLEST = 1024  # bytes that hosts exchange at least

Result = TypeVar('Result')


def count() -> int:
  """How many hosts there are."""
  return jax.process_count()


def joined() -> bool:
  """Whether this process has joined those of other hosts; asks no device."""
  return jax.distributed.is_initialized()


def is_first() -> bool:
  """Whether this host is the one that writes and talks."""
  return jax.process_index() == 0


def print_once(text: str) -> None:
  """Prints a line, once for all hosts."""
  if is_first():
    print(text, flush=True)


def broadcast(value: Any) -> Any:
  """The first host's value, anything that JSON holds, on every host."""
  return value if jax.process_count() == 1 else _everyones(value)[0]


def on_first(work: Callable[[], Result]) -> Result | None:
  """Does work on the first host; what it raises there ends all hosts.

  The other hosts wait for it.

  Returns:
    what the work returns; None on the other hosts.

  Raises:
    ValueError, OSError: of the work; on the other hosts with the same text and
      the same exit code.
  """
  result, error = None, None
  if is_first():
    result, error = _attempt(work)
  _raise_together(error)
  return result


def first_true_of_all(value: Any) -> Any:
  """The first host's value that is true, the same on all; else its own."""
  if jax.process_count() == 1:
    return value
  return next(filter(None, _everyones(value)), value)


def all_min(value: int) -> int:
  """The smallest of the hosts' values."""
  return value if jax.process_count() == 1 else min(_everyones(value))


def on_every(work: Callable[[], Result]) -> Result:
  """Does work on every host; what it raises on one ends all hosts.

  Raises:
    ValueError, OSError: of the work; on hosts where it was done, with the text
      and the exit code of the first that failed.
  """
  result, error = _attempt(work)
  _raise_together(error)
  return typing.cast(Result, result)


def map_over_hosts(
  items: Sequence[Any], work: Callable[[Sequence[Any]], list[Any]]
) -> list[Any]:
  """Maps `work` over the items, each host with an even share of them.

  Args:
    items: the same on every host.
    work: a result for each item that it is given: anything that JSON holds,
      and NumPy arrays. A tuple arrives as a list where there are several hosts.

  Raises:
    ValueError, OSError: of the work on one host, on all of them.
  """
  if jax.process_count() == 1:
    return work(items)
  mine = local_shard(items)
  found = on_every(lambda: work(mine) if mine else [])
  return list(itertools.chain(*_everyones(found)))


def local_shard(items: Sequence[Any]) -> list[Any]:
  """Those of the items that `map_over_hosts` gives to this host."""
  parts = np.array_split(np.arange(len(items)), jax.process_count())
  return [items[i] for i in parts[jax.process_index()]]


def fetch(tree: Any) -> Any:
  """Arrays that may lie on the devices of other hosts, as NumPy arrays."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def fetch_first(tree: Any) -> Any:
  """`fetch` for the first host; the others help, and keep nothing."""

  def one(array):
    whole = fetch(array)
    return whole if is_first() else None

  return jax.tree.map(one, tree)


@contextlib.contextmanager
def preemption() -> Iterator[Callable[[], bool]]:
  """`lifecycle.preemption` of all hosts: whether SIGTERM came to one of them.

  All hosts call the function alike, and learn the same.
  """
  with lifecycle.preemption() as came:
    yield lambda: bool(first_true_of_all(came()))


@contextlib.contextmanager
def exit_together() -> Iterator[Callable[[], None] | None]:
  """Inside, SIGTERM to one of several hosts ends all of them in the same place.

  For work that is kept as it goes. One host alone is ended by the signal.

  Yields:
    a function that all hosts call alike, which exits with
    `lifecycle.PREEMPTED`; None where there is one host.
  """
  if jax.process_count() == 1:
    yield None
    return
  with preemption() as came:

    def poll() -> None:
      if came():
        sys.exit(lifecycle.PREEMPTED)

    yield poll


def _attempt(
  work: Callable[[], Result],
) -> tuple[Result | None, Exception | None]:
  """Does work; returns its result, or the error that the user can mend."""
  try:
    return work(), None
  except (ValueError, OSError) as error:
    return None, error


def _raise_together(error: Exception | None) -> None:
  """Raises an error on all hosts if one has one; its own on a host that has."""
  told = first_true_of_all(error and [failures.exit_code(error), str(error)])
  if error:
    raise error
  if told:
    code, text = told
    raise (ValueError if code == failures.USAGE else failures.Unavailable)(text)


def _everyones(value: Any) -> list[Any]:
  """The values of all hosts, in their order."""
  text = files.to_json(value, default=_array_to_json)
  data = np.frombuffer(text.encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(data.size))
  padded = np.zeros(_padded_size(int(sizes.max())), np.uint8)
  padded[: data.size] = data
  every = multihost_utils.process_allgather(padded)
  return [
    json.loads(row[:size].tobytes(), object_hook=_array_from_json)
    for row, size in zip(every, sizes, strict=True)
  ]


def _array_to_json(array: Any) -> dict[str, Any]:
  if not isinstance(array, np.ndarray):
    raise TypeError(f'JSON does not hold a {type(array).__name__}.')
  data = base64.b64encode(array.tobytes()).decode()
  return {_ARRAY: [array.dtype.str, array.shape, data]}


def _array_from_json(value: dict[str, Any]) -> Any:
  if value.keys() != {_ARRAY}:
    return value
  kind, shape, data = value[_ARRAY]
  return np.frombuffer(base64.b64decode(data), kind).reshape(shape)


def _padded_size(size: int) -> int:
  """A power of two: each size of an exchange is a program of its own."""
  return max(_SMALLEST, 1 << (size - 1).bit_length())
