"""The page of a model on the hub, made from the run that trained it.

Names, settings and completions come from data and models, so they are written
as text that is no markup, and completions in a fence that they cannot close.
"""

import json
import os
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, NamedTuple

from rlzero.reporting import recorded
from rlzero.runtime import files

_MOST_CHARS = 1500  # of the completion that is shown
_SHOWN = 200  # characters of a setting
_MARKUP = re.compile(r'([\\`*_{}\[\]<>()#+\-.!|~&$:/@])')
_SCORES = (
  ('pass@1', 'right answers (pass@1)'),
  ('strict', 'right and in the format'),
  ('completion_len', 'mean length in tokens'),
  ('truncated', 'cut off at the limit'),
)
_LOCAL = 'a local folder'


class Model(NamedTuple):
  """The files beside a card, as it describes them."""

  name: str  # org/name
  family: str
  num_parameters: int
  kind: str  # 'folder', or 'gguf' for a file
  dtype: str
  source: str  # of the conversion: the run's folder, or what else it was


def text(model: Model) -> str:
  """The card, README.md of a repository: metadata and markdown.

  Args:
    model: what is published; if `source` is a run's folder, what it has
      recorded goes into the card.

  Raises:
    ValueError: a file of the run is broken.
  """
  run = _run(model.source)
  base = base_name(run.config.get('checkpoint') if run else model.source)
  parts = [
    _front_matter(model, run, base),
    f'# {plain(model.name.rpartition("/")[2])}\n',
    _what(model, run, base),
  ]
  if run:
    parts += [_figures(run), _training(run, base), _example(run), _again(run)]
  parts += [_use(model)]
  return '\n'.join(part for part in parts if part)


def plain(value: Any, most: int = _SHOWN) -> str:
  """A value on one line of markdown or of a table, without any markup."""
  line = ' '.join(_printable(str(value)).split())
  if len(line) > most:
    line = line[:most] + ' …'
  return _MARKUP.sub(r'\\\1', line)


def fenced(value: str) -> str:
  """A text in a block that it cannot end."""
  value = _printable(value)
  longest = max((len(m[0]) for m in re.finditer('`+', value)), default=0)
  fence = '`' * max(3, longest + 1)
  return f'{fence}text\n{value}\n{fence}\n'


def base_name(checkpoint: str | None) -> str:
  """Names what a model began as, without a path of this machine."""
  if not checkpoint:
    return 'the tiny base that rlzero ships'
  name, is_hub, found = str(checkpoint).rpartition('hf://')
  if is_hub and not name:
    return found.partition('@')[0]
  return f'{_LOCAL} ({os.path.basename(os.path.abspath(checkpoint))})'


def _run(source: str) -> recorded.Run | None:
  try:
    return recorded.load(source)
  except (FileNotFoundError, NotADirectoryError):
    return None
  except ValueError:
    if os.path.exists(os.path.join(source, 'run.json')):
      raise
    return None  # a folder of another kind


def _printable(value: str) -> str:
  """Without controls, and without what turns the direction of writing."""
  return ''.join(
    c
    for c in value
    if c in '\n\t' or unicodedata.category(c) not in ('Cc', 'Cf', 'Cs', 'Co')
  )


def _front_matter(model: Model, run: recorded.Run | None, base: str) -> str:
  """YAML, in whose flow style JSON is written."""
  stage = run.info.get('stage') if run else None
  fields: dict[str, Any] = {
    'library_name': 'transformers' if model.kind == 'folder' else 'gguf',
    'pipeline_tag': 'text-generation',
    'tags': ['rlzero', *([stage] if isinstance(stage, str) else [])],
  }
  if not base.startswith((_LOCAL, 'the ')):
    fields['base_model'] = base
  lines = [f'{key}: {files.to_json(value)}' for key, value in fields.items()]
  return '\n'.join(['---', *lines, '---\n'])


def _what(model: Model, run: recorded.Run | None, base: str) -> str:
  verb = 'Trained' if run else 'Converted'
  stage = f' ({plain(run.info.get("stage", "a run"))})' if run else ''
  return (
    f'{verb} with rlzero{stage} from {plain(base)}. A model of family '
    f'{plain(model.family)} with {model.num_parameters:,} parameters, in '
    f'{plain(model.dtype)}.\n'
  )


def _figures(run: recorded.Run) -> str:
  """A table of the evaluations before and after, with their intervals."""
  about = run.after or run.before
  if not about:
    return '## Figures\n\nNothing was measured.\n'
  rows = ['| | before | after |', '|---|---|---|']
  for key, label in _SCORES:
    cells = [_score(scores, key) for scores in (run.before, run.after)]
    if any(cell != '-' for cell in cells):
      rows.append(f'| {label} | {cells[0]} | {cells[1]} |')
  said = (
    f'{plain(about.get("num_problems"))} held-out problems of split '
    f'{plain(about.get("split"))}, {plain(about.get("num_samples"))} samples '
    f'each, temperature {plain(about.get("temperature"))}, top-p '
    f'{plain(about.get("top_p"))}, at most {plain(about.get("max_len"))} '
    'tokens. Intervals are 95%, clustered by problem. One run with one seed.'
  )
  table = '\n'.join(rows)
  return f'## Figures\n\n{said}\n\n{table}\n'


