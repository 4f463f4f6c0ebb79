"""rlzero.grpo, whose rollouts take weights with noise: for compare_settings.

python -m rlzero.benchmarks.noisy_sampler NOISE [flags of rlzero.grpo]

Engines that sample with other kernels, or in other precision, have another
policy than the learner believes. Here each weight w of the sampler is
w (1 + NOISE x), x from N(0, 1) and the same in every rollout, as an engine's
own rounding would be. What the learner, the reference and evaluations compute
is left alone.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax

from rlzero import grpo
from rlzero.rl import resharding
from rlzero.runtime import config, sharding


def add_noise(params: Any, noise: float) -> Any:
  """Weights [...] times 1 + noise N(0, 1), the same at each call."""
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(0), len(leaves))
  return tree.unflatten(
    x * (1 + noise * jax.random.normal(key, x.shape, x.dtype))
    for x, key in zip(leaves, keys, strict=True)
  )


@contextlib.contextmanager
def noisy_rollouts(noise: float) -> Iterator[None]:
  """Rollouts of runs inside sample with noisy weights."""
  resharded = resharding.resharded
  make_noisy = jax.jit(add_noise, static_argnums=1)

  @contextlib.contextmanager
  def noisy(model: Any, params: Any, mesh: sharding.Mesh | None) -> Any:
    with resharded(model, make_noisy(params, noise), mesh) as moved:
      yield moved

  with mock.patch.object(resharding, 'resharded', noisy):
    yield


def main() -> None:
  try:
    noise = float(sys.argv.pop(1))
  except (IndexError, ValueError):
    sys.exit('Give the noise, such as 0.01, before the flags of rlzero.grpo.')
  with noisy_rollouts(noise):
    config.main(grpo)


if __name__ == '__main__':
  main()
