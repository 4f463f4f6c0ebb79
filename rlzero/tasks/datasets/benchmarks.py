"""The paper's evaluation sets whose answers are numbers, formulas or letters.

Each is written as a TFDS dataset at the first use; see `hub`. All have the
split 'test' alone.
"""

import dataclasses
from collections.abc import Iterable, Iterator

from rlzero.tasks import base, verifiers, verify
from rlzero.tasks.datasets import hub

_AIME = {
  2024: ('HuggingFaceH4/aime_2024', ('data/*.parquet',), 'problem'),
  2025: ('opencompass/AIME2025', ('aime2025-I*.jsonl',), 'question'),
}
_LETTERS = 'ABCD'
_CHOICE = (
  'Answer the following multiple choice question. The last line of your '
  "response should be of the form 'Answer: LETTER', where LETTER is one of "
  'ABCD.\n\n{question}\n\n{choices}'
)


@dataclasses.dataclass(frozen=True)
class AIME(verify.Numbers):
  """The American Invitational Mathematics Examination, I and II of a year.

  Raises:
    ValueError: a year that is not here.
  """

  year: int = 2024
  data_dir: str = '~/tensorflow_datasets'  # folder of TFDS datasets

  def __post_init__(self):
    if self.year not in _AIME:
      raise ValueError(
        f'AIME.year is {self.year}; it must be one of '
        f'{", ".join(map(str, _AIME))}.'
      )

  @property
  def name(self) -> str:
    return f'aime{self.year}'

  def examples(self, split: str) -> list[base.Example]:
    """The 30 problems; `hub.examples` says what may go wrong."""
    repo, files, question = _AIME[self.year]

    def convert(rows: Iterable[hub.Row]) -> Iterator[base.Example]:
      for index, row in enumerate(rows):
        yield base.Example(
          f'{self.name}-{index}',
          hub.text(row, question),
          hub.text(row, 'answer'),
        )

    hub.check_split(self.name, split)
    return hub.examples(self.name, self.data_dir, repo, files, convert)


@dataclasses.dataclass(frozen=True)
class MATH500(verify.Formulas):
  """500 problems of MATH (arXiv 2103.03874, 2305.20050); LaTeX answers."""

  data_dir: str = '~/tensorflow_datasets'  # folder of TFDS datasets
  name: str = 'math500'

  def examples(self, split: str) -> list[base.Example]:
    """The problems; `hub.examples` says what may go wrong."""

    def convert(rows: Iterable[hub.Row]) -> Iterator[base.Example]:
      for row in rows:
        yield base.Example(
          hub.text(row, 'unique_id'),
          hub.text(row, 'problem'),
          hub.text(row, 'answer'),
        )

    hub.check_split(self.name, split)
    return hub.examples(
      self.name, self.data_dir, 'HuggingFaceH4/MATH-500', ['*.jsonl'], convert
    )


@dataclasses.dataclass(frozen=True)
class GPQADiamond(verifiers.Choice):
  """198 questions of graduate level, of four choices (arXiv 2311.12022).

  The order of the choices is a hash of the uid, so that the right one is
  nowhere in particular and always in the same place.
  """

  data_dir: str = '~/tensorflow_datasets'  # folder of TFDS datasets
  name: str = 'gpqa_diamond'
  letters: str = dataclasses.field(default=_LETTERS, init=False)

  def examples(self, split: str) -> list[base.Example]:
    """The questions; `hub.examples` says what may go wrong."""
    hub.check_split(self.name, split)
    return hub.examples(
      self.name,
      self.data_dir,
      'Idavidrein/gpqa',
      ['gpqa_diamond.csv'],
      _multiple_choice,
    )


def _multiple_choice(rows: Iterable[hub.Row]) -> Iterator[base.Example]:
  for row in rows:
    uid = hub.text(row, 'Record ID')
    right = hub.text(row, 'Correct Answer').strip()
    wrong = [hub.text(row, f'Incorrect Answer {i}').strip() for i in (1, 2, 3)]
    if right in wrong:
      raise ValueError(
        f'{row[0]} has the right answer {right!r} among the wrong ones; '
        'correct or remove the row.'
      )
    choices = sorted(
      [right, *wrong], key=lambda c: base.bucket(f'{uid} {c}', 1 << 62)
    )
    lines = [
      f'{letter}) {choice}'
      for letter, choice in zip(_LETTERS, choices, strict=True)
    ]
    yield base.Example(
      uid,
      _CHOICE.format(
        question=hub.text(row, 'Question').strip(), choices='\n'.join(lines)
      ),
      _LETTERS[choices.index(right)],
    )
