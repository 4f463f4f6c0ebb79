"""Orbax: the whole state of a run, and what one stage hands to the next.

A run's folder holds `checkpoints/STEP/` (Orbax; parameters apart from the
rest, so that a later stage reads only them) and `model/`, whose config.json
and tokenizer say what the parameters are. `folders.load_model` reads such a
folder, a Hugging Face folder or a GGUF file.
"""

import contextlib
import gc
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from jax import numpy as jnp

from rlzero.runtime import failures, hosts
from rlzero.types import Params

_WAITS_S = (1, 5, 20)  # before what could not be read is tried again


class Saved(NamedTuple):
  """The contents of a checkpoint."""

  step: int
  params: Params
  state: Any  # optimizer state, reference
  metadata: dict[str, Any]


class _Content(NamedTuple):
  """This host's part of a checkpoint, as it was read."""

  step: int
  trees: dict[str, Any]
  prints: dict[str, int]  # fingerprints, by tree
  metadata: dict[str, Any]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
  """Hides that Orbax warns of a folder that is only read, in four lines."""
  logger = logging.getLogger('absl')
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(level)


class Store:
  """The numbered checkpoints of a run; each is written whole or not at all.

  Every checkpoint carries the fingerprints of its arrays. One whose files are
  cut or missing on a host, or whose bits are not those that were saved, is
  passed over with a sentence by all hosts, the one before it is taken, and the
  damaged one is moved to `checkpoints/damaged-STEP`. One that cannot be read
  for another reason (a stale file handle, a time-out, no memory) may be sound:
  it is tried again, and then the run stops.

  Args:
    workdir: the run's folder.
    keep: how many checkpoints to keep, the newest.
    read_only: for a run that is another's, and may be under way.
  """

  def __init__(self, workdir: str, keep: int = 2, read_only: bool = False):
    self._read_only = read_only
    self._folder = os.path.abspath(os.path.join(workdir, 'checkpoints'))
    with _silent() if read_only else contextlib.nullcontext():
      self._manager = ocp.CheckpointManager(
        self._folder,
        options=ocp.CheckpointManagerOptions(
          max_to_keep=keep,
          read_only=read_only,
          cleanup_tmp_directories=not read_only,
        ),
      )
    # Waits for no other host: one that fails could never tell them.
    self._reader = ocp.Checkpointer(
      ocp.CompositeCheckpointHandler(),
      multiprocessing_options=ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
      ),
    )

  def steps(self) -> list[int]:
    """Steps of the checkpoints that are there, sound or not."""
    return sorted(self._manager.all_steps())

  def latest(self) -> int | None:
    """Step of the newest checkpoint, or None."""
    return self._manager.latest_step()

  def save(
    self, step: int, params: Params, state: Any, metadata: dict | None = None
  ) -> None:
    """Saves parameters, a pytree of other arrays, and metadata as JSON.

    Returns once the arrays have left the devices, so that they may be donated;
    the files are written in the background. Waits for the save before it.
    """
    prints = jax.device_get(_fingerprints({'params': params, 'rest': state}))
    self.wait()
    self._manager.save(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardSave(params),
        rest=ocp.args.StandardSave(state),
        facts=ocp.args.JsonSave(
          {
            'facts': metadata or {},
            'fingerprints': {name: int(n) for name, n in prints.items()},
          }
        ),
      ),
    )

  def restore(
    self,
    params: Params,
    state: Any,
    check: Callable[[dict[str, Any]], str] = lambda metadata: '',
  ) -> Saved | None:
    """The newest sound checkpoint, or None if none was ever saved.

    Args:
      params: arrays, or shapes, that say how to restore the parameters.
      state: the same for the other arrays.
      check: given the metadata, says what is missing beside the checkpoint that
        belongs to it; '' if nothing is. The same on every host.

    Raises:
      ValueError: there are checkpoints and all of them are damaged.
      failures.Unavailable: one cannot be read now, and may be sound.
    """
    found = self._newest({'params': params, 'rest': state}, check)
    if found is None:
      return None
    return Saved(
      found.step, found.trees['params'], found.trees['rest'], found.metadata
    )

  def restore_params(self, params: Params) -> Params:
    """The parameters alone, of the newest sound checkpoint."""
    found = self._newest({'params': params}, lambda metadata: '')
    assert found, f'{self._folder} has none; ask `latest` first'
    return found.trees['params']

  def wait(self) -> None:
    """Until what was saved is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and ends what works in the background."""
    self._manager.close()
    self._reader.close()

  def _read(self, step: int, trees: Mapping[str, Any]) -> _Content:
    """Reads this host's part of the arrays, fingerprints and metadata."""
    shapes = jax.tree.map(_shape, trees)
    read = self._reader.restore(
      os.path.join(self._folder, str(step)),
      args=ocp.args.Composite(
        **{n: ocp.args.StandardRestore(tree) for n, tree in shapes.items()},
        facts=ocp.args.JsonRestore(),
      ),
    )
    return _Content(
      step=step,
      trees={name: read[name] for name in trees},
      prints={name: read.facts['fingerprints'][name] for name in trees},
      metadata=read.facts['facts'],
    )

  def _newest(
    self, trees: Mapping[str, Any], check: Callable[[dict[str, Any]], str]
  ) -> _Content | None:
    """Finds the newest sound checkpoint, or None if there is none at all."""
    steps = hosts.broadcast(self.steps()[::-1])
    for number, step in enumerate(steps):
      found = self._read_patiently(step, trees)
      if isinstance(found, _Content):
        damage = _difference(found.trees, found.prints) or check(found.metadata)
        if not damage:
          if not self._read_only:
            # The run saves at these steps again.
            self._move_aside(steps[:number])
          return found
      else:
        damage = found
      if hosts.is_first():
        print(
          f'The checkpoint of step {step} in {self._folder} is damaged '
          f'({damage}); '
          + (
            f'trying the one of step {steps[number + 1]}.'
            if number + 1 < len(steps)
            else 'there is none before it.'
          ),
          file=sys.stderr,
          flush=True,
        )
    if steps:
      raise ValueError(
        f'{self._folder} has no checkpoint that can be read; to begin anew, '
        'choose another workdir or remove this folder.'
      )
    return None

  def _read_patiently(
    self, step: int, trees: Mapping[str, Any]
  ) -> _Content | str:
    """Reads a checkpoint; what is not damage is tried again after a wait.

    Returns:
      what `_read` returns, or what is damaged, on whichever host.

    Raises:
      failures.Unavailable: it cannot be read, and may well be sound.
    """
    for wait_s in (*_WAITS_S, None):
      found, trouble = None, None
      with _unwarned_of_abandoned_reads():
        try:
          found = self._read(step, trees)
        except Exception as error:  # Orbax and TensorStore raise of every kind
          trouble = [failures.is_damage(error), failures.sentence(error)]
        if trouble:
          gc.collect()  # abandoned reads end here, where no one warns of them
      # Only when all have read can they go on to what they do together.
      trouble = hosts.first_true_of_all(trouble)
      if not trouble:
        assert found is not None
        return found
      is_damage, why = trouble
      if is_damage:
        return why
      sentence = (
        f'The checkpoint of step {step} in {self._folder} cannot be read now '
        f'({why})'
      )
      if wait_s is None:
        raise failures.Unavailable(
          f'{sentence}; nothing is known to be wrong with it and it is left '
          'as it is.'
        )
      if hosts.is_first():
        print(
          f'{sentence}; trying again in {wait_s} s.',
          file=sys.stderr,
          flush=True,
        )
      time.sleep(wait_s)
    raise AssertionError('the last try returns or raises')

  def _move_aside(self, steps):
    """Renames checkpoints `STEP` to `damaged-STEP`; deletes nothing."""
    for step in steps:
      if hosts.is_first():
        source = os.path.join(self._folder, str(step))
        target = os.path.join(self._folder, f'damaged-{step}')
        number = 1
        while os.path.exists(target):
          number += 1
          target = os.path.join(self._folder, f'damaged-{step}-{number}')
        os.rename(source, target)
        print(f'It is kept as {target}.', file=sys.stderr, flush=True)
    if steps:
      hosts.broadcast(True)  # the others must not list what is being renamed
      self._manager.reload()


