"""Shape and options of a decoder, as a user sets them."""

import dataclasses
from typing import Literal

from rlzero.runtime import fields
from rlzero.runtime.fields import above, at_least

_DTYPES = ('float32', 'bfloat16')
_ACTIVATIONS = ('silu', 'gelu_tanh')
_ROTATED = at_least(1).multiple_of(2).because('RoPE rotates pairs')


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
  """Llama 3's stretch of the rotary embedding to longer texts.

  Frequencies that turn less than `low_freq_factor` times within
  `original_max_position` are divided by `factor`, those that turn more than
  `high_freq_factor` times stay, and those between are blended.

  Raises:
    ValueError: factors out of range.
  """

  factor: float  # how much longer
  low_freq_factor: float = 1.0  # turns
  high_freq_factor: float = 4.0  # turns
  original_max_position: int = 8192  # tokens before the stretch

  def __post_init__(self):
    fields.check(
      self,
      factor=at_least(1),
      low_freq_factor=above(0)
      .below(self.high_freq_factor)
      .because('high_freq_factor is larger'),
      original_max_position=at_least(1),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearScaling:
  """A stretch that divides every frequency (arXiv 2306.15595).

  Raises:
    ValueError: a factor below 1.
  """

  factor: float  # how much longer

  def __post_init__(self):
    fields.check(self, factor=at_least(1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Yarn:
  """YaRN's stretch of the rotary embedding (arXiv 2309.00071, section 3).

  Frequencies that turn more than `beta_fast` times within
  `original_max_position` stay, those that turn less than `beta_slow` times
  are divided by `factor`, and those between are blended.

  Raises:
    ValueError: factors out of range.
  """

  factor: float  # s, how much longer
  original_max_position: int  # tokens before the stretch
  beta_fast: float = 32.0  # turns
  beta_slow: float = 1.0  # turns
  # DeepSeek's: what the logarithm of s is weighted with, 0 for "not given".
  mscale: float = 0.0  # in the size of rotated queries and keys
  mscale_all_dim: float = 0.0  # in all scores, of latent attention

  def __post_init__(self):
    fields.check(
      self,
      factor=at_least(1),
      original_max_position=at_least(1),
      beta_slow=above(0).below(self.beta_fast).because('beta_fast is larger'),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latent:
  """Multi-head latent attention (arXiv 2405.04434, section 2.1).

  Keys and values of all heads are made from one vector of `kv_rank` numbers a
  token, and from one rotated key of `rope_dim` numbers that all heads share.

  Raises:
    ValueError: sizes out of range.
  """

  kv_rank: int  # R, of the vector that keys and values come from
  rope_dim: int  # of a head's H, those that are rotated; even
  value_dim: int  # U, of a head's value
  query_rank: int = 0  # Q, of the vector that queries come from; 0 is none

  def __post_init__(self):
    fields.check(
      self,
      kv_rank=at_least(1),
      query_rank=at_least(0).because('0 makes queries without a rank'),
      rope_dim=_ROTATED,
      value_dim=at_least(1),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experts:
  """A mixture of experts in place of the MLP (arXiv 2401.06066).

  With 'softmax' scores a group of experts is worth its best one
  (arXiv 2405.04434, section 2.2.2). With 'sigmoid' scores a bias without
  gradient takes part in the choice, and a group is worth its best two
  (arXiv 2412.19437, section 2.1.2).

  Raises:
    ValueError: sizes that do not fit together.
  """

  num_experts: int  # E
  num_chosen: int  # experts a token
  width: int  # W, of an expert
  shared_width: int = 0  # Z, of the experts every token takes; 0 is none
  num_dense_layers: int = 0  # first layers, which have an MLP instead
  scores: Literal['softmax', 'sigmoid'] = 'softmax'
  num_groups: int = 1  # of experts, equal in size
  num_chosen_groups: int = 1  # groups a token may take experts from
  normalize: bool = False  # the chosen experts' weights sum to one
  scale: float = 1.0  # of the weights, at last

  def __post_init__(self):
    fields.check(
      self,
      num_experts=at_least(1)
      .multiple_of(self.num_groups)
      .because('num_groups are equal in size'),
      num_chosen=at_least(1),
      width=at_least(1),
      num_groups=at_least(1),
      num_chosen_groups=at_least(1)
      .at_most(self.num_groups)
      .because('num_groups'),
      shared_width=at_least(0),
      num_dense_layers=at_least(0),
    )
    group = self.num_experts // self.num_groups
    if self.num_chosen > group * self.num_chosen_groups:
      raise ValueError(
        f'Experts.num_chosen is {self.num_chosen}, but {self.num_chosen_groups}'
        f' groups of {group} have {group * self.num_chosen_groups} experts; '
        'choose at most as many.'
      )
    if self.scores == 'sigmoid' and self.num_groups > 1 and group < 2:
      raise ValueError(
        f'Experts has {self.num_groups} groups of one expert; with sigmoid '
        'scores a group is worth its best two, so make it larger.'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """Shape and options of a decoder; the letters are those of `types.py`.

  Raises:
    ValueError: sizes that do not fit together.
  """

  vocab_size: int  # V
  num_layers: int  # L
  width: int  # D
  mlp_width: int  # F, of layers without experts
  num_heads: int  # N
  num_kv_heads: int  # K, divides N
  head_dim: int  # H, even
  rope_theta: float = 10_000.0
  rope_scaling: RopeScaling | LinearScaling | Yarn | None = None
  rms_norm_eps: float = 1e-5
  tied_embedding: bool = True
  qkv_bias: bool = False
  qk_norm: bool = False
  latent: Latent | None = None  # attention over latent vectors
  experts: Experts | None = None  # in place of the MLP
  activation: str = 'silu'  # of the MLP's gate, or 'gelu_tanh'
  scaled_embedding: bool = False  # times sqrt(width)
  unit_offset_norm: bool = False  # norms multiply by 1 + scale
  post_norms: bool = False  # what attention and MLP add is normalised too
  query_scalar: int = 0  # scores are divided by its root; 0: by head_dim's
  window: int = 0  # tokens a local layer sees, itself included; 0: no such
  global_every: int = 1  # one layer in so many, the last of them, sees all
  local_rope_theta: float = 10_000.0  # of local layers, never stretched
  max_position: int = 2048  # tokens, prompt and completion together
  family: str = 'llama'  # whose files it is exported as: their model_type
  dtype: str = 'float32'  # of activations; parameters stay float32
  remat: bool = False  # recompute layers whole in the backward pass
  fused_attention: bool = True  # by a kernel, where the backend has one
  adapter_scale: float = 1.0  # s of `models/lora.py`, where there is an adapter

  def __post_init__(self):
    fields.check(
      self,
      vocab_size=at_least(1),
      num_layers=at_least(1),
      width=at_least(1),
      mlp_width=at_least(1),
      num_heads=at_least(1)
      .multiple_of(self.num_kv_heads)
      .because('as many query heads share each of num_kv_heads'),
      num_kv_heads=at_least(1),
      head_dim=_ROTATED,
      query_scalar=at_least(0).because('0 takes head_dim'),
      window=at_least(0).because('0 is none'),
      global_every=at_least(1),
      max_position=at_least(1),
    )
    if self.latent is not None:
      self._check_latent(self.latent)
    if self.num_dense_layers >= self.num_layers and self.experts:
      raise ValueError(
        f'Experts.num_dense_layers is {self.num_dense_layers}, but the model '
        f'has {self.num_layers} layers; leave at least one to the experts, or '
        'leave ModelConfig.experts out.'
      )
    for name, known in (('dtype', _DTYPES), ('activation', _ACTIVATIONS)):
      if getattr(self, name) not in known:
        raise ValueError(
          f'ModelConfig.{name} is {getattr(self, name)!r}; choose one of '
          f'{known}.'
        )

  @property
  def local_layers(self) -> tuple[bool, ...]:
    """Which layers see a window alone."""
    return tuple(
      self.window > 0 and layer % self.global_every != 0
      for layer in range(1, self.num_layers + 1)
    )

  @property
  def num_dense_layers(self) -> int:
    """How many layers have an MLP; they are the first."""
    if self.experts is None:
      return self.num_layers
    return self.experts.num_dense_layers

  def _check_latent(self, latent: Latent) -> None:
    if self.num_kv_heads != self.num_heads:
      raise ValueError(
        f'ModelConfig.num_kv_heads is {self.num_kv_heads} with latent '
        f'attention, where every head has keys of its own; make it num_heads '
        f'= {self.num_heads}.'
      )
    if latent.rope_dim >= self.head_dim:
      raise ValueError(
        f'Latent.rope_dim is {latent.rope_dim}, but ModelConfig.head_dim = '
        f'{self.head_dim} holds it and the part that is not rotated; make '
        'head_dim their sum.'
      )
    if self.qkv_bias or self.qk_norm:
      raise ValueError(
        'ModelConfig has latent attention with qkv_bias or qk_norm, which it '
        'does not know; turn them off.'
      )
