"""Makes a run fail in each way that an alert knows, and says when it rang.

  python -m rlzero.benchmarks.failing_runs --folder=DIR [--only=kl,ratio]
    [--seeds=0,1,2] [--out=FILE]

Each failure is a short GRPO run of the tiny base with one thing wrong: a reward
that pays for something else, a learning rate out of range, a verifier that
raises. `--seeds` runs the quickstart as it is, for which no alert may ring.
A run that is there already is not repeated, so the series resumes.
"""

import argparse
import contextlib
import dataclasses
import itertools
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import jax
from jax import numpy as jnp

from rlzero import grpo, pretrain, reward_model
from rlzero.benchmarks import series
from rlzero.rl import resharding
from rlzero.runtime import config, files, metrics, sharding
from rlzero.scoring import reward_model as reward_model_file
from rlzero.scoring import rewards
from rlzero.tasks import base, countdown
from rlzero.text import language, readability
from rlzero.train import folders

_QUICKSTART = '--gin_file=configs/runs/r1_zero_tiny.gin'
_SMALL = (
  _QUICKSTART,
  '--num_prompts=8',
  '--group_size=16',
  '--samples_per_prompt=0',
  '--learning_rate=6e-5',
  '--eval_every=0',
  '--save_every=100',
  '--final_problems=4',
  '--final_samples=2',
  '--num_workers=1',
)
_NO_RULE = ('--accuracy_reward=0', '--format_reward=0')
_judged = itertools.count()  # of this process
_PACE = 400  # characters for which a reward of length is half of the most


@dataclasses.dataclass(frozen=True)
class _Same(base.Wrapper):
  """Hands out the problems of a task, to be judged in another way."""

  def examples(self, split: str) -> Sequence[base.Example]:
    return self.task.examples(split)


@dataclasses.dataclass(frozen=True)
class Paid(_Same):
  """Countdown with scores for what no one should be paid for."""

  def parts(self, text: str, target: str) -> dict[str, float]:
    del target
    return {
      'short': math.exp(-len(text) / _PACE),
      'long': 1 - math.exp(-len(text) / _PACE),
      'repeated': readability.repetition(text),
      'chinese': language.share(
        language.count_words(language.thought(text)), 'zh'
      ),
    }


@dataclasses.dataclass(frozen=True)
class Broken(_Same):
  """Countdown whose verifier raises on some of the answers."""

  def verify(self, answer: str, target: str) -> bool:
    if len(answer) % 2:
      raise ZeroDivisionError('a verifier with a fault')
    return self.task.verify(answer, target)


@dataclasses.dataclass(frozen=True)
class Slowing(_Same):
  """Countdown whose verifier becomes slow after so many answers."""

  def verify(self, answer: str, target: str) -> bool:
    if next(_judged) > 2000:
      time.sleep(0.1)
    return self.task.verify(answer, target)


@dataclasses.dataclass(frozen=True)
class Failure:
  """A run that goes wrong.

  Attributes:
    flags: of rlzero.grpo.
    change: changes the settings further, given the folder of the series.
    around: what is done to the program while it runs.
  """

  flags: tuple[str, ...] = ()
  change: Callable[[grpo.Config, pathlib.Path], grpo.Config] | None = None
  around: Callable[[], contextlib.AbstractContextManager] = (
    contextlib.nullcontext
  )


def _paid(name: str) -> Callable[[grpo.Config, pathlib.Path], grpo.Config]:
  def change(cfg: grpo.Config, folder: pathlib.Path) -> grpo.Config:
    del folder
    return dataclasses.replace(
      cfg, task=Paid(cfg.task), part_rewards={name: 1.0}
    )

  return change


def _gamed(cfg: grpo.Config, folder: pathlib.Path) -> grpo.Config:
  """Adds everyday problems under a reward model that likes short answers."""
  judge = folder / 'short_judge'
  if not (judge / 'model' / reward_model_file.SCORE_FILE).is_file():
    fail('zero_variance', folder)  # its policy stays the base
    pairs = folder / 'pairs.jsonl'
    files.write_jsonl(str(pairs), _pairs(folder / 'zero_variance'))
    reward_model.run(
      config.build(
        reward_model,
        [
          '--gin_file=configs/runs/reward_model_tiny.gin',
          f'--checkpoint={folders.embedded("tiny_base")}',
          f'--data={pairs}',
          '--reads=everything',
          '--max_len=160',
          f'--workdir={judge}',
        ],
      )
    )
  everyday = rewards.Scenario(
    task=countdown.Countdown(min_ways=2, max_ways=99, name='everyday'),
    share=3.0,
    accuracy_reward=0.0,
    format_reward=0.0,
    preferences=(rewards.Preference(checkpoint=str(judge)),),
  )
  return dataclasses.replace(cfg, others=(everyday,))


