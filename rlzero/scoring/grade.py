"""Completions and samples to graded records, through the reward workers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlzero.rollout import encoding, scheduler
from rlzero.runtime import hosts
from rlzero.scoring import reward_pool
from rlzero.tasks import base
from rlzero.text.tokenizer import Tokenizer


def score(
  pool: reward_pool.RewardPool,
  task: base.Task,
  tokenizer: Tokenizer,
  chosen: Sequence[base.Example],
  prompts: Sequence[scheduler.Prompt],
  completions: Sequence[scheduler.Completion],
) -> list[dict[str, Any]]:
  """One record a completion: its text and what the verifier says of it.

  Args:
    pool: judges.
    task: of the examples that name none.
    tokenizer: of the model.
    chosen: the problems.
    prompts: of each problem.
    completions: G of each problem, adjacent.
  """
  group = len(completions) // len(prompts)
  samples = [
    encoding.to_sample(tokenizer, completion, prompts[i // group].tokens)
    for i, completion in enumerate(completions)
  ]
  token_ids = None
  if pool.takes_token_ids:
    token_ids = [completion.tokens.tolist() for completion in completions]
  return grade(pool, task, chosen, samples, token_ids)


def score_over_hosts(
  pool: reward_pool.RewardPool,
  task: base.Task,
  tokenizer: Tokenizer,
  chosen: Sequence[base.Example],
  prompts: Sequence[scheduler.Prompt],
  completions: Sequence[scheduler.Completion],
) -> list[dict[str, Any]]:
  """`score`, each host with its share of the problems; all get all records."""

  def score_share(problems, own):
    examples, own_prompts = zip(*problems, strict=True)
    return score(pool, task, tokenizer, examples, own_prompts, own)

  problems = list(zip(chosen, prompts, strict=True))
  return over_hosts(score_share, problems, completions)


def over_hosts(
  grade_share: Callable[[list[Any], list[Any]], list[dict[str, Any]]],
  problems: Sequence[Any],
  outputs: Sequence[Any],
) -> list[dict[str, Any]]:
  """Grades problems, each host its share of them; all get all records.

  Args:
    grade_share: (some of the problems, their outputs) -> a record an output.
    problems: the same on every host.
    outputs: G of each problem, adjacent.
  """
  group = len(outputs) // len(problems)
  return hosts.map_over_hosts(
    range(len(problems)),
    lambda places: grade_share(
      [problems[i] for i in places],
      [one for i in places for one in outputs[i * group :][:group]],
    ),
  )


def grade(
  pool: reward_pool.RewardPool,
  task: base.Task,
  chosen: Sequence[base.Example],
  samples: Sequence[encoding.Sample],
  token_ids: Sequence[Sequence[int]] | None = None,
) -> list[dict[str, Any]]:
  """One record a sample, those of a problem adjacent.

  Args:
    pool: judges.
    task: of the examples that name none.
    chosen: the problems.
    samples: G of each problem.
    token_ids: of the samples, where they are known.
  """
  group = len(samples) // len(chosen)
  owners = [example for example in chosen for _ in range(group)]
  verdicts = pool.score(
    [
      reward_pool.Request(
        owner.task or task.name,
        sample.text,
        owner.target,
        sample.in_thought,
        owner.uid,
        token_ids[i] if token_ids else None,
      )
      for i, (sample, owner) in enumerate(zip(samples, owners, strict=True))
    ]
  )
  return [
    {
      'task': owner.task or task.name,
      'uid': owner.uid,
      'question': owner.question,
      'completion': sample.text,
      'answer': verdict.answer,
      'accuracy': verdict.accuracy,
      'correct': verdict.correct,
      'strict': verdict.correct and verdict.accuracy > 0,
      'format': verdict.format,
      'truncated': sample.truncated,
      'unparsable': verdict.answer is None,
      'len': sample.num_tokens,
      'tries': verdict.tries,
      'reflections': verdict.reflections,
      'words': dict(verdict.words),
      'status': verdict.status,
      'parts': dict(verdict.parts),
      'outcome': verdict.outcome,
      **({} if verdict.applies else {'applies': False}),
      **({'logged': dict(verdict.logged)} if verdict.logged else {}),
      **({'notes': dict(verdict.notes)} if verdict.notes else {}),
    }
    for owner, sample, verdict in zip(owners, samples, verdicts, strict=True)
  ]


def logged(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Means of what functions and judges logged, over the records that have it.

  Args:
    records: of `grade`.
  """
  found: dict[str, list[float]] = {}
  for record in records:
    for name, value in record.get('logged', {}).items():
      found.setdefault(name, []).append(value)
  return {name: float(np.mean(found[name])) for name in sorted(found)}
