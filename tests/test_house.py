"""The shape of the code: who imports whom, sizes, names, docstrings.

A list of exceptions in this file only shrinks: an entry that is no longer
needed fails its test, so that it is deleted.
"""

import ast
import pathlib
import re
import subprocess
from collections.abc import Iterator

import pytest

_ROOT = pathlib.Path(__file__).parent.parent
_PACKAGE = _ROOT / 'rlzero'

_FILE_LINES = 450
_FUNCTION_LINES = 80
_PATH_FILES = 8
_PATH_LINES = 2000

# folder: the folders it may import. Stages may import every folder.
_LAYERS = {
  'types': set(),
  'runtime': {'types'},
  'text': {'runtime', 'types'},
  'models': {'runtime', 'types'},
  'tasks': {'runtime', 'text'},
  'weights': {'models', 'runtime', 'text', 'types'},
  'rollout': {'models', 'runtime', 'tasks', 'text', 'types'},
}
_LAYERS['train'] = _LAYERS['rollout'] | {'rollout', 'weights'}
_LAYERS['serving'] = _LAYERS['train'] | {'train'}
_LAYERS['scoring'] = _LAYERS['rollout'] | {'rollout', 'train'}
_LAYERS['evaluation'] = _LAYERS['scoring'] | {'scoring', 'weights'}
_LAYERS['monitoring'] = {'runtime'}
_LAYERS['reporting'] = {'evaluation', 'monitoring', 'runtime', 'tasks', 'text'}
_LAYERS['costs'] = {'models', 'runtime', 'train', 'types'}
_LAYERS['rl'] = _LAYERS['evaluation'] | {'costs', 'evaluation', 'monitoring'}
_LAYERS['pipelines'] = {'runtime', 'scoring', 'text'}
_LAYERS['laboratory'] = {'evaluation', 'pipelines', 'reporting', 'runtime'}
_LAYERS['planner'] = _LAYERS['costs'] | {'costs', 'rl', 'rollout'}

# Reward workers and tools that only read text start without JAX.
_WITHOUT_JAX = (
  'rlzero.text',
  'rlzero.tasks',
  'rlzero.monitoring',
  'rlzero.reporting',
  'rlzero.scoring.reward_pool',
  'rlzero.evaluation.statistics',
  'rlzero.runtime.config',
  'rlzero.runtime.metrics',
)
# The data sets' library loads JAX; only these import it.
_WITH_JAX = ('rlzero.tasks.datasets',)

# (file, imported module): why the import waits for the call.
_LATE_IMPORTS = {
  ('benchmarks/constant_answers.py', 'reasoning_gym.factory'): 'loads slowly',
  (
    'planner/planning.py',
    'jax.experimental',
  ): 'looks for libtpu, which is an extra',
  ('runtime/lifecycle.py', 'jax'): 'stages without JAX stay without it',
  ('scoring/worker.py', 'resource'): 'not on Windows',
  ('tasks/datasets/records.py', 'tensorflow_datasets'): 'loads JAX',
  ('tasks/harness.py', '_thread'): 'the source of a program in the sandbox',
  ('tasks/harness.py', 'json'): 'the source of a program in the sandbox',
  ('tasks/harness.py', 'os'): 'the source of a program in the sandbox',
  ('tasks/harness.py', 'signal'): 'the source of a program in the sandbox',
  ('tasks/procedural.py', 'reasoning_gym.factory'): 'loads for seconds',
  ('tasks/verify.py', 'rlzero.tasks.formulas'): 'loads SymPy, for seconds',
}


def _modules() -> dict[str, pathlib.Path]:
  found = {}
  for path in sorted(_PACKAGE.rglob('*.py')):
    name = '.'.join(path.relative_to(_ROOT).with_suffix('').parts)
    found[name.removesuffix('.__init__')] = path
  return found


MODULES = _modules()
TREES = {name: ast.parse(p.read_text()) for name, p in MODULES.items()}
STAGES = {
  name
  for name, path in MODULES.items()
  if path.parent == _PACKAGE and path.stem not in ('__init__', 'types')
}


def _inside(path: pathlib.Path) -> str:
  return str(path.relative_to(_PACKAGE))


