"""What a decoder is made of, as numbers."""

import dataclasses

_DTYPES = ('float32', 'bfloat16')
_ACTIVATIONS = ('silu', 'gelu_tanh')


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
    if self.factor < 1 or self.original_max_position < 1:
      raise ValueError(
        f'RopeScaling has factor {self.factor} and original_max_position '
        f'{self.original_max_position}; both must be at least 1.'
      )
    if not 0 < self.low_freq_factor < self.high_freq_factor:
      raise ValueError(
        f'RopeScaling has low_freq_factor {self.low_freq_factor} and '
        f'high_freq_factor {self.high_freq_factor}; the first must be above '
        '0 and below the second.'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearScaling:
  """A stretch that divides every frequency (arXiv 2306.15595).

  Raises:
    ValueError: a factor below 1.
  """

  factor: float  # how much longer

  def __post_init__(self):
    if self.factor < 1:
      raise ValueError(
        f'LinearScaling.factor is {self.factor}; it must be at least 1.'
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
  mlp_width: int  # F
  num_heads: int  # N
  num_kv_heads: int  # K, divides N
  head_dim: int  # H, even
  rope_theta: float = 10_000.0
  rope_scaling: RopeScaling | LinearScaling | None = None
  rms_norm_eps: float = 1e-5
  tied_embedding: bool = True
  qkv_bias: bool = False
  qk_norm: bool = False
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
  remat: bool = False  # recompute each layer in the backward pass

  def __post_init__(self):
    for name in (
      'vocab_size',
      'num_layers',
      'width',
      'mlp_width',
      'num_heads',
      'num_kv_heads',
      'head_dim',
      'max_position',
    ):
      if getattr(self, name) < 1:
        raise ValueError(
          f'ModelConfig.{name} is {getattr(self, name)}; it must be at least 1.'
        )
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f'ModelConfig.num_heads is {self.num_heads}, which num_kv_heads = '
        f'{self.num_kv_heads} does not divide; query heads share key/value '
        'heads evenly.'
      )
    if self.head_dim % 2:
      raise ValueError(
        f'ModelConfig.head_dim is {self.head_dim}; rotary embedding needs '
        'an even number.'
      )
    for name, known in (('dtype', _DTYPES), ('activation', _ACTIVATIONS)):
      if getattr(self, name) not in known:
        raise ValueError(
          f'ModelConfig.{name} is {getattr(self, name)!r}; choose one of '
          f'{known}.'
        )
    if self.window < 0 or self.query_scalar < 0 or self.global_every < 1:
      raise ValueError(
        f'ModelConfig has window {self.window}, query_scalar '
        f'{self.query_scalar} and global_every {self.global_every}; the first '
        'two must be at least 0 and the last at least 1.'
      )

  @property
  def local_layers(self) -> tuple[bool, ...]:
    """Which layers see a window alone."""
    return tuple(
      self.window > 0 and layer % self.global_every != 0
      for layer in range(1, self.num_layers + 1)
    )
