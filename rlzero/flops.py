"""Floating-point operations of a forward pass, by formula.

2 for each weight that multiplies a token, and for each query and key that
meet, 2 a head for every number of the score and of the value.
"""

import functools

import jax

from rlzero.models import transformer
from rlzero.models.config import ModelConfig


@functools.cache
def matmul_weights(model: ModelConfig) -> tuple[int, int]:
  """Weights that multiply each token: of the layers, and of the head.

  Of the experts those that a token goes to.
  """
  shapes = jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))
  body = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
    axes = transformer.AXES[path[-1].key]
    # From or to the width or a rank: no norm and no bias.
    if 'layers' not in path[0].key or not (set('DQR') & set(axes) and axes[1:]):
      continue
    size = leaf.size
    if axes[0] == 'E':
      size = size * model.experts.num_chosen // model.experts.num_experts
    body += size
  return body, model.width * model.vocab_size


def pair(model: ModelConfig) -> int:
  """FLOPs of a query that meets a key, in all layers.

  Of latent attention, of its plain way: prefill and updates.
  """
  value = model.latent.value_dim if model.latent else model.head_dim
  numbers = model.head_dim + value
  return 2 * model.num_layers * model.num_heads * numbers


def forward(
  model: ModelConfig, tokens: float, predicted: float, pairs: float
) -> float:
  """FLOPs of a forward pass.

  Args:
    model: its shape.
    tokens: that go through the layers.
    predicted: tokens whose logits are computed.
    pairs: of a query and a key.
  """
  body, head = matmul_weights(model)
  return 2 * (body * tokens + head * predicted) + pair(model) * pairs
