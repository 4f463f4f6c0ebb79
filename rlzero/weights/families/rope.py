"""How files write the rotary embedding: its base and its stretch."""

from collections.abc import Mapping
from typing import Any

from rlzero.models.config import LinearScaling, RopeScaling, Yarn
from rlzero.weights.facts import Facts, WeightsError

Scaling = RopeScaling | LinearScaling | Yarn

# rope_type of a config.json, and its names of our fields.
_KINDS = {
  'llama3': (
    RopeScaling,
    {
      'factor': 'factor',
      'low_freq_factor': 'low_freq_factor',
      'high_freq_factor': 'high_freq_factor',
      'original_max_position': 'original_max_position_embeddings',
    },
  ),
  'linear': (LinearScaling, {'factor': 'factor'}),
  'yarn': (
    Yarn,
    {
      'factor': 'factor',
      'original_max_position': 'original_max_position_embeddings',
      'beta_fast': 'beta_fast',
      'beta_slow': 'beta_slow',
      'mscale': 'mscale',
      'mscale_all_dim': 'mscale_all_dim',
    },
  ),
}
# Those that may be absent have the defaults of our fields.
_OPTIONAL = ('beta_fast', 'beta_slow', 'mscale', 'mscale_all_dim')


def read(facts: Facts) -> tuple[float, Scaling | None]:
  """Base and stretch; older files keep them apart, newer ones in one dict.

  Raises:
    WeightsError: a kind of stretch that is not implemented.
  """
  rope = facts.get('rope_parameters') or facts.get('rope_scaling') or {}
  facts.only(
    'partial_rotary_factor',
    1,
    facts.get('partial_rotary_factor', rope.get('partial_rotary_factor')),
  )
  theta = float(rope.get('rope_theta') or facts.number('rope_theta', 1e4))
  return theta, scaling(rope, facts)


def scaling(rope: Mapping[str, Any], facts: Facts) -> Scaling | None:
  """The stretch that one dict describes.

  Raises:
    WeightsError: a kind that is not implemented, or one without its numbers.
  """
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind == 'default':
    return None
  if kind not in _KINDS:
    known = sorted(('default', *_KINDS))
    raise facts.refusal(f'rope_type = {kind!r}', ' and '.join(known))
  cls, names = _KINDS[kind]
  facts.only('attention_factor', None, rope.get('attention_factor'))
  facts.only('truncate', True, rope.get('truncate'))
  there = {ours: name for ours, name in names.items() if name in rope}
  missing = [
    name
    for name in names.values()
    if name not in rope and name not in _OPTIONAL
  ]
  if missing:
    raise WeightsError(
      f'{facts.source} has rope_type {kind!r} without {", ".join(missing)}; '
      "restore the model's own file."
    )
  return cls(**{ours: rope[name] for ours, name in there.items()})


def write(scaling: Scaling | None) -> dict[str, Any] | None:
  """`scaling`, inverted: the dict of a config.json, or None."""
  if scaling is None:
    return None
  (kind,) = (k for k, (cls, _) in _KINDS.items() if type(scaling) is cls)
  names = _KINDS[kind][1]
  return {
    'rope_type': kind,
    **{name: getattr(scaling, ours) for ours, name in names.items()},
  }
