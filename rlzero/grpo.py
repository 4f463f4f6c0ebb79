"""GRPO: reinforcement learning from verifiable rewards (R1-Zero).

  python -m rlzero.grpo --gin_file=configs/runs/r1_zero_tiny.gin --workdir=DIR

One rollout: draw prompts, complete each G times, score, subtract the group's
mean; then one policy update for each minibatch of whole groups. A step is a
policy update, as in the paper. The run goes on from its last checkpoint.

Differences from the paper:
- Minibatches hold whole groups, so that a prompt is computed once for its
  group; the paper does not say whether rows or prompts are split.
- old_logprobs are the sampler's. Sampler and learner are one forward function
  and agree to rounding, which is logged; a separate pass would cost a third of
  the update.
- The accuracy reward needs the format: exactly one well-formed answer.
- Checkpoints fall between rollouts, never between minibatches of one.
"""

import dataclasses
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np

import rlzero
from rlzero import (
  checkpoint,
  config,
  evaluate,
  learner,
  losses,
  metrics,
  packing,
  report,
  sharding,
  weights,
)
from rlzero.optim import Optimizer
from rlzero.rollout import scheduler
from rlzero.tasks import base, countdown, sandbox
from rlzero.tasks.datasets import stream
from rlzero.tasks.template import Template
from rlzero.types import Params

_changeable = {'changeable': True}


