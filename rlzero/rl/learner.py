"""Updates a policy: sums gradients of microbatches, divides once, steps AdamW.

A minibatch is cut into packed microbatches of few shapes
(`train/packing.py`), each with its prompts. Every term of the loss is a sum;
the division by the whole minibatch's rows, or tokens, happens once, after the
last microbatch, so that packing cannot change the result.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax import numpy as jnp

from rlzero.models import moe, parameters, transformer, vocab_head
from rlzero.models.config import ModelConfig
from rlzero.rl import losses, metrics, pmap
from rlzero.rl.losses import Totals
from rlzero.rl.objective import Objective
from rlzero.rl.objectives import aggregation
from rlzero.rollout.sampling import Sampling
from rlzero.runtime import hosts, sharding
from rlzero.train import adapters, packing
from rlzero.types import Params

CHUNK = 512  # tokens whose logits are held at a time
_SAMPLING = Sampling()


class TrainState(NamedTuple):
  """A policy in training."""

  params: Params
  opt_state: Any  # of the adapter alone, where there is one


class Programs(NamedTuple):
  """The compiled functions of a learner."""

  logprobs: Any  # (parameters, microbatch) -> [B, T]
  accumulate: Any  # (parameters, carry, microbatch) -> carry; donates the old
  apply: Any  # (state, gradient, totals, divisor) -> state, loss, norm; donates


class Learner:
  """Updates a policy: one model, one objective and one optimiser.

  Args:
    config: of the model.
    objective: what to maximise.
    transform: optax chain; it sees the gradient of the loss, a mean.
    micro_tokens: about how many completion tokens a microbatch may hold.
    skip_constant: whether rows without advantage are left out where nothing
      but time depends on them (`Objective.only_advantages`, and without
      `balance_speed`).
      `policy/*` metrics are then means over the other rows.
    pmapped: whether each device takes whole microbatches and the sums meet at
      the end (`rl/pmap.py`), instead of every microbatch being sharded over the
      mesh. For a mesh that only copies the parameters.
    balance_speed: gamma of `moe.balanced`, for routers that have a bias.
    sampling: of the completions: temperature, and the most tokens of one.
  """

  def __init__(
    self,
    config: ModelConfig,
    objective: Objective,
    transform: optax.GradientTransformation,
    micro_tokens: int,
    skip_constant: bool = True,
    pmapped: bool = False,
    balance_speed: float = 0.0,
    sampling: Sampling = _SAMPLING,
  ):
    self.config, self.objective = config, objective
    self.transform = transform
    self.micro_tokens, self.max_len = micro_tokens, sampling.max_len
    # The tokens of a row without advantage count in the load of the experts.
    self._skips = (
      skip_constant and objective.only_advantages and not balance_speed
    )
    accumulate = functools.partial(_accumulate, config, objective, sampling)
    self.programs = Programs(
      jax.jit(functools.partial(_logprobs, config, sampling.temperature)),
      jax.jit(accumulate, donate_argnums=1),
      jax.jit(
        functools.partial(_apply, transform, balance_speed), donate_argnums=0
      ),
    )
    self._device_sums = None
    if pmapped:
      self._device_sums = pmap.DeviceSums(self.zeros, accumulate, _psum)

  def init(self, params: Params) -> TrainState:
    """Puts parameters on the current mesh, the optimiser's state beside them.

    Those that lie there already are not copied: the first update donates them.
    """
    params = sharding.device_put_params(parameters.AXES, params)
    return TrainState(params, self.transform.init(adapters.split(params)[0]))

  def update(
    self, state: TrainState, batch: packing.RolloutBatch
  ) -> tuple[TrainState, dict[str, float]]:
    """Makes one optimiser step on the batch; what it trains is donated.

    Returns:
      the new state and metrics. On a loss or gradient that is not finite the
      state is the old one and `loss` says so.
    """
    grads, totals = self.gradient(state.params, batch)
    _, divisor = aggregation.divisors(self.objective, batch, self.max_len)
    trained, frozen = adapters.split(state.params)
    state, loss, norm = self.programs.apply(
      state._replace(params=trained), grads, totals, jnp.float32(divisor)
    )
    state = state._replace(params=adapters.join(state.params, frozen))
    totals, loss, norm = jax.device_get((totals, loss, norm))
    return state, metrics.of_update(
      totals, float(loss), float(norm), batch, self.chosen(batch)
    )

  def gradient(
    self, params: Params, batch: packing.RolloutBatch
  ) -> tuple[Params, Totals]:
    """Sums the gradient of the loss over the rows; does not divide it.

    It is that of the adapter alone, where there is one.
    """
    counts, _ = aggregation.divisors(self.objective, batch, self.max_len)
    batch, chosen = batch._replace(counts=counts), self.chosen(batch)
    if self._device_sums:
      found = packing.microbatches(
        batch, chosen, self.micro_tokens, self.max_len
      )
      return self._device_sums(params, (micro for _, micro in found))
    carry = self.zeros(params)
    for _, micro in self.microbatches(batch, chosen):
      carry = self.programs.accumulate(params, carry, put(micro))
    return carry

  def logprobs(
    self, params: Params, batch: packing.RolloutBatch
  ) -> list[np.ndarray]:
    """Computes the log-probs of all completions under other parameters."""
    out: list[Any] = [None] * len(batch.completions)
    # The host cuts the next microbatch while the device works on this one.
    ahead = [
      (placements, self.programs.logprobs(params, put(micro)))
      for placements, micro in self.microbatches(batch, np.arange(len(out)))
    ]
    for placements, logprobs in ahead:
      logprobs = hosts.fetch(logprobs)
      for i, row, start in placements:
        out[i] = logprobs[row, start : start + len(batch.completions[i])]
    return out

  def chosen(self, batch: packing.RolloutBatch) -> np.ndarray:
    """Returns the indices of the completions that an update computes."""
    chosen = np.arange(len(batch.completions))
    return chosen[batch.advantages != 0] if self._skips else chosen

  def microbatches(
    self, batch: packing.RolloutBatch, chosen: np.ndarray
  ) -> Iterator[tuple[list[packing.Placement], packing.Microbatch]]:
    """Packs completions for the current mesh; see `packing.microbatches`."""
    return packing.microbatches(
      batch,
      chosen,
      self.micro_tokens,
      self.max_len,
      sharding.axis_size('B'),
    )

  def zeros(self, params: Params) -> tuple[Params, Totals]:
    """Makes the sums of gradient and totals before the first microbatch."""
    zeros = {name: jnp.zeros(()) for name in Totals._fields if name != 'loads'}
    loads = ()
    if self.config.experts:
      routed = self.config.num_layers - self.config.num_dense_layers
      loads = jnp.zeros((routed, self.config.experts.num_experts))
    totals = Totals(**zeros, loads=loads)
    return jax.tree.map(jnp.zeros_like, adapters.split(params)[0]), totals


def put(
  micro: packing.Microbatch,
  place: Callable[[Any, str], Any] = sharding.device_put,
) -> packing.Microbatch:
  """Puts a microbatch on the devices, its rows sharded over them.

  Args:
    micro: on the host.
    place: (array, its axes) -> the array there.
  """
  prompts = micro.prompts
  return micro._replace(
    tokens=jax.tree.map(lambda x: place(x, 'BT'), micro.tokens),
    prompts=prompts._replace(
      tokens=jax.tree.map(lambda x: place(x, 'PT'), prompts.tokens),
      index=place(prompts.index, 'BM'),
      which=place(prompts.which, 'BT'),
      shared_prefix=jax.tree.map(
        lambda x: place(x, 'PT'), prompts.shared_prefix
      ),
    ),
    mask=place(micro.mask, 'BT'),
    counts=place(micro.counts, 'BT'),
    old_logprobs=place(micro.old_logprobs, 'BT'),
    ref_logprobs=place(micro.ref_logprobs, 'BT'),
    advantages=place(micro.advantages, 'BT'),
    weights=None if micro.weights is None else place(micro.weights, 'BT'),
    routes=None if micro.routes is None else place(micro.routes, 'LBT_'),
  )


def _predicted(config, params, micro):
  """Returns hidden states before completion tokens, the head, the routing."""
  hidden, prompt_hidden, _, routing = transformer.routed(
    config, params, micro.tokens, micro.prompts, given=micro.routes
  )
  before = transformer.predictors(
    hidden, prompt_hidden, micro.tokens, micro.prompts
  )
  return before, transformer.head(config, params), routing


def _logprobs(config, temperature, params, micro):
  """Computes the log-prob of each completion token, [B, T]."""
  before, head, _ = _predicted(config, params, micro)
  return vocab_head.logprobs_and_entropy(
    before, head, micro.tokens.ids, temperature
  )[0]


def _loss(config, objective, sampling, trained, frozen, micro):
  """Computes minus the rows' summed objective (`losses.terms`)."""
  params = adapters.join(trained, frozen)
  before, head, routing = _predicted(config, params, micro)
  terms = functools.partial(losses.terms, objective)
  inputs, ids = losses.inputs(objective, micro), micro.tokens.ids
  if objective.takes_whole_completions:
    # Chunks of tokens would part them, so the log-probs come first, of all
    # tokens; going back computes the logits again.
    value, totals = terms(
      *vocab_head.logprobs_and_entropy(
        before, head, ids, sampling.temperature, CHUNK
      ),
      inputs,
    )
  else:
    value, totals = vocab_head.fused_logprob_loss(
      terms,
      sampling.temperature,
      CHUNK,
      objective.entropy_coef > 0,
      before,
      head,
      ids,
      inputs,
    )
  padded_tokens = sum(
    tokens.ids.size
    for tokens in (
      micro.tokens,
      micro.prompts.tokens,
      micro.prompts.shared_prefix,
    )
    if tokens is not None
  )
  return -value, totals._replace(
    padded_tokens=jnp.float32(padded_tokens),
    loads=routing.loads if routing else (),
  )


def _psum(carry, axis_name):
  grads, totals = carry
  return jax.lax.psum(grads, axis_name), totals.psum(axis_name)


def _accumulate(config, objective, sampling, params, carry, micro):
  grads, totals = carry
  loss = functools.partial(_loss, config, objective, sampling)
  (_, more), new = jax.value_and_grad(loss, has_aux=True)(
    *adapters.split(params), micro
  )
  return _as_params(jax.tree.map(jnp.add, grads, new)), totals + more


# Gradients and new parameters lie where the parameters do.
_as_params = functools.partial(sharding.constrain_params, parameters.AXES)


def _apply(transform, balance_speed, state, grads, totals, divisor):
  grads = jax.tree.map(lambda g: g / divisor, grads)
  loss = -totals.objective / divisor
  norm = optax.tree.norm(grads)
  updates, opt_state = transform.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  params = _as_params(
    moe.with_balanced(params, state.params, totals.loads, balance_speed)
  )
  new = TrainState(params, opt_state)
  sound = jnp.isfinite(loss) & jnp.isfinite(norm)
  new = jax.tree.map(lambda n, o: jnp.where(sound, n, o), new, state)
  return new, loss, norm
