"""Declares fields of settings: what may change on resume, and their ranges.

A dataclass of settings checks itself in `__post_init__`:

    fields.check(self, num_steps=at_least(1), top_p=above(0).at_most(1))

`check` also refuses NaN, infinities, and True or False in every field whose
annotation is a number or several, whether a range is given for it or not.
"""

import dataclasses
import math
import typing
from typing import Any, NamedTuple

from rlzero.runtime import files, functions, naming


def mutable_on_resume(default: Any = dataclasses.MISSING) -> Any:
  """Declares a field that may differ when a run resumes; so may all in it."""
  return dataclasses.field(
    default=default, metadata={'mutable_on_resume': True}
  )


def grows_on_resume(default: Any = dataclasses.MISSING, *inner: str) -> Any:
  """Declares a number that may be larger when a run resumes.

  Args:
    default: of the field.
    *inner: the fields that may grow, where the default is an object.
  """
  return dataclasses.field(
    default=default, metadata={'grows_on_resume': inner or True}
  )


def code(default: Any = '') -> Any:
  """Declares a function in a user's file, 'my_file.py:name'; '' is none.

  Its file may not change when a run resumes.

  Args:
    default: of the field; MISSING has none, and `dict` declares several
      functions, each by a name.
  """
  metadata = {'digest': functions.digest}
  if default is dict:
    return dataclasses.field(default_factory=dict, metadata=metadata)
  return dataclasses.field(default=default, metadata=metadata)


def content_of(default: Any = dataclasses.MISSING) -> Any:
  """Declares the path of a file that may not change when a run resumes."""
  return dataclasses.field(default=default, metadata={'digest': files.digest})


class Range(NamedTuple):
  """The numbers that a field takes."""

  low: float = -math.inf
  high: float = math.inf
  with_low: bool = True  # whether `low` itself is allowed
  with_high: bool = True
  divisor: int = 0  # of the numbers; 0 is none
  besides: float | None = None  # a number outside that is allowed as well
  means: str = ''  # that number
  why: str = ''  # ends the message

  def at_most(self, high: float) -> 'Range':
    return self._replace(high=high, with_high=True)

  def below(self, high: float) -> 'Range':
    return self._replace(high=high, with_high=False)

  def multiple_of(self, divisor: int) -> 'Range':
    return self._replace(divisor=divisor)

  def or_else(self, value: float, means: str) -> 'Range':
    """Allows one number more, which stands for something."""
    return self._replace(besides=value, means=means)

  def because(self, why: str) -> 'Range':
    return self._replace(why=why)

  def holds(self, value: float) -> bool:
    if value == self.besides:
      return True
    above = value >= self.low if self.with_low else value > self.low
    under = value <= self.high if self.with_high else value < self.high
    even = not self.divisor or value % self.divisor == 0
    return math.isfinite(value) and above and under and even

  def __str__(self) -> str:
    bounds = []
    if self.low > -math.inf:
      bounds.append(f'{"at least" if self.with_low else "above"} {self.low}')
    if self.high < math.inf:
      bounds.append(f'{"at most" if self.with_high else "below"} {self.high}')
    if self.divisor:
      bounds.append(f'a multiple of {self.divisor}')
    text = ' and '.join(bounds) or 'a finite number'
    if self.besides is not None:
      text += f', or {self.besides} for {self.means}'
    return text


# Annotations of fields that hold numbers.
_NUMBERS = (
  *(int, float, int | None, float | None),
  *(tuple[int, ...], tuple[float, ...], dict[str, float]),
)
SEED_LIMIT = 2**32  # NumPy's and JAX's generators take 32 bits


def at_least(low: float) -> Range:
  """`low` or more."""
  return Range(low=low)


def above(low: float) -> Range:
  """More than `low`."""
  return Range(low=low, with_low=False)


SEED = at_least(0).below(SEED_LIMIT)


def check(settings: Any, **ranges: Range) -> None:
  """Checks the numbers of a dataclass of settings.

  Args:
    settings: an instance of a dataclass.
    **ranges: by the names of fields; where a field holds several numbers,
      each must be in the range. None is not checked.

  Raises:
    ValueError: one that is not finite, no number, or out of its range; names
      the field, its value and what is allowed.
  """
  label = naming.label(type(settings))
  hints = typing.get_type_hints(type(settings))
  for field in dataclasses.fields(settings):
    if field.name not in ranges and hints[field.name] not in _NUMBERS:
      continue
    value = getattr(settings, field.name)
    allowed = ranges.get(field.name, Range())
    several = value.values() if isinstance(value, dict) else value
    if not isinstance(value, (tuple, list, dict)):
      several = (value,)
    for number in several:
      if number is None:
        continue
      if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise ValueError(
          f'{label}.{field.name} is {value!r}; it must be a number.'
        )
      if not allowed.holds(number):
        finite = math.isfinite(number) or field.name not in ranges
        why = f' ({allowed.why})' if allowed.why else ''
        raise ValueError(
          f'{label}.{field.name} is {value}; it must be '
          f'{"" if finite else "finite, "}{allowed}{why}.'
        )


def make(cls: type, **values: Any) -> Any:
  """Settings from a class's fields and the names of its short flags.

  `make(grpo.Config, workdir='run', kl_coef=0.0)` is `grpo.Config` with another
  coefficient in its default objective.

  Raises:
    TypeError: neither a field nor a short flag.
    ValueError: a value out of range.
  """
  defaults = {f.name: naming.default_of(f) for f in dataclasses.fields(cls)}
  return cls(**_nest(cls, defaults, values))


def replace(settings: Any, **values: Any) -> Any:
  """`dataclasses.replace` that takes the names of short flags too."""
  cls = type(settings)
  current = {f.name: getattr(settings, f.name) for f in dataclasses.fields(cls)}
  return dataclasses.replace(settings, **_nest(cls, current, values))


def _nest(
  cls: type, current: dict[str, Any], values: dict[str, Any]
) -> dict[str, Any]:
  """Values by field; those of short flags go into what their field holds."""
  short = naming.short_flags(cls)
  found = {name: value for name, value in values.items() if name in current}
  for name, value in values.items():
    if name in found:
      continue
    if name not in short:
      raise TypeError(f'{naming.label(cls)} has no field {name!r}.')
    field, inner = short[name].split('.')
    holder = found.get(field, current[field])
    found[field] = dataclasses.replace(holder, **{inner: value})
  return found
