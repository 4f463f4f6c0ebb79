"""The supervised stages' settings, update and training loop.

`sft`, `distill` and `reward_model` differ in what an example is and in the
loss. Batches are a function of the seed and the step, whatever the number of
hosts, each of which encodes its share of the records. Rows are packed
microbatches. A loss is a sum and a count: gradients are added over the
microbatches of a step and divided once, so that packing changes nothing.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import numpy as np
import optax
from jax import numpy as jnp

from rlzero.models import parameters
from rlzero.models.config import ModelConfig
from rlzero.models.lora import Adapter
from rlzero.runtime import (
  fields,
  hosts,
  lifecycle,
  memory,
  metrics,
  naming,
  sharding,
)
from rlzero.runtime.fields import (
  above,
  at_least,
  grows_on_resume,
  mutable_on_resume,
)
from rlzero.tasks.datasets import records
from rlzero.text.template import Template
from rlzero.train import adapters, checkpoint, optim, sequences, step_log
from rlzero.train.optim import Optimizer
from rlzero.types import Params

_BLOCK = 1024  # records that hosts encode between two exchanges

# (params, microbatch, frozen) -> the sum whose gradient is wanted, and sums to
# report: 'loss' among them, by whose count everything is divided.
Loss = Callable[
  [Params, Any, Any], tuple[jax.Array, Mapping[str, metrics.Mean]]
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings that supervised stages have in common."""

  SHORT_FLAGS: ClassVar[dict[str, str]] = optim.SHORT_FLAGS

  workdir: str = mutable_on_resume()
  # To start from: run or Hugging Face folder, GGUF file. It may move: what it
  # holds is compared when a run resumes.
  checkpoint: str = mutable_on_resume()
  data: str | tuple[records.Source, ...]  # a path, or sources that are mixed
  template: Template = Template(
    'chat'
  )  # puts a `prompt` into the model's words
  mesh: sharding.Mesh = sharding.Mesh()  # one device by default
  # Data
  batch_size: int = 128  # examples an update
  max_len: int = 32_768  # tokens of an example, prompt included
  # Tokens that the model is said to take from now on; 0 keeps its own number.
  max_position: int = 0
  too_long: Literal['drop', 'truncate'] = 'drop'  # what to do with longer ones
  num_epochs: float = grows_on_resume(
    2.0
  )  # an epoch has each source's num_examples
  # Updates; 0 takes as many as num_epochs has.
  num_steps: int = grows_on_resume(0)
  # Update
  # Trained in place of the model, which is then its frozen base; None trains
  # all parameters.
  adapter: Adapter | None = None
  optimizer: Optimizer = Optimizer(
    learning_rate=5e-5, schedule='cosine', final_fraction=0.1
  )
  micro_tokens: int = 32_768  # tokens a microbatch, padding included
  dtype: Literal['float32', 'bfloat16'] = 'float32'  # of activations
  remat: bool = False  # recompute layers whole in the backward pass
  # Run
  seed: int = 0
  save_every: int = mutable_on_resume(200)  # updates between checkpoints

  def __post_init__(self):
    fields.check(
      self,
      batch_size=at_least(1),
      max_len=at_least(2),
      max_position=at_least(0),
      num_epochs=above(0),
      num_steps=at_least(0),
      micro_tokens=at_least(1),
      seed=fields.SEED,
      save_every=at_least(1),
    )
    optim.check_adapter(self.adapter, self.optimizer)
    if not self.data:
      name = naming.label(type(self))
      raise ValueError(f'{name}.data is empty; give a path or sources.')

  def model(self, config: ModelConfig) -> ModelConfig:
    """The checkpoint's model, computed as this run wants it.

    Raises:
      ValueError: it takes shorter sequences than the run has.
    """
    most = self.max_position or config.max_position
    if self.max_len > most:
      raise ValueError(
        f'max_len is {self.max_len}, but the model of {self.checkpoint} takes '
        f'{most} tokens; lower max_len, or raise max_position if the model is '
        'to learn longer sequences.'
      )
    return dataclasses.replace(
      config,
      dtype=self.dtype,
      remat=self.remat,
      max_position=most,
      adapter_scale=self.adapter.scale if self.adapter else 1.0,
    )


