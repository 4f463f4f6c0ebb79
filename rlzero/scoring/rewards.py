"""Assigns rewards: rules by task, and reward models beside them.

The reward of a completion is the weighted sum of the rules of its scenario
(arXiv 2501.12948, sections 2.2.2 and 2.3.2) and, from a step on, of what the
scenario's reward models say (section 2.3.4). A model's score goes through a
sigmoid first: it is then in (0, 1), as the rules are, and a policy that finds
an input on which the model is wildly wrong gains little by it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from rlzero.runtime import fields
from rlzero.runtime.fields import above
from rlzero.scoring import reward_model, truncation
from rlzero.tasks import base, execute
from rlzero.text import language

Target = Literal['prompt', 'en', 'zh']  # 'prompt': the language it is asked in


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preference:
  """A reward model of `rlzero.reward_model`, and its weight."""

  checkpoint: str
  weight: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenario:
  """A task, its share of the prompts and the weights of its rewards."""

  task: base.Task
  share: float = 1.0  # of the prompts, beside the shares of the others
  accuracy_reward: float = 1.0  # weight
  format_reward: float = 1.0  # weight
  language_reward: float = 0.0  # weight
  # Weights of the task's further scores (its `parts`), by their names.
  part_rewards: dict[str, float] = dataclasses.field(default_factory=dict)
  preferences: tuple[Preference, ...] = ()

  def __post_init__(self):
    fields.check(self, share=above(0))
    known = getattr(self.task, 'part_names', None)
    if known is not None:
      for name in self.part_rewards.keys() - set(known):
        raise ValueError(
          f'Scenario.part_rewards weighs {name!r}, and the further rewards of '
          f'task {self.task.name!r} are {", ".join(known) or "none"}; name one '
          'of them, or add it to Table.rewards.'
        )


def assign(cfg: Any, records: Sequence[dict[str, Any]]) -> None:
  """Sets the `reward` of each record, by the scenarios of a `grpo.Config`.

  It is None where nothing that the task pays for applies to the completion.
  """
  scenarios = {scenario.task.name: scenario for scenario in cfg.scenarios}
  for record in records:
    scenario = scenarios[record['task']]
    if not cfg.overlong_buffer and is_unjudged(scenario, record):
      record['reward'] = None
      continue
    reward = total(scenario, record, cfg.language)
    if not truncation.earns(cfg.truncated, record['truncated']):
      reward = 0.0
    if cfg.overlong_buffer:
      record['length_penalty'] = truncation.length_penalty(
        record['len'], cfg.sampling.max_len, cfg.overlong_buffer
      )
      reward += cfg.overlong_penalty * record['length_penalty']
    record['reward'] = reward


def total(
  scenario: Scenario, record: Mapping[str, Any], target: Target = 'prompt'
) -> float:
  """Sums the weighted scores of a completion to its reward.

  Args:
    scenario: of the completion's task.
    record: of the completion, as `grade.score` makes it; `preference`, if
      there, is the weighted sum of what reward models say.
    target: language of the thought.
  """
  return (
    scenario.accuracy_reward * record['accuracy']
    + scenario.format_reward * record['format']
    + scenario.language_reward * consistency(record, target)
    + sum(w * _part(record, name) for name, w in scenario.part_rewards.items())
    + record.get('preference', 0.0)
  )


def is_unjudged(scenario: Scenario, record: Mapping[str, Any]) -> bool:
  """Whether nothing that a task pays for applies.

  Functions can say so, and a task may be left to reward models. A completion
  whose verification failed is judged: it earns 0.
  """
  if record['status'] != 'ok' or 'preference' in record:
    return False
  if scenario.format_reward or scenario.language_reward:
    return False
  applies = [
    record['parts'].get(name, 0.0) is not None  # None: does not apply
    for name, weight in scenario.part_rewards.items()
    if weight
  ]
  if scenario.accuracy_reward:
    applies.append(record.get('applies', True))
  return not any(applies)


def consistency(record: Mapping[str, Any], target: Target = 'prompt') -> float:
  """Share of the thought's words that are of the target language; 0 of none."""
  if not record['words']:  # not judged
    return 0.0
  if target == 'prompt':
    target = language.detect(record['question'])
  return language.share(record['words'], target)


def readable_consistency(record: Mapping[str, Any], target: Target) -> float:
  """`consistency`, but 1 for a thought that has no words to read."""
  if not any(record['words'].values()):
    return 1.0  # a formula is in no language, and easily read
  return consistency(record, target)


def _part(record: Mapping[str, Any], name: str) -> float:
  """A further score of a completion; 0 where none was given or applies."""
  if record['status'] == 'ok' and name not in record['parts']:
    raise ValueError(
      f'grpo.Config.part_rewards has {name!r}, but the parts that the task '
      f'judges are {", ".join(record["parts"]) or "none"}; name one of them.'
    )
  return record['parts'].get(name) or 0.0


def describe(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Metrics of a rollout's rewards, by task where there are several.

  `reward/model` is what the reward models say. `reward/gap` is that less what
  the rule says, both in [0, 1], over the completions that have both: the one
  can be gamed, and the other not. `program/accepted` and its like are shares of
  the programs that ended so.
  """
  judged = [r for r in records if 'preference_mean' in r]
  tasks = sorted({r['task'] for r in records})
  metrics = {'reward/language': _mean(map(consistency, records))}
  metrics |= truncation.describe(records)
  for name in tasks if len(tasks) > 1 else ():
    own = [r for r in records if r['task'] == name]
    judged_own = [r['reward'] for r in own if r['reward'] is not None]
    metrics[f'{name}/reward'] = _mean(judged_own)
    metrics[f'{name}/correct'] = _mean(
      r['correct'] for r in own if r.get('applies', True)
    )
    metrics[f'{name}/len_mean'] = _mean(r['len'] for r in own)
  outcomes = [r['outcome'] for r in records if r.get('outcome')]
  for verdict in execute.Verdict if outcomes else ():
    metrics[f'program/{verdict}'] = _mean(o == verdict for o in outcomes)
  if judged:
    metrics['reward/model'] = _mean(r['preference_mean'] for r in judged)
  if both := [r for r in judged if r.get('applies', True)]:
    rule = _mean(r['correct'] for r in both)
    metrics['reward/rule'] = rule
    metrics['reward/gap'] = _mean(r['preference_mean'] for r in both) - rule
  return metrics


class RewardModels:
  """The reward models of the scenarios; each is loaded at its first use."""

  def __init__(self, scenarios: Sequence[Scenario]):
    self._preferences = {s.task.name: s.preferences for s in scenarios}
    self._models: dict[str, Any] = {}

  def score(self, records: Sequence[dict[str, Any]]) -> None:
    """Sets `preference`, and their mean, on the records that have any."""
    for name, preferences in self._preferences.items():
      own = [r for r in records if r['task'] == name]
      if not own or not preferences:
        continue
      sums = np.zeros(len(own))
      for preference in preferences:
        scores = self._model(preference.checkpoint).score(own)
        sums += preference.weight / (1 + np.exp(-np.asarray(scores)))
      weight = sum(p.weight for p in preferences)
      for record, value in zip(own, sums.tolist(), strict=True):
        record['preference'] = value
        record['preference_mean'] = value / weight

  def _model(self, path: str):
    if path not in self._models:
      self._models[path] = reward_model.load(path)
    return self._models[path]


def _mean(values) -> float:
  found = [float(v) for v in values]
  return float(np.mean(found)) if found else float('nan')
