"""An objective as a formula, and a table of its choices and numbers."""

import dataclasses
from collections.abc import Iterator

from rlzero.rl.objective import Objective
from rlzero.rl.objectives.advantages import BASELINES, SCALES
from rlzero.rl.objectives.aggregation import AGGREGATIONS
from rlzero.rl.objectives.behaviour import BEHAVIOUR
from rlzero.rl.objectives.gates import GATES
from rlzero.rl.objectives.kl import KL
from rlzero.rl.objectives.piece import Piece
from rlzero.rl.objectives.ratios import RATIOS
from rlzero.runtime import functions

_POLICY = {
  'token': 'π(o_t)',
  'sequence': 'π(o_i)^(1/|o_i|)',
  'trajectory': 'π(o_i)',
}
_OLD = {
  'sampler': 'π_old as the sampler computed it',
  'recomputed': 'π_old as the learner computes it once more',
}


def describe(objective: Objective) -> str:
  """The formula that is maximised, and where it comes from."""
  lines = [f'J = {_formula(objective)}', '']
  lines += [f'  {line}' for line in _symbols(objective)]
  rows = [('choice', 'value', 'numbers', 'source'), *_rows(objective)]
  widths = [max(len(row[i]) for row in rows) for i in range(3)]
  lines.append('')
  for row in rows:
    cells = [row[i].ljust(width) for i, width in enumerate(widths)]
    lines.append('  '.join([*cells, row[3]]).rstrip())
  if unread := _unread(objective):
    lines += ['', f'not part of it, though set: {", ".join(unread)}']
  return '\n'.join(lines)


def pieces(objective: Objective) -> dict[str, Piece]:
  """The functions that the settings choose, by the field that chooses them."""
  o = objective
  chosen = {
    'baseline': BASELINES[o.baseline],
    'scale': SCALES[o.scale],
    'ratio': RATIOS[o.ratio],
    'gate': GATES[o.gate],
    'aggregation': AGGREGATIONS[o.aggregation],
  }
  if o.function:
    del chosen['gate']
  if o.behaviour != 'none':
    chosen['behaviour'] = BEHAVIOUR[o.behaviour]
  if o.kl_coef:
    chosen['kl_estimator'] = KL[o.kl_estimator]
  return chosen


def _formula(o):
  gate = 'gate(log ρ, A)'
  if not o.function:
    gate = _text(GATES[o.gate], o)
  terms = gate if o.behaviour == 'none' else f'w {gate}'
  if o.kl_coef and o.kl_in == 'loss':
    terms += f' − {o.kl_coef:g} D'
  if o.kl_coef and o.kl_in == 'weighted_loss':
    terms += f' − {o.kl_coef:g} ρ_t D'
  if o.entropy_coef:
    terms += f' + {o.entropy_coef:g} H'
  return f'{_text(AGGREGATIONS[o.aggregation], o)} [ {terms} ]'


def _symbols(o) -> Iterator[str]:
  reward = 'r'
  if o.kl_coef and o.kl_in == 'reward':
    reward = f'r − {o.kl_coef:g} Σ_t D'
  yield f'ρ = {_text(RATIOS[o.ratio], o)}, {_OLD[o.old_logprobs]}'
  if o.gate in ('cispo', 'reinforce') and not o.function:
    yield f'log π = log {_POLICY[o.ratio]}'
  yield f'A = (R − b) / s of the rewards R = {reward}'
  yield f'b = {_text(BASELINES[o.baseline], o)}'
  yield f's = {_text(SCALES[o.scale], o)}'
  if o.behaviour != 'none':
    of = {'token': 'o_t', 'sequence': 'o_i'}[o.behaviour_level]
    yield f'w = {_text(BEHAVIOUR[o.behaviour], o)}'
    yield f'v = π_old({of}) / μ({of}), μ as the sampler computed it'
  if o.kl_coef:
    yield f'D = {_text(KL[o.kl_estimator], o)}'
  if o.kl_coef and o.kl_in == 'weighted_loss':
    yield 'ρ_t = the ratio of the token'
  if o.entropy_coef:
    yield 'H = the entropy of the next token'
  if o.aggregation == 'constant':
    yield f'L = {o.constant or "max_len"}'


def _rows(o) -> Iterator[tuple[str, str, str, str]]:
  if o.function:
    yield (
      'function',
      o.function,
      '',
      f'yours, sha256 {functions.digest(o.function)}',
    )
  for field, piece in pieces(o).items():
    numbers = [f'{name} = {getattr(o, name):g}' for name in piece.numbers]
    yield field, getattr(o, field), ', '.join(numbers), piece.source
  yield 'old_logprobs', o.old_logprobs, '', ''
  if o.behaviour != 'none':
    yield 'behaviour_level', o.behaviour_level, '', ''
  if o.kl_coef:
    yield 'kl_in', o.kl_in, f'kl_coef = {o.kl_coef:g}', ''
  if o.entropy_coef:
    yield 'entropy', '', f'entropy_coef = {o.entropy_coef:g}', ''


def _unread(o) -> list[str]:
  """Fields that were set to something and that nothing reads."""
  read = {'old_logprobs', 'behaviour', 'function', 'kl_coef', 'entropy_coef'}
  read |= {'behaviour_level'} if o.behaviour != 'none' else set()
  read |= {'kl_in'} if o.kl_coef else set()
  for field, piece in pieces(o).items():
    read |= {field, *piece.numbers}
  return [
    f'{field.name} = {getattr(o, field.name)}'
    for field in dataclasses.fields(o)
    if field.name not in read and getattr(o, field.name) != field.default
  ]


def _text(piece: Piece, o: Objective) -> str:
  return piece.formula.format(
    **{name: getattr(o, name) for name in piece.numbers}
  )
