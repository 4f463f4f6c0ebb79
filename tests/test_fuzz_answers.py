"""Completions made of what answers are made of: none may crash or be paid."""

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlzero.tasks import letters, verify

_PIECES = (
  'x y i e A B) + - * / ^ _ ( ) [ ] { } = < > , . % ! | : ; & $ ** '
  r'\frac \sqrt \pi \text{ \boxed{ \begin{pmatrix} \\ \end{pmatrix} \cup '
  r'\infty \pm \le \sin \log \binom \left( \right) \int \sum_{i=1}^{ '
  r'\times 10^{ \lfloor \rfloor \overline \{ \} \langle \cdot ^\circ '
  '√ ² ½ π − ６ 2 3 7 13 1e6 not or and million cm Answer: <answer> '
  '</answer> <think> </think>'
).split()
_TEXT = st.one_of(
  st.text(max_size=200),
  st.lists(st.sampled_from(_PIECES), max_size=60).map(''.join),
  st.lists(st.sampled_from(_PIECES), max_size=60).map(' '.join),
  st.tuples(st.sampled_from(_PIECES), st.integers(1, 400)).map(
    lambda repeated: repeated[0] * repeated[1]
  ),
)
# No piece has these digits, so nobody states this number, whatever the rule.
_TARGET = '8594'
_MAX_S = 4.0  # of a verdict; the pool's deadline is 5


@pytest.fixture(autouse=True, scope='module')
def _parser():
  verify.warm_up()


def _check(text):
  began = time.process_time()
  for judge in (verify.Formulas(), verify.Numbers()):
    answer = judge.extract(text)
    if answer is not None:
      assert not judge.verify(answer, _TARGET)
      assert isinstance(judge.same(answer, text), bool)
    assert not judge.verify(text, _TARGET)
    assert judge.count_tries(text) >= 0
  assert letters.choice(text) in (None, 'A', 'B', 'C', 'D')
  assert letters.count(text) >= 0
  assert time.process_time() - began < _MAX_S


def _settings(number):
  checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
  return settings(
    max_examples=number,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=checks,
  )


@given(_TEXT)
@_settings(300)
def test_some_completions(text):
  if _TARGET not in text:
    _check(text)


@pytest.mark.slow
@given(_TEXT)
@_settings(100_000)
def test_a_hundred_thousand_completions(text):
  if _TARGET not in text:
    _check(text)
