"""Settings of a plan."""

import dataclasses
from typing import ClassVar

from rlzero.rl import settings
from rlzero.runtime import fields
from rlzero.runtime.fields import above, at_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Settings of a plan: the run, the devices, the assumptions.

  Raises:
    ValueError: something out of range.
  """

  SHORT_FLAGS: ClassVar[dict[str, str]] = {
    name: f'run.{path}' for name, path in settings.Config.SHORT_FLAGS.items()
  }

  run: settings.Config  # of the gin file
  topology: str  # v5e:4x4, v5p:4x4x4, v6e:8x8, h100:8, cpu (what is there)
  mean_len: int = 0  # tokens a completion; 0 assumes a quarter of max_len
  prompt_len: int = 0  # tokens; 0 assumes max_prompt_len
  efficiency: float = 0.4  # share of the rooflines that a run reaches
  price: float = 0.0  # of an hour of a chip; 0 leaves the cost out
  compile: bool = True  # for TPUs; else arithmetic, in seconds
  fit: bool = True  # look for the largest microbatch and number of slots
  json: bool = False  # print one line of JSON alone

  def __post_init__(self):
    fields.check(
      self,
      mean_len=at_least(0)
      .at_most(self.run.sampling.max_len)
      .because('sampling.max_len'),
      prompt_len=at_least(0),
      efficiency=above(0).at_most(1),
      price=at_least(0),
    )
    if not self.run.model:
      raise ValueError(
        'plan.Config.run has no model; set grpo.Config.model to the shape of '
        'the checkpoint, as configs/runs/r1_zero_qwen2p5_1p5b.gin does.'
      )
    if self.run.update == 'pmap':
      raise ValueError(
        "plan.Config.run has update = 'pmap'; only 'jit' is planned."
      )
    if self.run.rollout_mesh is not None:
      raise ValueError(
        f'plan.Config.run has rollout_mesh = {self.run.rollout_mesh}; only '
        'runs with one layout are planned, so set it to None.'
      )

  @property
  def assumed_len(self) -> int:
    return self.mean_len or max(self.run.sampling.max_len // 4, 1)
