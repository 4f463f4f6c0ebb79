"""README and docs: every command, link, config, block and name in them holds.

Commands of stages are built with the stage's own flag parser and not run.
"""

import ast
import dataclasses
import functools
import importlib.util
import itertools
import os
import pathlib
import re
import shlex
import subprocess
import types

import pytest

from rlzero.reporting import metric_names
from rlzero.runtime import cli_help, config

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted(
  [
    ROOT / 'README.md',
    ROOT / 'CONTRIBUTING.md',
    *(ROOT / 'docs').rglob('*.md'),
  ]
)
# What a reader puts in by hand; commands are checked with these.
_PLACEHOLDERS = {'$seed': '0', 'NAME': 'sft'}
# Commands of other programs, which are not checked any further.
_FOREIGN = {
  *('gcloud', 'kubectl', 'sky', 'source', 'apt-get', 'git', 'pip', 'cd'),
  *('for', 'done', 'pre-commit', 'docker', 'curl', 'cp', 'mkdir'),
}


def _name(page: pathlib.Path) -> str:
  return str(page.relative_to(ROOT))


each_page = pytest.mark.parametrize('page', PAGES, ids=_name)


def _blocks(text: str, language: str) -> list[str]:
  """The code blocks of a language, those in lists too."""
  found = re.findall(
    rf'^( *)```{language}\n(.*?)^ *```', text, re.MULTILINE | re.DOTALL
  )
  return [
    re.sub(rf'^{indent}', '', block, flags=re.MULTILINE)
    for indent, block in found
  ]


def _prose(text: str) -> str:
  return re.sub(r'^ *```.*?^ *```', '', text, flags=re.MULTILINE | re.DOTALL)


def _commands(text: str) -> list[list[str]]:
  """Every command of a page, split as a shell would."""
  lines = []
  for block in _blocks(text, 'bash'):
    joined = re.sub(r'\\\n\s*', ' ', block)
    lines += joined.splitlines()
  spans = re.findall(r'`([^`]+)`', _prose(text))
  lines += [
    ' '.join(span.split())
    for span in spans
    if re.match(r'(python -m|python docs|bash) \S', span)
  ]
  commands = []
  for line in lines:
    for placeholder, value in _PLACEHOLDERS.items():
      line = line.replace(placeholder, value)
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r'\w+=\S*', words[0]):  # environment
      words.pop(0)
    if words:
      commands.append(words)
  return commands


@pytest.fixture(autouse=True)
def _in_root(monkeypatch):
  monkeypatch.chdir(ROOT)


@each_page
def test_commands_hold(page):
  for words in _commands(page.read_text()):
    _check_command(words)


def _check_command(words: list[str]) -> None:
  match words:
    case ['python', '-m', 'pytest', *rest]:
      _check_pytest(rest)
    case ['python', '-m', module, *flags] if module.startswith(
      'rlzero.benchmarks.'
    ):
      _check_script(pathlib.Path(*module.split('.')).with_suffix('.py'), flags)
    case ['python', '-m', module, *flags]:
      _check_stage(module, flags)
    case ['python', script, *flags]:
      _check_script(pathlib.Path(script), flags)
    case ['bash', '.ci/run']:
      assert os.path.exists('.ci/run')
    case ['bash', 'launch/local_cluster.sh', count, module, *flags]:
      assert count.isdigit(), words
      _check_stage(module, flags)
    case ['bash', script, *flags]:
      _check_script(pathlib.Path(script), flags)
    case ['tpu', *flags]:
      _check_script(pathlib.Path('launch/tpu_vm.sh'), flags)
    case ['tpu()', *_]:
      assert 'launch/tpu_vm.sh' in words
    case _:
      assert words[0] in _FOREIGN, (
        f'{shlex.join(words)!r}: no rule of tests/test_docs.py checks this.'
      )


