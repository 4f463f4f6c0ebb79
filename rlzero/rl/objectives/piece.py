"""One choice of an objective: a function, its formula, source and numbers."""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
  """A function that computes one part of the objective.

  Called with the objective's settings first, it takes the numbers it needs
  from them.
  """

  function: Callable[..., Any]
  formula: str  # with the symbols of `describe`
  source: str  # paper and equation
  numbers: tuple[str, ...] = ()  # fields of the settings that it takes

  def __call__(self, settings: Any, *args: Any) -> Any:
    """Applies the function to arrays, with its numbers by their names."""
    numbers = {name: getattr(settings, name) for name in self.numbers}
    return self.function(*args, **numbers)
