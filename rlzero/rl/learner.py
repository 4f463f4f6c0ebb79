"""The policy update: summed gradients of microbatches, one division, AdamW.

A minibatch is cut into packed microbatches of few shapes
(`train/packing.py`), each with its prompts. Every term of the loss is a sum;
the division by the number of rows of the whole minibatch happens once, after
the last microbatch, so that the cut cannot change the result.
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax import numpy as jnp
from jaxtyping import Array, Float

from rlzero.models import moe, padding, transformer, vocab_head
from rlzero.models.config import ModelConfig
from rlzero.rl import losses
from rlzero.rl.objective import Objective
from rlzero.runtime import hosts, sharding
from rlzero.train import packing
from rlzero.types import Params

CHUNK = 512  # tokens whose logits are held at a time


class TrainState(NamedTuple):
  params: Params
  opt_state: Any


class Totals(NamedTuple):
  """Sums over the tokens, or rows, of the microbatches so far."""

  objective: Float[Array, '']
  kl: Float[Array, '']
  entropy: Float[Array, '']
  clipped: Float[Array, '']
  tokens: Float[Array, '']
  padded_tokens: Float[Array, '']  # tokens of any kind, padding included
  mismatch: Float[Array, '']  # sum of |learner - old| log-prob
  mismatch_max: Float[Array, '']
  # Tokens, of prompts too, that each expert got; () in a model without.
  loads: Float[Array, 'L E'] | tuple[()] = ()

  def __add__(self, other: 'Totals') -> 'Totals':
    sums = jax.tree.map(jnp.add, self, other)
    largest = jnp.maximum(self.mismatch_max, other.mismatch_max)
    return sums._replace(mismatch_max=largest)


class Learner:
  """Compiled functions of one model, one objective and one optimiser.

  Args:
    config: of the model.
    objective: what to maximise.
    transform: optax chain; it sees the gradient of the loss per row.
    micro_tokens: about how many completion tokens a microbatch may hold.
    skip_constant: whether rows without advantage are left out where there is
      no KL term; that changes the time alone.
    pmapped: whether each device takes whole microbatches and the sums meet at
      the end (`jax.pmap`), instead of every microbatch being cut over the mesh.
      For a mesh that only copies the parameters.
    balance_speed: gamma of `moe.balanced`, for routers that have a bias.
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
  ):
    self._config = config
    self._pmapped = pmapped
    sizes = dict(micro_tokens=micro_tokens, max_len=objective.max_len)
    self._cut = functools.partial(packing.microbatches, **sizes)
    self._shapes = functools.partial(packing.shapes, **sizes)
    # Without a KL term the objective of a row without advantage is constant.
    self._skips = skip_constant and objective.kl_coef == 0
    self._transform = transform
    accumulate = functools.partial(_accumulate, config, objective)
    self._accumulate = jax.jit(accumulate, donate_argnums=1)
    self._accumulate_each = jax.pmap(
      accumulate, in_axes=(None, 0, 0), donate_argnums=1
    )
    self._apply = jax.jit(
      functools.partial(_apply, transform, balance_speed), donate_argnums=0
    )
    self._logprobs = jax.jit(
      functools.partial(_logprobs, config, objective.temperature)
    )

  def init(self, params: Params) -> TrainState:
    """Parameters on the current mesh, and the optimiser's state beside them.

    Those that lie there already are not copied: the first update donates them.
    """
    params = sharding.device_put_params(transformer.AXES, params)
    return TrainState(params, self._transform.init(params))

  def update(
    self, state: TrainState, rows: packing.RolloutBatch
  ) -> tuple[TrainState, dict[str, float]]:
    """One optimiser step on the rows; `state` is donated.

    Returns:
      the new state and metrics. On a loss or gradient that is not finite the
      state is the old one and `loss` says so.
    """
    grads, totals = self.gradient(state.params, rows)
    state, loss, norm = self._apply(
      state, grads, totals, jnp.float32(len(rows.completions))
    )
    totals, loss, norm = jax.device_get((totals, loss, norm))
    tokens = max(float(totals.tokens), 1.0)
    chosen = self._chosen(rows)
    shared = np.unique(rows.prompt_index[chosen])
    prefix_len = padding.shared_prefix_len(rows.prompts) * bool(shared.size)
    real = sum(len(rows.completions[i]) for i in chosen) + prefix_len
    real += sum(len(rows.prompts[p]) - prefix_len for p in shared)
    return state, {
      'policy/loss': float(loss),
      'policy/grad_norm': float(norm),
      'policy/kl': float(totals.kl) / tokens,
      'policy/entropy': float(totals.entropy) / tokens,
      'policy/clip_fraction': float(totals.clipped) / tokens,
      'policy/old_mismatch_mean': float(totals.mismatch) / tokens,
      'policy/old_mismatch_max': float(totals.mismatch_max),
      'update/useful_over_computed': real
      / max(float(totals.padded_tokens), 1.0),
      **_balance(totals.loads),
    }

  def gradient(
    self, params: Params, rows: packing.RolloutBatch
  ) -> tuple[Params, Totals]:
    """Sum over the rows of the loss's gradient; not yet divided."""
    chosen = self._chosen(rows)
    if self._pmapped:
      return self._gradient_of_devices(params, rows, chosen)
    carry = _empty(self._config, params)
    for _, micro in self._cut(rows, chosen, ways=sharding.axis_size('B')):
      carry = self._accumulate(params, carry, _place(micro))
    return carry

  def _gradient_of_devices(self, params, rows, chosen):
    """Each device sums over its own microbatches; then the devices add up."""
    number = sharding.axis_size('B')
    micros = (micro for _, micro in self._cut(rows, chosen))
    with sharding.without_mesh():
      carry = _empty_each(self._config, params, np.arange(number))
      for stacked in packing.side_by_side(micros, number):
        carry = self._accumulate_each(params, carry, stacked)
      return _added(carry)

  def abstract(self, params: Params) -> TrainState:
    """Shapes and places of `init`, for programs that are only compiled."""
    params = sharding.abstract_params(transformer.AXES, params)
    of_params = dict(jax.tree_util.tree_leaves_with_path(params))

    def placed(path, leaf):
      """A leaf whose path ends like a parameter's lies where that does."""
      ends = (of_params.get(path[i:]) for i in range(len(path)))
      return next(filter(None, ends), leaf)

    opt_state = jax.eval_shape(self._transform.init, params)
    return TrainState(
      params, jax.tree_util.tree_map_with_path(placed, opt_state)
    )

  def lower(
    self, state: TrainState, rows: packing.RolloutBatch
  ) -> dict[str, jax.stages.Lowered]:
    """The programs of an update, to be looked at.

    Args:
      state: arrays, or their shapes and places (`abstract`).
      rows: completions; the programs are those of their first microbatch,
        which is as wide as the longest needs.

    Returns:
      `reference` scores a microbatch, `update` adds its gradient to those
      before, and `apply` is the optimiser's step.
    """
    params, carry = self._abstract_carry(state.params)
    _, micro = next(
      self._cut(rows, self._chosen(rows), ways=sharding.axis_size('B'))
    )
    micro = _place(micro, sharding.abstract)
    one = jax.ShapeDtypeStruct((), np.float32)
    return {
      'reference': self._logprobs.lower(params, micro),
      'update': self._accumulate.lower(params, carry, micro),
      'apply': self._apply.lower(state, *carry, one),
    }

  def _abstract_carry(self, params):
    params = sharding.abstract_params(transformer.AXES, params)
    _, totals = jax.eval_shape(functools.partial(_empty, self._config), params)
    return params, (params, totals)

  def lower_all(
    self, params: Params, rows: packing.RolloutBatch, name: str
  ) -> list[jax.stages.Lowered]:
    """The program for each shape that microbatches of such rows may have.

    Args:
      params: of the policy.
      rows: completions; how long they are makes no difference.
      name: 'reference' or 'update'.
    """
    params, carry = self._abstract_carry(params)
    micros = [
      _place(micro, sharding.abstract)
      for micro in self._shapes(rows, ways=sharding.axis_size('B'))
    ]
    if name == 'reference':
      return [self._logprobs.lower(params, micro) for micro in micros]
    return [self._accumulate.lower(params, carry, micro) for micro in micros]

  def _chosen(self, rows: packing.RolloutBatch) -> np.ndarray:
    chosen = np.arange(len(rows.completions))
    return chosen[rows.advantages != 0] if self._skips else chosen

  def logprobs(
    self, params: Params, rows: packing.RolloutBatch
  ) -> list[np.ndarray]:
    """Log-probs of every completion's tokens under other parameters."""
    out: list[Any] = [None] * len(rows.completions)
    everything = np.arange(len(out))
    ways = sharding.axis_size('B')
    # The host cuts the next microbatch while the device works on this one.
    ahead = [
      (places, self._logprobs(params, _place(micro)))
      for places, micro in self._cut(rows, everything, ways=ways)
    ]
    for places, logprobs in ahead:
      logprobs = hosts.fetch(logprobs)
      for i, row, start in places:
        out[i] = logprobs[row, start : start + len(rows.completions[i])]
    return out


