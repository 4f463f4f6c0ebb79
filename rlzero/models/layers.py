"""Parts that layers of every kind are made of."""

import flax.linen as nn
import jax
from jax import numpy as jnp

from rlzero.models.config import ModelConfig

# What the backward pass finds again, beside matrix products, where a layer is
# not recomputed as a whole; each is marked with `checkpoint_name`.
SAVED_NAMES = ('attention_output', 'expert_product')

INIT = nn.initializers.normal(0.02)
ACTIVATIONS = {'silu': nn.silu, 'gelu_tanh': nn.gelu}


class RMSNorm(nn.Module):
  """x / rms(x) * scale over the last axis, in float32 (1910.07467, eq. 4)."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', norm_init(self.config), (x.shape[-1],))
    return rms_norm(x, scale, self.config)


def norm_init(config):
  """Every norm multiplies by one at first."""
  return nn.initializers.constant(0.0 if config.unit_offset_norm else 1.0)


def rms_norm(x, scale, config):
  x32 = x.astype(jnp.float32)
  inverse = jax.lax.rsqrt(
    jnp.mean(x32**2, axis=-1, keepdims=True) + config.rms_norm_eps
  )
  if config.unit_offset_norm:
    scale = 1 + scale.astype(jnp.float32)
  scale = scale.reshape((1,) * (x.ndim - 1) + (-1,))
  return (x32 * inverse * scale).astype(x.dtype)


def matrix(module, name, *axes, inputs=1):
  """The parameter of a matrix, whose first axes are its inputs.

  Where the module's matrices are transposed, the last ones are.
  """
  ins, outs = axes[:inputs], axes[inputs:]
  shape = outs + ins if module.transposed else ins + outs
  return module.param(name, INIT, shape)


def multiply(x, kernel, transposed=False, dtype=None):
  """x @ kernel as one matrix of all tokens; a kernel may have more axes.

  On a CPU the gradient of a product with two axes of rows is a transposed
  copy and a slow loop; with one it is a matrix product.

  Args:
    x: [..., in].
    kernel: of as many numbers as [in, out], or [out, in] if it is transposed.
    transposed: and it stands on the left. XLA:CPU arranges the right side of
      a product anew each time; of few tokens these should be it.
    dtype: of the result; that of x by default.

  Returns:
    [..., out].
  """
  flat = _times(_flat(x, transposed), kernel, transposed, dtype)
  return _rows(flat, x, transposed)


def _flat(x, transposed):
  """All tokens as one matrix, [tokens, in] or [in, tokens]."""
  flat = x.reshape(-1, x.shape[-1])
  return flat.T if transposed else flat


def _times(flat, kernel, transposed, dtype=None):
  kernel = kernel.astype(flat.dtype)
  if transposed:
    sides = kernel.reshape(-1, flat.shape[0]), flat
  else:
    sides = flat, kernel.reshape(flat.shape[1], -1)
  return jnp.matmul(*sides, preferred_element_type=dtype)


def _rows(flat, like, transposed):
  """Undoes `_flat`."""
  if transposed:
    # Or the compiler would exchange the sides of the product again.
    flat = jax.lax.optimization_barrier(flat).T
  return flat.reshape(*like.shape[:-1], -1)


class MLP(nn.Module):
  """down(act(gate x) * up x): SwiGLU, GEGLU (arXiv 2002.05202, eq. 6)."""

  config: ModelConfig
  transposed: bool = False  # matrices are [out, in]

  @nn.compact
  def __call__(self, x):
    d, f = self.config.width, self.config.mlp_width
    gate, up = matrix(self, 'gate', d, f), matrix(self, 'up', d, f)
    down = matrix(self, 'down', f, d)
    return glu(x, gate, up, down, self.config, self.transposed)


def glu(x, gate, up, down, config, transposed=False):
  flat = _flat(x, transposed)
  gate, up = jax.lax.optimization_barrier(
    (_times(flat, gate, transposed), _times(flat, up, transposed))
  )
  act = ACTIVATIONS[config.activation]
  hidden = jax.lax.optimization_barrier(act(gate) * up)
  return _rows(_times(hidden, down, transposed), x, transposed)