def _late(default: Any) -> Any:
  """A field that a run may change when it goes on."""
  return dataclasses.field(default=default, metadata=_changeable)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of a run; the defaults are the paper's for R1-Zero."""

  workdir: str = dataclasses.field(metadata=_changeable)
  checkpoint: str = ''  # run or Hugging Face folder, GGUF; '' is the tiny base
  task: base.Task = countdown.Countdown()
  template: Template = Template('r1_zero')
  mesh: sharding.Mesh = sharding.Mesh()  # one device by default
  # Rollout
  num_prompts: int = 32  # prompts a step
  group_size: int = 16  # G, completions a prompt
  steps_per_rollout: int = 16  # minibatches, each one policy update
  max_len: int = 32_768  # tokens a completion
  max_prompt_len: int = 1024  # tokens
  temperature: float = 1.0  # T
  num_slots: int = 64  # completions decoded at a time
  decode_steps: int = 16  # tokens between two looks at what has finished
  # Reward
  accuracy_reward: float = 1.0  # weight
  format_reward: float = 1.0  # weight
  reward_truncated: bool = True  # else completions cut at max_len earn nothing
  num_workers: int = 2  # reward processes
  deadline_s: float = 5.0  # seconds a completion may take to score
  # Objective
  kl_coef: float = 0.001  # beta
  clip_low: float = 0.2  # epsilon below 1
  clip_high: float = 0.2  # epsilon above 1
  loss: Literal['grpo', 'dr_grpo'] = 'grpo'
  # Update
  learning_rate: float = 3e-6  # of AdamW
  warmup_steps: int = 0  # steps
  b2: float = 0.999  # of AdamW
  weight_decay: float = 0.0
  max_grad_norm: float = 1.0
  micro_tokens: int = 8192  # completion tokens a microbatch
  reference_every: int = 400  # steps between replacements of the reference
  dtype: Literal['float32', 'bfloat16'] = 'float32'  # of activations
  remat: bool = False  # recompute layers in the backward pass
  skip_constant_groups: bool = True  # in updates without KL; saves time alone
  update: Literal['jit', 'pmap'] = 'jit'  # over the mesh, or a device each
  # Run
  num_steps: int = 10_400  # policy updates
  seed: int = 0
  save_every: int = _late(160)  # steps
  eval_every: int = _late(160)  # steps; 0 evaluates before and after only
  eval_problems: int = 64  # of the validation split, during the run
  eval_samples: int = 16  # completions a problem, during the run
  final_split: str = 'test'  # evaluated before and after
  final_problems: int = 0  # 0 takes all of it
  final_samples: int = 16
  eval_temperature: float = 0.6
  eval_top_p: float = 0.95
  keep_completions_every: int = _late(10)  # steps between kept samples

  def __post_init__(self):
    at_least = {
      'num_prompts': 1,
      'group_size': 2,
      'steps_per_rollout': 1,
      'max_len': 1,
      'num_slots': 1,
      'kl_coef': 0,
      'learning_rate': 0,
      'micro_tokens': 1,
      'reference_every': 1,
      'num_steps': 1,
      'save_every': 1,
      'eval_every': 0,
      'eval_problems': 1,
      'eval_samples': 1,
      'final_problems': 0,
      'final_samples': 1,
      'keep_completions_every': 1,
    }
    for name, least in at_least.items():
      value = getattr(self, name)
      if value < least:
        why = (
          ' (a group of one has no one to be compared with)'
          if name == 'group_size'
          else ''
        )
        raise ValueError(
          f'grpo.Config.{name} is {value}; it must be at least {least}{why}.'
        )
    if self.temperature <= 0:
      raise ValueError(
        f'grpo.Config.temperature is {self.temperature}; it must be above 0, '
        'or all completions of a group are the same.'
      )
    for name in ('num_steps', 'save_every', 'eval_every', 'reference_every'):
      if getattr(self, name) % self.steps_per_rollout:
        raise ValueError(
          f'grpo.Config.{name} is {getattr(self, name)}, which '
          f'steps_per_rollout = {self.steps_per_rollout} does not divide; '
          'these things happen between rollouts, so choose a multiple.'
        )
    if self.update == 'pmap' and self.mesh != sharding.Mesh(
      data=self.mesh.data
    ):
      raise ValueError(
        f"grpo.Config.update is 'pmap' with mesh {self.mesh}; it is for models "
        "that every device holds whole, so cut by `data` alone, or use 'jit'."
      )
    if self.format_reward and not self.template.has_format:
      raise ValueError(
        f'grpo.Config.format_reward is {self.format_reward}, but template '
        f'{self.template.kind!r} has no format to reward; set it to 0.'
      )

  @property
  def leaves_out_constant_groups(self) -> bool:
    """Whether groups of equal rewards cost an update nothing."""
    return self.skip_constant_groups and not self.kl_coef

  @property
  def objective(self) -> learner.Objective:
    paper = self.loss == 'grpo'
    return learner.Objective(
      kl_coef=self.kl_coef,
      clip_low=self.clip_low,
      clip_high=self.clip_high,
      normalize_std=paper,
      aggregation='sequence_mean' if paper else 'constant',
      temperature=self.temperature,
      max_len=self.max_len,
    )

  @property
  def optimizer(self) -> Optimizer:
    return Optimizer(
      learning_rate=self.learning_rate,
      warmup_steps=self.warmup_steps,
      b2=self.b2,
      weight_decay=self.weight_decay,
      max_grad_norm=self.max_grad_norm,
    )

  def sampling(self, temperature: float, top_p: float) -> scheduler.Sampling:
    return scheduler.Sampling(
      max_len=self.max_len,
      max_prompt_len=self.max_prompt_len,
      temperature=temperature,
      top_p=top_p,
      num_slots=self.num_slots,
      decode_steps=self.decode_steps,
    )


def table(cfg: Config, num_examples: int) -> str:
  """What the settings amount to, in numbers."""
  rows = cfg.num_prompts * cfg.group_size
  rollouts = cfg.num_steps // cfg.steps_per_rollout
  prompts = cfg.num_prompts * cfg.num_steps
  devices = 1 if cfg.mesh == sharding.Mesh() else jax.device_count()
  lines = {
    'devices': f'{devices} of {jax.device_count()}'
    + (
      ' (`mesh` says how to use more)' if devices < jax.device_count() else ''
    ),
    'prompts a step x completions a prompt': (
      f'{cfg.num_prompts} x {cfg.group_size} = {rows} rows'
    ),
    'minibatches (policy updates) a rollout': cfg.steps_per_rollout,
    'rollouts x rows a rollout': (
      f'{rollouts} x {rows * cfg.steps_per_rollout}'
    ),
    'policy updates': cfg.num_steps,
    'prompts in the run': (
      f'{prompts} ({prompts / num_examples:.2f} epochs of {num_examples})'
    ),
    'completion tokens in the run, at most': (
      f'{rows * cfg.num_steps * cfg.max_len:,}'
    ),
  }
  width = max(map(len, lines))
  return '\n'.join(f'{k:<{width}}  {v}' for k, v in lines.items())


