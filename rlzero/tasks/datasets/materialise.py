"""Any task as a TFDS dataset on disk, and back."""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from rlzero.tasks import base
from rlzero.text.template import Chat

_SPLITS = ('train', 'validation', 'test')
_FIELDS = ('uid', 'question', 'target', 'task')


class Problems(tfds.core.GeneratorBasedBuilder):
  """Question and target of each problem; the configuration is the task."""

  VERSION = tfds.core.Version('1.0.0')

  def __init__(
    self, *, splits: Mapping[str, Sequence[base.Example]], **kwargs: Any
  ):
    self._problems = splits
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description='Problems with answers that a program can check.',
      features=tfds.features.FeaturesDict(
        {field: tfds.features.Text() for field in _FIELDS}
      ),
      disable_shuffling=True,  # the order of the task is kept
    )

  def _split_generators(self, dl_manager):
    return {
      split: self._generate_examples(examples)
      for split, examples in self._problems.items()
    }

  def _generate_examples(
    self, examples: Sequence[base.Example]
  ) -> Iterator[tuple[int, dict[str, str]]]:
    for index, example in enumerate(examples):
      if isinstance(example.question, Chat):
        raise ValueError(
          f'Problem {example.uid!r} is a conversation, of which only the text '
          'would be written; read it from where it is.'
        )
      yield index, {field: getattr(example, field) for field in _FIELDS}


def materialise(task: base.Task, data_dir: str) -> pathlib.Path:
  """Writes every split of a task that has problems, as array_record.

  Args:
    task: where the problems come from.
    data_dir: folder of TFDS datasets.

  Returns:
    The folder of the dataset.

  Raises:
    ValueError: no problems, or a dataset of this task is there already.
  """
  folder = _folder(task, data_dir)
  if folder.exists():
    raise ValueError(
      f'{folder} exists and may hold other problems; remove it or choose '
      'another data_dir.'
    )
  splits = {split: task.examples(split) for split in _SPLITS}
  write(task.name, splits, data_dir)
  return folder


def write(
  name: str, splits: Mapping[str, Sequence[base.Example]], data_dir: str
) -> None:
  """Writes the splits that have problems under the name of a task.

  Raises:
    ValueError: no problems.
  """
  splits = {split: examples for split, examples in splits.items() if examples}
  if not splits:
    raise ValueError(
      f'The task {name} has no problems to write; ask it for more than 0.'
    )
  builder = Problems(
    splits=splits,
    config=tfds.core.BuilderConfig(name=name),
    data_dir=data_dir,
    file_format='array_record',
  )
  # It tells of its progress on stdout, where metrics as JSON stand alone.
  with contextlib.redirect_stdout(sys.stderr):
    builder.download_and_prepare()


def read(folder: pathlib.Path, split: str) -> list[base.Example]:
  """The problems of a split, as they were written.

  Raises:
    ValueError: no such split.
  """
  builder = tfds.builder_from_directory(folder)
  if split not in builder.info.splits:
    raise ValueError(
      f'{folder} has no split {split!r}; it has '
      f'{", ".join(builder.info.splits)}.'
    )
  # A decorator hides that it takes the split.
  rows = builder.as_data_source(split)  # pyright: ignore[reportCallIssue]
  return [
    base.Example(**{field: row[field].decode() for field in _FIELDS})
    for row in rows
  ]


@dataclasses.dataclass(frozen=True)
class Materialised(base.Wrapper):
  """A task whose problems are read from disk; `task` still judges them."""

  data_dir: str

  def examples(self, split: str) -> list[base.Example]:
    """The problems of a split, as they were written.

    Raises:
      FileNotFoundError: the task was not materialised.
      ValueError: no such split.
    """
    folder = _folder(self.task, self.data_dir)
    if not (folder / 'dataset_info.json').exists():
      raise FileNotFoundError(
        f'{folder} holds no dataset; write it with '
        'rlzero.tasks.datasets.materialise.materialise.'
      )
    return read(folder, split)


def _folder(task: base.Task, data_dir: str) -> pathlib.Path:
  version = str(Problems.VERSION)
  return pathlib.Path(data_dir) / Problems.name / task.name / version
