"""Collects experience: prompts and a policy in, scored completions out.

A rollout completes each prompt G times, scores a group as soon as it ends,
compares its rewards, and takes the reference's log-probs. The policy stays as
it is; `rl/update.py` changes it.
"""

import concurrent.futures
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rlzero.models import parameters
from rlzero.models.config import ModelConfig
from rlzero.rl import losses, metrics, programs
from rlzero.rl.learner import Learner
from rlzero.rl.settings import Config
from rlzero.rollout import encoding, journal, scheduler
from rlzero.runtime import hosts, sharding
from rlzero.scoring import grade, reward_pool, rewards
from rlzero.tasks import base
from rlzero.text.tokenizer import Tokenizer
from rlzero.train import packing
from rlzero.types import Params

_SCORED = 256  # completions a host scores between two lines of the journal


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
    pool: reward_pool.RewardPool | None,
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
    with _Scoring(self._grade, problems, cfg.group_size, log) as scoring:
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
    batch = self._batch(policy, prompts, completions, groups)
    clock.lap('reference')
    return Experience(
      minibatches=self._minibatches(batch, policy.step),
      metrics=metrics.of_rollout(
        records, groups, usage, clock.laps, resharded_bytes, cfg.language
      ),
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

  def _batch(self, policy, prompts, completions, groups):
    """Adds advantages, and the log-probs of the reference if there is one."""
    cfg = self._cfg
    batch = packing.RolloutBatch(
      prompts=[p.tokens for p in prompts],
      prompt_index=np.repeat(np.arange(len(prompts)), cfg.group_size),
      completions=[c.tokens for c in completions],
      old_logprobs=[c.logprobs for c in completions],
      ref_logprobs=None,
      advantages=np.asarray(
        losses.group_advantages(groups, cfg.objective.normalize_std)
      ).reshape(-1),
      routes=[c.routes for c in completions] if cfg.replay_routes else None,
      masks=[c.mask for c in completions],
    )
    if not policy.reference:
      return batch
    free = batch._replace(routes=None)  # the reference has its own routers
    self._ahead.reference(policy.reference, free)
    return batch._replace(
      ref_logprobs=self._learner.logprobs(policy.reference, free)
    )

  def _minibatches(self, batch, step):
    """Cuts a rollout; the order is a function of seed and step alone."""
    cfg = self._cfg
    used = step % cfg.steps_per_rollout
    order = np.random.default_rng((cfg.seed, step - used)).permutation(
      len(batch.prompts)
    )
    return [
      _subset(batch, chosen, cfg.group_size)
      for chosen in np.split(order, cfg.steps_per_rollout)[used:]
    ]


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


class _Scoring:
  """Scores each group as it ends, in a thread, while others are decoded.

  A group's scores depend on its completions alone, and go into the journal in
  the order of the groups; so it makes no difference which group ends first.

  Args:
    score: a group's records, from its problem, its prompt and its completions;
      called by the thread alone.
    problems: each with its prompt.
    group_size: G.
    log: where completions and scores are written; what it has scored already
      is not scored again.
  """

  def __init__(self, score, problems, group_size, log):
    self._score, self._problems, self._log = score, problems, log
    self._size = group_size
    self._thread = concurrent.futures.ThreadPoolExecutor(1)
    self._records: dict[int, concurrent.futures.Future] = {}
    # Groups that are written down together, and those of this host.
    chunk = max(_SCORED // group_size, 1) * hosts.count()
    first = len(log.scores) // group_size
    self._chunks = [
      range(start, min(start + chunk, len(problems)))
      for start in range(first, len(problems), chunk)
    ]
    self._own = {g for part in self._chunks for g in hosts.local_shard(part)}
    for group in sorted(self._own):
      self._begin(group)

  def __enter__(self) -> '_Scoring':
    return self

  def __exit__(self, *error) -> None:
    self._thread.shutdown(cancel_futures=True)

  def add(self, index: int, completion: scheduler.Completion) -> None:
    """Writes a completion down; scores its group if it was the last one."""
    self._log.add_completion(index, completion)
    self._begin(index // self._size)

  def finish(self, poll: Callable[[], None] | None) -> None:
    """Writes down what has been scored, in its order, until all of it has.

    Args:
      poll: called now and then; what it raises ends the scoring.
    """
    for groups in self._chunks:
      if poll:
        poll()
      self._log.add_scores(
        hosts.map_over_hosts(
          groups, lambda own: sum((self._records[g].result() for g in own), [])
        )
      )

  def _begin(self, group):
    first = group * self._size
    places = range(first, first + self._size)
    if group in self._own and all(p in self._log.completions for p in places):
      completions = [self._log.completions[p] for p in places]
      self._records[group] = self._thread.submit(
        self._score, *self._problems[group], completions
      )


def _subset(
  batch: packing.RolloutBatch, chosen, group_size: int
) -> packing.RolloutBatch:
  """Picks the groups of the chosen prompts."""
  places = (chosen[:, None] * group_size + np.arange(group_size)).reshape(-1)

  def pick(values):
    return None if values is None else [values[p] for p in places]

  return packing.RolloutBatch(
    prompts=[batch.prompts[c] for c in chosen],
    prompt_index=np.repeat(np.arange(len(chosen)), group_size),
    completions=pick(batch.completions),
    old_logprobs=pick(batch.old_logprobs),
    ref_logprobs=pick(batch.ref_logprobs),
    advantages=batch.advantages[places],
    routes=pick(batch.routes),
    masks=pick(batch.masks),
  )
