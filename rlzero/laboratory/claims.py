"""A claim is that one run differs from another, and how; runs say if it does.

A verdict is drawn from the differences of the seeds: their mean's 95% interval
(Student's t), against 0 and against the smallest difference that would matter.
"""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from rlzero.evaluation import statistics
from rlzero.reporting import metric_names, web_page
from rlzero.runtime import fields, metrics, naming

Verdict = Literal['holds', 'does not hold', 'cannot tell']

_WHEN = 'before', 'after'
_LAST_STEPS = 10  # over which a metric of training is averaged


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
  """That a figure is higher than, lower than or the same as another.

  A figure is a key of `summary.json`, such as `pass@1_after`, or a metric of
  training, such as `policy/entropy`, as its mean over the last ten steps.
  """

  GIN_NAME: ClassVar[str] = 'rlzero.lab.Claim'

  name: str
  statement: str  # one sentence
  source: str  # who claims it, and where
  arm: str  # gin file of a run of rlzero.grpo
  # The run that it is compared with; '' is `arm`, with `control_figure`, or 0
  # where that is not given.
  control: str = ''
  figure: str
  control_figure: str = ''  # '' is `figure`
  expected: Literal['higher', 'lower', 'same']
  margin: float  # the smallest difference that would matter
  note: str = ''  # what a reader should know to judge the verdict
  picture: str = 'reward/correct'  # the metric that is drawn over training

  def __post_init__(self):
    fields.check(self, margin=fields.above(0))
    for field in 'figure', 'control_figure', 'picture':
      self._check_figure(field)

  def _check_figure(self, field: str) -> None:
    name = getattr(self, field)
    known = [f'{n}_{when}' for n in web_page.SUMMARY for when in _WHEN]
    if field == 'control_figure':
      known.append('')
    if field == 'picture':
      known = []
    if name not in known and ('/' not in name or not metric_names.find(name)):
      raise ValueError(
        f'lab.Claim.{field} of {self.name!r} is {name!r}; it must be a metric '
        f'such as policy/entropy{naming.near(name, metric_names.METRICS)}'
        + (f', or one of {", ".join(filter(None, known))}.' if known else '.')
      )

  @property
  def arms(self) -> list[str]:
    """Both runs; one where it is compared with itself."""
    return [self.control, self.arm] if self.control else [self.arm]


def name_of(arm: str) -> str:
  """The name of the gin file of a run, without folder and ending."""
  return os.path.splitext(os.path.basename(arm))[0]


def folder_of(arm: str, seed: int) -> str:
  """The name of the folder of a run."""
  return f'{name_of(arm)}_{seed}'


class Finding(NamedTuple):
  """The answer of the runs to a claim; values in the order of the seeds."""

  values: list[float]  # of the arm
  control: list[float]
  difference: dict[str, float]  # mean, and low and high of several seeds
  verdict: Verdict


def find(claim: Claim, workdir: str, seeds: Sequence[int]) -> Finding:
  """Reads the figures of finished runs and judges the claim by them.

  Args:
    claim: the claim.
    workdir: of the laboratory, with a folder for each run.
    seeds: of the runs that are finished.
  """

  def read(arm: str, figure: str) -> list[float]:
    folders = [os.path.join(workdir, folder_of(arm, seed)) for seed in seeds]
    return [read_figure(folder, figure) for folder in folders]

  values = read(claim.arm, claim.figure)
  control = [0.0] * len(seeds)
  if claim.control or claim.control_figure:
    figure = claim.control_figure or claim.figure
    control = read(claim.control or claim.arm, figure)
  difference = statistics.mean_interval(np.subtract(values, control))
  verdict = judge(difference, claim.expected, claim.margin)
  return Finding(values, control, difference, verdict)


def judge(
  difference: dict[str, float],
  expected: Literal['higher', 'lower', 'same'],
  margin: float,
) -> Verdict:
  """Draws the verdict on a claim from an interval.

  A difference is there if the interval leaves out 0, and does not matter if
  the interval lies below the margin. Of one seed nothing can be told, nor where
  a run does not have the figure.

  Args:
    difference: of the arm from its control, as `mean_interval` returns it.
    expected: what is claimed of it.
    margin: the smallest difference that would matter.
  """
  if 'low' not in difference:
    return 'cannot tell'
  low, high = difference['low'], difference['high']
  if expected == 'same':
    if -margin < low and high < margin:
      return 'holds'
    return (
      'does not hold' if low >= margin or high <= -margin else 'cannot tell'
    )
  if expected == 'lower':
    low, high = -high, -low
  if high < margin:
    return 'does not hold'
  return 'holds' if low > 0 else 'cannot tell'


def read_figure(folder: str, figure: str) -> float:
  """Reads a figure of a finished run; see `Claim`.

  NaN where the run does not have it: a policy that has collapsed has steps
  without an entropy, say.
  """
  if '/' in figure:
    rows = metrics.read_metrics(folder)[-_LAST_STEPS:]
    # A step in which no completion has the metric has none, or NaN.
    known = [
      row[figure]
      for row in rows
      if row.get(figure) is not None and math.isfinite(row[figure])
    ]
    return float(np.mean(known)) if known else math.nan
  with open(os.path.join(folder, 'summary.json'), encoding='utf-8') as file:
    value = json.load(file).get(figure)
  return math.nan if value is None else value
