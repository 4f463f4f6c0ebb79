"""The only door to gin: gin files and flags in, one frozen Config out.

gin's parser reads the files; the statements are carried out here, because
gin's own registry keeps neither file nor line, is global, and drops mistyped
macros in silence. The language is gin with dynamic registration, where

  * what is configured is a dataclass, referred to as `@module.Class()`; a
    reference without parentheses hands over a function as it is;
  * `include` stands before the first binding of its file and a file is
    included once, so that a file's own bindings always win; a later
    `--gin_file` wins over an earlier one, and flags win over files;
  * a macro or a binding that nothing refers to is an error.

Flags of every stage: `--gin_file=FILE` (repeatable), `--gin.SELECTOR=VALUE`,
`--help`, `--name=value` for a field of the stage's own Config, and those of
`lifecycle.join_hosts` where several hosts work together.
"""

import ast
import dataclasses
import difflib
import importlib
import inspect
import json
import os
import re
import sys
import textwrap
import tokenize
import types
import typing
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from gin import config_parser

from rlzero.runtime import lifecycle

_TEXT, _JSON = 'config.gin', 'config.json'  # their names in a workdir


class UserError(ValueError):
  """Something the user can put right, told in one sentence."""


class _Reference(NamedTuple):
  name: str  # with its scope: 'held_out/countdown.Countdown'
  call: bool


class _Macro(NamedTuple):
  name: str


class _Binding(NamedTuple):
  value: Any
  where: str  # 'file:line', or the flag
  names: dict[str, Any]  # what the file it stands in has imported


class _FlagNames(dict):
  """What flags may name: the imports of every file, and all of rlzero."""

  def __missing__(self, name: str) -> Any:
    return _child(importlib.import_module('rlzero'), name)


class _Delegate(config_parser.ParserDelegate):
  """Lets references stand as they are until every file has been read."""

  def configurable_reference(self, scoped_configurable_name, evaluate):
    return _Reference(scoped_configurable_name, evaluate)

  def macro(self, macro_name):
    return _Macro(macro_name)


def build(stage: types.ModuleType, argv: Sequence[str]) -> Any:
  """Builds a stage's Config from command-line flags; leaves no state behind.

  Args:
    stage: the imported module, `rlzero.grpo` say, that holds `Config`.
    argv: the flags, without the program's name.

  Raises:
    UserError: anything unknown, unused, missing, of the wrong type or out of
      range, with the field, its value and where it was set.
  """
  source = _Source(stage)
  hints = typing.get_type_hints(stage.Config)
  settings = []
  for flag in argv:
    key, equals, text = flag.partition('=')
    name = key.removeprefix('--')
    if key == '--gin_file' and equals:
      source.read_file(text, flag)
    elif key.startswith('--gin.') and equals:
      settings.append((name.removeprefix('gin.'), text, flag))
    elif key.startswith('--') and name in hints:
      text = _quoted(text, hints[name]) if equals else 'True'
      settings.append((f'{_label(stage.Config)}.{name}', text, flag))
    else:
      known = ['--gin_file', '--help', *lifecycle.HOST_FLAGS]
      known += [f'--{name}' for name in hints]
      raise UserError(
        f'{flag!r} is not a flag of {stage.__name__}{_near(key, known)}; '
        'flags are written --name=value, and --help lists them.'
      )
  for setting in settings:
    source.read_flag(*setting)
  return source.config()


def main(stage: types.ModuleType, argv: Sequence[str] | None = None) -> None:
  """Runs a stage as a program: flags in, `stage.run(cfg)`, exit code out.

  A stage calls this with the module it imports by name, since the one that
  `python -m` runs is a second copy of it:

      if __name__ == '__main__':
        from rlzero import config, grpo
        config.main(grpo)

  Args:
    stage: a module with a dataclass `Config` and a function `run(cfg)`.
    argv: the flags; those of the process by default.

  Raises:
    SystemExit: 2 after a ValueError or OSError, told on stderr in a sentence
      (RLZERO_TRACEBACK=1 lets the traceback through); 130 when interrupted;
      lifecycle.PREEMPTED after SIGTERM.
  """
  if argv is None:
    lifecycle.reexec_with_malloc_settings()
    lifecycle.enable_compilation_cache()
    argv = sys.argv[1:]
  if not getattr(stage, 'SEVERAL_HOSTS', False):
    lifecycle.refuse_hosts(argv, stage.__name__)
  argv = lifecycle.join_hosts(argv)
  if '--help' in argv:
    print(_help(stage))
    return
  try:
    with lifecycle.exit_on_sigterm():
      stage.run(build(stage, argv))
  except KeyboardInterrupt:
    sys.exit(130)
  except (ValueError, OSError) as error:
    if os.environ.get('RLZERO_TRACEBACK') == '1':
      raise
    text = str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
      text = f'{error.filename}: {error.strerror}.'
    print(f'error: {text}', file=sys.stderr)
    sys.exit(2)