def _pairs(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """Pairs the short completions of each problem with its long ones."""
  asked: dict[str, list[str]] = {}
  for path in sorted(workdir.glob('completions/*.jsonl')):
    for record in metrics.read_lines(str(path)):
      asked.setdefault(record['question'], []).append(record['completion'])
  pairs = []
  for question, completions in asked.items():
    completions.sort(key=len)
    half = len(completions) // 2
    pairs += [
      {'prompt': question, 'chosen': short, 'rejected': long}
      for short, long in zip(
        completions[:half], completions[-half:], strict=True
      )
      if len(short) < len(long)
    ]
  return pairs


def _in_chinese(cfg: grpo.Config, folder: pathlib.Path) -> grpo.Config:
  """Pays a base of two languages for Chinese, whatever it is asked in."""
  made = folder / 'bilingual_base'
  if not (made / 'model').is_dir():
    pretrain.run(
      config.build(
        pretrain,
        [
          '--gin_file=configs/runs/tiny_bilingual_base.gin',
          f'--workdir={made}',
        ],
      )
    )
  cfg = dataclasses.replace(cfg, checkpoint=str(made))
  return _paid('chinese')(cfg, folder)


@contextlib.contextmanager
def _sampler_in_bfloat16() -> Iterator[None]:
  """Rollouts take weights that were rounded, as other engines do."""
  resharded = resharding.resharded

  @contextlib.contextmanager
  def rounded(model: Any, params: Any, mesh: sharding.Mesh | None) -> Any:
    narrow = jax.tree.map(
      lambda x: x.astype(jnp.bfloat16).astype(x.dtype), params
    )
    with resharded(model, narrow, mesh) as moved:
      yield moved

  with mock.patch.object(resharding, 'resharded', rounded):
    yield


def _wrapped(
  wrapper: Callable[[base.Task], base.Task],
) -> Callable[[grpo.Config, pathlib.Path], grpo.Config]:
  return lambda cfg, _: dataclasses.replace(cfg, task=wrapper(cfg.task))


FAILURES = {
  'zero_variance': Failure(
    flags=(*_NO_RULE, '--num_steps=12', '--keep_completions_every=1')
  ),
  'truncation': Failure(flags=('--max_len=28', '--num_steps=14')),
  'no_eos': Failure(flags=('--max_len=8', '--num_steps=4')),
  'format_only': Failure(
    flags=('--accuracy_reward=0', '--learning_rate=2e-4', '--num_steps=50')
  ),
  'length_collapse': Failure(
    flags=(*_NO_RULE, '--learning_rate=3e-4', '--num_steps=50'),
    change=_paid('short'),
  ),
  'length_explosion': Failure(
    flags=(*_NO_RULE, '--learning_rate=3e-4', '--num_steps=60'),
    change=_paid('long'),
  ),
  'entropy_collapse': Failure(
    flags=(*_NO_RULE, '--learning_rate=3e-4', '--num_steps=70'),
    change=_paid('long'),
  ),
  'kl': Failure(
    flags=('--learning_rate=3e-3', '--kl_coef=0.001', '--num_steps=20')
  ),
  'ratio': Failure(
    flags=('--learning_rate=1e-2', '--steps_per_rollout=2', '--num_steps=12')
  ),
  'reward_model_gap': Failure(
    flags=(*_NO_RULE, '--learning_rate=3e-4', '--num_steps=40'), change=_gamed
  ),
  'language_drift': Failure(
    flags=(*_NO_RULE, '--learning_rate=2e-4', '--num_steps=30'),
    change=_in_chinese,
  ),
  'repetition': Failure(
    flags=(*_NO_RULE, '--learning_rate=3e-4', '--num_steps=80'),
    change=_paid('repeated'),
  ),
  'worker_failures': Failure(flags=('--num_steps=4',), change=_wrapped(Broken)),
  'throughput': Failure(flags=('--num_steps=30',), change=_wrapped(Slowing)),
  'sampler_learner': Failure(
    flags=('--num_steps=4',), around=_sampler_in_bfloat16
  ),
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  only = series.names(FAILURES, 'alert')
  parser.add_argument('--only', type=only, default=list(FAILURES))
  parser.add_argument('--seeds', type=series.numbers, default=[])
  parser.add_argument('--out', type=pathlib.Path)
  given = parser.parse_args()
  given.folder.mkdir(parents=True, exist_ok=True)
  failed = {name: fail(name, given.folder) for name in given.only}
  good = {seed: succeed(seed, given.folder) for seed in given.seeds}
  measured = {
    **series.origin('failing_runs'),
    'failed': failed,
    'good': good,
    'all_rang': all(name in found['rang'] for name, found in failed.items()),
    'good_silent': not any(found['rang'] for found in good.values()),
  }
  print(files.to_json(measured, indent=2))
  if given.out:
    files.write_json(str(given.out), measured)
  if not (measured['all_rang'] and measured['good_silent']):
    sys.exit('An alert that should ring did not, or one rang in a good run.')


def fail(name: str, folder: pathlib.Path) -> dict[str, Any]:
  """Makes a run fail; returns its flags and what rang (see `rang`)."""
  failure = FAILURES[name]
  workdir = folder / name
  if not (workdir / 'summary.json').exists():
    cfg = config.build(grpo, [*_SMALL, *failure.flags, f'--workdir={workdir}'])
    if failure.change:
      cfg = failure.change(cfg, folder)
    with failure.around():
      grpo.run(cfg)
  return {'flags': ' '.join(failure.flags), **rang(workdir)}


def succeed(seed: int, folder: pathlib.Path) -> dict[str, Any]:
  """Runs the quickstart as it is; returns what rang."""
  workdir = folder / f'seed_{seed}'
  if not (workdir / 'summary.json').exists():
    grpo.run(
      config.build(
        grpo, [_QUICKSTART, f'--seed={seed}', f'--workdir={workdir}']
      )
    )
  return rang(workdir)


def rang(workdir: pathlib.Path) -> dict[str, Any]:
  """Steps of a run, and the first step at which each of its alerts rang."""
  rows = metrics.read_metrics(str(workdir))
  first: dict[str, int] = {}
  for row in rows:
    for name in row.get('alerts', ()):
      first.setdefault(name, row['step'])
  return {'steps': len(rows), 'rang': first}


if __name__ == '__main__':
  # Workers import the tasks by the module's name.
  from rlzero.benchmarks import failing_runs

  failing_runs.main()
