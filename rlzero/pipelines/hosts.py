"""A pipeline on several hosts: each has a process of every stage.

The first host decides which stages are finished and writes the manifest. The
others follow it: they run their process of a stage and wait until the manifest
has the stage. So no process of a stage begins before all of the one before
have ended. A file that the first host renews says that it is still there.
"""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence

from rlzero.pipelines import execution
from rlzero.pipelines.command import Command
from rlzero.pipelines.manifest import Manifest
from rlzero.runtime import failures, files, lifecycle

SIGN = 'first_host.json'  # of life

_EVERY_S = 5.0  # the first host renews its sign
_PATIENCE_S = 120.0  # of the others, when the sign stays as it is
_POLL_S = 0.5

# Which of the hosts this is, where only JAX knows.
_ASK = """
import jax
jax.distributed.initialize()
print(jax.process_index())
"""


def is_first(host_flags: Sequence[str]) -> bool:
  """Whether this host is the one that writes.

  Args:
    host_flags: of this process, as `lifecycle.split_host_flags` returns them.

  Raises:
    failures.Unavailable: the hosts have not found each other.
  """
  if not host_flags:
    return True
  if len(host_flags) > 1:
    return int(host_flags[-1].partition('=')[2]) == 0
  # Another process, so that this one holds no device that stages need.
  asked = subprocess.run(
    [sys.executable, '-c', _ASK], stdout=subprocess.PIPE, text=True, check=False
  )
  if asked.returncode:
    raise failures.Unavailable(
      'The hosts have not found each other; what JAX says stands above.'
    )
  return int(asked.stdout.split()[-1]) == 0


@contextlib.contextmanager
def leading(workdir: str) -> Iterator[None]:
  """Inside, other hosts see that the first one is there; then how it ended."""
  path, over = os.path.join(workdir, SIGN), threading.Event()

  run, beats = uuid.uuid4().hex, itertools.count()

  def beat(**ended: int):
    files.write_json(path, {'run': run, 'beat': next(beats), **ended})

  def renew():
    while not over.wait(_EVERY_S):
      with contextlib.suppress(OSError):  # one that is late does no harm
        beat()

  beat()
  thread = threading.Thread(target=renew, daemon=True)
  thread.start()
  ended = 0
  try:
    yield
  except SystemExit as error:
    ended = error.code if isinstance(error.code, int) else failures.USAGE
    raise
  except BaseException as error:
    ended = failures.exit_code(error)
    raise
  finally:
    over.set()
    thread.join()
    beat(ended=ended)


def follow(
  plans: Sequence[Command], workdir: str, host_flags: Sequence[str]
) -> None:
  """Runs this host's processes of the stages, as the first host goes on.

  Args:
    plans: the stages.
    workdir: of the pipeline, which all hosts see.
    host_flags: of this process.

  Raises:
    SystemExit: a stage that failed, or the first host has ended, with the
      status; PREEMPTED where nothing is heard of it.
  """
  sign = _Sign(os.path.join(workdir, SIGN))
  for plan in plans:
    # What it shows at first may be of an earlier pipeline.
    while not sign.is_seen and not _is_finished(workdir, plan):
      sign.check()
      time.sleep(_POLL_S)
    sign.check()
    if plan.joins_hosts and not _is_finished(workdir, plan):
      execution.execute(plan, None, host_flags, sign.check)
    while not _is_finished(workdir, plan):
      sign.check()
      time.sleep(_POLL_S)


def _is_finished(workdir: str, plan: Command) -> bool:
  return plan.stage.name in Manifest(workdir).stages


class _Sign:
  """The sign of the first host, and when it was seen to change.

  Attributes:
    is_seen: whether it has changed, so that it is of this pipeline.
  """

  def __init__(self, path: str):
    self._path, self.is_seen = path, False
    self._last, self._changed = self._read(), time.monotonic()

  def check(self) -> None:
    """Looks whether the first host is there.

    Raises:
      SystemExit: it has failed, with its status; or is not heard of.
    """
    now = self._read()
    if now and now != self._last:
      self._last, self._changed, self.is_seen = now, time.monotonic(), True
      if ended := json.loads(now).get('ended'):
        print(f'The first host has ended with {ended}.', file=sys.stderr)
        sys.exit(ended)
    elif time.monotonic() - self._changed > _PATIENCE_S:
      print(
        f'error: {self._path} has not changed for {_PATIENCE_S:.0f} s, so the '
        'first host is gone; start the same command again on all hosts.',
        file=sys.stderr,
      )
      sys.exit(lifecycle.PREEMPTED)

  def _read(self) -> str:
    """Its text; '' where there is none, or it cannot be read now."""
    try:
      with open(self._path, encoding='utf-8') as file:
        return file.read()
    except OSError:
      return ''
