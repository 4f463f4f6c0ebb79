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
  # Of completions: geometric:MEAN in tokens, a run's folder, or a file of
  # numbers; '' is geometric with a quarter of max_len.
  lengths: str = ''
  at_step: int = 0  # the step whose limit of completions is planned
  prompt_len: int = 0  # tokens; 0 assumes max_prompt_len
  efficiency: float = 0.4  # share of the rooflines that a run reaches
  price: float = 0.0  # of an hour of a chip; 0 leaves the cost out
  compile: bool = True  # for TPUs; else arithmetic, in seconds
  fit: bool = True  # look for the largest microbatch and number of slots
  json: bool = False  # print one line of JSON alone

  def __post_init__(self):
    fields.check(
      self,
      prompt_len=at_least(0),
      at_step=at_least(0),
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
