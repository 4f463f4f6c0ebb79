"""rlzero from a wheel, in an environment that has nothing of this checkout."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
import yaml

import rlzero
from rlzero import grpo
from rlzero.runtime import config
from rlzero.runtime.naming import UserError

_ROOT = pathlib.Path(__file__).parent.parent
_TINY = '--gin_file=configs/runs/r1_zero_tiny.gin'


def test_configs_are_found_from_any_folder(tmp_path, monkeypatch):
  here = config.build(grpo, [_TINY, '--workdir=x'])
  monkeypatch.chdir(tmp_path)
  assert config.build(grpo, [_TINY, '--workdir=x']) == here
  # What lies in the current folder comes first, and may include the others.
  mine = tmp_path / 'configs' / 'runs' / 'r1_zero_tiny.gin'
  mine.parent.mkdir(parents=True)
  mine.write_text(
    'from __gin__ import dynamic_registration\n'
    "include 'configs/objectives/dapo.gin'\n"
    'from rlzero import grpo\n'
    'grpo.Config.num_prompts = 7\n'
  )
  found = config.build(grpo, [_TINY, '--workdir=x'])
  assert found.num_prompts == 7 and found.objective != here.objective
  with pytest.raises(UserError, match='those of rlzero begin with configs/'):
    config.build(grpo, ['--gin_file=configs/none.gin', '--workdir=x'])


def test_a_release_is_made_by_a_tag_of_its_version():
  text = (_ROOT / '.github' / 'workflows' / 'release.yml').read_text()
  jobs = yaml.safe_load(text)['jobs']
  publish = jobs['publish']
  assert publish['permissions'] == {'id-token': 'write'}  # and no password
  assert publish['needs'] == 'build' and 'environment' in publish
  assert 'password' not in text and 'secrets' not in text
  (check,) = (
    step['run']
    for step in jobs['build']['steps']
    if 'tag' in step.get('run', '')
  )
  for tag, status in ((f'v{rlzero.__version__}', 0), ('v0.0.1', 1)):
    done = subprocess.run(
      ['bash', '-euc', check],
      cwd=_ROOT,
      env={**os.environ, 'GITHUB_REF_NAME': tag},
      capture_output=True,
      check=False,
    )
    assert done.returncode == status, done.stderr


def _run(*command, cwd=None):
  plain = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  done = subprocess.run(
    list(map(str, command)),
    cwd=cwd,
    env=plain,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout


def _sdist(folder):
  """The archive that `python -m build` makes first; a wheel comes of it."""
  source = folder / 'source'
  kept = _run('git', 'ls-files', '-co', '--exclude-standard', cwd=_ROOT)
  for name in kept.splitlines():
    if (_ROOT / name).is_file():
      (source / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(_ROOT / name, source / name)
  made = _run(
    sys.executable,
    '-c',
    'from setuptools import build_meta; print(build_meta.build_sdist("dist"))',
    cwd=source,
  )
  return source / 'dist' / made.split()[-1]


@pytest.mark.slow
def test_a_wheel_runs_from_an_empty_environment(tmp_path):
  pytest.importorskip('setuptools')
  sdist = _sdist(tmp_path)
  _run(
    *(sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps'),
    *('--wheel-dir', tmp_path, sdist),
  )
  (wheel,) = tmp_path.glob('rlzero-*.whl')
  with zipfile.ZipFile(wheel) as archive:
    names = set(archive.namelist())
  for folder, prefix in (('configs', 'rlzero/configs'), ('rlzero', 'rlzero')):
    tracked = _run('git', 'ls-files', folder, cwd=_ROOT).splitlines()
    wanted = {prefix + name.removeprefix(folder) for name in tracked}
    assert not {n for n in wanted - names if (_ROOT / n).exists()}, folder
  assert not [n for n in names if n.startswith(('tests', 'docs'))]
  python = tmp_path / 'venv' / 'bin' / 'python'
  _run(sys.executable, '-m', 'venv', tmp_path / 'venv')
  version = '.'.join(map(str, sys.version_info[:2]))
  constraints = _ROOT / 'launch' / 'constraints' / f'python{version}.txt'
  _run(python, *'-m pip install --quiet -c'.split(), constraints, wheel)
  away = tmp_path / 'away'
  away.mkdir()
  where = _run(python, '-c', 'import rlzero; print(rlzero.__file__)', cwd=away)
  assert str(tmp_path / 'venv') in where
  said = _run(python, '-m', 'rlzero.grpo', _TINY, '--describe', cwd=away)
  assert re.search('clip', said)
  _run(
    *(python, '-m', 'rlzero.grpo', _TINY, '--workdir=run', '--num_steps=1'),
    *('--num_prompts=2', '--group_size=4', '--num_slots=8', '--max_len=16'),
    *('--final_problems=2', '--final_samples=1', '--micro_tokens=128'),
    cwd=away,
  )
  summary = json.loads((away / 'run' / 'summary.json').read_text())
  assert 0 <= summary['pass@1_after'] <= 1