class Order:
  """Which examples each batch has: a function of the seed and the step.

  Each source is gone through in shuffled passes; an epoch takes its next
  `num_examples` and mixes those of all sources.

  Args:
    sizes: number of examples of each source.
    counts: how many of them an epoch has; 0 takes all once.
    seed: of the shuffling.
    batch_size: examples a batch; the last one reaches into the next epoch.
  """

  def __init__(
    self,
    sizes: Sequence[int],
    counts: Sequence[int],
    seed: int,
    batch_size: int,
  ):
    self._sizes = sizes
    self._counts = [c or size for c, size in zip(counts, sizes, strict=True)]
    self._seed = seed
    self._batch_size = batch_size
    self.epoch_size = sum(self._counts)
    self._epoch = functools.lru_cache(maxsize=2)(self._mixed)
    self._pass = functools.lru_cache(maxsize=2 * len(sizes))(self._shuffled)

  def num_steps(self, num_epochs: float) -> int:
    """Batches until so many epochs have been seen."""
    return max(math.ceil(num_epochs * self.epoch_size / self._batch_size), 1)

  def batch(self, step: int) -> list[int]:
    """Indices into the examples of all sources, one source after another."""
    draws = range(step * self._batch_size, (step + 1) * self._batch_size)
    return [
      int(self._epoch(draw // self.epoch_size)[draw % self.epoch_size])
      for draw in draws
    ]

  def _mixed(self, epoch: int) -> np.ndarray:
    taken, first = [], 0
    for source, (size, count) in enumerate(
      zip(self._sizes, self._counts, strict=True)
    ):
      draws = np.arange(epoch * count, (epoch + 1) * count)
      taken += [
        first
        + self._pass(source, number)[draws[draws // size == number] % size]
        for number in range(draws[0] // size, draws[-1] // size + 1)
      ]
      first += size
    rng = np.random.default_rng((self._seed, epoch))
    return rng.permutation(np.concatenate(taken))

  def _shuffled(self, source: int, number: int) -> np.ndarray:
    rng = np.random.default_rng((self._seed, source, number))
    return rng.permutation(self._sizes[source])


def load(
  cfg: Config,
  encode: Callable[[records.Record], Any],
  shorten: Callable[[Any], Any | None],
  rebuild: Callable[[Any], Any],
) -> list[list[Any]]:
  """The examples of each source, in its order.

  Args:
    cfg: says what is read, and what is too long.
    encode: a record as an example, whose `size` is in tokens.
    shorten: an example of at most max_len tokens, or None if it cannot be
      one; for `too_long = 'truncate'`.
    rebuild: an example that another host has encoded, from what
      `hosts.map_over_hosts` makes of it.

  Raises:
    ValueError: a record that is no example, or a source that has none.
  """
  found = []
  for source in records.sources(cfg.data):
    examples, longer = [], 0
    for example in _encoded(source, encode, rebuild):
      if example.size > cfg.max_len:
        longer += 1
        example = shorten(example) if cfg.too_long == 'truncate' else None
      if example is not None:
        examples.append(example)
    hosts.print_once(
      f'{source.path}: {len(examples)} examples, '
      f'{sum(e.size for e in examples):,} tokens; {longer} were longer than '
      f'{cfg.max_len} and '
      + {'drop': 'left out', 'truncate': 'cut'}[cfg.too_long]
    )
    if not examples:
      raise ValueError(
        f'All {longer} examples of {source.path} are longer than max_len = '
        f'{cfg.max_len} tokens; raise it, or take other examples.'
      )
    found.append(examples)
  return found


def _encoded(
  source: records.Source,
  encode: Callable[[records.Record], Any],
  rebuild: Callable[[Any], Any],
) -> Iterator[Any]:
  """The records of a source as examples, each encoded by one of the hosts."""
  found = records.read(source)
  if hosts.count() == 1:
    yield from map(encode, found)
    return
  size = max(_BLOCK, hosts.count())
  while True:
    block = hosts.on_every(lambda: list(itertools.islice(found, size)))
    if -hosts.all_min(-len(block)) > hosts.all_min(len(block)):
      raise ValueError(
        f'{source.path} has fewer records on one host than on another; give '
        'a folder that all hosts see, or the same files on each.'
      )
    if not block:
      return
    yield from map(
      rebuild,
      hosts.map_over_hosts(
        block, lambda own: [encode(record) for record in own]
      ),
    )


def order(cfg: Config, sizes: Sequence[int]) -> Order:
  """Makes the order of batches, from sources with so many examples."""
  counts = [source.num_examples for source in records.sources(cfg.data)]
  return Order(sizes, counts, cfg.seed, cfg.batch_size)


def pack(
  cfg: Config, items: Sequence[sequences.PackItem], max_len: int | None = None
) -> Iterable[sequences.PackedBatch]:
  """Packed microbatches of the items, on the devices.

  Args:
    cfg: says how many tokens a microbatch has.
    items: what is packed.
    max_len: of an item, in tokens; cfg's by default.
  """
  for _, packed in sequences.pack(
    items, cfg.micro_tokens, max_len or cfg.max_len, sharding.axis_size('B')
  ):
    yield place(packed)


def place(packed: sequences.PackedBatch) -> sequences.PackedBatch:
  """A microbatch on the devices, its rows sharded over them."""
  return jax.tree.map(lambda x: sharding.device_put(x, 'BT'), packed)


def gradient(
  loss: Loss,
) -> Callable[[Params, Iterable[Any], Any], tuple[Params, dict]]:
  """A function that sums gradient and totals over microbatches.

  The gradient is that of what is trained: of an adapter, where there is one.

  Args:
    loss: of a microbatch.
  """
  lay = functools.partial(sharding.constrain_params, parameters.AXES)

  def of_trained(trained, base, micro, frozen):
    return loss(adapters.join(trained, base), micro, frozen)

  @functools.partial(jax.jit, donate_argnums=1)
  def add(params, carry, micro, frozen):
    grads, totals = carry
    (_, more), new = jax.value_and_grad(of_trained, has_aux=True)(
      *adapters.split(params), micro, frozen
    )
    return lay(jax.tree.map(jnp.add, grads, new)), jax.tree.map(
      jnp.add, totals, more
    )

  def summed(params, micros, frozen=()):
    carry: Any = None  # there is a microbatch at least
    for micro in micros:
      if carry is None:
        _, totals = jax.eval_shape(loss, params, micro, frozen)
        carry = (
          jax.tree.map(jnp.zeros_like, adapters.split(params)[0]),
          jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), totals),
        )
      carry = add(params, carry, micro, frozen)
    return carry

  return summed


def fit(
  cfg: Any,
  stage: str,
  params: Params,
  num_steps: int,
  batch: Callable[[int, Params], Iterable[Any]],
  loss: Loss,
  frozen: Any = (),
) -> Params:
  """Trains from the parameters, or resumes from the last checkpoint.

  Args:
    cfg: has workdir, optimizer and save_every.
    stage: its name, for progress.
    params: on the devices, sharded as they shall be; those that are trained
      are given away.
    num_steps: updates.
    batch: (step, parameters) -> the step's microbatches, on the devices; rows
      are `sequences.PackedBatch`.
    loss: of a microbatch.
    frozen: what else the loss wants, without a gradient.

  Raises:
    ValueError: a loss that is not finite.
    SystemExit: SIGTERM came, and the run is saved.
  """
  transform = cfg.optimizer.transform(num_steps)
  rate = cfg.optimizer.rate(num_steps)
  gradient_of, apply = gradient(loss), _apply(transform)
  trained, base = adapters.split(params)
  opt_state = transform.init(trained)
  store = checkpoint.Store(cfg.workdir)
  start = 0
  if saved := store.restore(trained, opt_state):
    start, trained, opt_state = saved.step, saved.params, saved.state
    hosts.print_once(f'resuming from the checkpoint of step {start}')
  with (
    contextlib.closing(store),
    hosts.preemption() as preempted,
    step_log.StepLog(cfg.workdir, stage, num_steps, start) as log,
  ):
    for step in range(start, num_steps):
      began = time.perf_counter()
      memory.release_if_short()
      params = adapters.join(trained, base)
      micros = list(batch(step, params))
      grads, totals = gradient_of(params, micros, frozen)
      trained, opt_state, norm = apply(trained, opt_state, grads, totals)
      totals, norm = jax.device_get((totals, norm))
      norm = float(norm)
      seconds = time.perf_counter() - began
      found = _metrics(micros, totals, norm, float(rate(step)), seconds)
      loss_mean = found['loss/mean']
      if not math.isfinite(loss_mean) or not math.isfinite(norm):
        raise ValueError(
          f'At step {step} the loss is {loss_mean} and the gradient '
          f'norm {norm}; the last good checkpoint is step {store.latest()}. '
          'Lower the learning rate.'
        )
      log.write(
        step,
        found,
        loss=loss_mean,
        tokens_per_s=found['time/tokens_per_s'],
      )
      done, stop = step + 1 == num_steps, preempted()
      if (step + 1) % cfg.save_every == 0 or done or stop:
        store.save(step + 1, trained, opt_state)
      if stop and not done:
        sys.exit(lifecycle.PREEMPTED)
  return adapters.join(trained, base)


def _apply(
  transform: optax.GradientTransformation,
) -> Callable[..., tuple[Params, Any, jax.Array]]:
  """A function that divides a gradient and steps the optimiser.

  It takes what is trained and the optimiser's state, which are donated, the
  gradient and the totals; it returns the new ones and the gradient's norm.
  """

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def apply(params, opt_state, grads, totals):
    grads = jax.tree.map(lambda g: g / totals['loss'].count, grads)
    updates, opt_state = transform.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    return (
      sharding.constrain_params(parameters.AXES, params),
      opt_state,
      optax.tree.norm(grads),
    )

  return apply


def _metrics(
  micros: Sequence[sequences.PackedBatch],
  totals: Mapping[str, metrics.Mean],
  norm: float,
  learning_rate: float,
  seconds: float,
) -> dict[str, float]:
  """Metrics of an update."""
  real = sum(int((m.tokens.segments > 0).sum()) for m in micros)
  computed = sum(m.tokens.segments.size for m in micros)
  return {
    **{f'{name}/mean': float(mean.value) for name, mean in totals.items()},
    'update/grad_norm': norm,
    'update/learning_rate': learning_rate,
    'update/useful_over_computed': real / computed,
    'time/tokens_per_s': real / seconds,
  }
