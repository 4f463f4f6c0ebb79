"""The memory of this machine, and of this process.

XLA's arrays on a CPU come from malloc, which keeps what a program frees for
the next one (`lifecycle.reexec_with_malloc_settings`). That saves time, and it
may cost memory: free blocks that no new array fits into stay with the process.
Where memory is short they are given back.
"""

import ctypes
import os
import pathlib
import platform

GIB = 2**30

# What a container may use: version 2 of control groups, then version 1.
_LIMITS = (
  pathlib.Path('/sys/fs/cgroup/memory.max'),
  pathlib.Path('/sys/fs/cgroup/memory/memory.limit_in_bytes'),
)
_RESIDENT = pathlib.Path('/proc/self/statm')  # in pages, the second number


def total() -> int:
  """Bytes that programs here may use: the machine's, or the container's."""
  machine = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  limits = [_number(path) for path in _LIMITS]
  return min([machine, *filter(None, limits)])


def used() -> int | None:
  """Bytes of memory that this process holds; None where Linux is not."""
  try:
    pages = _RESIDENT.read_text('ascii').split()[1]
  except OSError:
    return None
  return int(pages) * os.sysconf('SC_PAGE_SIZE')


def release_free() -> None:
  """Gives memory that is free inside this process back to the system."""
  if platform.libc_ver()[0] == 'glibc':
    ctypes.CDLL(None).malloc_trim(0)


def release_if_short() -> bool:
  """`release_free`, if this process holds more than half of all memory.

  What is given back is taken again by page faults, so with memory to spare
  nothing is done.

  Returns:
    whether it was done.
  """
  held = used()
  if held is None or held <= total() / 2:
    return False
  release_free()
  return True


def _number(path: pathlib.Path) -> int | None:
  """The limit in a file; None without one."""
  try:
    text = path.read_text('ascii').strip()
  except OSError:
    return None
  return int(text) if text.isdecimal() else None  # 'max' is none
