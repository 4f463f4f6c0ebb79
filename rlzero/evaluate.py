"""Evaluates a model on held-out problems.

  python -m rlzero.evaluate --checkpoint=DIR --gin_file=F [--json]
  python -m rlzero.evaluate --checkpoint=DIR --suite=r1 --workdir=DIR
  python -m rlzero.evaluate --compare=A.json,B.json
  python -m rlzero.evaluate --suite=r1 --contamination=TRAIN.jsonl

With a workdir every sample is on disk as soon as it ends, and the same command
goes on after a kill. Without a checkpoint the samples on disk are scored.

pass@1 is the mean over samples of whether the last stated answer is right,
in whatever format; `strict` wants the format too. pass@k is the unbiased
estimator (arXiv 2107.03374, eq. 1); cons@k a majority vote over classes of
mathematically equal answers, of which ties are settled by lot (the expected
score is given, and the share of ties beside it). Intervals are 95%, clustered
by problem.
`language` is the share of words in the thought that are of the question's
language, over the thoughts that have words.

Differences from the paper: none in sampling (T = 0.6, top-p 0.95; `suites` has
the number of samples by benchmark). Codeforces' rating is fitted to problems
solved in Python, not to contests entered.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlzero import hosts, metrics, provenance, sharding
from rlzero.evaluation import compare, published, sampler, suites
from rlzero.models.config import ModelConfig
from rlzero.rollout import scheduler
from rlzero.tasks import base, contamination, countdown, language, sandbox
from rlzero.tasks.template import Template
from rlzero.tokenizer import Tokenizer
from rlzero.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of an evaluation."""

  # Run or Hugging Face folder, GGUF file, or http://host/v1#model
  checkpoint: str = ''
  workdir: str = ''  # where samples and figures go; none if empty
  suite: str = ''  # name of several benchmarks, in place of the one below
  benchmarks: tuple[suites.Benchmark, ...] = ()  # a suite of one's own
  task: base.Task = countdown.Countdown()
  template: Template = Template('short')
  split: str = 'test'
  num_problems: int = 0  # of each benchmark; 0 takes all of the split
  num_samples: int = 16  # completions a problem
  sampling: scheduler.Sampling = scheduler.Sampling(temperature=0.6, top_p=0.95)
  mesh: sharding.Mesh = sharding.Mesh()  # one device by default
  num_workers: int = 2  # reward processes
  seed: int = 0
  json: bool = False  # print figures as JSON alone
  compare: str = ''  # two files of figures, A.json,B.json, and nothing else
  contamination: str = ''  # JSONL of training text, looked up and nothing else
  num_words: int = 10  # n of the n-grams that contamination is about

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
    if self.suite and self.benchmarks:
      raise ValueError(
        f'evaluate.Config.suite is {self.suite!r} beside benchmarks of its '
        'own; leave one of the two out.'
      )
    if not (self.checkpoint or self.workdir or self.compare or self.asks_none):
      raise ValueError(
        "evaluate.Config.checkpoint is ''; name a model, or a workdir that "
        'holds samples.'
      )

  @property
  def asks_none(self) -> bool:
    """Whether nothing is sampled or scored."""
    return bool(self.compare or self.contamination)

  @property
  def measured(self) -> tuple[suites.Benchmark, ...]:
    """The benchmarks; one from the fields where there is no suite."""
    if not (self.suite or self.benchmarks):
      return (
        suites.Benchmark(
          task=self.task,
          template=self.template,
          split=self.split,
          num_problems=self.num_problems,
          num_samples=self.num_samples,
          sampling=self.sampling,
        ),
      )
    found = suites.named(self.suite) if self.suite else self.benchmarks
    names = [benchmark.name for benchmark in found]
    if twice := {name for name in names if names.count(name) > 1}:
      raise ValueError(
        f'The suite has {min(twice)!r} twice, and figures go by the name; '
        'give one of the tasks another.'
      )
    if not self.num_problems:
      return tuple(found)
    return tuple(
      dataclasses.replace(b, num_problems=self.num_problems) for b in found
    )