def _empty(config: ModelConfig, params: Params) -> tuple[Params, Totals]:
  zeros = {name: jnp.zeros(()) for name in Totals._fields if name != 'loads'}
  loads = ()
  if config.experts:
    routed = config.num_layers - config.num_dense_layers
    loads = jnp.zeros((routed, config.experts.num_experts))
  totals = Totals(**zeros, loads=loads)
  return jax.tree.map(jnp.zeros_like, params), totals


@functools.partial(
  jax.pmap, in_axes=(None, None, 0), static_broadcasted_argnums=0
)
def _empty_each(config, params, device):
  del device  # there to say how many
  return _empty(config, params)


@functools.partial(jax.pmap, axis_name='devices', out_axes=None)
def _added(carry: tuple[Params, Totals]) -> tuple[Params, Totals]:
  """Sums over the devices; a mean of means would weigh short rows more."""
  grads, totals = carry
  largest = jax.lax.pmax(totals.mismatch_max, 'devices')
  grads, totals = jax.lax.psum((grads, totals), 'devices')
  return grads, totals._replace(mismatch_max=largest)


def _place(
  micro: packing.Microbatch, place=sharding.device_put
) -> packing.Microbatch:
  """A microbatch on the devices, its rows cut over them."""
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
    routes=None if micro.routes is None else place(micro.routes, 'LBT_'),
  )


