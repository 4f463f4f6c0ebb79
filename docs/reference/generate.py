"""Writes the reference pages from the code.

  python docs/reference/generate.py

Flags, types, defaults and comments are those of the stages' settings; metrics
are those of `rlzero/reporting/metric_names.py`. `tests/test_docs.py` fails when
a page is not what this writes.
"""

import dataclasses
import importlib
import inspect
import pathlib
import pkgutil
import re
import types

import rlzero
from rlzero import grpo, tasks
from rlzero.evaluation import contamination
from rlzero.models.config import ModelConfig
from rlzero.reporting import metric_names
from rlzero.rl.objectives import (
  advantages,
  aggregation,
  behaviour,
  describe,
  gates,
  kl,
  ratios,
)
from rlzero.runtime import cli_help, lifecycle, naming
from rlzero.runtime import config as settings

FOLDER = pathlib.Path(__file__).parent
_OBJECTIVES = FOLDER.parent.parent / 'configs' / 'objectives'
_NOTE = '<!-- Written by docs/reference/generate.py; do not edit. -->'


def stages() -> dict[str, types.ModuleType]:
  """The modules with a Config and a run, by name."""
  names = (info.name for info in pkgutil.iter_modules(rlzero.__path__))
  modules = {
    name: importlib.import_module(f'rlzero.{name}') for name in sorted(names)
  }
  return {
    name: module
    for name, module in modules.items()
    if hasattr(module, 'Config') and hasattr(module, 'run')
  }


def pages() -> dict[str, str]:
  """The text of each page, by the name of its file."""
  return {
    'cli.md': cli(),
    'config.md': config(),
    'metrics.md': metrics(),
    'objectives.md': objectives(),
  }


def cli() -> str:
  """Every flag of every stage."""
  parts = [
    '# Commands and flags',
    _NOTE,
    'A stage is a command, `python -m rlzero.NAME`. '
    '[Settings](config.md) says how flags and gin files are written.',
    'Every stage also takes `--gin_file=FILE` (repeatable), '
    '`--gin.SELECTOR=VALUE` and `--help`. Stages that run on several hosts '
    f'take {", ".join(f"`{flag}`" for flag in lifecycle.HOST_FLAGS)}.',
    _table(
      ('stage', 'what it does', 'hosts'),
      [
        (
          f'[`{name}`](#{name})',
          _summary(module),
          'several' if getattr(module, 'SEVERAL_HOSTS', False) else 'one',
        )
        for name, module in stages().items()
      ],
    ),
    'A flag without a default is required, unless it is a field of something '
    'that is not set. `--model.FIELD` and `--task.FIELD` set the fields of a '
    '[model](config.md#modelconfig) and of a [task](config.md#tasks).',
  ]
  for name, module in stages().items():
    parts += [f'## {name}', f'`python -m rlzero.{name}`: {_summary(module)}']
    parts.append(_settings_table(module, flags=True))
  return '\n\n'.join(parts) + '\n'


def config() -> str:
  """How settings are written, and the classes that fields hold."""
  parts = [
    '# Settings and gin files',
    _NOTE,
    (FOLDER / 'config_head.md').read_text(encoding='utf-8').strip(),
    '## What may change on resume',
    'All other settings of a run are fixed when it begins. A resume with '
    'another value is refused, in a sentence that names the field.',
    _table(
      ('stage', 'may differ', 'may grow'),
      [
        (name, differs, _declared(module, 'grows_on_resume'))
        for name, module in stages().items()
        if '`workdir`' in (differs := _declared(module, 'mutable_on_resume'))
      ],
    ),
    '## ModelConfig',
    'The shape of a model: `@config.ModelConfig()` of `rlzero.models.config`; '
    'where a stage has it as `model`, a flag is `--model.FIELD`.',
    _settings_table(_as_stage(ModelConfig), flags=False),
    '## Tasks',
    'What a field of type `Task` may hold. Name it with its module, as in '
    '`@countdown.Countdown()`.',
  ]
  for cls in _tasks():
    parts += [
      f'### {naming.label(cls)}',
      f'`{cls.__module__}`: {_first_line(cls)}',
    ]
    if any(field.init for field in dataclasses.fields(cls)):
      parts.append(_settings_table(_as_stage(cls), flags=False))
  return '\n\n'.join(parts) + '\n'


def metrics() -> str:
  """Every metric with its unit and meaning."""
  parts = [
    '# Metrics',
    _NOTE,
    'Each line of `metrics.jsonl` is one update; TensorBoard shows the same '
    'names. A value that is not finite is null. A name in braces stands for '
    'any name of its kind. Metrics of a rollout are repeated by each of its '
    'updates.',
    _table(
      ('metric', 'unit', 'meaning', 'stages'),
      [
        (f'`{name}`', metric.unit, metric.meaning, metric.stages)
        for name, metric in metric_names.METRICS.items()
      ],
    ),
    '`rlzero/reporting/metric_names.py` holds this list.',
  ]
  return '\n\n'.join(parts) + '\n'


