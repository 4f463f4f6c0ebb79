"""What docs/explanation/trust.md promises of files from elsewhere."""

import ast
import pathlib
import shutil

import pytest

from rlzero import weights
from rlzero.train import folders

# Calls that run what they read, and where they may stand, with the reason.
_ALLOWED = {
  # The program of a model, inside the sandbox.
  ('rlzero/tasks/harness.py', 'exec'),
  # Between the parent and the worker that it has started.
  ('rlzero/scoring/worker.py', 'pickle.loads'),
  ('rlzero/tasks/launcher.py', 'marshal.loads'),
  # A benchmark reads the file that it has just written.
  ('rlzero/benchmarks/host_steps.py', 'pickle.load'),
}
_RUNS = {
  'eval',
  'exec',
  'os.system',
  'os.popen',
  'pickle.load',
  'pickle.loads',
  'pickle.Unpickler',
  'marshal.load',
  'marshal.loads',
  'shelve.open',
  'dill.load',
  'joblib.load',
  'torch.load',
  'yaml.load',
  'yaml.unsafe_load',
}
_SOURCES = sorted(pathlib.Path('rlzero').rglob('*.py'))


def _calls(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Call):
      yield (
        ast.unparse(node.func),
        {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords},
      )


def test_nothing_from_outside_is_run():
  found = set()
  for path in _SOURCES:
    for name, options in _calls(path):
      if name in _RUNS:
        found.add((str(path), name))
      for option in ('shell', 'allow_pickle', 'trust_remote_code'):
        assert options.get(option, 'False') == 'False', (path, name, option)
  assert found == _ALLOWED


@pytest.mark.parametrize('name', sorted(_RUNS))
def test_the_scan_sees_each_call(name, tmp_path):
  path = tmp_path / 'a.py'
  path.write_text(f'def f(x):\n  return {name}(x)\n')
  assert name in {found for found, _ in _calls(path)}


def test_templates_are_rendered_in_a_sandbox_alone():
  makers = {str(path) for path in _SOURCES if 'jinja2.' in path.read_text()}
  assert makers == {'rlzero/text/chat.py'}
  source = pathlib.Path('rlzero/text/chat.py').read_text()
  assert 'jinja2.Environment' not in source
  assert 'jinja2.Template(' not in source


@pytest.mark.parametrize(
  'name', ['config.json', 'tokenizer.json', 'tokenizer_config.json']
)
def test_size_is_checked_before_a_file_is_read(name, tmp_path):
  folder = tmp_path / 'model'
  shutil.copytree(folders.embedded('tiny_base'), folder)
  with open(folder / name, 'wb') as file:
    file.truncate(1 << 40)  # no disk is used, and no memory would do
  with pytest.raises(ValueError, match=f'{name} has {1 << 40} bytes'):
    weights.open_model(folder)
