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

Differences from the paper: none in the order of the stages. What is written
by hand there (the cold start's edits, the 200k samples of general data) has to
come from files.
"""

import collections
import dataclasses
import fcntl
import hashlib
import importlib
import json
import os
import pathlib
import platform
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import rlzero
from rlzero.runtime import config, files, lifecycle, metrics, provenance
from rlzero.runtime.fields import mutable_on_resume
from rlzero.scoring import rewards
from rlzero.text import readability

MANIFEST = 'manifest.json'
RESULTS = 'results.json'
METRICS = (
  'pass@1',
  'pass@1_interval',
  'strict',
  'format',
  'language',
  'completion_len',
  'tries',
  'truncated',
  'split',
  'num_problems',
  'num_samples',
  'temperature',
)
# What a stage keeps for itself: states to go on from, logs, times and paths.
_OWN = {
  'checkpoints',
  'journal',
  'completions',
  'tensorboard',
  'metrics.jsonl',
  'config.gin',
  'config.json',
  'run.json',
  'report.html',
  'summary.json',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """A command of the pipeline; it works in the folder WORKDIR/NAME."""

  name: str
  module: str  # rlzero.grpo, say
  gin_files: tuple[str, ...] = ()
  flags: tuple[str, ...] = ()  # such as --num_steps=60
  # Flags that name what earlier stages left, without dashes: to 'STAGE', its
  # folder, or to 'STAGE/PATH' in it.
  inputs: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """The stages, in order."""

  workdir: str = mutable_on_resume()
  stages: tuple[Stage, ...]
  start: str = ''  # --from: the first stage that is made again
  only: str = ''  # the one stage to run
  dry_run: bool = False  # show what would be run

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


def run(cfg: Config) -> None:
  """Runs what is not done yet, and prints the table of evaluations.

  Raises:
    ValueError: a finished stage that has changed.
    SystemExit: a stage that failed or was preempted, with its status.
  """
  plans = [Plan(cfg.workdir, stage) for stage in cfg.stages]
  if cfg.dry_run:
    for plan in plans:
      print(plan.line)
    return
  os.makedirs(cfg.workdir, exist_ok=True)
  with _alone(cfg.workdir) as lock:
    manifest = Manifest(cfg.workdir)
    if cfg.start:
      _forget(cfg, manifest)
    for plan in plans:
      if cfg.only in ('', plan.stage.name):
        _make(plan, manifest, lock, again=bool(cfg.only))
  found = results(cfg.workdir)
  files.write_json(os.path.join(cfg.workdir, RESULTS), found, indent=1)
  print(table(found))


class Plan:
  """A stage with its flags, checked: its own Config has been built.

  Attributes:
    argv: the flags.
    line: the command on one line, from the module on.
    digest: of the configuration it amounts to, wherever the workdir is.
  """

  def __init__(self, workdir: str, stage: Stage):
    self.stage = stage
    self.folder = os.path.join(workdir, stage.name)
    self.argv = [
      *(f'--gin_file={path}' for path in stage.gin_files),
      *stage.flags,
    ]
    for flag, source in stage.inputs.items():
      path = os.path.join(workdir, source)
      # What follows --gin. is gin, where a string has quotes.
      text = repr(path) if flag.startswith('gin.') else path
      self.argv.append(f'--{flag}={text}')
    self.argv.append(f'--workdir={self.folder}')
    self.line = shlex.join([stage.module, *self.argv])
    try:
      module = importlib.import_module(stage.module)
      built = config.build(module, self.argv)
    except (ImportError, ValueError) as error:
      raise config.UserError(
        f'Stage {stage.name!r} cannot be configured: {error}'
      ) from error
    text = json.dumps(chosen(built)).replace(os.path.join(workdir, ''), '')
    self.digest = hashlib.sha256(text.encode()).hexdigest()


class Manifest:
  """`manifest.json`: what is known of each finished stage, by its name."""

  def __init__(self, workdir: str):
    self._path = os.path.join(workdir, MANIFEST)
    self.stages: dict[str, dict[str, Any]] = {}
    if os.path.exists(self._path):
      with open(self._path, encoding='utf-8') as file:
        self.stages = json.load(file)['stages']

  def write(self) -> None:
    files.write_json(self._path, {'stages': self.stages}, indent=2)

  def hash_of(self, source: str) -> str:
    """Of what a finished stage left: a file, or all of it.

    Raises:
      UserError: the stage is not finished, or left nothing there.
    """
    name, _, path = source.partition('/')
    if name not in self.stages:
      raise config.UserError(
        f'{source!r} is wanted, but stage {name!r} is not finished; run the '
        'pipeline without --only, or that stage first.'
      )
    outputs = self.stages[name]['outputs']
    if path in outputs:
      return outputs[path]
    found = {k: v for k, v in outputs.items() if _is_in(k, path)}
    if not found:
      raise config.UserError(
        f'{source!r} is wanted, but stage {name!r} left only '
        f'{", ".join(outputs) or "nothing"}; correct the input.'
      )
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _make(plan: Plan, manifest: Manifest, lock: int, again: bool) -> None:
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
  began = time.time()
  _execute([sys.executable, '-m', stage.module, *plan.argv], stage.name, lock)
  manifest.stages[stage.name] = {
    'module': stage.module,
    'command': f'python -m {plan.line}',
    **made_of,
    'outputs': hashes(plan.folder),
    'wall_s': time.time() - began,  # of the process that finished it
    'finished': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
    # The devices are the stage's to ask; a TPU has one process at a time.
    'hardware': f'{os.cpu_count()} cores, {platform.machine()}',
    'version': rlzero.__version__,
    'commit': provenance.commit(),
  }
  manifest.write()


def _execute(command: Sequence[str], name: str, lock: int) -> None:
  """Runs a stage's process; a signal that ends this one is handed on."""
  # The child holds the lock too: should this process be killed, the next one
  # waits until its orphan has ended.
  child = subprocess.Popen(command, pass_fds=(lock,))
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


def _forget(cfg: Config, manifest: Manifest) -> None:
  """Removes a stage and all after it, folders included."""
  names = [stage.name for stage in cfg.stages]
  for name in names[names.index(cfg.start) :]:
    manifest.stages.pop(name, None)
    manifest.write()
    shutil.rmtree(os.path.join(cfg.workdir, name), ignore_errors=True)


class _alone:
  """Holds the workdir's lock; waits for whoever has it."""

  def __init__(self, workdir: str):
    self._file = os.open(
      os.path.join(workdir, 'lock'), os.O_RDWR | os.O_CREAT, 0o644
    )

  def __enter__(self) -> int:
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      print('waiting for a process that works in this workdir', flush=True)
      fcntl.flock(self._file, fcntl.LOCK_EX)
    return self._file

  def __exit__(self, *_: Any) -> None:
    os.close(self._file)


def hashes(folder: str) -> dict[str, str]:
  """SHA-256 of each file that a stage hands on, by its path in the folder."""
  return {
    str(path.relative_to(folder)): _sha256(path) for path in _handed_on(folder)
  }


def _handed_on(folder: str) -> Iterator[pathlib.Path]:
  for path in sorted(pathlib.Path(folder).rglob('*')):
    first = path.relative_to(folder).parts[0]
    if path.is_file() and first not in _OWN:
      yield path


def _sha256(path: pathlib.Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _is_in(path: str, folder: str) -> bool:
  return not folder or path.startswith(f'{folder}/')


def results(workdir: str) -> dict[str, Any]:
  """What the finished stages took, and what the evaluations among them found.

  Raises:
    FileNotFoundError: files of a finished evaluation are gone.
  """
  stages = Manifest(workdir).stages
  return {
    'evaluations': {
      name: _evaluation(os.path.join(workdir, name, 'evaluations'))
      for name, stage in stages.items()
      if stage['module'] == 'rlzero.evaluate'
    },
    'stages': {
      name: {
        'module': stage['module'],
        'wall_s': round(stage['wall_s'], 1),
        **{k: stage[k] for k in ('finished', 'hardware', 'commit')},
      }
      for name, stage in stages.items()
    },
  }


def _evaluation(folder: str) -> dict[str, Any]:
  """Its metrics, and how its completions fare with the checks of `reject`."""
  with open(os.path.join(folder, 'evaluation.json'), encoding='utf-8') as file:
    measured = json.load(file)
  records = metrics.read_lines(os.path.join(folder, 'evaluation.jsonl'))
  limits = readability.Limits()
  texts = [r['completion'] for r in records]
  faults = collections.Counter(
    readability.fault(
      text, rewards.readable_consistency(record, 'prompt'), limits
    )
    for text, record in zip(texts, records, strict=True)
  )
  measures = [readability.measures(text) for text in texts]
  return {
    **{name: measured[name] for name in METRICS},
    'readable': faults.pop(None, 0) / len(records),
    'unreadable': {k: n / len(records) for k, n in sorted(faults.items())},
    **{
      name: statistics.fmean(m[name] for m in measures) for name in measures[0]
    },
  }


def table(found: Mapping[str, Any]) -> str:
  """The evaluations of `results`, one line each, as Markdown."""
  lines = [
    '| | pass@1 | strict | format | language | length | readable | repeats |',
    '|---|---|---|---|---|---|---|---|',
  ]
  for name, measured in found['evaluations'].items():
    low, high = measured['pass@1_interval']
    language = measured['language']
    cells = [
      f'`{name.removesuffix("_evaluation")}`',
      f'{measured["pass@1"]:.3f} [{low:.3f}, {high:.3f}]',
      f'{measured["strict"]:.3f}',
      f'{measured["format"]:.3f}',
      '-' if language is None else f'{language:.3f}',
      f'{measured["completion_len"]:.0f}',
      f'{measured["readable"]:.3f}',
      f'{measured["repetition"]:.3f}',
    ]
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def chosen(value: Any) -> Any:
  """What a configuration sets otherwise than by default, as plain values.

  Fields that a run may change are left out. A field that a later version adds
  does not count as a change.
  """
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    default = {
      f.name: f.default
      if f.default_factory is dataclasses.MISSING
      else f.default_factory()
      for f in dataclasses.fields(value)
    }
    fields = {
      f.name: chosen(getattr(value, f.name))
      for f in dataclasses.fields(value)
      if f.init
      and not f.metadata.get('mutable_on_resume')
      and getattr(value, f.name) != default[f.name]
    }
    return {type(value).__qualname__: fields}
  if isinstance(value, (list, tuple)):
    return [chosen(v) for v in value]
  if isinstance(value, dict):
    return {str(k): chosen(v) for k, v in value.items()}
  return value if isinstance(value, str | int | float | None) else repr(value)


def flags(argv: Sequence[str]) -> list[str]:
  """The flags as `Config` names them; `from` is no name in Python."""
  names = {'--from': '--start', '--dry-run': '--dry_run'}
  parts = [argument.partition('=') for argument in argv]
  return [names.get(name, name) + eq + value for name, eq, value in parts]


if __name__ == '__main__':
  from rlzero import pipeline

  config.main(pipeline, flags(sys.argv[1:]))
