"""Answers that are right for most problems of a task without being read.

A policy finds such an answer within a few steps and learns nothing else.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from rlzero.tasks import generators

# What models fall back on, and what scorers have been seen to accept.
ANSWERS = (
  '0',
  '1',
  '-1',
  '2',
  'yes',
  'no',
  'Yes',
  'No',
  'True',
  'False',
  'None',
  'A',
  'C',
  'x',
  '.',
  '[]',
  '{}',
  '[0]',
  '[[]]',
  '[NaN]',
  'nan',
  'inf',
  '0x0',
  'answer',
)
_FIRST = 12  # an answer that is right for none of so many is left alone

# Measured by `benchmarks.constant_answers` with reasoning-gym 0.1.25.
REFUSED: dict[str, str] = {
  'coin_flip': "its scorer takes '0' for 92% of the problems",
  'game_of_life_halting': 'its scorer takes any text for an answer',
}
MOSTLY: dict[str, tuple[str, float]] = {  # the answer, and its share
  'circuit_logic': ('0', 0.54),
  'course_schedule': ('False', 0.6),
  'isomorphic_strings': ('True', 0.58),
  'ransom_note': ('True', 0.5),
  'self_reference': ('2', 0.5),
  'syllogism': ('Yes', 0.72),
}


def most_accepted(
  name: str, generator: Any, entries: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
  """The constant answer that is right for most of the problems.

  Args:
    name: of the generator.
    generator: of reasoning-gym.
    entries: its problems.

  Returns:
    `answer`; `share`: of the problems for which it is right; `unfounded`: of
    the problems for which it is right and is not the generator's own answer;
    `echo`: for which the question is; `padded`: for which the own answer with
    another one behind it is.
  """
  own = collections.Counter(str(e['answer']) for e in entries)
  candidates = [*ANSWERS, own.most_common(1)[0][0]]
  best: tuple[int, int, str] = (0, 0, '')
  for answer in dict.fromkeys(candidates):
    if not any(_is_right(name, generator, answer, e) for e in entries[:_FIRST]):
      continue
    right = [e for e in entries if _is_right(name, generator, answer, e)]
    unfounded = [e for e in right if str(e['answer']).strip() != answer.strip()]
    best = max(best, (len(right), len(unfounded), answer))
  echo = padded = 0
  some = entries[:_FIRST]
  for entry in some:
    echo += _is_right(name, generator, entry['question'], entry)
    if entry['answer'] is not None:
      padded += any(
        _is_right(name, generator, f'{entry["answer"]}{more}', entry)
        for more in (', junk', ' junk', '\njunk', ' or 7')
      )
  total = max(len(entries), 1)
  return {
    'answer': best[2],
    'share': best[0] / total,
    'unfounded': best[1] / total,
    'echo': echo / max(len(some), 1),
    'padded': padded / max(len(some), 1),
  }


def _is_right(
  name: str, generator: Any, answer: str, entry: Mapping[str, Any]
) -> bool:
  try:
    return generators.is_right(name, generator, answer, entry)
  except TimeoutError:
    raise
  except Exception:  # a completion like this is unscored, and earns 0
    return False