def _targets(node: ast.stmt) -> list[str]:
  """Full names of the modules that an import statement imports."""
  if isinstance(node, ast.Import):
    return [alias.name for alias in node.names]
  if not isinstance(node, ast.ImportFrom):
    return []
  module = node.module or ''
  whole = [f'{module}.{alias.name}' for alias in node.names]
  return [name if name in MODULES else module for name in whole]


def _late_imports(tree: ast.Module) -> Iterator[str]:
  """Modules that are imported inside a function."""
  for function in ast.walk(tree):
    if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
      for node in ast.walk(function):
        if isinstance(node, ast.stmt):
          yield from _targets(node)


def _main_guard(node: ast.stmt) -> bool:
  """Whether the statement is `if __name__ == '__main__':`.

  A stage imports itself there, since gin names it by its package.
  """
  return isinstance(node, ast.If) and '__name__' in ast.unparse(node.test)


def _imports(name: str) -> set[str]:
  """The modules that one of ours imports, at its top or in a function."""
  body = [n for n in TREES[name].body if not _main_guard(n)]
  return {
    target
    for statement in body
    for node in ast.walk(statement)
    if isinstance(node, ast.stmt)
    for target in _targets(node)
  } - {name}


GRAPH = {name: _imports(name) for name in MODULES}


def _folder(name: str) -> str:
  return name.split('.')[1] if '.' in name else ''


def test_folders_import_only_what_lies_below_them():
  wrong = []
  for name, imported in GRAPH.items():
    folder = _folder(name)
    if name in STAGES or folder in ('', 'benchmarks'):
      continue
    assert folder in _LAYERS, f'the new folder {folder} needs a row in _LAYERS'
    for other in imported & MODULES.keys() - STAGES:
      if _folder(other) not in _LAYERS[folder] | {folder, ''}:
        wrong.append(f'{name} imports {other}')
  assert not wrong, '\n'.join(wrong)


def test_only_bench_imports_benchmarks():
  wrong = [
    f'{name} imports {other}'
    for name, imported in GRAPH.items()
    for other in imported
    if _folder(other) == 'benchmarks'
    if _folder(name) not in ('bench', 'benchmarks')
  ]
  assert not wrong, '\n'.join(wrong)


def test_no_stage_is_imported():
  wrong = [
    f'{name} imports {other}'
    for name, imported in GRAPH.items()
    for other in imported & STAGES
    if _folder(name) != 'benchmarks'
  ]
  assert not wrong, '\n'.join(wrong)


def test_no_module_imports_itself_through_others():
  done: set[str] = set()

  def visit(name: str, path: list[str]) -> None:
    assert name not in path, ' -> '.join([*path[path.index(name) :], name])
    if name not in done:
      for other in sorted(GRAPH[name] & MODULES.keys()):
        visit(other, [*path, name])
      done.add(name)

  for name in MODULES:
    visit(name, [])


def test_imports_stand_at_the_top():
  found = {
    (_inside(MODULES[name]), target)
    for name, tree in TREES.items()
    for target in _late_imports(tree)
  }
  assert found == set(_LATE_IMPORTS)


def _loaded(name: str) -> dict[str, str]:
  """Modules loaded with one of ours: the name of each, and who imports it."""
  loaded = {name: ''}
  ahead = [name]
  while ahead:
    here = ahead.pop()
    late = set(_late_imports(TREES[here]))
    for other in sorted(GRAPH[here] - late):
      # A package is loaded before its modules.
      for part in (other, other.rpartition('.')[0]):
        if part and part not in loaded:
          loaded[part] = here
          if part in MODULES:
            ahead.append(part)
  return loaded


def test_text_tasks_and_reward_workers_load_no_jax():
  checked = [
    name
    for name in MODULES
    if f'{name}.'.startswith(tuple(f'{start}.' for start in _WITHOUT_JAX))
    and not f'{name}.'.startswith(tuple(f'{start}.' for start in _WITH_JAX))
  ]
  assert len(checked) > 20
  for name in checked:
    loaded = _loaded(name)
    for other, by in loaded.items():
      top = other.partition('.')[0]
      assert top not in ('jax', 'flax', 'optax', 'tensorflow_datasets'), (
        f'{name} loads {other}, which {by} imports'
      )


