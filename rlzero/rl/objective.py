"""The settings of the objective that an update maximises.

Each choice names a function of `rl/objectives`, where its equation is.
"""

import dataclasses
from typing import Literal

import jax
from jax import numpy as jnp

from rlzero.runtime import fields, functions, naming
from rlzero.runtime.fields import above, at_least

# Short flags of a stage that has an `objective`.
SHORT_FLAGS = naming.flags_of(
  'objective',
  'baseline',
  'scale',
  'old_logprobs',
  'ratio',
  'gate',
  'clip_low',
  'clip_high',
  'behaviour',
  'kl_coef',
  'entropy_coef',
  'aggregation',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """The objective that the update maximises; by default the paper's GRPO.

  Raises:
    ValueError: a number out of range, choices that contradict each other, or a
      function that is no gate.
  """

  # Advantage: (reward - baseline) / scale.
  baseline: Literal['group_mean', 'leave_one_out', 'batch_mean', 'none'] = (
    'group_mean'
  )
  scale: Literal['group_std', 'batch_std', 'mean', 'signal_share', 'none'] = (
    'group_std'
  )
  # pi_old in the ratio: the sampler's log-probs, or the learner's own of the
  # policy that sampled, for which a rollout costs one more forward pass.
  old_logprobs: Literal['sampler', 'recomputed'] = 'sampler'
  # pi / pi_old: of a token; of a completion, its length's root (geometric
  # mean) or whole (product).
  ratio: Literal['token', 'sequence', 'trajectory'] = 'token'
  # How far the ratio may move a token.
  gate: Literal[
    'clip', 'dual_clip', 'cispo', 'soft', 'mirror_descent', 'reinforce', 'none'
  ] = 'clip'
  function: str = fields.code()  # a gate of your own: 'my_file.py:name'
  clip_low: float = 0.2  # epsilon below 1
  clip_high: float = 0.2  # epsilon above 1
  dual_clip: float = 3.0  # c: at most this ratio where the advantage is < 0
  soft_positive: float = 1.0  # tau where the advantage is > 0
  soft_negative: float = 1.05  # tau elsewhere
  regularization: float = 0.1  # tau of mirror descent
  # Weights between the sampler and `recomputed` log-probs, of a token or of
  # its completion (the product).
  behaviour: Literal['none', 'truncated', 'masked'] = 'none'
  behaviour_level: Literal['token', 'sequence'] = 'token'
  behaviour_low: float = 0.0  # weights below are raised to it, or set to 0
  behaviour_high: float = 2.0  # weights above are lowered to it, or set to 0
  kl_coef: float = 0.001  # beta, of the KL to the reference; 0 has none
  kl_estimator: Literal['k1', 'k2', 'k3'] = 'k3'
  # As a term of the loss; as one times the ratio, which makes its gradient
  # that of the KL; or taken off a completion's reward, all its tokens summed.
  kl_in: Literal['loss', 'weighted_loss', 'reward'] = 'loss'
  entropy_coef: float = 0.0  # of the entropy, in nats; 0 has no such term
  # What terms are averaged over: each completion's tokens, those of a prompt's
  # completions, all; or divided by `constant` and averaged over completions.
  aggregation: Literal[
    'sequence_mean', 'prompt_mean', 'token_mean', 'constant'
  ] = 'sequence_mean'
  constant: int = 0  # tokens; 0 takes max_len

  def __post_init__(self):
    fields.check(
      self,
      clip_low=above(0),
      clip_high=above(0),
      dual_clip=above(1),
      soft_positive=above(0),
      soft_negative=above(0),
      regularization=at_least(0),
      behaviour_low=at_least(0),
      behaviour_high=above(0),
      kl_coef=at_least(0),
      entropy_coef=at_least(0),
      constant=at_least(0),
    )
    self._check_choices()
    if self.function:
      self._check_function()

  def _check_choices(self) -> None:
    if self.behaviour != 'none' and self.old_logprobs != 'recomputed':
      raise ValueError(
        f'objective.Objective.behaviour is {self.behaviour!r}, a weight '
        "between the sampler's log-probs and the learner's of the same policy; "
        f'old_logprobs is {self.old_logprobs!r}, so set it to '
        "'recomputed'."
      )
    if self.behaviour_low > self.behaviour_high:
      raise ValueError(
        f'objective.Objective.behaviour_low is {self.behaviour_low}, above '
        f'behaviour_high = {self.behaviour_high}; lower it.'
      )
    if self.kl_coef and self.kl_in == 'loss' and self.kl_estimator == 'k1':
      raise ValueError(
        "objective.Objective.kl_estimator is 'k1' with kl_in 'loss', where its "
        "expected gradient is 0; take 'k2' or 'k3', or kl_in 'weighted_loss' "
        "or 'reward'."
      )

  def _check_function(self) -> None:
    gate = functions.load(self.function)
    tokens = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    try:
      gain = jax.eval_shape(gate, tokens, tokens)
    except Exception as error:  # whatever the user's code raises
      raise ValueError(
        f'objective.Objective.function {self.function!r} cannot be called '
        f'({type(error).__name__}: {str(error)[:200]}); it '
        'must be gate(log_ratio, advantage) -> gain, of JAX arrays.'
      ) from error
    if getattr(gain, 'shape', None) != tokens.shape:
      raise ValueError(
        f'objective.Objective.function {self.function!r} makes {gain} of two '
        'arrays of shape (2, 3); it must make a gain for each token, of the '
        'same shape.'
      )

  @property
  def takes_whole_completions(self) -> bool:
    """Whether a token's term depends on other tokens of its completion."""
    return self.ratio != 'token'

  @property
  def only_advantages(self) -> bool:
    """Whether the terms of a completion without advantage are constant."""
    in_loss = self.kl_coef and self.kl_in != 'reward'
    gated = self.gate != 'mirror_descent' and not self.function
    return gated and not (in_loss or self.entropy_coef)
