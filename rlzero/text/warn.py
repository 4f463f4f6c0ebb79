"""Warnings on stderr, each once a process."""

import functools
import sys


@functools.cache
def once(sentence: str) -> None:
  """Prints a warning, unless this process has printed it before."""
  print(f'warning: {sentence}', file=sys.stderr)
