"""Weights that are no numbers are found, wherever they lie."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from rlzero.runtime import sharding
from rlzero.weights import finite


@pytest.mark.parametrize('devices', [1, 8])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_one_number_among_many(dtype, devices, monkeypatch):
  monkeypatch.setattr(finite, '_PIECE', 7)
  largest = float(jnp.finfo(dtype).max)
  good = np.array([[0.0, -largest, largest, 1e-30]] * 8, np.float32)
  with sharding.use(sharding.Mesh(fsdp=devices)):
    where = None
    if devices > 1:
      where = sharding.array_sharding('DF', good.shape, 'w')
    for place in (None, (0, 0), (5, 3), (7, 2)):
      for bad in (np.nan, -np.nan, np.inf, -np.inf):
        array = good.copy()
        if place is not None:
          array[place] = bad
        params = {
          'a': jnp.zeros(3),
          'w': jax.device_put(array.astype(dtype), where),
        }
        if place is None:
          finite.check(params, 'x')
          continue
        with pytest.raises(
          ValueError, match='x has a NaN or an infinity in w;'
        ):
          finite.check(params, 'x')
