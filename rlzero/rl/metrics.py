"""Draws the metrics of rollouts and updates; nothing here is learned from."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlzero.models import padding
from rlzero.rl.losses import Totals
from rlzero.scoring import grade, reward_pool, rewards
from rlzero.text import readability
from rlzero.train.packing import RolloutBatch
from rlzero.types import AnyArray

_SHARED_PARTS = 'reshard', 'rollout', 'score', 'reference'
_MAX_READ = 256  # completions searched for repetition: a second, if all long


class Clock:
  """Measures the parts of a step, in seconds."""

  def __init__(self):
    self.laps: dict[str, float] = {}
    self._last = time.perf_counter()

  def lap(self, name: str) -> None:
    """Books the time since the last call, or the start, to this part."""
    now = time.perf_counter()
    self.laps[name] = self.laps.get(name, 0.0) + now - self._last
    self._last = now


def of_rollout(
  records: Sequence[Mapping[str, Any]],
  groups: np.ndarray,
  laps: Sequence[Mapping[str, float]],
  language: rewards.Target = 'prompt',
) -> dict[str, float]:
  """Returns the metrics of a rollout, which each of its updates reports.

  Args:
    records: graded completions.
    groups: rewards [P, N].
    laps: seconds by part, of each round of prompts and of what came after.
    language: that the thoughts should have.
  """
  metrics = _of_completions(records, groups)
  metrics |= _of_texts(records, language)
  parts = dict.fromkeys(name for lap in laps for name in lap)
  return metrics | {
    f'time/{name}_s': sum(lap.get(name, 0.0) for lap in laps) for name in parts
  }


def of_update(
  totals: Totals,
  loss: float,
  grad_norm: float,
  batch: RolloutBatch,
  chosen: np.ndarray,
) -> dict[str, float]:
  """Returns the metrics of an update.

  Args:
    totals: of its microbatches, on the host.
    loss: minus the objective, divided.
    grad_norm: of the gradient before it is clipped.
    batch: the completions.
    chosen: indices of those that were computed.
  """
  # Means over nothing, where no row has an advantage, are NaN.
  tokens = float(totals.tokens) or math.nan
  return {
    'policy/loss': loss,
    'policy/grad_norm': grad_norm,
    'policy/kl': float(totals.kl) / tokens,
    'policy/entropy': float(totals.entropy) / tokens,
    'policy/clip_fraction': float(totals.clipped) / tokens,
    'policy/old_mismatch_mean': float(totals.mismatch) / tokens,
    'policy/old_mismatch_max': float(totals.mismatch_max),
    'policy/old_mismatch_kl': float(totals.mismatch_kl) / tokens,
    'update/useful_over_computed': useful_tokens(batch, chosen)
    / max(float(totals.padded_tokens), 1.0),
    **expert_balance(totals.loads),
  }


def of_step(
  step: int,
  of_rollout: Mapping[str, float],
  of_update: Mapping[str, float],
  update_s: float,
  updates_per_rollout: int,
) -> dict[str, float]:
  """Joins a rollout's metrics and an update's to those of a step.

  A step takes the time of its own update and its share of the rollout.

  Args:
    step: number of updates before this one.
    of_rollout: metrics of the rollout.
    of_update: metrics of the update.
    update_s: seconds that the update took.
    updates_per_rollout: updates that share the rollout.
  """
  shared_s = sum(of_rollout.get(f'time/{p}_s', 0.0) for p in _SHARED_PARTS)
  step_s = shared_s / updates_per_rollout + update_s
  tokens = of_rollout['rollout/tokens'] / updates_per_rollout
  return {
    'step': step,
    **of_rollout,
    **of_update,
    'time/update_s': update_s,
    'time/step_s': step_s,
    'time/tokens_per_s': tokens / step_s,
  }


def useful_tokens(batch: RolloutBatch, chosen: np.ndarray) -> int:
  """Counts the tokens that an update of the chosen rows cannot leave out.

  Each completion counts, each prompt once, and the prefix that all prompts
  share once.
  """
  prompts = np.unique(batch.prompt_index[chosen])
  prefix_len = padding.shared_prefix_len(batch.prompts) * bool(prompts.size)
  own = sum(len(batch.prompts[p]) - prefix_len for p in prompts)
  return sum(len(batch.completions[i]) for i in chosen) + prefix_len + own


def expert_balance(loads: AnyArray | tuple[()]) -> dict[str, float]:
  """Says how evenly tokens went to experts, as means over the layers.

  Args:
    loads: tokens of each expert, [L, E]; () of a model without experts.
  """
  if isinstance(loads, tuple):
    return {}
  loads = np.asarray(loads)
  total = np.maximum(loads.sum(axis=1, keepdims=True), 1.0)
  shares = loads / total
  entropy = -np.sum(shares * np.log(np.maximum(shares, 1e-30)), axis=1)
  return {
    # 1 is balanced; the number of experts if all tokens go to one.
    'experts/load_max_over_mean': float(
      np.mean(shares.max(axis=1)) * loads.shape[1]
    ),
    # 1 is balanced.
    'experts/load_entropy': float(np.mean(entropy) / np.log(loads.shape[1])),
  }


def _of_completions(records, groups):
  lengths = np.array([r['len'] for r in records])
  correct = np.array([r['correct'] for r in records])
  judged = np.array([r.get('applies', True) for r in records])

  def mean(name):
    return float(np.mean([r[name] for r in records]))

  def mean_len(chosen):
    return float(lengths[chosen].mean()) if chosen.any() else float('nan')

  return {
    'reward/mean': _mean(
      r['reward'] for r in records if r['reward'] is not None
    ),
    **_of_scores(records),
    'reward/format': mean('format'),
    'reward/correct': _mean(correct[judged]),
    'completion/len_mean': float(lengths.mean()),
    'completion/len_max': int(lengths.max()),
    'completion/len_correct': mean_len(correct & judged),
    'completion/len_wrong': mean_len(~correct & judged),
    'completion/truncated': mean('truncated'),
    'completion/tries': mean('tries'),
    'completion/reflection_per_1k': 1000
    * sum(r['reflections'] for r in records)
    / float(lengths.sum()),
    'completion/unscored': float(
      np.mean([r['status'] != 'ok' for r in records])
    ),
    **rewards.describe(records),
    'groups/zero_variance': float(np.mean(_spreads(groups) <= 0)),
  }


def _spreads(groups):
  """Highest less lowest reward of each group; -inf where nothing judges."""
  unjudged = np.isnan(groups)
  highest = np.where(unjudged, -np.inf, groups).max(axis=1)
  return highest - np.where(unjudged, np.inf, groups).min(axis=1)


def _of_scores(records):
  """Means of further scores and of what judges log, by name.

  A score that does not apply to a completion has no part in the mean.
  """
  judged = [r for r in records if r.get('applies', True)]
  metrics = {'reward/accuracy': _mean(r['accuracy'] for r in judged)}
  if len(judged) < len(records):
    metrics['completion/left_out'] = 1 - len(judged) / len(records)
  for name in sorted({name for r in records for name in r['parts']}):
    found = [r['parts'].get(name, 0.0) for r in records]
    metrics[f'reward/{name}'] = _mean(v for v in found if v is not None)
  return metrics | grade.logged(records)


def _mean(values):
  found = list(values)
  return float(np.mean(found)) if found else float('nan')


def _of_texts(records, language):
  """Whether the completions can be read and scored, as shares.

  `completion/language` leaves out formulas, unlike the reward of that name, so
  that a thought without words is in no wrong language.
  """
  read = records[:: -(-len(records) // _MAX_READ)]
  failures = [s for s in reward_pool.STATUSES if s != 'ok']
  return {
    'completion/repetition': float(
      np.mean([readability.repetition(r['completion']) for r in read])
    ),
    'completion/language': float(
      np.mean([rewards.readable_consistency(r, language) for r in records])
    ),
    **{
      f'scoring/{status}': float(
        np.mean([r['status'] == status for r in records])
      )
      for status in failures
    },
  }
