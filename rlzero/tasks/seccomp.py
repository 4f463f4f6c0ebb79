"""The system calls that untrusted code may make, as a seccomp filter.

It is a list of what is allowed: a call that is not on it, one of a future
kernel too, answers ENOSYS. Nothing on it starts a process, reaches another
one, opens a socket, mounts, or makes memory that the limits do not count
(`memfd_create`, `shmget`, `fallocate`). Only x86-64 and AArch64 are known.
"""

import platform
import struct

# Name, number on x86-64, number on AArch64; '-' where there is none.
_CALLS = """
read 0 63, write 1 64, open 2 -, close 3 57, stat 4 -, fstat 5 80, lstat 6 -,
poll 7 -, lseek 8 62, mmap 9 222, mprotect 10 226, munmap 11 215, brk 12 214,
rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139,
pread64 17 67, pwrite64 18 68, readv 19 65, writev 20 66, access 21 -,
pipe 22 -, select 23 -, sched_yield 24 124, mremap 25 216, msync 26 227,
mincore 27 232, madvise 28 233, dup 32 23, dup2 33 -, pause 34 -,
nanosleep 35 101, getitimer 36 102, alarm 37 -, setitimer 38 103,
getpid 39 172, sendfile 40 71, execve 59 221, exit 60 93, wait4 61 260,
uname 63 160, fsync 74 82, fdatasync 75 83, ftruncate 77 46, getdents 78 -,
getcwd 79 17, chdir 80 49, fchdir 81 50, rename 82 -, mkdir 83 -, rmdir 84 -,
creat 85 -, link 86 -, unlink 87 -, symlink 88 -, readlink 89 -, umask 95 166,
gettimeofday 96 169, getrlimit 97 163, getrusage 98 165, sysinfo 99 179,
times 100 153, getuid 102 174, getgid 104 176, geteuid 107 175,
getegid 108 177, getppid 110 173, getpgrp 111 -, getgroups 115 158,
getresuid 118 148, getresgid 120 150, getpgid 121 155, getsid 124 156,
rt_sigpending 127 136, rt_sigtimedwait 128 137, rt_sigsuspend 130 133,
sigaltstack 131 132, statfs 137 43, fstatfs 138 44, getpriority 140 141,
sched_getparam 143 121, sched_getscheduler 145 120,
sched_get_priority_max 146 125, sched_get_priority_min 147 126,
setrlimit 160 164, arch_prctl 158 -, gettid 186 178, time 201 -, futex 202 98,
sched_getaffinity 204 123, epoll_create 213 -, getdents64 217 61,
set_tid_address 218 96, restart_syscall 219 128, fadvise64 221 223,
timer_create 222 107, timer_settime 223 110, timer_gettime 224 108,
timer_getoverrun 225 109, timer_delete 226 111, clock_gettime 228 113,
clock_getres 229 114, clock_nanosleep 230 115, exit_group 231 94,
epoll_wait 232 -, epoll_ctl 233 21, waitid 247 95, openat 257 56,
mkdirat 258 34, newfstatat 262 79, unlinkat 263 35, renameat 264 38,
linkat 265 37, symlinkat 266 36, readlinkat 267 78, faccessat 269 48,
pselect6 270 72, ppoll 271 73, set_robust_list 273 99, get_robust_list 274 100,
epoll_pwait 281 22, timerfd_create 283 85, eventfd 284 -,
timerfd_settime 286 86, timerfd_gettime 287 87, eventfd2 290 19,
epoll_create1 291 20, dup3 292 24, pipe2 293 59, preadv 295 69, pwritev 296 70,
getcpu 309 168, renameat2 316 276, getrandom 318 278, membarrier 324 283,
copy_file_range 326 285, preadv2 327 286, pwritev2 328 287, statx 332 291,
rseq 334 293, close_range 436 436, faccessat2 439 439
"""
# Calls whose arguments decide.
_FCNTL, _IOCTL, _PRCTL, _PRLIMIT, _CLONE, _FORK, _VFORK = (
  {'x86_64': 72, 'aarch64': 25},
  {'x86_64': 16, 'aarch64': 29},
  {'x86_64': 157, 'aarch64': 167},
  {'x86_64': 302, 'aarch64': 261},
  {'x86_64': 56, 'aarch64': 220},
  {'x86_64': 57},
  {'x86_64': 58},
)
_ARCHITECTURE = {'x86_64': 0xC000003E, 'aarch64': 0xC00000B7}

