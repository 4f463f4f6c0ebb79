"""Rejection sampling: which samples are kept, and why others are not."""

import collections
import dataclasses
import functools
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from rlzero.evaluation import contamination
from rlzero.rollout import encoding, sampling, scheduler
from rlzero.rollout.sampling import Sampling
from rlzero.runtime import fields, files, hosts, metrics, sharding
from rlzero.runtime.fields import above, at_least, mutable_on_resume
from rlzero.scoring import grade, reward_pool, rewards
from rlzero.tasks import base, countdown
from rlzero.text import readability
from rlzero.text.template import Chat, Template
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
  'over_quota',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
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
  # Evaluation sets, by their test split.
  decontaminate_with: tuple[base.Task, ...] = ()
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


def leave_out_long(
  cfg: Settings, examples: Sequence[base.Example]
) -> list[base.Example]:
  """The problems that are short enough as prompts; says how many are not.

  Raises:
    ValueError: none is.
  """
  tokenizer = folders.load_tokenizer(cfg.checkpoint)
  limit = cfg.sampling.max_prompt_len
  lengths = [
    len(encoding.encode_prompt(tokenizer, cfg.template, e.question))
    for e in examples
  ]
  fitting = [e for e, n in zip(examples, lengths, strict=True) if n <= limit]
  told = (
    f'{len(examples) - len(fitting)} of {len(examples)} problems are too long: '
    f'the longest has {max(lengths)} tokens as a prompt, and '
    f'Sampling.max_prompt_len is {limit}'
  )
  if not fitting:
    raise ValueError(f'{told}; raise the limit or choose other problems.')
  if len(fitting) < len(examples):
    hosts.print_once(f'warning: {told}; they are left out.')
  return fitting


def sample(cfg: Settings, examples: Sequence[base.Example]) -> dict[str, Any]:
  """Completes every problem and scores it, a part after the other.

  A host scores its share of the problems; the first one writes.

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
    hosts.exit_together() as poll,
  ):
    loaded = folders.load_model(cfg.checkpoint)
    pool.wait()
    source = {
      # The name alone: the bytes shall not depend on where a run stands.
      'checkpoint': os.path.basename(os.path.normpath(cfg.checkpoint)),
      'fingerprint': f'{checkpoint.fingerprint(loaded.params):08x}',
      'seed': cfg.seed,
      'temperature': cfg.sampling.temperature,
    }
    draws = list(enumerate(examples))
    for number in range(num_parts(cfg, examples)):
      path = part_path(cfg, number)
      if hosts.broadcast(os.path.exists(path)):
        continue
      part = draws[number * cfg.part_size :][: cfg.part_size]
      began = time.perf_counter()
      prompts = encoding.encode_examples(loaded.tokenizer, cfg.template, part)
      completions, usage = scheduler.generate(
        loaded.config,
        loaded.params,
        prompts,
        cfg.num_samples,
        cfg.sampling,
        stop=encoding.stop_criteria(loaded.tokenizer),
        seed=cfg.seed,
        poll=poll,
      )
      records = grade.score_over_hosts(
        pool,
        cfg.task,
        loaded.tokenizer,
        [e for _, e in part],
        prompts,
        completions,
      )
      for i, record in enumerate(records):
        own, record['sample'] = divmod(i, cfg.num_samples)
        record['draw'], example = part[own]
        record |= conversation(cfg.template, example.question)
      hosts.on_first(
        functools.partial(files.write_jsonl, path, records, ensure_ascii=False)
      )
      rate = usage.tokens / (time.perf_counter() - began)
      right = np.mean([r['strict'] for r in records])
      hosts.print_once(
        f'reject {number + 1}/{num_parts(cfg, examples)}  '
        f'right {right:.3f}  tokens_per_s {rate:.4g}'
      )
  return source


def conversation(template: Template, question: str) -> dict[str, Any]:
  """The `messages` that a question asks, where they are more than its text."""
  if template.kind != 'chat' or not isinstance(question, Chat):
    return {}
  return {'messages': json.loads(template.render(question, files.to_json))}


def choose(
  cfg: Settings, records: Sequence[dict[str, Any]], index: contamination.Index
) -> tuple[list[dict[str, Any]], dict[str, int]]:
  """The records that are kept, in their order, and why the others are not."""
  reasons: dict[str, int] = dict.fromkeys(REASONS, 0)
  seen: set[str] = set()
  taken: collections.Counter[str] = collections.Counter()
  kept = []
  for record in records:
    record['language'] = rewards.readable_consistency(record, cfg.language)
    reason = _fault(cfg, record, index, seen)
    if reason is None and taken[record['uid']] == cfg.num_kept:
      reason = 'over_quota'
    if reason is None:
      kept.append(record)
      taken[record['uid']] += 1
    else:
      reasons[reason] += 1
  return kept, reasons


def _fault(cfg, record, index, seen) -> str | None:
  # Right, and in the format where there is one.
  if not (record['correct'] and record['accuracy'] > 0):
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
  asked: dict[str, Any] = {'prompt': record['question']}
  if 'messages' in record:
    said = {'role': 'assistant', 'content': record['completion']}
    asked = {'messages': [*record['messages'], said]}
  return {
    **asked,
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
  cfg: Settings,
  records: Sequence[dict[str, Any]],
  kept: Sequence[dict[str, Any]],
  reasons: dict[str, int],
  problems: Mapping[str, int],
  source: dict[str, Any],
) -> dict[str, Any]:
  """Counts the samples drawn, the kept ones, and why others were not.

  Args:
    cfg: of the run.
    records: of all samples.
    kept: those that are kept.
    reasons: how many were not, by why.
    problems: how many there were before any was asked, and were left out.
    source: of the samples.
  """

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
      **problems,
      'drawn': len({r['uid'] for r in records}),
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
    f'```\n{_question(one)}\n---\n{one["completion"]}\n```' for one in lines[:3]
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


def _question(one: dict[str, Any]) -> str:
  *messages, _ = one.get('messages', [None])
  return '\n\n'.join(m['content'] for m in messages) or one['prompt']


def num_parts(cfg: Settings, examples: Sequence[base.Example]) -> int:
  """Number of files that the samples of these problems take."""
  return -(-len(examples) // cfg.part_size)


def part_path(cfg: Settings, number: int) -> str:
  """Path of the file of samples with this number."""
  return os.path.join(cfg.workdir, 'parts', f'{number:05d}.jsonl')


def read_part(cfg: Settings, number: int) -> Iterator[dict[str, Any]]:
  """Yields the graded samples of one file."""
  yield from metrics.read_lines(part_path(cfg, number))


def to_json(value: dict[str, Any]) -> str:
  """One line of a JSONL file, in UTF-8."""
  return files.to_json(value, ensure_ascii=False) + '\n'


def listed(reasons: dict[str, int]) -> str:
  """The reasons with their counts, for a sentence."""
  return ', '.join(f'{n} {name}' for name, n in reasons.items() if n)
