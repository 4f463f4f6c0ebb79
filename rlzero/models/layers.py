"""Parts that layers of every kind are made of."""

import flax.linen as nn
import jax
from jax import numpy as jnp

from rlzero.models.config import ModelConfig

INIT = nn.initializers.normal(0.02)


class RMSNorm(nn.Module):
  """x / rms(x) * scale over the last axis, in float32 (1910.07467, eq. 4)."""

  epsilon: float

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    return rms_norm(x, scale, self.epsilon)


def rms_norm(x, scale, epsilon):
  x32 = x.astype(jnp.float32)
  inverse = jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + epsilon)
  scale = scale.reshape((1,) * (x.ndim - 1) + (-1,))
  return (x32 * inverse * scale).astype(x.dtype)


def multiply(x, kernel):
  """x @ kernel as one matrix of all tokens, [B * T, D].

  On a CPU the gradient of a product with two axes of rows is a transposed
  copy and a slow loop; with one it is a matrix product.
  """
  flat = x.reshape(-1, x.shape[-1]) @ kernel.astype(x.dtype)
  return flat.reshape(*x.shape[:-1], -1)


class MLP(nn.Module):
  """SwiGLU: down(silu(gate x) * up x) (arXiv 2002.05202, eq. 6)."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x):
    d, f = self.config.width, self.config.mlp_width
    gate = self.param('gate', INIT, (d, f))
    up = self.param('up', INIT, (d, f))
    down = self.param('down', INIT, (f, d))
    gate, up = jax.lax.optimization_barrier(
      (multiply(x, gate), multiply(x, up))
    )
    return multiply(jax.lax.optimization_barrier(nn.silu(gate) * up), down)
