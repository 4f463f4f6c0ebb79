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


def test_a_fusion_reads_what_one_inside_of_it_only_reshapes():
  text = """HloModule m

%flat (p: f32[8,256]) -> f32[2048] {
  %p = f32[8,256]{1,0} parameter(0)
  ROOT %same = f32[2048]{0} bitcast(%p)
}

%fused (p0: f32[8,256]) -> f32[] {
  %p0 = f32[8,256]{1,0} parameter(0)
  %inner = f32[2048]{0} fusion(%p0), kind=kLoop, calls=%flat
  %zero = f32[] constant(0)
  ROOT %sum = f32[] reduce(%inner, %zero), dimensions={0}, to_apply=%add
}

ENTRY %main (a: f32[8,256]) -> f32[] {
  %a = f32[8,256]{1,0} parameter(0)
  ROOT %out = f32[] fusion(%a), kind=kInput, calls=%fused
}
"""
  assert hlo.traffic(text).memory == 4 * 8 * 256 + 4


def test_a_slice_into_fast_memory_reads_its_source():
  text = """HloModule m

%piece (p: f32[8,256]) -> f32[2,256] {
  %p = f32[8,256]{1,0} parameter(0)
  ROOT %cut = f32[2,256]{1,0:S(1)} slice(%p), slice={[2:4], [0:256]}
}

ENTRY %main (a: f32[8,256]) -> f32[2,256] {
  %a = f32[8,256]{1,0} parameter(0)
  %begin = ((f32[8,256]{1,0}), f32[2,256]{1,0:S(1)}, s32[]{:S(2)}) \
async-start(%a), calls=%piece
  %end = f32[2,256]{1,0:S(1)} async-done(%begin)
  ROOT %near = f32[2,256]{1,0:S(1)} custom-call(%end), \
custom_call_target="ConcatBitcast"
}
"""
  assert hlo.traffic(text).memory == 4 * 2 * 256


def test_a_collective_counts_once_while_other_fusions_run():
  """8 rows become 32 beside a loop of 5, each turn of which hands them on."""
  part, whole, one = 'f32[8,256]', 'f32[32,256]', 'f32[]'
  gather = f'{whole} all-gather(%p0), channel_id=7, dimensions={{0}}'
  both = f'({part}, {whole})'
  text = f"""HloModule m

%start (p0: {part}) -> {both} {{
  %p0 = {part} parameter(0)
  %begun = {gather}
  ROOT %out = {both} custom-call(%begun), \
custom_call_target="AsyncCollectiveStart"
}}

%on (p0: {part}, p1: {whole}, p2: {one}) -> ({one}, {part}, {whole}) {{
  %p0 = {part} parameter(0)
  %p1 = {whole} parameter(1)
  %p2 = {one} parameter(2)
  %more = {one} negate(%p2)
  %begun = {gather}
  ROOT %out = ({one}, {part}, {whole}) tuple(%more, %p0, %begun)
}}

%done (p0: {part}, p1: {whole}) -> {whole} {{
  %p0 = {part} parameter(0)
  %p1 = {whole} parameter(1)
  %begun = {gather}
  ROOT %out = {whole} custom-call(%p0, %p1, %begun), \
custom_call_target="AsyncCollectiveDone"
}}

%body (c: (s32[], {one}, {part}, {whole})) -> (s32[], {one}, {part}, {whole}) {{
  %c = (s32[], {one}, {part}, {whole}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %x = {one} get-tuple-element(%c), index=1
  %near = {part} get-tuple-element(%c), index=2
  %far = {whole} get-tuple-element(%c), index=3
  %step = ({one}, {part}, {whole}) fusion(%near, %far, %x), kind=kOutput, \
output_to_operand_aliasing={{{{1}}: (0, {{}}), {{2}}: (1, {{}})}}, calls=%on
  %y = {one} get-tuple-element(%step), index=0
  ROOT %out = (s32[], {one}, {part}, {whole}) tuple(%i, %y, %near, %far)
}}

%condition (c: (s32[], {one}, {part}, {whole})) -> pred[] {{
  %c = (s32[], {one}, {part}, {whole}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %limit = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}}

ENTRY %main (a: {part}, x: {one}, i: s32[]) -> {whole} {{
  %a = {part} parameter(0)
  %x = {one} parameter(1)
  %i = s32[] parameter(2)
  %begin = {both} fusion(%a), kind=kCustom, \
output_to_operand_aliasing={{{{0}}: (0, {{}})}}, calls=%start
  %near = {part} get-tuple-element(%begin), index=0
  %far = {whole} get-tuple-element(%begin), index=1
  %all = (s32[], {one}, {part}, {whole}) tuple(%i, %x, %near, %far)
  %loop = (s32[], {one}, {part}, {whole}) while(%all), \
condition=%condition, body=%body
  %source = {part} get-tuple-element(%loop), index=2
  %target = {whole} get-tuple-element(%loop), index=3
  ROOT %end = {whole} fusion(%source, %target), kind=kCustom, \
output_to_operand_aliasing={{{{}}: (1, {{}})}}, calls=%done
}}
"""
  traffic = hlo.traffic(text)
  assert traffic.collectives == {'all-gather': 4 * 32 * 256}
  # What is gathered is read and written once, and a number at each turn.
  assert traffic.memory == 4 * (8 + 32) * 256 + 5 * (4 + 4)


def test_a_reduce_scatter_receives_what_it_adds_up():
  """32 numbers of each of 4 devices, whose sum is shared out: 8 a device."""
  whole, part = 'f32[32]', 'f32[8]'
  plain = f"""HloModule m

ENTRY %main (a: {whole}) -> {part} {{
  %a = {whole} parameter(0)
  ROOT %sum = {part} reduce-scatter(%a), channel_id=1, dimensions={{0}}, \
to_apply=%add
}}
"""
  fused = f"""HloModule m

%all-reduce-scatter.1 (p: {whole}, i: s32[]) -> {part} {{
  %p = {whole} parameter(0)
  %i = s32[] parameter(1)
  %all = {whole} all-reduce(%p), channel_id=1, to_apply=%add
  ROOT %own = {part} dynamic-slice(%all, %i), dynamic_slice_sizes={{8}}
}}

ENTRY %main (a: {whole}, i: s32[]) -> {part} {{
  %a = {whole} parameter(0)
  %i = s32[] parameter(1)
  ROOT %out = {part} fusion(%a, %i), kind=kCustom, calls=%all-reduce-scatter.1
}}
"""
  for text in (plain, fused):
    assert hlo.traffic(text).collectives == {'reduce-scatter': 4 * 32}


def test_a_kernel_reads_what_it_says():
  """Not its operand, of which it reads a part; its result is written."""
  text = """HloModule m

ENTRY %main (a: f32[1000]) -> f32[8] {
  %a = f32[1000]{0} parameter(0)
  ROOT %out = f32[8]{0} custom-call(%a), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"body":"x","cost_estimate":\
{"flops":"7","transcendentals":"1","bytes_accessed":"640"}}}
}
"""
  traffic = hlo.traffic(text)
  assert (traffic.kernels, traffic.memory) == (640, 640 + 32)
