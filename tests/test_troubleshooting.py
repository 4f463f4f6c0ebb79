"""Guides for the user quote messages as the code has them.

A line of a block ```text is a message of rlzero, with … for what differs from
case to case. Blocks ```console are messages of other programs.
"""

import ast
import importlib
import pathlib
import re
from collections.abc import Iterator

import pytest

from rlzero.runtime import cli_help, naming

_ROOT = pathlib.Path(__file__).parent.parent
_GUIDES = [
  _ROOT / 'docs' / 'howto' / name
  for name in ('troubleshooting.md', 'read_a_report.md')
]
_HOLE = '\0'  # what a message is filled with when it is made
# Of the system, Python, JAX and XLA.
_OF_OTHERS = {
  "ModuleNotFoundError: No module named 'rlzero'",
  'An NVIDIA GPU may be present on this machine, but a CUDA-enabled jaxlib is '
  'not installed. Falling back to cpu.',
  'Killed',
  'RESOURCE_EXHAUSTED: Out of memory',
}

each_guide = pytest.mark.parametrize('guide', _GUIDES, ids=lambda g: g.stem)


def _quoted(guide: pathlib.Path, language: str) -> list[str]:
  blocks = re.findall(
    rf'^```{language}\n(.*?)^```', guide.read_text(), re.MULTILINE | re.DOTALL
  )
  return [line for block in blocks for line in block.splitlines()]


def _literals(tree: ast.Module) -> Iterator[str]:
  """The strings of a module, but for its docstrings."""
  told = {
    id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)
  }
  for node in ast.walk(tree):
    if isinstance(node, ast.JoinedStr):
      yield ''.join(
        part.value if isinstance(part, ast.Constant) else _HOLE
        for part in node.values
      )
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
      if id(node) not in told:
        yield node.value


def _messages() -> list[str]:
  """Whatever rlzero can print: strings of the package and of its scripts."""
  found = []
  for path in (_ROOT / 'rlzero').rglob('*.py'):
    found += _literals(ast.parse(path.read_text()))
  for path in (_ROOT / 'launch').glob('*.sh'):
    text = re.sub(r'" \\\n\s*"', ' ', path.read_text())
    found += re.sub(r'\$\{?\w+\}?', _HOLE, text).split('"')
  return found


def _says(message: str, quote: str) -> bool:
  """Whether a quote's fixed parts stand in a message, in their order."""
  place = 0
  for part in quote.split('…'):
    found = message.find(part, place)
    if found < 0:
      return False
    place = found + len(part)
  return True


@pytest.fixture(scope='module')
def messages():
  return _messages()


@each_guide
def test_messages_are_those_of_the_code(guide, messages):
  quotes = _quoted(guide, 'text')
  assert len(quotes) >= 16
  for quote in quotes:
    assert max(map(len, quote.split('…'))) >= 8, f'too little to find: {quote}'
    assert any(_says(message, quote) for message in messages), (
      f'{guide.name} quotes a message that the code does not have: {quote!r}'
    )
  assert {*_quoted(guide, 'console')} <= _OF_OTHERS


def test_a_message_that_is_not_there_is_not_found(messages):
  wrong = 'The workdir … is in use by …; wait until it has started,'
  assert not any(_says(message, wrong) for message in messages)
  # Holes are holes: a quote may not fill them with words of its own.
  wrong = 'The workdir runs/a is in use by …'
  assert not any(_says(message, wrong) for message in messages)


def test_each_symptom_has_a_message_and_a_remedy():
  text = _GUIDES[0].read_text()
  symptoms = re.split(r'^### ', text, flags=re.MULTILINE)[1:]
  assert len(symptoms) >= 20
  for symptom in symptoms:
    title, _, rest = symptom.partition('\n')
    body = re.sub(r'^```.*?^```', '', rest, flags=re.MULTILINE | re.DOTALL)
    assert '```' in rest or 'There is no message' in rest, title
    assert len(body.split()) >= 12, title


def test_flags_that_are_named_exist():
  stages = [
    importlib.import_module(f'rlzero.{path.stem}')
    for path in (_ROOT / 'rlzero').glob('*.py')
    if 'config.main(' in path.read_text()
  ]
  known = {'--gin_file', '--help', '--describe'}
  for stage in stages:
    known |= {setting.flag for setting in cli_help.list_settings(stage)}
    known |= {f'--{setting.field}' for setting in cli_help.list_settings(stage)}
    known |= {f'--{name}' for name in naming.short_flags(stage.Config)}
  for guide in _GUIDES:
    for flag in re.findall(r'`(--\w[\w.]*)', guide.read_text()):
      assert flag in known or flag.startswith('--gin.'), (guide.name, flag)
