"""Verifiers of tables: targets from columns, and answers that must earn 0."""

import json

import pytest

from rlzero.tasks import base, execute, isolation, table, verifiers


def _refused(verifier, value, message):
  with pytest.raises(ValueError, match=message):
    verifier.target_of(value)


@pytest.mark.parametrize(
  'verifier',
  [
    verifiers.Numbers(),
    verifiers.Formulas(),
    verifiers.Choice(),
    verifiers.Contains(),
    verifiers.Code(),
  ],
)
def test_each_is_a_verifier_for_a_table(verifier):
  assert isinstance(verifier, base.Verifier)
  for nothing in (None, '', ' ', []):
    with pytest.raises(ValueError):
      verifier.target_of(nothing)
  task = table.Table(path='x.jsonl', verifier=verifier)
  assert hasattr(task, 'warm_up') == hasattr(verifier, 'warm_up')
  assert hasattr(task, 'outcome') == hasattr(verifier, 'outcome')
  assert not hasattr(task, 'rating')


def test_numbers_and_formulas_read_worked_solutions():
  numbers, formulas = verifiers.Numbers(), verifiers.Formulas()
  for value, target in (
    ('so 6.\n#### 6', '6'),
    ('#### $1,000', '$1,000'),
    (7, '7'),
    (' 8 ', '8'),
    ('thus \\boxed{9}.', '9'),
    (['10'], '10'),
  ):
    assert numbers.target_of(value) == target
    assert formulas.target_of(value) == target
  assert formulas.target_of('so \\boxed{x^2+1}, as wanted') == 'x^2+1'
  assert formulas.target_of('(1, 2)') == '(1, 2)'
  _refused(numbers, 'x^2', 'states no number')
  _refused(numbers, '#### ', 'states no answer')
  _refused(formulas, 'x' * 501, 'more than 500 characters')
  _refused(formulas, True, 'neither text nor a number')
  _refused(formulas, {'a': 1}, 'neither text nor a number')


def test_choices():
  judge = verifiers.Choice(letters='ABCDE')
  assert [judge.target_of(v) for v in (0, 4, 'B', '(C)', 'D) 5 eV')] == [
    *'AEBCD'
  ]
  _refused(judge, 5, 'is no number from 0 to 4')
  _refused(judge, 'F', 'names none of ABCDE')
  _refused(judge, True, 'neither text nor a number')
  answer = judge.extract('It is not A. The answer is E.')
  assert judge.verify(answer, 'E') and not judge.verify('A or E', 'E')
  assert judge.same('(E)', 'E') and not judge.same('A', 'E')
  with pytest.raises(ValueError, match="letters is 'a'; give capitals"):
    verifiers.Choice(letters='a')


def test_contains_takes_whole_words_of_short_answers():
  judge = verifiers.Contains(max_words=4)
  paris = judge.target_of('Paris')
  assert judge.verify('It is PARIS .', paris)
  assert not judge.verify('Parisian', paris)
  assert not judge.verify('', paris)
  several = judge.target_of(['New  York', 'NYC'])
  assert judge.verify('in new york!', several) and judge.verify('NYC', several)
  assert not judge.verify('York New', several)
  # To list what it may be is no answer.
  assert judge.verify('I say it is Paris', paris)
  assert not judge.verify('London, Rome, Oslo, Bern, Paris', paris)
  judge = verifiers.Contains()
  for listed in (
    'London, Rome, Oslo, Bern, Paris',
    'Bern or Paris',
    'a / Paris',
  ):
    assert not judge.verify(listed, paris)
  assert judge.verify('Paris, the capital of France', paris)
  four = judge.target_of('4')
  assert not judge.verify('1 2 3 4 5 6', four)
  assert judge.verify('There are 4 of them.', four)
  assert judge.extract('<answer>Paris</answer>') == 'Paris'


def test_tests_of_programs_come_in_three_forms():
  judge = verifiers.Code(limit_s=2.0)

  def read(value):
    facts = json.loads(judge.target_of(value))
    assert facts['limit_s'] == 2.0
    return facts['function'], [tuple(t) for t in facts['tests']]

  assert read({'inputs': ['1\n', ['2', '3']], 'outputs': ['2\n', ['4']]}) == (
    ('', [('1\n', '2\n'), ('2\n3', '4')])
  )
  # APPS puts a value into a list of its own; lists of one are no lists then.
  for outputs in ([[3], [5]], [3, 5]):
    assert read(
      json.dumps(
        {'fn_name': 'add', 'inputs': [[1, 2], [2, 3]], 'outputs': outputs}
      )
    ) == ('add', [('1\n2', '3'), ('2\n3', '5')])
  assert read([{'input': 'a', 'output': 'b'}]) == ('', [('a', 'b')])
  assert read(['assert f([1], (2, 3)) == [4, "x"]']) == (
    ('f', [('[1]\n[2, 3]', '[4, "x"]')])
  )
  _refused(judge, 'no JSON', 'is no JSON of tests')
  _refused(judge, {'inputs': ['1'], 'outputs': []}, 'not as many inputs')
  _refused(judge, {'inputs': 1}, "no lists 'inputs' and 'outputs'")
  _refused(judge, [1], 'is no list of tests')
  _refused(judge, ['assert f(1) == 1', 'assert g(1) == 1'], 'several functions')
  for test in (
    'assert f(1)',
    'assert f(1) != 1',
    'assert f(x=1) == 1',
    'assert f(open("/etc/passwd")) == 1',
    'assert __import__("os").system("true") == 0',
    'print(1)',
    'assert f(',
    'assert f(1) == {1}',
    'assert f(1) == float("nan")',
    'assert f(1) < 2 < 3',
  ):
    _refused(judge, [test], 'is not .assert f')
  cpp = verifiers.Code(language='cpp')
  _refused(cpp, ['assert f(1) == 1'], 'calls a function, which cpp cannot')
  with pytest.raises(ValueError, match='Code.language is .go.; choose one of'):
    verifiers.Code(language='go')


@pytest.mark.skipif(not isolation.mechanism(), reason='no sandbox works here')
def test_programs_are_run():
  judge = verifiers.Code()
  target = judge.target_of(['assert add(1, 2) == 3', 'assert add(2, 2) == 4'])
  right = '```python\ndef add(a, b):\n  return a + b\n```'
  assert judge.verify(judge.extract(right), target)
  for wrong in ('def add(a, b):\n  return 3', 'import sys\nsys.exit(0)', ''):
    assert not judge.verify(wrong, target)
  assert judge.outcome('def add(a, b): return 3', target) == (
    execute.Verdict.WRONG
  )