def _check_stage(module: str, flags: list[str]) -> None:
  """Builds the Config that a command describes."""
  stage = importlib.import_module(module)
  if '--help' in flags or not flags:  # the stage's name alone
    return
  of_process = ('--distributed', '--coordinator', '--num_processes')
  flags = [flag for flag in flags if not flag.startswith(of_process)]
  if '--describe' in flags:
    assert hasattr(stage, 'describe'), module
    flags.remove('--describe')
    flags = ['--workdir=', *flags]
  # Two stages put flags of their own in front, or spell some differently.
  flags = getattr(stage, 'flags', list)(flags)
  config.build(stage, [*getattr(stage, 'DEFAULTS', ()), *flags])


def _required(stage: types.ModuleType) -> list[str]:
  return [
    field.name
    for field in dataclasses.fields(stage.Config)
    if field.default is field.default_factory is dataclasses.MISSING
  ]


def _check_script(path: pathlib.Path, flags: list[str]) -> None:
  """The program exists, and its text names every flag."""
  assert path.exists(), path
  text = path.read_text()
  for flag in itertools.takewhile(lambda word: word != '--', flags):
    name = flag.partition('=')[0]
    if name.startswith('--'):
      assert name in text or name.lstrip('-') in text, f'{path}: {flag}'
  if '--' in flags and '--dry-run' in flags:
    done = subprocess.run(
      ['bash', str(path), *flags], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def _check_pytest(words: list[str]) -> None:
  files = [word for word in words if word.startswith('tests/')]
  text = ''.join(
    pathlib.Path(file.partition('::')[0]).read_text() for file in files
  )
  if '-k' in words:
    assert words[words.index('-k') + 1] in text, words


@each_page
def test_shell_blocks_parse(page):
  for block in _blocks(page.read_text(), 'bash'):
    done = subprocess.run(
      ['bash', '-n'], input=block, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@each_page
def test_python_blocks_run(page):
  for block in _blocks(page.read_text(), 'python'):
    tree = ast.parse(block)
    if "load('DIR')" in block:  # needs a model: its imports alone
      tree.body = [
        node
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
      ]
    # Dataclasses look their module up by its name.
    exec(compile(tree, _name(page), 'exec'), {'__name__': __name__})


@each_page
def test_gin_blocks_build(page, tmp_path):
  for block in _blocks(page.read_text(), 'gin'):
    name = re.search(r'(\w+)\.Config\.', block)[1]
    stage = importlib.import_module(f'rlzero.{name}')
    path = tmp_path / 'block.gin'
    path.write_text(block)
    given = [f'--{n}=DIR' for n in _required(stage) if f'.{n} =' not in block]
    config.build(stage, [f'--gin_file={path}', *given])


@functools.cache
def _anchors(page: pathlib.Path) -> set[str]:
  """The anchors of a page's headings, as GitHub makes them."""
  found = set()
  for title in re.findall(r'^#+ (.*)$', _prose(page.read_text()), re.MULTILINE):
    title = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', title)
    slug = re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-')
    copies = (f'{slug}-{n}' for n in itertools.count(1))
    found.add(slug if slug not in found else next(copies))
  return found


def _links(page: pathlib.Path) -> list[tuple[pathlib.Path, str]]:
  links = re.findall(r'\]\(([^)\s]+)\)', _prose(page.read_text()))
  return [
    ((page.parent / path).resolve() if path else page, anchor)
    for path, _, anchor in (link.partition('#') for link in links)
    if not path.startswith(('http://', 'https://'))
  ]


@each_page
def test_links_lead_somewhere(page):
  for target, anchor in _links(page):
    assert target.exists(), target
    if anchor:
      assert anchor in _anchors(target), f'{target}#{anchor}'


def test_pictures_are_small_and_shown():
  shown = {target for page in PAGES for target, _ in _links(page)}
  for picture in (ROOT / 'docs').rglob('*.png'):
    assert picture.stat().st_size < 150_000, picture
    assert picture in shown, picture


def test_every_page_is_linked():
  linked = {target for page in PAGES for target, _ in _links(page)}
  parts = {ROOT / 'docs/reference/config_head.md'}  # of a generated page
  assert {page for page in PAGES if page not in linked} - parts <= {
    ROOT / 'README.md'
  }


@each_page
def test_files_that_are_named_exist(page):
  text = page.read_text()
  for pattern in re.findall(
    r'\b((?:configs|rlzero|tests|launch|docs)/[\w./*{},-]+\w[}\w]*)', text
  ):
    if re.search(r'\b(NAME|FILE)\b', pattern):
      continue
    for path in _braces(pattern):
      assert [*ROOT.glob(path)], f'{_name(page)} names {path}'


def _braces(pattern: str) -> list[str]:
  found = re.search(r'\{([\w,]+)\}', pattern)
  if not found or ',' not in found[1]:
    return [pattern]
  return [pattern.replace(found[0], part) for part in found[1].split(',')]


@functools.cache
def _generator():
  path = ROOT / 'docs/reference/generate.py'
  spec = importlib.util.spec_from_file_location('generate_reference', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize(
  'name', ['cli.md', 'config.md', 'metrics.md', 'objectives.md']
)
def test_reference_is_what_the_code_says(name):
  page = ROOT / 'docs/reference' / name
  assert page.read_text() == _generator().pages()[name], (
    f'docs/reference/{name} is not what the code says; write it again with: '
    'python docs/reference/generate.py'
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Commented:
  # A comment of
  # two lines.
  first: int = 1
  second: int = 2  # beside


def test_a_comment_of_several_lines_is_shown_whole():
  stage = types.ModuleType('rlzero.commented')
  stage.Config = _Commented
  comments = [setting.comment for setting in cli_help.list_settings(stage)]
  assert comments == ['A comment of two lines.', 'beside']


def _logged_names() -> set[str]:
  """Literals in the code that look like a metric of metrics.jsonl."""
  groups = '|'.join(
    {key.partition('/')[0] for key in metric_names.METRICS} - {'{task}', 'step'}
  )
  return {
    name
    for path in _package()
    for name in re.findall(rf"'((?:{groups})/[\w@{{}}.]+)'", path.read_text())
  }


def _package() -> list[pathlib.Path]:
  """The modules that may log; not the list of metrics itself."""
  return [
    path
    for path in (ROOT / 'rlzero').rglob('*.py')
    if path.name != 'metric_names.py' and path.parent.name != 'benchmarks'
  ]


def test_every_metric_is_documented():
  for name in _logged_names():
    if name.startswith('policy/old_'):  # renamed before they are written
      continue
    # `time/{part}_s`: any of its members.
    pattern = re.sub(r'\\\{.*?\\\}', '.+', re.escape(name))
    assert any(re.match(pattern, key) for key in metric_names.METRICS), (
      f'{name!r} is not in rlzero/reporting/metric_names.py; add its unit and '
      'meaning.'
    )


def test_every_documented_metric_is_logged():
  code = '\n'.join(
    path.read_text()
    for path in _package()
    if path.parent.name != 'reporting'  # which reads them
  )
  for key in metric_names.METRICS:
    if f"'{key}'" in code:
      continue
    # Made of parts, such as f'time/{part}_s' and 'rollout'.
    words = re.findall(r'[a-z]+', re.sub(r'\{\w+\}', '', key))
    assert all(
      re.search(rf"['}}/]{word}|[{{_]{word}", code)
      for word in words
      if word != 's'
    ), f'{key} is logged nowhere; remove it from metric_names.py.'


def test_names_of_a_kind_are_found():
  assert metric_names.find('eval/cons@16') == 'eval/cons@{k}'
  assert metric_names.find('reward/steps_mean') == 'reward/{score}'
  assert metric_names.find('gsm8k/len_mean') == '{task}/len_mean'
  assert metric_names.find('policy/entropy') == 'policy/entropy'
  assert metric_names.find('policy/unheard_of') is None


def test_the_environment_is_activated_once():
  said = [
    line
    for page in PAGES
    for line in page.read_text().splitlines()
    if '.venv/bin/activate' in line
  ]
  assert len(said) == 1, said
  assert len((ROOT / 'README.md').read_text().splitlines()) <= 110


def test_stage_names_are_complete():
  readme = (ROOT / 'docs/reference/cli.md').read_text()
  for name in _generator().stages():
    assert f'python -m rlzero.{name}' in readme
