"""Runs a stage in a process of its own."""

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import rlzero
from rlzero.pipelines import command
from rlzero.pipelines.manifest import Manifest, hashes
from rlzero.runtime import config, lifecycle, provenance


def make(
  plan: command.Command, manifest: Manifest, lock: int | None, again: bool
) -> None:
  """Runs a stage, unless it is finished and nothing about it has changed."""
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
  _execute([sys.executable, '-m', stage.module, *plan.argv], stage.name, lock)
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


def _execute(command: Sequence[str], name: str, lock: int | None) -> None:
  """Runs a stage's process; a signal that ends this one is handed on."""
  # The child holds the lock too: should this process be killed, the next one
  # waits until its orphan has ended.
  child = subprocess.Popen(command, pass_fds=() if lock is None else (lock,))
  previous = signal.signal(
    signal.SIGTERM, lambda number, _: child.send_signal(number)
  )
  try:
    status = child.wait()
  except BaseException:
    child.terminate()
    child.wait()
    raise
  finally:
    signal.signal(signal.SIGTERM, previous)
  if status == -signal.SIGTERM:  # before it had begun
    status = lifecycle.PREEMPTED
  if status < 0:  # by a signal, as a shell says it
    status = 128 - status
  if status:
    print(
      f'Stage {name!r} ended with status {status}; what it said stands above. '
      'The same command resumes there.',
      file=sys.stderr,
    )
    sys.exit(status)
