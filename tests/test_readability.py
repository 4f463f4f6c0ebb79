"""Readability: counted by hand, and each fault in its turn."""

import subprocess
import sys

import pytest

from rlzero.text import readability
from rlzero.text.readability import Limits


def test_measures_by_hand():
  # Paragraphs of 3 and 4 words: each character of 哪里 is one, 'a' another.
  found = readability.measures('one two three\n\n哪里 a b\n')
  assert found == {'paragraph': 4, 'code_blocks': 0, 'repetition': 0}
  text = '```\nx\n```\nand ```y``` and ```open'
  assert readability.measures(text)['code_blocks'] == 3


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('a b c', 0),  # too short to repeat itself
    ('a b c d', 0),  # ab bc cd
    ('a b a b a', 0.5),  # ab ba, and both again
    ('a a a a a', 0.75),
    ('哪里哪里', 1 / 3),  # 哪里 里哪 哪里
  ],
)
def test_repetition_by_hand(text, expected):
  assert readability.repetition(text, 2) == pytest.approx(expected)


@pytest.mark.parametrize(
  ('text', 'language', 'reason'),
  [
    ('fine', 1.0, None),
    ('fine', 0.9, 'language'),
    ('one two three four', 1.0, 'paragraph'),
    ('one two\n\nthree four', 1.0, None),
    ('```x```', 1.0, 'code_blocks'),
  ],
)
def test_first_fault(text, language, reason):
  limits = Limits(max_paragraph=3)
  assert readability.fault(text, language, limits) == reason


def test_a_loop_is_a_fault():
  loop = ' '.join(['let us see once more'] * 6)
  assert readability.fault(loop, 1.0, Limits()) == 'repetition'


def test_limits_out_of_range():
  with pytest.raises(ValueError, match='min_language is 2'):
    Limits(min_language=2)
  with pytest.raises(ValueError, match='max_paragraph is -1'):
    Limits(max_paragraph=-1)


def test_needs_no_jax():
  code = 'import sys, rlzero.text.readability; sys.exit("jax" in sys.modules)'
  subprocess.run([sys.executable, '-c', code], check=True)
