"""The only door to gin: gin files and flags in, one frozen Config out.

The language is gin's, as `bindings` reads it. Flags of every stage:
`--gin_file=FILE` (repeatable), `--gin.SELECTOR=VALUE`, `--help`,
`--describe` where the stage can say what its settings mean,
`--name=value` for a field of the stage's own Config, `--field.name=value` for
a field of what a field holds, the short flags that its `SHORT_FLAGS` declares
for such fields, and those of `lifecycle.join_hosts` where several hosts work
together.

A binding of a class sets the fields of every `@module.Class()`. Where no
reference to the class stands, it sets those of the default value of that
class: `optim.Optimizer.b2 = 0.99` alone changes the default optimiser.
"""

import contextlib
import dataclasses
import os
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from rlzero.runtime import (
  cli_help,
  failures,
  gin_values,
  lifecycle,
  naming,
  trackers,
  workdir,
)
from rlzero.runtime.bindings import (
  Binding,
  Bindings,
  Macro,
  Reference,
  resolve,
)
from rlzero.runtime.naming import UserError

_Path = tuple[str, ...]  # names of fields, from the stage's Config


def build(stage: types.ModuleType, argv: Sequence[str]) -> Any:
  """Builds a stage's Config from command-line flags; leaves no state behind.

  Args:
    stage: the imported module, `rlzero.grpo` say, that holds `Config`.
    argv: the flags, without the program's name.

  Raises:
    UserError: anything unknown, unused, missing, of the wrong type or out of
      range, with the field, its value and where it was set.
  """
  source = Bindings(stage)
  set_later = []  # a file may import what a flag before it names
  for flag in argv:
    key, equals, text = flag.partition('=')
    name = key.removeprefix('--')
    if key == '--gin_file' and equals:
      source.read_file(text, flag)
    elif key.startswith('--gin.') and equals:
      selector = name.removeprefix('gin.')
      set_later.append((source.read_flag, selector, text, flag))
    elif key.startswith('--'):
      path, hint = _field_of(stage, name, flag)
      text = gin_values.quote(text, hint) if equals else 'True'
      set_later.append((source.read_path, path, text, flag))
    else:
      raise _unknown_flag(stage, flag)
  for read, *arguments in set_later:
    read(*arguments)
  return _Builder(source).config()


def main(stage: types.ModuleType, argv: Sequence[str] | None = None) -> None:
  """Runs a stage as a program: flags in, `stage.run(cfg)`, exit code out.

  A stage calls this with the module it imports by name, since the one that
  `python -m` runs is a second copy of it:

      if __name__ == '__main__':
        from rlzero import grpo
        config.main(grpo)

  Args:
    stage: a module with a dataclass `Config` and a function `run(cfg)`; with
      a function `describe(cfg)` too, `--describe` prints what that returns.
    argv: the flags; those of the process by default.

  Raises:
    SystemExit: after a ValueError or OSError, told on stderr in a sentence
      (RLZERO_TRACEBACK=1 lets the traceback through): failures.TRY_AGAIN if
      the disk or the network is at fault and the same command may resume, else
      failures.USAGE; 130 when interrupted; lifecycle.PREEMPTED after SIGTERM
      and where another host is gone.
  """
  lifecycle.open_closed_streams()
  if argv is None:
    lifecycle.reexec_with_malloc_settings()
    lifecycle.enable_compilation_cache()
    argv = sys.argv[1:]
  if not getattr(stage, 'SEVERAL_HOSTS', False):
    lifecycle.refuse_hosts(argv, stage.__name__)
  argv = lifecycle.join_hosts(argv)
  if '--help' in argv:
    print(cli_help.text(stage))
    return
  try:
    with lifecycle.exit_on_sigterm(), workdir.claims():
      if '--describe' in argv and hasattr(stage, 'describe'):
        # Nothing is written, so it needs no workdir.
        argv = ['--workdir=', *(flag for flag in argv if flag != '--describe')]
        print(stage.describe(build(stage, argv)))
        return
      cfg = build(stage, argv)
      trackers.chosen()  # one that is not there is told of at once
      workdir.check(getattr(cfg, 'workdir', ''))
      stage.run(cfg)
  except KeyboardInterrupt:
    sys.exit(130)
  except (ValueError, OSError, RuntimeError) as error:
    if failures.is_lost_host(error):
      lifecycle.leave(
        f'another host is gone ({failures.sentence(error)}); start the same '
        'command again on all hosts, and it resumes.'
      )
    if isinstance(error, RuntimeError):
      raise
    if os.environ.get('RLZERO_TRACEBACK') == '1':
      raise
    text = str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
      text = f'{error.filename}: {error.strerror}.'
    code = failures.exit_code(error)
    if code == failures.TRY_AGAIN and not isinstance(
      error, failures.Unavailable
    ):
      text = f'{text.rstrip(".")}; this may pass: repeat the same command.'
    lifecycle.drop_lost_output()
    with contextlib.suppress(OSError):  # the reader of the log may be gone
      print(f'error: {text}', file=sys.stderr, flush=True)
    sys.exit(code)


