"""Judges the samples of an evaluation again, with math-verify and no more.

  python -m rlzero.benchmarks.compare_graders --workdir=DIR [--out=FILE]
    [--gin_file=FILE]

DIR is the workdir of an evaluation of the suite in the gin file (by default
configs/runs/evaluate_reasoning_gym.gin). A completion is right here if
`verify(parse(target), parse(completion))`. Verdicts that differ from the
evaluation's are written down, each with its reason.

  python -m rlzero.benchmarks.compare_graders --outputs=FILE

compares our verdicts with those that a published grader gave instead. Each
line of FILE is a JSON object, as the evaluation of Qwen2.5-Math writes it: the
target `gt`, model outputs in `code` and a verdict for each in `score`; or
`target`, `ends` (the last characters of the outputs) and `graded_right`. It
prints every difference.
"""

import argparse
import collections
import json
import logging
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import math_verify

from rlzero import evaluate
from rlzero.benchmarks import series
from rlzero.runtime import config, files
from rlzero.tasks import base, verify

_EXPRESSION = re.compile(r'[\d(][\d\s()+*/-]*')
REASONS = {
  'question': "math-verify's answer is the question's own expression, restated "
  'and not worked out',
  'stated': 'the right expression is in the text, though not as an answer: '
  'inside an equation or a list',
  'value': 'what math-verify takes for the answer has the value of the target '
  'and is no answer: a number, or an expression of other numbers',
  'last number': 'ours is the generous one: the text stops at working whose '
  'last number is the target',
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument('--workdir', type=pathlib.Path)
  source.add_argument('--outputs', type=pathlib.Path)
  parser.add_argument('--out', type=pathlib.Path)
  parser.add_argument(
    '--gin_file', default='configs/runs/evaluate_reasoning_gym.gin'
  )
  flags = parser.parse_args()
  if flags.outputs:
    lines = flags.outputs.read_text(encoding='utf-8').splitlines()
    found = published_differences([json.loads(line) for line in lines])
    print(files.to_json(found, indent=1, ensure_ascii=False))
    return
  logging.getLogger('math_verify').setLevel(logging.ERROR)
  cfg = config.build(
    evaluate, [f'--gin_file={flags.gin_file}', f'--workdir={flags.workdir}']
  )
  found = {}
  for benchmark in cfg.measured:
    path = flags.workdir / 'evaluations' / f'{benchmark.name}.jsonl'
    records = [json.loads(line) for line in path.open(encoding='utf-8')]
    targets = {
      e.uid: e.target for e in benchmark.task.examples(benchmark.split)
    }
    found[benchmark.name] = differences(benchmark.task, targets, records)
  for name, one in found.items():
    print(f'{name}: {one["agree"]} of {one["samples"]} agree; {one["reasons"]}')
  if flags.out:
    results = {
      **series.origin('compare_graders'),
      'reasons': REASONS,
      'benchmarks': found,
    }
    files.write_json(flags.out, results, indent=1)


def published_differences(problems: Sequence[Mapping[str, Any]]) -> dict:
  """Our verdicts beside a published grader's.

  An output that was graded right but whose kept end neither has a box nor the
  target cannot be judged: its answer stood before the end. It is counted apart.
  """
  judge = verify.Formulas()
  outputs, cut, differing = 0, 0, []
  for problem in problems:
    target, texts, verdicts = _graded(problem)
    for text, right in zip(texts, verdicts, strict=True):
      outputs += 1
      answer = judge.extract(text)
      ours = answer is not None and judge.verify(answer, target)
      if ours == right:
        continue
      if right and '\\boxed' not in text and target not in text:
        cut += 1
        continue
      differing.append(
        {'target': target, 'answer': answer, 'ours': ours, 'theirs': right}
      )
  agree = outputs - cut - len(differing)
  return {
    'outputs': outputs,
    'without_answer': cut,
    'agree': agree,
    'agreement': agree / max(outputs - cut, 1),
    'agreement_of_all': agree / max(outputs, 1),
    'differences': differing,
  }


def _graded(
  problem: Mapping[str, Any],
) -> tuple[str, Sequence[str], Sequence[bool]]:
  """A problem's target, outputs and the verdicts on them."""
  whole, ends = ('gt', 'code', 'score'), ('target', 'ends', 'graded_right')
  target, texts, verdicts = whole if 'code' in problem else ends
  return problem[target], problem[texts], problem[verdicts]


def differences(
  task: base.Task,
  targets: Mapping[str, str],
  records: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
  """How many verdicts agree, and all that do not."""
  differing = []
  for record in records:
    target = targets[record['uid']]
    try:
      answer = json.loads(target)['answer']
    except (ValueError, TypeError):  # a target that is no JSON object
      answer = target
    parsed = math_verify.parse(record['completion'])
    if (
      math_verify.verify(math_verify.parse(answer), parsed)
      == (record['correct'])
    ):
      continue
    taken = str(parsed[-1])
    differing.append(
      {
        'uid': record['uid'],
        'reason': _reason(task, target, record, taken),
        'correct': record['correct'],
        'target': answer,
        'answer': record['answer'],
        'math_verify': taken,
        'completion': record['completion'],
      }
    )
  reasons = collections.Counter(one['reason'] for one in differing)
  return {
    'samples': len(records),
    'agree': len(records) - len(differing),
    'reasons': dict(reasons),
    'differences': differing,
  }


def _reason(task: base.Task, target: str, record, taken: str) -> str:
  if record['correct']:
    return 'last number'
  if taken.strip(' .') in record['question'] and not taken.isdigit():
    return 'question'
  stated = _EXPRESSION.findall(record['completion'])
  if any(
    not one.strip().isdigit() and task.verify(one.strip(), target)
    for one in stated
  ):
    return 'stated'
  return 'value'


if __name__ == '__main__':
  main()
