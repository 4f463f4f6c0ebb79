"""How files write the rotary embedding: its base and its stretch."""

from collections.abc import Iterable, Mapping
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


# Those that say nothing of a stretch.
_NO_STRETCH = ('rope_theta', 'partial_rotary_factor')


def read(facts: Facts) -> tuple[float, Scaling | None]:
  """Base and stretch; older files keep them apart, newer ones in one dict.

  Raises:
    WeightsError: a stretch that is not implemented, has no type, or is another
      in rope_scaling than in rope_parameters.
  """
  newer, older = (
    section(facts, k) for k in ('rope_parameters', 'rope_scaling')
  )
  rope = newer or older
  facts.only(
    'partial_rotary_factor',
    1,
    facts.get('partial_rotary_factor', rope.get('partial_rotary_factor')),
  )
  stretch = scaling(rope, facts)
  if newer and older and scaling(older, facts) != stretch:
    raise WeightsError(
      f'{facts.source} has rope_parameters {newer!r} and rope_scaling '
      f"{older!r}, which are not the same stretch; restore the model's own "
      'file.'
    )
  return base(rope, facts, facts.number('rope_theta', 1e4)), stretch


def section(facts: Facts, key: str) -> dict[str, Any]:
  """A dict of a config.json, {} where there is none.

  Raises:
    WeightsError: something else is there.
  """
  found = facts.get(key, {})
  if not isinstance(found, dict):
    raise facts.unusable(key, found, 'an object or null')
  return found


def base(rope: Mapping[str, Any], facts: Facts, default: float) -> float:
  """The base θ of the embedding (arXiv 2104.09864).

  Raises:
    WeightsError: none above 0.
  """
  theta = Facts(rope, facts.source).number('rope_theta', default)
  if theta <= 0:
    raise facts.unusable('rope_theta', theta, 'a number above 0')
  return theta


def scaling(rope: Mapping[str, Any], facts: Facts) -> Scaling | None:
  """The stretch that one dict describes.

  Raises:
    WeightsError: a kind that is not implemented, or one without its numbers;
      numbers without a kind.
  """
  kinds = {rope[k] for k in ('rope_type', 'type') if rope.get(k) is not None}
  if len(kinds) > 1:
    raise WeightsError(
      f'{facts.source} has a rotary embedding of the types '
      f"{' and '.join(sorted(map(repr, kinds)))}; restore the model's own file."
    )
  if not kinds:
    numbers = [k for k, v in rope.items() if v is not None]
    numbers = [k for k in numbers if k not in _NO_STRETCH]
    if numbers:
      raise untyped(facts, numbers)
    return None
  (kind,) = kinds
  if kind == 'default':
    return None
  if kind not in _KINDS:
    known = sorted(('default', *_KINDS))
    raise facts.refusal(f'rope_type = {kind!r}', ' and '.join(known))
  cls, names = _KINDS[kind]
  facts.only('attention_factor', None, rope.get('attention_factor'))
  facts.only('truncate', True, rope.get('truncate'))
  there = {o: name for o, name in names.items() if rope.get(name) is not None}
  missing = [
    name
    for ours, name in names.items()
    if ours not in there and name not in _OPTIONAL
  ]
  if missing:
    raise WeightsError(
      f'{facts.source} has rope_type {kind!r} without {", ".join(missing)}; '
      "restore the model's own file."
    )
  values = Facts(rope, facts.source)
  try:
    return cls(
      **{
        ours: values.size(name)
        if ours == 'original_max_position'
        else values.number(name)
        for ours, name in there.items()
      }
    )
  except ValueError as error:
    raise WeightsError(f'{facts.source}: {error}') from error


def untyped(facts: Facts, names: Iterable[str]) -> WeightsError:
  """The error about a stretch whose kind nobody said."""
  return WeightsError(
    f'{facts.source} stretches the rotary embedding by {", ".join(names)} '
    'without a type, and each type computes other positions; add the '
    "model's own type (rope_type, or rope.scaling.type in GGUF)."
  )


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
