"""Writes credit-card adjustments to learn from.

    python docs/tutorials/adjustments/make_table.py runs/adjustments

A problem shows the transactions of a card and asks for the JSON of an
adjustment that refunds items of one of them. `problems.jsonl` has what the
reward needs beside the prompt: the items to refund, and the transactions as
data. `demonstrations.jsonl` has a few prompts with an answer each.
"""

import json
import os
import random
import sys

_ITEMS = ('pen', 'cup', 'hat', 'mug', 'bag', 'map', 'cap', 'toy')
_STATUS = ('captured', 'declined', 'voided')


def problem(number):
  """Problem `number`: the same each time."""
  rng = random.Random(number)
  refunded = rng.sample(_ITEMS, rng.randint(1, 2))
  # Each transaction has the items; only one of the three was captured.
  history = [
    {'id': f'T{id_}', 'status': status, 'items': _items(rng, refunded)}
    for id_, status in zip(
      rng.sample(range(10, 100), 3), rng.sample(_STATUS, 3), strict=True
    )
  ]
  captured = next(t for t in history if t['status'] == 'captured')
  bought = {line['item']: line['quantity'] for line in captured['items']}
  refund = {item: rng.randint(1, bought[item]) for item in refunded}
  lines = [
    f'{t["id"]} {t["status"]}: '
    + ', '.join(
      f'{i["quantity"]} {i["item"]} at {i["unit_cost"]}' for i in t['items']
    )
    for t in history
  ]
  asked = ' and '.join(f'{count} {item}' for item, count in refund.items())
  prompt = '\n'.join([*lines, f'Refund {asked}:'])
  return {'prompt': prompt, 'refund': refund, 'history': history}


def _items(rng, names):
  return [
    {
      'item': name,
      'quantity': rng.randint(1, 4),
      'unit_cost': rng.randint(2, 9),
    }
    for name in rng.sample(names, len(names))
  ]


def answer(problem):
  """The adjustment that a problem asks for."""
  captured = next(t for t in problem['history'] if t['status'] == 'captured')
  costs = {line['item']: line['unit_cost'] for line in captured['items']}
  lines = [
    {
      'item': item,
      'quantity': count,
      'unit_cost': costs[item],
      'total': count * costs[item],
    }
    for item, count in problem['refund'].items()
  ]
  total = sum(line['total'] for line in lines)
  return json.dumps(
    {'transaction': captured['id'], 'items': lines, 'total': total}
  )


def _write(path, rows):
  with open(path, 'w') as file:
    file.writelines(json.dumps(row) + '\n' for row in rows)


if __name__ == '__main__':
  folder = sys.argv[1]
  os.makedirs(folder, exist_ok=True)
  problems = [problem(number) for number in range(2200)]
  _write(os.path.join(folder, 'problems.jsonl'), problems[:2000])
  _write(
    os.path.join(folder, 'demonstrations.jsonl'),
    (
      {'prompt': p['prompt'], 'completion': ' ' + answer(p)}
      for p in problems[2000:]
    ),
  )
