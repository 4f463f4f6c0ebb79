"""Runs a stage in a process of its own."""

import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import rlzero
from rlzero.pipelines import command
from rlzero.pipelines.manifest import Manifest, hashes
from rlzero.runtime import config, lifecycle, provenance

_POLL_S = 1.0


def make(
  plan: command.Command,
  manifest: Manifest,
  lock: int | None,
  again: bool,
  host_flags: Sequence[str] = (),
) -> None:
  """Runs a stage, unless it is finished and nothing about it has changed.

  Args:
    plan: the stage.
    manifest: gets an entry of it.
    lock: of the pipeline's folder.
    again: runs it though it is finished.
    host_flags: of this process, the first of several hosts.
  """
  stage = plan.stage
  made_of = {
    'config': plan.digest,
    'inputs': {
      flag: {'from': source, 'sha256': manifest.hash_of(source)}
      for flag, source in stage.inputs.items()
    },
  }
  known = manifest.stages.get(stage.name)
  if known and not again:
    for part, value in made_of.items():
      if known[part] != value:
        raise config.UserError(
          f'Stage {stage.name!r} is finished, but its {part} has changed '
          f'since; make it and what follows again with --from={stage.name}, '
          'or choose another --workdir.'
        )
    print(f'{stage.name}: finished already', flush=True)
    return
  print(f'{stage.name}: python -m {plan.line}', flush=True)
  began = time.monotonic()
  execute(plan, lock, host_flags)
  manifest.stages[stage.name] = {
    'module': stage.module,
    'command': f'python -m {plan.line}',
    **made_of,
    'outputs': hashes(plan.folder),
    'wall_s': time.monotonic() - began,  # of the process that finished it
    'finished': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
    # The devices are the stage's to ask; a TPU has one process at a time.
    'hardware': f'{os.cpu_count()} cores, {platform.machine()}',
    'version': rlzero.__version__,
    'commit': provenance.commit(),
  }
  manifest.write()


def execute(
  plan: command.Command,
  lock: int | None,
  host_flags: Sequence[str] = (),
  poll: Callable[[], None] | None = None,
) -> None:
  """Runs a stage's process; a signal that ends this one is handed on.

  Args:
    plan: the stage.
    lock: of the pipeline's folder, which the process inherits.
    host_flags: of this process, where there are several hosts.
    poll: called now and then; what it raises ends the stage.

  Raises:
    SystemExit: it failed or was preempted, with its status.
  """
  # The child holds the lock too: should this process be killed, the next one
  # waits until its orphan has ended.
  child = subprocess.Popen(
    plan.on_hosts(host_flags), pass_fds=() if lock is None else (lock,)
  )
  previous = signal.signal(
    signal.SIGTERM, lambda number, _: child.send_signal(number)
  )
  try:
    while poll and child.poll() is None:
      poll()
      with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_POLL_S)
    status = child.wait()
  except BaseException:
    child.terminate()
    child.wait()
    raise
  finally:
    signal.signal(signal.SIGTERM, previous)
  if status == -signal.SIGTERM:  # before it had begun
    status = lifecycle.PREEMPTED
  if host_flags and status == -signal.SIGABRT:  # JAX: another host is gone
    status = lifecycle.PREEMPTED
  if status < 0:  # by a signal, as a shell says it
    status = 128 - status
  if status:
    print(
      f'Stage {plan.stage.name!r} ended with status {status}; what it said '
      'stands above. The same command resumes there.',
      file=sys.stderr,
    )
    sys.exit(status)
