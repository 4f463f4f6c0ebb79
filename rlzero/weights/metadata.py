"""Reads a config.json or the head of a GGUF file, with checks."""

import math
from collections.abc import Mapping
from typing import Any


class WeightsError(ValueError):
  """A weight file that is damaged or is not the model it says it is."""


class Metadata:
  """Values by name; every refusal names the source, the key and the value.

  Args:
    values: as the file has them.
    source: what an error calls the file, usually its path.
    prefix: of the names in the file.
  """

  def __init__(self, values: Mapping[str, Any], source: str, prefix: str = ''):
    self.values = values
    self.source = source
    self._prefix = prefix

  def get(self, key: str, default: Any = None) -> Any:
    """The value; a key that is there with null counts as absent."""
    value = self.values.get(self._prefix + key)
    return default if value is None else value

  def size(self, key: str, default: int | None = None) -> int:
    """A whole number.

    Raises:
      WeightsError: it is missing and has no default, or is something else.
    """
    value = self.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
      raise self.unusable(key, value, 'a whole number')
    return value

  def number(self, key: str, default: float | None = None) -> float:
    """A number.

    Raises:
      WeightsError: it is missing and has no default, or is something else.
    """
    value = self.get(key, default)
    if (
      not isinstance(value, (int, float))
      or isinstance(value, bool)
      or not math.isfinite(value)
    ):
      raise self.unusable(key, value, 'a number')
    return float(value)

  def require(self, key: str, wanted: Any, value: Any = None) -> None:
    """Accepts one value of an option, which is also what absence means.

    Args:
      key: of the option.
      wanted: the value that is implemented.
      value: what the file says, where that is not `get(key)`.

    Raises:
      WeightsError: another value.
    """
    value = self.get(key, wanted) if value is None else value
    if value != wanted:
      raise self.refusal(f'{key} = {value!r}', repr(wanted))

  def refusal(self, found: str, wanted: str) -> WeightsError:
    """The error that says what is there and what is implemented."""
    many = ' and ' in wanted
    return WeightsError(
      f'{self.source} has {self._prefix}{found}, but only {wanted} '
      f'{"are" if many else "is"} implemented; choose another model.'
    )

  def unusable(self, key: str, value: Any, kind: str) -> WeightsError:
    """The error that says what is there and what kind of value is needed."""
    return WeightsError(
      f'{self.source} has {self._prefix}{key} = {value!r}, but {kind} is '
      "needed; restore the model's own file."
    )
