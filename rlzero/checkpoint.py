"""Orbax: whole run states, and what one stage hands to the next."""

import json
import os
from typing import Any

import jax
from jax import numpy as jnp
import numpy as np
import orbax.checkpoint as ocp


class Store:
  """The numbered checkpoints of a run; writes are atomic, the newest kept.

  Args:
    folder: where the checkpoints live; made if missing.
    keep: how many to keep.
  """

  def __init__(self, folder: str, keep: int = 2):
    self._manager = ocp.CheckpointManager(
        os.path.abspath(folder),
        options=ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False
        ),
    )

  def latest(self) -> int | None:
    """Step of the newest checkpoint, or None."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, extra: dict | None = None) -> None:
    """Writes a pytree of arrays, and small facts that JSON can hold."""
    self._manager.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            extra=ocp.args.JsonSave(extra or {}),
        ),
    )
    self._manager.wait_until_finished()

  def restore(self, step: int, like: Any) -> Any:
    """The pytree of a checkpoint, shaped and typed as `like`."""
    return self._manager.restore(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardRestore(like)),
    ).state

  def close(self) -> None:
    self._manager.close()
