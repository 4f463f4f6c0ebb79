"""Floating-point operations of a forward pass, by formula.

2 for each weight that multiplies a token, and for each query and key that
meet, 2 a head for every number of the score and of the value.
"""

import functools
import math
from collections.abc import Iterator

import jax

from rlzero.models import parameters, transformer
from rlzero.models.config import ModelConfig
from rlzero.models.lora import Adapter
from rlzero.train import adapters


def matrices(model: ModelConfig) -> Iterator[tuple[str, str, tuple[int, ...]]]:
  """Lists the layers' matrices: stack, axes and shape.

  Axes are those of a layer; the shape has the layers before them.
  """
  shapes = jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))
  for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
    param = parameters.of_path(path)
    if 'layers' in path[0].key and param.kind == 'matrix':
      yield path[0].key, param.axes, leaf.shape


@functools.cache
def matmul_weights(model: ModelConfig) -> tuple[int, int]:
  """Weights that multiply each token: of the layers, and of the head.

  Of the experts those that a token goes to.
  """
  body = 0
  for _, axes, shape in matrices(model):
    size = math.prod(shape)
    if axes[0] == 'E' and model.experts:
      size = size * model.experts.num_chosen // model.experts.num_experts
    body += size
  return body, model.width * model.vocab_size


@functools.cache
def adapter_weights(model: ModelConfig, adapter: Adapter | None) -> int:
  """Weights of an adapter that multiply each token; of experts, the chosen."""
  if adapter is None:
    return 0
  shapes = jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))
  leaves = adapters.fresh_shapes(adapter, shapes)
  total = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(leaves):
    size = math.prod(leaf.shape)
    if parameters.of_path(path).stack == 'E' and model.experts:
      size = size * model.experts.num_chosen // model.experts.num_experts
    total += size
  return total


def idle(model: ModelConfig) -> int:
  """Weights of the experts that a token does not go to."""
  if not model.experts:
    return 0
  e = model.experts
  routed = model.num_layers - model.num_dense_layers
  return routed * (e.num_experts - e.num_chosen) * 3 * model.width * e.width


def read_weights(model: ModelConfig, tokens: float) -> float:
  """Weights that so many tokens together read, the head included.

  Of the experts at most as many as the tokens choose.
  """
  body, head = matmul_weights(model)
  if not model.experts:
    return float(body + head)
  e = model.experts
  chosen = min(e.num_experts, tokens * e.num_chosen)
  others = e.num_experts - e.num_chosen
  return body + head + idle(model) * (chosen - e.num_chosen) / max(others, 1)


def pair(model: ModelConfig, absorbed: bool = False) -> int:
  """FLOPs of a query that meets a key, in all layers.

  Args:
    model: its shape.
    absorbed: whether latent attention looks at the cache itself, as it does
      in decoding: score and value have all of its numbers.
  """
  if model.latent and absorbed:
    numbers = 2 * (model.latent.kv_rank + model.latent.rope_dim)
  elif model.latent:
    numbers = model.head_dim + model.latent.value_dim
  else:
    numbers = 2 * model.head_dim
  return 2 * model.num_layers * model.num_heads * numbers


def update(
  model: ModelConfig,
  tokens: float,
  predicted: float,
  pairs: float,
  adapter: Adapter | None = None,
) -> float:
  """FLOPs of a forward pass and of going back, with what is computed again.

  Going back costs two passes, one for the inputs and one for the weights; the
  frozen matrices of a base have no second.

  Args:
    model: its shape.
    tokens: as of `forward`.
    predicted: as of `forward`.
    pairs: as of `forward`.
    adapter: of the policy.
  """
  passes = 3 + model.remat
  layers = passes * forward(model, tokens, 0, pairs, adapter=adapter)
  head = 3 * forward(model, 0, predicted, 0)
  if adapter is not None:
    layers -= forward(model, tokens, 0, 0)
    head -= forward(model, 0, predicted, 0)
  return layers + head


def forward(
  model: ModelConfig,
  tokens: float,
  predicted: float,
  pairs: float,
  absorbed: bool = False,
  adapter: Adapter | None = None,
) -> float:
  """FLOPs of a forward pass.

  Args:
    model: its shape.
    tokens: that go through the layers.
    predicted: tokens whose logits are computed.
    pairs: of a query and a key.
    absorbed: as of `pair`.
    adapter: of the policy.
  """
  body, head = matmul_weights(model)
  body += adapter_weights(model, adapter)
  return 2 * (body * tokens + head * predicted) + pair(model, absorbed) * pairs
