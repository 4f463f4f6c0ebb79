"""Runs untrusted commands where they can neither read nor harm anything.

Two mechanisms, and the first that works on this machine is used:

  bubblewrap  its own user, process, network, mount, IPC and UTS namespaces: a
              system of read-only folders that Python and a C++ compiler need,
              an empty scratch folder of bounded size, no /proc, no network
  landlock    the kernel's Landlock, for users without bubblewrap or user
              namespaces (many containers): the same files can be read, none
              can be written

Under both, a seccomp filter (`seccomp`) leaves no way to start processes, to
reach others or to open sockets, and there are limits on CPU time, memory,
threads, open files, output and time by the clock. Landlock and seccomp need no
package and no rights, so they are the second mechanism; bubblewrap is the
first because it also hides names of files and bounds the scratch folder.

Where neither works, `run` refuses, unless it is told to go without.
"""

import contextlib
import fcntl
import functools
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence

from rlzero.tasks import launcher, seccomp, supervise
from rlzero.tasks.supervise import Limits, Result

MECHANISMS = ('bubblewrap', 'landlock')
# The interpreter, without the virtual environment that it may serve.
PYTHON = os.path.realpath(getattr(sys, '_base_executable', sys.executable))

_LIMITS = Limits()
_PREFIX = 'rlzero_sandbox_'  # of folders for temporary files
_OLD_S = 3600.0  # no command lives as long
_SCRATCH = '/scratch'
_FILES = '/files'
# What Python and a compiler read; never /usr/local, /etc or /home as a whole.
_SYSTEM = (
  *('/bin', '/sbin', '/lib', '/lib32', '/lib64', '/libx32'),
  *('/usr/bin', '/usr/lib', '/usr/lib32', '/usr/lib64', '/usr/libx32'),
  *('/usr/libexec', '/usr/include', '/etc/alternatives', '/etc/ld.so.cache'),
)
_DEVICES = ('/dev/null', '/dev/zero', '/dev/random', '/dev/urandom')
_ENVIRONMENT = {
  'PATH': '/usr/bin:/bin',
  'LANG': 'C.UTF-8',
  'PYTHONHASHSEED': '0',
  # One thread: others would count against the limits of memory and threads.
  'OPENBLAS_NUM_THREADS': '1',
}


def run(
  command: Sequence[str],
  stdin: bytes = b'',
  limits: Limits = _LIMITS,
  *,
  files: Mapping[str, bytes] | None = None,
  readable: Sequence[str] = (),
  using: str | None = None,
  allow_unsandboxed: bool = False,
) -> Result:
  """Runs a command in the sandbox and waits for its end.

  All that it started ends with it. Its environment holds nothing of ours and
  its working directory is an empty scratch folder, which is deleted.

  Args:
    command: a program of the system, or PYTHON, by its full path, and its
      arguments; an argument that is a name in `files` becomes its path.
    stdin: all that it can read from standard input.
    limits: on what it uses.
    files: names and contents of files that it can read and execute.
    readable: further files and folders of ours that it can read; each stands
      among the files too, under its own name.
    using: one of MECHANISMS instead of the first that works.
    allow_unsandboxed: run it, where no mechanism works, with limits alone.

  Raises:
    ValueError: a mechanism that does not exist.
  """
  if using not in (None, *MECHANISMS):
    raise ValueError(
      f'using is {using!r}; choose one of {", ".join(MECHANISMS)}.'
    )
  if not hasattr(os, 'pidfd_open'):
    return Result('refused', b'', 'Programs are run on Linux 5.3 or later.')
  found = using or mechanism()
  if found is None and not allow_unsandboxed:
    return Result('refused', b'', refusal())
  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(_folder('files'))
    os.chmod(folder, 0o755)  # for the user that the command runs as
    for name, content in (files or {}).items():
      path = os.path.join(folder, name)
      with open(path, 'wb') as file:
        file.write(content)
      os.chmod(path, 0o755)
    for path in readable:
      os.symlink(path, os.path.join(folder, os.path.basename(path)))
    inside = _FILES if found == 'bubblewrap' else folder
    command = [
      os.path.join(inside, a) if a in (files or {}) else a for a in command
    ]
    readable = (*_interpreter(), *readable)
    if found == 'bubblewrap':
      whole = _bubblewrap(command, limits, folder, readable)
    else:
      scratch = stack.enter_context(_folder('scratch'))
      whole = _alone(command, limits, folder, scratch, readable, found)
    prefix, plan = whole
    return supervise.run(
      [*prefix, PYTHON, '-I', '-S', '-c', _launcher()],
      plan,
      stdin,
      limits,
      _ENVIRONMENT,
    )


