"""The life of a process: allocator, caches, signals, exit codes, hosts.

Memory: XLA's arrays come from malloc. With pages of 4 KiB a large product and
every fresh array spend much of their time on page faults and table walks; and
memory that is given back after a program has run is faulted in again by the
next one (docs/results/performance.md says how much).

Compilations are kept on disk, so that a run that resumes, or a second one like
it, starts at once.

SIGTERM is what a machine that will be taken away sends first. A stage looks
for it where it can save, or keeps its work as it goes and is ended at once;
both with the code PREEMPTED. A launcher that sees this code starts the same
command again.
"""

import contextlib
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from rlzero.runtime import files

PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: saved, to be started again

HOST_FLAGS = (
  '--distributed',  # hosts find each other: TPU slices, Slurm, Open MPI
  '--coordinator',  # =HOST:PORT of the first process
  '--num_processes',  # =N
  '--process_id',  # =I, from 0
)
# How long a host that ends waits for the others, before it ends them: one that
# has failed alone need not hold them for long.
_SHUTDOWN_S = 60
_LARGE_PAGES = {'glibc.malloc.hugetlb': 1}  # madvise(MADV_HUGEPAGE) for malloc
# One heap, of which all arrays are parts, and which never shrinks.
_KEPT_MEMORY = {
  'glibc.malloc.arena_max': 1,
  'glibc.malloc.mmap_max': 0,
  'glibc.malloc.trim_threshold': 1 << 40,
}
# JAX's switches that change numbers or types, and their values here.
_SWITCHES = {
  'jax_enable_x64': False,
  'jax_default_prng_impl': 'threefry2x32',
  'jax_threefry_partitionable': True,
}

_SETTING = '/sys/kernel/mm/transparent_hugepage/enabled'


def open_closed_streams() -> None:
  """Opens the null device for standard streams that the caller has closed.

  A daemon may close them. Else the next file that is opened would take their
  number, and be written to by whatever prints.
  """
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      opened = os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
      os.set_inheritable(opened, True)
  sys.stdout = sys.stdout or open(os.devnull, 'w', encoding='utf-8')
  sys.stderr = sys.stderr or open(os.devnull, 'w', encoding='utf-8')


def drop_lost_output() -> None:
  """Sends what stdout cannot write to the null device.

  Else Python tries again at its end, and replaces the exit code.
  """
  try:
    sys.stdout.flush()
  except OSError:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def check_backend() -> None:
  """Checks that JAX has devices, and the settings that rlzero is written for.

  Raises:
    ValueError: no device, or a switch of JAX that changes what is computed;
      names the environment variable.
  """
  import jax  # only now: stages without JAX stay without it

  for switch, wanted in _SWITCHES.items():
    found = getattr(jax.config, switch)
    if found != wanted:
      raise ValueError(
        f'{switch.upper()} is {found!r} in the environment; rlzero computes '
        f'with {wanted!r} alone, so unset it.'
      )
  try:
    jax.devices()
  except RuntimeError as error:
    first = str(error).strip().splitlines()[0].rstrip('.')
    raise ValueError(
      f'JAX finds no device ({first}); set JAX_PLATFORMS to what this machine '
      'has (cpu, cuda, tpu), or end the program that holds the device.'
    ) from error


def enable_compilation_cache() -> None:
  """Keeps what XLA compiles, unless JAX_COMPILATION_CACHE_DIR says where."""
  jax = sys.modules.get('jax')  # a stage that did without has nothing to keep
  if jax is None or 'JAX_COMPILATION_CACHE_DIR' in os.environ:
    return
  jax.config.update('jax_compilation_cache_dir', files.cache_folder('xla'))


