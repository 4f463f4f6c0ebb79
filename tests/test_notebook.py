"""The notebook runs from its own cells, and is kept without outputs."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parent.parent
_PATH = _ROOT / 'docs' / 'tutorials' / 'quickstart.ipynb'
# Runs the cells one after the other in one namespace, as a kernel does.
_DRIVER = """
import json, sys
cells = json.load(open(sys.argv[1], encoding='utf-8'))['cells']
names = {'__name__': '__main__'}
for cell in cells:
  if cell['cell_type'] == 'code':
    exec(compile(''.join(cell['source']), cell['id'], 'exec'), names)
figure, turn = names['figure'], names['turn']
print('LINES', sum(len(ax.lines) for ax in figure.axes))
print('TURN', json.dumps([turn.prompt, turn.tokens, turn.finish]))
"""


def _cells(kind):
  notebook = json.loads(_PATH.read_text())
  return {
    cell['id']: ''.join(cell['source'])
    for cell in notebook['cells']
    if cell['cell_type'] == kind
  }


def test_the_notebook_is_plain_python_without_outputs():
  assert _PATH.stat().st_size < 30_000
  notebook = json.loads(_PATH.read_text())
  assert (notebook['nbformat'], notebook['nbformat_minor']) == (4, 5)
  ids = [cell['id'] for cell in notebook['cells']]
  assert len({*ids}) == len(ids)
  for cell in notebook['cells']:
    assert isinstance(cell['source'], list) and cell['metadata'] == {}
    if cell['cell_type'] == 'code':
      assert cell['outputs'] == [] and cell['execution_count'] is None
  for name, text in _cells('code').items():
    compile(text, name, 'exec')  # magics are no Python


def test_its_links_lead_somewhere():
  links = re.findall(r'\]\(([^)]+)\)', '\n'.join(_cells('markdown').values()))
  assert len(links) >= 5
  for link in links:
    assert (_PATH.parent / link).exists(), link


def _install(monkeypatch, source, device=''):
  """What pip is asked to install where rlzero is missing."""
  asked = []
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  monkeypatch.setattr(
    'glob.glob', lambda pattern: [device] * (pattern == device)
  )
  monkeypatch.setattr(
    'subprocess.run', lambda command, check: asked.append(command)
  )
  monkeypatch.chdir(_PATH.parent)
  text = _cells('code')['install-rlzero'].partition('import jax')[0]
  exec(text, {'SOURCE': source})
  (command,) = asked
  assert command[:3] == [sys.executable, '-m', 'pip']
  return command[-1]


@pytest.mark.parametrize(
  ('device', 'extra'),
  [('/dev/nvidia[0-9]*', '[cuda]'), ('/dev/accel*', '[tpu]'), ('', '')],
)
def test_it_installs_rlzero_where_it_is_missing(monkeypatch, device, extra):
  # PyPI's rlzero is another project, so the name alone is never asked for.
  assert _install(monkeypatch, '../..', device) == f'{_ROOT}{extra}'
  address = 'git+https://host.example/org/rlzero'
  found = _install(monkeypatch, address, device)
  assert found == f'rlzero{extra} @ {address}'


def test_it_says_where_rlzero_must_come_from(monkeypatch, tmp_path):
  with pytest.raises(SystemExit, match='set SOURCE in the first cell'):
    _install(monkeypatch, str(tmp_path))


def test_nobody_is_told_to_install_another_project():
  """The name on PyPI belongs to a library for games."""
  told = re.compile(r"""pip['", ]+install[^\n]*?[ '"]rlzero(\[\w+\])?['"\s]""")
  assert told.search("pip install 'rlzero[plan]'")
  for path in (*_ROOT.glob('rlzero/**/*.py'), *_ROOT.glob('docs/**/*.md')):
    for line in path.read_text(encoding='utf-8').splitlines(keepends=True):
      assert not told.search(line), f'{path.name}: {line}'


@pytest.mark.slow
def test_it_trains_looks_and_asks(tmp_path):
  done = subprocess.run(
    [sys.executable, '-c', _DRIVER, str(_PATH)],
    cwd=tmp_path,
    env={
      **os.environ,
      'PYTHONPATH': str(_ROOT),
      'MPLBACKEND': 'agg',
      'RLZERO_STEPS': '2',
      'RLZERO_PROBLEMS': '4',
      'RLZERO_WORKDIR': 'run',
    },
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  said = done.stdout
  lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  assert len(lines) == 2
  assert 'LINES 4' in said
  assert re.search(r'pass@1 +[\d.]+ before +[\d.]+ after', said)
  assert len(re.findall('^problem: ', said, re.MULTILINE)) == 3
  assert len(re.findall('^  before, (right|wrong): ', said, re.MULTILINE)) == 3
  prompt, tokens, finish = json.loads(said.partition('TURN ')[2])
  assert prompt == '3 5 7 make 26'
  assert tokens > 0 and finish in ('stop', 'length')
