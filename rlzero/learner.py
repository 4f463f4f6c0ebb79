"""The policy update: summed gradients of microbatches, one division, AdamW.

Rows of a minibatch are sorted by length and cut into microbatches of a fixed
set of shapes, each with its prompts. Every term of the loss is a sum; the
division by the number of rows of the whole minibatch happens once, after the
last microbatch, so that the cut cannot change the result.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from rlzero import losses
from rlzero.models import transformer
from rlzero.models.config import ModelConfig
from rlzero.types import Params, Prompts, Tokens

_WIDTH_STEP = 32  # tokens between two compiled row widths


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """What the update maximises; the paper's GRPO by default.

  Raises:
    ValueError: a coefficient out of range.
  """

  kl_coef: float = 0.001  # beta, of the k3 KL in the loss
  clip_low: float = 0.2  # epsilon below 1
  clip_high: float = 0.2  # epsilon above 1
  normalize_std: bool = True  # divide advantages by the group's std
  aggregation: Literal['sequence_mean', 'constant'] = 'sequence_mean'
  temperature: float = 1.0  # of the policy whose log-probs are taken
  max_len: int = 1024  # divisor of 'constant', in tokens

  def __post_init__(self):
    if self.kl_coef < 0:
      raise ValueError(
        f'Objective.kl_coef is {self.kl_coef}; it must be at least 0.'
      )
    for name in ('clip_low', 'clip_high'):
      if getattr(self, name) <= 0:
        raise ValueError(
          f'Objective.{name} is {getattr(self, name)}; it must be above 0.'
        )


class Rows(NamedTuple):
  """Completions on the host, as the update wants them; whole groups."""

  prompts: Sequence[Sequence[int]]  # P token lists
  prompt_index: np.ndarray  # [B]
  completions: Sequence[np.ndarray]  # B token arrays, EOS included
  old_logprobs: Sequence[np.ndarray]  # of the policy that sampled
  ref_logprobs: Sequence[np.ndarray] | None  # None without a KL term
  advantages: np.ndarray  # [B], over the whole group


class Micro(NamedTuple):
  """A microbatch on the device; padded rows have length 0."""

  tokens: Tokens  # [B, T]
  prompts: Prompts
  lengths: Int[Array, 'B']
  old_logprobs: Float[Array, 'B T']
  ref_logprobs: Float[Array, 'B T']
  advantages: Float[Array, 'B']


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
  computed: Float[Array, '']  # tokens of any kind, padding included
  difference: Float[Array, '']  # sum of |learner - old| log-prob
  difference_max: Float[Array, '']

  def __add__(self, other: 'Totals') -> 'Totals':
    sums = (a + b for a, b in zip(self[:-1], other[:-1], strict=True))
    return Totals(*sums, jnp.maximum(self.difference_max, other.difference_max))


class Learner:
  """Compiled functions of one model, one objective and one optimiser.

  Args:
    config: of the model.
    objective: what to maximise.
    transform: optax chain; it sees the gradient of the loss per row.
    micro_tokens: about how many completion tokens a microbatch may hold.
    skip_constant: whether rows without advantage are left out where there is
      no KL term; that changes the time alone.
  """

  def __init__(
    self,
    config: ModelConfig,
    objective: Objective,
    transform: optax.GradientTransformation,
    micro_tokens: int,
    skip_constant: bool = True,
  ):
    self._cut = functools.partial(
      microbatches, micro_tokens=micro_tokens, max_len=objective.max_len
    )
    # Without a KL term the objective of a row without advantage is constant.
    self._skips = skip_constant and objective.kl_coef == 0
    self._transform = transform
    self._accumulate = jax.jit(
      functools.partial(_accumulate, config, objective), donate_argnums=1
    )
    self._apply = jax.jit(
      functools.partial(_apply, transform), donate_argnums=0
    )
    self._score = jax.jit(
      functools.partial(_logprobs, config, objective.temperature)
    )

  def init(self, params: Params) -> TrainState:
    return TrainState(params, self._transform.init(params))

  def update(
    self, state: TrainState, rows: Rows
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
    shared = np.unique(rows.prompt_index[self._chosen(rows)])
    real = float(totals.tokens) + sum(len(rows.prompts[p]) for p in shared)
    return state, {
      'policy/loss': float(loss),
      'policy/grad_norm': float(norm),
      'policy/kl': float(totals.kl) / tokens,
      'policy/entropy': float(totals.entropy) / tokens,
      'policy/clip_fraction': float(totals.clipped) / tokens,
      'policy/old_difference_mean': float(totals.difference) / tokens,
      'policy/old_difference_max': float(totals.difference_max),
      'update/useful_over_computed': real / max(float(totals.computed), 1.0),
    }

  def gradient(self, params: Params, rows: Rows) -> tuple[Params, Totals]:
    """Sum over the rows of the loss's gradient; not yet divided."""
    grads = jax.tree.map(jnp.zeros_like, params)
    carry = grads, Totals(*(jnp.zeros(()) for _ in Totals._fields))
    for _, micro in self._cut(rows, self._chosen(rows)):
      carry = self._accumulate(params, carry, micro)
    return carry

  def _chosen(self, rows: Rows) -> np.ndarray:
    chosen = np.arange(len(rows.completions))
    return chosen[rows.advantages != 0] if self._skips else chosen

  def logprobs(self, params: Params, rows: Rows) -> list[np.ndarray]:
    """Log-probs of every completion's tokens under other parameters."""
    out: list[Any] = [None] * len(rows.completions)
    everything = np.arange(len(out))
    for places, micro in self._cut(rows, everything):
      logprobs, _ = jax.device_get(self._score(params, micro))
      for place, row in zip(places, logprobs, strict=False):
        out[place] = row[: len(rows.completions[place])]
    return out


