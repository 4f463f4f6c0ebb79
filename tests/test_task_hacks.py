"""Answers that earn nothing, through the reward pool, a line each.

Beside each kind stands a right answer, so that no line passes because its task
rejects everything.
"""

import json

import pytest

from rlzero.scoring import reward_pool
from rlzero.tasks import countdown, procedural


def entry(answer, **metadata):
  return json.dumps({'question': '?', 'answer': answer, 'metadata': metadata})


TARGETS = {
  'ours': '20 (2, 3, 4)',
  'countdown': entry('(8 - 2)*5', numbers=[8, 2, 5], target=30),
  'puzzle24': entry('(8 - 2)*4*1', numbers=[8, 2, 4, 1]),
  'simple_integration': entry('x**2 + C', integrand='2*x', variable='x'),
  'intermediate_integration': entry(
    'sin(x) + C', integrand='cos(x)', variable='x'
  ),
  'polynomial_multiplication': entry('6*x**2 + 2*x'),
  'string_insertion': entry('ABCDE'),
  'spiral_matrix': entry('1 2 3 6 5 4'),
  'binary_matrix': entry('0 1\n1 0'),
  'n_queens': entry(None, valid_answers=['_ Q\nQ _']),
  'number_sorting': entry("['1', '5', '9']", direction='ascending'),
  'chain_sum': entry('42'),
  'word_sorting': entry('apple, pear', sorted_words=['apple', 'pear']),
  'gsm_symbolic': entry('20'),
  'kakurasu': entry(
    '1 0\n0 1', row_sums=[1, 2], col_sums=[1, 2], n_rows=2, n_cols=2
  ),
  'letter_jumble': entry('was a moment'),
  'polynomial_equations': entry('-0.7757, 1.5'),
  'quantum_lock': entry(
    'A → B',
    initial_value=1,
    initial_state='red',
    target_value=6,
    buttons=[
      {'name': 'A', 'type': 'add', 'value': 2, 'active_state': 'any'},
      {'name': 'B', 'type': 'multiply', 'value': 2, 'active_state': 'any'},
    ],
  ),
  'sokoban': entry('RR', gamestr='+ + + + + +\n+ * @ - X +\n+ + + + + +'),
  'survo': entry('1 2\n3 4', board_size=2, solution=[[1, 2], [3, 4]]),
}
_RIGHT = {
  'ours': ['( 2 + 3 ) * 4', '4 * (2 + 3)', '(2+3)×4'],
  'countdown': ['(8 - 2)*5', '5 * (8-2)', '(-2 + 8)*5', '(8−2)×5'],
  'puzzle24': ['(8 - 2)*4*1', '(8-2)*4/1'],
  'simple_integration': ['x**2 + C', 'C + x**2', '2*x**2/2 + C'],
  'intermediate_integration': ['sin(x) + C', 'C - cos(x + pi/2)'],
  'polynomial_multiplication': ['6*x**2 + 2*x', '2*x+6*x**2'],
  'string_insertion': ['ABCDE'],
  'spiral_matrix': ['1 2 3 6 5 4'],
  'binary_matrix': ['0 1\n1 0'],
  'n_queens': ['_ Q\nQ _'],
  'number_sorting': ["['1', '5', '9']", '[1, 5, 9]'],
  'chain_sum': ['42'],
  'word_sorting': ['apple, pear'],
  'gsm_symbolic': ['20', '20 bananas', 'x = 20', '5 * 4 = 20'],
  'kakurasu': ['1 0\n0 1', '[1, 0]\n[0, 1]'],
  'letter_jumble': ['was a moment', 'Was a moment'],
  'polynomial_equations': ['-0.7757, 1.5', '1.5, -0.7757'],
  'quantum_lock': ['A → B', 'A -> B', 'A, B', 'AB'],
  'sokoban': ['RR', 'R R'],
  'survo': ['1 2\n3 4'],
}
_PROGRAM = '__import__("builtins").exec("import os; os._exit(0)")'
_HACKS = {
  # (2 + 3) * 4 = 20
  'ours': [
    '20',
    '4 * 5',
    '2 + 3 * 4 + 6',
    '(2 + 3) * 4 * 1',
    '(2 + 3) * 4 + 0',
    '(2 + 3) * 4 ** 1',
    '4 + 4 * 4',
    '(2 - -3) * 4',
    '(2 + +3) * 4',
    '~-(2+3)*4',
    '24 - 4',
    '2(3)4 - 4',
    '(2+3)4',
    '(2 + 3) * 4.0',
    '(2 + 0x3) * 4',
    '(02 + 3) * 4',
    '(2 + 3) * 4 # 1',
    '(2 + 3) * 4 = 20',
    '(2 + True + 2) * 4',
    '(2 + 3) * 4 or 1',
    '[(2 + 3) * 4][0]',
    '(2 + 3) * ４',
    '(2 + ٣) * 4',
    '(2 + 3)\u200b * 4',
    '(' * 400 + '2+3' + ')' * 400 + '*4',
    '',
  ],
  # (8 - 2) * 5 = 30
  'countdown': [
    '30',
    '8*2*5*sin(pi) + 30',
    '8*2*5*0 + 30',
    'floor(E)*8*2 - 5 + 3',
    'E*0 + (8-2)*5',
    '(8-2)*5 + cos(pi/2)',
    '(8 - 2)*5*5**0',
    '(8 - 2)*5 + 8*0',
    '(8-2)*5*(5/5)',
    '82 - 52',
    '8//2*5 + 10',
    '5!/(8/2)',
    '8*5 - 2*5',
    '(8 - 2)5',
    '(8 - 2)*5.000000001',
    '60/2',
    'Integer(30) + 0*(8+2+5)',
    'x*0 + (8-2)*5',
    'max(8, 2, 5)*0 + 30',
    '(8 - 2)*5; import os',
    'lambda: 30',
    '8*5/2 + 10.0',
    '9**9**9**9',
    'nan',
    'oo',
    _PROGRAM,
  ],
  'puzzle24': [
    '24',
    '(8-2)*4*1 + 0.5',
    '8*2 + 4*1 + 4',
    '8*(4-1)*2/2',
    '24 + 0*(8+2+4+1)',
    '4! + 0*8*2*1',
    '8 + 8 + 4 + 4',
    '8*4 - 2**(4-1)',
    'floor(24.9) + 0*(8+2+4)',
    _PROGRAM,
  ],
  'simple_integration': [
    'Integral(2*x, x)',
    'integrate(2*x, x) + C',
    '2*x',
    'C',
    'x**2 + x',
    'sympify("x**2")',
    'x.__class__.__mro__',
    '9**9**9**9*0 + x**2',
    '((9**64)**64)**64*0 + x**2',
    '0',
    _PROGRAM,
  ],
  'intermediate_integration': [
    'Integral(cos(x), x) + C',
    'Integral(cos(x))',
    'cos(x)',
    'Lambda(x, sin(x))(x)',
    'sin(x) if True else x',
    '[sin(x)][0]',
    'sin(x).subs(x, x)',
    'sin(x, evaluate=False)',
    _PROGRAM,
  ],
  'polynomial_multiplication': [
    '2*x*(3*x + 1)',
    '(3*x + 1)*(2*x)',
    'expand(2*x*(3*x + 1))',
    '3*2*x**2 + 2*x',
    '6*x*x + 2*x',
    '3*x**2 + 3*x**2 + 2*x',
    '6*x**2 + 2*x + 0*x',
    '0',
    '',
    _PROGRAM,
  ],
  'string_insertion': ["['A','B','C','D','E']", '', 'ABCD', _PROGRAM],
  'spiral_matrix': ['[1,2,3,6,5,4]', '1 2 3 4 5 6', _PROGRAM],
  'binary_matrix': ['[[0,1],[1,0]]', '0 0\n0 0', _PROGRAM],
  'n_queens': ["[['_','Q'],['Q','_']]", 'Q Q\nQ Q', '', _PROGRAM],
  'number_sorting': [
    '[NaN, NaN, NaN]',
    '[NaN,5,9]',
    '[-Infinity, 5, Infinity]',
    '["nan", "nan", "nan"]',
    '[]',
    '[1, 5]',
    '9, 5, 1',
    _PROGRAM,
  ],
  'chain_sum': ['41', '41 or 42 or 43', '40 + 2', '4 2', '', 'nan'],
  'word_sorting': ['pear, apple', 'apple', '', 'apple, pear, apple'],
  'gsm_symbolic': ['20 or 7', '20, 7', '7', 'from 20 to 7', '20 million'],
  'kakurasu': ['1 0\n0 1 or so', '1 0 a\n0 1', '1 0\n1 0', '1 0\n0 1 1'],
  'letter_jumble': ['was a moment ago', 'was a moment, or omentm', 'was a'],
  'polynomial_equations': [
    '-0.7757, 1.5, or 2',
    '-0.7757, 1.5, x',
    '-0.7757, 1.5, nan',
    '1.5',
    'none',
  ],
  'quantum_lock': ['A → B or so', 'A → B, junk', 'A.B', 'BA', 'A → B → B'],
  'sokoban': ['RR or LL', 'RR junk', 'R', 'go RR', 'rr'],
  'survo': ['1 2\n3 4 or 5', '1 2\n3 4\njunk', '1 2 3\n4', '1 x 2\n3 4'],
}
_TAGS = [  # about 42
  '<answer>42</answer>',
  '<think> 42 </think>',
  '<think> <answer>42</answer> </think>',
  '<think> <answer>42</answer> </think> <answer>41</answer>',
  '<think> \\boxed{42} </think> <answer>41</answer>',
  '<think> 42',
  'It is 42. <think> no',
  '<think> a </think> <answer>42</answer> <answer>41</answer>',
  '<think> a </think> <answer>41</answer> <answer>42</answer>',
  '<think> a </think> <answer>41<answer>42</answer></answer>',
  '<THINK> a </THINK> <ANSWER>42</ANSWER>',
  '<think> a </think> <answer>42',
  '<think> a </think> <answer>42</answer',
  '<think> a </think> 42 <answer>42</answer>',
  '<think> a </think> <answer>42</answer> done',
  '<answer>42</answer> <think> a </think>',
  '<answer>42</think> <think>a</answer>',
  '<think> a <think> b </think> <answer>42</answer>',
  '<think> a </think> </think> <answer>42</answer>',
  '<think> a </think> <answer> </answer> 42',
  '<th\u200bink> a </th\u200bink> <answer>42</answer>',
  '＜think＞ a ＜/think＞ ＜answer＞42＜/answer＞',
  '<thіnk> a </thіnk> <answer>42</answer>',  # Cyrillic
  '<think/> <answer>42</answer>',
  '< think > a < / think > < answer >42< / answer >',
  '&lt;think&gt; a &lt;/think&gt; <answer>42</answer>',
]


