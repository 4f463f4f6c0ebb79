"""Estimates what a run's programs need of a device, by arithmetic.

For devices that nothing here can compile for. Inputs are exact; temporaries
and traffic follow the large arrays of the model: the layers' inputs that
rematerialisation keeps, one layer at work, attention's scores where they are
held whole, a chunk of logits, the weights gathered for a layer, the room of an
exchange of tokens between experts, and the new gradients. tests/test_plan.py
holds the memory against compiled programs.
"""

import collections
import math

from jax import numpy as jnp

from rlzero.costs import flops
from rlzero.models import attention, kv_cache, live_attention, moe
from rlzero.models.config import ModelConfig
from rlzero.planner.programs import Program, Run
from rlzero.rl import learner
from rlzero.rollout import buckets
from rlzero.rollout.programs import abstract_slots
from rlzero.rollout.slots import NUM_PAGES, PAGE_LEN
from rlzero.runtime import sharding

_FSDP = set('DQR')  # axes that are gathered for a layer
_SCORES = 12  # bytes a score costs to write and read, in float32 and rounded


class Estimate:
  """Programs of a run on the current mesh, of one device.

  Those of a rollout are for the mesh of rollouts, and the others for the
  update's: the one that is current.

  Args:
    run: its shapes.
    platform: of the device, 'tpu', 'gpu' or 'cpu'.
  """

  def __init__(self, run: Run, platform: str):
    self.run = run
    self.platform = platform
    m = self.model = run.model
    self.item = jnp.dtype(m.dtype).itemsize
    self.tensor = sharding.axis_size('F')
    self.fsdp = sharding.axis_size('D')
    self.copies = sharding.axis_size('B') // self.fsdp
    # Weights that pass through a device; those of all experts that it has.
    stacks: dict[str, float] = collections.defaultdict(float)
    self.body = 0.0
    for stack, axes, shape in flops.matrices(m):
      size = math.prod(shape) / math.prod(
        map(sharding.axis_size, set(axes) - _FSDP)
      )
      self.body += size
      stacks[stack] += size / shape[0]
    self.head = flops.matmul_weights(m)[1] / self.tensor
    self.heads = m.num_heads / self.tensor
    self.params = sharding.bytes_per_device(run.state.params)
    self.decoded = sharding.bytes_per_device(run.decode_params)
    self.trained = sharding.bytes_per_device(run.trained)
    # Numbers of one token that a layer works on, and those of its vocabulary.
    hidden = m.experts.shared_width if m.experts else m.mlp_width
    self.layer = 6 * m.width + (_of_heads(m) + 3 * hidden) / self.tensor
    # Those of them that going back finds again: the layer's input, and unless
    # all else is made again, products and what attention makes of them.
    chosen = m.experts.num_chosen * m.experts.width if m.experts else 0
    products = m.width + (_of_heads(m) + 2 * (hidden + chosen)) / self.tensor
    if run.cfg.adapter:
      products *= 2  # that of the base, and what is added to it
    self.kept = m.width + (0 if m.remat else products)
    self.logits = m.vocab_size / self.tensor
    self.one_layer = max(stacks.values()) * self.item
    self.routed = m.num_layers - m.num_dense_layers  # layers

  def _scores(self, rows: float, length: int, seen: int) -> float:
    """Numbers as large as attention's scores that are held whole."""
    pairs = rows * length * seen
    if not attention.has_kernel(self.model, length, self.platform):
      return self.heads * pairs
    return 0.0 if self.platform == 'tpu' else pairs  # cuDNN's mask

  def _gathered(self, passes: int) -> float:
    """Bytes received so that each pass over the layers has them whole."""
    left = 1 - 1 / self.fsdp
    return passes * left * (self.body + self.head) * self.item

  def _reduced(self, tokens: float, passes: int) -> float:
    """Bytes received for sums over the parts of heads and MLPs."""
    if self.tensor == 1:
      return 0.0
    sums = 2 * self.model.num_layers * tokens * self.model.width * self.item
    return 2 * passes * (1 - 1 / self.tensor) * sums

  def _experts(self, tokens: float) -> tuple[float, float, float]:
    """Bytes at work, moved and received in a pass of a layer with experts.

    A copy of a token for each of its experts is sorted, sent, put into the
    order of the experts, multiplied, and all of it undone; where tokens are
    sent there is room for the worst case, which is at work whole.
    """
    e, num_shards = self.model.experts, sharding.axis_size('E')
    if not e:
      return 0.0, 0.0, 0.0
    number, room, sent = 1, tokens * e.num_chosen, 0.0
    if num_shards > 1:
      held = e.num_experts // num_shards
      number, size, room = moe.parts(
        math.ceil(tokens), num_shards, e.num_chosen, held
      )
      there_and_back = 2 * number * size * e.num_chosen * self.model.width
      sent = (1 - 1 / num_shards) * there_and_back * self.item
    row = self.model.width * self.item
    hidden = 3 * e.width / self.tensor * self.item
    return room * (3 * row + hidden), number * room * (12 * row + hidden), sent

  def rollout(self, num_slots: int) -> dict[str, Program]:
    """The programs of a rollout at its fullest."""
    s, m, run = self, self.model, self.run
    slots = run.slots(num_slots)
    assert slots.cache is not None
    held = sharding.bytes_per_device(slots)
    cache = sharding.bytes_per_device(slots.cache)
    rest = held - cache
    rows = slots.token.shape[0]
    out = sharding.bytes_per_device(run.prompts)
    num_prompts = buckets.prefill_batch(run.num_prompts) // sharding.axis_size(
      'P'
    )
    tokens = num_prompts * run.prompt_len
    scores = s._scores(num_prompts, run.prompt_len, run.prompt_len)
    at_work, moved, sent = s._experts(tokens)
    prefill = Program(
      memory=s.decoded
      + out
      + tokens * s.layer * s.item
      + scores * (4 + s.item)
      + s.one_layer
      + at_work,
      moved=s.body * s.item
      + tokens * m.num_layers * 2 * s.layer * s.item
      + scores * m.num_layers * _SCORES
      + s.routed * moved
      + 2 * out,
      received=s._gathered(1) + s._reduced(tokens, 1) + s.routed * sent,
    )
    # The part of a slot that its prompt takes, in all slots of the device.
    into = out / num_prompts * rows / sharding.axis_size('B')
    insert = Program(
      memory=held + out + 2 * into,
      moved=out + 3 * into + 2 * rest,
      # Prompts lie on any device, and all devices get those of a block.
      received=out * (sharding.axis_size('P') - 1),
    )
    found = {'prefill': prefill, 'insert': insert}
    found['decode'] = s.decode(rows, kv_cache.capacity(m, slots.cache))
    read = 8 * NUM_PAGES * min(PAGE_LEN, slots.tokens.shape[1])
    found['read'] = Program(rest + 2 * read, 2 * read, 0.0)
    parts = 1 if m.latent else 2
    if len(run.cache_lens) > 1:
      before = sharding.bytes_per_device(run.slots(num_slots, True)) - rest
      # The last array is resized beside the new ones of the others.
      peak = cache + before / parts
      found['resize'] = Program(rest + peak, before + cache, 0.0)
    for fewer in run.smaller_batches(num_slots)[:1]:
      new = cache * fewer / rows
      found['shrink'] = Program(
        held + rest + new / parts, held + rest + new, 0.0
      )
    return found

  def decode(self, num_slots: int, cache_len: int) -> Program:
    """A call of `decode` with so many slots and tokens of each."""
    s, m, run = self, self.model, self.run
    slots = abstract_slots(m, num_slots, cache_len, run.cfg.rollout_sampling)
    cache = sharding.bytes_per_device(slots.cache)
    rows = num_slots // sharding.axis_size('B')
    steps = run.cfg.sampling.decode_steps
    at_work, moved, sent = s._experts(rows)
    # Rows are shared out among the devices that have them, to be sampled.
    even = num_slots % sharding.axis_size('O') == 0
    logits = rows * m.vocab_size / (s.tensor if even else 1)
    # Keys and values of the call's own tokens; at its end they are merged.
    new = cache * steps / cache_len
    # A kernel holds no scores.
    live = live_attention.serves(m, cache_len)
    return Program(
      memory=s.decoded
      + sharding.bytes_per_device(slots)
      + new
      + 3 * 4 * logits
      + (not live) * rows * cache_len * s.heads * 8
      + s.head * s.item
      + s.one_layer
      + at_work,
      moved=steps
      * (
        (s.body + s.head) * s.item
        + cache
        + new
        + 12 * logits
        + s.routed * moved
      )
      + 2 * new,
      received=steps
      * (
        s._gathered(1)
        + s._reduced(rows, 1)
        + (1 - 1 / s.tensor) * 4 * logits
        + s.routed * sent
      ),
      kernels=live * steps * cache,
    )

  def update(self, micro_tokens: int) -> dict[str, Program]:
    """Reference, update and apply."""
    s, m, run = self, self.model, self.run
    micro = run.micro(micro_tokens)
    rows, width = micro.tokens.ids.shape
    prompts, prompt_width = micro.prompts.tokens.ids.shape
    num_shards = sharding.axis_size('B')
    rows, prompts = rows / num_shards, prompts / num_shards
    tokens = rows * width + prompts * prompt_width
    looked_at = width + micro.prompts.index.shape[1] * prompt_width
    of_rows = s._scores(rows, width, looked_at)
    of_prompts = s._scores(prompts, prompt_width, prompt_width)
    scores, all_scores = max(of_rows, of_prompts), of_rows + of_prompts
    inputs = 4 * 10 * rows * width
    chunk = min(learner.CHUNK, rows * width)
    head = s.head * s.item + 3 * 4 * chunk * s.logits
    at_work, moved, sent = s._experts(tokens)
    working = tokens * s.layer * s.item + s.one_layer + at_work
    reference = Program(
      memory=s.params
      + inputs
      + max(working + scores * (4 + s.item), head)
      + tokens * m.width * s.item,
      moved=(s.body + s.head) * s.item
      + tokens * m.num_layers * 2 * s.layer * s.item
      + all_scores * m.num_layers * _SCORES
      + s.routed * moved
      + rows * width * s.logits * 12,
      received=s._gathered(1) + s._reduced(tokens, 1) + s.routed * sent,
    )
    passes, weights = 3 + m.remat, (s.body + s.head) * s.item
    adapter = run.cfg.adapter is not None
    # Those of the head are summed over chunks.
    of_head = 0.0 if adapter else s.head * (4 + s.item)
    gradient = Program(
      memory=s.params
      + s.trained  # the sum so far, donated
      + s.trained  # what this microbatch adds
      + inputs
      + tokens * m.num_layers * s.kept * s.item
      + max(
        2 * working + scores * (2 * 4 + s.item),
        head + of_head,
      ),
      moved=passes * reference.moved - adapter * weights + 3 * s.trained,
      received=s._gathered(2 + m.remat)
      + s._reduced(tokens, 2 + m.remat)
      + (2 + m.remat) * s.routed * sent
      # Gradients: each device gets its part of the sum, all copies the same.
      + (1 - 1 / s.fsdp)
      * (s.fsdp * s.trained if adapter else 4 * (s.body + s.head))
      + 2 * (1 - 1 / s.copies) * s.trained,
    )
    state = s.trained + sharding.bytes_per_device(run.state.opt_state)
    apply = Program(
      memory=state + 3 * s.trained,  # the gradient, and the updates
      moved=2 * state + 4 * s.trained,
      received=0.0,
    )
    return {'reference': reference, 'update': gradient, 'apply': apply}


def _of_heads(model: ModelConfig) -> int:
  """Numbers of a token that attention works on, in all heads together."""
  if model.latent:
    keys_and_values = model.head_dim + model.latent.value_dim
    return 2 * model.num_heads * keys_and_values
  return (2 * model.num_heads + 2 * model.num_kv_heads) * model.head_dim
