"""GSM8K (arXiv 2110.14168), from the dataset that TFDS prepares.

Prepare it once, where the network can be reached:

  python -c "from rlzero.tasks.datasets import gsm8k; gsm8k.prepare('DIR')"
"""

import dataclasses
import pathlib

import tensorflow_datasets as tfds
from tensorflow_datasets.text.gsm8k import gsm8k

from rlzero.tasks import base, verify

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
      ValueError: no such split.
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
    builder = tfds.builder_from_directory(folder)
    if builder.info.file_format.value != 'array_record':
      raise FileNotFoundError(
        f'{folder} holds {builder.info.file_format.value} files, and only '
        f'array_record is read without TensorFlow; {_PREPARE}'
      )
    source = 'test' if split == 'test' else 'train'
    found = []
    for index, row in enumerate(builder.as_data_source(source)):
      question = row['question'].decode()
      if source == 'train':
        if (base.bucket(question) < 10) != (split == 'validation'):
          continue
      short = row['short_answer'] or row['answer'].rpartition(b'####')[2]
      found.append(
        base.Example(
          uid=f'gsm8k-{source}-{index}',
          question=question,
          target=short.decode().strip(),
        )
      )
    return found


def prepare(data_dir: str) -> None:
  """Downloads GSM8K and writes it in a format read without TensorFlow."""
  gsm8k.Gsm8k(
    data_dir=pathlib.Path(data_dir).expanduser(), file_format='array_record'
  ).download_and_prepare()
