"""Low-rank adapters: a frozen matrix, and a small one that is trained.

LoRA (arXiv 2106.09685, eq. 3): y = W x + s B (A x), where A has `rank` rows, B
as many columns, and s = alpha / rank, or alpha / sqrt(rank) (rsLoRA, arXiv
2312.03732, eq. 4). W stays as it is. B begins with zeros, so an adapter begins
as the model without it.

In a tree of parameters A and B stand beside their matrix, `query_lora_a` and
`query_lora_b` beside `query`, and layers use them wherever they stand
(`parameters.declare_matrix`). The products stay apart: W + s B A is never made.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax

from rlzero.runtime import fields
from rlzero.runtime.fields import above, at_least

SIDES = ('_lora_a', '_lora_b')  # what is put behind the name of a matrix


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
  """Settings of an adapter.

  A target is the name of a matrix (`query`, `expert_up`), or of all matrices of
  a part of the layers: `attention`, `mlp`, `moe`.

  Raises:
    ValueError: a number out of range, or no targets.
  """

  rank: int = 16
  alpha: float = 32.0
  # Matrices, by their names here (models/parameters.py) or by part of a layer.
  targets: tuple[str, ...] = ('attention', 'mlp', 'moe')
  stabilised: bool = False  # s is alpha / sqrt(rank), not alpha / rank
  # PEFT folder to start from, of this rank, scale and these targets; '' starts
  # as the model is.
  start: str = ''

  def __post_init__(self):
    fields.check(self, rank=at_least(1), alpha=above(0))
    if not self.targets:
      raise ValueError(
        'lora.Adapter.targets is empty, so nothing would be trained; name '
        "matrices, or 'attention', 'mlp' or 'moe'."
      )

  @property
  def scale(self) -> float:
    """s, which the product with A and B is multiplied with."""
    return self.alpha / self.rank ** (0.5 if self.stabilised else 1)


@flax.struct.dataclass
class Adapted:
  """A matrix of a layer with its adapter; axes are those of the matrix.

  Where the matrix is [in, out], A is [in, r] and B is [r, out]; where it is
  transposed, so are they. Experts have an axis before these.
  """

  kernel: Any  # arrays, or of a tree of shardings and the like its leaves
  a: Any
  b: Any
  scale: float = flax.struct.field(pytree_node=False)

  @property
  def shape(self) -> tuple[int, ...]:
    """That of the frozen matrix."""
    return self.kernel.shape


Matrix = jax.Array | Adapted


def times(
  x: jax.Array,
  matrix: Matrix,
  product: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
  """W x, or W x + s B (A x) where the matrix is adapted.

  Args:
    x: of the tokens.
    matrix: W, with its adapter if it has one.
    product: of tokens with a matrix.
  """
  if not isinstance(matrix, Adapted):
    return product(x, matrix)
  low = matrix.scale * product(x, matrix.a)
  return product(x, matrix.kernel) + product(low, matrix.b)
