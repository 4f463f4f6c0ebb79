"""Parts that layers of every kind are made of."""

import flax.linen as nn
import jax
from jax import numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from rlzero.models.config import ModelConfig

KEPT = 'kept'  # the name of what `keep` marks
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


def keep(x):
  """Marks what the backward pass is to find again, as it does products."""
  return checkpoint_name(x, KEPT)


def multiply(x, kernel):
  """x @ kernel as one matrix of all tokens, [B * T, D].

  On a CPU the gradient of a product with two axes of rows is a transposed
  copy and a slow loop; with one it is a matrix product.
  """
  flat = x.reshape(-1, x.shape[-1]) @ kernel.astype(x.dtype)
  return flat.reshape(*x.shape[:-1], -1)


class MLP(nn.Module):
  """down(act(gate x) * up x): SwiGLU, GEGLU (arXiv 2002.05202, eq. 6)."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x):
    d, f = self.config.width, self.config.mlp_width
    gate = self.param('gate', INIT, (d, f))
    up = self.param('up', INIT, (d, f))
    down = self.param('down', INIT, (f, d))
    return glu(x, gate, up, down, self.config)


def glu(x, gate, up, down, config):
  gate, up = jax.lax.optimization_barrier((multiply(x, gate), multiply(x, up)))
  act = ACTIVATIONS[config.activation]
  return multiply(jax.lax.optimization_barrier(act(gate) * up), down)