def mechanism() -> str | None:
  """The mechanism in use on this machine, or None."""
  found = next((m for m in MECHANISMS if not fault(m)), None)
  if found is None:
    # A trial fails on a machine that is too busy, too: try again next time.
    fault.cache_clear()
  return found


@functools.cache
def fault(name: str) -> str:
  """Why a mechanism does not work on this machine; empty if it does."""
  if not seccomp.known():
    return 'the seccomp filter is known for x86-64 and AArch64 alone'
  if name == 'bubblewrap' and not shutil.which('bwrap'):
    return 'there is no bwrap on the PATH'
  if name == 'landlock' and not launcher.landlock_version():
    return 'the kernel has no Landlock (it came with Linux 5.13)'
  result = run(
    [PYTHON, '-I', '-S', '-c', 'print(6 * 7)'],
    limits=Limits(wall_s=supervise.START_S),
    using=name,
  )
  if result.status == 'ok' and result.output == b'42\n':
    return ''
  return result.reason.strip() or f'a trial ended as {result.status!r}'


def refusal() -> str:
  """Why programs are refused where no mechanism works, in a sentence."""
  faults = '; '.join(f'{name}: {fault(name)}' for name in MECHANISMS)
  return (
    f'Programs of the model are not run, for no sandbox works here ({faults}): '
    'install bubblewrap (apt-get install bubblewrap), use a kernel with '
    'Landlock, or set allow_unsandboxed on the task if you trust the model.'
  )


def describe(allow_unsandboxed: bool = False) -> str:
  """The mechanism in use, in a sentence for the log.

  Raises:
    RuntimeError: there is none, and that is not allowed.
  """
  if found := mechanism():
    return f'Programs of the model run under {found} and seccomp.'
  if not allow_unsandboxed:
    raise RuntimeError(refusal())
  return (
    'Programs of the model run WITHOUT a sandbox, as allow_unsandboxed says: '
    'they can read and write what this user can.'
  )


@contextlib.contextmanager
def _folder(name: str) -> Iterator[str]:
  _remove_stale()
  folder = tempfile.mkdtemp(prefix=f'{_PREFIX}{name}_')
  held = os.open(folder, os.O_RDONLY)
  try:
    _try_lock(held)
    yield folder
  finally:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(held)


@functools.cache
def _remove_stale() -> None:
  """Removes folders of processes that were killed, once a process.

  Whoever lives has a folder locked, so a clock that jumps removes none.
  """
  for path in pathlib.Path(tempfile.gettempdir()).glob(f'{_PREFIX}*'):
    with contextlib.suppress(OSError):
      facts = path.lstat()
      is_old = time.time() - facts.st_mtime > _OLD_S
      if facts.st_uid != os.geteuid() or not is_old:
        continue
      folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
      try:
        if _try_lock(folder):
          shutil.rmtree(path, ignore_errors=True)
      finally:
        os.close(folder)


