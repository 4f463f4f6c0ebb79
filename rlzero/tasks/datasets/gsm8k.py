"""GSM8K (arXiv 2110.14168), from the dataset that TFDS prepares.

Prepare it once, where the network can be reached:

  python -c "from rlzero.tasks.datasets import gsm8k; gsm8k.prepare('DIR')"

or, from test.jsonl and train.jsonl of openai/grade-school-math in a folder of
yours, gsm8k.prepare('DIR', files='FOLDER').
"""

import dataclasses
import pathlib
from typing import Any

from tensorflow_datasets.core import registered
from tensorflow_datasets.text.gsm8k import gsm8k

from rlzero.tasks import base, verify
from rlzero.tasks.datasets import records

_PREPARE = (
  "run rlzero.tasks.datasets.gsm8k.prepare('DIR') on a new folder and give "
  'that as data_dir.'
)


@dataclasses.dataclass(frozen=True)
class GSM8K(verify.Numbers):
  """Grade-school word problems whose answers are numbers.

  'test' is the official one; 'validation' is a tenth of the official
  training problems, by hash of the question, and 'train' the rest.
  """

  data_dir: str = '~/tensorflow_datasets'  # folder of TFDS datasets
  name: str = 'gsm8k'

  def examples(self, split: str) -> list[base.Example]:
    """The problems of a split.

    Raises:
      FileNotFoundError: the dataset is not prepared, or in another format.
      ValueError: no such split, or a problem without question or answer.
    """
    if split not in ('train', 'validation', 'test'):
      raise ValueError(
        f'gsm8k has no split {split!r}; choose train, validation or test.'
      )
    folder = pathlib.Path(
      self.data_dir, 'gsm8k', str(gsm8k.Gsm8k.VERSION)
    ).expanduser()
    if not (folder / 'dataset_info.json').exists():
      raise FileNotFoundError(f'{folder} holds no dataset; {_PREPARE}')
    source = 'test' if split == 'test' else 'train'
    found, placed = [], []
    for index, record in enumerate(
      records.read(records.Source(path=str(folder), split=source))
    ):
      question, target = records.text(record, 'question'), _short(record)
      placed.append((record[0], question, target))
      if source == 'train':
        if (base.bucket(question) < 10) != (split == 'validation'):
          continue
      found.append(
        base.Example(
          uid=f'gsm8k-{source}-{index}', question=question, target=target
        )
      )
    records.tell_duplicates(f'{folder} ({source})', placed)
    return found


def _short(record: records.Record) -> str:
  """The number that is the answer, which stands after '####'."""
  place, row = record
  _, mark, last = row['answer'].rpartition('####')
  answer = row['short_answer'] or (last if mark else '')
  if not answer.strip():
    raise ValueError(
      f"{place} has no answer after '####'; prepare the dataset again."
    )
  return answer.strip()


_COLUMNS = 'question', 'answer', 'annotation', 'short_answer'


with registered.skip_registration():

  class _FromFiles(gsm8k.Gsm8k):
    """TFDS's own builder, of files that are here instead of a download."""

    name = 'gsm8k'

    def __init__(self, files: dict[str, pathlib.Path], **options: Any):
      self._files = files
      super().__init__(**options)

    def _split_generators(self, dl_manager):
      del dl_manager
      return {k: self._kept(v) for k, v in self._files.items()}

    def _kept(self, path: pathlib.Path):
      """The examples of a file, without columns that the data set lacks."""
      for key, row in self._generate_examples(path):
        yield key, {name: row[name] for name in _COLUMNS}


def prepare(data_dir: str, files: str = '') -> None:
  """Writes GSM8K in a format that is read without TensorFlow.

  Args:
    data_dir: folder of TFDS data sets, for `GSM8K.data_dir`.
    files: folder with test.jsonl, train.jsonl or both, lines of `question` and
      `answer`; '' downloads them.

  Raises:
    FileNotFoundError: the folder has neither.
  """
  options: dict[str, Any] = {
    'data_dir': pathlib.Path(data_dir).expanduser(),
    'file_format': 'array_record',
  }
  if not files:
    gsm8k.Gsm8k(**options).download_and_prepare()
    return
  folder = pathlib.Path(files).expanduser()
  found = {
    split: folder / f'{split}.jsonl'
    for split in ('train', 'test')
    if (folder / f'{split}.jsonl').is_file()
  }
  if not found:
    raise FileNotFoundError(
      f'{folder} has neither train.jsonl nor test.jsonl; give the folder with '
      'the files of openai/grade-school-math.'
    )
  _FromFiles(found, **options).download_and_prepare()
