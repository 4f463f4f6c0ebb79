"""Settings of a GRPO run."""

import dataclasses
from typing import ClassVar, Literal

import jax

from rlzero import weights
from rlzero.models.config import ModelConfig
from rlzero.rl import learner
from rlzero.rl.objective import Objective
from rlzero.rollout.sampling import Sampling
from rlzero.runtime import sharding
from rlzero.runtime.fields import mutable_on_resume
from rlzero.scoring import reward_pool, rewards
from rlzero.tasks import base, countdown
from rlzero.text.template import Template
from rlzero.train import folders
from rlzero.train.optim import Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of a run; the defaults are the paper's for R1-Zero."""

  GIN_NAME: ClassVar[str] = 'rlzero.grpo.Config'  # `grpo.Config` in gin files

  workdir: str = mutable_on_resume()
  checkpoint: str = ''  # run or Hugging Face folder, GGUF; '' is the tiny base
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
  group_size: int = 16  # G, completions a prompt
  steps_per_rollout: int = 16  # minibatches, each one policy update
  max_len: int = 32_768  # tokens a completion
  max_prompt_len: int = 1024  # tokens
  temperature: float = 1.0  # T
  num_slots: int = mutable_on_resume(64)  # completions decoded at a time
  # Tokens between two looks at what has finished.
  decode_steps: int = mutable_on_resume(16)
  # Reward
  accuracy_reward: float = 1.0  # weight
  format_reward: float = 1.0  # weight
  # Weight of the share of the thought's words that are of `language`.
  language_reward: float = 0.0
  language: rewards.Target = 'prompt'
  # Weights of the task's further scores (its `parts`), by their names.
  part_rewards: dict[str, float] = dataclasses.field(default_factory=dict)
  reward_truncated: bool = True  # else completions cut at max_len earn nothing
  num_workers: int = mutable_on_resume(2)  # reward processes
  deadline_s: float = 5.0  # seconds a completion may take to score
  # Mixed with the task, whose share is 1; what is measured is the task.
  others: tuple[rewards.Scenario, ...] = ()
  preference_from_step: int = 0  # the first that reward models have a say in
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
  micro_tokens: int = mutable_on_resume(8192)  # completion tokens a microbatch
  # All sizes in the first step instead of each when it comes.
  compile_ahead: bool = mutable_on_resume(False)
  reference_every: int = 400  # steps between replacements of the reference
  dtype: Literal['float32', 'bfloat16'] = 'float32'  # of activations
  # Recompute layers whole in the backward pass.
  remat: bool = mutable_on_resume(False)
  # By a kernel, where the backend has one.
  fused_attention: bool = mutable_on_resume(True)
  skip_constant_groups: bool = True  # in updates without KL; saves time alone
  # Of models with experts: the step of the router's bias against the load of
  # its experts (gamma of DeepSeek-V3, 0 at the end of its pre-training), and
  # whether an update takes the experts that the rollout took.
  balance_speed: float = 0.0
  replay_routes: bool = False
  # Over the mesh, or a device each.
  update: Literal['jit', 'pmap'] = mutable_on_resume('jit')
  # Run
  num_steps: int = 10_400  # policy updates
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
      'preference_from_step': 0,
      'num_steps': 1,
      'save_every': 1,
      'keep_checkpoints': 1,
      'eval_every': 0,
      'eval_problems': 1,
      'eval_samples': 1,
      'final_problems': 0,
      'final_samples': 1,
      'keep_completions_every': 1,
      'balance_speed': 0,
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
    for name in (
      'num_steps',
      'eval_every',
      'reference_every',
      'preference_from_step',
    ):
      if getattr(self, name) % self.steps_per_rollout:
        raise ValueError(
          f'grpo.Config.{name} is {getattr(self, name)}, which '
          f'steps_per_rollout = {self.steps_per_rollout} does not divide; '
          'these things happen between rollouts, so choose a multiple.'
        )
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
        "that every device holds whole, so cut by `data` alone, or use 'jit'."
      )
    names = [scenario.task.name for scenario in self.scenarios]
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
  def leaves_out_constant_groups(self) -> bool:
    """Whether groups of equal rewards cost an update nothing."""
    return self.skip_constant_groups and not self.kl_coef

  @property
  def objective(self) -> Objective:
    paper = self.loss == 'grpo'
    return Objective(
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

  def computed(self, model: ModelConfig) -> ModelConfig:
    """A model as the run computes it."""
    return dataclasses.replace(
      model,
      dtype=self.dtype,
      remat=self.remat,
      fused_attention=self.fused_attention,
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
    )

  def sampling(
    self, temperature: float, top_p: float, keep_routes: bool = False
  ) -> Sampling:
    return Sampling(
      max_len=self.max_len,
      max_prompt_len=self.max_prompt_len,
      temperature=temperature,
      top_p=top_p,
      num_slots=self.num_slots,
      decode_steps=self.decode_steps,
      keep_routes=keep_routes,
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
  return folders.load_model(cfg.checkpoint or folders.embedded('tiny_base'))


def make_reward_pool(cfg: Config) -> reward_pool.RewardPool:
  """The processes that score the run's completions."""
  return reward_pool.RewardPool(
    {scenario.task.name: scenario.task for scenario in cfg.scenarios},
    cfg.template.kind,
    cfg.num_workers,
    cfg.deadline_s,
    max_chars=reward_pool.chars_of(cfg.max_len),
  )