# F_SETOWN, F_SETSIG and F_SETOWN_EX send signals to other processes.
_FCNTL_REFUSED = (8, 10, 15)
# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_IOCTL_ALLOWED = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# PR_SET_NAME, PR_GET_NAME, PR_SET_VMA; the death signal is not theirs to set.
_PRCTL_ALLOWED = (15, 16, 0x53564D41)
_CLONE_THREAD = 0x10000
_CLONE_NAMESPACES = 0x7E020000  # every CLONE_NEW* that clone takes

_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _KILL, _ENOSYS, _EPERM = 0x7FFF0000, 0x80000000, 0x50026, 0x50001


def known() -> bool:
  """Whether the filter is known for this processor."""
  return platform.machine() in _ARCHITECTURE


def program(processes: bool) -> bytes:
  """The filter, as an array of `struct sock_filter`.

  Args:
    processes: whether the code may start processes, as a compiler does;
      threads are allowed in any case.

  Raises:
    KeyError: a processor that is not `known`.
  """
  machine = platform.machine()
  column = 1 if machine == 'x86_64' else 2
  code = [
    (_LOAD, 0, 0, 4),
    (_EQUAL, 1, 0, _ARCHITECTURE[machine]),
    (_RETURN, 0, 0, _KILL),
    (_LOAD, 0, 0, 0),
  ]
  for line in _CALLS.replace('\n', ' ').split(','):
    number = line.split()[column]
    if number != '-':
      code += [(_EQUAL, 0, 1, int(number)), (_RETURN, 0, 0, _ALLOW)]

  def one_of(values, found, other):
    checks = [
      i for v in values for i in ((_EQUAL, 0, 1, v), (_RETURN, 0, 0, found))
    ]
    return [*checks, (_RETURN, 0, 0, other)]

  if processes:
    clone = [
      (_ANY_BIT, 0, 1, _CLONE_NAMESPACES),
      (_RETURN, 0, 0, _EPERM),
      (_RETURN, 0, 0, _ALLOW),
    ]
  else:
    clone = [
      (_ANY_BIT, 0, 1, _CLONE_THREAD),
      (_RETURN, 0, 0, _ALLOW),
      (_RETURN, 0, 0, _EPERM),
    ]
  fork = [(_RETURN, 0, 0, _ALLOW if processes else _EPERM)]
  for call, argument, checks in (
    (_FCNTL, 1, one_of(_FCNTL_REFUSED, _EPERM, _ALLOW)),
    (_IOCTL, 1, one_of(_IOCTL_ALLOWED, _ALLOW, _EPERM)),
    (_PRCTL, 0, one_of(_PRCTL_ALLOWED, _ALLOW, _EPERM)),
    (_PRLIMIT, 0, one_of((0,), _ALLOW, _EPERM)),
    (_CLONE, 0, clone),
    (_FORK, 0, fork),
    (_VFORK, 0, fork),
  ):
    if machine in call:
      # The low half of the argument: both processors are little-endian, and
      # the kernel takes no more of these.
      code += [
        (_EQUAL, 0, len(checks) + 1, call[machine]),
        (_LOAD, 0, 0, 16 + 8 * argument),
        *checks,
      ]
  code.append((_RETURN, 0, 0, _ENOSYS))
  return b''.join(struct.pack('<HBBI', *instruction) for instruction in code)
