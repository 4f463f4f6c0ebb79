"""Norms, matrix products and the MLP, which layers of every kind share."""

import flax.linen as nn
import jax
from jax import numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from rlzero.models import lora, parameters
from rlzero.models.config import ModelConfig
from rlzero.runtime import sharding

# What the backward pass finds again, beside matrix products, where a layer is
# not recomputed as a whole; each is marked with `checkpoint_name`.
SAVED_NAMES = ('attention_output', 'expert_product')

ACTIVATIONS = {'silu': nn.silu, 'gelu_tanh': nn.gelu}


class RMSNorm(nn.Module):
  """x / rms(x) * scale over the last axis, in float32 (1910.07467, eq. 4)."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x: Float[Array, '*B D']) -> Float[Array, '*B D']:
    scale = parameters.declare(self, 'scale')
    return rms_norm(x, scale, self.config)


def rms_norm(
  x: Float[Array, '*B D'], scale: Float[Array, 'D'], config: ModelConfig
) -> Float[Array, '*B D']:
  """`RMSNorm` as a function; the result has the dtype of x.

  Args:
    x: normalised over its last axis, whatever that is.
    scale: what the result is multiplied with, or that minus one where the
      config has `unit_offset_norm`.
    config: of the model.
  """
  x32 = x.astype(jnp.float32)
  inverse = jax.lax.rsqrt(
    jnp.mean(x32**2, axis=-1, keepdims=True) + config.rms_norm_eps
  )
  if config.unit_offset_norm:
    scale = 1 + scale.astype(jnp.float32)
  scale = scale.reshape((1,) * (x.ndim - 1) + (-1,))
  return (x32 * inverse * scale).astype(x.dtype)


def multiply(
  x: Float[Array, '*B in'],
  kernel: Float[Array, '...'] | lora.Adapted,
  transposed: bool = False,
  dtype: DTypeLike | None = None,
) -> Float[Array, '*B out']:
  """x @ kernel as one matrix of all tokens; a kernel may have more axes.

  On a CPU the gradient of a product with two axes of rows is a transposed
  copy and a slow loop; with one it is a matrix product.

  Args:
    x: [..., in].
    kernel: of as many numbers as [in, out], or [out, in] if it is transposed;
      with its adapter, if it has one.
    transposed: whether the kernel is [out, in] and stands on the left. XLA:CPU
      rearranges the right side of a product each time; when tokens are few,
      they are the cheaper side to rearrange.
    dtype: of the result; that of x by default.
  """
  flat = _times(_flat(x, transposed), kernel, transposed, dtype)
  return _rows(flat, x, transposed)


def _flat(x, transposed):
  """All tokens as one matrix, [tokens, in] or [in, tokens]."""
  flat = x.reshape(-1, x.shape[-1])
  return flat.T if transposed else flat


def _times(flat, kernel, transposed, dtype=None):
  def product(flat, kernel):
    kernel = kernel.astype(flat.dtype)
    if transposed:
      sides = kernel.reshape(-1, flat.shape[0]), flat
    else:
      sides = flat, kernel.reshape(flat.shape[1], -1)
    return jnp.matmul(*sides, preferred_element_type=dtype)

  return lora.times(flat, kernel, product)


def _rows(flat, like, transposed):
  """The product's result with the leading axes of `like`; undoes `_flat`."""
  if transposed:
    # Or the compiler would exchange the sides of the product again.
    flat = jax.lax.optimization_barrier(flat).T
  return flat.reshape(*like.shape[:-1], -1)


class MLP(nn.Module):
  """down(act(gate x) * up x): SwiGLU, GEGLU (arXiv 2002.05202, eq. 6)."""

  config: ModelConfig
  transposed: bool = False  # matrices are [out, in]

  @nn.compact
  def __call__(self, x: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
    gate, up, down = (
      parameters.declare_matrix(self, name) for name in ('gate', 'up', 'down')
    )
    return glu(x, gate, up, down, self.config, self.transposed)


def glu(
  x: Float[Array, '*B D'],
  gate: Float[Array, 'D F'] | Float[Array, 'F D'] | lora.Adapted,
  up: Float[Array, 'D F'] | Float[Array, 'F D'] | lora.Adapted,
  down: Float[Array, 'F D'] | Float[Array, 'D F'] | lora.Adapted,
  config: ModelConfig,
  transposed: bool = False,
) -> Float[Array, '*B D']:
  """down(act(gate x) * up x), a gated linear unit, of each token.

  Args:
    x: of the tokens.
    gate: matrix of the activated half.
    up: matrix of the other half.
    down: matrix back to the width.
    config: of the model; it names the activation.
    transposed: whether matrices are [out, in], as `multiply` has it.
  """
  flat = _flat(x, transposed)
  gate, up = _separate(
    (_times(flat, gate, transposed), _times(flat, up, transposed))
  )
  act = ACTIVATIONS[config.activation]
  hidden = _separate(act(gate) * up)
  return _rows(_times(hidden, down, transposed), x, transposed)


def _separate(x):
  """Keeps XLA:CPU from fusing the products with what stands between them.

  There the fused loop is slower than both apart. Compilers of accelerators
  fuse well, and move a third less memory when they may.
  """
  if sharding.platform() != 'cpu':
    return x
  return jax.lax.optimization_barrier(x)
