"""Rejection sampling: a model's own best completions, to learn from.

  python -m rlzero.reject --gin_file=F --checkpoint=MODEL --workdir=DIR

Each problem is completed several times. Kept is what is right, ends, can be
read (`text/readability.py`), is not there already and has no n-gram in common
with an evaluation set. `WORKDIR/samples.jsonl` is what `rlzero.sft` reads: a
line says where it comes from (model, fingerprint, seed, draw, sample)
and what it scored. All that was drawn is in `WORKDIR/parts`, written a part at
a time: a run that was killed resumes there and ends with the same bytes.

Differences from the paper:
- What cannot be verified by rules was judged there by DeepSeek-V3; here a
  task has a verifier, or is not sampled from.
- The number of samples a prompt, how many are kept and the limits of
  readability are not in the paper; repetition is not among its checks.
"""

import collections
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from rlzero.evaluation import contamination, measure
from rlzero.rollout import encoding, sampling, scheduler
from rlzero.rollout.sampling import Sampling
from rlzero.runtime import (
  config,
  fields,
  files,
  metrics,
  saved_config,
  sharding,
)
from rlzero.runtime.fields import above, at_least, mutable_on_resume
from rlzero.scoring import grade, reward_pool, rewards
from rlzero.tasks import base, countdown
from rlzero.text import readability
from rlzero.text.template import Template
from rlzero.train import checkpoint, folders

