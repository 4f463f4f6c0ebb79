"""The rule of the aha gallery, on completions that it takes and leaves."""

import pytest

from rlzero.reporting import aha


def find(thought, answer, correct=True, end='</think> <answer> {} </answer>'):
  text = f'<think> {thought} {end.format(answer)}'
  record = {'completion': text, 'answer': answer, 'correct': correct}
  found = aha.find(record)
  if found is None:
    return None
  cut = [text[slice(*span)] for span in (found.wrong, found.turn, found.right)]
  return found.kind, *(part.strip() for part in cut)


@pytest.mark.parametrize(
  'thought, answer, expected',
  [
    (  # the words of the tiny model
      '9 * 5 = 45 45 - 3 = 42 wait 5 - 3 = 2 2 * 9 = 18 ok',
      '9 * ( 5 - 3 )',
      ('another way', '45 - 3 = 42', 'wait', '2 * 9 = 18'),
    ),
    (  # attempts beyond neutral words count as well
      '9 + 9 = 18 18 + 6 = 24 hmm 9 + 6 = 15 15 + 9 = 24 wrong '
      '9 * 6 = 54 54 - 9 = 45 ok',
      '( 9 * 6 ) - 9',
      ('another way', '15 + 9 = 24', 'wrong', '54 - 9 = 45'),
    ),
    (
      'First 17 + 25 = 32. Wait, let me see: 17 + 25 = 42.',
      '42',
      ('recalculated', '17 + 25 = 32', 'Wait', '17 + 25 = 42'),
    ),
    (
      '12 × 12 = 124, but 12×12 = 144, so 144 − 4 = 140.',
      '140',
      ('recalculated', '12 × 12 = 124', 'but', '12×12 = 144'),
    ),
    (
      'So the answer is 7. However, a triangle has three sides.',
      '3',
      ('answer taken back', 'answer is 7.', 'However', '3'),
    ),
    (
      r'Thus \boxed{\frac12}. Wait, the sign is lost.',
      r'-\frac12',
      ('answer taken back', r'\boxed{\frac12}', 'Wait', r'-\frac12'),
    ),
  ],
)
def test_takes(thought, answer, expected):
  assert find(thought, answer) == expected


@pytest.mark.parametrize(
  'why, thought, answer',
  [
    ('no reflective word', '2 + 2 = 5 hmm 2 + 2 = 4', '4'),
    ('the word stands before', 'wait 45 - 3 = 42 2 * 9 = 18', '2 * 9'),
    ('the word stands behind', '45 - 3 = 42 2 * 9 = 18 wait', '2 * 9'),
    ('it was right already', '2 * 9 = 18 ok wait 3 * 6 = 18', '3 * 6'),
    ('a step, gone on from', '9 * 6 = 54 wait 54 - 9 = 45', '( 9 * 6 ) - 9'),
    ('no right line', '45 - 3 = 42 wait 5 - 3 = 2', '2 * 9'),
    ('the same mistake again', '2 + 2 = 5 wait 2 + 2 = 5 so 1 + 3 = 5', '4'),
    ('the stated answer stays', 'The answer is 3. Check: yes.', '3'),
    ('stated in another form', 'The answer is 6/2. Check: yes.', '3'),
    ('a decimal is not judged', '0.1 + 0.2 = 0.4 wait 0.1 + 0.2 = 0.3', '0.3'),
    ('a part of a longer sum', 'x3 + 4 = 8 wait x3 + 4 = 7', '7'),
    ('a chain of equals', '2 + 2 = 3 + 1 = 4 wait fine', '4'),
    ('a list, no minus', '- 3 + 4 = 7\n- 3 + 4 = 7 wait 3 + 4 = 7', '7'),
    ('no thought', '', '4'),
  ],
)
def test_leaves(why, thought, answer):
  assert find(thought, answer) is None, why


def test_a_wrong_completion_is_no_correction():
  thought, answer = '2 + 2 = 5 wait 2 + 2 = 4', '4'
  assert find(thought, answer) is not None
  assert find(thought, answer, correct=False) is None


def test_what_follows_the_thought_is_not_searched():
  assert find('2 + 2 = 5 </think> wait 2 + 2 = 4', '4', end='{}') is None


@pytest.mark.parametrize('record', [{}, {'completion': None, 'correct': True}])
def test_a_record_that_lacks_something_is_none(record):
  assert aha.find(record) is None


@pytest.mark.parametrize('part', ['1', '1=', '(', '1+', ' wait ', '=', '9 9 '])
def test_hostile_texts_take_no_time(part):
  text = (part * 100_000)[:200_000] + ' wait 1 + 1 = 2'
  aha.find({'completion': text, 'answer': '2', 'correct': True})


def test_sums_of_a_text():
  found = aha.list_sums('9 9 6 9 + 9 = 18 then (2+3)*4 = 20; 7 = 7, 3 - 5 = -2')
  assert [(s.left, s.result, s.holds) for s in found] == [
    ('9+9', 18, True),
    ('(2+3)*4', 20, True),
    ('3-5', -2, True),
  ]
