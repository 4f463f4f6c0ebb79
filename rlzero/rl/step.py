"""The GRPO step: a rollout, its scores and advantages, the updates.

No files and no loop over steps here; `rl/loop.py` has those.
"""

import concurrent.futures
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from rlzero import weights
from rlzero.evaluation import measure
from rlzero.models import transformer
from rlzero.rl import losses
from rlzero.rl.settings import Config
from rlzero.rollout import encoding, journal, programs, scheduler
from rlzero.runtime import hosts, sharding
from rlzero.scoring import grade, rewards
from rlzero.tasks import base
from rlzero.train import packing
from rlzero.types import Params

_SCORED = 256  # completions a host scores before they are written down


@dataclasses.dataclass
class Experience:
  """What a rollout leaves for its updates."""

  minibatches: list[packing.RolloutBatch]  # not used yet, in their order
  metrics: dict[str, float]  # metrics of the rollout, in the row of each update
  records: list[dict[str, Any]]  # a completion each: text, verdict, reward


class Loop:
  """Policy, reference and rewards, one rollout at a time; no files."""

  def __init__(self, cfg: Config, loaded: weights.Loaded, pool):
    if cfg.update == 'pmap' and hosts.count() > 1:
      raise ValueError(
        f"grpo.Config.update is 'pmap', and there are {hosts.count()} hosts; "
        "it is for the devices of one host, so use 'jit'."
      )
    self.cfg = cfg
    self.pool = pool
    self.tokenizer = loaded.tokenizer
    self.model = cfg.computed(loaded.config)
    self.learner = cfg.make_learner(self.model)
    self.judges = rewards.Judges(cfg.scenarios)
    self.step = 0
    # What has been compiled in all sizes, if that is wanted.
    self._compiled: set[str] = set()
    self.state = self.learner.init(loaded.params)
    self.reference: Params = {}
    self._replace_reference()

  def advance(self, sampled: Sequence[tuple[int, base.Example]]):
    """One rollout of the prompts and an update for each of its minibatches.

    Returns:
      a row of metrics for each update, and a record for each completion.
    """
    experience = self.rollout(sampled)
    rows = []
    while experience.minibatches:
      rows.append(self.update(experience))
    return rows, experience.records

  def rollout(
    self,
    sampled: Sequence[tuple[int, base.Example]],
    log: journal.Journal | None = None,
    poll: Callable[[], None] | None = None,
  ) -> 'Experience':
    """Completes the prompts, scores what was written, cuts minibatches.

    Args:
      sampled: the problems, and their numbers among all that were sampled.
      log: where completions and scores are kept as they come; what it holds
        already is not made again.
      poll: called now and then; what it raises ends the rollout.
    """
    cfg, clock = self.cfg, _Clock()
    log = log or journal.Journal(None, {})
    prompts = encoding.encode_examples(self.tokenizer, cfg.template, sampled)
    sampling = cfg.sampling(cfg.temperature, 1.0, keep_routes=cfg.replay_routes)
    with _Scoring(self._records_of, sampled, cfg.group_size, log) as scoring:
      with self._laid_out() as (params, moved):
        clock.lap('reshard')
        self._compile_ahead(
          'rollout',
          lambda: programs.lower_all(
            self.model,
            params,
            prompts,
            cfg.group_size,
            sampling,
            self.tokenizer.eos_ids,
          ),
        )
        completions, usage = scheduler.generate(
          self.model,
          params,
          prompts,
          cfg.group_size,
          sampling,
          eos_ids=self.tokenizer.eos_ids,
          seed=cfg.seed,
          finished=dict(log.completions),
          on_finished=scoring.add,
          poll=poll,
        )
      clock.lap('rollout')
      scoring.finish(poll)
    log.sync()
    records = log.scores
    if self.step >= cfg.preference_from_step:
      self.judges.judge(records)
    rewards.give(cfg, records)
    clock.lap('score')
    groups = np.array([r['reward'] for r in records], np.float32)
    groups = groups.reshape(-1, cfg.group_size)
    advantages = np.asarray(
      losses.group_advantages(groups, cfg.objective.normalize_std)
    ).reshape(-1)
    rows = packing.RolloutBatch(
      prompts=[p.tokens for p in prompts],
      prompt_index=np.repeat(np.arange(len(prompts)), cfg.group_size),
      completions=[c.tokens for c in completions],
      old_logprobs=[c.logprobs for c in completions],
      ref_logprobs=None,
      advantages=advantages,
      routes=[c.routes for c in completions] if cfg.replay_routes else None,
      masks=[c.mask for c in completions],
    )
    if cfg.kl_coef:
      free = rows._replace(routes=None)  # the reference has its own routers
      self._compile_ahead(
        'reference',
        lambda: self.learner.lower_all(self.reference, free, 'reference'),
      )
      rows = rows._replace(
        ref_logprobs=self.learner.logprobs(self.reference, free)
      )
    clock.lap('reference')
    metrics = _describe(records, groups, usage)
    metrics |= {f'time/{name}_s': s for name, s in clock.laps.items()}
    if moved is None:
      del metrics['time/reshard_s']
    else:
      metrics['reshard/bytes'] = moved
    # The order of minibatches is a function of seed and step.
    used = self.step % cfg.steps_per_rollout
    order = np.random.default_rng((cfg.seed, self.step - used)).permutation(
      len(prompts)
    )
    return Experience(
      minibatches=[
        _subset(rows, chosen, cfg.group_size)
        for chosen in np.split(order, cfg.steps_per_rollout)[used:]
      ],
      metrics=metrics,
      records=records,
    )

  def _compile_ahead(self, name, lowered):
    """Programs of all sizes, two at a time, once; later calls find them."""
    if not self.cfg.compile_ahead or name in self._compiled:
      return
    self._compiled.add(name)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      list(pool.map(lambda program: program.compile(), lowered()))

  def _records_of(self, example, completions):
    """Scores a group."""
    return grade.score(
      self.pool, self.cfg.task, self.tokenizer, [example], completions
    )

  @contextlib.contextmanager
  def _laid_out(self) -> Iterator[tuple[Params, int | None]]:
    """Inside, the mesh of rollouts, if that is another than the update's.

    Yields:
      the policy's parameters there, and the bytes that devices were sent.
    """
    if self.cfg.rollout_mesh is None:
      yield self.state.params, None
      return
    narrow = transformer.cast(self.model, self.state.params)
    with sharding.use(self.cfg.rollout_mesh):
      params = sharding.device_put_params(transformer.AXES, narrow)
      jax.block_until_ready(params)
      yield params, sharding.moved_bytes(narrow, params)

  def update(self, experience: 'Experience') -> dict[str, float]:
    """One policy update with the next minibatch; returns its metrics."""
    cfg, clock = self.cfg, _Clock()
    rows = experience.minibatches.pop(0)
    self._compile_ahead(
      'update',
      lambda: self.learner.lower_all(self.state.params, rows, 'update'),
    )
    self.state, row = self.learner.update(self.state, rows)
    clock.lap('update')
    difference = {
      'policy/sampler_learner_mean': row.pop('policy/old_mismatch_mean'),
      'policy/sampler_learner_max': row.pop('policy/old_mismatch_max'),
    }
    metrics = experience.metrics
    if self.step % cfg.steps_per_rollout == 0:
      metrics |= difference  # later ones hold the updates in between as well
    # A step has its own update and its share of the rollout.
    shared_s = sum(
      metrics.get(f'time/{name}_s', 0.0)
      for name in ('reshard', 'rollout', 'score', 'reference')
    )
    step_s = shared_s / cfg.steps_per_rollout + clock.laps['update']
    tokens = metrics['completion/len_mean'] * cfg.num_prompts * cfg.group_size
    row = {
      'step': self.step,
      **metrics,
      **row,
      'time/update_s': clock.laps['update'],
      'time/step_s': step_s,
      'time/tokens_per_s': tokens / step_s,
    }
    self.step += 1
    if self.step % cfg.reference_every == 0:
      self._replace_reference()
    return row

  def evaluate(
    self,
    split: str,
    num_problems: int,
    num_samples: int,
    on_progress: Callable[[int, int], None] | None = None,
    poll: Callable[[], None] | None = None,
  ):
    """Figures of the policy on held-out problems, and the generations."""
    cfg = self.cfg
    with self._laid_out() as (params, _):
      metrics, generations = measure.measure(
        self.model,
        params,
        self.tokenizer,
        cfg.task,
        cfg.template,
        self.pool,
        measure.examples(cfg.task, split, num_problems),
        num_samples,
        cfg.sampling(cfg.eval_temperature, cfg.eval_top_p),
        cfg.seed + 1_000_003,  # noise that no rollout of the run has
        on_progress,
        poll,
      )
    return {**metrics, 'split': split, 'step': self.step}, generations

  def _replace_reference(self) -> None:
    if self.cfg.kl_coef:  # a copy: the update donates the policy's buffers
      self.reference = jax.tree.map(lambda x: x.copy(), self.state.params)


