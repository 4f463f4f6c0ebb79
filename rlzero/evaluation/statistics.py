"""Estimates from samples: pass@k, cons@k, intervals, comparisons, ratings."""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
import scipy.stats


def pass_at_k(num_samples: Any, num_correct: Any, k: int) -> np.ndarray:
  """Unbiased probability that one of k samples is right, a number in [0, 1].

  Chen et al. 2021, arXiv 2107.03374, eq. 1: 1 - C(n - c, k) / C(n, k), as the
  product of (n - c - j) / (n - j) over j < k.

  Args:
    num_samples: n, samples drawn of each problem; any shape.
    num_correct: c, how many of them are right; broadcast against n.
    k: number of tries, at most n.

  Raises:
    ValueError: k outside [1, n], or c outside [0, n].
  """
  n, c = np.broadcast_arrays(num_samples, num_correct)
  if k < 1 or np.any(k > n):
    raise ValueError(
      f'pass@k has k = {k} with {np.min(n)} samples of a problem; k must be '
      'at least 1 and at most the number of samples.'
    )
  if np.any((c < 0) | (c > n)):
    raise ValueError(
      f'pass@k has {np.max(c)} or {np.min(c)} right answers of {np.min(n)} '
      'samples; the right ones must be between none and all.'
    )
  j = np.arange(k)
  fail = np.maximum(n[..., None] - c[..., None] - j, 0) / (n[..., None] - j)
  return np.asarray(1 - np.prod(fail, axis=-1))


def cons_at_k(classes: Any, correct: Any) -> float:
  """Whether the majority's answer is right, a number in [0, 1].

  cons@k of arXiv 2501.12948, section 3.1. Samples without an answer do not
  vote; when none has one the result is 0. Of answers with equally many votes
  one is drawn at random, and the result is the expectation.

  Args:
    classes: [k] integers, equal where two answers are the same, -1 for none.
    correct: [k] booleans, whether each sample's answer is right.
  """
  classes, correct = np.asarray(classes), np.asarray(correct, np.float64)
  answers, votes = np.unique(classes[classes >= 0], return_counts=True)
  if not answers.size:
    return 0.0
  tied = answers[votes == votes.max()]
  return float(np.mean([correct[classes == a].mean() for a in tied]))


def has_tie(classes: Any) -> bool:
  """Whether the vote of `cons_at_k` has more than one winner."""
  classes = np.asarray(classes)
  votes = np.unique(classes[classes >= 0], return_counts=True)[1]
  return bool(votes.size and (votes == votes.max()).sum() > 1)


def clustered_interval(per_problem_means: Any) -> tuple[float, float]:
  """The 95% confidence interval of the mean over problems, (low, high).

  Samples of a problem are not independent, so each problem counts once (arXiv
  2411.00640, section 2.2). The normal interval fails where accuracy is near 0
  or 1, or problems are few; this is Wilson's, with the number of independent
  samples that would have the same variance, p (1 - p) / v, in place of n and
  Student's t in place of 1.96. The variance counts half a problem more than
  there are, of the widest spread p (1 - p), for problems that agree by chance.
  NaN for fewer than two problems.

  Args:
    per_problem_means: [Q], the mean score of each problem's samples, in
      [0, 1].
  """
  means = np.asarray(per_problem_means, np.float64)
  size = means.size
  if size < 2:
    return math.nan, math.nan
  p = means.mean()
  widest = p * (1 - p)
  spread = np.sum((means - p) ** 2) + widest / 2  # over size - 1 + 1/2
  n = size * (size - 0.5) * widest / spread if widest > 0 else size
  t = scipy.stats.t.ppf(0.975, size - 1)
  middle = p + t * t / (2 * n)
  half = t * math.sqrt(widest / n + t * t / (4 * n * n))
  # Rounding alone could put either end past the possible.
  low, high = ((middle + side) / (1 + t * t / n) for side in (-half, half))
  return max(float(low), 0.0), min(float(high), 1.0)


