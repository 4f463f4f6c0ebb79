"""Examples from JSONL, parquet and TFDS, and what is said of bad ones."""

import json

import pyarrow
import pytest
import tensorflow_datasets as tfds
from pyarrow import parquet

from rlzero.tasks.datasets import records

_ROWS = [
  {'prompt': 'a', 'completion': 'b'},
  {
    'prompt': 'c',
    'completion': 'd',
    'messages': [{'role': 'user', 'content': '哪里'}],
  },
]


def _read(path, **settings):
  source = records.Source(path=str(path), **settings)
  return [row for _, row in records.read(source)]


def _write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def test_jsonl_and_parquet_hold_the_same(tmp_path):
  text = _write(tmp_path / 'a.jsonl', _ROWS)
  assert _read(text) == _ROWS
  table = tmp_path / 'shards'
  table.mkdir()
  for i, row in enumerate(_ROWS):  # shards are read in the order of names
    parquet.write_table(
      pyarrow.Table.from_pylist([row]), table / f'{i}.parquet'
    )
  assert _read(table) == _ROWS


def test_tfds_folder(tmp_path):
  class Chats(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      text = tfds.features.Text()
      turns = tfds.features.Sequence({'role': text, 'content': text})
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict({'q': text, 'messages': turns}),
        disable_shuffling=True,
      )

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      yield 0, {'q': 'x', 'messages': _ROWS[1]['messages']}

  builder = Chats(data_dir=tmp_path, file_format='array_record')
  builder.download_and_prepare()
  expected = [{'prompt': 'x', 'messages': _ROWS[1]['messages']}]
  assert _read(builder.data_path, rename={'q': 'prompt'}) == expected
  with pytest.raises(ValueError, match="no split 'test'; it has train"):
    _read(builder.data_path, split='test')


@pytest.mark.parametrize(
  ('name', 'text', 'message'),
  [
    ('x.jsonl', '{"a": 1}\n{"a"\n', r'x\.jsonl:2 is not JSON'),
    ('x.jsonl', '[1]\n', r'x\.jsonl:1 is a JSON list'),
    ('x.jsonl', '', 'has no records'),
    ('x.parquet', 'PAR', 'is not a parquet file'),
    ('x.csv', 'a,b', 'has no records'),
    ('x.txt', 'a,b', 'holds no examples'),
  ],
)
def test_files_that_cannot_be_read(tmp_path, name, text, message):
  path = tmp_path / name
  path.write_text(text)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    _read(path)


def test_path_without_anything(tmp_path):
  with pytest.raises(FileNotFoundError, match='does not exist'):
    _read(tmp_path / 'nothing.jsonl')


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    ({'text': 'a'}, "here has no 'prompt' but 'text'; add the column"),
    ({'prompt': ''}, "has '' as its 'prompt'; it must be a str"),
    ({'prompt': 3}, "has 3 as its 'prompt'; it must be a str"),
  ],
)
def test_columns_that_are_not_there(row, message):
  with pytest.raises(ValueError, match=message):
    records.field(('here', row), 'prompt', str)