def _task(name):
  if name == 'ours':
    return countdown.Countdown(name='ours')
  return procedural.ReasoningGym(
    dataset=name, num_train=1, num_validation=0, num_test=0
  )


@pytest.fixture(scope='module')
def pool():
  tasks = {name: _task(name) for name in TARGETS}
  with reward_pool.RewardPool(tasks, 'r1_zero', 1, deadline_s=20) as made:
    yield made


def _scored(pool, name, answers):
  texts = [f'<think> a </think> <answer>{a}</answer>' for a in answers]
  return pool.score(
    [reward_pool.Request(name, text, TARGETS[name]) for text in texts]
  )


@pytest.mark.parametrize('name', TARGETS)
def test_right_answers_earn(pool, name):
  found = _scored(pool, name, _RIGHT[name])
  assert [v.accuracy for v in found] == [1.0] * len(found)


@pytest.mark.parametrize('name', TARGETS)
def test_hacks_earn_nothing(pool, name):
  found = _scored(pool, name, _HACKS[name])
  earned = [
    (answer, v.status)
    for answer, v in zip(_HACKS[name], found, strict=True)
    if v.accuracy or v.correct or v.status != 'ok'
  ]
  assert earned == []


def test_faulty_tags_earn_nothing(pool):
  found = pool.score(
    [reward_pool.Request('chain_sum', t, TARGETS['chain_sum']) for t in _TAGS]
  )
  earned = [text for text, v in zip(_TAGS, found, strict=True) if v.accuracy]
  assert earned == []


@pytest.mark.long
def test_no_answer_changes_what_later_ones_earn(pool):
  poison = (
    "__import__('sys').modules['__main__']"
    ".__dict__.update(_score=lambda *a: (True, True, '', 1, 0, {}, {}))"
  )
  for name in TARGETS:
    assert [v.accuracy for v in _scored(pool, name, [poison, 'junk'])] == [0, 0]
