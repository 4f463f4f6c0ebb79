"""The programs of a rollout, lowered from shapes alone.

`compile_ahead` compiles them before the first rollout; the planner asks what
they would need of devices that are not here.
"""

import itertools
from collections.abc import Sequence

import jax
import numpy as np

from rlzero.models import kv_cache, padding
from rlzero.models.config import ModelConfig
from rlzero.rollout import buckets, engine, scheduler
from rlzero.rollout.prefill import shared_prefix_len
from rlzero.rollout.sampling import Sampling
from rlzero.rollout.slots import (
  NUM_PAGES,
  PAGE_LEN,
  Slots,
  choose_rows,
  constrain_slots,
  empty_slots,
  read_pages,
  resize_part,
)
from rlzero.runtime import sharding
from rlzero.types import KeyValues, Params


def lower_all(
  config: ModelConfig,
  params: Params,
  prompts: Sequence[scheduler.Prompt],
  group_size: int,
  sampling: Sampling,
  eos_ids: tuple[int, ...],
) -> list[jax.stages.Lowered]:
  """The programs that `generate` has in several sizes, in each of them.

  Arguments as there.
  """
  tokens = [p.tokens for p in prompts]
  prefix_len = shared_prefix_len(config, tokens)
  sampling = buckets.narrow(
    sampling, len(prompts) * group_size, max(map(len, tokens))
  )
  most, width, longest = buckets.sizes(sampling, prefix_len)
  params = engine.to_decode_layout(config, params)
  unstacked = 'layers' not in params
  shared_prefix = _abstract_shared_prefix(config, prefix_len, unstacked)
  lowered, before, lens_before = [], {}, []
  for num_slots in [most, *buckets.batch_buckets(most)]:
    lens = buckets.cache_buckets(longest, width, num_slots / most)
    slots = {
      cache_len: abstract_slots(
        config, num_slots, cache_len, sampling, unstacked
      )
      for cache_len in {*lens, *lens_before}
    }
    for cache_len in lens_before:
      lowered += lower_resize(config, before[cache_len], num_slots, cache_len)
    for cache_len, into in itertools.product(slots, lens):
      if cache_len != into:
        lowered += lower_resize(config, slots[cache_len], None, into)
    lowered += [
      _lower_decode(
        config, params, slots[cache_len], sampling, eos_ids, shared_prefix
      )
      for cache_len in lens
    ]
    lowered.append(_lower_read(slots[lens[0]]))
    before, lens_before = slots, lens
  return lowered


def lower(
  config: ModelConfig,
  params: Params,
  num_prompts: int,
  group_size: int,
  prompt_len: int,
  sampling: Sampling,
  eos_ids: tuple[int, ...],
) -> dict[str, jax.stages.Lowered]:
  """Prefill and decode of the longest completions, where nothing is shared.

  Args:
    config: of the model.
    params: shapes and shardings of the policy's parameters.
    num_prompts: P.
    group_size: G.
    prompt_len: of the longest prompt, in tokens.
    sampling: settings.
    eos_ids: tokens that end a completion.
  """
  sampling = buckets.narrow(sampling, num_prompts * group_size, prompt_len)
  num_slots, width, cache_len = buckets.sizes(sampling)
  slots = abstract_slots(config, num_slots, cache_len, sampling)
  block = jax.tree.map(
    lambda x: sharding.abstract(x, 'PT'),
    padding.pad((), buckets.prefill_batch(num_prompts), width),
  )
  return {
    'prefill': engine.prefill.lower(config, params, block),
    'decode': _lower_decode(config, params, slots, sampling, eos_ids),
  }


def abstract_slots(
  config: ModelConfig,
  num_slots: int,
  cache_len: int,
  sampling: Sampling,
  unstacked: bool = False,
) -> Slots:
  """Shapes and shardings of `empty_slots`."""
  shapes = jax.eval_shape(
    lambda: empty_slots(
      config,
      num_slots,
      cache_len,
      sampling.max_len,
      sampling.keep_routes,
      unstacked,
    )
  )
  return constrain_slots(shapes, sharding.abstract)


def lower_resize(
  config: ModelConfig, slots: Slots, number: int | None, cache_len: int
) -> list[jax.stages.Lowered]:
  """The programs of `resize_slots`; of `chosen` it takes the number alone."""
  assert slots.cache is not None
  chosen = None
  if number is not None:
    num_shards = sharding.axis_size('B')
    shape = num_shards, number // num_shards
    chosen = jax.ShapeDtypeStruct(shape, np.int32)
  lowered = [
    resize_part.lower(
      jax.tree.leaves(part)[0], chosen, axis=axis, cache_len=cache_len
    )
    for part, axis in zip(
      slots.cache, kv_cache.position_axes(config), strict=True
    )
    if part is not None
  ]
  if number is not None:
    lowered.append(choose_rows.lower(slots._replace(cache=None), chosen))
  return lowered


def _lower_read(slots):
  shape = sharding.axis_size('B'), NUM_PAGES, 2
  return read_pages.lower(
    slots._replace(cache=None),
    jax.ShapeDtypeStruct(shape, np.int32),
    page_len=min(PAGE_LEN, slots.tokens.shape[1]),
  )


def _abstract_shared_prefix(
  config: ModelConfig, length: int, unstacked: bool
) -> KeyValues | None:
  """Shapes and shardings of `engine.prefill_shared_prefix`."""
  if not length:
    return None
  shapes = jax.eval_shape(
    lambda: kv_cache.empty_cache(config, 1, length, unstacked)
  )
  return engine.constrain_shared_prefix(shapes, sharding.abstract)


def _lower_decode(config, params, slots, sampling, eos_ids, shared_prefix=None):
  return engine.decode.lower(
    params,
    slots,
    jax.ShapeDtypeStruct((), np.int32),
    shared_prefix,
    config=config,
    eos_ids=eos_ids,
    num_steps=sampling.decode_steps,
    distribution=sampling.distribution,
  )
