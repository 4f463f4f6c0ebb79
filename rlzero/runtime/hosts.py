"""Several hosts: the same program on each of them, and one that writes.

Every host draws the same prompts, since draws are counted, and plays the same
schedule; the arrays are sharded over the devices of all of them. A host scores
its share of the completions and hands over its own rows of a batch. What one
host alone may know (which files are there, whether a signal came) is agreed
upon before it decides anything.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from rlzero.runtime import failures, files


def count() -> int:
  """How many hosts there are."""
  return jax.process_count()


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


def on_first(work: Callable[[], None]) -> None:
  """Does work on the first host; what it raises there ends all hosts.

  Raises:
    ValueError, OSError: of the work; on the other hosts with the same text and
      the same exit code.
  """
  error = None
  if is_first():
    try:
      work()
    except (ValueError, OSError) as raised:
      error = raised
  told = broadcast(error and [failures.exit_code(error), str(error)])
  if error:
    raise error
  if told:
    code, text = told
    raise (ValueError if code == failures.USAGE else failures.Unavailable)(text)


def first_true_of_all(value: Any) -> Any:
  """The first host's value that is true, the same on all; else its own."""
  if jax.process_count() == 1:
    return value
  return next(filter(None, _everyones(value)), value)


def all_min(value: int) -> int:
  """The smallest of the hosts' values."""
  return value if jax.process_count() == 1 else min(_everyones(value))


def map_over_hosts(
  items: Sequence[Any], work: Callable[[Sequence[Any]], list[Any]]
) -> list[Any]:
  """Maps `work` over the items, each host with an even share of them.

  Args:
    items: the same on every host.
    work: a result for each item that it is given, anything that JSON holds.
  """
  if jax.process_count() == 1:
    return work(items)
  mine = local_shard(items)
  return sum(_everyones(work(mine) if mine else []), [])


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


def _everyones(value: Any) -> list[Any]:
  """The values of all hosts, in their order."""
  data = np.frombuffer(files.to_json(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(data.size))
  padded = np.zeros(sizes.max(), np.uint8)
  padded[: data.size] = data
  every = multihost_utils.process_allgather(padded)
  return [
    json.loads(row[:size].tobytes())
    for row, size in zip(every, sizes, strict=True)
  ]