# Why a completion is not kept, in the order of the questions.
REASONS = (
  'wrong',
  'truncated',
  'language',
  'paragraph',
  'code_blocks',
  'repetition',
  'contaminated',
  'duplicate',
  'surplus',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of a run."""

  SHORT_FLAGS: ClassVar[dict[str, str]] = sampling.SHORT_FLAGS

  workdir: str = mutable_on_resume()
  checkpoint: str  # run folder, Hugging Face folder or GGUF file
  task: base.Task = countdown.Countdown()
  template: Template = Template('short')
  split: str = 'train'
  num_problems: int = 0  # 0 takes all of the split
  num_samples: int = 4  # completions a problem
  num_kept: int = 1  # completions of a problem that are kept, at most
  sampling: Sampling = Sampling()
  language: rewards.Target = 'prompt'  # of the thought
  limits: readability.Limits = readability.Limits()
  against: tuple[base.Task, ...] = ()  # evaluation sets, by their test split
  num_words: int = 10  # n of the n-grams shared with these
  part_size: int = 64  # problems between two writes
  mesh: sharding.Mesh = sharding.Mesh()  # one device by default
  num_workers: int = 2  # reward processes
  deadline_s: float = 5.0  # seconds a completion may take to score
  seed: int = 0

  def __post_init__(self):
    fields.check(
      self,
      num_problems=at_least(0),
      num_samples=at_least(1),
      num_kept=at_least(1),
      num_words=at_least(1),
      part_size=at_least(1),
      num_workers=at_least(1),
      deadline_s=above(0),
      seed=fields.SEED,
    )


def run(cfg: Config) -> None:
  """Samples what is missing, chooses, and writes samples and statistics.

  Raises:
    ValueError: input that cannot be used, or nothing that can be kept.
  """
  saved_config.check_resume_compatible(cfg, cfg.workdir)
  index = contamination.Index(
    (e for task in cfg.against for e in task.examples('test')), cfg.num_words
  )
  found = measure.examples(cfg.task, cfg.split, cfg.num_problems)
  examples = [e for e in found if not index.has(e.question)]
  if not examples:
    raise ValueError(
      f'All {len(found)} problems of the {cfg.split!r} split of task '
      f'{cfg.task.name!r} share {cfg.num_words} words with an evaluation set; '
      'choose another split or task.'
    )
  saved_config.save(cfg, cfg.workdir)
  source = sample(cfg, examples)
  records = [r for n in range(_num_parts(cfg, examples)) for r in _read(cfg, n)]
  kept, reasons = choose(cfg, records, index)
  if not kept:
    raise ValueError(
      f'None of {len(records)} completions can be kept '
      f'({_listed(reasons)}); sample a better model, or loosen '
      'reject.Config.limits.'
    )
  lines = [line(record, source) for record in kept]
  statistics = describe(cfg, records, kept, reasons, len(found), source)
  for name, text in {
    'samples.jsonl': ''.join(map(_json, lines)),
    'statistics.json': files.to_json(statistics, indent=2) + '\n',
    'statistics.md': page(statistics, lines),
  }.items():
    files.write_whole(os.path.join(cfg.workdir, name), text)
  print(
    f'kept {len(kept)} of {len(records)} completions, for '
    f'{statistics["problems"]["kept"]} of {len(examples)} problems '
    f'({_listed(reasons)})'
  )


def sample(cfg: Config, examples: Sequence[base.Example]) -> dict[str, Any]:
  """Completes every problem and scores it, a part after the other.

  Returns:
    where the completions come from.
  """
  with (
    sharding.use(cfg.mesh),
    reward_pool.RewardPool(
      {cfg.task.name: cfg.task},
      cfg.template.kind,
      cfg.num_workers,
      cfg.deadline_s,
      max_chars=reward_pool.chars_of(cfg.sampling.max_len),
    ) as pool,
  ):
    loaded = folders.load_model(cfg.checkpoint)
    source = {
      # The name alone: the bytes shall not depend on where a run stands.
      'checkpoint': os.path.basename(os.path.normpath(cfg.checkpoint)),
      'fingerprint': f'{checkpoint.fingerprint(loaded.params):08x}',
      'seed': cfg.seed,
      'temperature': cfg.sampling.temperature,
    }
    draws = list(enumerate(examples))
    for number in range(_num_parts(cfg, examples)):
      if os.path.exists(_part(cfg, number)):
        continue
      part = draws[number * cfg.part_size :][: cfg.part_size]
      began = time.perf_counter()
      completions, usage = scheduler.generate(
        loaded.config,
        loaded.params,
        encoding.encode_examples(loaded.tokenizer, cfg.template, part),
        cfg.num_samples,
        cfg.sampling,
        eos_ids=loaded.tokenizer.eos_ids,
        seed=cfg.seed,
      )
      records = grade.score(
        pool, cfg.task, loaded.tokenizer, [e for _, e in part], completions
      )
      for i, record in enumerate(records):
        own, record['sample'] = divmod(i, cfg.num_samples)
        record['draw'] = part[own][0]
      files.write_jsonl(_part(cfg, number), records, ensure_ascii=False)
      rate = usage.tokens / (time.perf_counter() - began)
      right = np.mean([r['accuracy'] > 0 for r in records])
      print(
        f'reject {number + 1}/{_num_parts(cfg, examples)}  '
        f'right {right:.3f}  tokens_per_s {rate:.4g}',
        flush=True,
      )
  return source


def choose(
  cfg: Config, records: Sequence[dict[str, Any]], index: contamination.Index
) -> tuple[list[dict[str, Any]], dict[str, int]]:
  """The records that are kept, in their order, and why the others are not."""
  reasons = dict.fromkeys(REASONS, 0)
  seen: set[str] = set()
  taken: collections.Counter[str] = collections.Counter()
  kept = []
  for record in records:
    record['language'] = rewards.readable_consistency(record, cfg.language)
    reason = _fault(cfg, record, index, seen)
    if reason is None and taken[record['uid']] == cfg.num_kept:
      reason = 'surplus'
    if reason is None:
      kept.append(record)
      taken[record['uid']] += 1
    else:
      reasons[reason] += 1
  return kept, reasons


def _fault(cfg, record, index, seen) -> str | None:
  if not record['accuracy']:  # right, and in the format where there is one
    return 'wrong'
  if record['truncated']:
    return 'truncated'
  text = record['completion']
  if reason := readability.fault(text, record['language'], cfg.limits):
    return reason
  if index.has(text):
    return 'contaminated'
  whole = ' '.join(f'{record["question"]}\n{text}'.split())
  if whole in seen:
    return 'duplicate'
  seen.add(whole)
  return None


def line(record: dict[str, Any], source: dict[str, Any]) -> dict[str, Any]:
  """An example for `rlzero.sft`, with what it comes from and its scores."""
  names = ('accuracy', 'format', 'language', 'len', 'tries', 'reflections')
  return {
    'prompt': record['question'],
    'completion': record['completion'],
    'uid': record['uid'],
    'task': record['task'],
    'source': {**source, 'draw': record['draw'], 'sample': record['sample']},
    'scores': {
      **{name: record[name] for name in names},
      **readability.measures(record['completion']),
    },
  }


def describe(
  cfg: Config,
  records: Sequence[dict[str, Any]],
  kept: Sequence[dict[str, Any]],
  reasons: dict[str, int],
  num_found: int,
  source: dict[str, Any],
) -> dict[str, Any]:
  """What was drawn, what was kept, and why the rest was not."""
  drawn = len({r['uid'] for r in records})

  def means(some):
    return {
      name: float(np.mean([r[name] for r in some]))
      for name in ('accuracy', 'format', 'language', 'len', 'truncated')
    }

  return {
    'source': source,
    'task': cfg.task.name,
    'split': cfg.split,
    'problems': {
      'found': num_found,
      'contaminated': num_found - drawn,
      'drawn': drawn,
      'kept': len({r['uid'] for r in kept}),
    },
    'completions': {'drawn': len(records), 'kept': len(kept)},
    'not_kept': reasons,
    'drawn_means': means(records),
    'kept_means': means(kept),
  }


def page(statistics: dict[str, Any], lines: Sequence[dict[str, Any]]) -> str:
  """The statistics as a page of Markdown, with the first samples."""
  s = statistics
  drawn, kept = s['completions']['drawn'], s['completions']['kept']
  rows = [
    *(
      f'| not kept: {name} | {n} | {n / drawn:.3f} |'
      for name, n in s['not_kept'].items()
    ),
    f'| kept | {kept} | {kept / drawn:.3f} |',
  ]
  means = [
    f'| {name} | {value:.3f} | {s["kept_means"][name]:.3f} |'
    for name, value in s['drawn_means'].items()
  ]
  problems = ', '.join(f'{n} {name}' for name, n in s['problems'].items())
  samples = [
    f'```\n{one["prompt"]}\n---\n{one["completion"]}\n```' for one in lines[:3]
  ]
  return '\n'.join(
    [
      f'# {s["task"]}, {s["split"]}: samples of {s["source"]["checkpoint"]}',
      '',
      f'Problems: {problems}.',
      '',
      f'| of {drawn} completions | number | share |',
      '|---|---|---|',
      *rows,
      '',
      '| mean | drawn | kept |',
      '|---|---|---|',
      *means,
      '',
      *samples,
      '',
    ]
  )


def _num_parts(cfg: Config, examples: Sequence[base.Example]) -> int:
  return -(-len(examples) // cfg.part_size)


def _part(cfg: Config, number: int) -> str:
  return os.path.join(cfg.workdir, 'parts', f'{number:05d}.jsonl')


def _read(cfg: Config, number: int) -> Iterator[dict[str, Any]]:
  yield from metrics.read_lines(_part(cfg, number))


def _json(value: dict[str, Any]) -> str:
  return files.to_json(value, ensure_ascii=False) + '\n'


def _listed(reasons: dict[str, int]) -> str:
  return ', '.join(f'{n} {name}' for name, n in reasons.items() if n)


if __name__ == '__main__':
  from rlzero import reject

  config.main(reject)
