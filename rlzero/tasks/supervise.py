"""Follows an untrusted process: its input, its output, its time, its end."""

import contextlib
import dataclasses
import marshal
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

STATUSES = ('ok', 'time', 'memory', 'output', 'crash', 'refused')
START_S = 20.0  # of the sandbox itself, on a busy machine
_MAX_ERRORS = 4096  # bytes of standard error that are kept, its end
_OUT_OF_MEMORY = re.compile(
  rb'MemoryError|std::bad_alloc|[Cc]annot allocate memory|out of memory'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """Limits of a command: time, memory, processes, files, output.

  Raises:
    ValueError: a limit that is not positive.
  """

  wall_s: float = 6.0  # by the clock, from the start of the command itself
  cpu_s: float | None = None  # of each process; None takes wall_s, rounded up
  memory: int = 1 << 30  # bytes of address space of each process
  stack: int = 256 << 20  # bytes, of the first thread
  threads: int = 64  # and processes, where those are allowed
  processes: bool = False  # whether it may start processes, as compilers do
  files: int = 64  # open at a time
  file_size: int = 64 << 20  # bytes, of each
  scratch: int = 64 << 20  # bytes that the scratch folder holds
  output: int = 64 << 20  # bytes of standard output

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value is not None and field.name != 'processes' and not value > 0:
        raise ValueError(f'Limits.{field.name} is {value}; it must be above 0.')


class Result(NamedTuple):
  """How a command ended.

  Attributes:
    status: one of STATUSES; 'ok' if it ended by itself with exit code 0.
    output: its standard output.
    reason: the end of its standard error, or why it was ended or refused.
  """

  status: str
  output: bytes
  reason: str


def run(
  command: Sequence[str],
  plan: Mapping,
  stdin: bytes,
  limits: Limits,
  environment: Mapping[str, str],
) -> Result:
  """Starts a launcher and follows it until the end.

  Args:
    command: the launcher, but for its last argument.
    plan: that argument, as `launcher` says, but for `ready`.
    stdin: what the process can read.
    limits: on time by the clock and on output; the launcher sets the others.
    environment: of the process.
  """
  ready, theirs = os.pipe()
  try:
    process = subprocess.Popen(
      [*command, marshal.dumps({**plan, 'ready': theirs}).hex()],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      cwd='/',
      env=environment,
      pass_fds=[theirs],
      start_new_session=True,
    )
  except OSError as error:
    os.close(ready)
    return Result('refused', b'', f'The sandbox does not start: {error}.')
  finally:
    os.close(theirs)
  watch = _Watch(process, ready, stdin, limits)
  try:
    watch.follow()
  finally:
    code = watch.end()
  return watch.result(code)


class _Watch:
  """Feeds a process, collects what it writes and keeps its time."""

  def __init__(
    self,
    process: subprocess.Popen,
    ready: int,
    stdin: bytes,
    limits: Limits,
  ):
    self._process = process
    self._limits = limits
    self._left = memoryview(stdin)
    self._ready = ready
    self._message = b''  # of the launcher
    self._output = bytearray()
    self._errors = b''
    self._over = ''  # the limit for which the process was ended
    self._start = time.monotonic()
    self._deadline = self._start + START_S
    self._handle = os.pidfd_open(process.pid)
    self._selector = selectors.DefaultSelector()
    assert process.stdin and process.stdout and process.stderr  # pipes
    self._stdin = process.stdin
    self._pipes = process.stdin, process.stdout, process.stderr
    for stream, read in (
      (ready, self._on_ready),
      (process.stdout.fileno(), self._on_output),
      (process.stderr.fileno(), self._on_errors),
    ):
      os.set_blocking(stream, False)
      self._selector.register(stream, selectors.EVENT_READ, read)
    os.set_blocking(self._stdin.fileno(), False)
    if self._left:
      self._selector.register(
        self._stdin.fileno(), selectors.EVENT_WRITE, self._on_stdin
      )
    else:
      self._stdin.close()
    self._selector.register(self._handle, selectors.EVENT_READ, None)

  def follow(self) -> None:
    """Returns once the process has ended or a limit is passed."""
    ended = False
    while not self._over:
      # What an ended process has written is still in the pipes.
      wait_s = 0.0 if ended else self._deadline - time.monotonic()
      events = self._selector.select(max(wait_s, 0.0))
      for key, _ in events:
        if key.data is None:
          ended = True
          self._selector.unregister(self._handle)
        else:
          key.data(key.fd)
      if not events and ended:
        return
      if time.monotonic() > self._deadline:
        self._over = 'time'

  def end(self) -> int:
    """Ends the process and its group; its exit code as a shell gives it."""
    # Not yet reaped, so the number cannot be of another process.
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._process.pid, signal.SIGKILL)
    code = self._process.wait()
    self._selector.close()
    for stream in self._pipes:
      with contextlib.suppress(OSError):
        stream.close()
    for descriptor in (self._handle, self._ready):
      os.close(descriptor)
    return 128 - code if code < 0 else code

  def result(self, code: int) -> Result:
    """The result of a process that ended with an exit code."""
    if not self._message.startswith(b'r') or len(self._message) > 1:
      why = (self._message.removeprefix(b'r') or self._errors).decode(
        errors='replace'
      )
      return Result(
        'refused', b'', why.strip() or 'The sandbox does not start in time.'
      )
    output = bytes(self._output)
    errors = self._errors.decode(errors='replace')
    wall_s = time.monotonic() - self._start
    # SIGALRM is from a limit that the command has set itself.
    ended_by_time = (128 + signal.SIGXCPU, 128 + signal.SIGALRM)
    if self._over == 'time' or code in ended_by_time:
      return Result(
        'time', output, f'It took more than {self._limits.wall_s:g} s.'
      )
    if self._over:
      most = f'It wrote more than {self._limits.output} bytes.'
      return Result('output', output, most)
    if code == 0:
      return Result('ok', output, errors)
    if code == 128 + signal.SIGKILL:
      # The kernel's, for CPU time after SIGXCPU was ignored, or for memory.
      status = 'time' if wall_s >= self._limits.wall_s else 'memory'
    else:
      found = _OUT_OF_MEMORY.search(self._errors)
      status = 'memory' if found else 'crash'
    return Result(status, output, errors or f'It ended with exit code {code}.')

  def _on_ready(self, stream: int) -> None:
    received = os.read(stream, 4096)
    if not received:
      self._selector.unregister(stream)
    elif not self._message:
      self._start = time.monotonic()
      self._deadline = self._start + self._limits.wall_s
    self._message += received

  def _on_output(self, stream: int) -> None:
    received = os.read(stream, 1 << 16)
    if not received:
      self._selector.unregister(stream)
    room = self._limits.output - len(self._output)
    self._output += received[:room]
    if len(received) > room:
      self._over = 'output'

  def _on_errors(self, stream: int) -> None:
    received = os.read(stream, 1 << 16)
    if not received:
      self._selector.unregister(stream)
    self._errors = (self._errors + received)[-_MAX_ERRORS:]

  def _on_stdin(self, stream: int) -> None:
    try:
      written = os.write(stream, self._left[: 1 << 16])
    except BrokenPipeError:  # it does not read on
      written = len(self._left)
    self._left = self._left[written:]
    if not self._left:
      self._selector.unregister(stream)
      self._stdin.close()
