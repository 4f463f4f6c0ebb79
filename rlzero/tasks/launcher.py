"""Gives up rights, then becomes the untrusted command; run as a script.

`isolation` starts it inside bubblewrap, or alone, with one argument,
marshalled and in hexadecimal:

  limits: {name of RLIMIT: value}
  uid: of the user to become, or 0 to stay as it is
  landlock: null, or {'read': [paths], 'write': [paths]}
  filter: the seccomp filter in hexadecimal, or ''
  folder: working directory
  ready: descriptor that gets 'r' when all that is done, or the error
  command: the command and its arguments

It imports nothing of rlzero: inside the sandbox there is none. Nor does it
import json or signal, which take longer than all the rest.
"""

import _signal as signal  # pyright: ignore[reportMissingImports] no stub
import ctypes
import marshal
import os
import resource
import sys

_SET_DEATH_SIGNAL, _SET_KEEP_CAPS, _SET_SECCOMP = 1, 8, 22
_SET_NO_NEW_PRIVS, _CAP_AMBIENT, _AMBIENT_RAISE = 38, 47, 2
_DAC_READ_SEARCH = 2
_NEW_USER = 0x10000000
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_FILE = 16, 32, 128, 256
_MAKE_LINK, _TRUNCATE = 4096, 1 << 14

_libc = ctypes.CDLL(None, use_errno=True)


class _Ruleset(ctypes.Structure):
  _fields_ = [(n, ctypes.c_uint64) for n in ('files', 'network', 'scoped')]


class _Beneath(ctypes.Structure):
  _pack_ = 1
  _fields_ = [('allowed', ctypes.c_uint64), ('parent', ctypes.c_int32)]


class _Filter(ctypes.Structure):
  _fields_ = [('length', ctypes.c_ushort), ('code', ctypes.c_char_p)]


class _CapHeader(ctypes.Structure):
  _fields_ = [('version', ctypes.c_uint32), ('pid', ctypes.c_int)]


def _checked(result: int, what: str) -> int:
  if result < 0:
    code = ctypes.get_errno()
    raise OSError(code, f'{what}: {os.strerror(code)}')
  return result


def _prctl(*arguments: int) -> None:
  padded = [ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:5]]
  _checked(_libc.prctl(*padded), f'prctl {arguments[0]}')


def landlock_version() -> int:
  """Version of Landlock's interface, or 0 where the kernel has none."""
  return max(
    _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1)),
    0,
  )


def _landlock(read: list[str], write: list[str]) -> None:
  version = landlock_version()
  if not version:
    raise OSError('the kernel has no Landlock')
  bits = 13 if version < 2 else 14 if version < 3 else 15
  if version >= 5:
    bits = 16
  handled = (1 << bits) - 1
  ruleset = _Ruleset(
    handled, 3 if version >= 4 else 0, 3 if version >= 6 else 0
  )
  size = 8 if version < 4 else 16 if version < 6 else 24
  made = _checked(
    _libc.syscall(
      _CREATE_RULESET,
      ctypes.byref(ruleset),
      ctypes.c_size_t(size),
      ctypes.c_uint(0),
    ),
    'landlock_create_ruleset',
  )
  look = _EXECUTE | _READ_FILE | _READ_DIR
  change = (
    _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_FILE
  ) | (_MAKE_LINK | _TRUNCATE)
  for paths, rights in ((read, look), (write, look | change)):
    for path in paths:
      descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
      own = rights & handled
      if not os.path.isdir(path):
        own &= _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
      rule = _Beneath(own, descriptor)
      _checked(
        _libc.syscall(
          _ADD_RULE, made, ctypes.c_int(1), ctypes.byref(rule), ctypes.c_uint(0)
        ),
        f'landlock_add_rule {path}',
      )
      os.close(descriptor)
  _checked(
    _libc.syscall(_RESTRICT_SELF, made, ctypes.c_uint(0)),
    'landlock_restrict_self',
  )
  os.close(made)


def _become(uid: int, keep_reading: bool) -> None:
  """Another user, without capabilities but, perhaps, that of reading."""
  if keep_reading:
    _prctl(_SET_KEEP_CAPS, 1)
  os.setgroups([])
  os.setresgid(uid, uid, uid)
  os.setresuid(uid, uid, uid)
  if not keep_reading:
    # A user namespace of its own, where the kernel allows it: nothing rests
    # on it, for all capabilities are gone.
    _libc.unshare(_NEW_USER)
    return
  # The interpreter may lie in a folder that only root may pass. Landlock
  # still decides which files can be read.
  header = _CapHeader(0x20080522, 0)
  held = (ctypes.c_uint32 * 6)()
  _checked(_libc.capget(ctypes.byref(header), held), 'capget')
  wanted = held[1] & (1 << _DAC_READ_SEARCH)
  held = (ctypes.c_uint32 * 6)(wanted, wanted, wanted, 0, 0, 0)
  _checked(_libc.capset(ctypes.byref(header), held), 'capset')
  if wanted:
    _prctl(_CAP_AMBIENT, _AMBIENT_RAISE, _DAC_READ_SEARCH)


def _restrict(plan: dict) -> None:
  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
    signal.signal(number, signal.SIG_DFL)
  signal.pthread_sigmask(signal.SIG_SETMASK, [])
  os.umask(0o077)
  limits = dict(plan['limits'])
  processes = limits.pop('RLIMIT_NPROC', None)
  for name, values in limits.items():
    kind = getattr(resource, name)
    most = resource.getrlimit(kind)[1]
    if most != resource.RLIM_INFINITY:
      values = [min(v, most) for v in values]
    resource.setrlimit(kind, tuple(values))
  if plan['uid']:
    _become(plan['uid'], plan['landlock'] is not None)
  # After the change of user, which clears it.
  _prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
  if processes is not None:
    resource.setrlimit(resource.RLIMIT_NPROC, tuple(processes))
  _prctl(_SET_NO_NEW_PRIVS, 1)
  os.chdir(plan['folder'])
  for first, last in ((3, plan['ready']), (plan['ready'] + 1, 1 << 16)):
    os.closerange(first, last)
  if plan['landlock'] is not None:
    _landlock(**plan['landlock'])
  if plan['filter']:
    code = bytes.fromhex(plan['filter'])
    program = _Filter(len(code) // 8, code)
    _checked(
      _libc.prctl(
        _SET_SECCOMP,
        ctypes.c_ulong(2),
        ctypes.byref(program),
        ctypes.c_ulong(0),
        ctypes.c_ulong(0),
      ),
      'seccomp',
    )


def main() -> None:
  """Restricts itself and becomes the command; says why where it cannot."""
  plan = marshal.loads(bytes.fromhex(sys.argv[1]))
  ready = plan['ready']
  os.set_inheritable(ready, False)  # the command never holds it
  try:
    _restrict(plan)
    os.write(ready, b'r')
    environment = {**os.environ, 'TMPDIR': plan['folder']}
    os.execve(plan['command'][0], plan['command'], environment)
  except BaseException as error:
    os.write(ready, f'{type(error).__name__}: {error}'.encode())
    os._exit(125)


if __name__ == '__main__':
  main()
