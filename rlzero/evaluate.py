"""Evaluates a model on held-out problems.

  python -m rlzero.evaluate --checkpoint=DIR --gin_file=F [--json]

pass@1 is the mean over samples of whether the last stated answer is right,
in whatever format; `strict` wants the format too. pass@k is the unbiased
estimator (arXiv 2107.03374, eq. 1); cons@k a majority vote over classes of
mathematically equal answers. Intervals are 95%, clustered by problem.
`language` is the share of words in the thought that are of the question's
language, over the thoughts that have words.

Differences from the paper: none in sampling (T = 0.6, top-p 0.95 by default);
the number of samples is configured instead of set by benchmark.
"""

import dataclasses
import itertools
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlzero import checkpoint, metrics, sharding
from rlzero.models import transformer
from rlzero.models.config import ModelConfig
from rlzero.rollout import scheduler
from rlzero.tasks import base, countdown, language, sandbox
from rlzero.tasks.template import Template
from rlzero.tokenizer import Tokenizer
from rlzero.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of an evaluation."""

  checkpoint: str  # run folder, Hugging Face folder or GGUF file
  workdir: str = ''  # where generations and figures go; none if empty
  task: base.Task = countdown.Countdown()
  template: Template = Template('short')
  split: str = 'test'
  num_problems: int = 0  # 0 takes all of the split
  num_samples: int = 16  # completions a problem
  sampling: scheduler.Sampling = scheduler.Sampling(temperature=0.6, top_p=0.95)
  mesh: sharding.Mesh = sharding.Mesh()  # one device by default
  num_workers: int = 2  # reward processes
  seed: int = 0
  json: bool = False  # print figures as JSON alone

  def __post_init__(self):
    if self.num_samples < 1:
      raise ValueError(
        f'evaluate.Config.num_samples is {self.num_samples}; it must be at '
        'least 1.'
      )
    if self.num_problems < 0:
      raise ValueError(
        f'evaluate.Config.num_problems is {self.num_problems}; it must be '
        '0 (all) or more.'
      )


def run(cfg: Config) -> None:
  """Evaluates, prints the figures and writes them."""
  loaded = checkpoint.load_model(cfg.checkpoint)
  chosen = examples(cfg.task, cfg.split, cfg.num_problems)
  with (
    sharding.use(cfg.mesh),
    sandbox.RewardPool(
      {cfg.task.name: cfg.task}, cfg.template.kind, cfg.num_workers
    ) as pool,
  ):
    figures, generations = measure(
      loaded.config,
      sharding.place_params(transformer.AXES, loaded.params),
      loaded.tokenizer,
      cfg.task,
      cfg.template,
      pool,
      chosen,
      cfg.num_samples,
      cfg.sampling,
      cfg.seed,
      on_progress=None if cfg.json else progress('evaluate'),
    )
  figures['split'] = cfg.split
  if cfg.workdir:
    write(cfg.workdir, 'evaluation', figures, generations)
  if cfg.json:
    print(json.dumps(figures))
  else:
    print(summary(figures))


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


def prompts(
  tokenizer: Tokenizer,
  template: Template,
  drawn: Sequence[tuple[int, base.Example]],
) -> list[scheduler.Prompt]:
  """Token ids of the questions under the template."""
  return [
    scheduler.Prompt(
      draw,
      tokenizer.encode(
        template.render(example.question, tokenizer.apply_chat_template)
      ),
    )
    for draw, example in drawn
  ]


def score(
  pool: sandbox.RewardPool,
  task: base.Task,
  tokenizer: Tokenizer,
  chosen: Sequence[base.Example],
  completions: Sequence[scheduler.Completion],
) -> list[dict[str, Any]]:
  """One record a completion: its text and what the verifier says of it."""
  group = len(completions) // len(chosen)
  owners = [example for example in chosen for _ in range(group)]
  texts = [tokenizer.decode(c.tokens.tolist()) for c in completions]
  verdicts = pool.score(
    [
      sandbox.Request(owner.task or task.name, text, owner.target)
      for text, owner in zip(texts, owners, strict=True)
    ]
  )
  return [
    {
      'task': owner.task or task.name,
      'uid': owner.uid,
      'question': owner.question,
      'completion': text,
      'answer': verdict.answer,
      'accuracy': verdict.accuracy,
      'correct': verdict.correct,
      'strict': verdict.correct and verdict.accuracy > 0,
      'format': verdict.format,
      'truncated': completion.finish is scheduler.Finish.LENGTH,
      'len': len(completion.tokens),
      'tries': verdict.tries,
      'reflections': verdict.reflections,
      'words': dict(verdict.words),
      'status': verdict.status,
      'parts': verdict.parts,
    }
    for owner, text, verdict, completion in zip(
      owners, texts, verdicts, completions, strict=True
    )
  ]


def measure(
  config: ModelConfig,
  params: Params,
  tokenizer: Tokenizer,
  task: base.Task,
  template: Template,
  pool: sandbox.RewardPool,
  chosen: Sequence[base.Example],
  num_samples: int,
  sampling: scheduler.Sampling,
  seed: int,
  on_progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """Figures over the problems, and the generations they come from."""
  total = len(chosen) * num_samples
  counted = itertools.count(1)
  completions, _ = scheduler.generate(
    config,
    params,
    prompts(tokenizer, template, list(enumerate(chosen))),
    num_samples,
    sampling,
    eos_ids=tokenizer.eos_ids,
    seed=seed,
    on_finished=on_progress and (lambda *_: on_progress(next(counted), total)),
  )
  records = score(pool, task, tokenizer, chosen, completions)
  correct = np.array([r['correct'] for r in records]).reshape(-1, num_samples)
  lengths = np.array([r['len'] for r in records]).reshape(correct.shape)
  ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= num_samples]
  votes = []
  for i, right in enumerate(correct):
    answers = [
      r['answer'] for r in records[i * num_samples : (i + 1) * num_samples]
    ]
    votes.append(metrics.cons_at_k(pool.classes(task.name, answers), right))
  rising = np.unique(np.linspace(0, sampling.max_len, 17).astype(int)[1:])
  figures = {
    **{
      name: _mean(records, name)
      for name in (
        'strict',
        'format',
        'truncated',
        'tries',
      )
    },
    'num_problems': len(chosen),
    'num_samples': num_samples,
    'temperature': sampling.temperature,
    'top_p': sampling.top_p,
    'max_len': sampling.max_len,
    'seed': seed,
    'pass@1': float(correct.mean()),
    'pass@1_interval': list(metrics.clustered_interval(correct.mean(axis=1))),
    'pass@k': {
      str(k): float(
        np.mean(metrics.pass_at_k(num_samples, correct.sum(axis=1), k))
      )
      for k in ks
    },
    'cons@k': {str(num_samples): float(np.mean(votes))},
    'completion_len': float(lengths.mean()),
    'completion_len_correct': _where(lengths, correct),
    'completion_len_wrong': _where(lengths, ~correct),
    'reflection_per_1k': 1000
    * sum(r['reflections'] for r in records)
    / float(lengths.sum()),
    'language': language_consistency(records),
    'accuracy_by_len': [
      [int(n), float((correct & (lengths <= n)).mean())] for n in rising
    ],
  }
  return figures, records


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


def progress(stage: str) -> Callable[[int, int], None]:
  """An `on_progress` of `measure` that prints a line at every tenth."""
  began, shown = time.monotonic(), 0

  def show(done: int, total: int) -> None:
    nonlocal shown
    if 10 * done // total > shown:
      shown = 10 * done // total
      left = int((time.monotonic() - began) / done * (total - done))
      print(
        f'{stage} {done}/{total} completions  '
        f'{left // 60}m{left % 60:02d}s left',
        flush=True,
      )

  return show


def write(
  workdir: str,
  name: str,
  figures: dict[str, Any],
  generations: Sequence[dict[str, Any]],
) -> None:
  """Writes `WORKDIR/evaluations/NAME.json` and the generations beside it."""
  folder = os.path.join(workdir, 'evaluations')
  os.makedirs(folder, exist_ok=True)
  lines = ''.join(json.dumps(g) + '\n' for g in generations)
  # The figures come last: where they are, the generations are whole.
  for ending, text in (('.jsonl', lines), ('.json', json.dumps(figures))):
    path = os.path.join(folder, name + ending)
    with open(path + '.part', 'w', encoding='utf-8') as file:
      file.write(text)
    os.replace(path + '.part', path)


def summary(figures: dict[str, Any]) -> str:
  """The figures in a line."""
  low, high = figures['pass@1_interval']
  votes = ', '.join(
    f'cons@{k} {value:.3f}' for k, value in figures['cons@k'].items()
  )
  return (
    f'pass@1 {figures["pass@1"]:.3f} [{low:.3f}, {high:.3f}], {votes}, '
    f'strict {figures["strict"]:.3f}, format {figures["format"]:.3f}, '
    f'length {figures["completion_len"]:.1f}, tries {figures["tries"]:.2f}, '
    f'truncated {figures["truncated"]:.3f} '
    f'({figures["num_problems"]} problems x {figures["num_samples"]})'
  )


def _mean(records, name):
  return float(np.mean([r[name] for r in records]))


def _where(values, chosen):
  return float(values[chosen].mean()) if chosen.any() else None


if __name__ == '__main__':
  from rlzero import config, evaluate

  config.main(evaluate)
