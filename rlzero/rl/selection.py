"""Chooses the sampled groups and completions that an update learns from.

Groups whose completions are all right, or all wrong, teach nothing. Dynamic
sampling (DAPO, arXiv 2503.14476, section 3.2) draws prompts in rounds until
enough groups are neither. Down-selection (PODS, arXiv 2504.13818) samples more
completions of a prompt than are learned from and keeps those whose rewards
spread most. Both depend on verdicts alone, which are the same on every host
and in the journals that a resumed run reads.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from rlzero.rl import performance
from rlzero.rl.settings import Config
from rlzero.rollout import journal, scheduler
from rlzero.scoring import truncation
from rlzero.tasks import base
from rlzero.train.packing import RolloutBatch

T = TypeVar('T')

# Numbers of prompts of the rounds behind the first, as parts of it: few, since
# small rollouts are compiled for each.
_PARTS = 4, 2, 1


class Round(NamedTuple):
  """Prompts, each with N completions, graded."""

  examples: list[base.Example]  # P problems
  prompts: list[scheduler.Prompt]  # P
  log: journal.Journal  # its scores are the records of the completions
  laps: dict[str, float]  # seconds by part
  completions: list[scheduler.Completion]  # P N, those of a prompt adjacent
  usage: scheduler.Usage
  resharded_bytes: int | None  # None if nothing was resharded
  work: performance.Sampled | None  # None if the journal held some of it


def prompts_wanted(cfg: Config, rounds: Sequence[Round]) -> int:
  """How many prompts the next round of a rollout draws; 0 if there is none.

  The first draws P, the prompts that the updates take. While K < P of the D
  groups so far teach, a further one draws (P - K) D / K prompts, as many as
  will do if the share of those that teach stays, rounded up to a quarter, half
  or all of P.
  """
  goal = cfg.num_prompts * cfg.steps_per_rollout
  if not rounds:
    return goal
  taught = np.concatenate([teaches(cfg, r.log.scores) for r in rounds])
  found = int(taught.sum())
  if found >= goal or len(rounds) >= cfg.max_rounds:
    return 0
  needed = (goal - found) * len(taught) / found if found else goal
  sizes = [-(-goal // part) for part in _PARTS]
  return next((size for size in sizes if size >= needed), goal)


def outcomes(
  cfg: Config, records: Sequence[dict[str, Any]]
) -> Float[np.ndarray, 'D N']:
  """The verified outcomes of groups, which the accuracy reward is paid for.

  No other reward is part of it. NaN where a task pays nothing for it, and where
  a function says that it does not apply.

  Args:
    cfg: of the run.
    records: of D groups of N completions.
  """
  verified = {s.task.name for s in cfg.scenarios if s.accuracy_reward}
  found = [
    record['accuracy'] * truncation.earns(cfg.truncated, record['truncated'])
    if record['task'] in verified and record.get('applies', True)
    else np.nan
    for record in records
  ]
  return np.array(found, np.float64).reshape(-1, cfg.num_samples)


def teaches(
  cfg: Config, records: Sequence[dict[str, Any]]
) -> Bool[np.ndarray, ' D']:
  """Whether the verified outcomes of each group differ.

  Groups without such outcomes count as if they did.
  """
  found = outcomes(cfg, records)
  unknown = np.isnan(found)
  lowest = np.where(unknown, np.inf, found).min(axis=1)
  highest = np.where(unknown, -np.inf, found).max(axis=1)
  return unknown.all(axis=1) | (highest > lowest)


def choose(
  cfg: Config,
  taught: Bool[np.ndarray, ' D'],
  rewards: Float[np.ndarray, 'D N'],
) -> Int[np.ndarray, 'P G']:
  """The completions that updates learn from, by their index among all.

  Groups that teach come before others, and those drawn first before others;
  so where too few teach, the first of the others fill their places, as they
  would be learned from without dynamic sampling. The groups are in the order
  in which they were drawn.

  Args:
    cfg: of the run.
    taught: whether each group teaches.
    rewards: of the completions; NaN where nothing judges one.
  """
  goal = cfg.num_prompts * cfg.steps_per_rollout
  groups = np.sort(np.argsort(~taught, kind='stable')[:goal])
  return np.stack(
    [
      group * cfg.num_samples + _of_group(rewards[group], cfg.group_size)
      for group in groups
    ]
  )


def _of_group(
  rewards: Float[np.ndarray, ' N'], count: int
) -> Int[np.ndarray, ' G']:
  """Judged completions before others, which have no advantage."""
  judged = np.flatnonzero(~np.isnan(rewards))
  if len(judged) >= count:
    return judged[widest_spread(rewards[judged], count)]
  others = np.flatnonzero(np.isnan(rewards))[: count - len(judged)]
  return np.sort(np.concatenate([judged, others]))


def widest_spread(
  values: Float[np.ndarray, ' N'], count: int
) -> Int[np.ndarray, ' G']:
  """Indices of the `count` values with the largest variance, ascending.

  These are the i smallest and the `count` - i largest ones, for some i (arXiv
  2504.13818, section 3.2), so sorting and sums over all i find them in
  O(N log N). Of equal values the earlier one counts as smaller, and of subsets
  with equal variances the one with the most of the smallest values is taken.
  """
  size = len(values)
  order = np.argsort(values, kind='stable')
  ordered = values[order].astype(np.float64)
  ordered -= ordered.mean()  # squares of what is far from 0 lose digits
  sums = np.concatenate([[0.0], np.cumsum(ordered)])
  squares = np.concatenate([[0.0], np.cumsum(ordered**2)])
  low = np.arange(count + 1)
  high = size - count + low  # the largest values begin here
  total = sums[low] + sums[size] - sums[high]
  spread = squares[low] + squares[size] - squares[high] - total**2 / count
  rounding = 1e-9 * squares[size]
  best = int(np.flatnonzero(spread >= spread.max() - rounding)[-1])
  return np.sort(np.concatenate([order[:best], order[high[best] :]]))


def describe(
  cfg: Config,
  rounds: Sequence[Round],
  taught: Bool[np.ndarray, ' D'],
  chosen: Int[np.ndarray, 'P G'],
) -> dict[str, float]:
  """Metrics of what was sampled, and of what of it is not learned from.

  Args:
    cfg: of the run.
    rounds: of the rollout.
    taught: whether each group teaches.
    chosen: as `choose` returns it.
  """
  lengths = np.array([len(c.tokens) for r in rounds for c in r.completions])
  used = [r.usage for r in rounds]
  measured = {
    'rollout/tokens': int(lengths.sum()),
    'rollout/slot_use': sum(u.tokens for u in used)
    / sum(u.computed for u in used),
  }
  sent = [r.resharded_bytes for r in rounds if r.resharded_bytes is not None]
  if sent:
    measured['reshard/bytes'] = sum(sent)
  if len(lengths) > chosen.size or cfg.max_rounds > 1:
    unused = lengths.sum() - lengths[chosen].sum()
    measured['rollout/tokens_unused'] = int(unused)
  if cfg.max_rounds > 1:
    took = taught[chosen[:, 0] // cfg.num_samples]
    measured |= {
      'groups/rounds': len(rounds),
      'groups/sampled': len(taught),
      'groups/kept': int(took.sum()),
      'groups/filled_up': int((~took).sum()),
      'groups/dropped': len(taught) - len(took),
    }
  return measured


def subset(batch: RolloutBatch, groups: Int[np.ndarray, ' P']) -> RolloutBatch:
  """The whole groups of a batch that have these indices, in their order."""
  size = len(batch.completions) // len(batch.prompts)
  places = (groups[:, None] * size + np.arange(size)).reshape(-1).tolist()

  def pick(values: Sequence[T]) -> list[T]:
    return [values[p] for p in places]

  def pick_any(values: Sequence[T] | None) -> list[T] | None:
    return None if values is None else pick(values)

  return RolloutBatch(
    prompts=[batch.prompts[g] for g in groups.tolist()],
    prompt_index=np.repeat(np.arange(len(groups)), size),
    completions=pick(batch.completions),
    old_logprobs=pick(batch.old_logprobs),
    ref_logprobs=pick_any(batch.ref_logprobs),
    advantages=batch.advantages[places],
    routes=pick_any(batch.routes),
    masks=pick_any(batch.masks),
    weights=pick_any(batch.weights),
  )
