"""Whether a person could read what a model wrote; no JAX here.

R1's third stage leaves out samples "with mixed languages, long paragraphs, and
code blocks" (arXiv 2501.12948, section 2.3.3); repetition is added. The paper
gives no limits: those here are ours.
"""

import dataclasses
import re

from rlzero.runtime import fields
from rlzero.runtime.fields import at_least

_PARAGRAPHS = re.compile(r'\n\s*\n')
# Text without spaces counts by the character, as in text/language.py.
_WORD = re.compile(
  '[\u3040-\u30ff\u3400-\u9fff]|[^\\s\u3040-\u30ff\u3400-\u9fff]+'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """Limits of a readable completion.

  Raises:
    ValueError: a limit out of range.
  """

  min_language: float = 0.95  # share of the thought's words, of its language
  max_paragraph: int = 500  # words between two blank lines
  max_code_blocks: int = 0  # fenced
  max_repetition: float = 0.2  # share of `repetition`

  def __post_init__(self):
    fields.check(
      self,
      min_language=at_least(0).at_most(1),
      max_repetition=at_least(0).at_most(1),
      max_paragraph=at_least(0),
      max_code_blocks=at_least(0),
    )


def measures(text: str) -> dict[str, float]:
  """Longest paragraph in words, number of code blocks, repetition."""
  return {
    'paragraph': max(len(_words(p)) for p in _PARAGRAPHS.split(text)),
    'code_blocks': (text.count('```') + 1) // 2,  # the last may stay open
    'repetition': repetition(text),
  }


def repetition(text: str, num_words: int = 8) -> float:
  """Share of the n-grams that stood in the text before, in [0, 1)."""
  words = _words(text)
  ngrams = [
    tuple(words[i : i + num_words]) for i in range(len(words) - num_words + 1)
  ]
  return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def fault(text: str, language: float, limits: Limits) -> str | None:
  """The first thing that makes a completion unreadable, or None.

  Args:
    text: the completion.
    language: share of its thought's words that are of the right language.
    limits: what it may have.
  """
  found = measures(text)
  if language < limits.min_language:
    return 'language'
  if found['paragraph'] > limits.max_paragraph:
    return 'paragraph'
  if found['code_blocks'] > limits.max_code_blocks:
    return 'code_blocks'
  if found['repetition'] > limits.max_repetition:
    return 'repetition'
  return None


def _words(text: str) -> list[str]:
  return _WORD.findall(text)