def run(cfg: Config) -> None:
  """Does what `cfg` asks for, prints it and writes it."""
  if cfg.compare:
    result = compare.compare(*compare.read(cfg.compare))
    print(json.dumps(result) if cfg.json else compare.text(result))
    return
  if cfg.contamination:
    sets = {b.name: b.task.examples(b.split) for b in cfg.measured}
    result = contamination.report(
      contamination.read(cfg.contamination), sets, cfg.num_words
    )
    if cfg.workdir:
      _write_text(cfg.workdir, 'contamination.json', json.dumps(result))
    print(json.dumps(result) if cfg.json else contamination.text(result))
    return
  # The problems come first: where they cannot be had, no model is loaded.
  chosen = [examples(b.task, b.split, b.num_problems) for b in cfg.measured]
  is_suite = bool(cfg.suite or cfg.benchmarks)
  with sharding.use(cfg.mesh):
    model = sampler.load(cfg.checkpoint) if cfg.checkpoint else None
    about = {
      'model': model.about() if model else {'samples': cfg.workdir},
      **provenance.facts(),
    }
    figures = {
      benchmark.name: _measure_kept(cfg, benchmark, problems, model, about)
      for benchmark, problems in zip(cfg.measured, chosen, strict=True)
    }
  if is_suite:
    result = {**about, 'suite': cfg.suite or 'own', 'benchmarks': figures}
    printed = published.table(result)
  else:
    ((name, result),) = figures.items()
    result = {**result, **about, 'task': name, 'split': cfg.split}
    printed = summary(result)
  if cfg.workdir:
    name = 'suite' if is_suite else 'evaluation'
    _write_text(cfg.workdir, f'{name}.json', json.dumps(result))
  print(json.dumps(result) if cfg.json else printed)


def _measure_kept(
  cfg: Config,
  benchmark: suites.Benchmark,
  chosen: Sequence[base.Example],
  model: sampler.Sampler | None,
  about: dict[str, Any],
) -> dict[str, Any]:
  """Figures of a benchmark; its samples are kept in the workdir, if any."""
  if cfg.workdir:
    kept = sampler.Kept(
      os.path.join(cfg.workdir, 'samples', f'{benchmark.name}.jsonl'),
      _settings(cfg, benchmark, model, about),
    )
  else:
    kept = contextlib.nullcontext()
  with kept:
    samples = _draw(cfg, benchmark, chosen, model, kept)
  with sandbox.RewardPool(
    {benchmark.name: benchmark.task},
    benchmark.template.kind,
    cfg.num_workers,
    benchmark.deadline_s,
    max_chars=max(20_000, 8 * benchmark.sampling.max_len),
  ) as pool:
    records = grade(pool, benchmark.task, chosen, samples)
    figures = _figures(pool, benchmark.task, chosen, records, benchmark)
  if cfg.workdir:
    lines = ''.join(json.dumps(record) + '\n' for record in records)
    _write_text(
      cfg.workdir,
      ('evaluation' if not (cfg.suite or cfg.benchmarks) else benchmark.name)
      + '.jsonl',
      lines,
    )
  return {**figures, 'seed': cfg.seed, 'template': benchmark.template.kind}


def _draw(
  cfg: Config,
  benchmark: suites.Benchmark,
  chosen: Sequence[base.Example],
  model: sampler.Sampler | None,
  kept: sampler.Kept | contextlib.nullcontext,
) -> list[sampler.Sample]:
  """The samples of a benchmark: those kept, and the others from the model."""
  size = benchmark.num_samples
  places = [(e.uid, i) for e in chosen for i in range(size)]
  found = kept.samples if cfg.workdir else {}
  finished = {i: found[p] for i, p in enumerate(places) if p in found}
  show = progress(benchmark.name, len(finished))
  counted = itertools.count(len(finished) + 1)

  def on_finished(index: int, sample: sampler.Sample) -> None:
    if cfg.workdir:
      kept.keep(*places[index], sample)
    done = next(counted)
    if not cfg.json:
      show(done, len(places))

  if model:
    job = sampler.Job(
      [example.question for example in chosen],
      benchmark.template,
      size,
      benchmark.sampling,
      cfg.seed,
    )
    return model.sample(job, finished, on_finished)
  if len(finished) < len(places):
    uid = next(p for p in places if p not in found)[0]
    raise ValueError(
      f'{cfg.workdir} holds {sum(p[0] == uid for p in found)} samples of '
      f'problem {uid!r} of {benchmark.name}, and num_samples is {size}; give '
      'a checkpoint to draw the others, or ask for fewer.'
    )
  return list(finished.values())


def _settings(cfg, benchmark, model, about) -> dict[str, Any]:
  """What samples depend on, and must not change between two halves."""
  settings = {
    'template': dataclasses.asdict(benchmark.template),
    'sampling': {
      name: getattr(benchmark.sampling, name)
      for name in ('temperature', 'top_p', 'max_len')
    },
    'seed': cfg.seed,
    'split': benchmark.split,
  }
  if model:  # a checkpoint may lie elsewhere than before
    settings['model'] = about['model'].get('sha256', about['model'])
  return settings


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
  return sampler.prompts(
    tokenizer, template, [(draw, e.question) for draw, e in drawn]
  )


def score(
  pool: sandbox.RewardPool,
  task: base.Task,
  tokenizer: Tokenizer,
  chosen: Sequence[base.Example],
  completions: Sequence[scheduler.Completion],
) -> list[dict[str, Any]]:
  """One record a completion: its text and what the verifier says of it."""
  samples = [sampler.of_completion(tokenizer, c) for c in completions]
  return grade(pool, task, chosen, samples)


