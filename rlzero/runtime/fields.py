"""Declares fields of settings: which may change when a run resumes."""

import dataclasses
from typing import Any


def mutable_on_resume(default: Any = dataclasses.MISSING) -> Any:
  """Declares a field that may differ when a run resumes; so may all in it."""
  return dataclasses.field(
    default=default, metadata={'mutable_on_resume': True}
  )
