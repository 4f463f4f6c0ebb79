"""A run and its folder: the loop over steps, with all of its side effects."""

import contextlib
import os
import sys
import time
from typing import Any

import numpy as np

import rlzero
from rlzero.evaluation import measure
from rlzero.rl import learner
from rlzero.rl.step import Experience, Loop
from rlzero.rollout import journal
from rlzero.runtime import (
  files,
  hosts,
  lifecycle,
  metrics,
  provenance,
  saved_config,
)
from rlzero.scoring import rewards
from rlzero.train import checkpoint, folders


class _Preempted(Exception):
  """SIGTERM came, on this host or another."""


class Run:
  """A run and its folder: checkpoints, metrics, evaluations, samples.

  What a checkpoint holds is enough at any moment between two updates: the
  policy, its optimiser, the reference, the place in the stream of problems
  where the rollout under way began, that rollout's journal, and the metrics
  that are not written yet.
  """

  def __init__(self, cfg, loaded, pool, prompt_stream):
    self.cfg = cfg
    self.loop = Loop(cfg, loaded, pool)
    self.stream = prompt_stream
    self.store = checkpoint.Store(cfg.workdir, cfg.keep_checkpoints)
    self.wall_s, self.began = 0.0, time.monotonic()
    self.commit = provenance.commit()  # of the code that runs, not a later one
    self.preempted = lambda: False
    self.saved_step = -1
    # Of the rollout under way.
    self.cursor = prompt_stream.get_state()  # where its problems begin
    self.header: dict[str, Any] = {}  # of its journal
    self.experience: Experience | None = None
    self.row: dict[str, Any] | None = None  # of an update, not written yet
    self._restore()
    if hosts.is_first():
      folders.write_description(
        cfg.workdir, self.loop.model, self.loop.tokenizer
      )

  def go(self) -> None:
    """Runs to the last step; every part that is done already is passed by.

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
          f'SIGTERM: saved at step {self.loop.step}; the same command resumes'
        )
        sys.exit(lifecycle.PREEMPTED)

  def _train(self) -> None:
    cfg, loop = self.cfg, self.loop
    self._evaluate_once('before', 0)
    start = loop.step - (self.row is not None)
    with contextlib.ExitStack() as stack:
      writer = progress = None
      if hosts.is_first():
        writer = stack.enter_context(metrics.MetricsWriter(cfg.workdir, start))
        progress = stack.enter_context(
          metrics.Progress(cfg.num_steps, 'grpo', start)
        )
      while loop.step < cfg.num_steps or self.row:
        if not self.row:
          self._check_preempted()
          if not (self.experience and self.experience.minibatches):
            self._collect()
          row = loop.update(self.experience)
          self._check_finite(row)
          self.row = row
          if not self.experience.minibatches:  # the next rollout begins here
            self.cursor = self.stream.get_state()
        if cfg.eval_every and loop.step % cfg.eval_every == 0:
          self.row |= self._evaluate_during()
        row, self.row = self.row, None
        if writer:
          writer.write(row.pop('step'), row)
          progress.show(
            loop.step,
            reward=row['reward/mean'],
            length=row['completion/len_mean'],
            tokens_per_s=row['time/tokens_per_s'],
          )
        if loop.step % cfg.save_every == 0 or loop.step == cfg.num_steps:
          self._save()
          self._warn()
    self.store.wait()
    params = loop.state.params
    if hosts.count() > 1:
      params = hosts.fetch_first(params)
    if hosts.is_first():
      folders.write_model(cfg.workdir, loop.model, params, loop.tokenizer)
      self._prune()
    self._evaluate_once('after', cfg.num_steps)
    self._write_description()

  def _check_preempted(self) -> None:
    """Ends the work at hand, on all hosts, if SIGTERM came to one."""
    if hosts.first_true_of_all(self.preempted()):
      raise _Preempted

  def _collect(self) -> None:
    """The next rollout, or what is left of the one that was under way."""
    cfg, loop = self.cfg, self.loop
    used = loop.step % cfg.steps_per_rollout
    first = loop.step - used
    sampled = self.stream.next(cfg.num_prompts * cfg.steps_per_rollout)
    if not used:
      self.header = {
        'step': first,
        'config': journal.digest(saved_config.resume_key(cfg)),
        'policy': checkpoint.fingerprint(loop.state.params),
        'prompts': journal.digest(
          [(draw, example.uid, example.question) for draw, example in sampled]
        ),
      }
    path = journal.path_of(cfg.workdir, first)
    measured = self.experience.metrics if self.experience and used else {}
    with contextlib.closing(journal.Journal(path, self.header)) as log:
      if log.completions:
        hosts.print_once(
          f'step {first}: {len(log.completions)} completions and '
          f'{len(log.scores)} scores are in the journal'
        )
      self.experience = loop.rollout(sampled, log, self._check_preempted)
    self.experience.metrics |= measured
    every = cfg.keep_completions_every
    if -first % every < cfg.steps_per_rollout and hosts.is_first():
      self._keep(first, self.experience.records)

  def _check_finite(self, row) -> None:
    loss, norm = row['policy/loss'], row['policy/grad_norm']
    if np.isfinite(loss) and np.isfinite(norm):
      return
    raise ValueError(
      f'At step {row["step"]} the loss is {loss} and the gradient norm {norm}; '
      f'the run stopped, and {self.cfg.workdir}/checkpoints holds the last '
      f'good state (step {self.store.latest()}). Lower learning_rate or '
      'max_grad_norm and start again from it with --checkpoint.'
    )

  def _warn(self) -> None:
    """Says so if the reward models of the run are being gamed."""
    if any(scenario.preferences for scenario in self.cfg.scenarios):
      found = rewards.hacking(metrics.read_metrics(self.cfg.workdir))
      if found:
        hosts.print_once(f'warning: {found}')

  def _evaluate_once(self, name: str, step: int) -> None:
    """Evaluates the final split at a step, unless that has been done."""
    cfg = self.cfg
    path = os.path.join(cfg.workdir, 'evaluations', f'{name}.json')
    if hosts.broadcast(os.path.exists(path)) or self.loop.step != step:
      return
    show = measure.progress(f'evaluate {name}') if hosts.is_first() else None
    measured, generations = self.loop.evaluate(
      cfg.final_split,
      cfg.final_problems,
      cfg.final_samples,
      show,
      self._check_preempted,
    )
    if hosts.is_first():
      measure.write(cfg.workdir, name, measured, generations)
    hosts.print_once(f'{name}: {measure.summary(measured)}')

  def _evaluate_during(self) -> dict[str, float]:
    cfg, step = self.cfg, self.loop.step
    measured, generations = self.loop.evaluate(
      'validation',
      cfg.eval_problems,
      cfg.eval_samples,
      poll=self._check_preempted,
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

  def _keep(self, step: int, records) -> None:
    """Writes the completions of two groups, to be read by people."""
    name = f'step_{step:06d}.jsonl'
    files.write_jsonl(
      os.path.join(self.cfg.workdir, 'completions', name),
      ({'step': step, **r} for r in records[: 2 * self.cfg.group_size]),
    )

  def _rest(self) -> dict[str, Any]:
    loop = self.loop
    return {'opt_state': loop.state.opt_state, 'reference': loop.reference}

  def _save(self) -> None:
    cfg, loop = self.cfg, self.loop
    if self.saved_step == loop.step:
      return
    size = cfg.steps_per_rollout
    used = loop.step % size
    if hosts.is_first():
      self._prune()
    self.store.save(
      loop.step,
      loop.state.params,
      self._rest(),
      {
        'stream': self.cursor,
        'wall_s': self._wall(),
        'journal': self.header if used else None,
        'metrics': self.experience.metrics if used else {},
        'row': self.row,
      },
    )
    self.saved_step = loop.step
    self._write_description()

  def _prune(self) -> None:
    """Leaves the journals that a checkpoint may need: its own, later ones."""
    oldest = min([self.loop.step, *self.store.steps()])
    journal.prune(
      self.cfg.workdir, oldest - oldest % self.cfg.steps_per_rollout
    )

  def _restore(self) -> None:
    cfg, loop = self.cfg, self.loop
    saved = self.store.restore(
      loop.state.params, self._rest(), self._check_journal
    )
    if saved is None:
      return
    metadata = saved.metadata
    loop.state = learner.TrainState(saved.params, saved.state['opt_state'])
    loop.reference = saved.state['reference']
    loop.step = self.saved_step = saved.step
    self.wall_s, self.row = metadata['wall_s'], metadata['row']
    self.cursor = metadata['stream']
    self.stream.set_state(self.cursor)
    if metadata['journal']:
      self.header = metadata['journal']
      self.experience = Experience([], metadata['metrics'], [])
    hosts.print_once(
      f'resuming from the checkpoint of step {saved.step} of {cfg.num_steps}'
    )

  def _check_journal(self, metadata: dict[str, Any]) -> str:
    """A checkpoint between minibatches needs what its rollout wrote."""
    cfg, header = self.cfg, metadata['journal']
    if header is None:
      return ''
    path = journal.path_of(cfg.workdir, header['step'])
    rows = cfg.num_prompts * cfg.group_size * cfg.steps_per_rollout
    if hosts.broadcast(journal.is_complete(path, header, rows)):
      return ''
    return f'its journal {path} is missing or damaged'

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
      'verdicts': self.loop.pool.counts,
    }
    files.write_json(
      os.path.join(self.cfg.workdir, 'run.json'), metadata, indent=2
    )