def _try_lock(file: int) -> bool:
  """Locks what is open; its holder's end frees it. False if it is not had."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError:
    return False
  return True


@functools.cache
def _interpreter() -> tuple[str, ...]:
  """Folders that PYTHON reads: itself and its library, no other packages."""
  return PYTHON, os.path.join(sys.base_prefix, 'lib')


@functools.cache
def _launcher() -> str:
  with open(launcher.__file__, encoding='utf-8') as file:
    return file.read()


@functools.cache
def _filter(processes: bool) -> str:
  return seccomp.program(processes).hex()


def _own_user() -> int:
  """A user number that nobody has, if this is root; else 0.

  The kernel does not limit root's processes, and root owns most files.
  """
  if os.geteuid():
    return 0
  with open('/proc/self/uid_map', encoding='ascii') as file:
    ranges = [[int(v) for v in line.split()] for line in file]
  first, _, count = max(ranges, key=lambda r: r[2])
  if count < 1 << 15:
    return 0  # a user namespace: outside of it this is not root
  start = first + min(count, 1 << 31) // 2
  # Not of `random`, whose state is the caller's.
  return start + int.from_bytes(os.urandom(8)) % (count // 4)


def _plan(
  command: Sequence[str], limits: Limits, found: str | None, folder: str
) -> dict:
  """The launcher's argument, but for its descriptor."""
  cpu_s = int(-(-(limits.cpu_s or limits.wall_s) // 1))
  kinds = {
    'RLIMIT_AS': (limits.memory, limits.memory),
    'RLIMIT_CPU': (cpu_s, cpu_s + 1),
    'RLIMIT_FSIZE': (limits.file_size, limits.file_size),
    'RLIMIT_NOFILE': (limits.files, limits.files),
    'RLIMIT_STACK': (limits.stack, limits.stack),
    'RLIMIT_CORE': (1, 1),  # 0 would still start a handler of core dumps
  }
  if found:
    # Without a sandbox it would count every process of this user.
    kinds['RLIMIT_NPROC'] = (limits.threads, limits.threads)
  return {
    'limits': kinds,
    'uid': _own_user() if found else 0,
    'landlock': None,
    'filter': _filter(limits.processes) if found else '',
    'folder': folder,
    'command': list(command),
  }


def _bubblewrap(
  command: Sequence[str], limits: Limits, folder: str, readable: Sequence[str]
) -> tuple[list[str], dict]:
  arguments = [
    *(shutil.which('bwrap'), '--unshare-ipc', '--unshare-pid'),
    *('--unshare-net', '--unshare-uts', '--unshare-cgroup-try'),
    *('--die-with-parent', '--new-session', '--hostname', 'sandbox'),
  ]
  plan = _plan(command, limits, 'bubblewrap', _SCRATCH)
  if plan['uid']:  # the launcher becomes that user
    arguments += ['--cap-drop', 'ALL']
    for capability in ('CAP_SETUID', 'CAP_SETGID'):
      arguments += ['--cap-add', capability]
  else:
    arguments.append('--unshare-user')
  bound = [p for p in (*_SYSTEM, *readable) if os.path.exists(p)]
  # Else bubblewrap makes parents that only root may pass. These can be passed
  # but not listed, for the interpreter may lie in a home.
  parents = {str(q) for p in (*bound, *_DEVICES) for q in _parents(p)}
  for path in sorted(parents):  # outer ones first
    arguments += ['--perms', '0111', '--dir', path]
  for path in bound:
    if os.path.islink(path):
      arguments += ['--symlink', os.readlink(path), path]
    else:
      arguments += ['--ro-bind', path, path]
  for path in _DEVICES:
    arguments += ['--dev-bind', path, path]
  arguments += [
    *('--ro-bind', folder, _FILES, '--perms', '0777'),
    *('--size', str(limits.scratch), '--tmpfs', _SCRATCH),
    # Else it could fill the memory of the root, which has no bound.
    *('--remount-ro', '/', '--'),
  ]
  return arguments, plan


def _parents(path: str) -> Sequence[pathlib.Path]:
  return pathlib.Path(path).parents[:-1]  # without the root


def _alone(
  command: Sequence[str],
  limits: Limits,
  folder: str,
  scratch: str,
  readable: Sequence[str],
  found: str | None,
) -> tuple[list[str], dict]:
  plan = _plan(command, limits, found, scratch)
  if found:
    read = (*_SYSTEM, *_DEVICES, *readable, folder)
    write = ['/dev/null']
    if limits.processes:
      # Landlock does not bound what a folder holds, so only a compiler gets
      # one to write to.
      write.append(scratch)
      if plan['uid']:
        os.chown(scratch, plan['uid'], plan['uid'])
    else:
      read = (*read, scratch)
    read = [p for p in dict.fromkeys(read) if os.path.exists(p)]
    plan['landlock'] = {'read': read, 'write': write}
  return [], plan
