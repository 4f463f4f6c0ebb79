"""Completions made of what answers are made of: none may crash or be paid."""

import time

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rlzero.scoring import worker
from rlzero.tasks import verify
from rlzero.tasks.datasets import benchmarks, gsm8k

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


_TASKS = {
  'number': gsm8k.GSM8K(),
  'formula': benchmarks.MATH500(),
  'choice': benchmarks.GPQADiamond(),
}
# A formula costs fifty times as much as the others, so it comes less often.
_KINDS = st.sampled_from(['number'] * 5 + ['choice'] * 2 + ['formula'] * 2)
_FRAMES = st.sampled_from(
  [
    '{}',
    'The answer is {}.',
    '\\boxed{{{}}}',
    '<think> so </think> {}',
    '<think> so </think> <answer>{}</answer>',
  ]
)


@pytest.fixture(autouse=True, scope='module')
def _parser():
  verify.warm_up()


class _Fuzz:
  """Judges completions as a reward worker does, and counts them."""

  def __init__(self):
    self.number, self.slowest_s, self.slowest = 0, 0.0, ''

  def check(self, text, kind, frame, in_thought):
    if _TARGET in text:
      return
    completion = frame.format(text)
    has_format = '<answer>' in frame
    # No letter can be excluded, so a choice is only judged, never wrong.
    target = 'B' if kind == 'choice' else _TARGET
    task = _TASKS[kind]
    began = time.process_time()
    found = worker.score(task, has_format, completion, target, in_thought)
    correct, answer = found['correct'], found['answer']
    taken_s = time.process_time() - began
    self.number += 1
    if taken_s > self.slowest_s:
      self.slowest_s, self.slowest = taken_s, completion
    assert correct is False or kind == 'choice'
    assert found['format'] in (0, 1) and found['tries'] >= 0
    assert answer is None or isinstance(answer, str)
    if answer is not None and kind != 'choice':
      assert isinstance(task.same(answer, _TARGET), bool)
    assert taken_s < _MAX_S


def _run(number):
  """The fuzz of so many completions."""
  fuzz = _Fuzz()

  @given(_TEXT, _KINDS, _FRAMES, st.booleans())
  @_settings(number)
  def check(text, kind, frame, in_thought):
    fuzz.check(text, kind, frame, in_thought)

  check()
  return fuzz


def _settings(number):
  checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
  return settings(
    max_examples=number,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=checks,
  )


def test_some_completions():
  assert _run(300).number > 250


@pytest.mark.nightly
def test_a_hundred_thousand_completions():
  fuzz = _run(100_000)
  print(
    f'{fuzz.number} completions; the slowest verdict took '
    f'{fuzz.slowest_s:.2f} s of CPU: {fuzz.slowest!r:.200}'
  )
  assert fuzz.number > 95_000
