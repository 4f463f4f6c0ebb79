"""Settings of a GRPO run."""

import dataclasses
from typing import ClassVar, Literal

import jax

from rlzero import weights
from rlzero.models.config import ModelConfig
from rlzero.models.lora import Adapter
from rlzero.monitoring.alerts import Thresholds
from rlzero.rl import learner, objective
from rlzero.rl.objective import Objective
from rlzero.rollout import sampling
from rlzero.rollout.sampling import Sampling
from rlzero.runtime import fields, profiling, sharding
from rlzero.runtime.fields import (
  above,
  at_least,
  grows_on_resume,
  mutable_on_resume,
)
from rlzero.scoring import reward_pool, rewards, truncation
from rlzero.tasks import base, countdown
from rlzero.tasks.datasets.curriculum import Curriculum
from rlzero.text.template import Template
from rlzero.train import folders, optim
from rlzero.train.optim import Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of a run; the defaults are the paper's for R1-Zero."""

  GIN_NAME: ClassVar[str] = 'rlzero.grpo.Config'  # `grpo.Config` in gin files
  # Flags for fields of what the settings below hold: `--kl_coef=0`.
  SHORT_FLAGS: ClassVar[dict[str, str]] = {
    **sampling.SHORT_FLAGS,
    **objective.SHORT_FLAGS,
    **optim.SHORT_FLAGS,
  }

  workdir: str = mutable_on_resume()
  # Run or Hugging Face folder, GGUF file; '' is the tiny base. It may move:
  # what it holds is compared when a run resumes.
  checkpoint: str = mutable_on_resume('')
  # The shape that the checkpoint has, where a plan needs to know without it.
  model: ModelConfig | None = None
  task: base.Task = countdown.Countdown()
  template: Template = Template('r1_zero')
  # One device by default.
  mesh: sharding.Mesh = mutable_on_resume(sharding.Mesh())
  # Another layout of the same devices for rollouts; None takes the update's.
  rollout_mesh: sharding.Mesh | None = mutable_on_resume(None)
  # Rollout
  num_prompts: int = 32  # prompts a step
  group_size: int = 16  # G, completions a prompt that are learned from
  # Completions sampled of a prompt, of which the G whose rewards spread most
  # are learned from; 0 samples G.
  samples_per_prompt: int = 0
  # Rounds of prompts that a rollout may take, until it has enough groups whose
  # verified outcomes differ (dynamic sampling); 1 takes the first as it is.
  max_rounds: int = 1
  # Draws problems more often whose pass rate is near 1/2.
  curriculum: Curriculum = Curriculum()
  steps_per_rollout: int = 16  # minibatches, each one policy update
  # Times that each of them is learned from, in another order each time.
  epochs_per_rollout: int = 1
  sampling: Sampling = grows_on_resume(
    Sampling(max_len=32_768, max_prompt_len=1024), 'max_prompt_len'
  )
  # Other limits of completions from some steps on: {8200: 65536} takes the
  # place of sampling.max_len from step 8,200 (what the paper does).
  max_len_from: dict[int, int] = dataclasses.field(default_factory=dict)
  # Reward
  accuracy_reward: float = 1.0  # weight
  format_reward: float = 1.0  # weight
  # Weight of the share of the thought's words that are of `language`.
  language_reward: float = 0.0
  language: rewards.Target = 'prompt'
  # Weights of the task's further scores (its `parts`), by their names.
  part_rewards: dict[str, float] = dataclasses.field(default_factory=dict)
  # Completions cut at max_len are scored as they are, earn nothing, or are
  # masked out of the loss.
  truncated: truncation.Treatment = 'scored'
  # Tokens below max_len over which a penalty grows from 0 to 1; 0 has none.
  overlong_buffer: int = 0
  overlong_penalty: float = 1.0  # weight
  num_workers: int = mutable_on_resume(2)  # reward processes
  deadline_s: float = 5.0  # seconds a completion may take to score
  # Mixed with the task, whose share is 1; what is measured is the task.
  others: tuple[rewards.Scenario, ...] = ()
  preference_from_step: int = 0  # the first that reward models have a say in
  # Update
  # Trained in place of the model, which is then its frozen base; None trains
  # all parameters.
  adapter: Adapter | None = None
  objective: Objective = Objective()
  optimizer: Optimizer = Optimizer(learning_rate=3e-6)
  micro_tokens: int = mutable_on_resume(8192)  # completion tokens a microbatch
  # All sizes in the first step instead of each when it comes.
  compile_ahead: bool = mutable_on_resume(False)
  reference_every: int = 400  # steps between replacements of the reference
  dtype: Literal['float32', 'bfloat16'] = 'float32'  # of activations
  # Recompute layers whole in the backward pass.
  remat: bool = mutable_on_resume(False)
  # By a kernel, where the backend has one.
  fused_attention: bool = mutable_on_resume(True)
  # Where nothing but time depends on them: without KL and balance_speed.
  skip_constant_groups: bool = True
  # Of models with experts: the step of the router's bias against the load of
  # its experts (gamma of DeepSeek-V3, 0 at the end of its pre-training), and
  # whether an update takes the experts that the rollout took.
  balance_speed: float = 0.0
  replay_routes: bool = False
  # Over the mesh, or a device each.
  update: Literal['jit', 'pmap'] = mutable_on_resume('jit')
  # Run
  num_steps: int = grows_on_resume(10_400)  # policy updates
  seed: int = 0
  save_every: int = mutable_on_resume(16)  # steps
  keep_checkpoints: int = mutable_on_resume(2)  # the newest
  # Steps; 0 evaluates before and after only.
  eval_every: int = mutable_on_resume(160)
  eval_problems: int = 64  # of the validation split, during the run
  eval_samples: int = 16  # completions a problem, during the run
  final_split: str = 'test'  # evaluated before and after
  final_problems: int = 0  # 0 takes all of it
  final_samples: int = 16
  eval_temperature: float = 0.6
  eval_top_p: float = 0.95
  # Steps between kept samples.
  keep_completions_every: int = mutable_on_resume(10)
  # Of kept samples, how many also keep what is known of each token, for the
  # live page; it takes a forward pass, and about 40 bytes a token.
  keep_tokens: int = mutable_on_resume(0)
  # Of a device, for `perf/*`: FLOP/s and bytes/s of memory; 0 takes what its
  # maker publishes, where `costs/hardware.py` lists it.
  device_flops: float = mutable_on_resume(0.0)
  device_bandwidth: float = mutable_on_resume(0.0)
  # '3:5' writes a trace of steps 3 and 4 into the folder `profile`.
  profile_steps: str = mutable_on_resume('')
  # What the metrics of a run must not show.
  alerts: Thresholds = mutable_on_resume(Thresholds())

  def __post_init__(self):
    fields.check(
      self,
      num_prompts=at_least(1),
      group_size=at_least(2).because(
        'a group of one has no one to be compared with'
      ),
      samples_per_prompt=at_least(self.group_size).or_else(0, 'group_size'),
      max_rounds=at_least(1),
      overlong_buffer=at_least(0).at_most(self.sampling.max_len),
      overlong_penalty=at_least(0),
      steps_per_rollout=at_least(1),
      epochs_per_rollout=at_least(1),
      num_workers=at_least(1),
      deadline_s=above(0),
      preference_from_step=at_least(0),
      micro_tokens=at_least(1),
      reference_every=at_least(1),
      balance_speed=at_least(0),
      num_steps=at_least(1),
      seed=fields.SEED,
      save_every=at_least(1),
      keep_checkpoints=at_least(1),
      eval_every=at_least(0),
      eval_problems=at_least(1),
      eval_samples=at_least(1),
      final_problems=at_least(0),
      final_samples=at_least(1),
      eval_temperature=at_least(0).because('0 is greedy'),
      eval_top_p=above(0).at_most(1),
      keep_completions_every=at_least(1),
      keep_tokens=at_least(0),
      device_flops=at_least(0),
      device_bandwidth=at_least(0),
    )
    profiling.parse(self.profile_steps, 'grpo.Config.profile_steps')
    self._check_sampling()
    self._check_limits()
    self._check_steps()
    self._check_meshes()
    self._check_tasks()
    optim.check_adapter(self.adapter, self.optimizer)
    if self.adapter and self.balance_speed:
      raise ValueError(
        f'grpo.Config.balance_speed is {self.balance_speed} with an adapter; '
        'it moves the routers of the base, which is frozen, so set it to 0.'
      )

  def _check_sampling(self) -> None:
    if self.sampling.temperature == 0:
      raise ValueError(
        'grpo.Config.sampling.temperature is 0; it must be above 0, or all '
        'completions of a group are the same.'
      )
    if self.sampling.top_p != 1:
      raise ValueError(
        f'grpo.Config.sampling.top_p is {self.sampling.top_p}; it must be 1, '
        'since the update compares log-probs of the whole distribution.'
      )

  def _check_limits(self) -> None:
    for step, limit in self.max_len_from.items():
      if step < 1 or step % self.updates_per_rollout or limit < 1:
        raise ValueError(
          f'grpo.Config.max_len_from has {step}: {limit}; a limit is at least '
          '1 token, and begins with a rollout: at a multiple of '
          f'{self.updates_per_rollout} steps (steps_per_rollout x '
          'epochs_per_rollout) from 1 on.'
        )
      if limit < self.overlong_buffer:
        raise ValueError(
          f'grpo.Config.max_len_from has {step}: {limit}, and overlong_buffer '
          f'is {self.overlong_buffer}; it must fit into every limit, so lower '
          'it.'
        )

  def _check_steps(self) -> None:
    for name in (
      'num_steps',
      'eval_every',
      'reference_every',
      'preference_from_step',
    ):
      if getattr(self, name) % self.updates_per_rollout:
        raise ValueError(
          f'grpo.Config.{name} is {getattr(self, name)}, which '
          f'steps_per_rollout = {self.steps_per_rollout}, '
          f'epochs_per_rollout = {self.epochs_per_rollout} times, does not '
          'divide; these things happen between rollouts, so choose a multiple.'
        )

  def _check_meshes(self) -> None:
    if self.rollout_mesh is not None and self.mesh == sharding.Mesh():
      raise ValueError(
        f'grpo.Config.rollout_mesh is {self.rollout_mesh}, but mesh has one '
        'device; both must be layouts of the same devices.'
      )
    if self.update == 'pmap' and self.mesh != sharding.Mesh(
      data=self.mesh.data
    ):
      raise ValueError(
        f"grpo.Config.update is 'pmap' with mesh {self.mesh}; it is for models "
        "that every device holds whole, so shard by `data` alone, or use 'jit'."
      )

  def _check_tasks(self) -> None:
    names = [scenario.task.name for scenario in self.scenarios]
    paid = any(scenario.accuracy_reward for scenario in self.scenarios)
    if self.max_rounds > 1 and not paid:
      raise ValueError(
        f'grpo.Config.max_rounds is {self.max_rounds}, but accuracy_reward is '
        '0, so no group has a verified outcome to go by; set max_rounds to 1.'
      )
    if len({*names}) < len(names):
      raise ValueError(
        f'grpo.Config.others makes the tasks {", ".join(names)}; each needs a '
        'name of its own.'
      )
    for scenario in self.scenarios:
      if scenario.format_reward and not self.template.has_format:
        raise ValueError(
          f'grpo.Config.format_reward is {scenario.format_reward}, but '
          f'template {self.template.kind!r} has no format to reward; set it '
          'to 0.'
        )

  def at(self, step: int) -> 'Config':
    """The settings with the limit of completions that a step has."""
    begun = [first for first in self.max_len_from if first <= step]
    if not begun:
      return self
    limit = self.max_len_from[max(begun)]
    sampling = dataclasses.replace(self.sampling, max_len=limit)
    return dataclasses.replace(self, sampling=sampling)

  @property
  def longest_len(self) -> int:
    """The largest limit that the completions of the run have, in tokens."""
    return max(self.sampling.max_len, *self.max_len_from.values(), 0)

  @property
  def scenarios(self) -> tuple[rewards.Scenario, ...]:
    """The task and the others, with the weights of their rewards."""
    own = rewards.Scenario(
      task=self.task,
      accuracy_reward=self.accuracy_reward,
      format_reward=self.format_reward,
      language_reward=self.language_reward,
      part_rewards=self.part_rewards,
    )
    return own, *self.others

  @property
  def num_samples(self) -> int:
    """N, completions that are sampled of a prompt."""
    return self.samples_per_prompt or self.group_size

  @property
  def updates_per_rollout(self) -> int:
    """Policy updates before the next rollout."""
    return self.steps_per_rollout * self.epochs_per_rollout

  @property
  def leaves_out_constant_groups(self) -> bool:
    """Whether groups of equal rewards cost an update nothing."""
    skips = self.objective.only_advantages and not self.balance_speed
    # Other baselines, and a KL, give them advantages.
    flat = self.objective.baseline in ('group_mean', 'leave_one_out') and not (
      self.objective.kl_coef
    )
    return self.skip_constant_groups and skips and flat

  def with_runtime_options(self, model: ModelConfig) -> ModelConfig:
    """A model as the run computes it: dtype, remat and kernels."""
    return dataclasses.replace(
      model,
      dtype=self.dtype,
      remat=self.remat,
      fused_attention=self.fused_attention,
      adapter_scale=self.adapter.scale if self.adapter else 1.0,
    )

  def make_learner(self, model: ModelConfig) -> learner.Learner:
    """The compiled functions of the update."""
    return learner.Learner(
      model,
      self.objective,
      self.optimizer.transform(self.num_steps),
      self.micro_tokens,
      self.skip_constant_groups,
      self.update == 'pmap',
      self.balance_speed,
      self.sampling,
    )

  @property
  def rollout_sampling(self) -> Sampling:
    """How the completions of a rollout are sampled."""
    return dataclasses.replace(self.sampling, keep_routes=self.replay_routes)

  @property
  def eval_sampling(self) -> Sampling:
    """How the completions of an evaluation are sampled."""
    return dataclasses.replace(
      self.sampling, temperature=self.eval_temperature, top_p=self.eval_top_p
    )


