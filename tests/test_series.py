"""Costs to a goal and intervals, worked out by hand; flags of benchmarks."""

import argparse
import math
import sys

import pytest

from rlzero.benchmarks import series


def _run(*evaluations):
  return {
    'evaluations': [
      {'steps': s, 'pass@1': p, 'tokens': 1000 * s} for s, p in evaluations
    ]
  }


def test_the_cost_lies_on_the_line_between_evaluations():
  first = _run((5, 0.2), (10, 0.7), (15, 0.9), (20, 0.6))
  assert series.cost(first, 'steps', 0.8) == pytest.approx(12.5)
  assert series.cost(first, 'tokens', 0.8) == pytest.approx(12_500)
  second = _run((5, 0.5), (10, 0.8))
  assert series.cost(second, 'tokens', 0.8) == pytest.approx(10_000)
  assert series.cost(second, 'steps', 0.25) == pytest.approx(2.5)
  assert series.cost(_run((5, 0.5), (10, 0.79)), 'steps', 0.8) is None


def test_intervals_are_students():
  found = series.interval([1.0, 2.0, 3.0])
  assert found['mean'] == 2.0
  assert found['high'] - 2 == pytest.approx(4.302653 / math.sqrt(3))
  assert found['low'] + found['high'] == pytest.approx(4)
  assert series.interval([1.0]) == {'mean': 1.0}
  assert series.interval([1.0, None]) is None


def test_flags_and_the_command_that_had_them(monkeypatch):
  assert series.numbers('0,12') == [0, 12]
  read = series.names({'a': 1, 'b': 2}, 'way')
  assert read('b,a') == ['b', 'a']
  with pytest.raises(argparse.ArgumentTypeError, match='c is no way; .* a, b'):
    read('a,c')
  monkeypatch.setattr(sys, 'argv', ['x', '--flags=--seed=1 --dtype=float32'])
  assert series.origin('speedrun')['command'] == (
    "python -m rlzero.benchmarks.speedrun '--flags=--seed=1 --dtype=float32'"
  )
