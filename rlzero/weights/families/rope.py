"""How files write the rotary embedding: its base and its stretch."""

from collections.abc import Iterable, Mapping
from typing import Any

from rlzero.models.config import LinearScaling, RopeScaling, Yarn
from rlzero.weights.metadata import Metadata, WeightsError

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


def read(metadata: Metadata) -> tuple[float, Scaling | None]:
  """Base and stretch; older files keep them apart, newer ones in one dict.

  Raises:
    WeightsError: a stretch that is not implemented, has no type, or is another
      in rope_scaling than in rope_parameters.
  """
  newer, older = (
    section(metadata, k) for k in ('rope_parameters', 'rope_scaling')
  )
  rope = newer or older
  metadata.require(
    'partial_rotary_factor',
    1,
    metadata.get('partial_rotary_factor', rope.get('partial_rotary_factor')),
  )
  stretch = scaling(rope, metadata)
  if newer and older and scaling(older, metadata) != stretch:
    raise WeightsError(
      f'{metadata.source} has rope_parameters {newer!r} and rope_scaling '
      f"{older!r}, which are not the same stretch; restore the model's own "
      'file.'
    )
  return base(rope, metadata, metadata.number('rope_theta', 1e4)), stretch


def section(metadata: Metadata, key: str) -> dict[str, Any]:
  """A dict of a config.json, {} where there is none.

  Raises:
    WeightsError: something else is there.
  """
  found = metadata.get(key, {})
  if not isinstance(found, dict):
    raise metadata.unusable(key, found, 'an object or null')
  return found


def base(rope: Mapping[str, Any], metadata: Metadata, default: float) -> float:
  """The base θ of the embedding (arXiv 2104.09864).

  Raises:
    WeightsError: none above 0.
  """
  theta = Metadata(rope, metadata.source).number('rope_theta', default)
  if theta <= 0:
    raise metadata.unusable('rope_theta', theta, 'a number above 0')
  return theta


def scaling(rope: Mapping[str, Any], metadata: Metadata) -> Scaling | None:
  """The stretch that one dict describes.

  Raises:
    WeightsError: a kind that is not implemented, or one without its numbers;
      numbers without a kind.
  """
  kinds = {rope[k] for k in ('rope_type', 'type') if rope.get(k) is not None}
  if len(kinds) > 1:
    raise WeightsError(
      f'{metadata.source} has a rotary embedding of the types '
      f"{' and '.join(sorted(map(repr, kinds)))}; restore the model's own file."
    )
  if not kinds:
    numbers = [k for k, v in rope.items() if v is not None]
    numbers = [k for k in numbers if k not in _NO_STRETCH]
    if numbers:
      raise untyped(metadata, numbers)
    return None
  (kind,) = kinds
  if kind == 'default':
    return None
  if kind not in _KINDS:
    known = sorted(('default', *_KINDS))
    raise metadata.refusal(f'rope_type = {kind!r}', ' and '.join(known))
  cls, names = _KINDS[kind]
  metadata.require('attention_factor', None, rope.get('attention_factor'))
  metadata.require('truncate', True, rope.get('truncate'))
  there = {o: name for o, name in names.items() if rope.get(name) is not None}
  missing = [
    name
    for ours, name in names.items()
    if ours not in there and name not in _OPTIONAL
  ]
  if missing:
    raise WeightsError(
      f'{metadata.source} has rope_type {kind!r} without {", ".join(missing)}; '
      "restore the model's own file."
    )
  values = Metadata(rope, metadata.source)
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
    raise WeightsError(f'{metadata.source}: {error}') from error


def untyped(metadata: Metadata, names: Iterable[str]) -> WeightsError:
  """The error about a stretch whose kind nobody said."""
  return WeightsError(
    f'{metadata.source} stretches the rotary embedding by {", ".join(names)} '
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
