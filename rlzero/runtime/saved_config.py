"""The configuration of a run on disk, and what may differ on resume."""

import dataclasses
import os
from typing import Any

from rlzero.runtime import failures, files, naming
from rlzero.runtime import workdir as locks
from rlzero.runtime.naming import UserError

_TEXT, _JSON = 'config.gin', 'config.json'  # their names in a workdir


def to_gin(cfg: Any) -> str:
  """Every field of a configuration, as gin text that builds it again."""
  lines, modules, _ = _render(cfg)
  return '\n'.join(
    [
      'from __gin__ import dynamic_registration',
      *(f'import {module}' for module in sorted(modules)),
      '',
      *(f'{key} = {text}' for key, text in lines.items()),
      '',
    ]
  )


def save(cfg: Any, workdir: str) -> None:
  """Writes `config.gin`, and the same as `config.json`, into a workdir.

  A stage that runs as a program has the workdir to itself from here on.

  Raises:
    failures.Unavailable: another process works in it.
    UserError: the workdir cannot be made or written to.
    OSError: the disk is full, or a mount is away; this may pass.
  """
  as_json = files.to_json(_plain(cfg), indent=2)
  try:
    locks.claim(workdir)
    os.makedirs(workdir, exist_ok=True)
    for name, text in ((_TEXT, to_gin(cfg)), (_JSON, as_json + '\n')):
      files.write_whole(os.path.join(workdir, name), text)
  except OSError as error:
    if failures.may_pass(error):
      raise
    raise UserError(
      f'The workdir {workdir!r} cannot be written to ({error.strerror}); '
      'choose another with --workdir=DIR.'
    ) from error


def _plain(value: Any) -> Any:
  """Settings as what JSON holds; functions and classes by their names."""
  if naming.is_settings(value):
    return {
      f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)
    }
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  if isinstance(value, dict):
    return {str(key): _plain(item) for key, item in value.items()}
  return naming.full_name(value) if callable(value) else value


def check_resume_compatible(cfg: Any, workdir: str) -> None:
  """Refuses a workdir that was begun with another configuration.

  A workdir without a saved configuration passes. Fields declared with
  `fields.mutable_on_resume` may differ, and all that is nested in them; those
  with `fields.grows_on_resume` may be larger.

  Raises:
    UserError: names the fields that differ, with both values.
  """
  path = os.path.join(workdir, _TEXT)
  if not os.path.exists(path):
    return
  with open(path, encoding='utf-8') as file:
    saved = dict(
      line.rstrip('\n').split(' = ', 1) for line in file if ' = ' in line
    )
  lines, _, mutable = _render(cfg)
  growing = {key for key in _growing(cfg) if _grows(saved.get(key), lines[key])}
  differ = [
    f'{key} is {lines.get(key, "absent")} now and '
    f'{saved.get(key, "absent")} there'
    for key in {**lines, **saved}
    if key not in mutable | growing and lines.get(key) != saved.get(key)
  ]
  if differ:
    more = f', and {len(differ) - 5} more' if len(differ) > 5 else ''
    raise UserError(
      f'The workdir {workdir!r} holds a run with another configuration: '
      f'{", ".join(differ[:5])}{more}; set these back, or choose another '
      'with --workdir=DIR.'
    )
  _tell_of_schedule(cfg, {key: (saved[key], lines[key]) for key in growing})


def _growing(cfg: Any) -> list[str]:
  """The bindings of a Config that may grow."""
  found = []
  for f in dataclasses.fields(cfg):
    inner = f.metadata.get('grows_on_resume')
    if inner is True:
      found.append(f'{naming.full_name(type(cfg))}.{f.name}')
    elif inner:
      owner = naming.full_name(type(getattr(cfg, f.name)))
      found += [f'{f.name}/{owner}.{name}' for name in inner]
  return found


def _grows(before: str | None, now: str) -> bool:
  """Whether a number is larger now; 0 stands for one that is not set."""
  return before is not None and 0 < float(before) < float(now)


def _tell_of_schedule(cfg: Any, growing: dict[str, tuple[str, str]]) -> None:
  """Says where a longer run changes the learning rate of its steps."""
  schedule = getattr(getattr(cfg, 'optimizer', None), 'schedule', 'constant')
  for key, (before, now) in growing.items():
    # What is nested is no number of steps.
    if schedule != 'constant' and '/' not in key:
      print(
        f'{key} grows from {before} to {now}: the steps that are left follow '
        f'the {schedule} schedule to its new end, so their learning rate is '
        'another than it would have been.',
        flush=True,
      )


def resume_key(cfg: Any) -> dict[str, str]:
  """The bindings that a run may not change when it resumes."""
  lines, _, mutable = _render(cfg)
  free = mutable | set(_growing(cfg))
  return {key: text for key, text in lines.items() if key not in free}


def _render(cfg: Any) -> tuple[dict[str, str], set[str], set[str]]:
  """A configuration as gin bindings.

  Returns:
    Bindings {'module.Class.field': gin text}, nested ones under a scope named
    by their place; the modules to import; the bindings that may change.
  """
  lines: dict[str, str] = {}
  modules: set[str] = set()
  mutable: set[str] = set()

  def named(target: Any) -> str:
    name = naming.full_name(target)
    modules.add(name.removesuffix(f'.{target.__qualname__}'))
    return name

  def rendered(value: Any, scope: str, free: bool) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
      prefix = f'{scope}/' if scope else ''
      name = named(type(value))
      for f in dataclasses.fields(value):
        if f.init:
          key = f'{prefix}{name}.{f.name}'
          lines[key] = ''  # keeps its place before what is nested in it
          field_free = free or f.metadata.get('mutable_on_resume', False)
          if field_free:
            mutable.add(key)
          held = getattr(value, f.name)
          lines[key] = rendered(held, prefix + f.name, field_free)
          if held and (digest := f.metadata.get('digest')):
            named_files = held.values() if isinstance(held, dict) else [held]
            hashed = ' '.join(map(digest, named_files))
            lines[key] += f'  # sha256 {hashed}'
      return f'@{prefix}{name}()'
    if isinstance(value, (list, tuple)):
      items = [rendered(v, f'{scope}_{i}', free) for i, v in enumerate(value)]
      if isinstance(value, list):
        return f'[{", ".join(items)}]'
      return f'({", ".join(items)}{"," * (len(items) == 1)})'
    if isinstance(value, dict):
      items = [
        f'{key!r}: {rendered(v, f"{scope}_{i}", free)}'
        for i, (key, v) in enumerate(value.items())
      ]
      return f'{{{", ".join(items)}}}'
    return f'@{named(value)}' if callable(value) else repr(value)

  rendered(cfg, '', False)
  return lines, modules, mutable
