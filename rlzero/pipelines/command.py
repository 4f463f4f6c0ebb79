"""A stage of a pipeline as a command, checked before anything runs."""

import dataclasses
import hashlib
import importlib
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any, ClassVar

from rlzero.runtime import config, files, sharding

_MESH = '--mesh.data=-1'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """A command of the pipeline; it works in the folder WORKDIR/NAME."""

  GIN_NAME: ClassVar[str] = 'rlzero.pipeline.Stage'

  name: str
  module: str  # rlzero.grpo, say
  gin_files: tuple[str, ...] = ()
  flags: tuple[str, ...] = ()  # such as --num_steps=60
  # Flags that name what earlier stages left, without dashes: to 'STAGE', its
  # folder, or to 'STAGE/PATH' in it.
  inputs: dict[str, str] = dataclasses.field(default_factory=dict)


class Command:
  """A stage with its flags, checked: its own Config has been built.

  Attributes:
    argv: the flags.
    line: the command on one line, from the module on.
    joins_hosts: whether several hosts may run it together.
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
    self.joins_hosts: bool = getattr(module, 'SEVERAL_HOSTS', False)
    self._has_mesh = getattr(built, 'mesh', None) != sharding.Mesh()
    text = files.to_json(chosen(built)).replace(os.path.join(workdir, ''), '')
    self.digest = hashlib.sha256(text.encode()).hexdigest()

  def on_hosts(self, host_flags: Sequence[str]) -> list[str]:
    """The command of this host's process.

    A stage that sets no mesh gets one over all devices of the hosts, where
    each device has rows of its own.

    Args:
      host_flags: of this process; none on one host.
    """
    flags = list(self.argv)
    if host_flags and self.joins_hosts:
      flags += [*host_flags] if self._has_mesh else [_MESH, *host_flags]
    return [sys.executable, '-m', self.stage.module, *flags]


def chosen(value: Any) -> Any:
  """Lists the settings that differ from their defaults, as plain values.

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