@contextlib.contextmanager
def _unwarned_of_abandoned_reads() -> Iterator[None]:
  """Inside, Python does not warn of reads that Orbax began and abandoned.

  Orbax reads files by coroutines. When one fails, others may never have begun,
  which Python reports at some later time, beside work that is not at fault.
  """
  with warnings.catch_warnings():
    warnings.filterwarnings(
      'ignore', "coroutine '.*' was never awaited", RuntimeWarning
    )
    yield


def fingerprint(tree: Any) -> int:
  """A number of all bits of the arrays, however they lie on the devices."""
  return int(_fingerprint(tree))


@jax.jit
def _fingerprint(tree):
  # Sums of integers modulo 2^32 do not depend on their order; the weights
  # tell places apart.
  total = jnp.uint32(0)
  for leaf in jax.tree.leaves(tree):
    leaf = jnp.asarray(leaf)
    if leaf.dtype == bool:
      bits = leaf.astype(jnp.uint32)
    else:
      width = 8 * leaf.dtype.itemsize
      bits = jax.lax.bitcast_convert_type(leaf, f'uint{width}')
      bits = bits.astype(jnp.uint32)
    place = jnp.zeros(leaf.shape, jnp.uint32)
    for axis in range(leaf.ndim):
      along = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
      place = place * jnp.uint32(leaf.shape[axis]) + along
    weighted = bits * (2 * place + 1)
    total = total * 31 + jnp.sum(weighted, dtype=jnp.uint32)
  return total


def _fingerprints(trees):
  return {name: _fingerprint(tree) for name, tree in trees.items()}


def _difference(trees, prints) -> str:
  """Names the first tree whose fingerprint differs from the saved, or ''."""
  for name, number in jax.device_get(_fingerprints(trees)).items():
    if int(number) != prints[name]:
      return f'the bits of {name} are not those that were saved'
  return ''


def _shape(leaf):
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
