"""How long the completions of a planned rollout are."""

import json
import math
import pathlib

import numpy as np
from jaxtyping import Int

_GEOMETRIC = 'geometric:'
_ENOUGH = 1000  # completions of a run's folder, the newest first


def read(text: str, number: int, longest: int) -> Int[np.ndarray, ' N']:
  """Lengths of the completions of a rollout, in tokens.

  A source with as many lengths as are wanted gives them in their order. Of
  others the quantiles are taken, in any order.

  Args:
    text: `geometric:MEAN`, a run's folder (its `completions` are read), or a
      file of whole numbers; '' is geometric with a quarter of the longest.
    number: of the completions.
    longest: tokens that a completion may have.

  Raises:
    ValueError: none of these, or lengths that a completion cannot have.
  """
  if not text or text.startswith(_GEOMETRIC):
    mean = text.removeprefix(_GEOMETRIC) if text else f'{max(longest // 4, 1)}'
    if not mean.isdecimal() or not 1 <= int(mean) <= longest:
      raise ValueError(
        f'plan.Config.lengths is {text!r}; the mean of geometric:MEAN must be '
        f'a whole number from 1 to sampling.max_len = {longest}.'
      )
    return geometric(number, int(mean), longest)
  found = _of_files(text)
  if found.min() < 1 or found.max() > longest:
    raise ValueError(
      f'plan.Config.lengths {text!r} has completions of {found.min()} to '
      f'{found.max()} tokens, but sampling.max_len is {longest}; raise it, or '
      'give lengths of such a run.'
    )
  if len(found) == number:
    return found
  quantiles = (np.arange(number) + 0.5) / number * len(found)
  return _in_any_order(np.sort(found)[quantiles.astype(int)])


def geometric(number: int, mean: float, longest: int) -> Int[np.ndarray, ' N']:
  """Lengths spread like an exponential cut at the longest, in any order."""
  low, high = 0.0, 1e3 * longest
  scale = high / 2
  for _ in range(100):  # the cut one's mean is s (1 - exp(-longest / s))
    scale = (low + high) / 2
    if scale * -math.expm1(-longest / scale) < mean:
      low = scale
    else:
      high = scale
  quantiles = (np.arange(number) + 0.5) / number
  lengths = np.minimum(-scale * np.log1p(-quantiles), longest)
  return _in_any_order(np.maximum(np.rint(lengths), 1))


def _in_any_order(lengths):
  return np.random.default_rng(0).permutation(lengths.astype(int))


def _of_files(text):
  path = pathlib.Path(text)
  if path.is_file():
    words = path.read_text().split()
    if not words or not all(word.isdecimal() for word in words):
      raise ValueError(
        f'plan.Config.lengths is the file {text}, which must hold the lengths '
        'of completions as whole numbers and nothing else.'
      )
    return np.array([int(word) for word in words])
  found: list[int] = []
  for file in sorted(path.glob('completions/step_*.jsonl'), reverse=True):
    if len(found) < _ENOUGH:
      with file.open(encoding='utf-8') as lines:
        found += [json.loads(line)['len'] for line in lines]
  if not found:
    raise ValueError(
      f'plan.Config.lengths is {text!r}, which is neither geometric:MEAN, nor '
      'a file, nor the folder of a run with completions/step_*.jsonl in it.'
    )
  return np.array(found)