def microbatches(
  rows: Rows, chosen: np.ndarray, micro_tokens: int, max_len: int
):
  """Cuts the chosen rows, longest first, into padded microbatches.

  Yields:
    (indices of the rows, microbatch). Widths are multiples of a step, or
    max_len, and the number of rows of a width is fixed, so that few shapes
    are compiled. Rows of a width stay with their group: a microbatch computes
    few prompts.
  """
  widths = np.array(
    [min(_round_up(len(c), _WIDTH_STEP), max_len) for c in rows.completions]
  )
  order = chosen[np.lexsort((rows.prompt_index[chosen], -widths[chosen]))]
  prompt_width = _round_up(max(len(p) for p in rows.prompts), 8)
  while order.size:
    width = int(widths[order[0]])
    num_rows = max(micro_tokens // width, 1)
    places, order = order[:num_rows], order[num_rows:]
    yield places, _micro(rows, places, num_rows, width, prompt_width)


def _micro(rows, places, num_rows, width, prompt_width):
  used, index = np.unique(rows.prompt_index[places], return_inverse=True)
  # As many as there could be, a shape to compile less, unless that is a good
  # part of the work; then in eighths.
  most = min(num_rows, len(rows.prompts))
  is_cheap = most * prompt_width * 8 <= num_rows * width
  step = most if is_cheap else -(-most // 8)
  num_prompts = min(_round_up(used.size, step), most)
  prompts = _tokens([rows.prompts[p] for p in used], num_prompts, prompt_width)
  prompt_lens = prompts.segments.sum(axis=1)
  prompt_index = np.zeros(num_rows, np.int32)
  prompt_index[: places.size] = index
  tokens = _tokens([rows.completions[p] for p in places], num_rows, width)
  tokens = tokens._replace(
    positions=tokens.positions + prompt_lens[prompt_index][:, None]
  )

  def padded(arrays):
    out = np.zeros((num_rows, width), np.float32)
    for row, place in zip(out, places, strict=False):
      row[: len(arrays[place])] = arrays[place]
    return out

  lengths = np.zeros(num_rows, np.int32)
  lengths[: places.size] = [len(rows.completions[p]) for p in places]
  old = padded(rows.old_logprobs)
  advantages = np.zeros(num_rows, np.float32)
  advantages[: places.size] = rows.advantages[places]
  return Micro(
    tokens=tokens,
    prompts=Prompts(prompts, prompt_index),
    lengths=lengths,
    old_logprobs=old,
    ref_logprobs=old
    if rows.ref_logprobs is None
    else padded(rows.ref_logprobs),
    advantages=advantages,
  )


def _tokens(sequences, num_rows, width) -> Tokens:
  ids = np.zeros((num_rows, width), np.int32)
  segments = np.zeros((num_rows, width), np.int32)
  for i, sequence in enumerate(sequences):
    ids[i, : len(sequence)] = sequence
    segments[i, : len(sequence)] = 1
  # A prompt that only pads has one token, so that it has a last one.
  segments[len(sequences) :, 0] = 1 if len(sequences) < num_rows else 0
  positions = np.broadcast_to(np.arange(width, dtype=np.int32), ids.shape)
  return Tokens(ids, positions, segments)


def _logprobs(config, temperature, params, micro):
  """Log-prob and entropy of each completion token, [B, T] each."""
  hidden, prompt_hidden, _ = transformer.forward(
    config, params, micro.tokens, micro.prompts
  )
  before = transformer.predictors(
    hidden, prompt_hidden, micro.tokens, micro.prompts
  )
  logprobs, entropy = losses.logprobs_and_entropy(
    before.reshape(-1, config.width),
    transformer.head(config, params),
    micro.tokens.ids.reshape(-1),
    temperature,
  )
  shape = micro.tokens.ids.shape
  return logprobs.reshape(shape), entropy.reshape(shape)


def _loss(config, objective, params, micro):
  """Minus the summed objective of the rows (arXiv 2501.12948, eq. 1)."""
  logprobs, entropy = _logprobs(config, objective.temperature, params, micro)
  width = logprobs.shape[1]
  mask = jnp.arange(width)[None] < micro.lengths[:, None]
  mask = mask.astype(jnp.float32)
  # Padding holds no log-prob worth a number; 0 keeps exp() finite.
  logprobs = jnp.where(mask > 0, logprobs, 0.0)
  ratio = jnp.exp(logprobs - micro.old_logprobs)
  advantages = jnp.broadcast_to(micro.advantages[:, None], ratio.shape)
  gain = losses.clipped_surrogate(
    ratio, advantages, objective.clip_low, objective.clip_high
  )
  kl = losses.kl_k3(logprobs, micro.ref_logprobs)
  weights = losses.token_weights(
    mask,
    micro.lengths.astype(jnp.float32),
    objective.aggregation,
    objective.max_len,
  )
  value = jnp.sum(weights * (gain - objective.kl_coef * kl))
  difference = jnp.abs(logprobs - micro.old_logprobs)
  totals = Totals(
    objective=value,
    kl=jnp.sum(mask * kl),
    entropy=jnp.sum(mask * entropy),
    clipped=jnp.sum(mask * (gain < ratio * advantages)),
    tokens=jnp.sum(mask),
    computed=jnp.float32(micro.tokens.ids.size + micro.prompts.tokens.ids.size),
    difference=jnp.sum(mask * difference),
    difference_max=jnp.max(difference),
  )
  return -value, totals


def _accumulate(config, objective, params, carry, micro):
  grads, totals = carry
  loss = functools.partial(_loss, config, objective)
  (_, more), new = jax.value_and_grad(loss, has_aux=True)(params, micro)
  return jax.tree.map(jnp.add, grads, new), totals + more


def _apply(transform, state, grads, totals, num_rows):
  grads = jax.tree.map(lambda g: g / num_rows, grads)
  loss = -totals.objective / num_rows
  norm = optax.tree.norm(grads)
  updates, opt_state = transform.update(grads, state.opt_state, state.params)
  new = TrainState(optax.apply_updates(state.params, updates), opt_state)
  sound = jnp.isfinite(loss) & jnp.isfinite(norm)
  new = jax.tree.map(lambda n, o: jnp.where(sound, n, o), new, state)
  return new, loss, norm


def _round_up(size: int, step: int) -> int:
  return -(-size // step) * step
