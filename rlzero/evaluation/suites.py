"""Suites: what is measured together, with how many samples, and how.

A suite is a list of benchmarks. Those with names are here; one of your own is
`evaluate.Config.benchmarks` in a gin file.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from rlzero.rollout.sampling import Sampling
from rlzero.runtime import fields
from rlzero.runtime.fields import above, at_least
from rlzero.tasks import base, execute
from rlzero.tasks.datasets import benchmarks, code, gsm8k
from rlzero.text.template import Template

# arXiv 2501.12948, section 3: T = 0.6, top-p 0.95, 32,768 tokens.
PAPER = Sampling(
  temperature=0.6, top_p=0.95, max_len=32_768, max_prompt_len=8192
)
BOXED = (
  '\nPlease reason step by step, and put your final answer within \\boxed{}.'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
  """One evaluation set and how a model is asked.

  Raises:
    ValueError: a number out of range.
  """

  task: base.Task
  template: Template = Template('chat')
  num_samples: int = 16  # k, completions a problem
  sampling: Sampling = PAPER
  split: str = 'test'
  num_problems: int = 0  # 0 takes all of the split
  deadline_s: float = 5.0  # seconds that one verdict may take

  def __post_init__(self):
    fields.check(
      self,
      num_samples=at_least(1),
      num_problems=at_least(0),
      deadline_s=above(0),
    )

  @property
  def name(self) -> str:
    return self.task.name


def _paper(math: Template, other: Template) -> tuple[Benchmark, ...]:
  """The paper's benchmarks, and its k for each (section 3)."""
  programs: dict[str, Any] = dict(template=other, deadline_s=execute.DEADLINE_S)
  return (
    Benchmark(task=benchmarks.AIME(2024), template=math, num_samples=64),
    Benchmark(task=benchmarks.AIME(2025), template=math, num_samples=64),
    Benchmark(task=benchmarks.MATH500(), template=math, num_samples=16),
    Benchmark(task=benchmarks.GPQADiamond(), template=other, num_samples=64),
    Benchmark(task=gsm8k.GSM8K(), template=math, num_samples=16),
    Benchmark(task=code.LiveCodeBench(), num_samples=8, **programs),
    Benchmark(task=code.Codeforces(), num_samples=16, **programs),
  )


def _r1() -> tuple[Benchmark, ...]:
  return _paper(Template('chat', suffix=BOXED), Template('chat'))


def _r1_zero() -> tuple[Benchmark, ...]:
  return _paper(Template('r1_zero'), Template('r1_zero'))


# Chat models are asked as R1 is, base models under R1-Zero's template.
SUITES: dict[str, Callable[[], tuple[Benchmark, ...]]] = {
  'r1': _r1,
  'r1_zero': _r1_zero,
}


def named(name: str) -> tuple[Benchmark, ...]:
  """The benchmarks of a suite.

  Raises:
    ValueError: no such suite.
  """
  if name not in SUITES:
    raise ValueError(
      f'There is no suite {name!r}; choose one of {", ".join(SUITES)}, or list '
      'evaluate.Config.benchmarks in a gin file.'
    )
  return SUITES[name]()
