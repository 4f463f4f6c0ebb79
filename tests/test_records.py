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
    ('x.jsonl', '{"a": NaN}\n', r'x\.jsonl:1 is not JSON \(NaN is no JSON'),
    ('x.jsonl', '{"a": 1e999}\n', r'x\.jsonl:1 is not JSON \(1e999 is too l'),
    ('x.jsonl', '[' * 100_000, r'x\.jsonl:1 is not JSON .*too deeply nested'),
    ('x.jsonl', '{"a": "\\uD83d"}', r"x\.jsonl:1 holds half .*\('.ud83d'\)"),
    ('x.jsonl', b'{"a": 1}\n{"a": "\xe9"}', r'x\.jsonl:2 is not UTF-8 .*0xe9'),
    ('x.jsonl', b'{"a": 1}\n\0\0\0', r'x\.jsonl:2 holds a NUL byte'),
    ('x.jsonl', '{"a": 1}'.encode('utf-16'), r'x\.jsonl is UTF-16.*iconv -f'),
    ('x.jsonl', '{"a": 1}'.encode('utf-32'), r'x\.jsonl is UTF-32'),
    ('x.jsonl', '{"a": 1}'.encode('utf-16-le'), r'x\.jsonl:1 holds a NUL byte'),
    ('x.jsonl', '', 'has no records'),
    ('x.csv', 'a,b\n\n1,2\n3,"4\n5,6\n', r'x\.csv:4 is not CSV .*quote'),
    ('x.csv', 'a,b\n"1\n",2\n3,"4"5\n', r'x\.csv:4 is not CSV'),
    ('x.csv', 'a,b\n"1\n",2\n3\n', r'x\.csv:4 has 1 fields.*header has 2'),
    ('x.csv', 'a,b\n1,2,3\n', r'x\.csv:2 has 3 fields'),
    ('x.csv', 'a,b,a\n1,2,3\n', r"x\.csv:1 names the column 'a' more than"),
    ('x.csv', 'a,b\n1,é'.encode('latin-1'), r'x\.csv:2 is not UTF-8'),
    ('x.csv', 'a,b\n1,\0', r'x\.csv:2 holds a NUL byte'),
    ('x.csv', 'a,b'.encode('utf-16'), r'x\.csv is UTF-16'),
    ('x.parquet', 'PAR', 'is not a parquet file'),
    ('x.csv', 'a,b', 'has no records'),
    ('x.txt', 'a,b', 'holds no examples'),
  ],
)
def test_files_that_cannot_be_read(tmp_path, name, text, message):
  path = tmp_path / name
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    _read(path)


def test_a_mark_at_the_beginning_is_no_part_of_a_name(tmp_path):
  for name, text in (('a.csv', 'q,n\nä,1\n'), ('a.jsonl', '{"q": "ä"}\n')):
    (tmp_path / name).write_text(text, encoding='utf-8-sig')
    assert _read(tmp_path / name)[0]['q'] == 'ä'


def test_csv_has_fields_of_any_length_and_all_is_text(tmp_path):
  path = tmp_path / 'a.csv'
  path.write_text('q,n\r\n"' + 'x,\n' * 100_000 + '",007\r\n\r\n"a ""b""",\r\n')
  assert _read(path) == [
    {'q': 'x,\n' * 100_000, 'n': '007'},
    {'q': 'a "b"', 'n': ''},
  ]
  places = [place for place, _ in records.read(records.Source(path=str(path)))]
  assert places == [f'{path}:2', f'{path}:100004']


def test_an_empty_shard_was_not_copied_whole(tmp_path):
  _write(tmp_path / 'a.jsonl', _ROWS)
  _write(tmp_path / 'b.jsonl', [])
  with pytest.raises(ValueError, match=r'b\.jsonl has no records; remove it'):
    _read(tmp_path)


def test_parquet_with_nulls_and_with_damaged_text(tmp_path):
  path = tmp_path / 'a.parquet'
  rows = [{'q': 'a', 'n': 1}, {'q': None, 'n': None}]
  parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  assert _read(path) == rows
  for name in 'qn':
    with pytest.raises(ValueError, match=f"row 1 has None as its '{name}'"):
      records.text((f'{path}, row 1', rows[1]), name)
  damaged = pyarrow.array([b'ok', b'\xff']).view(pyarrow.string())
  parquet.write_table(pyarrow.table({'q': damaged}), path)
  with pytest.raises(ValueError, match='row 1 holds text that is not UTF-8'):
    _read(path)


def test_a_number_is_the_text_that_the_file_has(tmp_path):
  path = tmp_path / 'a.jsonl'
  numbers = ['5', '1.50', '0.10000000000000000001', '1e3', '-0.0']
  path.write_text(''.join(f'{{"n": {n}}}\n' for n in numbers))
  rows = _read(path)
  assert [records.text(('here', row), 'n') for row in rows] == numbers
  assert json.loads(json.dumps(rows))[1] == {'n': 1.5}
  for value in ('', ' \n', None, True, [], float('nan')):
    with pytest.raises(ValueError, match="here has .* as its 'n'"):
      records.text(('here', {'n': value}), 'n')


def test_repeated_questions_are_told_once(capsys):
  placed = [('f:1', 'a', '1'), ('f:2', 'b', '2'), ('f:4', 'b', '2')]
  records.tell_duplicates('f', placed[:2])
  assert not capsys.readouterr().err
  placed += [('f:7', 'a', '3')]
  for _ in range(2):
    records.tell_duplicates('f', placed)
  assert capsys.readouterr().err == (
    'warning: f repeats 2 of its questions, the first at f:2 and f:4, 1 of '
    'them with another answer; each counts as often as it is there.\n'
  )


def test_path_without_anything(tmp_path):
  with pytest.raises(FileNotFoundError, match='does not exist'):
    _read(tmp_path / 'nothing.jsonl')


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    ({'text': 'a'}, "here has no 'prompt' but 'text'; add the column"),
    ({'prompt': ''}, "has '' as its 'prompt'; it must be a str"),
    ({'prompt': ' \n'}, r"has ' .n' as its 'prompt'; it must be a str"),
    ({'prompt': 3}, "has 3 as its 'prompt'; it must be a str"),
  ],
)
def test_columns_that_are_not_there(row, message):
  with pytest.raises(ValueError, match=message):
    records.field(('here', row), 'prompt', str)