def test_files_are_short():
  long = {
    _inside(path)
    for path in MODULES.values()
    if len(path.read_text().splitlines()) > _FILE_LINES
  }
  assert not long, f'at most {_FILE_LINES} lines'


def _functions() -> Iterator[tuple[str, ast.FunctionDef]]:
  """Functions and methods by address, 'folder/file.py:Class.name'.

  A function inside a function counts as lines of the outer one.
  """

  def below(node: ast.AST, prefix: str) -> Iterator:
    for child in ast.iter_child_nodes(node):
      if isinstance(child, ast.FunctionDef):
        yield f'{prefix}{child.name}', child
      elif isinstance(child, ast.ClassDef):
        yield from below(child, f'{prefix}{child.name}.')

  for name, tree in TREES.items():
    for address, function in below(tree, ''):
      yield f'{_inside(MODULES[name])}:{address}', function


def _lines(function: ast.FunctionDef) -> int:
  return (function.end_lineno or 0) - function.lineno + 1


def test_functions_are_short():
  long = {name for name, node in _functions() if _lines(node) > _FUNCTION_LINES}
  assert not long, f'at most {_FUNCTION_LINES} lines'


def _step_in_readme() -> str:
  """README's section 'A GRPO step by hand'."""
  text = (_ROOT / 'README.md').read_text()
  return text.partition('## A GRPO step by hand')[2].partition('\n## ')[0]


def _reading_path() -> list[str]:
  """The files in the section's table."""
  section = _step_in_readme()
  rows = [line for line in section.splitlines() if line.startswith('|')]
  return re.findall(r'`(\w+/\w+\.py)`', '\n'.join(rows))


def test_a_grpo_step_is_read_in_an_evening():
  files = _reading_path()
  assert 'rl/collect.py' in files and 'rollout/scheduler.py' in files
  assert len(files) <= _PATH_FILES
  lines = {f: len((_PACKAGE / f).read_text().splitlines()) for f in files}
  assert sum(lines.values()) <= _PATH_LINES, lines


def test_the_reading_path_names_what_it_leaves_out():
  """Modules that its files import are in README's section or on its page."""
  page = (_ROOT / 'docs/explanation/grpo_step.md').read_text()
  named_there, files = _step_in_readme() + page, _reading_path()
  # They check, type or place values.
  plain = {'rlzero.types', 'rlzero.weights', 'rlzero.runtime'}
  wrong = []
  for file in files:
    name = 'rlzero.' + file.removesuffix('.py').replace('/', '.')
    for other in sorted(GRAPH[name] & MODULES.keys()):
      parts = other.split('.')
      if plain & {'.'.join(parts[:2])}:
        continue
      named = {'/'.join(parts[1:]) + '.py'}
      named |= {'/'.join(parts[1:n]) for n in range(2, len(parts))}
      if not any(f'`{one}`' in named_there for one in named):
        wrong.append(f'{file} imports {other}')
  assert not wrong, '\n'.join(wrong)


def _others(tree: ast.Module) -> set[str]:
  """Names that imports bind to modules that are not ours."""
  found = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import | ast.ImportFrom):
      if not (getattr(node, 'module', '') or '').startswith('rlzero'):
        found |= {(a.asname or a.name).partition('.')[0] for a in node.names}
  return found


def test_no_private_name_is_used_by_another_module():
  # A named tuple's own methods are public, in spite of their names.
  public = {'_replace', '_asdict', '_fields', '_make'}
  wrong = []
  for name, tree in TREES.items():
    own = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    own |= {
      n.attr
      for n in ast.walk(tree)
      if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)
    }
    own |= public
    for node in ast.walk(tree):
      if isinstance(node, ast.ImportFrom):
        if (node.module or '').startswith('rlzero'):
          names = [alias.name for alias in node.names]
          wrong += [f'{name}: {n}' for n in names if n.startswith('_')]
      elif isinstance(node, ast.Attribute) and re.match('_[^_]', node.attr):
        root = ast.unparse(node.value).partition('.')[0]
        if root not in {'self', 'cls'} | _others(tree):
          if node.attr not in own:
            wrong.append(f'{name}: {ast.unparse(node)}')
  assert not wrong, '\n'.join(wrong)


def _documented() -> Iterator[tuple[str, str | None]]:
  for name, tree in TREES.items():
    for node in ast.walk(tree):
      if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
        address = f'{_inside(MODULES[name])}:{getattr(node, "name", "")}'
        yield address, ast.get_docstring(node)


