"""Which generators run an answer, and that none of them does it here."""

import pytest
from reasoning_gym import factory

from rlzero.tasks import generators, procedural


class Base:
  """A generator in all but problems."""

  def score_answer(self, answer, entry):
    return float(self.read(answer) == entry['answer'])

  def read(self, answer):
    return int(answer)


class Evaluates(Base):
  def read(self, answer):
    return _evaluated(answer)


class Sympifies(Base):
  def read(self, answer):
    import sympy

    return sympy.simplify(answer)


def _evaluated(answer):
  return list(map(eval, [answer]))[0]


def _run(answer):
  names = vars(__import__('builtins'))
  return names['ev' + 'al'](answer)


@pytest.mark.parametrize('scorer', [Evaluates, Sympifies])
def test_a_scorer_that_runs_text_is_found(scorer):
  assert generators.executes(scorer)


def test_an_honest_scorer_passes():
  assert generators.executes(Base) is None


def test_every_installed_generator_is_safe_or_guarded():
  found = {
    name
    for name, (scorer, _) in factory.DATASETS.items()
    if generators.executes(scorer)
  }
  assert found - set(generators.GUARDS) == generators.RUNS_PROBLEM
  # The other guards stand before scorers that run nothing but overlook what is
  # beside the answer; one that is in neither set would be dead.
  assert set(generators.GUARDS) - found == {
    'gsm_symbolic',
    'kakurasu',
    'letter_jumble',
    'polynomial_equations',
    'quantum_lock',
    'sokoban',
    'survo',
    'word_sorting',
  }


def test_an_unknown_generator_that_runs_text_is_refused(monkeypatch):
  monkeypatch.setitem(factory.DATASETS, 'mine', (Evaluates, None))
  with pytest.raises(
    ValueError, match="'mine' may run the answer as a program"
  ):
    procedural.make_generator('mine', {}, 0)
  with pytest.raises(ValueError, match='name each of its datasets as a task'):
    procedural.make_generator('composite', {}, 0)


def test_text_that_the_source_hides_does_not_run_either():
  entry = {'answer': 3, 'metadata': {}}

  class Sly(Base):
    def read(self, answer):
      return _run(answer)

  assert generators.is_right('sly', Base(), '3', entry)
  with pytest.raises(PermissionError, match='runs text while it scores'):
    generators.is_right('sly', Sly(), '1 + 2', entry)
  assert eval('1 + 2') == 3  # allowed again
