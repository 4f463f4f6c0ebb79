import json
import os

import pytest

from rlzero.reporting import completion_index, stored_samples
from rlzero.reporting.completion_index import CompletionIndex, Query


def record(step, uid, number, **changes):
  right = number % 2 == 0
  return {
    'step': step,
    'uid': uid,
    'question': f'Question {uid}',
    'completion': f'<think> try {number} ümlaut </think> <answer> {number}',
    'answer': str(number),
    'correct': right,
    'reward': 2.0 * right,
    'len': 10 * number,
    'reflections': 0,
    'parts': {'steps': 0.5, 'other': None},
    **changes,
  }


def write(folder, step, rows, name='completions'):
  path = folder / name / f'step_{step:06d}.jsonl'
  path.parent.mkdir(exist_ok=True)
  text = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
  path.write_text(text, encoding='utf-8')
  return path


@pytest.fixture
def folder(tmp_path):
  for step in (0, 10, 20):
    rows = [record(step, uid, n) for uid in 'ab' for n in range(4)]
    write(tmp_path, step, rows)
  return tmp_path


@pytest.fixture
def index(folder):
  made = CompletionIndex(str(folder))
  made.refresh()
  return made


KEY = 'completions/step_000010'


def test_lists_files_by_step_and_reads_none(index, monkeypatch):
  monkeypatch.setattr(completion_index, '_read', None)
  assert index.keys == [f'completions/step_0000{n}' for n in ('00', 10, 20)]
  assert index.num_indexed == 0


def test_records_are_found_by_their_offsets(index):
  places = index.index_of(KEY).groups[1].members
  found = index.records(KEY, places)
  assert [(r['uid'], r['len']) for r in found] == [
    ('b', 10 * n) for n in range(4)
  ]
  assert index.num_indexed == 1


def test_a_prompt_that_comes_again_is_one_group(folder, index):
  write(folder, 10, [record(10, uid, 1) for uid in 'aba'])
  index.refresh()
  assert [g.members for g in index.index_of(KEY).groups] == [[0, 2], [1]]


def test_tasks_may_have_the_same_names_for_their_prompts(folder, index):
  rows = [record(10, 'a', 1, task=t, question=f'Of {t}') for t in 'xyx']
  write(folder, 10, rows)
  index.refresh()
  groups = index.index_of(KEY).groups
  assert [(g.question, g.members) for g in groups] == [
    ('Of x', [0, 2]),
    ('Of y', [1]),
  ]


def test_new_and_changed_files_are_taken_up(folder, index):
  index.extend(60)
  listing = index.listing
  write(folder, 30, [record(30, 'c', 1)])
  write(folder, 10, [record(10, 'z', 1)])
  index.refresh()
  assert index.listing == listing + 1
  assert (index.num_files, index.num_indexed) == (4, 2)
  assert index.index_of(KEY).groups[0].uid == 'z'
  index.refresh()
  assert index.listing == listing + 1


def test_lines_that_are_no_records_are_passed_over(folder, index):
  path = write(folder, 10, [record(10, 'a', 1)])
  deep = '[' * 100_000
  path.write_text(f'nonsense\n[1]\n{deep}\n{path.read_text()}{{"uid": "b"')
  index.refresh()
  assert len(index.index_of(KEY).entries) == 1
  assert index.records(KEY, [0])[0]['uid'] == 'a'


def test_links_and_other_files_are_no_completions(folder, index, tmp_path):
  (folder / 'secret.jsonl').write_text('{"uid": "secret"}\n')
  os.symlink(folder / 'secret.jsonl', folder / 'completions/step_000099.jsonl')
  (folder / 'completions' / 'notes.txt').write_text('{}')
  index.refresh()
  assert index.num_files == 3


@pytest.mark.parametrize(
  'key',
  ['../secret', 'completions/../config', '/etc/passwd', '', KEY + '.jsonl'],
)
def test_only_listed_keys_are_read(index, key):
  with pytest.raises(KeyError):
    index.index_of(key)


@pytest.mark.parametrize(
  'query, count',
  [
    (Query(), 24),
    (Query(correct=True), 12),
    (Query(min_reward=1), 12),
    (Query(max_reward=1, min_length=20), 6),
    (Query(max_length=10, words=('TRY', '1')), 6),
    (Query(words=('Ümlaut',)), 24),
    (Query(words=('absent',)), 0),
  ],
)
def test_search(index, query, count):
  found, more = index.search(query)
  assert (len(found), more) == (count, None)
  assert [s.step for s, _ in found] == sorted(s.step for s, _ in found)


def test_a_search_goes_on_where_it_stopped(index):
  whole, _ = index.search(Query(correct=True))
  parts, after = [], None
  for _ in range(20):
    found, after = index.search(Query(correct=True), after, limit=5)
    parts += found
    if after is None:
      break
  assert parts == whole
  # One without time finds nothing and does not lose its place.
  found, after = index.search(Query(), (KEY, 3), seconds=-1)
  assert (found, after) == ([], (KEY, 3))


def test_evaluations_are_listed_in_the_order_of_training(folder, index):
  for name in ('after', 'before', 'step_000010'):
    path = folder / 'evaluations' / f'{name}.jsonl'
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record(0, 'a', 1)) + '\n')
  index.refresh()
  names = [key.partition('/')[2] for key in index.keys[3:]]
  assert names == ['before', 'step_000010', 'after']
  assert index.num_files == 3  # a search goes through those of training


def test_extend_stops_when_its_time_is_over(index):
  assert not index.extend(-1)
  assert index.num_indexed == 0
  assert index.extend(60)
  assert index.num_indexed == 3


def test_the_gallery_says_when_each_kind_came_first(folder, index):
  aha = '<think> 2 + 2 = 5 {} 2 + 2 = 4 </think> <answer> 4 </answer>'
  for step, word in ((10, 'wait'), (20, 'but')):
    row = record(step, 'a', 2, completion=aha.format(word), reflections=1)
    write(folder, step, [record(step, 'a', 1), row | {'answer': '4'}])
  index.refresh()
  found = stored_samples.gallery(index, '', 0, 10, 60)
  assert found['complete'] and found['total'] == 2
  assert found['kinds'] == {'recalculated': {'count': 2, 'first': 10}}
  assert found['words'] == {'wait': 1, 'but': 1}
  (first, _) = found['shown']
  assert (first['step'], first['place']) == (10, 1)
  marks = [mark for mark, _ in first['pieces'] if mark]
  assert marks == ['wrong', 'word', 'right']
  assert ''.join(text for _, text in first['pieces']) == aha.format('wait')
  assert not stored_samples.gallery(index, 'another way', 0, 10, 60)['shown']


def test_a_group_is_shown_with_thought_and_parts(index):
  found = stored_samples.group(index, KEY, 1)
  assert (found['uid'], len(found['completions'])) == ('b', 4)
  one = found['completions'][2]
  assert one['right'] and one['numbers']['reward'] == 2.0
  assert one['parts'] == {'steps': 0.5, 'other': None}
  assert one['thought'] == [['', '<think> try 2 ümlaut </think>']]
  assert one['rest'] == [['', ' <answer> 2']]
  with pytest.raises(KeyError):
    stored_samples.group(index, KEY, 2)


def test_pieces_join_to_the_text():
  text = 'a wait b'
  spans = [(2, 6, 'word'), (4, 8, 'late')]
  assert stored_samples.pieces(text, 0, 8, spans) == [
    ['', 'a '],
    ['word', 'wait'],
    ['', ' b'],
  ]
  assert stored_samples.pieces(text, 3, 8, spans) == [
    ['', 'a'],
    ['late', 'it b'],
  ]