def reexec_with_malloc_settings() -> None:
  """Starts this program again with large pages and memory that is kept.

  Not if it has them already. glibc reads its tunables before main(), so that
  nothing short of a new process image changes them. What a user has chosen of
  them stays.
  """
  if platform.libc_ver()[0] != 'glibc':
    return
  wanted = _KEPT_MEMORY
  with contextlib.suppress(OSError), open(_SETTING, encoding='ascii') as file:
    if '[madvise]' in file.read():  # else off, or on for everyone
      wanted = _LARGE_PAGES | wanted
  tunables = os.environ.get('GLIBC_TUNABLES', '')
  missing = [f'{k}={v}' for k, v in wanted.items() if k not in tunables]
  if not missing:
    return
  os.environ['GLIBC_TUNABLES'] = ':'.join(filter(None, [tunables, *missing]))
  sys.stdout.flush()
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def split_host_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Takes the flags of several hosts apart from the others.

  `--distributed` where JAX finds out by itself who belongs together, or else
  `--coordinator=HOST:PORT --num_processes=N --process_id=I`. They are of a
  process, not of a run, and so not recorded.

  Returns:
    the flags of hosts, none on one host, and the others.

  Raises:
    SystemExit: 2, for flags that do not belong together.
  """
  mine, others = {}, []
  for flag in argv:
    name, _, value = flag.partition('=')
    if name in HOST_FLAGS:
      mine[name] = value
    else:
      others.append(flag)
  if not mine or mine == {'--distributed': ''}:
    return list(mine), others
  if mine.keys() != set(HOST_FLAGS[1:]) or not all(
    mine[name].isdecimal() for name in HOST_FLAGS[2:]
  ):
    print(
      f'error: {" ".join(mine)} do not say which processes belong together; '
      f'give --distributed alone, or all of {", ".join(HOST_FLAGS[1:])}.',
      file=sys.stderr,
    )
    sys.exit(2)
  return [f'{name}={mine[name]}' for name in HOST_FLAGS[1:]], others


def join_hosts(argv: Sequence[str]) -> list[str]:
  """Joins the processes of other hosts as the flags say; returns the others.

  Raises:
    SystemExit: as `split_host_flags`.
  """
  mine, others = split_host_flags(argv)
  if not mine:
    return others
  import jax  # only now: stages without JAX stay without it

  values = [flag.partition('=')[2] for flag in mine]
  if len(mine) == 1:
    jax.distributed.initialize(shutdown_timeout_seconds=_SHUTDOWN_S)
  else:
    jax.distributed.initialize(
      values[0],
      int(values[1]),
      int(values[2]),
      shutdown_timeout_seconds=_SHUTDOWN_S,
    )
  return others


def refuse_hosts(argv: Sequence[str], stage: str) -> None:
  """For a stage of one host: several would write over each other.

  Raises:
    SystemExit: 2, for a flag of several hosts.
  """
  for flag in argv:
    if flag.partition('=')[0] in HOST_FLAGS:
      print(
        f'error: {flag} is for stages that run on several hosts, and {stage} '
        'runs on one; leave it out.',
        file=sys.stderr,
      )
      sys.exit(2)


def leave(sentence: str) -> NoReturn:
  """Ends the process at once with the code PREEMPTED, and says why.

  The ordinary way out waits for hosts that are gone, and aborts after minutes.
  """
  drop_lost_output()
  with contextlib.suppress(OSError):  # the reader of the log may be gone
    print(f'error: {sentence}', file=sys.stderr, flush=True)
  os._exit(PREEMPTED)


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
  """Inside, SIGTERM ends the process at once, with the code PREEMPTED."""
  before = signal.signal(signal.SIGTERM, lambda *_: os._exit(PREEMPTED))
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def preemption() -> Iterator[Callable[[], bool]]:
  """Inside, SIGTERM ends nothing; the function it gives says whether it came.

  A second one does what the first had done outside.
  """
  came = []

  def note(*_):
    came.append(True)
    signal.signal(signal.SIGTERM, before)

  before = signal.signal(signal.SIGTERM, note)
  try:
    yield lambda: bool(came)
  finally:
    signal.signal(signal.SIGTERM, before)
