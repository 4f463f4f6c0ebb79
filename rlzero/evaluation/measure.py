"""Measures a policy on held-out problems."""

import collections
import itertools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlzero.evaluation import statistics, suites
from rlzero.models.config import ModelConfig
from rlzero.rollout import encoding, scheduler
from rlzero.rollout.sampling import Sampling
from rlzero.runtime import files, hosts
from rlzero.runtime.metrics import interval_text
from rlzero.scoring import grade, reward_pool
from rlzero.tasks import base, execute
from rlzero.text import language
from rlzero.text.template import Template
from rlzero.text.tokenizer import Tokenizer
from rlzero.types import Params


def examples(
  task: base.Task, split: str, num_problems: int = 0
) -> list[base.Example]:
  """The first problems of a split in an order that hashing shuffles.

  Raises:
    ValueError: the split has none.
  """
  found = sorted(
    task.examples(split), key=lambda e: base.bucket(e.uid, 1 << 62)
  )
  if not found:
    raise ValueError(
      f'The {split!r} split of task {task.name!r} has no problems; choose '
      'another split or task settings that leave some.'
    )
  return found[: num_problems or None]


def measure(
  config: ModelConfig,
  params: Params,
  tokenizer: Tokenizer,
  task: base.Task,
  template: Template,
  pool: reward_pool.RewardPool,
  chosen: Sequence[base.Example],
  num_samples: int,
  sampling: Sampling,
  seed: int,
  on_progress: Callable[[int, int], None] | None = None,
  poll: Callable[[], None] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """Metrics over the problems, and the generations they come from."""
  total, counted = len(chosen) * num_samples, itertools.count(1)
  prompts = encoding.encode_examples(
    tokenizer, template, list(enumerate(chosen))
  )
  completions, _ = scheduler.generate(
    config,
    params,
    prompts,
    num_samples,
    sampling,
    stop=encoding.stop_criteria(tokenizer),
    seed=seed,
    on_finished=on_progress and (lambda *_: on_progress(next(counted), total)),
    poll=poll,
  )
  records = grade.score_over_hosts(
    pool, task, tokenizer, chosen, prompts, completions
  )
  benchmark = suites.Benchmark(
    task=task, num_samples=num_samples, sampling=sampling
  )
  metrics = compute_metrics(pool, task, chosen, records, benchmark)
  return {**metrics, 'seed': seed}, records


def compute_metrics(
  pool: reward_pool.RewardPool,
  task: base.Task,
  chosen: Sequence[base.Example],
  records: Sequence[dict[str, Any]],
  benchmark: suites.Benchmark,
) -> dict[str, Any]:
  """Computes the metrics of graded records."""
  num_samples, sampling = benchmark.num_samples, benchmark.sampling
  correct = np.array([r['correct'] for r in records]).reshape(-1, num_samples)
  lengths = np.array([r['len'] for r in records]).reshape(correct.shape)
  answers = np.array([r['answer'] for r in records], object)
  classes = hosts.map_over_hosts(
    answers.reshape(correct.shape).tolist(),
    lambda groups: [pool.classes(task.name, group) for group in groups],
  )
  votes = [
    statistics.cons_at_k(group, right)
    for group, right in zip(classes, correct, strict=True)
  ]
  means = correct.mean(axis=1)
  rising = np.unique(np.linspace(0, sampling.max_len, 17).astype(int)[1:])
  shares = ('strict', 'format', 'truncated', 'unparsable', 'tries')
  metrics = {
    **{name: _mean(records, name) for name in shares},
    'unscored': float(np.mean([r['status'] != 'ok' for r in records])),
    'num_problems': len(chosen),
    'num_samples': num_samples,
    **sampling.about(),
    'pass@1': float(correct.mean()),
    'pass@1_interval': list(statistics.clustered_interval(means)),
    'pass@1_by_problem': {
      e.uid: float(mean) for e, mean in zip(chosen, means, strict=True)
    },
    'pass@k': {
      str(k): float(
        np.mean(statistics.pass_at_k(num_samples, correct.sum(axis=1), k))
      )
      for k in (1, 2, 4, 8, 16, 32, 64)
      if k <= num_samples
    },
    'cons@k': {str(num_samples): float(np.mean(votes))},
    'cons@k_interval': list(statistics.clustered_interval(votes)),
    'cons@k_ties': float(np.mean([statistics.has_tie(c) for c in classes])),
    'completion_len': float(lengths.mean()),
    'completion_len_correct': _where(lengths, correct),
    'completion_len_wrong': _where(lengths, ~correct),
    'reflection_per_1k': 1000
    * sum(r['reflections'] for r in records)
    / max(float(lengths.sum()), 1),
    'language': language_consistency(records),
    'accuracy_by_len': [
      [int(n), float((correct & (lengths <= n)).mean())] for n in rising
    ],
  }
  outcomes = collections.Counter(r.get('outcome') for r in records)
  if any(outcomes):
    metrics['outcomes'] = {v: outcomes[v] for v in execute.Verdict}
  if logged := grade.logged(records):
    metrics['logged'] = logged
  if rate := getattr(task, 'rating', None):
    ratings = [rate(example.target) for example in chosen]
    rating, interval = statistics.elo_rating(ratings, means)
    # JSON has no infinity: all or none solved is a rating beyond all.
    metrics['rating'] = rating if np.isfinite(rating) else None
    metrics['rating_interval'] = list(interval) if np.isfinite(rating) else None
  return metrics


def language_consistency(records: Sequence[dict[str, Any]]) -> float | None:
  """Mean share of words of the question's language, of thoughts with words.

  None where no thought has any.
  """
  shares = [
    language.share(record['words'], language.detect(record['question']))
    for record in records
    if sum(record['words'].values())
  ]
  return float(np.mean(shares)) if shares else None


def progress(stage: str, start: int = 0) -> Callable[[int, int], None]:
  """An `on_progress` of `measure` that prints a line at every tenth.

  Args:
    stage: shown first.
    start: completions that were there before.
  """
  began, shown = time.monotonic(), 0

  def show(done: int, total: int) -> None:
    nonlocal shown
    if 10 * done // total > shown:
      shown = 10 * done // total
      pace = (time.monotonic() - began) / (done - start)
      left = int(pace * (total - done))
      print(
        f'{stage} {done}/{total} completions  '
        f'{left // 60}m{left % 60:02d}s left',
        flush=True,
      )

  return show


def write(
  workdir: str,
  name: str,
  metrics: dict[str, Any],
  generations: Sequence[dict[str, Any]],
) -> None:
  """Writes `WORKDIR/evaluations/NAME.json` and the generations beside it."""
  # The metrics come last: where they are, the generations are whole.
  files.write_jsonl(file_of(workdir, f'{name}.jsonl'), generations)
  files.write_json(file_of(workdir, f'{name}.json'), metrics)


def file_of(workdir: str, name: str) -> str:
  """The path of a file of evaluations."""
  return os.path.join(workdir, 'evaluations', name)


def summary(metrics: dict[str, Any]) -> str:
  """The metrics in a line."""
  interval = interval_text(metrics['pass@1_interval'])
  votes = ', '.join(
    f'cons@{k} {value:.3f}' for k, value in metrics['cons@k'].items()
  )
  unscored = metrics.get('unscored')
  programs = ', '.join(
    f'{verdict} {count}'
    for verdict, count in metrics.get('outcomes', {}).items()
  )
  return (
    f'pass@1 {metrics["pass@1"]:.3f} {interval}, {votes}, '
    f'strict {metrics["strict"]:.3f}, format {metrics["format"]:.3f}, '
    f'length {metrics["completion_len"]:.1f}, tries {metrics["tries"]:.2f}, '
    f'truncated {metrics["truncated"]:.3f}, '
    f'unparsable {metrics["unparsable"]:.3f} '
    f'({metrics["num_problems"]} problems x {metrics["num_samples"]})'
    + (f'; unscored {unscored:.3f}' if unscored else '')
    + (f'; programs: {programs}' if programs else '')
  )


def _mean(records, name):
  return float(np.mean([r[name] for r in records]))


def _where(values, chosen):
  return float(values[chosen].mean()) if chosen.any() else None