def test_docstrings_say_what_a_thing_is_or_does():
  wrong = [
    f'{address}: {text.splitlines()[0]}'
    for address, text in _documented()
    if text and re.match(r'(Of|What)\b', text)
  ]
  assert not wrong, '\n'.join(wrong)


def _public(address: str) -> bool:
  names = address.partition(':')[2].split('.')
  return not any(n.startswith('_') and n != '__init__' for n in names)


def test_every_public_module_class_and_function_has_a_docstring():
  wrong = [name for name, tree in TREES.items() if not ast.get_docstring(tree)]
  for name, tree in TREES.items():
    for node in tree.body:
      if isinstance(node, ast.ClassDef | ast.FunctionDef):
        # The docstring of a program is its module's.
        if not node.name.startswith('_') and node.name != 'main':
          if not ast.get_docstring(node):
            wrong.append(f'{name}.{node.name}')
  assert not wrong, '\n'.join(wrong)


def _unannotated(function: ast.FunctionDef, method: bool) -> list[str]:
  arguments = function.args
  named = arguments.posonlyargs + arguments.args
  if method and 'staticmethod' not in map(ast.unparse, function.decorator_list):
    named = named[1:]
  named += arguments.kwonlyargs
  named += [a for a in (arguments.vararg, arguments.kwarg) if a]
  missing = [a.arg for a in named if a.annotation is None]
  if function.returns is None and function.name != '__init__':
    missing.append('return')
  return missing


def test_every_public_function_is_annotated():
  # setup and __call__ are how Flax says __init__ and apply.
  wrong = []
  for address, function in _functions():
    if _public(address) or function.name == '__call__':
      method = '.' in address.partition(':')[2]
      if missing := _unannotated(function, method):
        wrong.append(f'{address}: {", ".join(missing)}')
  assert not wrong, '\n'.join(wrong)


def _tracked() -> list[str]:
  listed = subprocess.run(
    ['git', 'ls-files'], cwd=_ROOT, capture_output=True, text=True
  )
  if listed.returncode:
    pytest.skip('no git checkout')
  return listed.stdout.splitlines()


def test_the_top_folder_holds_what_a_project_needs():
  top = {path.partition('/')[0] for path in _tracked()}
  assert top == {
    *('.ci', '.dockerignore', '.github', '.gitignore'),
    *('.pre-commit-config.yaml', 'CHANGELOG.md', 'Dockerfile', 'LICENSE'),
    *('README.md', 'configs', 'docs', 'launch', 'pyproject.toml'),
    *('rlzero', 'setup.py', 'tests'),
  } | (top & {'CONTRIBUTING.md'})


def test_no_file_names_a_folder_of_one_machine():
  wrong = []
  for path in _tracked():
    file = _ROOT / path
    if path.startswith('tests/'):
      continue  # they name folders that a program may not see
    if file.suffix in ('.py', '.md', '.gin', '.sh', '.toml', '.yml', '.yaml'):
      for found in re.finditer(
        r'(?<![\w./])/(work|root)/\S*', file.read_text()
      ):
        wrong.append(f'{path}: {found[0]}')
  assert not wrong, '\n'.join(wrong)


def test_no_test_imports_a_test():
  for path in (_ROOT / 'tests').glob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.stmt):
        for target in _targets(node):
          assert not target.startswith('test_'), f'{path.name}: {target}'


# Fixtures, and names that several tests use.
_SHARED = {'conftest', 'helpers'}


def test_the_folder_of_tests_holds_tests_alone():
  names = {path.stem for path in (_ROOT / 'tests').glob('*.py')}
  assert not {n for n in names if not n.startswith('test_')} - _SHARED


def test_every_name_that_a_package_lists_is_there():
  for name, tree in TREES.items():
    bound = {
      alias.asname or alias.name
      for node in tree.body
      if isinstance(node, ast.ImportFrom)
      for alias in node.names
    } | {getattr(node, 'name', '') for node in tree.body}
    for node in tree.body:
      if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == (
        '__all__'
      ):
        missing = set(ast.literal_eval(node.value)) - bound
        assert not missing, f'{name}: {sorted(missing)}'
