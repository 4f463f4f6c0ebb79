"""Refuses weights that are no numbers."""

import jax
import numpy as np
from jax import numpy as jnp

from rlzero.types import Params

_PIECE = 2**18  # numbers that are looked at together: what a cache holds
_EXPONENT = np.uint16(0x7F80)  # of a bfloat16; all ones in a NaN or infinity


def check(params: Params, source: str) -> None:
  """Refuses weights with a NaN or an infinity.

  A number for each tensor comes back from the devices, not the tensor.

  Args:
    params: arrays on the devices.
    source: where they are from, for the message.

  Raises:
    ValueError: names the first tensors that are not finite.
  """
  flat = jax.tree_util.tree_leaves_with_path(params)
  finite = jax.device_get([_is_finite(leaf) for _, leaf in flat])
  bad = [
    '.'.join(str(getattr(key, 'key', key)) for key in path)
    for (path, _), good in zip(flat, finite, strict=True)
    if not good
  ]
  if bad:
    more = f' and {len(bad) - 3} more' if len(bad) > 3 else ''
    raise ValueError(
      f'{source} has a NaN or an infinity in {", ".join(bad[:3])}{more}; take '
      'an earlier checkpoint, or copy or download the weights again.'
    )


def _is_finite(array: jax.Array | np.ndarray) -> jax.Array | bool:
  if not isinstance(array, jax.Array) or _on_this_cpu(array):
    # In the host's memory, so that no program has to be compiled.
    flat = np.asarray(array).reshape(-1)
    return all(
      _are_finite(flat[start : start + _PIECE])
      for start in range(0, flat.size, _PIECE)
    )
  return _on_devices(array)


def _are_finite(numbers: np.ndarray) -> bool:
  if numbers.dtype == jnp.bfloat16:  # NumPy looks at them one by one
    exponents = numbers.view(np.uint16) & _EXPONENT
    return bool((exponents != _EXPONENT).all())
  return bool(np.isfinite(numbers).all())


def _on_this_cpu(array: jax.Array) -> bool:
  devices = list(array.devices())
  return (
    array.is_fully_addressable
    and len(devices) == 1
    and devices[0].platform == 'cpu'
  )


@jax.jit
def _on_devices(array: jax.Array) -> jax.Array:
  return jnp.isfinite(array).all()
