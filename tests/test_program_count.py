"""How many programs runs of the paper's size compile."""

import pytest

from rlzero import grpo
from rlzero.rl import programs
from rlzero.rollout import buckets
from rlzero.runtime import config, sharding

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
    most, width, longest = buckets.sizes(cfg.sampling)
    decode = [
      (batch, cache_len)
      for batch in (most, *buckets.batch_buckets(most))
      for cache_len in buckets.cache_buckets(longest, width, batch / most)
    ]
  for sizes in (update, reference, decode):
    assert len({*sizes}) == len(sizes)
  return {
    'update': len(update),
    'reference': len(reference),
    'decode': len(decode),
  }


def test_programs_of_the_papers_run():
  # Decoding is compiled twice, for rollouts and for evaluations.
  found = count('r1_zero_qwen2p5_1p5b', 8)
  print(found)
