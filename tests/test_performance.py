"""Rates of a step, by hand, and traces of steps."""

import dataclasses
import pathlib

import numpy as np
import pytest
from jax import numpy as jnp

from rlzero.costs import flops, hardware, useful
from rlzero.models.config import Experts, ModelConfig
from rlzero.rl import performance
from rlzero.rl.performance import Rates, Sampled
from rlzero.runtime import profiling

pytestmark = pytest.mark.model

# 4 x 2 x 2 + 3 x 2 x 1 = 22 weights in the layer, 10 in the head.
MODEL = ModelConfig(
  num_layers=1,
  num_heads=1,
  num_kv_heads=1,
  head_dim=2,
  width=2,
  mlp_width=1,
  vocab_size=5,
)
ROWS = useful.Rows(
  prompts=np.array([3, 5]),
  prompt_index=np.array([0, 0, 1]),
  completions=np.array([2, 1, 4]),
)
# Prompts of 3 and 5 tokens; then 2 and 1 behind the first, 4 behind the second.
TOKENS, PREDICTED, PAIRS = 15, 7, 6 + 15 + (6 + 3) + (3 + 1) + (20 + 10)
FORWARD = 2 * (22 * TOKENS + 10 * PREDICTED) + 8 * PAIRS


def test_flops_by_hand():
  assert useful.forward(MODEL, ROWS) == FORWARD
  assert useful.update(MODEL, ROWS) == 3 * FORWARD
  # What is computed again is no work.
  remat = dataclasses.replace(MODEL, remat=True)
  assert useful.update(remat, ROWS) == 3 * FORWARD
  # Of one group alone: its prompt once.
  one = ROWS._replace(prompt_index=ROWS.prompt_index[:2], completions=[2, 1])
  one = one._replace(completions=np.array(one.completions))
  assert useful.forward(MODEL, one) == (2 * (22 * 6 + 10 * 3) + 8 * (6 + 9 + 4))


def test_bytes_by_hand():
  # Keys and values of a token are 4 numbers; a completion of n tokens behind p
  # looks at p + n / 2 in the mean, each of n times.
  looked_at = 2 * (3 + 1) + 1 * (3 + 0.5) + 4 * (5 + 2)
  found = useful.decode_bytes(MODEL, ROWS, steps=6, num_slots=4, copies=2)
  assert found == 4 * (6 * 2 * 32 + looked_at * 4)
  # In half the bytes; a prefix of 2 tokens once for all rows that step.
  narrow = dataclasses.replace(MODEL, dtype='bfloat16')
  shared = ROWS._replace(prefix_len=2)
  found = useful.decode_bytes(narrow, shared, steps=6, num_slots=4)
  assert found == 2 * (6 * 32 + (looked_at - 2 * 7 + 6 * 2) * 4)


def test_experts_that_are_read_are_those_that_tokens_choose():
  experts = Experts(num_experts=4, num_chosen=1, width=3)
  model = dataclasses.replace(MODEL, experts=experts)
  one = sum(flops.matmul_weights(model))
  assert flops.read_weights(model, 1) == one
  assert flops.read_weights(model, 2) == one + 3 * 2 * 3
  assert flops.read_weights(model, 9) == one + 3 * 3 * 2 * 3


def test_rates_of_a_step_by_hand():
  times = {'time/update_s': 2.0, 'time/rollout_s': 4.0, 'time/step_s': 5.0}
  of_step = performance.of_step(
    times, Sampled(8e3, 2e3), 2e3, 6e3, 2, Rates(1e4, 1e3)
  )
  assert of_step == pytest.approx(
    {
      'perf/flops_per_s': (10e3 / 2 + 6e3) / 5,
      'perf/update_flops_per_s': 3e3,
      'perf/rollout_flops_per_s': 2e3,
      'perf/decode_bytes_per_s': 500,
      'perf/mfu': 0.22,
      'perf/update_mfu': 0.3,
      'perf/decode_bandwidth_share': 0.5,
    }
  )
  # Neither shares of what is not known, nor rates of what was not sampled now.
  unknown = performance.of_step(times, None, 0.0, 6e3, 2, Rates(None, None))
  assert unknown == {'perf/update_flops_per_s': 3e3}
  assert performance.total([Sampled(1, 2), Sampled(3, 4)]) == (4, 6)
  assert performance.total([Sampled(1, 2), None]) is None


def test_chips_are_found_by_the_name_that_jax_has():
  chips = hardware.CHIPS
  assert hardware.find('NVIDIA H100 80GB HBM3') is chips['h100']
  assert hardware.find('TPU v5 lite') is chips['v5e']
  assert hardware.find('TPU v5') is chips['v5p']
  assert hardware.find('cpu') is None


@pytest.mark.parametrize(
  'text', ['3', '5:3', '3:3', 'a:b', ':', '-1:2', '1:2:3', '1.5:2']
)
def test_steps_that_cannot_be_traced(text):
  with pytest.raises(ValueError, match='profile_steps is .*give the first'):
    profiling.parse(text, 'grpo.Config.profile_steps')


def test_a_resumed_run_traces_the_steps_that_are_left(tmp_path):
  assert profiling.parse('', 'steps') == range(0)
  steps = profiling.parse('3:5', 'steps')
  assert list(steps) == [3, 4]
  profiler = profiling.Profiler(steps, str(tmp_path / 'profile'))
  for number in (4, 5):
    assert not (tmp_path / 'profile').exists() or number == 5
    with profiler.step(number):
      jnp.ones(3).sum().block_until_ready()
  traces = list(pathlib.Path(tmp_path).rglob('*.xplane.pb'))
  assert len(traces) == 1
  profiler.close()  # once more is no error