def load_start(cfg: Config) -> weights.Loaded:
  """The model that the run starts from."""
  return checkpoint.load_model(
    cfg.checkpoint or checkpoint.embedded('tiny_base')
  )


def reward_pool(cfg: Config) -> sandbox.RewardPool:
  """The processes that score the run's completions."""
  return sandbox.RewardPool(
    {cfg.task.name: cfg.task},
    cfg.template.kind,
    cfg.num_workers,
    cfg.deadline_s,
  )


def run(cfg: Config) -> None:
  """Trains, evaluates before, during and after, and writes the report.

  Raises:
    ValueError: input that cannot be used, or a loss that is not finite.
  """
  examples = cfg.task.examples('train')
  prompt_stream = stream.prompt_stream(examples, cfg.seed)
  config.check_same(cfg, cfg.workdir)
  loaded = load_start(cfg)
  config.save_resolved(cfg, cfg.workdir)
  print(table(cfg, len(examples)), flush=True)
  with sharding.use(cfg.mesh), reward_pool(cfg) as pool:
    _Run(cfg, loaded, pool, prompt_stream).go()
  report.write(cfg.workdir)


class Loop:
  """Policy, reference and rewards, one rollout at a time; no files."""

  def __init__(self, cfg: Config, loaded: weights.Loaded, pool):
    self.cfg = cfg
    self.pool = pool
    self.tokenizer = loaded.tokenizer
    self.model = dataclasses.replace(
      loaded.config, dtype=cfg.dtype, remat=cfg.remat
    )
    self.learner = learner.Learner(
      self.model,
      cfg.objective,
      cfg.optimizer.transform(cfg.num_steps),
      cfg.micro_tokens,
      cfg.skip_constant_groups,
      cfg.update == 'pmap',
    )
    self.step = 0
    self.state = self.learner.init(loaded.params)
    self.reference: Params = {}
    self._replace_reference()

  def advance(self, drawn: Sequence[tuple[int, base.Example]]):
    """One rollout of the prompts and an update for each of its minibatches.

    Returns:
      a row of metrics for each update, and a record for each completion.
    """
    cfg, clock = self.cfg, _Clock()
    prompts = evaluate.prompts(self.tokenizer, cfg.template, drawn)
    completions, usage = scheduler.generate(
      self.model,
      self.state.params,
      prompts,
      cfg.group_size,
      cfg.sampling(cfg.temperature, 1.0),
      eos_ids=self.tokenizer.eos_ids,
      seed=cfg.seed,
    )
    clock.lap('rollout')
    records = evaluate.score(
      self.pool, cfg.task, self.tokenizer, [e for _, e in drawn], completions
    )
    for record in records:
      record['reward'] = (
        cfg.accuracy_reward * record['accuracy']
        + cfg.format_reward * record['format']
      )
      if record['truncated'] and not cfg.reward_truncated:
        record['reward'] = 0.0
    rewards = np.array([r['reward'] for r in records], np.float32)
    groups = rewards.reshape(-1, cfg.group_size)
    advantages = np.asarray(
      losses.group_advantages(groups, cfg.objective.normalize_std)
    ).reshape(-1)
    clock.lap('score')
    rows = packing.Rows(
      prompts=[p.tokens for p in prompts],
      prompt_index=np.repeat(np.arange(len(prompts)), cfg.group_size),
      completions=[c.tokens for c in completions],
      old_logprobs=[c.logprobs for c in completions],
      ref_logprobs=None,
      advantages=advantages,
    )
    if cfg.kl_coef:
      rows = rows._replace(
        ref_logprobs=self.learner.logprobs(self.reference, rows)
      )
    clock.lap('reference')
    about = _describe(records, groups, usage)
    about |= {f'time/{k}_s': v for k, v in clock.laps.items()}
    # The order of minibatches is a function of seed and step.
    order = np.random.default_rng((cfg.seed, self.step)).permutation(
      len(prompts)
    )
    out = []
    for number, chosen in enumerate(np.split(order, cfg.steps_per_rollout)):
      self.state, row = self.learner.update(
        self.state, _subset(rows, chosen, cfg.group_size)
      )
      clock.lap('update')
      difference = {
        'policy/sampler_learner_mean': row.pop('policy/old_difference_mean'),
        'policy/sampler_learner_max': row.pop('policy/old_difference_max'),
      }
      if number == 0:  # later ones hold the updates in between as well
        about |= difference
      spent = sum(clock.laps.values())
      out.append(
        {
          'step': self.step,
          **about,
          **row,
          'time/update_s': clock.laps['update'] / (number + 1),
          'time/step_s': spent / (number + 1),
          'time/tokens_per_s': usage.tokens / spent,
        }
      )
      self.step += 1
      if self.step % cfg.reference_every == 0:
        self._replace_reference()
    return out, records

  def evaluate(
    self,
    split: str,
    num_problems: int,
    num_samples: int,
    on_progress: Callable[[int, int], None] | None = None,
  ):
    """Figures of the policy on held-out problems, and the generations."""
    cfg = self.cfg
    figures, generations = evaluate.measure(
      self.model,
      self.state.params,
      self.tokenizer,
      cfg.task,
      cfg.template,
      self.pool,
      evaluate.examples(cfg.task, split, num_problems),
      num_samples,
      cfg.sampling(cfg.eval_temperature, cfg.eval_top_p),
      cfg.seed + 1_000_003,  # noise that no rollout of the run has
      on_progress,
    )
    return {**figures, 'split': split, 'step': self.step}, generations

  def _replace_reference(self) -> None:
    if self.cfg.kl_coef:  # a copy: the update donates the policy's buffers
      self.reference = jax.tree.map(lambda x: x.copy(), self.state.params)


