"""Shared by the benchmarks: flags, costs to a goal, intervals, the record."""

import argparse
import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from rlzero.evaluation import statistics
from rlzero.runtime import provenance


def numbers(text: str) -> list[int]:
  """The numbers of a flag, as in '0,1,2'."""
  return [int(number) for number in text.split(',')]


def names(known: Collection[str], kind: str) -> Callable[[str], list[str]]:
  """The type of a flag that takes names, as in 'plain,curriculum'.

  Args:
    known: names that it takes.
    kind: of their bearers, for the message.
  """

  def read(text: str) -> list[str]:
    found = text.split(',')
    if unknown := sorted(set(found) - set(known)):
      raise argparse.ArgumentTypeError(
        f'{", ".join(unknown)} is no {kind}; choose from {", ".join(known)}.'
      )
    return found

  return read


def origin(name: str) -> dict[str, Any]:
  """The command of a benchmark, as it was given, and `provenance.metadata`.

  Args:
    name: of the module in this folder.
  """
  command = f'python -m rlzero.benchmarks.{name} {shlex.join(sys.argv[1:])}'
  return {'command': command.strip(), **provenance.metadata()}


def cost(run: Mapping[str, Any], name: str, goal: float) -> float | None:
  """The cost of a run until it first reached the goal; None if it did not.

  Along the line from the evaluation before.

  Args:
    run: its `evaluations`, each with pass@1 and the cost so far.
    name: of the cost, such as 'tokens'.
    goal: pass@1.
  """
  before = {'pass@1': 0.0, name: 0.0}
  for now in run['evaluations']:
    if now['pass@1'] >= goal:
      part = (goal - before['pass@1']) / (now['pass@1'] - before['pass@1'])
      return before[name] + part * (now[name] - before[name])
    before = now
  return None


def interval(values: Sequence[Any]) -> dict[str, float] | None:
  """Mean and 95% interval by Student's t; None if a value is missing.

  Of one value there is no interval.
  """
  if not values or any(value is None for value in values):
    return None
  return statistics.mean_interval(values)
