"""Collects experience: prompts and a policy in, scored completions out.

A rollout completes each prompt G times, scores a group as soon as it ends,
compares its rewards, and takes the reference's log-probs. The policy stays as
it is; `rl/update.py` changes it.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from rlzero.models import parameters
from rlzero.models.config import ModelConfig
from rlzero.rl import metrics, programs
from rlzero.rl.learner import Learner
from rlzero.rl.objectives import advantages, behaviour, kl
from rlzero.rl.settings import Config
from rlzero.rollout import encoding, journal, scheduler
from rlzero.runtime import sharding
from rlzero.scoring import grade, group_scoring, reward_pool, rewards
from rlzero.tasks import base
from rlzero.text.tokenizer import Tokenizer
from rlzero.train import packing
from rlzero.types import Params

T = TypeVar('T')


class Policy(NamedTuple):
  """A policy at one moment of its training."""

  step: int  # updates so far
  params: Params
  reference: Params  # {} without a KL term


@dataclasses.dataclass
class Experience:
  """One rollout, cut into the minibatches of its updates."""

  minibatches: list[packing.RolloutBatch]  # in order; an update takes the first
  metrics: dict[str, float]  # of the rollout; each of its updates reports them
  records: list[dict[str, Any]]  # graded completions: text, verdict, reward


class Collector:
  """Completes prompts and scores the completions; writes the journal alone.

  Args:
    cfg: of the run.
    learner: computes the reference's log-probs.
    tokenizer: of the model.
    pool: verifies completions.
  """

  def __init__(
    self,
    cfg: Config,
    learner: Learner,
    tokenizer: Tokenizer,
    pool: reward_pool.RewardPool,
  ):
    self._cfg, self._learner = cfg, learner
    self._tokenizer, self._pool = tokenizer, pool
    self._judges = rewards.Judges(cfg.scenarios)
    self._ahead = programs.AheadOfTime(learner, cfg.compile_ahead)

  def collect(
    self,
    policy: Policy,
    sampled: Sequence[tuple[int, base.Example]],
    log: journal.Journal | None = None,
    poll: Callable[[], None] | None = None,
  ) -> Experience:
    """Completes the prompts, scores the completions, cuts minibatches.

    Args:
      policy: which samples.
      sampled: the problems, and their numbers among all that were sampled.
      log: where completions and scores are kept as they come; what it holds
        already is not made again.
      poll: called now and then; what it raises ends the rollout.
    """
    cfg, clock = self._cfg, metrics.Clock()
    log = log or journal.Journal(None, {})
    prompts = encoding.encode_examples(self._tokenizer, cfg.template, sampled)
    problems = [
      (example, prompt)
      for (_, example), prompt in zip(sampled, prompts, strict=True)
    ]
    with group_scoring.GroupScoring(
      self._grade, problems, cfg.group_size, log
    ) as scoring:
      completions, usage, resharded_bytes = self._complete(
        policy.params, prompts, scoring.add, log, poll, clock
      )
      scoring.finish(poll)
    log.sync()
    records = log.scores
    if policy.step >= cfg.preference_from_step:
      self._judges.judge(records)
    rewards.give(cfg, records)
    clock.lap('score')
    groups = np.array([r['reward'] for r in records], np.float32)
    groups = groups.reshape(-1, cfg.group_size)
    batch, measured = self._batch(policy, prompts, completions, log)
    batch, penalty = self._with_advantages(batch, groups)
    clock.lap('reference')
    return Experience(
      minibatches=self._minibatches(batch, policy.step),
      metrics=metrics.of_rollout(
        records, groups, usage, clock.laps, resharded_bytes, cfg.language
      )
      | measured
      | penalty,
      records=records,
    )

  def _complete(self, params, prompts, on_finished, log, poll, clock):
    """Samples G completions of each prompt, on the mesh of rollouts."""
    cfg, model = self._cfg, self._learner.config
    stop = encoding.stop_criteria(self._tokenizer)
    sampling = cfg.rollout_sampling
    with resharded(model, params, cfg.rollout_mesh) as (params, sent):
      clock.lap('reshard')
      self._ahead.rollout(
        params, prompts, cfg.group_size, sampling, stop.eos_ids
      )
      completions, usage = scheduler.generate(
        model,
        params,
        prompts,
        cfg.group_size,
        sampling,
        stop=stop,
        seed=cfg.seed,
        finished=dict(log.completions),
        on_finished=on_finished,
        poll=poll,
      )
    clock.lap('rollout')
    return completions, usage, sent

  def _grade(self, example, prompt, completions):
    return grade.score(
      self._pool,
      self._cfg.task,
      self._tokenizer,
      [example],
      [prompt],
      completions,
    )

  def _batch(self, policy, prompts, completions, log):
    """Makes the batch without advantages, and metrics of the sampler."""
    cfg = self._cfg
    batch = packing.RolloutBatch(
      prompts=[p.tokens for p in prompts],
      prompt_index=np.repeat(np.arange(len(prompts)), cfg.group_size),
      completions=[c.tokens for c in completions],
      old_logprobs=[c.logprobs for c in completions],
      ref_logprobs=None,
      advantages=np.zeros(len(completions), np.float32),
      routes=[c.routes for c in completions] if cfg.replay_routes else None,
      masks=[c.mask for c in completions],
    )
    if policy.reference:
      free = batch._replace(routes=None)  # the reference has its own routers
      self._ahead.reference(policy.reference, free)
      batch = batch._replace(
        ref_logprobs=self._learner.logprobs(policy.reference, free)
      )
    if cfg.objective.old_logprobs == 'sampler':
      return batch, {}
    return behaviour.corrected(
      cfg.objective, batch, self._recomputed(policy, batch, log)
    )

  def _recomputed(self, policy, batch, log):
    """The learner's log-probs of the policy that sampled.

    They are written down: a run that resumes between two updates of a rollout
    has no longer that policy.
    """
    count = len(batch.completions)
    if len(log.logprobs) < count:
      self._ahead.reference(policy.params, batch)
      for i, own in enumerate(self._learner.logprobs(policy.params, batch)):
        log.add_logprobs(i, own)
      log.sync()
    return [log.logprobs[i] for i in range(count)]

  def _with_advantages(self, batch, rewards):
    """Adds advantages: of the rewards, [P, G], minus a KL where it is there."""
    goal, measured = self._cfg.objective, {}
    if goal.kl_coef and goal.kl_in == 'reward':
      penalty = goal.kl_coef * kl.of_completions(goal, batch)
      measured = {'reward/kl_penalty': float(penalty.mean())}
      rewards = rewards - penalty.reshape(rewards.shape)
    found = advantages.of_rewards(rewards, goal.baseline, goal.scale)
    return batch._replace(advantages=np.asarray(found).reshape(-1)), measured

  def _minibatches(self, batch, step):
    """Cuts a rollout; the order is a function of seed and step alone."""
    cfg = self._cfg
    used = step % cfg.updates_per_rollout
    parts: list[np.ndarray] = []
    for epoch in range(cfg.epochs_per_rollout):
      seeds = cfg.seed, step - used, *([epoch] if epoch else [])
      order = np.random.default_rng(seeds).permutation(len(batch.prompts))
      parts += np.split(order, cfg.steps_per_rollout)
    return [_subset(batch, chosen, cfg.group_size) for chosen in parts[used:]]


@contextlib.contextmanager
def resharded(
  model: ModelConfig, params: Params, mesh: sharding.Mesh | None
) -> Iterator[tuple[Params, int | None]]:
  """Enters the mesh of rollouts, if that is another than the update's.

  Yields:
    the parameters there, and the bytes that devices were sent; without such a
    mesh, the parameters as they are, and None.
  """
  if mesh is None:
    yield params, None
    return
  narrow = parameters.cast(model, params)
  with sharding.use(mesh):
    moved = sharding.device_put_params(parameters.AXES, narrow)
    jax.block_until_ready(moved)
    yield moved, sharding.moved_bytes(narrow, moved)


def _subset(
  batch: packing.RolloutBatch, chosen, group_size: int
) -> packing.RolloutBatch:
  """Picks the groups of the chosen prompts."""
  places = (chosen[:, None] * group_size + np.arange(group_size)).reshape(-1)

  def pick(values: Sequence[T]) -> list[T]:
    return [values[p] for p in places]

  def pick_any(values: Sequence[T] | None) -> list[T] | None:
    return None if values is None else pick(values)

  return packing.RolloutBatch(
    prompts=[batch.prompts[c] for c in chosen],
    prompt_index=np.repeat(np.arange(len(chosen)), group_size),
    completions=pick(batch.completions),
    old_logprobs=pick(batch.old_logprobs),
    ref_logprobs=pick_any(batch.ref_logprobs),
    advantages=batch.advantages[places],
    routes=pick_any(batch.routes),
    masks=pick_any(batch.masks),
    weights=pick_any(batch.weights),
  )