def resolved(cfg: Any) -> str:
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


def save_resolved(cfg: Any, workdir: str) -> None:
  """Writes `config.gin`, and the same as `config.json`, into a workdir.

  Raises:
    UserError: the workdir cannot be made or written to.
  """
  as_json = json.dumps(dataclasses.asdict(cfg), indent=2, default=_full_name)
  try:
    os.makedirs(workdir, exist_ok=True)
    for name, text in ((_TEXT, resolved(cfg)), (_JSON, as_json + '\n')):
      path = os.path.join(workdir, name)
      with open(path + '.tmp', 'w', encoding='utf-8') as file:
        file.write(text)
      os.replace(path + '.tmp', path)
  except OSError as error:
    raise UserError(
      f'The workdir {workdir!r} cannot be written to ({error.strerror}); '
      'choose another with --workdir=DIR.'
    ) from error


def check_resume_compatible(cfg: Any, workdir: str) -> None:
  """Refuses a workdir that was begun with another configuration.

  A workdir without a saved configuration passes. Fields declared with
  `fields.mutable_on_resume()` may differ, and all that
  is nested in them.

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
  differ = [
    f'{key} is {lines.get(key, "absent")} now and '
    f'{saved.get(key, "absent")} there'
    for key in {**lines, **saved}
    if key not in mutable and lines.get(key) != saved.get(key)
  ]
  if differ:
    more = f', and {len(differ) - 5} more' if len(differ) > 5 else ''
    raise UserError(
      f'The workdir {workdir!r} holds a run with another configuration: '
      f'{", ".join(differ[:5])}{more}; set these back, or choose another '
      'with --workdir=DIR.'
    )


def resume_key(cfg: Any) -> dict[str, str]:
  """The bindings that a run may not change when it resumes."""
  lines, _, mutable = _render(cfg)
  return {key: text for key, text in lines.items() if key not in mutable}


class _Source:
  """What the files and the flags of one build say, and its evaluation."""

  def __init__(self, stage: types.ModuleType):
    self._stage = stage
    self._macros: dict[str, _Binding] = {}
    self._fields: dict[tuple[str, type], dict[str, _Binding]] = {}
    self._read: set[str] = set()  # real paths of the files
    self._flag_names = _FlagNames({stage.__name__.rpartition('.')[2]: stage})
    # A value that a later one overrides counts as used all the same: a flag
    # that swaps the task must not make errors of the old task's bindings.
    self._used_macros: dict[str, str] = {}  # to where
    self._used_classes: set[type] = {stage.Config}
    self._used_scopes: set[str] = set()

  def read_file(self, path: str, by: str) -> None:
    self._read.add(os.path.realpath(path))
    try:
      with open(path, encoding='utf-8', errors='replace') as file:
        statements = list(config_parser.ConfigParser(file, _Delegate()))
    except OSError as error:
      raise UserError(
        f'The gin file {path!r} ({by}) cannot be read ({error.strerror}); '
        'paths are relative to the current folder, or to the including file.'
      ) from error
    except (SyntaxError, tokenize.TokenError) as error:
      line = getattr(error, 'lineno', None) or error.args[1][0]
      raise UserError(
        f'{path}:{line} is not gin syntax: {_brief(error)}'
      ) from error
    names: dict[str, Any] = {}
    seen: dict[Any, str] = {}
    for statement in statements:
      where = f'{path}:{statement.location.line_num}'
      match statement:
        case config_parser.ImportStatement():
          if statement.module != '__gin__.dynamic_registration':
            name, target = _import(statement, where)
            names[name] = self._flag_names[name] = target
        case config_parser.IncludeStatement(filename=name):
          if seen:
            raise UserError(
              f'{where} includes {name!r} after a binding, which it might '
              'undo; move the include above the bindings.'
            )
          beside = os.path.join(os.path.dirname(path), name)
          included = beside if os.path.exists(beside) else name
          if os.path.realpath(included) not in self._read:
            self.read_file(included, where)
        case config_parser.BindingStatement():
          key = self._bind(statement, where, names)
          if key in seen:
            raise UserError(
              f'{where} sets {key[-1]} a second time, after {seen[key]}; '
              'keep one of the two.'
            )
          seen[key] = where

  def read_flag(self, key: str, text: str, flag: str) -> None:
    try:
      parser = config_parser.ConfigParser(f'{key} = {text}', _Delegate())
      for statement in parser:
        self._bind(statement, flag, self._flag_names)
    except (SyntaxError, tokenize.TokenError) as error:
      raise UserError(
        f'{flag!r} is not gin syntax: {_brief(error)} (a string needs quotes '
        'inside those of the shell: --gin.x.y=\'"text"\').'
      ) from error

  def _bind(self, statement, where: str, names: dict[str, Any]) -> tuple:
    """Notes a binding and returns its key, with a readable name last."""
    scope, selector, field, value, _ = statement
    binding = _Binding(value, where, names)
    self._note_uses(value, binding)
    if not field:
      name = f'{scope}/{selector}' if scope else selector
      self._macros[name] = binding
      return 'macro', name
    target = _resolve(selector, binding)
    if not _is_dataclass(target):
      raise UserError(
        f'{selector}.{field} ({where}) sets a field of something that is not '
        'a dataclass; only dataclasses are configured.'
      )
    known = [f.name for f in dataclasses.fields(target) if f.init]
    if field not in known:
      raise UserError(
        f'{selector}.{field} ({where}) is not a field of '
        f'{_full_name(target)}{_near(field, known)}; --help lists them.'
      )
    self._fields.setdefault((scope, target), {})[field] = binding
    return scope, target, f'{selector}.{field}'

  def _note_uses(self, value: Any, binding: _Binding) -> None:
    match value:
      case _Macro(name):
        self._used_macros[name] = binding.where
      case _Reference(name, call):
        scope, _, selector = name.rpartition('/')
        target = _resolve(selector, binding)
        if call != _is_dataclass(target):
          raise UserError(
            f'@{name}{"()" * call} ({binding.where}) should be '
            f'@{name}{"()" * (not call)}: dataclasses are called, anything '
            'else is handed over as it is.'
          )
        if call:
          self._used_classes.add(target)
          self._used_scopes.add(scope)
      case list() | tuple():
        for item in value:
          self._note_uses(item, binding)
      case dict():
        self._note_uses([*value, *value.values()], binding)

  def config(self) -> Any:
    for name, where in self._used_macros.items():
      if name not in self._macros:
        raise UserError(
          f'The macro %{name} ({where}) is set nowhere'
          f'{_near(name, self._macros)}; add a line {name} = ...'
        )
    for name, binding in self._macros.items():
      if name not in self._used_macros:
        raise UserError(
          f'The macro {name} ({binding.where}) is used nowhere'
          f'{_near(name, self._used_macros)}; write %{name} where it is '
          'meant, or remove it.'
        )
    for (scope, target), fields in self._fields.items():
      prefix = f'{scope}/' if scope else ''
      if target not in self._used_classes or not any(
        f'{used}/'.startswith(prefix) for used in self._used_scopes | {''}
      ):
        name, binding = next(iter(fields.items()))
        raise UserError(
          f'{prefix}{_label(target)}.{name} ({binding.where}) has no effect; '
          f'give @{prefix}{_label(target)}() to a field, or remove it.'
        )
    try:
      return self._construct(self._stage.Config, [], 'the command line')
    except RecursionError:
      raise UserError(
        f'The configuration of {self._stage.__name__} refers to itself; look '
        'for a macro or a reference that leads back to its own start.'
      ) from None

  def _construct(self, cls: type, scope: list[str], where: str) -> Any:
    label = _label(cls)
    bindings: dict[str, _Binding] = {}
    for depth in range(len(scope) + 1):
      bindings |= self._fields.get(('/'.join(scope[:depth]), cls), {})
    fields = [f for f in dataclasses.fields(cls) if f.init]
    missing = [
      f.name
      for f in fields
      if f.name not in bindings
      and f.default is f.default_factory is dataclasses.MISSING
    ]
    if missing:
      raise UserError(
        f'{label}.{missing[0]} has no value and no default ({where}); set it '
        f'in a gin file or with --gin.{label}.{missing[0]}=VALUE.'
      )
    hints = typing.get_type_hints(cls)
    values = {}
    for name, binding in bindings.items():
      value = self._evaluate(binding.value, binding, scope)
      try:
        values[name] = _conform(value, hints[name])
      except TypeError as error:
        raise UserError(
          f'{label}.{name} is {value!r} ({binding.where}); its type must be '
          f'{_show(hints[name])}.'
        ) from error
    try:
      return cls(**values)
    except UserError:
      raise
    except ValueError as error:
      text = str(error)
      # 'Config.num_steps is 0' becomes 'grpo.Config.num_steps is 0'.
      first = re.match(rf'(?:[\w.]*\b{cls.__name__}\.)?(\w+)', text)
      known = {f.name for f in fields}
      if first and first[1] in known:
        text = f'{label}.{text[first.start(1) :]}'
      else:
        text = f'{label}: {text}'
      set_at = [
        f'{name}: {bindings[name].where if name in bindings else "default"}'
        for name in dict.fromkeys(re.findall(r'\w+', text))
        if name in known
      ]
      raise UserError(f'{text} ({", ".join(set_at) or where})') from error

  def _evaluate(self, value: Any, binding: _Binding, scope: list[str]) -> Any:
    match value:
      case _Macro(name):
        macro = self._macros[name]
        return self._evaluate(macro.value, macro, scope)
      case _Reference(name, call):
        own, _, selector = name.rpartition('/')
        target = _resolve(selector, binding)
        if not call:
          return target
        own = own.split('/') if own else scope
        return self._construct(target, own, binding.where)
      case list() | tuple():
        return type(value)(self._evaluate(v, binding, scope) for v in value)
      case dict():
        return {
          self._evaluate(k, binding, scope): self._evaluate(v, binding, scope)
          for k, v in value.items()
        }
    return value


def _import(statement, where: str) -> tuple[str, Any]:
  name = statement.bound_name()
  try:
    if statement.is_from:
      parent, _, child = statement.module.rpartition('.')
      return name, _child(importlib.import_module(parent), child)
    module = importlib.import_module(statement.module)
    return name, module if statement.alias else sys.modules[name]
  except ImportError as error:
    raise UserError(
      f'{where} cannot import {statement.module}: {_brief(error)}.'
    ) from error


def _resolve(selector: str, binding: _Binding) -> Any:
  """What `module.Class` means among the imports at that place."""
  target: Any = binding.names
  for part in selector.split('.'):
    known = target if isinstance(target, dict) else dir(target)
    try:
      target = (
        target[part] if isinstance(target, dict) else _child(target, part)
      )
    except (KeyError, ImportError, AttributeError) as error:
      raise UserError(
        f'{selector} ({binding.where}): {part!r} is '
        f'{"not imported" if known is binding.names else "unknown"}'
        f'{_near(part, known)}; name it as module.Class, after an import of '
        'its module in the same gin file.'
      ) from error
  return target


def _child(parent: Any, name: str) -> Any:
  """An attribute, or a submodule that nobody has imported yet."""
  if isinstance(parent, types.ModuleType) and not hasattr(parent, name):
    return importlib.import_module(f'{parent.__name__}.{name}')
  return getattr(parent, name)


def _conform(value: Any, hint: Any) -> Any:
  """`value` as its annotation wants it: ints as floats, lists as tuples.

  Raises:
    TypeError: the annotation does not allow it.
  """
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if hint is Any:
    return value
  if origin in (typing.Union, types.UnionType):
    for arg in args:
      try:
        return _conform(value, arg)
      except TypeError:
        pass
  elif origin is typing.Literal:
    if any(type(value) is type(arg) and value == arg for arg in args):
      return value
  elif origin is tuple and isinstance(value, (list, tuple)):
    if args[-1:] == (...,):
      args = args[:1] * len(value)
    if len(value) == len(args):
      return tuple(map(_conform, value, args))
  elif origin is dict and isinstance(value, dict):
    return {
      _conform(k, args[0]): _conform(v, args[1]) for k, v in value.items()
    }
  elif origin is not None:
    if isinstance(value, origin):  # a Callable[...], a type[...]
      return value
  elif hint is float and type(value) is int:
    return float(value)
  elif getattr(hint, '_is_protocol', False):
    members = [name for name in vars(hint) if not name.startswith('_')]
    if all(hasattr(value, name) for name in members):
      return value
  elif isinstance(value, hint):
    # True is an int to Python, but num_steps = True is a mistake.
    if not (isinstance(value, bool) and hint in (int, float)):
      return value
  raise TypeError


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
    name = _full_name(target)
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
          lines[key] = rendered(
            getattr(value, f.name), prefix + f.name, field_free
          )
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


def _quoted(text: str, hint: Any) -> str:
  """The text after `--name=` as gin text: strings come without quotes."""
  options = typing.get_args(hint) or (hint,)
  if typing.get_origin(hint) in (dict, list, tuple):  # of these, not one
    options = (hint,)
  if text == 'None' and types.NoneType in options:
    return text
  if str in options or text in options:  # the second for a Literal
    return repr(text)
  if bool in options and text.lower() in ('true', 'false'):
    return text.capitalize()
  try:
    ast.literal_eval(text)
  except (ValueError, SyntaxError):
    # Quoted, a word in place of a number is refused as such by its type.
    return text if text.startswith(('@', '%')) else repr(text)
  return text


def _help(stage: types.ModuleType) -> str:
  several = getattr(stage, 'SEVERAL_HOSTS', False)
  lines = [
    f'python -m {stage.__name__} [--gin_file=FILE ...] '
    '[--gin.SELECTOR=VALUE ...] [--name=value ...]',
    *(
      [f'on several hosts: {" ".join(lifecycle.HOST_FLAGS)}'] if several else []
    ),
    '',
    (inspect.getdoc(stage) or '').partition('\n')[0],
    '',
    f'--name is a field of {_label(stage.Config)}; fields of the others are '
    'set with --gin. or in a gin file. RLZERO_TRACEBACK=1 shows the '
    'traceback of an error.',
  ]
  classes = [stage.Config]
  for cls in classes:  # grows by the dataclasses that its fields hold
    hints = typing.get_type_hints(cls)
    comments = _comments(cls)
    lines += ['', _label(cls)]
    for f in dataclasses.fields(cls):
      default = f.default
      if f.default_factory is not dataclasses.MISSING:
        default = f.default_factory()
      required = default is dataclasses.MISSING
      lines.append(
        f'  {"--" * (cls is stage.Config)}{f.name}: {_show(hints[f.name])}'
        f'{" (required)" if required else f" = {default!r}"}'
        f'{"  # " * (f.name in comments)}{comments.get(f.name, "")}'
      )
      for hint in (hints[f.name], *typing.get_args(hints[f.name])):
        if _is_dataclass(hint) and hint not in classes:
          classes.append(hint)
  return '\n'.join(lines)


def _comments(cls: type) -> dict[str, str]:
  """The comment beside, or else right above, each field of a dataclass."""
  comments: dict[str, str] = {}
  for base in filter(dataclasses.is_dataclass, reversed(cls.__mro__)):
    source = textwrap.dedent(inspect.getsource(base))
    lines = source.splitlines()
    for node in ast.parse(source).body[0].body:
      if isinstance(node, ast.AnnAssign):
        # Offsets count bytes, and a default may hold more than ASCII.
        beside = lines[node.end_lineno - 1].encode()[node.end_col_offset :]
        above = lines[node.lineno - 2].strip()
        if b'#' in beside:
          comments[node.target.id] = beside.decode().strip(' #')
        elif above.startswith('#'):
          comments[node.target.id] = above.strip(' #')
  return comments


def _is_dataclass(target: Any) -> bool:
  return isinstance(target, type) and dataclasses.is_dataclass(target)


def _full_name(target: Any) -> str:
  # A stage's Config may be declared elsewhere; its own attribute alone counts,
  # or a class that inherits from it would answer to the same name.
  own = vars(target).get('GIN_NAME')
  return own or f'{target.__module__}.{target.__qualname__}'


def _label(cls: type) -> str:
  """`grpo.Config`: the shortest name that a gin file would use."""
  return '.'.join(
    _full_name(cls).split('.')[-1 - cls.__qualname__.count('.') - 1 :]
  )


def _show(hint: Any) -> str:
  plain = isinstance(hint, type) and not typing.get_args(hint)
  return hint.__name__ if plain else str(hint).replace('typing.', '')


def _near(name: str, known: Collection[str]) -> str:
  close = difflib.get_close_matches(name, known, n=1)
  return f' (did you mean {close[0]!r}?)' if close else ''


def _brief(error: Exception) -> str:
  """The last line of a message; gin puts the point there."""
  return str(error.args[0]).strip().splitlines()[-1].strip().rstrip('.')
