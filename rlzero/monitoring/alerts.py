"""Alerts: signs in the metrics of a run that its training goes wrong.

`check` looks at the metrics of the steps so far and says what is wrong at the
last of them, a sentence each with what to do. A run calls it after each step,
its report for each step of the past. Alerts only read metrics; nothing that is
computed depends on them.

`rlzero/reporting/metric_names.py` says what the metrics mean.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from rlzero.monitoring import windows
from rlzero.monitoring.windows import Rows
from rlzero.runtime import fields
from rlzero.runtime.fields import above, at_least

_KL_FLOOR = 0.1  # nats; a smaller KL is no jump, whatever it was before


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alert:
  """Something that is wrong at a step."""

  name: str  # one of NAMES
  sentence: str  # what was found, and what to do
  step: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thresholds:
  """Thresholds of the alerts.

  Levels are means over the last `window` steps, and a change is that between
  the means of the first and the last `ends` steps. KL, ratio, log-prob
  differences, reward workers and a missing EOS are judged at each step.

  Raises:
    ValueError: a threshold out of range.
  """

  window: int = 10  # steps; nothing that is a level rings before
  ends: int = 5  # steps
  max_zero_variance: float = 0.8  # share of the groups
  max_truncated: float = 0.1  # share of the completions
  min_format_rise: float = 0.2  # of the share well formed
  # A change of the share of right answers that is taken for noise.
  accuracy_noise: float = 0.05
  # Steps that accuracy has to follow the format. In three good runs of 80
  # steps it had begun to rise at step 31.
  format_steps: int = 40
  # Against the longest and the shortest of the last 100 steps, while accuracy
  # does not rise.
  min_length_ratio: float = 0.5
  max_length_ratio: float = 3.0
  min_entropy: float = 0.05  # nats
  max_kl: float = 1.0  # nats a token
  max_kl_jump: float = 10.0  # times the median of the window
  max_ratio: float = 100.0  # of pi and pi_old, or its inverse, of any token
  max_log_ratio_mean: float = 0.1  # nats; half of the usual clip range
  max_clip_fraction: float = 0.2
  # Sampler and learner differ by rounding alone. In float32 that is 5e-6 in
  # the mean and 5e-5 at most on a model of 135M parameters, in bfloat16 8e-4
  # and 4e-2 on the tiny one. Ten times as much or more is a fault.
  max_mismatch_mean_float32: float = 1e-4  # nats
  max_mismatch_float32: float = 1e-3
  max_mismatch_mean_bfloat16: float = 1e-2
  max_mismatch_bfloat16: float = 0.5
  max_language_fall: float = 0.2  # of the share in the right language
  max_repetition: float = 0.2  # mean share of repeated 8-grams
  max_unscored: float = 0.05  # share of the completions
  # Median of the window, against the best median of the last 100 steps.
  min_throughput_ratio: float = 1 / 3

  def __post_init__(self):
    share = at_least(0).at_most(1)
    fields.check(
      self,
      window=at_least(1),
      ends=at_least(1),
      max_zero_variance=share,
      max_truncated=share,
      min_format_rise=share,
      accuracy_noise=share,
      format_steps=at_least(1),
      min_length_ratio=above(0).below(1),
      max_length_ratio=above(1),
      min_entropy=at_least(0),
      max_kl=above(0),
      max_kl_jump=above(1),
      max_ratio=above(1),
      max_log_ratio_mean=above(0),
      max_clip_fraction=share,
      max_mismatch_mean_float32=above(0),
      max_mismatch_float32=above(0),
      max_mismatch_mean_bfloat16=above(0),
      max_mismatch_bfloat16=above(0),
      max_language_fall=share,
      max_repetition=share,
      max_unscored=share,
      min_throughput_ratio=above(0).below(1),
    )


def check(
  rows: Rows, limits: Thresholds | None = None, dtype: str = 'float32'
) -> list[Alert]:
  """Says what is wrong at the last of the steps.

  Args:
    rows: the metrics of all steps so far; one that is None, NaN or absent is
      not known, and rings no alert.
    limits: the thresholds; the defaults if None.
    dtype: of activations, 'float32' or 'bfloat16'.
  """
  limits = limits or Thresholds()
  found = {name: alert(rows, limits) for name, alert in _ALERTS.items()} | {
    'sampler_learner': sampler_learner(rows, limits, dtype)
  }
  return [
    Alert(name=name, sentence=found[name], step=int(rows[-1]['step']))
    for name in NAMES
    if found[name]
  ]


# The alerts: each takes the steps so far and gives a sentence, or ''.


def zero_variance(rows: Rows, limits: Thresholds) -> str:
  """Groups of equal rewards have no advantage (arXiv 2501.12948, eq. 3)."""
  share = windows.level(rows, 'groups/zero_variance', limits.window)
  if not share > limits.max_zero_variance:
    return ''
  right = windows.level(rows, 'reward/correct', limits.window)
  easy = right > 0.5
  return (
    f'{share:.0%} of the groups of the last {limits.window} steps had equal '
    'rewards and taught nothing; '
    + (f'with {right:.0%} right, ' if math.isfinite(right) else '')
    + f'choose {"harder" if easy else "easier"} problems, raise group_size, '
    'or see docs/howto/problems_that_teach.md.'
  )


def truncation(rows: Rows, limits: Thresholds) -> str:
  """Completions are cut off; steps where all were are `no_eos`."""
  values = windows.last(rows, 'completion/truncated', limits.window)
  ended = values[values < 1]
  if len(values) < limits.window or not len(ended):
    return ''
  if not ended.mean() > limits.max_truncated:
    return ''
  return (
    f'{ended.mean():.0%} of the completions of the last {limits.window} '
    'steps were cut off; raise sampling.max_len, or set truncated to '
    "'zero', so that they earn nothing."
  )


def no_eos(rows: Rows, limits: Thresholds) -> str:
  """Not one completion of a step ended."""
  del limits
  if not windows.now(rows, 'completion/truncated') >= 1:
    return ''
  return (
    f'EOS was never emitted at step {rows[-1]["step"]}: every completion was '
    'cut off; check the eos_token_id of the tokenizer and the template, or '
    'raise sampling.max_len.'
  )


def format_only(rows: Rows, limits: Thresholds) -> str:
  """The format is learned, and nothing else."""
  if len(rows) < limits.format_steps:
    return ''
  form, right = (
    (
      windows.mean(windows.first(rows, name, limits.ends)),
      windows.level(rows, name, limits.window),
    )
    for name in ('reward/format', 'reward/correct')
  )
  rise = form[1] - form[0]
  if not (
    rise > limits.min_format_rise
    and right[1] - right[0] < limits.accuracy_noise
  ):
    return ''
  return (
    f'Only the format was learned ({form[0]:.2f} to {form[1]:.2f}) while '
    f'accuracy stayed flat ({right[0]:.2f} to {right[1]:.2f}); lower '
    'format_reward, or choose easier problems.'
  )


def length_collapse(rows: Rows, limits: Thresholds) -> str:
  """Completions become short, and no better."""
  before, now, gain = windows.length_change(rows, False, limits.ends)
  if not (
    now < limits.min_length_ratio * before and gain < limits.accuracy_noise
  ):
    return ''
  return (
    f'The length fell from {before:.0f} to {now:.0f} tokens and accuracy did '
    f'not rise ({gain:+.2f}); lower learning_rate, raise kl_coef, and read the '
    'samples in completions/.'
  )


def length_explosion(rows: Rows, limits: Thresholds) -> str:
  """Completions become long, and no better."""
  before, now, gain = windows.length_change(rows, True, limits.ends)
  if not (
    now > limits.max_length_ratio * before and gain < limits.accuracy_noise
  ):
    return ''
  return (
    f'The length rose from {before:.0f} to {now:.0f} tokens and accuracy did '
    f'not ({gain:+.2f}); lower learning_rate, raise kl_coef, and read the '
    'samples in completions/.'
  )


def entropy_collapse(rows: Rows, limits: Thresholds) -> str:
  """The policy hardly explores any more."""
  entropy = windows.level(rows, 'policy/entropy', limits.window)
  if not entropy < limits.min_entropy:
    return ''
  return (
    f'The entropy was {entropy:.3f} nats over the last {limits.window} '
    'steps, so the policy hardly explores; go back to an earlier checkpoint, '
    'and raise clip_high or lower learning_rate.'
  )


def kl(rows: Rows, limits: Thresholds) -> str:
  """The policy is far from the reference, or jumps away from it."""
  value = windows.now(rows, 'policy/kl')
  step, advice = rows[-1]['step'], 'lower learning_rate or raise kl_coef.'
  if not math.isfinite(value):
    return ''
  usual = float(np.median(windows.last(rows, 'policy/kl', limits.window + 1)))
  if value > max(_KL_FLOOR, limits.max_kl_jump * usual):
    return (
      f'The KL from the reference jumped to {value:.3g} at step {step}, from '
      f'about {usual:.2g}; {advice}'
    )
  if value > limits.max_kl:
    return (
      f'The KL from the reference was {value:.3g} nats a token at step {step}; '
      f'{advice}'
    )
  return ''


def ratio(rows: Rows, limits: Thresholds) -> str:
  """An update moves the policy further than its objective can follow."""
  largest = windows.now(rows, 'policy/log_ratio_max')
  mean = windows.now(rows, 'policy/log_ratio_mean')
  clipped = windows.now(rows, 'policy/clip_fraction')
  found = []
  if largest > math.log(limits.max_ratio):
    found.append(f'one token by a factor of {math.exp(min(largest, 700)):.3g}')
  if mean > limits.max_log_ratio_mean:
    found.append(f'tokens by {mean:.2g} nats in the mean')
  if clipped > limits.max_clip_fraction:
    found.append(f'{clipped:.0%} of the tokens out of the clip range')
  if not found:
    return ''
  return (
    f'At step {rows[-1]["step"]} the policy had moved away from the one that '
    f'sampled, {" and ".join(found)}; lower learning_rate or '
    'steps_per_rollout.'
  )


def sampler_learner(rows: Rows, limits: Thresholds, dtype: str) -> str:
  """The same weights give two answers, so ratios are wrong from the start."""
  most_mean, most = {
    'float32': (
      limits.max_mismatch_mean_float32,
      limits.max_mismatch_float32,
    ),
    'bfloat16': (
      limits.max_mismatch_mean_bfloat16,
      limits.max_mismatch_bfloat16,
    ),
  }[dtype]
  mean = windows.now(rows, 'policy/sampler_learner_mean')
  largest = windows.now(rows, 'policy/sampler_learner_max')
  if not (mean > most_mean or largest > most):
    return ''
  better = '' if dtype == 'float32' else 'set dtype to float32, or '
  return (
    f'At step {rows[-1]["step"]} the log-probs of sampler and learner differed '
    f'by {mean:.2g} nats in the mean and {largest:.2g} at most, more than the '
    f'rounding of {dtype} ({most_mean:g} and {most:g}); {better}for a model '
    'with experts set replay_routes, else report a bug.'
  )


def reward_model_gap(rows: Rows, limits: Thresholds) -> str:
  """The scores of reward models rise while those of the rule fall."""
  ends = limits.ends
  if math.isnan(windows.now(rows, 'reward/gap')):
    return ''
  judged = [r for r in rows if r.get('reward/gap') is not None]
  if len(judged) < 2 * ends:
    return ''

  def change(name):
    first, last = judged[:ends], judged[-ends:]
    return windows.mean([r[name] for r in last]) - windows.mean(
      [r[name] for r in first]
    )

  rise, fall = change('reward/model'), -change('reward/rule')
  if not (rise > 0 and fall > limits.accuracy_noise):
    return ''
  return (
    f'The reward models say {rise:.3f} more than when they began, and the rule '
    f'{fall:.3f} less of the same completions, so the policy may be gaming '
    'them; lower the weight of the preferences, raise kl_coef or stop earlier.'
  )


def language_drift(rows: Rows, limits: Thresholds) -> str:
  """Thoughts leave the language that they should have."""
  before = windows.mean(windows.first(rows, 'completion/language', limits.ends))
  now = windows.level(rows, 'completion/language', limits.window)
  if not before - now > limits.max_language_fall:
    return ''
  return (
    f'{now:.0%} of the words of a thought were in its language over the last '
    f'{limits.window} steps, {before:.0%} in the first; raise '
    'language_reward.'
  )


def repetition(rows: Rows, limits: Thresholds) -> str:
  """Completions say the same again and again."""
  share = windows.level(rows, 'completion/repetition', limits.window)
  if not share > limits.max_repetition:
    return ''
  return (
    f'{share:.0%} of the 8-grams of a completion had stood in it before, over '
    f'the last {limits.window} steps; lower learning_rate, set '
    "truncated to 'zero', and read the samples in completions/."
  )


def worker_failures(rows: Rows, limits: Thresholds) -> str:
  """Completions that reward workers could not score earn 0."""
  share = windows.now(rows, 'completion/unscored')
  if not share > limits.max_unscored:
    return ''
  kinds = ', '.join(
    f'{value:.0%} {name}'
    for name in ('timeout', 'crash', 'junk')
    if (value := windows.now(rows, f'scoring/{name}')) > 0
  )
  return (
    f'{share:.0%} of the completions of step {rows[-1]["step"]} could not be '
    f'scored and earned 0{kinds and f" ({kinds})"}; check '
    'the verifier of the task, or raise deadline_s or num_workers.'
  )


def throughput(rows: Rows, limits: Thresholds) -> str:
  """Steps take far longer than they did."""
  width = limits.window
  values = windows.last(
    rows, 'time/tokens_per_s', max(windows.HORIZON, 2 * width)
  )
  if len(values) < 2 * width:
    return ''
  medians = np.median(
    np.lib.stride_tricks.sliding_window_view(values, width), axis=1
  )
  best, now = float(medians.max()), float(medians[-1])
  if not now < limits.min_throughput_ratio * best:
    return ''
  return (
    f'Throughput fell from {best:.0f} to {now:.0f} tokens per second; look for '
    'other programs on the machine, slow disks, recompilation, or slow '
    'verifiers (time/*).'
  )


_ALERTS: dict[str, Callable[[Rows, Thresholds], str]] = {
  alert.__name__: alert
  for alert in (
    zero_variance,
    truncation,
    no_eos,
    format_only,
    length_collapse,
    length_explosion,
    entropy_collapse,
    kl,
    ratio,
    reward_model_gap,
    language_drift,
    repetition,
    worker_failures,
    throughput,
  )
}
NAMES = (*_ALERTS, 'sampler_learner')
