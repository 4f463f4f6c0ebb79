"""Decoding where every row has settings of its own, which are not compiled."""

import functools
import inspect

import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Int

from rlzero.models.config import ModelConfig
from rlzero.rollout import engine
from rlzero.rollout.device import Device
from rlzero.rollout.pages import Written
from rlzero.rollout.row_sampling import RowDistribution
from rlzero.rollout.slots import Slots, Tops, read_last
from rlzero.runtime import hosts
from rlzero.types import Params

NUM_TOP = 20  # most likely tokens that a request may ask for, at each step


@functools.partial(
  jax.jit,
  static_argnames=('config', 'eos_ids', 'num_steps'),
  donate_argnames='slots',
)
def decode(
  params: Params,
  slots: Slots,
  max_len: Int[Array, 'B'],
  *,
  config: ModelConfig,
  eos_ids: tuple[int, ...],
  num_steps: int,
  distribution: RowDistribution,
) -> tuple[Slots, Tops]:
  """`engine.decode`, where `max_len` and `distribution` are of each row.

  Returns:
    the slots, and the `NUM_TOP` most likely tokens at each step, or all of a
    smaller vocabulary, for rows that ask.
  """
  shape = len(slots.token), num_steps, min(NUM_TOP, config.vocab_size)
  tops = Tops(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))
  # The function that training compiles; it keeps what it finds in `tops`.
  after = inspect.unwrap(engine.decode)(
    params,
    slots._replace(tops=tops),
    max_len,
    config=config,
    eos_ids=eos_ids,
    num_steps=num_steps,
    distribution=distribution,
  )
  return after._replace(tops=None), after.tops


class RowDevice(Device):
  """A device whose rows have settings of their own."""

  def decode_rows(
    self, max_len: Int[np.ndarray, 'B'], distribution: RowDistribution
  ) -> Tops:
    """Decodes as `decode` does, but each row in its own way.

    Args:
      max_len: tokens after which the completion of each slot is cut.
      distribution: what each is sampled from.

    Returns:
      the most likely tokens at each step, on the devices.
    """
    self.slots, tops = decode(
      self.params,
      self.slots,
      max_len,
      config=self.config,
      eos_ids=self._eos_ids,
      num_steps=self._sampling.decode_steps,
      distribution=distribution,
    )
    return tops

  def read_last(self, count: int) -> Written:
    """The last tokens of every slot, [B, count]; rows as `slots.read_last`."""
    slots = self.slots._replace(cache=None)
    tokens, logprobs = hosts.fetch(read_last(slots, count=count))
    return Written(tokens, logprobs, None)
