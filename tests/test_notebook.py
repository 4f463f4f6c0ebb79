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


@pytest.mark.parametrize(
  ('device', 'package'),
  [
    ('/dev/nvidia[0-9]*', 'rlzero[cuda]'),
    ('/dev/accel*', 'rlzero[tpu]'),
    ('', 'rlzero'),
  ],
)
def test_it_installs_rlzero_where_it_is_missing(monkeypatch, device, package):
  installed = []
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  monkeypatch.setattr(
    'glob.glob', lambda pattern: [device] * (pattern == device)
  )
  monkeypatch.setattr(
    'subprocess.run', lambda command, check: installed.append(command)
  )
  text = _cells('code')['install-rlzero'].partition('import jax')[0]
  exec(text, {})
  (command,) = installed
  assert command[:3] == [sys.executable, '-m', 'pip']
  assert command[-1] == package


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