def objectives() -> str:
  """Every choice of an objective, and the published ones."""
  parts = [
    '# Objectives',
    _NOTE,
    'An objective is a choice from each table. '
    '[Change the objective](../howto/change_the_objective.md) says how to '
    'choose; all fields are those of `objective.Objective` '
    '([flags](cli.md#grpo)).',
    '## Published ones',
    'Each file sets every field, so it can follow any run: '
    '`--gin_file=configs/runs/r1_zero_tiny.gin '
    '--gin_file=configs/objectives/gspo.gin`. Its head says where the numbers '
    'are from.',
    _table(
      ('file in `configs/objectives`', 'maximises', 'advantage'),
      [_published(path) for path in sorted(_OBJECTIVES.glob('*.gin'))],
    ),
  ]
  for field, what, table in (
    ('baseline', 'A = (r - b) / s: what b is.', advantages.BASELINES),
    ('scale', 'A = (r - b) / s: what s is.', advantages.SCALES),
    ('ratio', 'What ρ is.', ratios.RATIOS),
    ('gate', 'How far ρ may move a token; sg stops a gradient.', gates.GATES),
    ('behaviour', 'Weight between sampler and learner.', behaviour.BEHAVIOUR),
    ('kl_estimator', 'Estimate of the KL to the reference.', kl.KL),
    ('aggregation', 'What is averaged.', aggregation.AGGREGATIONS),
  ):
    parts += [
      f'## {field}',
      what,
      _table(
        ('value', 'formula', 'takes', 'source'),
        [
          (
            f'`{name}`',
            _escape(re.sub(r':g\}', '}', piece.formula)),
            ', '.join(f'`{number}`' for number in piece.numbers),
            piece.source,
          )
          for name, piece in table.items()
        ],
      ),
    ]
  return '\n\n'.join(parts) + '\n'


def _published(path: pathlib.Path) -> tuple[str, str, str]:
  flags = [f'--gin_file={path}', '--workdir=']
  text = describe.describe(settings.build(grpo, flags).objective)
  formula, symbols, *_ = text.split('\n\n')
  named = dict(line.strip().split(' = ', 1) for line in symbols.splitlines())
  reward = named['A'].rpartition('R = ')[2]
  advantage = f'({reward} − {named["b"]}) / {named["s"]}'
  formula = _escape(formula.removeprefix('J = '))
  if 'L' in named:
    formula += f', L = {named["L"]}'
  return f'`{path.stem}.gin`', formula, advantage


def _settings_table(stage: types.ModuleType, flags: bool) -> str:
  rows = [
    (
      f'`{setting.flag}`' if flags else f'`{setting.field}`',
      f'`{_type(setting.type)}`',
      f'`{_escape(setting.default)}`' if setting.default else '',
      _escape(setting.comment),
    )
    for setting in cli_help.list_settings(stage)
    if not setting.field.startswith(('model.', 'task.'))
  ]
  head = 'flag' if flags else 'field', 'type', 'default', 'meaning'
  return _table(head, rows)


def _declared(stage: types.ModuleType, key: str) -> str:
  """The fields that are declared so; not again what is nested in them."""
  found: list[tuple[str, ...]] = []
  for path, (_, field, _) in cli_help.nested_fields(stage.Config):
    inner = field.metadata.get(key)
    if inner and path[:1] not in found:
      found += [path] if inner is True else [(*path, name) for name in inner]
  return ', '.join(f'`{".".join(path)}`' for path in found)


def _as_stage(cls: type) -> types.ModuleType:
  """A module whose Config is this class, so that its fields can be listed."""
  module = types.ModuleType(f'rlzero.{cls.__name__}')
  module.Config = cls
  return module


def _tasks() -> list[type]:
  """The classes of tasks, and what wraps one."""
  found = {}
  walk = pkgutil.walk_packages(tasks.__path__, f'{tasks.__name__}.')
  names = [info.name for info in walk]
  for module in map(importlib.import_module, [*names, contamination.__name__]):
    for name, cls in vars(module).items():
      if (
        inspect.isclass(cls)
        and cls.__module__ == module.__name__
        and dataclasses.is_dataclass(cls)
        and hasattr(cls, 'verify')
        and hasattr(cls, 'examples')
        and not name.startswith('_')
      ):
        found[naming.label(cls)] = cls
  return [found[name] for name in sorted(found)]


def _summary(module: types.ModuleType) -> str:
  return _first_line(module)


def _first_line(owner: object) -> str:
  return _escape((inspect.getdoc(owner) or '').partition('\n')[0])


def _type(text: str) -> str:
  """A type in a reader's words: `Mesh or None`."""
  text = re.sub(r'\b(?:[a-z_]\w*\.)+(?=[A-Z])', '', text)
  return text.replace(' | ', ' or ')


def _escape(text: str) -> str:
  return re.sub(r' at 0x[0-9a-f]+', '', text).replace('|', '\\|')


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
  lines = [head, ('---',) * len(head), *rows]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def main() -> None:
  for name, text in pages().items():
    (FOLDER / name).write_text(text, encoding='utf-8')


if __name__ == '__main__':
  main()
