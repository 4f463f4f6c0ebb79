"""One process at a time writes to a run's folder.

The command that starts a run also resumes it, so it is easily given twice. The
second process would remove checkpoints that the first is writing. A lock on
`WORKDIR/lock` prevents that. The system drops the lock when its holder ends,
even by SIGKILL; the file stays, and means nothing by itself.
"""

import contextlib
import errno
import fcntl
import os
import re
import socket
import sys
import time
from collections.abc import Iterator

from rlzero.runtime import failures

LOCK = 'lock'
# Not every network file system has locks.
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}

# Folders of this process: to what `lock` returned.
_held: dict[str, int | None] | None = None


@contextlib.contextmanager
def claims() -> Iterator[None]:
  """Inside, `claim` takes folders; they are free again at the end."""
  global _held
  outer, _held = _held, {}
  try:
    yield
  finally:
    for file in _held.values():
      if file is not None:
        release(file)
    _held = outer


def check(workdir: str) -> None:
  """Refuses what would become a folder of an odd name on the local disk.

  Raises:
    ValueError: an address such as gs://bucket/run, or a home that no shell has
      put in place.
  """
  if re.match(r'[A-Za-z][A-Za-z0-9+.-]*:/', workdir):
    raise ValueError(
      f'The workdir {workdir!r} is an address, not a folder; mount the bucket '
      '(gcsfuse, docs/howto/tpu.md) and give the folder it is mounted at.'
    )
  if workdir.startswith('~'):
    raise ValueError(
      f'The workdir {workdir!r} would be a folder named '
      f'{workdir.split("/")[0]!r}; write the path of the home folder in full.'
    )


def claim(workdir: str) -> None:
  """Takes a folder for this process, until the end of `claims`.

  Outside of `claims` (a stage that is called as a function) nothing is taken.

  Args:
    workdir: the folder; it is made if it is missing.

  Raises:
    failures.Unavailable: another process has it.
    OSError: the folder cannot be written to.
  """
  folder = os.path.realpath(workdir)
  if _held is None or folder in _held:
    return
  os.makedirs(folder, exist_ok=True)
  _held[folder] = lock(folder)


def lock(workdir: str, wait: bool = False) -> int | None:
  """Locks a folder that exists.

  Args:
    workdir: the folder.
    wait: for whoever has it, instead of an error.

  Returns:
    the open lock file, to be given to `release`; processes that inherit it hold
    the lock too. None on a file system without locks, after a warning.

  Raises:
    failures.Unavailable: another process has it, and `wait` is false.
  """
  path = os.path.join(workdir, LOCK)
  file = None
  while file is None or _is_gone(file, path):
    if file is not None:
      os.close(file)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      _flock(file, path, workdir, wait)
    except OSError as error:
      os.close(file)
      if error.errno not in _NO_LOCKS:
        raise
      print(
        f'warning: {workdir} is on a file system without locks; take care '
        'that no second process works there.',
        file=sys.stderr,
        flush=True,
      )
      return None
  since = time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())
  os.ftruncate(file, 0)
  holder = f'process {os.getpid()} on {socket.gethostname()} since {since}'
  os.pwrite(file, holder.encode(), 0)
  return file


@contextlib.contextmanager
def locked(workdir: str) -> Iterator[int | None]:
  """Makes a folder and locks it, waiting for whoever has it.

  Yields:
    the open lock file, or None: as `lock`.
  """
  os.makedirs(workdir, exist_ok=True)
  file = lock(workdir, wait=True)
  try:
    yield file
  finally:
    if file is not None:
      release(file)


def release(file: int) -> None:
  """Frees a folder that `lock` has locked."""
  with contextlib.suppress(OSError):  # a full disk: the text says too much
    os.ftruncate(file, 0)
  os.close(file)


def hand_on(workdir: str) -> None:
  """Removes the lock file of a folder, if this process has claimed it.

  For a folder that is copied elsewhere next: nothing is written after this.
  """
  if _held is not None and os.path.realpath(workdir) in _held:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(os.path.join(workdir, LOCK))


def _is_gone(file: int, path: str) -> bool:
  """Whether the file that was locked has been removed, or replaced, since."""
  try:
    return not os.path.samestat(os.fstat(file), os.stat(path))
  except FileNotFoundError:
    return True


def _flock(file: int, path: str, workdir: str, wait: bool) -> None:
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    if wait:
      print('waiting for a process that works in this workdir', flush=True)
      fcntl.flock(file, fcntl.LOCK_EX)
      return
    with open(path, encoding='utf-8', errors='replace') as opened:
      holder = opened.read(200) or 'another process'
    raise failures.Unavailable(
      f'The workdir {workdir} is in use by {holder}; wait until it has ended, '
      'or choose another with --workdir=DIR.'
    ) from None
