"""What docs/explanation/trust.md promises of files from elsewhere."""

import ast
import os
import pathlib
import shutil
import subprocess
import sys

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


_WATCHED = """
import os, sys
written = set()
def note(event, args):
  if event == 'open' and isinstance(args[0], (str, bytes)):
    mode, flags = args[1] or '', args[2] or 0
    if set(mode) & set('wax+') or flags & (os.O_WRONLY | os.O_RDWR):
      written.add(os.path.abspath(os.fsdecode(args[0])))
  elif event in ('os.mkdir', 'os.rename'):
    written.add(os.path.abspath(os.fsdecode(args[event == 'os.rename'])))
sys.addaudithook(note)
from rlzero import grpo
from rlzero.runtime import config
config.main(grpo, sys.argv[1:])
print(*sorted(written), sep='\\n')
"""


@pytest.mark.slow
def test_a_run_writes_to_workdir_and_cache_alone(tmp_path):
  home, run, scratch = (tmp_path / name for name in ('home', 'run', 'scratch'))
  home.mkdir()
  scratch.mkdir()
  left_out = ('JAX_COMPILATION_CACHE_DIR', 'XDG_CACHE_HOME', 'MPLCONFIGDIR')
  environment = {k: v for k, v in os.environ.items() if k not in left_out}
  done = subprocess.run(
    [
      sys.executable,
      '-B',
      '-c',
      _WATCHED,
      f'--gin_file={os.path.abspath("configs/runs/r1_zero_tiny.gin")}',
      f'--workdir={run}',
      *'--num_prompts=1 --group_size=2 --max_len=8 --num_slots=2 --num_steps=1'
      ' --eval_every=0 --final_problems=1 --final_samples=1'
      ' --num_workers=1'.split(),
    ],
    env={
      **environment,
      'HOME': str(home),
      'TMPDIR': str(scratch),
      'PYTHONPATH': os.getcwd(),
    },
    cwd=scratch,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  written = [line for line in done.stdout.splitlines() if line.startswith('/')]
  assert any(path.startswith(f'{run}/checkpoints') for path in written)
  allowed = (str(run), str(home / '.cache'), str(scratch), '/dev/', '/proc/')
  assert [path for path in written if not path.startswith(allowed)] == []
  assert {path.name for path in home.iterdir()} <= {'.cache'}
  # What was in the scratch folder is gone with the run.
  assert list(scratch.iterdir()) == []