class _Run:
  """A run and its folder: checkpoints, metrics, evaluations, samples."""

  def __init__(self, cfg, loaded, pool, prompt_stream):
    self.cfg = cfg
    self.loop = Loop(cfg, loaded, pool)
    self.stream = prompt_stream
    self.store = checkpoint.Store(cfg.workdir)
    self.wall_s, self.began = 0.0, time.monotonic()
    self.commit = _commit()  # of the code that runs, not of a later one
    if self.store.latest() is not None:
      self._restore(self.store.latest())
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

  def _restore(self, step: int) -> None:
    loop = self.loop
    params, rest, facts = self.store.restore(
      step, loop.state.params, self._rest()
    )
    loop.state = learner.TrainState(params, rest['opt_state'])
    loop.reference = rest['reference']
    loop.step, self.wall_s = step, facts['wall_s']
    self.stream.set_state(facts['stream'])
    print(f'going on from the checkpoint of step {step}', flush=True)

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


class _Clock:
  """Seconds by part of a step."""

  def __init__(self):
    self.laps: dict[str, float] = {}
    self._last = time.perf_counter()

  def lap(self, name: str) -> None:
    now = time.perf_counter()
    self.laps[name] = self.laps.get(name, 0.0) + now - self._last
    self._last = now


def _subset(rows: packing.Rows, chosen, group_size: int) -> packing.Rows:
  """The groups of the chosen prompts."""
  places = (chosen[:, None] * group_size + np.arange(group_size)).reshape(-1)

  def pick(values):
    return None if values is None else [values[p] for p in places]

  return packing.Rows(
    prompts=[rows.prompts[c] for c in chosen],
    prompt_index=np.repeat(np.arange(len(chosen)), group_size),
    completions=pick(rows.completions),
    old_logprobs=pick(rows.old_logprobs),
    ref_logprobs=pick(rows.ref_logprobs),
    advantages=rows.advantages[places],
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
    'groups/zero_variance': float(np.mean(np.ptp(groups, axis=1) == 0)),
    'rollout/slot_use': usage.tokens / usage.computed,
  }


def _commit() -> str | None:
  """Commit of the source, where it is a checkout."""
  found = subprocess.run(
    ['git', '-C', os.path.dirname(__file__), 'rev-parse', 'HEAD'],
    capture_output=True,
    text=True,
    check=False,
  )
  return found.stdout.strip() or None


if __name__ == '__main__':
  from rlzero import grpo

  config.main(grpo)
