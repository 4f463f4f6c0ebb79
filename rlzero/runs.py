"""A run and its folder: the loop over steps, with all of its side effects."""

import json
import os
import platform
import time
from typing import Any

import jax
import numpy as np

import rlzero
from rlzero import (
  checkpoint,
  evaluate,
  learner,
  metrics,
  provenance,
  rewards,
)
from rlzero.step import Loop


class Run:
  """A run and its folder: checkpoints, metrics, evaluations, samples."""

  def __init__(self, cfg, loaded, pool, prompt_stream):
    self.cfg = cfg
    self.loop = Loop(cfg, loaded, pool)
    self.stream = prompt_stream
    self.store = checkpoint.Store(cfg.workdir)
    self.wall_s, self.began = 0.0, time.monotonic()
    # Of the code that runs, not of a later one.
    self.commit = provenance.commit()
    self._restore()
    checkpoint.write_description(
      cfg.workdir, self.loop.model, self.loop.tokenizer
    )

  def go(self) -> None:
    """Runs to the last step; every part that is done already is passed by."""
    cfg, loop = self.cfg, self.loop
    self._evaluate_once('before', 0)
    with (
      metrics.MetricsWriter(cfg.workdir, loop.step) as writer,
      metrics.Progress(cfg.num_steps, 'grpo', loop.step) as progress,
    ):
      while loop.step < cfg.num_steps:
        rows, records = loop.advance(
          self.stream.next(cfg.num_prompts * cfg.steps_per_rollout)
        )
        if any(r['step'] % cfg.keep_completions_every == 0 for r in rows):
          self._keep(rows[0]['step'], records)
        if cfg.eval_every and loop.step % cfg.eval_every == 0:
          rows[-1] |= self._evaluate_during()
        for row in rows:
          self._check_finite(row)
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
    checkpoint.write_model(
      cfg.workdir, loop.model, loop.state.params, loop.tokenizer
    )
    self._evaluate_once('after', cfg.num_steps)
    self._write_facts()
    self.store.close()

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
        print(f'warning: {found}', flush=True)

  def _evaluate_once(self, name: str, step: int) -> None:
    """Evaluates the final split at a step, unless that has been done."""
    cfg = self.cfg
    path = os.path.join(cfg.workdir, 'evaluations', f'{name}.json')
    if os.path.exists(path) or self.loop.step != step:
      return
    figures, generations = self.loop.evaluate(
      cfg.final_split,
      cfg.final_problems,
      cfg.final_samples,
      evaluate.progress(f'evaluate {name}'),
    )
    evaluate.write(cfg.workdir, name, figures, generations)
    print(f'{name}: {evaluate.summary(figures)}', flush=True)

  def _evaluate_during(self) -> dict[str, float]:
    cfg, step = self.cfg, self.loop.step
    figures, generations = self.loop.evaluate(
      'validation', cfg.eval_problems, cfg.eval_samples
    )
    evaluate.write(cfg.workdir, f'step_{step:06d}', figures, generations)
    print(f'step {step}: {evaluate.summary(figures)}', flush=True)
    names = ('pass@1', 'strict', 'format', 'truncated', 'tries')
    return {
      **{f'eval/{name}': figures[name] for name in names},
      'eval/len_mean': figures['completion_len'],
      f'eval/cons@{cfg.eval_samples}': figures['cons@k'][str(cfg.eval_samples)],
    }

  def _keep(self, step: int, records) -> None:
    """Writes the completions of two groups, to be read by people."""
    folder = os.path.join(self.cfg.workdir, 'completions')
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f'step_{step:06d}.jsonl')
    with open(path, 'w', encoding='utf-8') as file:
      for record in records[: 2 * self.cfg.group_size]:
        file.write(json.dumps({'step': step, **record}) + '\n')

  def _rest(self) -> dict[str, Any]:
    loop = self.loop
    return {'opt_state': loop.state.opt_state, 'reference': loop.reference}

  def _save(self) -> None:
    facts = {'stream': self.stream.get_state(), 'wall_s': self._wall()}
    loop = self.loop
    self.store.save(loop.step, loop.state.params, self._rest(), facts)
    self._write_facts()

  def _restore(self) -> None:
    loop = self.loop
    saved = self.store.restore(loop.state.params, self._rest())
    if saved is None:
      return
    loop.state = learner.TrainState(saved.params, saved.rest['opt_state'])
    loop.reference = saved.rest['reference']
    loop.step, self.wall_s = saved.step, saved.facts['wall_s']
    self.stream.set_state(saved.facts['stream'])
    print(f'going on from the checkpoint of step {saved.step}', flush=True)

  def _wall(self) -> float:
    return self.wall_s + time.monotonic() - self.began

  def _write_facts(self) -> None:
    facts = {
      'stage': 'grpo',
      'wall_s': self._wall(),
      'seed': self.cfg.seed,
      'hardware': (
        f'{jax.device_count()} x {jax.devices()[0].device_kind} '
        f'({os.cpu_count()} cores, {platform.machine()})'
      ),
      'version': rlzero.__version__,
      'commit': self.commit,
      'verdicts': self.loop.pool.counts,
    }
    with open(
      os.path.join(self.cfg.workdir, 'run.json'), 'w', encoding='utf-8'
    ) as file:
      json.dump(facts, file, indent=2)
