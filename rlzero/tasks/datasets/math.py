"""MATH (arXiv 2103.03874): competition problems with answers in LaTeX.

Put two files of JSON lines, each with `problem` and `answer`, into a folder:
train.jsonl and test.jsonl. The split of arXiv 2305.20050, 12,000 problems to
learn from and 500 to test on, is published in this form.
"""

import dataclasses
import pathlib

from rlzero.tasks import base, verify
from rlzero.tasks.datasets import records


@dataclasses.dataclass(frozen=True)
class MATH(verify.Formulas):
  """The problems; answers are compared as mathematics.

  'validation' is a twentieth of the training problems, by hash of the
  question, and 'train' the rest.
  """

  data_dir: str = '~/math'  # folder of train.jsonl and test.jsonl
  name: str = 'math'

  def examples(self, split: str) -> list[base.Example]:
    """The problems of a split.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no such split, or a line that is damaged or lacks a problem
        or an answer.
    """
    if split not in ('train', 'validation', 'test'):
      raise ValueError(
        f'math has no split {split!r}; choose train, validation or test.'
      )
    source = 'test' if split == 'test' else 'train'
    path = pathlib.Path(self.data_dir).expanduser() / f'{source}.jsonl'
    found, placed = [], []
    for index, record in enumerate(
      records.read(records.Source(path=str(path)))
    ):
      question = records.text(record, 'problem').strip()
      target = records.text(record, 'answer').strip()
      placed.append((record[0], question, target))
      held_out = base.bucket(question) < 5
      if source == 'train' and held_out != (split == 'validation'):
        continue
      found.append(
        base.Example(
          uid=f'math-{source}-{index}', question=question, target=target
        )
      )
    records.tell_duplicates(str(path), placed)
    return found