def _score(scores: Mapping[str, Any], key: str) -> str:
  value = recorded.number(scores.get(key))
  if value is None:
    return '-'
  interval = scores.get(f'{key}_interval') or []
  shown = f'{value:.3f}' if value < 10 else f'{value:.0f}'
  ends = [end for end in map(recorded.number, interval) if end is not None]
  return f'{shown} [{ends[0]:.3f}, {ends[1]:.3f}]' if len(ends) == 2 else shown


def _training(run: recorded.Run, base: str) -> str:
  """A table of the settings that say what was learned from what."""
  config = run.config
  task = config.get('task')
  named = task.get('name') if isinstance(task, Mapping) else None
  seconds = recorded.number(run.info.get('wall_s'))
  steps = [row['step'] for row in run.rows if isinstance(row.get('step'), int)]
  facts = {
    'base model': base,
    'stage': run.info.get('stage'),
    'data': named or _data(config.get('data')),
    'settings of the data': _settings(task, without=('name', 'data_dir')),
    'objective': _settings(config.get('objective')),
    'optimiser': _settings(config.get('optimizer')),
    'prompts and completions a step': ' x '.join(
      str(config[key]) for key in ('num_prompts', 'group_size') if key in config
    ),
    'steps': max(steps) + 1 if steps else None,
    'seed': run.info.get('seed'),
    'hardware': run.info.get('hardware'),
    'seconds': None if seconds is None else round(seconds),
  }
  rows = [
    f'| {key} | {plain(value, 600)} |'
    for key, value in facts.items()
    if value not in (None, '', {})
  ]
  return '\n'.join(['## Training\n', '| | |', '|---|---|', *rows, ''])


def _data(data: Any) -> str | None:
  """Names of the sources of a supervised stage, without their folders."""
  found = [data] if isinstance(data, str) else data or []
  paths = [s.get('path') if isinstance(s, Mapping) else s for s in found]
  return ', '.join(os.path.basename(str(p).rstrip('/')) for p in paths) or None


def _settings(values: Any, without: tuple[str, ...] = ()) -> str:
  """Settings on one line; of a path its last part."""
  if not isinstance(values, Mapping):
    return ''
  return ', '.join(
    f'{key} = {os.path.basename(v) if _is_path(v) else v}'
    for key, v in values.items()
    if key not in without and v is not None
  )


def _is_path(value: Any) -> bool:
  return isinstance(value, str) and value.startswith(('/', '~', './', '../'))


def _example(run: recorded.Run) -> str:
  """A right completion of the last evaluation, if it has one."""
  path = os.path.join(run.workdir, recorded.EVALUATIONS, 'after.jsonl')
  if not os.path.exists(path):
    return ''
  with open(path, encoding='utf-8') as file:
    for line in file:
      row = json.loads(line)
      if row.get('correct') and isinstance(row.get('completion'), str):
        question, said = str(row.get('question', '')), row['completion']
        if len(said) > _MOST_CHARS:
          said = said[:_MOST_CHARS] + ' …'
        return (
          '## A completion\n\nThe first right one of the evaluation, written '
          f'by the model:\n\n{fenced(question)}\n{fenced(said)}'
        )
  return ''


def _again(run: recorded.Run) -> str:
  """How to run it again."""
  commit, version = run.info.get('commit'), run.info.get('version')
  stage = str(run.info.get('stage'))
  if not re.fullmatch('[a-z_]+', stage):
    stage = 'grpo'
  made = 'A commit was not recorded.'
  if commit:
    made = f'Made at commit {plain(commit)} of rlzero {plain(version)}.'
  path = os.path.join(run.workdir, 'config.gin')
  settings = ''
  if os.path.exists(path):
    with open(path, encoding='utf-8') as file:
      # Where the run lay says nothing, and names folders of its owner.
      kept = [x for x in file if not re.match(r'\S*\.Config\.workdir\s*=', x)]
    settings = (
      '\n<details><summary>config.gin</summary>\n\n'
      f'{fenced("".join(kept).strip())}\n</details>\n'
    )
  return (
    f'## Reproduce\n\n{made} With these settings in `config.gin`:\n\n'
    f'```bash\npython -m rlzero.{stage} --gin_file=config.gin '
    f'--workdir=DIR\n```\n{settings}'
  )


def _use(model: Model) -> str:
  if model.kind == 'gguf':
    return (
      '## Use\n\nA GGUF file, for llama.cpp and the programs built on it. It '
      'was read back when it was written.\n'
    )
  return (
    '## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, '
    'AutoTokenizer\n\n'
    f'name = {files.to_json(model.name)}\n'
    'model = AutoModelForCausalLM.from_pretrained(name)\n'
    'tokenizer = AutoTokenizer.from_pretrained(name)\n```\n'
  )
