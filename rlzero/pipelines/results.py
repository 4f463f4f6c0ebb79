"""The evaluations of a pipeline, and what its stages took."""

import collections
import json
import os
import statistics
from collections.abc import Mapping
from typing import Any

from rlzero.pipelines.manifest import Manifest
from rlzero.runtime import metrics
from rlzero.scoring import rewards
from rlzero.text import readability

RESULTS = 'results.json'
METRICS = (
  'pass@1',
  'pass@1_interval',
  'strict',
  'format',
  'language',
  'completion_len',
  'tries',
  'truncated',
  'split',
  'num_problems',
  'num_samples',
  'temperature',
)


def results(workdir: str) -> dict[str, Any]:
  """Collects the times of finished stages and the results of evaluations.

  Raises:
    FileNotFoundError: files of a finished evaluation are gone.
  """
  stages = Manifest(workdir).stages
  return {
    'evaluations': {
      name: _evaluation(os.path.join(workdir, name, 'evaluations'))
      for name, stage in stages.items()
      if stage['module'] == 'rlzero.evaluate'
    },
    'stages': {
      name: {
        'module': stage['module'],
        'wall_s': round(stage['wall_s'], 1),
        **{k: stage[k] for k in ('finished', 'hardware', 'commit')},
      }
      for name, stage in stages.items()
    },
  }


def _evaluation(folder: str) -> dict[str, Any]:
  """Its metrics, and how its completions fare with the checks of `reject`."""
  with open(os.path.join(folder, 'evaluation.json'), encoding='utf-8') as file:
    measured = json.load(file)
  records = metrics.read_lines(os.path.join(folder, 'evaluation.jsonl'))
  limits = readability.Limits()
  texts = [r['completion'] for r in records]
  faults = collections.Counter(
    readability.fault(
      text, rewards.readable_consistency(record, 'prompt'), limits
    )
    for text, record in zip(texts, records, strict=True)
  )
  measures = [readability.measures(text) for text in texts]
  return {
    **{name: measured[name] for name in METRICS},
    'readable': faults.pop(None, 0) / len(records),
    'unreadable': {k: n / len(records) for k, n in sorted(faults.items())},
    **{
      name: statistics.fmean(m[name] for m in measures) for name in measures[0]
    },
  }


def table(found: Mapping[str, Any]) -> str:
  """The evaluations of `results`, one line each, as Markdown."""
  lines = [
    '| | pass@1 | strict | format | language | length | readable | repeats |',
    '|---|---|---|---|---|---|---|---|',
  ]
  for name, measured in found['evaluations'].items():
    interval = metrics.interval_text(measured['pass@1_interval'])
    language = measured['language']
    cells = [
      f'`{name.removesuffix("_evaluation")}`',
      f'{measured["pass@1"]:.3f} {interval}',
      f'{measured["strict"]:.3f}',
      f'{measured["format"]:.3f}',
      '-' if language is None else f'{language:.3f}',
      f'{measured["completion_len"]:.0f}',
      f'{measured["readable"]:.3f}',
      f'{measured["repetition"]:.3f}',
    ]
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)
