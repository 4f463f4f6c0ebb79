"""Prompts drawn and checked by their length, before anything is sampled."""

import pytest

from rlzero.rollout import encoding
from rlzero.tasks import base
from rlzero.tasks.datasets import stream
from rlzero.text.template import Template
from rlzero.text.tokenizer import Tokenizer
from rlzero.train import folders

_EXAMPLES = [
  base.Example(str(i), '9 ' * (40 if i == 5 else 1 + i), '1') for i in range(8)
]
_TEMPLATE = Template('short')


@pytest.fixture(scope='module')
def tokenizer():
  return Tokenizer.load(folders.embedded('tiny_base'))


def test_draws_that_are_too_long_are_left_out(tokenizer):
  plain = stream.prompt_stream(_EXAMPLES, seed=0)
  other = stream.prompt_stream(_EXAMPLES, seed=0)
  wanted = [pair for pair in plain.next(16) if pair[1].uid != '5']
  drawn, left_out = encoding.draw_fitting(other, 14, tokenizer, _TEMPLATE, 20)
  assert drawn == wanted and {uid for uid, _ in left_out} == {'5'}
  assert all(length > 20 for _, length in left_out)
  # A limit that leaves nothing out changes nothing.
  again = stream.prompt_stream(_EXAMPLES, seed=0)
  drawn, left_out = encoding.draw_fitting(again, 16, tokenizer, _TEMPLATE, 99)
  assert drawn == stream.prompt_stream(_EXAMPLES, seed=0).next(16)
  assert not left_out


@pytest.mark.parametrize('seed', range(8))
def test_the_one_that_fits_is_found_and_each_other_draw_counts(tokenizer, seed):
  """The last of an epoch and the first of the next may be the long one."""
  prompts = stream.prompt_stream(_EXAMPLES[4:6], seed)
  drawn, left_out = encoding.draw_fitting(prompts, 9, tokenizer, _TEMPLATE, 20)
  assert {example.uid for _, example in drawn} == {'4'}
  assert len(left_out) == prompts.position - 9 >= 8


def test_nothing_that_fits_is_an_error(tokenizer):
  prompts = stream.prompt_stream(_EXAMPLES, seed=0)
  with pytest.raises(ValueError, match='No training prompt is short .* is 2;'):
    encoding.draw_fitting(prompts, 1, tokenizer, _TEMPLATE, 2)


def test_problems_to_evaluate_on_are_checked_at_once(tokenizer):
  encoding.check_lengths(tokenizer, _TEMPLATE, _EXAMPLES, 99)
  with pytest.raises(ValueError, match="1 of 8 problems .* '5' has .* is 20;"):
    encoding.check_lengths(tokenizer, _TEMPLATE, _EXAMPLES, 20)
