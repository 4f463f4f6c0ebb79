"""Judges the JSON of a credit-card adjustment."""

import json


def score(completion, target, history):
  """What an adjustment earns; `score` is 1 if it holds.

  Args:
    completion: what the model wrote.
    target: how many of which item to refund, {'pen': 2}.
    history: the transactions of the card before the adjustment.
  """
  earned = {'score': 0.0, 'refers': 0.0, 'adds_up': 0.0}
  try:
    adjustment = json.loads(completion, object_pairs_hook=_unique)
    captured = {t['id']: t for t in history if t['status'] == 'captured'}
    bought = {
      line['item']: line
      for line in captured[adjustment['transaction']]['items']
    }
    earned['refers'] = 1.0
    refunded, sum_ = {}, 0
    for line in adjustment['items']:
      prior = bought[line['item']]
      count, cost = _whole(line['quantity']), _whole(line['unit_cost'])
      if count > prior['quantity'] or cost != prior['unit_cost']:
        return earned
      if _whole(line['total']) != count * cost or line['item'] in refunded:
        return earned
      refunded[line['item']] = count
      sum_ += count * cost
    earned['adds_up'] = float(_whole(adjustment['total']) == sum_)
    earned['score'] = float(earned['adds_up'] and refunded == target)
  except (ValueError, KeyError, TypeError, RecursionError):
    pass  # not JSON, or not of this shape
  return earned


def _whole(value):
  """A whole number above 0; neither 2.0 nor JSON's true is one."""
  if type(value) is not int or value < 1:
    raise ValueError(value)
  return value


def _unique(pairs):
  """A JSON object, in which nothing is said twice."""
  entries = dict(pairs)
  if len(entries) != len(pairs):
    raise ValueError('a key stands twice')
  return entries
