"""Trains step by step, with all side effects in the run's folder.

Collecting (`rl/collect.py`) and updating (`rl/update.py`) take turns here;
checkpoints, the journal, evaluations, metrics and samples are written here.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import rlzero
from rlzero import weights
from rlzero.evaluation import measure
from rlzero.monitoring import history, telling
from rlzero.rl import selection, token_figures
from rlzero.rl.collect import Collector, Experience
from rlzero.rl.drawing import Drawing
from rlzero.rl.resharding import resharded
from rlzero.rl.settings import Config
from rlzero.rl.update import Trainer
from rlzero.rollout import encoding, journal
from rlzero.runtime import (
  files,
  hosts,
  lifecycle,
  memory,
  metrics,
  profiling,
  provenance,
  saved_config,
)
from rlzero.scoring import reward_pool
from rlzero.tasks.datasets import stream
from rlzero.train import checkpoint, folders


class _Preempted(Exception):
  """SIGTERM came, on this host or another."""


class TrainingLoop:
  """Runs a training and keeps its folder, so that it can resume at any step.

  A checkpoint between two updates holds the policy, its optimiser state, the
  reference, the place in the stream of problems where the current rollout
  began, the headers of that rollout's journals, and metrics not written yet.

  Args:
    cfg: of the run.
    loaded: the model that it starts from.
    pool: verifies completions.
    prompt_stream: of the problems.
  """

  def __init__(
    self,
    cfg: Config,
    loaded: weights.Loaded,
    pool: reward_pool.RewardPool,
    prompt_stream: stream.PromptStream,
  ):
    _check_room(cfg, loaded)
    self.cfg, self.pool, self.tokenizer = cfg, pool, loaded.tokenizer
    self.trainer = Trainer(cfg, loaded)
    self._collect_with(cfg)
    self.drawing = Drawing(cfg, self.tokenizer, prompt_stream)
    self.store = checkpoint.Store(cfg.workdir, cfg.keep_checkpoints)
    self.wall_s, self.began = 0.0, time.monotonic()
    self.commit = provenance.commit()  # of the code that runs, not a later one
    self.preempted = lambda: False
    self.saved_step = -1
    self.experience: Experience | None = None  # of the current rollout
    self.unwritten: dict[str, Any] | None = None  # metrics of the last step
    self._restore()
    folders.write_description(
      cfg.workdir,
      self.trainer.model,
      self.tokenizer,
      self.trainer.state.params,
    )

  def run(self) -> None:
    """Runs to the last step; skips every part that is done already.

    Raises:
      SystemExit: lifecycle.PREEMPTED after SIGTERM; all is saved.
    """
    with (
      contextlib.closing(self.store),
      lifecycle.preemption() as self.preempted,
    ):
      try:
        self._train()
      except _Preempted:
        self._save()
        hosts.print_once(
          f'SIGTERM: saved at step {self.trainer.step}; the same command '
          'resumes'
        )
        sys.exit(lifecycle.PREEMPTED)

  def _train(self) -> None:
    cfg, trainer = self.cfg, self.trainer
    self._check_evaluations()
    self._evaluate_once('before', 0)
    start = trainer.step - (self.unwritten is not None)
    profiler = profiling.Profiler(
      profiling.parse(cfg.profile_steps, 'grpo.Config.profile_steps'),
      os.path.join(cfg.workdir, 'profile'),
    )
    with contextlib.ExitStack() as stack:
      stack.callback(profiler.close)
      writer = progress = None
      if hosts.is_first():
        writer = stack.enter_context(
          history.Recorder(cfg.workdir, start, cfg.alerts, cfg.dtype)
        )
        progress = stack.enter_context(
          metrics.Progress(cfg.num_steps, 'grpo', start)
        )
      while trainer.step < cfg.num_steps or self.unwritten:
        step_metrics = self.unwritten
        if not step_metrics:
          with profiler.step(trainer.step):
            step_metrics = self._step()
        if cfg.eval_every and trainer.step % cfg.eval_every == 0:
          step_metrics |= self._evaluate_during()
        self.unwritten = None
        if writer and progress:
          ringing = writer.write(step_metrics)
          progress.show(
            trainer.step,
            reward=step_metrics['reward/mean'],
            length=step_metrics['completion/len_mean'],
            tokens_per_s=step_metrics['time/tokens_per_s'],
          )
          records = self.experience.records if self.experience else ()
          progress.describe(step_metrics, ringing, telling.choose(records))
        if trainer.step % cfg.save_every == 0 or trainer.step == cfg.num_steps:
          self._save()
    self._finish()

  def _step(self) -> dict[str, Any]:
    """Makes one update, after the rollout that it needs; its metrics."""
    self._check_preempted()
    if not (self.experience and self.experience.minibatches):
      memory.release_if_short()
      self._collect()
      memory.release_if_short()
    assert self.experience is not None
    step_metrics = self.trainer.update(self.experience)
    self._check_finite(step_metrics)
    self.unwritten = step_metrics
    if not self.experience.minibatches:  # the next rollout begins here
      self.drawing.end()
    return step_metrics

  def _finish(self) -> None:
    """Writes the model folder and evaluates it."""
    cfg, trainer = self.cfg, self.trainer
    self.store.wait()
    folders.write_model(
      cfg.workdir, trainer.model, trainer.state.params, self.tokenizer
    )
    if hosts.is_first():
      self._prune()
    self._evaluate_once('after', cfg.num_steps)
    self._write_description()

  def _check_preempted(self) -> None:
    """Ends the work at hand, on all hosts, if SIGTERM came to one."""
    if hosts.first_true_of_all(self.preempted()):
      raise _Preempted

  def _collect(self) -> None:
    """Makes the next rollout, or what is left of an interrupted one."""
    cfg, trainer = self.cfg, self.trainer
    used = trainer.step % cfg.updates_per_rollout
    first = trainer.step - used
    self._follow_limit(cfg.at(first))
    measured = self.experience.metrics if self.experience and used else {}
    self.drawing.begin(resumed=bool(used))
    rollout = {
      'step': first,
      'config': journal.digest(saved_config.resume_key(cfg)),
      # That of an interrupted rollout is gone; its headers are known.
      'policy': None if used else checkpoint.fingerprint(trainer.state.params),
    }
    rounds: list[selection.Round] = []
    with contextlib.ExitStack() as logs:
      while count := selection.prompts_wanted(cfg, rounds):
        number = len(rounds)
        sampled = self.drawing.draw(count, number, rollout)
        path = journal.path_of(cfg.workdir, first, number)
        log = logs.enter_context(
          contextlib.closing(
            journal.Journal(path, self.drawing.headers[number])
          )
        )
        if log.completions:
          hosts.print_once(
            f'step {first}: {len(log.completions)} completions and '
            f'{len(log.scores)} scores are in the journal'
          )
        rounds.append(
          self.collector.sample(
            trainer.policy, sampled, log, self._check_preempted
          )
        )
      self.experience = self.collector.choose(trainer.policy, rounds)
    self.drawing.learn(rounds)
    self.experience.metrics |= self.drawing.describe() | measured
    every = cfg.keep_completions_every
    if -first % every < cfg.updates_per_rollout:
      if hosts.is_first():
        self._write_samples(first, self.experience.records)
      if cfg.keep_tokens and not used:  # else another policy has sampled
        self._write_tokens(first, rounds)

  def _follow_limit(self, now: Config) -> None:
    """Makes anew what depends on the limit of completions, if it changed."""
    if now.sampling.max_len != self.trainer.learner.max_len:
      self.trainer.limit_completions(now)
      self._collect_with(now)

  def _collect_with(self, cfg: Config) -> None:
    learner, tokenizer = self.trainer.learner, self.tokenizer
    self.collector = Collector(cfg, learner, tokenizer, self.pool)
    self.token_figures = token_figures.TokenFigures(cfg, learner, tokenizer)

  def _check_finite(self, step_metrics: Mapping[str, Any]) -> None:
    loss = step_metrics['policy/loss']
    norm = step_metrics['policy/grad_norm']
    if np.isfinite(loss) and np.isfinite(norm):
      return
    raise ValueError(
      f'At step {step_metrics["step"]} the loss is {loss} and the gradient '
      f'norm {norm}; '
      f'the run stopped, and {self.cfg.workdir}/checkpoints holds the last '
      f'good state (step {self.store.latest()}). Lower learning_rate or '
      'max_grad_norm and start again from it with --checkpoint.'
    )

  def _check_evaluations(self) -> None:
    """Checks all problems of evaluations before the first of them."""
    cfg = self.cfg
    evaluated = [(cfg.final_split, cfg.final_problems)]
    if cfg.eval_every:
      evaluated.append(('validation', cfg.eval_problems))
    for split, num_problems in evaluated:
      encoding.check_lengths(
        self.tokenizer,
        cfg.template,
        measure.examples(cfg.task, split, num_problems),
        cfg.sampling.max_prompt_len,
      )

  def _evaluate_once(self, name: str, step: int) -> None:
    """Evaluates the final split at a step, unless that has been done."""
    cfg = self.cfg
    path = os.path.join(cfg.workdir, 'evaluations', f'{name}.json')
    done = None
    if hosts.is_first() and os.path.exists(path):
      with open(path, encoding='utf-8') as file:
        done = json.load(file).get('step')
    # A finished run that is prolonged is evaluated at its new end.
    if hosts.broadcast(done) == step or self.trainer.step != step:
      return
    show = measure.progress(f'evaluate {name}') if hosts.is_first() else None
    measured, generations = self.evaluate(
      cfg.final_split,
      cfg.final_problems,
      cfg.final_samples,
      show,
    )
    if hosts.is_first():
      measure.write(cfg.workdir, name, measured, generations)
    hosts.print_once(f'{name}: {measure.summary(measured)}')

  def evaluate(
    self,
    split: str,
    num_problems: int,
    num_samples: int,
    on_progress: Callable[[int, int], None] | None = None,
  ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measures the policy on held-out problems.

    Returns:
      metrics, and the generations.
    """
    cfg, trainer = self.cfg, self.trainer
    with resharded(trainer.model, trainer.state.params, cfg.rollout_mesh) as (
      params,
      _,
    ):
      measured, generations = measure.measure(
        trainer.model,
        params,
        self.tokenizer,
        cfg.task,
        cfg.template,
        self.pool,
        measure.examples(cfg.task, split, num_problems),
        num_samples,
        cfg.at(trainer.step).eval_sampling,
        cfg.seed + 1_000_003,  # noise that no rollout of the run has
        on_progress,
        self._check_preempted,
      )
    return {**measured, 'split': split, 'step': trainer.step}, generations

  def _evaluate_during(self) -> dict[str, float]:
    cfg, step = self.cfg, self.trainer.step
    measured, generations = self.evaluate(
      'validation',
      cfg.eval_problems,
      cfg.eval_samples,
    )
    if hosts.is_first():
      measure.write(cfg.workdir, f'step_{step:06d}', measured, generations)
    hosts.print_once(f'step {step}: {measure.summary(measured)}')
    names = ('pass@1', 'strict', 'format', 'truncated', 'tries')
    return {
      **{f'eval/{name}': measured[name] for name in names},
      'eval/len_mean': measured['completion_len'],
      f'eval/cons@{cfg.eval_samples}': measured['cons@k'][
        str(cfg.eval_samples)
      ],
    }

  def _write_samples(
    self, step: int, records: Sequence[Mapping[str, Any]]
  ) -> None:
    """Writes the completions of a few groups, to be read by people."""
    count = token_figures.KEPT_GROUPS * self.cfg.num_samples
    name = f'step_{step:06d}.jsonl'
    files.write_jsonl(
      os.path.join(self.cfg.workdir, 'completions', name),
      ({'step': step, **r} for r in records[:count]),
    )

  def _write_tokens(self, step: int, rounds: Sequence[selection.Round]) -> None:
    """Writes what is known of the tokens of some of these completions."""
    found = self.token_figures.describe(self.trainer.policy.params, rounds)
    if hosts.is_first():
      folder = os.path.join(self.cfg.workdir, token_figures.FOLDER)
      files.write_jsonl(os.path.join(folder, f'step_{step:06d}.jsonl'), found)

  def _save(self) -> None:
    cfg, trainer = self.cfg, self.trainer
    if self.saved_step == trainer.step:
      return
    used = trainer.step % cfg.updates_per_rollout
    if hosts.is_first():
      self._prune()
    self.store.save(
      trainer.step,
      trainer.trained,
      trainer.rest,
      {
        **self.drawing.get_state(inside=bool(used)),
        'wall_s': self._wall(),
        'metrics': self.experience.metrics if self.experience and used else {},
        'unwritten': self.unwritten,
      },
    )
    self.saved_step = trainer.step
    self._write_description()

  def _prune(self) -> None:
    """Leaves the journals that a checkpoint may need: its own, later ones."""
    oldest = min([self.trainer.step, *self.store.steps()])
    journal.prune(
      self.cfg.workdir, oldest - oldest % self.cfg.updates_per_rollout
    )

  def _restore(self) -> None:
    cfg, trainer = self.cfg, self.trainer
    saved = self.store.restore(
      trainer.trained, trainer.rest, self._check_journals
    )
    if saved is None:
      return
    metadata = saved.metadata
    self.drawing.set_state(metadata)
    trainer.restore(saved)
    self.saved_step = saved.step
    self.wall_s, self.unwritten = metadata['wall_s'], metadata['unwritten']
    if metadata['journal']:
      self.experience = Experience([], metadata['metrics'], [])
    hosts.print_once(
      f'resuming from the checkpoint of step {saved.step} of {cfg.num_steps}'
    )

  def _check_journals(self, metadata: dict[str, Any]) -> str:
    """A checkpoint between minibatches needs what its rollout wrote."""
    cfg = self.cfg
    recomputed = cfg.objective.old_logprobs == 'recomputed'
    rows = cfg.num_prompts * cfg.group_size * cfg.steps_per_rollout
    for number, header in enumerate(metadata['journal'] or ()):
      path = journal.path_of(cfg.workdir, header['step'], number)
      whole = journal.is_complete(
        path,
        header,
        header['completions'],
        # Those of the whole rollout are in its first journal.
        rows if recomputed and not number else 0,
      )
      if not hosts.broadcast(whole):
        return f'its journal {path} is missing or damaged'
    return ''

  def _wall(self) -> float:
    return self.wall_s + time.monotonic() - self.began

  def _write_description(self) -> None:
    if not hosts.is_first():
      return
    metadata = {
      'stage': 'grpo',
      'wall_s': self._wall(),
      'seed': self.cfg.seed,
      'hardware': provenance.hardware(),
      'version': rlzero.__version__,
      'commit': self.commit,
      'verdicts': self.pool.counts,
    }
    files.write_json(
      os.path.join(self.cfg.workdir, 'run.json'), metadata, indent=2
    )


def _check_room(cfg: Config, loaded: weights.Loaded) -> None:
  """Checks limits that the run reaches later against the model."""
  wanted = cfg.longest_len + cfg.sampling.max_prompt_len
  if cfg.max_len_from and wanted > loaded.config.max_position:
    raise ValueError(
      f'grpo.Config.max_len_from has completions of {cfg.longest_len} tokens, '
      f'which with sampling.max_prompt_len = {cfg.sampling.max_prompt_len} are '
      f'{wanted}, but the model takes {loaded.config.max_position}; lower one '
      'of them.'
    )
