"""All of R1 from one manifest: each stage a process, each hand-off recorded.

  python -m rlzero.pipeline --gin_file=configs/runs/r1_tiny.gin --workdir=DIR
  ... --dry-run         one line a stage, and nothing is run
  ... --from=NAME       make this stage and all after it again
  ... --only=NAME       this stage alone; what it needs must be there

A stage is a command, `python -m MODULE` with gin files, flags and inputs: what
earlier stages have left in their folders. `WORKDIR/manifest.json` says of each
finished stage how it was configured, what went in and what came out, with
hashes. Stopped anywhere, the same command resumes: finished stages are passed
by, and the one that was stopped resumes from its own checkpoint. A finished
stage whose configuration or input is no longer the same is an error.
`WORKDIR/results.json` has the metrics of all evaluations so far, with the share
of completions that could be kept as readable, and what each stage took.

On several hosts, start the same command on each, with the flags of hosts. A
stage that several can run has a process on each; the first host runs the
others, and writes.

Differences from the paper: none in the order of the stages. What is written
by hand there (the cold start's edits, the 200k samples of general data) has to
come from files.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import sys
from collections.abc import Sequence

from rlzero.pipelines import command, execution, hosts, results
from rlzero.pipelines.command import Stage
from rlzero.pipelines.manifest import Manifest
from rlzero.runtime import config, files, lifecycle, workdir
from rlzero.runtime.fields import mutable_on_resume

SEVERAL_HOSTS = True  # may run it together


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """The stages, in order."""

  workdir: str = mutable_on_resume()
  stages: tuple[Stage, ...]
  start: str = ''  # --from: the first stage that is made again
  only: str = ''  # the one stage to run
  dry_run: bool = False  # show what would be run
  # Of this process, where several hosts run the pipeline together; they are
  # given as flags of their own: --distributed, say.
  host_flags: tuple[str, ...] = mutable_on_resume(())

  def __post_init__(self):
    names = [stage.name for stage in self.stages]
    for number, stage in enumerate(self.stages):
      if (
        not stage.name
        or stage.name in names[:number]
        or pathlib.Path(stage.name).name != stage.name
      ):
        raise ValueError(
          f'stages has the name {stage.name!r}; each stage needs one of its '
          'own that can be a folder.'
        )
      for flag, source in stage.inputs.items():
        if source.partition('/')[0] not in names[:number]:
          raise ValueError(
            f'stages: the input {flag!r} of {stage.name!r} is {source!r}, '
            f'but the stages before it are {", ".join(names[:number])}; name '
            'one of them, or a path in it.'
          )
    for field in ('start', 'only'):
      if getattr(self, field) not in ('', *names):
        raise ValueError(
          f'{field} is {getattr(self, field)!r}; the stages are '
          f'{", ".join(names)}.'
        )
    if self.start and self.only:
      raise ValueError('start and only exclude each other; give one of them.')
    if self.host_flags and (self.start or self.only):
      raise ValueError(
        '--from and --only are for one host; leave them out, or the flags of '
        f'several hosts: {" ".join(self.host_flags)}.'
      )


def run(cfg: Config) -> None:
  """Runs what is not done yet, and prints the table of evaluations.

  Raises:
    ValueError: a finished stage that has changed.
    SystemExit: a stage that failed or was preempted, with its status.
  """
  plans = [command.Command(cfg.workdir, stage) for stage in cfg.stages]
  if cfg.dry_run:
    for plan in plans:
      print(plan.line)
    return
  if not hosts.is_first(cfg.host_flags):
    hosts.follow(plans, cfg.workdir, cfg.host_flags)
    return
  with contextlib.ExitStack() as stack:
    lock = stack.enter_context(workdir.locked(cfg.workdir))
    if cfg.host_flags:
      stack.enter_context(hosts.leading(cfg.workdir))
    manifest = Manifest(cfg.workdir)
    if cfg.start:
      _forget(cfg, manifest)
    for plan in plans:
      if cfg.only in ('', plan.stage.name):
        execution.make(plan, manifest, lock, bool(cfg.only), cfg.host_flags)
  found = results.results(cfg.workdir)
  files.write_json(os.path.join(cfg.workdir, results.RESULTS), found, indent=1)
  print(results.table(found))


def _forget(cfg: Config, manifest: Manifest) -> None:
  """Removes a stage and all after it, folders included."""
  names = [stage.name for stage in cfg.stages]
  for name in names[names.index(cfg.start) :]:
    manifest.stages.pop(name, None)
    manifest.write()
    shutil.rmtree(os.path.join(cfg.workdir, name), ignore_errors=True)


def flags(argv: Sequence[str]) -> list[str]:
  """The flags as `Config` names them; `from` is no name in Python."""
  names = {'--from': '--start', '--dry-run': '--dry_run'}
  mine, others = lifecycle.split_host_flags(argv)
  parts = [argument.partition('=') for argument in others]
  found = [names.get(name, name) + eq + value for name, eq, value in parts]
  return [*found, f'--host_flags={tuple(mine)}'] if mine else found


if __name__ == '__main__':
  from rlzero import pipeline

  config.main(pipeline, flags(sys.argv[1:]))
