"""Equality of answers, and where the last one stands."""

from fractions import Fraction

import pytest

from rlzero.benchmarks import compare_graders
from rlzero.tasks import verify
from rlzero.tasks.datasets import benchmarks


@pytest.mark.parametrize(
  'first, second',
  [
    ('5', '5.0'),
    ('1,000', '1000'),
    ('$1,234.50', '1234.5'),
    ('1/2', '0.5'),
    (r'\frac{1}{2}', '.5'),
    (r'\boxed{7}', '7'),
    (r'$\boxed{7}$.', '+7'),
    ('-3', '-3.00'),
    ('50%', '50'),
    ('18 dollars', '18'),
    (r'18\text{ miles per hour}', '18'),
    ('(x+1)^2', 'x^2+2x+1'),
    (r'\frac{\sqrt{2}}{2}', r'\frac{1}{\sqrt{2}}'),
    ('2pi', r'2\pi'),
    ('x = 5', '5'),
    (r'\{1,2\}', r'\{2,1\}'),
    ('Alice', ' alice. '),
    (r'\text{Alice}', 'Alice'),
  ],
)
def test_equal(first, second):
  assert verify.equal(first, second)
  assert verify.equal(second, first)


@pytest.mark.parametrize(
  'first, second',
  [
    ('5', '6'),
    ('5', ''),
    ('', ''),
    ('5', '15'),
    ('1/3', '0.333333'),
    ('50%', '0.5'),
    ('1/0', '1/0.0'),
    ('5 or 6', '5'),
    ('5 6 7', '18'),
    ('(1,2)', '(2,1)'),
    ('listen', 'silent'),
    ('x+1', 'x+2'),
    ('7' * 501, '7' * 501),
    ('}{' * 20, '5'),
  ],
)
def test_not_equal(first, second):
  assert not verify.equal(first, second)
  assert not verify.equal(second, first)


def test_number_is_exact():
  assert verify.number('-1,234.5') == Fraction(-2469, 2)
  assert verify.number('1e5') == 100000
  assert verify.number('1e999999999') is None
  assert verify.number('3/0') is None
  assert verify.number('9' * 5000) is None


def test_only_number_takes_no_hedge_and_no_sum():
  assert verify.only_number('She has $18 left') == 18
  assert verify.only_number('x = -5') == -5
  assert verify.only_number('3 or 4') is None
  assert verify.only_number('16-3') is None
  assert verify.only_number('none') is None


@pytest.mark.parametrize(
  'text, answer',
  [
    ('3 + 4 = 7.', '7'),
    ('7-10=-3', '-3'),
    ('it is 1,250.75 in all', '1,250.75'),
    ('no idea', None),
    ('9 <answer> so 8 </answer> 7', '8'),
    ('<answer>', None),
    (r'\boxed{\frac{1}{2}} of 3', '1/2'),
    (r'\boxed{5} then <answer>6</answer>', '5'),
  ],
)
def test_last_numeric_answer(text, answer):
  assert verify.last_answer(text) == answer


@pytest.mark.parametrize(
  'text, answer',
  [
    ('Hm.\nThe answer is Alice.\nBye.', 'Alice'),
    ('first line\nBob', 'Bob'),
    ('<answer>\na b\nc d\n</answer>', 'a b\nc d'),
    (r'\boxed{a{b}c}', 'a{b}c'),
    ('  ', None),
  ],
)
def test_last_text_answer(text, answer):
  assert verify.last_answer(text, numeric=False) == answer


def test_results_are_counted():
  assert verify.count_results('3 + 4 = 7, wait: 3+4 = $8. x = y') == 2


@pytest.mark.parametrize(
  'question, target, text, correct, reason',
  [
    ('Calculate 8 * -4.', '-32', 'It is -32.', True, None),
    (
      'Calculate 8 * -4.',
      '-32',
      'To calculate 8 * -4, think',
      False,
      'question',
    ),
    ('Calculate -( -4 / 2 ).', '2', 'Here -(4 / 2) is', True, 'last number'),
    ('Make 10 of 1 and 9.', '1 + 9', '4. 10 = 10', False, 'value'),
    ('Make 36 of 6 and 6.', '6*6', '4. 6 * 6 = 36', False, 'stated'),
  ],
)
def test_verdicts_of_math_verify_alone(question, target, text, correct, reason):
  record = {'uid': 'u', 'question': question, 'completion': text}
  record |= {'correct': correct, 'answer': None}
  task = benchmarks.MATH500()
  found = compare_graders.differences(task, {'u': target}, [record])
  assert found['samples'] == 1 and found['agree'] == (reason is None)
  assert found['reasons'] == ({reason: 1} if reason else {})


def test_verdicts_beside_a_published_graders():
  problem = {
    'target': '10{,}000',
    'ends': ['\\boxed{10000}', '\\boxed{9}', 'lost', '\\boxed{10,000}'],
    'graded_right': [False, False, True, True],
  }
  found = compare_graders.published_differences([problem])
  assert found['outputs'] == 4 and found['without_answer'] == 1
  assert found['agree'] == 2 and found['agreement'] == 2 / 3
  assert found['differences'] == [
    {'target': '10{,}000', 'answer': '10000', 'ours': True, 'theirs': False}
  ]
  # As Qwen2.5-Math's evaluation writes them, whole.
  whole = {'gt': '5', 'code': ['\\boxed{5}', 'so 4'], 'score': [True, False]}
  found = compare_graders.published_differences([whole])
  assert found['agree'] == found['outputs'] == 2
