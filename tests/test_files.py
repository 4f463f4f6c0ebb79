"""Files that are there whole or not at all, and JSON that is JSON."""

import ast
import json
import math
import os
import pathlib
import stat

import pytest

import rlzero
from rlzero.runtime import files
from rlzero.tasks import procedural


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'deep' / 'results.json'
  files.write_json(path, {'a': 1})

  def full(_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(OSError, match='No space'):
    files.write_json(path, {'a': 2})
  assert json.loads(path.read_text()) == {'a': 1}


def test_file_and_folder_reach_the_disk_around_the_rename(
  tmp_path, monkeypatch
):
  done = []

  def sync(number):
    is_folder = stat.S_ISDIR(os.fstat(number).st_mode)
    done.append('folder' if is_folder else 'file')

  replace = os.replace
  monkeypatch.setattr(os, 'fsync', sync)
  monkeypatch.setattr(
    os, 'replace', lambda a, b: (done.append('name'), replace(a, b))
  )
  files.write_whole(tmp_path / 'a', 'ä\n')
  assert done == ['file', 'name', 'folder']
  assert (tmp_path / 'a').read_bytes() == 'ä\n'.encode()
  assert os.listdir(tmp_path) == ['a']


def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path, monkeypatch):
  real = os.fsync

  def sync(number):
    if stat.S_ISDIR(os.fstat(number).st_mode):
      raise OSError(22, 'Invalid argument')
    real(number)

  monkeypatch.setattr(os, 'fsync', sync)
  files.write_whole(tmp_path / 'a', 'text')
  assert (tmp_path / 'a').read_text() == 'text'


def test_two_may_write_one_file_at_the_same_time(tmp_path):
  path = tmp_path / 'a'
  with files.open_whole(path, files.own_suffix()) as outer:
    files.write_whole(path, 'longer', files.own_suffix())
    assert path.read_text() == 'longer'
    outer.write(b'last')
  assert path.read_text() == 'last' and os.listdir(tmp_path) == ['a']


def test_what_is_not_finite_is_null(tmp_path):
  value = {'a': [math.nan, 1.5, (math.inf,)], 'b': {'c': -math.inf}, 'd': 'x'}
  files.write_json(tmp_path / 'a.json', value, indent=2)
  text = (tmp_path / 'a.json').read_text()
  assert json.loads(text) == {
    'a': [None, 1.5, [None]],
    'b': {'c': None},
    'd': 'x',
  }
  files.write_jsonl(tmp_path / 'a.jsonl', [{'a': math.nan}, {'ü': 2}])
  lines = (tmp_path / 'a.jsonl').read_text().splitlines()
  assert [json.loads(line) for line in lines] == [{'a': None}, {'ü': 2}]


def test_nothing_else_renames_a_file_into_its_place():
  root = pathlib.Path(rlzero.__file__).parent
  found = [
    str(path.relative_to(root))
    for path in root.rglob('*.py')
    if 'os.replace(' in path.read_text() or "'.part'" in path.read_text()
  ]
  # A folder of weights takes its place file by file, each checked before.
  assert sorted(found) == ['runtime/files.py', 'weights/hf.py']


# Where JSON is written otherwise, and why.
_OTHER_WRITERS = {
  'runtime/files.py': 'the one way',
  'tasks/harness.py': 'a program of the sandbox, which stands alone',
  'tasks/execute.py': 'calls of a function, whose arguments stay as they are',
  'tasks/procedural.py': 'a value that JSON cannot keep is an error there',
  'tasks/verifiers.py': 'a test that JSON cannot keep is an error there',
  'text/chat.py': 'what a chat template writes is a prompt',
  'text/files.py': 'looks for halves of characters; nothing is written',
}


def test_json_has_one_writer():
  root = pathlib.Path(rlzero.__file__).parent
  found = set()
  for path in root.rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Attribute) and node.attr in ('dump', 'dumps'):
        if ast.unparse(node.value) == 'json':
          found.add(str(path.relative_to(root)))
  assert found == set(_OTHER_WRITERS)


def test_options_of_a_generator_are_finite():
  with pytest.raises(ValueError, match='use finite numbers'):
    procedural.ReasoningGym(
      dataset='chain_sum',
      num_train=1,
      num_validation=0,
      num_test=0,
      options={'min_terms': math.inf},
    )
