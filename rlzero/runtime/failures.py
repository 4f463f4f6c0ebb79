"""Which errors the user must mend, and which may pass by themselves.

A missing file stays missing, and the same command would end in the same way.
A stale file handle, a time-out or a full disk may be gone a minute later, and
the same command then resumes. Launchers tell the two by the exit code:
`launch/restart.sh` never repeats USAGE, and repeats TRY_AGAIN ten times.
"""

import errno
import re
from collections.abc import Iterator

USAGE = 2
TRY_AGAIN = 74  # EX_IOERR of sysexits.h

_LASTING = {
  errno.ENOENT,
  errno.EACCES,
  errno.EPERM,
  errno.EISDIR,
  errno.ENOTDIR,
  errno.EEXIST,
  errno.EINVAL,
  errno.ELOOP,
  errno.ENAMETOOLONG,
  errno.EROFS,
}
# Of errors that carry no number: a library's, or our own sentence.
_LASTING_TYPES = (
  FileNotFoundError,
  PermissionError,
  IsADirectoryError,
  NotADirectoryError,
  FileExistsError,
)
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")  # in TensorStore's text
# The texts of what JAX raises, as one of several types, where a host is gone.
_HOST_IS_GONE = re.compile(
  r'Gloo \w+ failed: .*(?:closed by peer|reset by peer|refused|[Tt]imed? ?out)'
  r'|heartbeat timeout|stopped sending heartbeats'
)
# Status codes of TensorStore for content that is missing, cut or not decoded.
_DAMAGED = ('NOT_FOUND:', 'OUT_OF_RANGE:', 'FAILED_PRECONDITION:', 'DATA_LOSS:')


class Unavailable(OSError):
  """Something that is there cannot be read or used now."""


def may_pass(error: BaseException) -> bool:
  """Whether the same call may succeed later: a fault of disk or network."""
  if number := _OS_ERROR.search(str(error)):
    return int(number[1]) not in _LASTING
  if not isinstance(error, OSError):
    return False
  if isinstance(error, ValueError):  # io.UnsupportedOperation
    return False
  if error.errno is None:
    return not isinstance(error, _LASTING_TYPES)
  return error.errno not in _LASTING


def exit_code(error: BaseException) -> int:
  """TRY_AGAIN if the error, or one that led to it, may pass; else USAGE."""
  return TRY_AGAIN if any(map(may_pass, _chain(error))) else USAGE


def is_lost_host(error: BaseException) -> bool:
  """Whether another host, which this one works with, is gone."""
  return any(_HOST_IS_GONE.search(str(one)) for one in _chain(error))


def is_damage(error: BaseException) -> bool:
  """Whether reading failed because of what is stored, not of how it was read.

  Args:
    error: of Orbax, TensorStore or the system. What is not known to be damage
      is none: a reader may run out of memory, or a mount may be away.
  """
  found = False
  for one in _chain(error):
    number = _OS_ERROR.search(str(one))
    code = int(number[1]) if number else getattr(one, 'errno', None)
    if code is not None and code != errno.ENOENT:
      return False
    if isinstance(one, MemoryError):
      return False
    found |= code == errno.ENOENT
    # json's errors are ValueErrors; a KeyError is a part that is not there.
    found |= type(one).__name__ in ('JSONDecodeError', 'UnicodeDecodeError')
    found |= isinstance(one, (KeyError, FileNotFoundError))
    found |= str(one).startswith(_DAMAGED)
  return found


def sentence(error: BaseException) -> str:
  """The error's first line, with the innermost cause where it says more."""
  *_, cause = _chain(error)
  text = str(cause).strip() or type(cause).__name__
  return text.splitlines()[0].rstrip('.')[:200]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
  seen = set()
  while error is not None and id(error) not in seen:
    seen.add(id(error))
    yield error
    suppressed = error.__suppress_context__
    error = error.__cause__ or (None if suppressed else error.__context__)
