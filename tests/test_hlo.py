"""Traffic read from the text of compiled programs."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from rlzero.planner import hlo
from rlzero.runtime import sharding

_LOOPS, _SIZE = 5, 1024


@pytest.fixture(scope='module')
def text():
  """A loop that gathers and multiplies, on 8 devices."""

  def program(x, stacked):
    def body(x, w):
      whole = sharding.constrain(w, '_H')  # w is cut along D
      return jnp.tanh(x @ whole), ()

    return jax.lax.scan(body, x, stacked)[0].sum()

  with sharding.use(sharding.Mesh(fsdp=8)):
    x = sharding.abstract(np.zeros((64, _SIZE), np.float32), 'B_')
    stacked = np.zeros((_LOOPS, _SIZE, _SIZE), np.float32)
    stacked = sharding.abstract(stacked, 'LD_')
    return jax.jit(program).lower(x, stacked).compile().as_text()


def test_a_loop_counts_as_often_as_it_runs(text):
  traffic = hlo.traffic(text)
  weights = 4 * _LOOPS * _SIZE**2
  assert traffic.collectives['all-gather'] == weights
  assert 8 <= traffic.collectives['all-reduce'] <= 64  # the sum, twice
  assert traffic.received == sum(traffic.collectives.values())
  # At least: what a device holds is read; the whole is written and read.
  assert traffic.memory > weights / 8 + 2 * weights
  assert traffic.memory < 6 * weights


def test_fusions_read_the_slices_that_they_take():
  """A hand-made program; figures by hand."""
  text = """HloModule m

%fused (p0: f32[8,256], p1: s32[]) -> f32[1,256] {
  %p0 = f32[8,256]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %cut = f32[1,256]{1,0} dynamic-slice(%p0, %p1, %zero), sizes={1,256}
  ROOT %neg = f32[1,256]{1,0} negate(%cut)
}

ENTRY %main (a: f32[8,256], i: s32[]) -> f32[1,256] {
  %a = f32[8,256]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %near = f32[64]{0:T(1024)S(1)} broadcast(%i), dimensions={}
  ROOT %out = f32[1,256]{1,0} fusion(%a, %i), kind=kLoop, calls=%fused
}
"""
  # The broadcast reads a scalar and writes nothing to HBM; the fusion reads
  # a slice of 1,024 bytes and the index, and writes 1,024.
  assert hlo.traffic(text).memory == 4 + 1024 + 4 + 1024


@pytest.mark.parametrize('there', [True, False])
def test_a_ragged_exchange_counts_its_rows_and_not_its_room(there):
  """8 rows of 16 numbers leave, for 128 that there is room for; or come."""
  few, room = 'f32[8,16]', 'f32[128,16]'
  source, target = (few, room) if there else (room, few)
  text = f"""HloModule m

ENTRY %main (a: {source}, b: {target}, i: s32[4]) -> {target} {{
  %a = {source} parameter(0)
  %b = {target} parameter(1)
  %i = s32[4] parameter(2)
  ROOT %sent = {target} ragged-all-to-all(%a, %b, %i, %i, %i, %i), channel_id=1
}}
"""
  assert hlo.traffic(text).collectives == {'ragged-all-to-all': 8 * 16 * 4}