class _Scoring:
  """Scores groups in a thread of its own as they end, while others go on.

  What a group is given depends on its completions alone, and is written down
  in the order of the groups once all have ended; so it makes no difference
  which one ends first.

  Args:
    score: a group's records, from its problem and its completions; called by
      the thread alone.
    sampled: the problems, and their numbers among all that were sampled.
    group_size: G.
    log: where completions and scores are written; what it has scored already
      is not scored again.
  """

  def __init__(self, score, sampled, group_size, log):
    self._score, self._sampled, self._log = score, sampled, log
    self._size = group_size
    self._thread = concurrent.futures.ThreadPoolExecutor(1)
    self._records: dict[int, concurrent.futures.Future] = {}
    # Groups that are written down together, and those of this host.
    chunk = max(_SCORED // group_size, 1) * hosts.count()
    first = len(log.scores) // group_size
    self._chunks = [
      range(start, min(start + chunk, len(sampled)))
      for start in range(first, len(sampled), chunk)
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
      _, example = self._sampled[group]
      self._records[group] = self._thread.submit(
        self._score, example, completions
      )


class _Clock:
  """Seconds by part of a step."""

  def __init__(self):
    self.laps: dict[str, float] = {}
    self._last = time.perf_counter()

  def lap(self, name: str) -> None:
    now = time.perf_counter()
    self.laps[name] = self.laps.get(name, 0.0) + now - self._last
    self._last = now


def _subset(
  rows: packing.RolloutBatch, chosen, group_size: int
) -> packing.RolloutBatch:
  """The groups of the chosen prompts."""
  places = (chosen[:, None] * group_size + np.arange(group_size)).reshape(-1)

  def pick(values):
    return None if values is None else [values[p] for p in places]

  return packing.RolloutBatch(
    prompts=[rows.prompts[c] for c in chosen],
    prompt_index=np.repeat(np.arange(len(chosen)), group_size),
    completions=pick(rows.completions),
    old_logprobs=pick(rows.old_logprobs),
    ref_logprobs=pick(rows.ref_logprobs),
    advantages=rows.advantages[places],
    routes=pick(rows.routes),
    masks=pick(rows.masks),
  )


def _describe(records, groups, usage) -> dict[str, float]:
  """Metrics of a rollout."""
  lengths = np.array([r['len'] for r in records])
  correct = np.array([r['correct'] for r in records])

  def mean(name):
    return float(np.mean([r[name] for r in records]))

  def mean_len(chosen):
    return float(lengths[chosen].mean()) if chosen.any() else float('nan')

  return {
    'reward/mean': mean('reward'),
    'reward/accuracy': mean('accuracy'),
    'reward/format': mean('format'),
    'reward/correct': mean('correct'),
    'completion/len_mean': float(lengths.mean()),
    'completion/len_max': int(lengths.max()),
    'completion/len_correct': mean_len(correct),
    'completion/len_wrong': mean_len(~correct),
    'completion/truncated': mean('truncated'),
    'completion/tries': mean('tries'),
    'completion/reflection_per_1k': 1000
    * sum(r['reflections'] for r in records)
    / float(lengths.sum()),
    'completion/unscored': float(
      np.mean([r['status'] != 'ok' for r in records])
    ),
    **{
      f'reward/{name}': float(
        np.mean([r['parts'].get(name, 0) for r in records])
      )
      for name in sorted({name for r in records for name in r['parts']})
    },
    **rewards.describe(records),
    'groups/zero_variance': float(np.mean(np.ptp(groups, axis=1) == 0)),
    'rollout/slot_use': usage.tokens / usage.computed,
  }
