"""Every run config that the project brings builds for its stage."""

import importlib
import pathlib
import re

import pytest

from rlzero.runtime import config

_ROOT = pathlib.Path(__file__).parent.parent
_RUNS = sorted((_ROOT / 'configs' / 'runs').glob('*.gin'))


def test_the_configs_that_scripts_and_readme_name_are_there():
  named = set()
  for path in ('README.md', 'launch/quickstart.sh'):
    text = (_ROOT / path).read_text()
    named |= set(re.findall(r'configs/runs/(\w+\.gin)', text))
  assert named
  assert named <= {path.name for path in _RUNS}


@pytest.mark.parametrize('path', _RUNS, ids=lambda path: path.stem)
def test_run_config_builds(path, tmp_path, monkeypatch):
  monkeypatch.chdir(_ROOT)
  # The command in the header names the stage, and what else it must be told.
  command = re.search(
    r'python -m (rlzero\.\w+)(.*?)\n#?\n', path.read_text(), re.S
  )
  stage, rest = command.groups()
  given = re.findall(r'--(?:checkpoint|teacher|data)=\S+', rest)
  flags = [f'--gin_file={path}', f'--workdir={tmp_path}', *given]
  cfg = config.build(importlib.import_module(stage), flags)
  assert cfg.workdir == str(tmp_path)
