"""Training text that shares n-grams with evaluation problems.

DeepSeek-R1's filter (arXiv 2501.12948v2, supplement D.1): a training item
that has ten words in a row in common with an evaluation problem is left out.
It finds copies and near copies, not paraphrases. Problems that are made from
a template share the template's words: give those a longer n-gram than it.
"""

import array
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rlzero.tasks import base
from rlzero.text import files

# A word, a character of a script without spaces, or an operator; a formula
# without its operators would be any formula of the same numbers.
_WORD = re.compile(
  '[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]'
  '|[^\\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+|[-+*/=<>^]'
)


class Overlap(NamedTuple):
  """Words that a training item and an evaluation problem have in common."""

  train: str  # uid of the training item
  evaluation: str  # uid of the evaluation problem
  ngram: str


class Index:
  """The n-grams of evaluation problems, to be looked up in any text."""

  def __init__(self, evaluation: Iterable[base.Example], num_words: int = 10):
    """Reads the questions once.

    Args:
      evaluation: problems whose questions no training text may show.
      num_words: n. A question of fewer words is one n-gram as it is.

    Raises:
      ValueError: n below 1.
    """
    if num_words < 1:
      raise ValueError(
        f'contamination.Index has num_words {num_words}; it must be at least '
        '1 (the paper has 10).'
      )
    self._owners: dict[int, dict[tuple[str, ...], list[str]]] = {}
    for example in evaluation:
      words = _words(example.question)
      size = min(num_words, len(words))
      if not size:
        continue
      owners = self._owners.setdefault(size, {})
      for ngram in dict.fromkeys(_ngrams(words, size)):
        owners.setdefault(ngram, []).append(example.uid)
    self._ngrams = {size: set(owners) for size, owners in self._owners.items()}

  def has(self, text: str) -> bool:
    """Whether the text shares an n-gram with any problem."""
    words = _words(text)
    return not all(
      ngrams.isdisjoint(_ngrams(words, size))
      for size, ngrams in self._ngrams.items()
    )

  def overlaps(self, uid: str, text: str) -> list[Overlap]:
    """The first shared n-gram with each of the problems that share one."""
    if not self.has(text):
      return []
    words, found = _words(text), {}
    for size, owners in self._owners.items():
      for ngram in _ngrams(words, size):
        for owner in owners.get(ngram, ()):
          found.setdefault(owner, Overlap(uid, owner, ' '.join(ngram)))
    return list(found.values())


@dataclasses.dataclass(frozen=True)
class Decontaminated(base.Wrapper):
  """A task without the training problems that some evaluation set holds.

  Attributes:
    task: where the problems come from, and their judge.
    decontaminate_with: the evaluation sets, by their 'test' split.
    num_words: n of the n-grams.
  """

  decontaminate_with: tuple[base.Task, ...]
  num_words: int = 10

  def examples(self, split: str) -> Sequence[base.Example]:
    """The problems of a split; those of 'train' filtered."""
    found = self.task.examples(split)
    if split != 'train':
      return found
    index = Index(
      (e for one in self.decontaminate_with for e in one.examples('test')),
      self.num_words,
    )
    clean = (i for i, e in enumerate(found) if not index.has(e.question))
    return base.View(found, places=array.array('q', clean))


def read(path: str) -> Iterator[tuple[str, str]]:
  """Items of a JSONL file: uid, and all text that stands in the line.

  Raises:
    ValueError: a line that is damaged, by its number.
  """
  for number, line in files.lines(path):
    if not line.strip():
      continue
    place = f'{path}:{number}'
    item = files.parse_json(line, place, 'remove or correct the line')
    uid = item.get('uid') if isinstance(item, dict) else None
    yield str(uid or f'line {number}'), '\n'.join(_strings(item))


def text(result: Mapping[str, Any]) -> str:
  """A report in lines: counts, and the first overlaps of each set."""
  lines = [
    f'{result["num_train_overlapping"]} of {result["num_train"]} training '
    f'items share {result["num_words"]} words in a row with a problem'
  ]
  for name, found in result['sets'].items():
    lines.append(
      f'{name}: {found["num_overlapping"]} of {found["num_problems"]} problems'
    )
    lines += [
      f'  {o["train"]} has {o["evaluation"]}: {o["ngram"]}'
      for o in found['overlaps'][:5]
    ]
  return '\n'.join(lines)


def report(
  training: Iterable[tuple[str, str]],
  evaluation: Mapping[str, Sequence[base.Example]],
  num_words: int = 10,
) -> dict[str, Any]:
  """Finds what a training set has in common with evaluation sets.

  Args:
    training: uid and text (question and all that is trained on) of each item.
    evaluation: problems by the name of their set.
    num_words: n of the n-grams.

  Returns:
    {'num_words', 'num_train', 'num_train_overlapping', 'sets': {name:
    {'num_problems', 'num_overlapping', 'overlaps': [Overlap as a dict]}}}.
  """
  indices = {n: Index(e, num_words) for n, e in evaluation.items()}
  overlaps: dict[str, list[Overlap]] = {name: [] for name in evaluation}
  num_train, dirty = 0, 0
  for uid, text in training:
    found = {n: index.overlaps(uid, text) for n, index in indices.items()}
    num_train += 1
    dirty += any(found.values())
    for name, some in found.items():
      overlaps[name] += some
  return {
    'num_words': num_words,
    'num_train': num_train,
    'num_train_overlapping': dirty,
    'sets': {
      name: {
        'num_problems': len(evaluation[name]),
        'num_overlapping': len({o.evaluation for o in some}),
        'overlaps': [o._asdict() for o in some],
      }
      for name, some in overlaps.items()
    },
  }


def _strings(item: Any) -> Iterator[str]:
  """Every string in a JSON value, keys aside."""
  if isinstance(item, str):
    yield item
  elif isinstance(item, (list, dict)):
    for one in item.values() if isinstance(item, dict) else item:
      yield from _strings(one)


def _words(text: str) -> list[str]:
  return _WORD.findall(text.casefold())


def _ngrams(words: Sequence[str], size: int) -> Iterable[tuple[str, ...]]:
  return zip(*(words[start:] for start in range(size)), strict=False)
