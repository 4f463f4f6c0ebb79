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

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from rlzero.evaluation import contamination, measure, rejection
from rlzero.runtime import config, files, hosts, lifecycle, saved_config
from rlzero.tasks import base

SEVERAL_HOSTS = True  # may run it together


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(rejection.Settings):
  """Settings of rejection sampling."""


def run(cfg: Config) -> None:
  """Samples what is missing, chooses, and writes samples and statistics.

  Raises:
    ValueError: input that cannot be used, or nothing that can be kept.
  """
  saved_config.check_resume_compatible(cfg, cfg.workdir)
  lifecycle.check_backend()
  index = contamination.Index(
    (e for task in cfg.decontaminate_with for e in task.examples('test')),
    cfg.num_words,
  )
  found = measure.examples(cfg.task, cfg.split, cfg.num_problems)
  examples = [e for e in found if not index.has(e.question)]
  if not examples:
    raise ValueError(
      f'All {len(found)} problems of the {cfg.split!r} split of task '
      f'{cfg.task.name!r} share {cfg.num_words} words with an evaluation set; '
      'choose another split or task.'
    )
  problems = {'found': len(found), 'contaminated': len(found) - len(examples)}
  num_clean = len(examples)
  examples = rejection.leave_out_long(cfg, examples)
  problems['too_long'] = num_clean - len(examples)
  hosts.on_first(lambda: saved_config.save(cfg, cfg.workdir))
  source = rejection.sample(cfg, examples)
  hosts.on_first(lambda: _write_kept(cfg, examples, index, problems, source))


def _write_kept(
  cfg: Config,
  examples: Sequence[base.Example],
  index: contamination.Index,
  problems: Mapping[str, int],
  source: dict[str, Any],
) -> None:
  """Chooses among all that was sampled; writes samples and statistics.

  Raises:
    ValueError: nothing can be kept.
  """
  records = [
    r
    for n in range(rejection.num_parts(cfg, examples))
    for r in rejection.read_part(cfg, n)
  ]
  kept, reasons = rejection.choose(cfg, records, index)
  if not kept:
    raise ValueError(
      f'None of {len(records)} completions can be kept '
      f'({rejection.listed(reasons)}); sample a better model, or loosen '
      'reject.Config.limits.'
    )
  lines = [rejection.line(record, source) for record in kept]
  statistics = rejection.describe(cfg, records, kept, reasons, problems, source)
  for name, text in {
    'samples.jsonl': ''.join(map(rejection.to_json, lines)),
    'statistics.json': files.to_json(statistics, indent=2) + '\n',
    'statistics.md': rejection.page(statistics, lines),
  }.items():
    files.write_whole(os.path.join(cfg.workdir, name), text)
  print(
    f'kept {len(kept)} of {len(records)} completions, for '
    f'{statistics["problems"]["kept"]} of {len(examples)} problems '
    f'({rejection.listed(reasons)})'
  )


if __name__ == '__main__':
  from rlzero import reject

  config.main(reject)