def table(cfg: Config, num_examples: int) -> str:
  """Derives the numbers of a run from its settings: rows, updates, tokens."""
  rows = cfg.num_prompts * cfg.group_size
  rollouts = cfg.num_steps // cfg.updates_per_rollout
  prompts = cfg.num_prompts * cfg.steps_per_rollout * rollouts
  tokens = prompts * cfg.max_rounds * cfg.num_samples * cfg.longest_len
  devices = 1 if cfg.mesh == sharding.Mesh() else jax.device_count()
  lines: dict[str, object] = {
    'devices': f'{devices} of {jax.device_count()}'
    + (
      ' (`mesh` says how to use more)' if devices < jax.device_count() else ''
    ),
    'prompts a step x completions a prompt': (
      f'{cfg.num_prompts} x {cfg.group_size} = {rows} rows'
    ),
    'minibatches x epochs (policy updates) a rollout': (
      f'{cfg.steps_per_rollout} x {cfg.epochs_per_rollout} = '
      f'{cfg.updates_per_rollout}'
    ),
  }
  if cfg.num_samples > cfg.group_size:
    lines['completions sampled a prompt'] = cfg.num_samples
  if cfg.max_rounds > 1:
    lines['rounds of prompts a rollout, at most'] = cfg.max_rounds
  lines |= {
    'rollouts x rows a rollout': (
      f'{rollouts} x {rows * cfg.steps_per_rollout}'
    ),
    'policy updates': cfg.num_steps,
    f'prompts in the run{", at least" * (cfg.max_rounds > 1)}': (
      f'{prompts} ({prompts / num_examples:.2f} epochs of {num_examples})'
    ),
    'completion tokens in the run, at most': f'{tokens:,}',
  }
  width = max(map(len, lines))
  return '\n'.join(f'{k:<{width}}  {v}' for k, v in lines.items())


def load_start(cfg: Config) -> weights.Loaded:
  """The model that the run starts from."""
  path = cfg.checkpoint or folders.embedded('tiny_base')
  return folders.load_to_train(path, cfg.optimizer, cfg.adapter)


def make_reward_pool(cfg: Config) -> reward_pool.RewardPool:
  """The processes that score the run's completions."""
  return reward_pool.RewardPool(
    {scenario.task.name: scenario.task for scenario in cfg.scenarios},
    cfg.template.kind,
    cfg.num_workers,
    cfg.deadline_s,
    max_chars=reward_pool.chars_of(cfg.longest_len),
  )
