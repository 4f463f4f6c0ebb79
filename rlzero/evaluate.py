"""Evaluates a model on held-out problems.

  python -m rlzero.evaluate --checkpoint=DIR --gin_file=F [--json]
  python -m rlzero.evaluate --checkpoint=DIR --suite=r1 --workdir=DIR
  python -m rlzero.evaluate --compare=A.json,B.json
  python -m rlzero.evaluate --suite=r1 --contamination=TRAIN.jsonl

With a workdir every sample is on disk as soon as it ends, and the same command
resumes after a kill. Without a checkpoint the samples on disk are scored.

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
import functools
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from rlzero.evaluation import (
  compare,
  contamination,
  measure,
  published,
  sampler,
  suites,
)
from rlzero.rollout import encoding, sampling
from rlzero.rollout.sampling import Sampling
from rlzero.runtime import (
  fields,
  files,
  hosts,
  provenance,
  sharding,
  workdir,
)
from rlzero.runtime.fields import at_least
from rlzero.scoring import grade, reward_pool
from rlzero.tasks import base, countdown
from rlzero.text.template import Template
from rlzero.train import folders

SEVERAL_HOSTS = True  # may run it together


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of an evaluation."""

  SHORT_FLAGS: ClassVar[dict[str, str]] = sampling.SHORT_FLAGS

  # Run or Hugging Face folder, GGUF file, or http://host/v1#model
  checkpoint: str = ''
  workdir: str = ''  # where samples and metrics go; none if empty
  suite: str = ''  # name of several benchmarks, in place of the one below
  benchmarks: tuple[suites.Benchmark, ...] = ()  # a suite of one's own
  task: base.Task = countdown.Countdown()
  template: Template = Template('short')
  split: str = 'test'
  num_problems: int = 0  # of each benchmark; 0 takes all of the split
  num_samples: int = 16  # completions a problem
  sampling: Sampling = Sampling(temperature=0.6, top_p=0.95)
  mesh: sharding.Mesh = sharding.Mesh()  # one device by default
  num_workers: int = 2  # reward processes
  seed: int = 0
  json: bool = False  # print metrics as JSON alone
  compare: str = ''  # two files of metrics, A.json,B.json, and nothing else
  contamination: str = ''  # JSONL of training text, looked up and nothing else
  num_words: int = 10  # n of the n-grams that contamination is about

  def __post_init__(self):
    fields.check(
      self,
      num_problems=at_least(0).because('0 takes all'),
      num_samples=at_least(1),
      num_workers=at_least(1),
      seed=fields.SEED,
      num_words=at_least(1),
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
        f'The suite has {min(twice)!r} twice, and metrics go by the name; '
        'give one of the tasks another.'
      )
    if not self.num_problems:
      return tuple(found)
    return tuple(
      dataclasses.replace(b, num_problems=self.num_problems) for b in found
    )


def run(cfg: Config) -> None:
  """Does what `cfg` asks for, prints it and writes it."""
  if cfg.asks_none:
    # Alone it takes no device, which another program may have.
    if hosts.joined():
      hosts.on_first(lambda: _look_up(cfg))
    else:
      _look_up(cfg)
    return
  if sampler.is_url(cfg.checkpoint) and hosts.joined() and hosts.count() > 1:
    raise ValueError(
      f'evaluate.Config.checkpoint is {cfg.checkpoint!r}, which needs no '
      f'devices, and there are {hosts.count()} hosts; ask it from one.'
    )
  for benchmark in cfg.measured:
    if getattr(benchmark.task, 'needs_token_ids', False):
      raise ValueError(
        f'A function that judges {benchmark.name!r} takes completion_ids, and '
        'samples of an evaluation are texts alone; give that parameter a '
        'default.'
      )
  # The problems come first: where they cannot be had, no model is loaded.
  chosen = [
    measure.examples(b.task, b.split, b.num_problems) for b in cfg.measured
  ]
  if cfg.checkpoint and not sampler.is_url(cfg.checkpoint):
    _check_lengths(cfg, chosen)
  is_suite = bool(cfg.suite or cfg.benchmarks)
  with sharding.use(cfg.mesh):
    model = sampler.load(cfg.checkpoint) if cfg.checkpoint else None
    about = {
      'model': model.about() if model else {'samples': cfg.workdir},
      **provenance.metadata(),
    }
    if cfg.workdir:
      hosts.on_first(lambda: _claim(cfg))
    with hosts.exit_together() as poll:
      metrics = {
        benchmark.name: _measure_benchmark(
          cfg, benchmark, problems, model, about, poll
        )
        for benchmark, problems in zip(cfg.measured, chosen, strict=True)
      }
  if is_suite:
    result = {**about, 'suite': cfg.suite or 'own', 'benchmarks': metrics}
    printed = published.table(result)
  else:
    ((name, result),) = metrics.items()
    result = {**result, **about, 'task': name, 'split': cfg.split}
    printed = measure.summary(result)
  if cfg.workdir:
    name = 'suite' if is_suite else 'evaluation'
    path = measure.file_of(cfg.workdir, f'{name}.json')
    hosts.on_first(lambda: files.write_json(path, result))
  hosts.print_once(files.to_json(result) if cfg.json else printed)


