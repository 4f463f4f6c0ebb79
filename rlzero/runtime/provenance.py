"""Where metrics come from: versions, commit, hardware."""

import importlib.metadata
import os
import platform
import subprocess
from typing import Any

import jax

import rlzero

_PACKAGES = ('jax', 'flax', 'numpy', 'math-verify', 'reasoning-gym')


def commit() -> str | None:
  """Commit of the source; None without git, or where it is no checkout."""
  try:
    found = subprocess.run(
      ['git', '-C', os.path.dirname(__file__), 'rev-parse', 'HEAD'],
      capture_output=True,
      text=True,
      check=False,
    )
  except OSError:  # slim images have no git
    return None
  return found.stdout.strip() or None


def hardware() -> str:
  """Devices and cores of this host."""
  return (
    f'{jax.device_count()} x {jax.devices()[0].device_kind} '
    f'({os.cpu_count()} cores, {platform.machine()})'
  )


def processor() -> str:
  """Name of this host's processor; empty where the system does not say it."""
  try:
    with open('/proc/cpuinfo', encoding='utf-8') as file:
      names = [line for line in file if line.startswith('model name')]
  except OSError:  # no Linux
    return ''
  return names[0].partition(':')[2].strip() if names else ''


def metadata() -> dict[str, Any]:
  """All of it, for a file of metrics."""
  return {
    'versions': {
      'rlzero': rlzero.__version__,
      'python': platform.python_version(),
      **{name: importlib.metadata.version(name) for name in _PACKAGES},
    },
    'commit': commit(),
    'hardware': hardware(),
    'processor': processor(),
  }