def grade(
  pool: sandbox.RewardPool,
  task: base.Task,
  chosen: Sequence[base.Example],
  samples: Sequence[sampler.Sample],
) -> list[dict[str, Any]]:
  """One record a sample, those of a problem adjacent."""
  group = len(samples) // len(chosen)
  owners = [example for example in chosen for _ in range(group)]
  verdicts = pool.score(
    [
      sandbox.Request(owner.task or task.name, sample.text, owner.target)
      for sample, owner in zip(samples, owners, strict=True)
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
      'parts': verdict.parts,
    }
    for owner, sample, verdict in zip(owners, samples, verdicts, strict=True)
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
  on_look: Callable[[], None] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """Figures over the problems, and the generations they come from."""
  total, counted = len(chosen) * num_samples, itertools.count(1)
  completions, _ = scheduler.generate(
    config,
    params,
    prompts(tokenizer, template, list(enumerate(chosen))),
    num_samples,
    sampling,
    eos_ids=tokenizer.eos_ids,
    seed=seed,
    on_finished=on_progress and (lambda *_: on_progress(next(counted), total)),
    on_look=on_look,
  )
  records = hosts.shared(
    range(len(chosen)),
    lambda places: score(
      pool,
      task,
      tokenizer,
      [chosen[i] for i in places],
      [c for i in places for c in completions[i * num_samples :][:num_samples]],
    ),
  )
  benchmark = suites.Benchmark(
    task=task, num_samples=num_samples, sampling=sampling
  )
  figures = _figures(pool, task, chosen, records, benchmark)
  return {**figures, 'seed': seed}, records


def _figures(
  pool: sandbox.RewardPool,
  task: base.Task,
  chosen: Sequence[base.Example],
  records: Sequence[dict[str, Any]],
  benchmark: suites.Benchmark,
) -> dict[str, Any]:
  """What the records amount to."""
  num_samples, sampling = benchmark.num_samples, benchmark.sampling
  correct = np.array([r['correct'] for r in records]).reshape(-1, num_samples)
  lengths = np.array([r['len'] for r in records]).reshape(correct.shape)
  answers = np.array([r['answer'] for r in records], object)
  classes = [
    pool.classes(task.name, group)
    for group in answers.reshape(correct.shape).tolist()
  ]
  votes = [
    metrics.cons_at_k(group, right)
    for group, right in zip(classes, correct, strict=True)
  ]
  means = correct.mean(axis=1)
  rising = np.unique(np.linspace(0, sampling.max_len, 17).astype(int)[1:])
  shares = ('strict', 'format', 'truncated', 'unparsable', 'tries')
  figures = {
    **{name: _mean(records, name) for name in shares},
    'num_problems': len(chosen),
    'num_samples': num_samples,
    'temperature': sampling.temperature,
    'top_p': sampling.top_p,
    'max_len': sampling.max_len,
    'pass@1': float(correct.mean()),
    'pass@1_interval': list(metrics.clustered_interval(means)),
    'pass@1_by_problem': {
      e.uid: float(mean) for e, mean in zip(chosen, means, strict=True)
    },
    'pass@k': {
      str(k): float(
        np.mean(metrics.pass_at_k(num_samples, correct.sum(axis=1), k))
      )
      for k in (1, 2, 4, 8, 16, 32, 64)
      if k <= num_samples
    },
    'cons@k': {str(num_samples): float(np.mean(votes))},
    'cons@k_interval': list(metrics.clustered_interval(votes)),
    'cons@k_ties': float(np.mean([metrics.has_tie(c) for c in classes])),
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
  if rate := getattr(task, 'rating', None):
    ratings = [rate(example.target) for example in chosen]
    rating, interval = metrics.elo_rating(ratings, means)
    # JSON has no infinity: all or none solved is a rating beyond all.
    figures['rating'] = rating if np.isfinite(rating) else None
    figures['rating_interval'] = list(interval) if np.isfinite(rating) else None
  return figures


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
  figures: dict[str, Any],
  generations: Sequence[dict[str, Any]],
) -> None:
  """Writes `WORKDIR/evaluations/NAME.json` and the generations beside it."""
  lines = ''.join(json.dumps(g) + '\n' for g in generations)
  # The figures come last: where they are, the generations are whole.
  _write_text(workdir, f'{name}.jsonl', lines)
  _write_text(workdir, f'{name}.json', json.dumps(figures))


def _write_text(workdir: str, name: str, text: str) -> None:
  folder = os.path.join(workdir, 'evaluations')
  os.makedirs(folder, exist_ok=True)
  path = os.path.join(folder, name)
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
    f'truncated {figures["truncated"]:.3f}, '
    f'unparsable {figures["unparsable"]:.3f} '
    f'({figures["num_problems"]} problems x {figures["num_samples"]})'
  )


def _mean(records, name):
  return float(np.mean([r[name] for r in records]))


def _where(values, chosen):
  return float(values[chosen].mean()) if chosen.any() else None


if __name__ == '__main__':
  from rlzero import config, evaluate

  config.main(evaluate)
