"""Collects experience: prompts and a policy in, scored completions out.

A rollout completes each prompt G times, scores a group as soon as it ends,
compares its rewards, and takes the reference's log-probs. The policy stays as
it is; `rl/update.py` changes it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlzero.rl import metrics, performance, programs, resharding, selection
from rlzero.rl.learner import Learner
from rlzero.rl.objectives import advantages, behaviour, kl
from rlzero.rl.settings import Config
from rlzero.rollout import encoding, journal, scheduler
from rlzero.scoring import (
  grade,
  group_scoring,
  reward_pool,
  rewards,
  truncation,
)
from rlzero.tasks import base
from rlzero.text.tokenizer import Tokenizer
from rlzero.train import packing
from rlzero.types import Params


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
  # Work of the completions, if all were sampled just now, and of log-probs.
  sampled: performance.Sampled | None = None
  logprob_flops: float = 0.0


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
    self._reward_models = rewards.RewardModels(cfg.scenarios)
    self._ahead = programs.AheadOfTime(learner, cfg.compile_ahead)

  def collect(
    self,
    policy: Policy,
    sampled: Sequence[tuple[int, base.Example]],
    log: journal.Journal | None = None,
    poll: Callable[[], None] | None = None,
  ) -> Experience:
    """Makes the experience of one round of prompts; see `sample`."""
    return self.choose(policy, [self.sample(policy, sampled, log, poll)])

  def sample(
    self,
    policy: Policy,
    sampled: Sequence[tuple[int, base.Example]],
    log: journal.Journal | None = None,
    poll: Callable[[], None] | None = None,
  ) -> selection.Round:
    """Completes the prompts and grades the completions.

    Args:
      policy: which samples.
      sampled: the problems, and their numbers among all that were sampled.
      log: where completions and scores are kept as they come; what it holds
        already is not made again.
      poll: called now and then; what it raises ends the rollout.
    """
    clock = metrics.Clock()
    log = log or journal.Journal(None, {})
    examples = [example for _, example in sampled]
    prompts = encoding.encode_examples(
      self._tokenizer, self._cfg.template, sampled
    )
    problems = list(zip(examples, prompts, strict=True))
    with group_scoring.GroupScoring(
      self._grade, problems, self._cfg.num_samples, log
    ) as scoring:
      made = self._complete(
        policy.params, prompts, scoring.add, log, poll, clock
      )
      scoring.finish(poll)
    log.sync()
    clock.lap('score')
    return selection.Round(examples, prompts, log, clock.laps, *made)

  def choose(
    self, policy: Policy, rounds: Sequence[selection.Round]
  ) -> Experience:
    """Rewards the completions, chooses among them, cuts minibatches."""
    cfg, clock = self._cfg, metrics.Clock()
    records = [record for r in rounds for record in r.log.scores]
    if policy.step >= cfg.preference_from_step:
      self._reward_models.score(records)
    rewards.assign(cfg, records)
    # NaN where nothing judges a completion.
    groups = np.array([r['reward'] for r in records], np.float32)
    groups = groups.reshape(-1, cfg.num_samples)
    taught = selection.teaches(cfg, records)
    chosen = selection.choose(cfg, taught, groups)
    clock.lap('score')
    batch, measured, looked = self._batch(policy, rounds, chosen)
    batch, penalty = self._with_advantages(batch, groups.reshape(-1)[chosen])
    for place, advantage in zip(chosen.flat, batch.advantages, strict=True):
      records[place]['advantage'] = float(advantage)
    clock.lap('reference')
    laps = [r.laps for r in rounds] + [clock.laps]
    return Experience(
      minibatches=self._minibatches(batch, policy.step),
      metrics=metrics.of_rollout(records, groups, laps, cfg.language)
      | selection.describe(cfg, rounds, taught, chosen)
      | measured
      | penalty,
      records=records,
      sampled=performance.total([r.work for r in rounds]),
      logprob_flops=looked
      * performance.of_logprobs(cfg, self._learner.config, batch),
    )

  def _complete(self, params, prompts, on_finished, log, poll, clock):
    """Samples G completions of each prompt, on the mesh of rollouts."""
    cfg, model = self._cfg, self._learner.config
    stop = encoding.stop_criteria(self._tokenizer)
    sampling = cfg.rollout_sampling
    finished, work = dict(log.completions), None
    layout = resharding.resharded(model, params, cfg.rollout_mesh)
    with layout as (params, sent):
      if sent is not None:
        clock.lap('reshard')
      self._ahead.rollout(
        params, prompts, cfg.num_samples, sampling, stop.eos_ids
      )
      completions, usage = scheduler.generate(
        model,
        params,
        prompts,
        cfg.num_samples,
        sampling,
        stop=stop,
        seed=cfg.seed,
        finished=finished,
        on_finished=on_finished,
        poll=poll,
      )
      if not finished:
        work = performance.of_sampling(
          cfg, model, [p.tokens for p in prompts], completions, usage
        )
    clock.lap('rollout')
    return completions, usage, sent, work

  def _grade(self, example, prompt, completions):
    return grade.score(
      self._pool,
      self._cfg.task,
      self._tokenizer,
      [example],
      [prompt],
      completions,
    )

  def _batch(self, policy, rounds, chosen):
    """Makes the batch of the chosen completions, [P, G], without advantages.

    Returns:
      it, metrics of the sampler, and how often its log-probs were computed.
    """
    cfg, looked = self._cfg, 0
    prompts = [prompt for r in rounds for prompt in r.prompts]
    sampled = [completion for r in rounds for completion in r.completions]
    completions = [sampled[i] for i in chosen.flat]
    batch = packing.RolloutBatch(
      prompts=[prompts[i // cfg.num_samples].tokens for i in chosen[:, 0]],
      prompt_index=np.repeat(np.arange(len(chosen)), cfg.group_size),
      completions=[c.tokens for c in completions],
      old_logprobs=[c.logprobs for c in completions],
      ref_logprobs=None,
      advantages=np.zeros(len(completions), np.float32),
      routes=[c.routes for c in completions] if cfg.replay_routes else None,
      masks=truncation.masks(cfg.truncated, completions),
    )
    if policy.reference:
      free = batch._replace(routes=None)  # the reference has its own routers
      self._ahead.reference(policy.reference, free)
      batch = batch._replace(
        ref_logprobs=self._learner.logprobs(policy.reference, free)
      )
      looked += 1
    if cfg.objective.old_logprobs == 'sampler':
      return batch, {}, looked
    log = rounds[0].log
    looked += len(log.logprobs) < len(batch.completions)
    own = self._recomputed(policy, batch, log)
    return *behaviour.corrected(cfg.objective, batch, own), looked

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
    # Rows without a token in the loss need not be computed.
    counted = [mask is None or mask.any() for mask in batch.masks]
    found = np.where(counted, np.asarray(found).reshape(-1), np.float32(0))
    return batch._replace(advantages=found), measured

  def _minibatches(self, batch, step):
    """Cuts a rollout; the order is a function of seed and step alone."""
    cfg = self._cfg
    used = step % cfg.updates_per_rollout
    parts: list[np.ndarray] = []
    for epoch in range(cfg.epochs_per_rollout):
      seeds = cfg.seed, step - used, *([epoch] if epoch else [])
      order = np.random.default_rng(seeds).permutation(len(batch.prompts))
      parts += np.split(order, cfg.steps_per_rollout)
    return [selection.subset(batch, chosen) for chosen in parts[used:]]