def _field_of(
  stage: types.ModuleType, name: str, flag: str
) -> tuple[_Path, Any]:
  """The path of the field that a flag names, and the field's type."""
  cls = stage.Config
  hints = typing.get_type_hints(cls)
  if name not in hints:
    name = naming.short_flags(cls).get(name, name)
  *parents, last = path = tuple(name.split('.'))
  for parent in parents:
    default = {f.name: f for f in dataclasses.fields(cls)}.get(parent)
    cls = default and naming.nested_type(
      hints[parent], naming.default_of(default)
    )
    if cls is None:
      raise _unknown_flag(stage, flag)
    hints = typing.get_type_hints(cls)
  if last not in {f.name for f in dataclasses.fields(cls) if f.init}:
    raise _unknown_flag(stage, flag)
  return path, hints[last]


def _unknown_flag(stage: types.ModuleType, flag: str) -> UserError:
  key = flag.partition('=')[0]
  own = [f.name for f in dataclasses.fields(stage.Config)]
  known = ['--gin_file', '--help', '--describe', *lifecycle.HOST_FLAGS]
  known += [f'--{n}' for n in (*own, *naming.short_flags(stage.Config))]
  deeper = [
    f'--{".".join(path)}'
    for path, _ in cli_help.nested_fields(stage.Config)
    if path[-1] == key.removeprefix('--')
  ]
  hint = naming.near(key, known)
  if deeper:
    hint = f' (do you mean {" or ".join(deeper)}?)'
  return UserError(
    f'{flag!r} is not a flag of {stage.__name__}{hint}; flags are written '
    '--name=value, and --help lists them.'
  )


