"""Every completion in one place, its own prompt beside it, in few shapes."""

import collections

import jax
import numpy as np
import pytest

from rlzero.models import padding
from rlzero.rl import programs
from rlzero.train import packing


def make_rows(rng, lengths, group_size, prompt_lens):
  size = len(lengths)
  return packing.RolloutBatch(
    prompts=[rng.integers(2, 99, n).tolist() for n in prompt_lens],
    prompt_index=np.repeat(np.arange(len(prompt_lens)), group_size),
    completions=[rng.integers(2, 99, n) for n in lengths],
    old_logprobs=[np.float32(rng.normal(size=n)) for n in lengths],
    ref_logprobs=[np.float32(rng.normal(size=n)) for n in lengths],
    advantages=np.float32(rng.normal(size=size)),
  )


def test_shared_prefix_is_what_all_prompts_begin_with():
  rng = np.random.default_rng(4)
  template = rng.integers(2, 99, 40).tolist()
  prompts = [template + [i, *range(i)] for i in (1, 2, 3, 4)]
  assert padding.shared_prefix_len(prompts) == 32  # a multiple of 16
  assert padding.shared_prefix_len(prompts[:3]) == 0  # few may agree by chance
  assert padding.shared_prefix_len([*prompts, template[:20] + [1]]) == 16
  assert (
    padding.shared_prefix_len([*prompts, template[:32]]) == 16
  )  # one is left
  assert padding.shared_prefix_len([*prompts, [0] + template]) == 0


@pytest.mark.parametrize('prefix_len', [0, 6])
def test_every_chosen_completion_is_in_one_place(prefix_len, request):
  if prefix_len:
    request.getfixturevalue('short_shared_prefixes')
  rng = np.random.default_rng(1)
  for _ in range(10):
    rows = make_rows(rng, rng.integers(1, 300, 40), 4, rng.integers(1, 9, 10))
    rows = rows._replace(
      prompts=[[*range(prefix_len), *p] for p in rows.prompts]
    )
    chosen = np.sort(rng.choice(40, 25, replace=False))
    seen = []
    for places, micro in packing.microbatches(rows, chosen, 1024, 300):
      if prefix_len:
        whole = micro.prompts.shared_prefix
        np.testing.assert_array_equal(whole.ids, [range(prefix_len)])
        np.testing.assert_array_equal(whole.positions, whole.ids)
        assert whole.segments.all()
      else:
        assert micro.prompts.shared_prefix is None
      assert micro.tokens.ids.size <= 1024
      covered = np.zeros(micro.tokens.ids.shape, int)
      for i, row, start in places:
        size = len(rows.completions[i])
        at = row, slice(start, start + size)
        prompt = rows.prompts[rows.prompt_index[i]]
        covered[at] += 1
        np.testing.assert_array_equal(micro.tokens.ids[at], rows.completions[i])
        np.testing.assert_array_equal(
          micro.tokens.positions[at], len(prompt) + np.arange(size)
        )
        assert len(set(micro.tokens.segments[at])) == 1
        np.testing.assert_array_equal(
          micro.old_logprobs[at], rows.old_logprobs[i]
        )
        np.testing.assert_array_equal(
          micro.ref_logprobs[at], rows.ref_logprobs[i]
        )
        assert (micro.advantages[at] == rows.advantages[i]).all()
        assert (micro.counts[at] == size).all()
        own = micro.prompts.index[row][micro.prompts.which[at]]
        for p in own:
          suffixes = micro.prompts.tokens
          real = suffixes.segments[p] > 0
          assert suffixes.ids[p][real].tolist() == prompt[prefix_len:]
          assert suffixes.positions[p][0] == prefix_len
        seen.append(i)
      np.testing.assert_array_equal(micro.tokens.segments > 0, covered)
      np.testing.assert_array_equal(micro.mask, covered)
      # No two completions of a row share a segment.
      assert len({micro.tokens.segments[r, s] for _, r, s in places}) == len(
        places
      )
    assert sorted(seen) == chosen.tolist()


@pytest.mark.parametrize(
  ('num_prompts', 'group_size', 'max_len', 'micro_tokens', 'prompt_len'),
  [(8, 8, 64, 4096, 40), (32, 16, 144, 8192, 16), (16, 16, 1024, 16384, 100)],
)
def test_most_of_what_is_computed_is_wanted(
  num_prompts, group_size, max_len, micro_tokens, prompt_len
):
  rng = np.random.default_rng(2)
  useful = computed = 0
  shapes = collections.Counter()
  for _ in range(5):
    lengths = rng.geometric(2 / max_len, num_prompts * group_size)
    lengths = np.minimum(lengths, max_len)
    rows = make_rows(rng, lengths, group_size, [prompt_len] * num_prompts)
    everything = np.arange(len(lengths))
    useful += lengths.sum() + num_prompts * prompt_len
    for _, micro in packing.microbatches(
      rows, everything, micro_tokens, max_len
    ):
      computed += micro.tokens.ids.size + micro.prompts.tokens.ids.size
      shapes[jax.tree.map(np.shape, micro)] += 1
  assert useful / computed > 0.85
  # Four widths in a few sizes each, all of which are known ahead.
  assert len(shapes) <= 16
  ahead = [
    jax.tree.map(np.shape, micro)
    for micro in programs.shapes(rows, micro_tokens, max_len)
  ]
  assert set(shapes) <= set(ahead) and len(set(ahead)) == len(ahead) <= 64


def test_short_completions_share_narrow_rows():
  rng = np.random.default_rng(3)
  rows = make_rows(rng, [1, 8, 3, 5] * 8, 4, [20] * 8)
  cut = list(packing.microbatches(rows, np.arange(32), 64, max_len=8))
  assert [m.tokens.ids.shape for _, m in cut] == [(4, 16), (4, 16), (1, 16)]


@pytest.mark.parametrize(
  ('num_completions', 'sizes'),
  # Of 1, 2, 4, 8, 12 and 16 rows: 10 completions leave 2 rows of 12 empty, a
  # sixth; 9 would leave 3, so 8 rows are filled and the last goes elsewhere.
  [(16, [16]), (10, [12]), (9, [8, 1]), (14, [16]), (13, [12, 1])],
)
def test_at_most_a_sixth_of_the_rows_is_empty(num_completions, sizes):
  rng = np.random.default_rng(6)
  # Each completion takes more than half of a row.
  rows = make_rows(rng, [100] * num_completions, num_completions, [5])
  cut = packing.microbatches(
    rows, np.arange(num_completions), 16 * 128, max_len=128
  )
  assert [m.tokens.ids.shape[0] for _, m in cut] == sizes