def _look_up(cfg: Config) -> None:
  """Compares metrics, or looks the problems up in a training text."""
  if cfg.compare:
    result = compare.compare(*compare.read(cfg.compare))
    print(files.to_json(result) if cfg.json else compare.text(result))
    return
  sets = {b.name: b.task.examples(b.split) for b in cfg.measured}
  result = contamination.report(
    contamination.read(cfg.contamination), sets, cfg.num_words
  )
  if cfg.workdir:
    _claim(cfg)
    path = measure.file_of(cfg.workdir, 'contamination.json')
    files.write_json(path, result)
  print(files.to_json(result) if cfg.json else contamination.text(result))


def _claim(cfg: Config) -> None:
  """Takes the folder of evaluations; a run may be at work beside them."""
  workdir.claim(os.path.dirname(measure.file_of(cfg.workdir, '')))


def _check_lengths(cfg: Config, chosen: Sequence[list[base.Example]]) -> None:
  """Checks the prompts of all benchmarks before weights are read."""
  tokenizer = folders.load_tokenizer(cfg.checkpoint)
  for benchmark, problems in zip(cfg.measured, chosen, strict=True):
    encoding.check_lengths(
      tokenizer,
      benchmark.template,
      problems,
      benchmark.sampling.max_prompt_len,
    )


def _measure_benchmark(
  cfg: Config,
  benchmark: suites.Benchmark,
  chosen: Sequence[base.Example],
  model: sampler.Sampler | None,
  about: dict[str, Any],
  poll: Callable[[], None] | None,
) -> dict[str, Any]:
  """Metrics of a benchmark; its samples are logged in the workdir, if any.

  A host scores its share of the problems.
  """
  log = None
  if cfg.workdir:
    prompts = {}
    if model:
      prompts = {
        e.uid: model.fingerprint(benchmark.template, e.question) for e in chosen
      }
    log = sampler.SampleLog(
      os.path.join(cfg.workdir, 'samples', f'{benchmark.name}.jsonl'),
      _settings(cfg, benchmark, model, about),
      prompts,
    )
  with log if log is not None else contextlib.nullcontext():
    samples = _draw(cfg, benchmark, chosen, model, log, poll)
  with reward_pool.RewardPool(
    {benchmark.name: benchmark.task},
    benchmark.template.kind,
    cfg.num_workers,
    benchmark.deadline_s,
    max_chars=reward_pool.chars_of(benchmark.sampling.max_len),
  ) as pool:
    pool.wait()
    records = grade.over_hosts(
      functools.partial(grade.grade, pool, benchmark.task), chosen, samples
    )
    metrics = measure.compute_metrics(
      pool, benchmark.task, chosen, records, benchmark
    )
  if cfg.workdir:
    is_suite = cfg.suite or cfg.benchmarks
    name = benchmark.name if is_suite else 'evaluation'
    path = measure.file_of(cfg.workdir, f'{name}.jsonl')
    hosts.on_first(lambda: files.write_jsonl(path, records))
  return {**metrics, 'seed': cfg.seed, 'template': benchmark.template.kind}


def _draw(
  cfg: Config,
  benchmark: suites.Benchmark,
  chosen: Sequence[base.Example],
  model: sampler.Sampler | None,
  log: sampler.SampleLog | None,
  poll: Callable[[], None] | None,
) -> list[encoding.Sample]:
  """The samples of a benchmark: those logged, and the others from the model."""
  size = benchmark.num_samples
  places = [(e.uid, i) for e in chosen for i in range(size)]
  found = {} if log is None else log.samples
  finished = {i: found[p] for i, p in enumerate(places) if p in found}
  show = measure.progress(benchmark.name, len(finished))
  counted = itertools.count(len(finished) + 1)

  def on_finished(index: int, sample: encoding.Sample) -> None:
    if log is not None:
      log.append(*places[index], sample)
    done = next(counted)
    if not cfg.json and hosts.is_first():
      show(done, len(places))

  if model:
    job = sampler.Job(
      [example.question for example in chosen],
      benchmark.template,
      size,
      benchmark.sampling,
      cfg.seed,
      poll,
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
  """Names the settings that must stay the same when sampling resumes."""
  settings = {
    'template': dataclasses.asdict(benchmark.template),
    'sampling': benchmark.sampling.about(),
    'seed': cfg.seed,
    'split': benchmark.split,
  }
  if model:  # a checkpoint may lie elsewhere than before
    settings['model'] = about['model'].get('sha256', about['model'])
  return settings


if __name__ == '__main__':
  from rlzero import evaluate
  from rlzero.runtime import config

  config.main(evaluate)
