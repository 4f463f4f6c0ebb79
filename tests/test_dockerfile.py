"""The image, as far as it can be checked without docker."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import yaml

_ROOT = pathlib.Path(__file__).parent.parent
_EXTRAS = {'cpu': '', 'cuda': '[cuda]', 'tpu': '[tpu]'}


def _instructions():
  """Instructions and their arguments, lines joined."""
  text = (_ROOT / 'Dockerfile').read_text()
  text = re.sub(r'^\s*#.*\n', '', text, flags=re.MULTILINE)
  lines = re.sub(r'\\\n', ' ', text).splitlines()
  return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def _arguments(name):
  return [rest for instruction, rest in _instructions() if instruction == name]


def _ignored(path):
  """Whether .dockerignore keeps a path out of the image."""
  for pattern in (_ROOT / '.dockerignore').read_text().split():
    anywhere = pattern.startswith('**/')
    name = re.escape(pattern.removeprefix('**/')).replace(r'\*', '[^/]*')
    start = '(.*/)?' if anywhere else ''
    if re.fullmatch(f'{start}{name}(/.*)?', path):
      return True
  return False


def _tracked():
  done = subprocess.run(
    ['git', 'ls-files', '-co', '--exclude-standard'],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  return [name for name in done.stdout.splitlines() if (_ROOT / name).is_file()]


def _pip():
  """The command that installs the packages."""
  (command,) = (c for c in _arguments('RUN') if 'pip install' in c)
  return command


def test_only_the_repository_is_copied_and_all_of_it():
  for name in _tracked():
    assert not _ignored(name), name
  for name in (
    *('.git/config', 'data/smollm2/m.gguf', 'runs/x/journal', '.venv/bin/pip'),
    *('rlzero/rl/__pycache__/a.pyc', '__pycache__/a.pyc', 'rlzero.egg-info/x'),
  ):
    assert _ignored(name), name
  for sources in _arguments('COPY'):
    *sources, _ = sources.split()
    for source in sources:
      assert (_ROOT / source).exists() and not _ignored(source), source
  assert _arguments('COPY')[-1] == '. .'


def test_versions_are_the_tested_ones():
  (image,) = _arguments('FROM')
  version = re.fullmatch(r'python:(3\.\d+)-slim-\w+', image)[1]
  assert f' -c launch/constraints/python{version}.txt ' in _pip()
  assert (_ROOT / f'launch/constraints/python{version}.txt').exists()
  extras = (_ROOT / 'setup.py').read_text()
  for extra in filter(None, _EXTRAS.values()):
    assert f"'{extra.strip('[]')}': [" in extras


@pytest.mark.parametrize('device', [*_EXTRAS, 'gpu'])
def test_devices_are_extras(device):
  """The command, with stand-ins for Python and pip that say their words."""
  assert 'DEVICE=tpu' in _arguments('ARG')
  command = _pip().replace('.venv/bin/pip', 'echo').replace('python -m', 'true')
  done = subprocess.run(
    ['sh', '-c', command],
    env={**os.environ, 'DEVICE': device},
    capture_output=True,
    text=True,
    check=False,
  )
  if device in _EXTRAS:
    assert done.stdout.split()[-2:] == ['-e', f'.{_EXTRAS[device]}']
  else:
    assert done.returncode == 2 and 'choose cpu, cuda or tpu' in done.stderr


def test_it_runs_a_stage_and_not_as_root():
  names = [name for name, _ in _instructions()]
  assert names[-2:] == ['USER', 'CMD']
  (user,), (command,) = _arguments('USER'), _arguments('CMD')
  assert f'--uid 1000 {user}' in ' '.join(_arguments('RUN'))
  python, flag, module, *_ = json.loads(command)
  assert (python, flag) == ('python', '-m')
  assert (_ROOT / pathlib.Path(*module.split('.')).with_suffix('.py')).exists()
  for run in _arguments('RUN'):
    subprocess.run(['sh', '-n'], input=run, text=True, check=True)


def test_launchers_start_what_is_in_it():
  (where,) = _arguments('WORKDIR')
  assert 'python -m venv .venv' in _pip()
  jobset = yaml.safe_load((_ROOT / 'launch/jobset.yaml').read_text())
  (job,) = jobset['spec']['replicatedJobs']
  (container,) = job['template']['spec']['template']['spec']['containers']
  assert container['workingDir'] == where
  command = container['command']
  assert (_ROOT / command[1]).exists() and command[2] == '.venv/bin/python'
  # A TPU's devices belong to root.
  assert container['securityContext'] == {'runAsUser': 0}
  slurm = ['bash', _ROOT / 'launch/slurm.sh', '--nodes=1', '--gpus=8']
  image = ['--image=registry/rlzero:1', '--mount=/shared', '--dry-run']
  flags = ['--', '--gin_file=a.gin', '--workdir=/shared/run']
  done = subprocess.run(
    [*slurm, *image, *flags], capture_output=True, text=True, check=True
  )
  (line,) = (x for x in done.stdout.splitlines() if x.startswith('srun'))
  assert line.split()[2:6] == [
    '--container-image=registry/rlzero:1',
    '--container-mounts=/shared:/shared',
    f'--container-workdir={where}',
    '.venv/bin/python',
  ]
  for wrong in (image[:1], image[1:2]):
    done = subprocess.run(
      [*slurm, *wrong, *flags], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and '--image' in done.stderr


@pytest.mark.slow
def test_what_it_installs_runs(tmp_path):
  """Its COPY and pip commands in their order, in an empty folder."""
  where = tmp_path / 'image'
  where.mkdir()
  version = '.'.join(map(str, sys.version_info[:2]))
  plain = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  environment = {**plain, 'DEVICE': 'cpu'}
  for instruction, rest in _instructions():
    if instruction == 'COPY':
      *sources, target = rest.split()
      for source in sources:
        _copy(source, where / target)
    elif instruction == 'RUN' and rest == _pip():
      # The versions of this Python, since the image's may not be here.
      command = rest.replace('python3.12.txt', f'python{version}.txt')
      command = command.replace('python -m venv', f'{sys.executable} -m venv')
      _sh(command, where, environment)
  path = f'{where}/.venv/bin:{os.environ["PATH"]}'
  (command,) = _arguments('CMD')
  said = _sh(' '.join(json.loads(command)), where, {**plain, 'PATH': path})
  assert '--workdir' in said


def _copy(source, target):
  """Copies what git knows of a file or folder, as COPY would."""
  for name in _tracked():
    if source == '.':
      place = target / name
    elif name == source:
      place = target / pathlib.Path(name).name
    elif name.startswith(f'{source}/'):
      place = target / name.removeprefix(f'{source}/')
    else:
      continue
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(_ROOT / name, place)


def _sh(command, where, environment):
  done = subprocess.run(
    ['sh', '-c', command],
    cwd=where,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout
