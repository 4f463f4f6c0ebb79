"""Rewards of one's own: in rlzero's form, and in the form that TRL has."""

import re
from typing import Any


def score(completion: str, target: str, **columns: Any) -> float:
  """1 for the target alone behind the last 'Answer:', less for more words."""
  words = completion.rpartition('Answer:')[2].split()
  if target not in words:
    return 0.0
  return 1.0 if len(words) == 1 else 0.5


def brevity(completions: list[str], **kwargs: Any) -> list[float]:
  """How much shorter each is than the mean of its group, from -1 to 1."""
  lengths = [len(completion) for completion in completions]
  mean = sum(lengths) / len(lengths)
  return [(mean - n) / max(mean, n, 1) for n in lengths]


def shows_work(
  completions: list[str], level: list[int], **kwargs: Any
) -> list[float | None]:
  """Whether a sum is written out; easy problems need none."""
  return [
    None if easy < 2 else float(bool(re.search(r'\d+ \+ \d+ =', text)))
    for text, easy in zip(completions, level, strict=True)
  ]