def _predicted(config, params, micro):
  """Hidden state before each completion token, the head, and the routing."""
  hidden, prompt_hidden, _, routing = transformer.routed(
    config, params, micro.tokens, micro.prompts, given=micro.routes
  )
  before = transformer.predictors(
    hidden, prompt_hidden, micro.tokens, micro.prompts
  )
  return before, transformer.head(config, params), routing


def _logprobs(config, temperature, params, micro):
  """Log-prob of each completion token, [B, T]."""
  before, head, _ = _predicted(config, params, micro)
  return vocab_head.logprobs_and_entropy(
    before, head, micro.tokens.ids, temperature
  )[0]


def _loss(config, objective, params, micro):
  """Minus the summed objective of the rows (arXiv 2501.12948, eq. 1)."""
  before, head_weight, routing = _predicted(config, params, micro)
  extras = (
    micro.mask,
    micro.counts,
    micro.old_logprobs,
    micro.ref_logprobs,
    micro.advantages,
  )
  value, totals = vocab_head.fused_logprob_loss(
    functools.partial(_terms, objective),
    objective.temperature,
    CHUNK,
    before,
    head_weight,
    micro.tokens.ids,
    extras,
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


def _terms(objective, logprobs, entropy, extras):
  """The objective's terms of some tokens, and their totals."""
  mask, counts, old_logprobs, ref_logprobs, advantages = extras
  mask = mask.astype(jnp.float32)
  # What does not count has old log-probs of 0; 0 here keeps exp() finite.
  logprobs = jnp.where(mask > 0, logprobs, 0.0)
  ratio = jnp.exp(logprobs - old_logprobs)
  gain = losses.clipped_surrogate(
    ratio, advantages, objective.clip_low, objective.clip_high
  )
  kl = losses.kl_k3(logprobs, ref_logprobs)
  weights = losses.token_weights(
    mask,
    counts.astype(jnp.float32),
    objective.aggregation,
    objective.max_len,
  )
  value = jnp.sum(weights * (gain - objective.kl_coef * kl))
  mismatch = jnp.abs(logprobs - old_logprobs)
  return value, Totals(
    objective=value,
    kl=jnp.sum(mask * kl),
    entropy=jnp.sum(mask * entropy),
    clipped=jnp.sum(mask * (gain < ratio * advantages)),
    tokens=jnp.sum(mask),
    padded_tokens=jnp.zeros(()),  # of the whole microbatch
    mismatch=jnp.sum(mask * mismatch),
    mismatch_max=jnp.max(mismatch),
  )


def _accumulate(config, objective, params, carry, micro):
  grads, totals = carry
  loss = functools.partial(_loss, config, objective)
  (_, more), new = jax.value_and_grad(loss, has_aux=True)(params, micro)
  return _as_params(jax.tree.map(jnp.add, grads, new)), totals + more


# Gradients and new parameters lie where the parameters do.
_as_params = functools.partial(sharding.constrain_params, transformer.AXES)


def _apply(transform, balance_speed, state, grads, totals, num_rows):
  grads = jax.tree.map(lambda g: g / num_rows, grads)
  loss = -totals.objective / num_rows
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


def _balance(loads) -> dict[str, float]:
  """Metrics of the experts' loads [L, E], means over the layers."""
  if not len(loads):
    return {}
  total = np.maximum(loads.sum(axis=1, keepdims=True), 1.0)
  shares = loads / total
  entropy = -np.sum(shares * np.log(np.maximum(shares, 1e-30)), axis=1)
  return {
    # 1 is balanced; the number of experts if all tokens go to one.
    'experts/load_max_over_mean': float(
      np.mean(shares.max(axis=1)) * loads.shape[1]
    ),
    # 1 is balanced.
    'experts/load_entropy': float(np.mean(entropy) / np.log(loads.shape[1])),
  }