def mean_interval(values: Any) -> dict[str, float]:
  """Mean of a figure over runs, with its 95% interval by Student's t.

  Args:
    values: [N] numbers, such as one a seed.

  Returns:
    `mean`, and of two numbers or more `low` and `high`.
  """
  values = np.asarray(values, np.float64)
  mean = float(values.mean())
  if values.size < 2:
    return {'mean': mean}
  error = float(values.std(ddof=1)) / values.size**0.5
  half = float(scipy.stats.t.ppf(0.975, values.size - 1)) * error
  return {'mean': mean, 'low': mean - half, 'high': mean + half}


class Difference(NamedTuple):
  """Second less first, paired by problem."""

  mean: float
  interval: tuple[float, float]  # 95%
  p_value: float  # of no difference
  num_problems: int

  @property
  def is_noise(self) -> bool:
    """Whether chance alone would make such a difference often enough."""
    return self.p_value >= 0.05


def paired_difference(first: Any, second: Any) -> Difference:
  """Whether two evaluations of the same problems differ by more than noise.

  The interval is Student's, of the differences by problem. The p-value is
  that of the sign test on their mean: how often signs drawn at random would
  make it as large; all signs of up to 14 problems, 20,000 draws of more.

  Args:
    first: [Q], the mean score of each problem's samples.
    second: [Q], of the other evaluation, the same problems.

  Raises:
    ValueError: fewer than two problems.
  """
  gains = np.asarray(second, np.float64) - np.asarray(first, np.float64)
  size = gains.size
  if size < 2:
    raise ValueError(
      f'A paired comparison has {size} problems in common; it needs at least '
      'two, so evaluate both on the same problems.'
    )
  half = scipy.stats.t.ppf(0.975, size - 1) * gains.std(ddof=1) / size**0.5
  if size <= 14:
    signs = np.array(list(itertools.product((-1, 1), repeat=size)))
  else:
    signs = np.random.default_rng(0).choice((-1, 1), (20_000, size))
    signs[0] = 1  # what was seen is one of the draws
  mean = gains.mean()
  extreme = np.abs(signs @ gains) / size >= abs(mean) - 1e-12
  return Difference(
    float(mean),
    (float(mean - half), float(mean + half)),
    float(extreme.mean()),
    size,
  )


def elo_rating(
  problem_ratings: Any, solved: Any
) -> tuple[float, tuple[float, float]]:
  """Rating of a contestant from problems solved, with its 95% interval.

  A contestant of rating r solves a problem of rating d with probability
  1 / (1 + 10^((d - r) / 400)). The likelihood is largest where as many are
  expected to be solved as were: infinite if all were, or none. The interval
  counts each problem once, as `clustered_interval` does.

  Args:
    problem_ratings: [Q].
    solved: [Q], share of the problem's samples that solve it.
  """
  ratings = np.asarray(problem_ratings, np.float64)
  solved = np.asarray(solved, np.float64)

  def expected(r):
    return 1 / (1 + 10 ** ((ratings - r) / 400))

  if not 0 < solved.sum() < solved.size:
    end = math.inf if solved.sum() else -math.inf
    return end, (end, end)
  # So far below the easiest problem, or above the hardest, too few or too many
  # would be expected, all problems being at least as far away.
  rarer = min(solved.sum(), (1 - solved).sum())
  margin = 400 * math.log10(solved.size / rarer) + 1
  low, high = ratings.min() - margin, ratings.max() + margin
  root: Any = scipy.optimize.brentq(
    lambda r: expected(r).sum() - solved.sum(), low, high
  )
  rating = float(root)
  chance = expected(rating)
  slope = (chance * (1 - chance)).sum() * math.log(10) / 400
  error = math.sqrt(((solved - chance) ** 2).sum()) / slope
  return rating, (rating - 1.96 * error, rating + 1.96 * error)
