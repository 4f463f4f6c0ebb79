"""How many programs runs of the paper's size compile."""

import pytest

from rlzero import grpo
from rlzero.rl import programs
from rlzero.rollout import buckets
from rlzero.runtime import config, sharding
from rlzero.train import buckets as train_buckets

pytestmark = pytest.mark.model


def count(name, num_devices):
  """Sizes of each program of a run, for prompts of one width."""
  cfg = config.build(
    grpo, [f'--gin_file=configs/runs/{name}.gin', '--workdir=x']
  )
  per_step = cfg.num_prompts * cfg.group_size
  together = cfg.num_prompts * cfg.steps_per_rollout
  with sharding.abstract_mesh(cfg.mesh, num_devices, 'tpu'):
    shards = sharding.axis_size('B')
    limits = cfg.micro_tokens, cfg.sampling.max_len, shards
    update = [*programs.sizes(per_step, cfg.num_prompts, *limits)]
    reference = [
      *programs.sizes(per_step * cfg.steps_per_rollout, together, *limits)
    ]
    sizes = buckets.sizes(cfg.sampling)
    decode = [
      (num_slots, cache_len)
      for num_slots in (sizes.num_slots, *sizes.smaller_batches)
      for cache_len in sizes.cache_lens(num_slots)
    ]
  for found in (update, reference, decode):
    assert len({*found}) == len(found)
  return {
    'update': len(update),
    'reference': len(reference),
    'apply': 1,
    'prefill': 1,
    # Slots are filled while all of them are there.
    'insert': len({cache for slots, cache in decode if slots == decode[0][0]}),
    'decode': len(decode),
    'decode of evaluations': len(decode),
  }


@pytest.mark.parametrize(
  ('name', 'num_devices', 'expected'),
  [
    ('r1_zero_qwen2p5_1p5b', 8, [4, 4, 1, 1, 3, 5, 5]),
    ('r1_zero_qwen2p5_32b', 64, [4, 4, 1, 1, 3, 5, 5]),
  ],
)
def test_a_run_of_the_papers_size_has_few_programs(name, num_devices, expected):
  """Besides them it copies slots and reads pages, which compiles at once."""
  found = count(name, num_devices)
  assert [*found.values()] == expected, found
  assert sum(expected) <= 24


def test_others_have_the_sizes_that_they_had():
  """W1 and W2 of the benchmark: neither long rows nor large microbatches."""
  assert len([*programs.sizes(64, 8, 2048, 64)]) == 14
  assert train_buckets.row_width(1, 512) == 128
  assert buckets.Sizes(64, 64, 160).smaller_batches == [
    48,
    40,
    32,
    24,
    16,
    8,
    4,
  ]
