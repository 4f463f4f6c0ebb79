"""What setup.py declares, against what is imported and what is installed."""

import ast
import importlib
import importlib.metadata
import pathlib
import pkgutil
import re
import sys

import pytest
from packaging import markers, requirements, utils

from rlzero import tasks

_ROOT = pathlib.Path(__file__).parent.parent
_CONSTRAINTS = _ROOT / 'launch' / 'constraints'
# Packages that only some extra installs, by the module that may import them.
_OF_EXTRAS = {
  'torch': 'rlzero/benchmarks/generation_rate.py',
  'transformers': 'rlzero/benchmarks/generation_rate.py',
}


def _declared() -> list[requirements.Requirement]:
  """The bounds in setup.py, outside and inside of extras."""
  tree = ast.parse((_ROOT / 'setup.py').read_text())
  (call,) = (
    n
    for n in ast.walk(tree)
    if isinstance(n, ast.Call) and getattr(n.func, 'attr', '') == 'setup'
  )
  values = {k.arg: k.value for k in call.keywords}
  texts = ast.literal_eval(values['install_requires'])
  for extra in ast.literal_eval(values['extras_require']).values():
    texts = texts + extra
  return [requirements.Requirement(text) for text in texts]


def _imports() -> dict[str, set[str]]:
  found: dict[str, set[str]] = {}
  for path in (_ROOT / 'rlzero').rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      names = []
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        names = [node.module]
      for name in names:
        top = name.partition('.')[0]
        if top not in sys.stdlib_module_names and top != 'rlzero':
          found.setdefault(top, set()).add(str(path.relative_to(_ROOT)))
  return found


def test_every_import_is_declared():
  packages = importlib.metadata.packages_distributions()
  declared = {utils.canonicalize_name(r.name) for r in _declared()}
  for module, files in _imports().items():
    if module in _OF_EXTRAS:
      assert files == {_OF_EXTRAS[module]}
      continue
    names = {utils.canonicalize_name(n) for n in packages[module]}
    assert names & declared, f'{sorted(files)[0]} imports {module}'


def _pinned(name: str, version: str) -> dict[str, str]:
  """Package to version, of the lines that hold for Linux and this Python."""
  environment = {
    **markers.default_environment(),
    'python_version': version,
    'python_full_version': f'{version}.9',
    'sys_platform': 'linux',
    'platform_machine': 'x86_64',
  }
  pins = {}
  for line in (_CONSTRAINTS / name).read_text().splitlines():
    one = requirements.Requirement(line)
    if one.marker is None or one.marker.evaluate(environment):
      (exact,) = one.specifier
      assert exact.operator == '=='
      pins[utils.canonicalize_name(one.name)] = exact.version
  return pins


@pytest.mark.parametrize('version', ['3.11', '3.12', '3.13'])
def test_constraints_pin_what_setup_admits(version):
  pins = _pinned(f'python{version}.txt', version)
  for one in _declared():
    if one.name in ('torch', 'transformers', 'accelerate', 'peft', 'trl'):
      continue  # for parity tests alone
    if one.name in ('trackio', 'wandb'):
      continue  # for who wants them; the tests have stand-ins
    assert one.specifier.contains(pins[utils.canonicalize_name(one.name)]), one
  assert pins['jax'] == pins['jaxlib']


def test_the_floor_is_what_setup_says():
  pins = _pinned('floor.txt', '3.11')
  for one in _declared():
    bounds = [s for s in one.specifier if s.operator == '>=']
    name = utils.canonicalize_name(one.name)
    if name in pins and bounds and not one.extras:
      # The first release that is there: 2.6.2 may have come as 2.6.2.2.
      assert re.match(re.escape(bounds[0].version) + r'\b', pins[name]), one


def _operations(pattern) -> set[str]:
  """The names of all operations in a pattern that `re` has parsed."""
  found, waiting = set(), [pattern]
  while waiting:
    item = waiting.pop()
    if hasattr(item, 'data'):
      waiting += item.data
    elif isinstance(item, (tuple, list)):
      waiting += item
    else:
      found.add(str(item))
  return found


def test_patterns_work_on_the_oldest_python():
  # Before 3.11.5 possessive repeats of groups match nothing: the programs of
  # Debian 12's Python had no fences.
  parse = re._parser.parse
  assert {'POSSESSIVE_REPEAT', 'MAX_REPEAT'} <= _operations(parse('(?:a+b)*+'))
  number = 0
  for module in pkgutil.walk_packages(tasks.__path__, f'{tasks.__name__}.'):
    for value in vars(importlib.import_module(module.name)).values():
      if isinstance(value, re.Pattern):
        number += 1
        found = _operations(parse(value.pattern, value.flags & ~re.UNICODE))
        assert not found & {'POSSESSIVE_REPEAT', 'ATOMIC_GROUP'}, value.pattern
  assert number > 50