class _Builder:
  """Makes the Config that the bindings describe."""

  def __init__(self, source: Bindings):
    self._source = source
    self._places: dict[_Path, str] = {}  # of what was set, where
    # Default values that bindings of their class have changed: to who has them.
    self._changed: dict[type, set[str]] = {}
    self._applied: set[tuple[str, type]] = set()
    self._applied_paths: set[_Path] = set()

  def config(self) -> Any:
    source = self._source
    _check_macros(source)
    self._check_classes(referenced=True)
    try:
      built = self._construct(source.stage.Config, [], 'the command line', ())
    except RecursionError:
      raise UserError(
        f'The configuration of {source.stage.__name__} refers to itself; look '
        'for a macro or a reference that leads back to its own start.'
      ) from None
    self._check_classes(referenced=False)
    self._check_paths()
    return built

  def _check_classes(self, referenced: bool) -> None:
    """Refuses bindings of classes that have changed nothing.

    Args:
      referenced: check those whose class a reference names, or the others.
    """
    source = self._source
    scopes = [f'{scope}/' for scope in source.used_scopes | {''}]
    for (scope, target), fields in source.fields.items():
      if (target in source.used_classes) != referenced:
        continue
      prefix = f'{scope}/' if scope else ''
      if referenced:
        used = any(name.startswith(prefix) for name in scopes)
      else:
        used = (scope, target) in self._applied
      if not used:
        name, binding = next(iter(fields.items()))
        label = f'{prefix}{naming.label(target)}'
        raise UserError(
          f'{label}.{name} ({binding.where}) has no effect; give @{label}() to '
          'a field, or remove it.'
        )

  def _check_paths(self) -> None:
    """Refuses flags of fields that nothing has, and ambiguous bindings."""
    source = self._source
    for path, binding in source.paths.items():
      if path not in self._applied_paths:
        raise UserError(
          f'{binding.where} sets {".".join(path)}, but {path[0]} holds nothing '
          'with such a field; give it a value that has one.'
        )
    for target, owners in self._changed.items():
      if len(owners) > 1:
        binding = next(iter(source.fields['', target].values()))
        raise UserError(
          f'{naming.label(target)} ({binding.where}) may mean '
          f'{" or ".join(sorted(owners))}; give @{naming.label(target)}() to '
          'the one that is meant.'
        )

  def _bound(
    self, cls: type, scope: list[str], path: _Path | None
  ) -> dict[str, Binding]:
    """The bindings of an object's fields: by its class, then by its path."""
    found: dict[str, Binding] = {}
    for depth in range(len(scope) + 1):
      found |= self._source.fields.get(('/'.join(scope[:depth]), cls), {})
    if path is None:
      return found
    for place, binding in self._source.paths.items():
      if place[:-1] != path or place[-1] not in _init_fields(cls):
        continue
      self._applied_paths.add(place)
      other = found.get(place[-1])
      if other and other.where.startswith('--'):
        raise UserError(
          f'{other.where} and {binding.where} both set {".".join(place)}; '
          'give one of the two.'
        )
      found[place[-1]] = binding
    return found

  def _construct(
    self, cls: type, scope: list[str], where: str, path: _Path | None
  ) -> Any:
    """An object of a class that a reference names."""
    bindings = self._bound(cls, scope, path)
    for name, field in _init_fields(cls).items():
      if name not in bindings and (
        field.default is field.default_factory is dataclasses.MISSING
      ):
        raise UserError(
          f'{naming.label(cls)}.{name} has no value and no default ({where}); '
          f'set it in a gin file or with --gin.{naming.label(cls)}.{name}'
          '=VALUE.'
        )
    values = self._values(cls, bindings, scope, path)
    for name, field in _init_fields(cls).items():
      default = naming.default_of(field)
      if name not in values and naming.is_settings(default):
        owner = f'{naming.label(cls)}.{name}'
        inner = None if path is None else (*path, name)
        values[name] = self._rebuilt(default, scope, inner, owner)
    return self._made(cls, values, bindings, where, path)

  def _rebuilt(
    self, default: Any, scope: list[str], path: _Path | None, owner: str
  ) -> Any:
    """A default value with what bindings of its class or path change in it."""
    cls = type(default)
    if cls in self._source.used_classes:  # bindings are those of references
      bindings = {
        place[-1]: binding
        for place, binding in self._source.paths.items()
        if place[:-1] == path and place[-1] in _init_fields(cls)
      }
      self._applied_paths |= {(*(path or ()), name) for name in bindings}
    else:
      bindings = self._bound(cls, scope, path)
      keys = {('/'.join(scope[:depth]), cls) for depth in range(len(scope) + 1)}
      keys &= self._source.fields.keys()
      self._applied |= keys
      if ('', cls) in keys:
        self._changed.setdefault(cls, set()).add(owner)
    values = self._values(cls, bindings, scope, path)
    for name in _init_fields(cls):
      value = getattr(default, name)
      if name not in values and naming.is_settings(value):
        inner = None if path is None else (*path, name)
        new = self._rebuilt(value, scope, inner, f'{naming.label(cls)}.{name}')
        if new is not value:
          values[name] = new
    if not values:
      return default
    kept = {name: getattr(default, name) for name in _init_fields(cls)}
    return self._made(cls, kept | values, bindings, 'default', path)

  def _values(
    self,
    cls: type,
    bindings: Mapping[str, Binding],
    scope: list[str],
    path: _Path | None,
  ) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    values = {}
    for name, binding in bindings.items():
      inner = None if path is None else (*path, name)
      if inner:
        self._places[inner] = binding.where
      value = self._evaluate(binding.value, binding, scope, inner)
      try:
        values[name] = gin_values.conform(value, hints[name])
      except TypeError as error:
        raise UserError(
          f'{naming.label(cls)}.{name} is {value!r} ({binding.where}); its '
          f'type must be {naming.show_type(hints[name])}.'
        ) from error
    return values

  def _made(
    self,
    cls: type,
    values: dict[str, Any],
    bindings: Mapping[str, Binding],
    where: str,
    path: _Path | None,
  ) -> Any:
    """`cls(**values)`, whose errors say where what they name was set."""
    try:
      return cls(**values)
    except UserError:
      raise
    except ValueError as error:
      text, label = str(error), naming.label(cls)
      # 'Config.num_steps is 0' becomes 'grpo.Config.num_steps is 0'.
      first = re.match(rf'(?:[\w.]*\b{cls.__name__}\.)?(\w+)', text)
      known = _init_fields(cls)
      if first and first[1] in known:
        text = f'{label}.{text[first.start(1) :]}'
      else:
        text = f'{label}: {text}'
      set_at = [
        f'{name}: {bindings[name].where if name in bindings else "default"}'
        for name in dict.fromkeys(re.findall(r'\w+', text))
        if name in known
      ]
      set_at += [
        f'{".".join(place[len(path) :])}: {at}'
        for place, at in self._places.items()
        if path is not None
        and len(place) > len(path) + 1
        and place[: len(path)] == path
        and '.'.join(place[len(path) :]) in text
      ]
      raise UserError(f'{text} ({", ".join(set_at) or where})') from error

  def _evaluate(
    self, value: Any, binding: Binding, scope: list[str], path: _Path | None
  ) -> Any:
    def inside(item: Any) -> Any:
      return self._evaluate(item, binding, scope, None)

    match value:
      case Macro(name):
        macro = self._source.macros[name]
        return self._evaluate(macro.value, macro, scope, path)
      case Reference(name, call):
        own, _, selector = name.rpartition('/')
        target = resolve(selector, binding)
        if not call:
          return target
        own = own.split('/') if own else scope
        return self._construct(target, own, binding.where, path)
      case list() | tuple():
        return type(value)(map(inside, value))
      case dict():
        return {inside(k): inside(v) for k, v in value.items()}
    return value


def _check_macros(source: Bindings) -> None:
  """Refuses a macro that is set nowhere, or used nowhere."""
  for name, where in source.used_macros.items():
    if name not in source.macros:
      raise UserError(
        f'The macro %{name} ({where}) is set nowhere'
        f'{naming.near(name, source.macros)}; add a line {name} = ...'
      )
  for name, binding in source.macros.items():
    if name not in source.used_macros:
      raise UserError(
        f'The macro {name} ({binding.where}) is used nowhere'
        f'{naming.near(name, source.used_macros)}; write %{name} where it is '
        'meant, or remove it.'
      )


def _init_fields(cls: type) -> dict[str, dataclasses.Field]:
  return {f.name: f for f in dataclasses.fields(cls) if f.init}
