"""Untrusted commands: every mechanism against every way out.

A way out prints 'escaped', or leaves `{mark}` on the disk, if it works. Those
that do no harm are also run without a sandbox, where they must work: else the
line would hold whatever the sandbox did.
"""

import os
import platform
import socket
import threading
import time

import pytest

from rlzero.tasks import isolation

_LIMITS = isolation.Limits(
  wall_s=3, memory=1 << 29, output=1 << 20, scratch=8 << 20, file_size=4 << 20
)
# Ways that work without a sandbox.
_WAYS = {
  'pidfd_send_signal': """
import os, signal
signal.pidfd_send_signal(os.pidfd_open({pid}), 0)
print('escaped')""",
  'kill': "import os; os.kill({pid}, 0); print('escaped')",
  'ctypes.pythonapi': """
import ctypes
ctypes.pythonapi.system(b'touch {mark}')""",
  'own kernel call': """
import ctypes
if ctypes.CDLL(None).syscall(57) >= 0: print('escaped', flush=True)""",
  '_posixsubprocess': """
import _posixsubprocess, os
r, w = os.pipe()
p = _posixsubprocess.fork_exec([b'/bin/touch', b'{mark}'], [b'/bin/touch'],
  True, (), None, None, -1, -1, -1, -1, -1, -1, r, w, True, False, -1, None,
  None, None, -1, None, True)
os.waitpid(p, 0)""",
  'subprocess': """
import subprocess
print(subprocess.check_output(['/bin/echo', 'escaped']).decode())""",
  'fork': "import os; os.fork(); print('escaped')",
  'orphan': """
import os, time
if os.fork() == 0:
  os.setsid()
  if os.fork() == 0:
    time.sleep(1)
    os.mkdir('{mark}')
  os._exit(0)
os.wait()  # else it may end with the group, before it has its own session""",
  'open to write': "open('{mark}', 'w')",
  'sqlite3': """
import sqlite3
c = sqlite3.connect('{mark}')
c.execute('create table t(a)')
c.commit()""",
  'mknod': "import os; os.mknod('{mark}')",
  'mkdir': "import os; os.mkdir('{mark}')",
  'symlink': "import os; os.symlink('/', '{mark}')",
  'link': "import os; os.link('{secret}', '{mark}')",
  'rename': "import os; os.rename('{secret}', '{mark}')",
  'truncate': "import os; os.truncate('{secret}', 0); print('escaped')",
  'remove': "import os; os.remove('{secret}'); print('escaped')",
  'chmod': "import os; os.chmod('{secret}', 0o777); print('escaped')",
  'utime': "import os; os.utime('{secret}', (0, 0)); print('escaped')",
  'read a file': "print(open('{secret}').read())",
  'read through a link': """
import os
os.symlink('{secret}', 'out')
print(open('out').read())""",
  'list a folder': """
import os
if os.listdir(os.path.dirname('{secret}')): print('escaped')""",
  'list the home': """
import os
if os.listdir('{home}'): print('escaped')""",
  'read a system file': "open('/etc/passwd'); print('escaped')",
  'run from /tmp': "open('/tmp/{pid}.mark', 'w'); print('escaped')",
  '/dev/shm': "open('/dev/shm/{pid}.mark', 'w'); print('escaped')",
  '/proc/PID/mem': "open('/proc/{pid}/mem', 'rb'); print('escaped')",
  '/proc/PID/environ': """
if open('/proc/{pid}/environ', 'rb').read(): print('escaped')""",
  '/proc/self/fd': "import os; os.listdir('/proc/self/fd'); print('escaped')",
  'ptrace': """
import ctypes
if ctypes.CDLL(None).ptrace(0x4206, {pid}, 0, 0) == 0: print('escaped')""",
  'prlimit': """
import resource
resource.prlimit({pid}, resource.RLIMIT_NOFILE)
print('escaped')""",
  'setpriority': """
import os
os.setpriority(os.PRIO_PROCESS, {pid}, os.getpriority(os.PRIO_PROCESS, {pid}))
print('escaped')""",
  'setaffinity': """
import os
os.sched_setaffinity({pid}, os.sched_getaffinity({pid}))
print('escaped')""",
  'signal by fcntl': """
import fcntl, os
fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, {pid})
print('escaped')""",
  'death signal': """
import ctypes
if ctypes.CDLL(None).prctl(1, 0) == 0: print('escaped')""",
  'TCP to the host': """
import socket
socket.create_connection(('127.0.0.1', {port}))
print('escaped')""",
  'abstract socket': """
import socket
socket.socket(socket.AF_UNIX).connect(chr(0) + '{abstract}')
print('escaped')""",
  'socketpair': "import socket; socket.socketpair(); print('escaped')",
  'memfd': """
import os
os.memfd_create('x')
print('escaped')""",
  'shared memory': """
import ctypes
if ctypes.CDLL(None).shmget(0, 4096, 0o1600) >= 0: print('escaped')""",
  'fallocate': """
import ctypes, os
f = os.open('f', os.O_CREAT | os.O_WRONLY)
if ctypes.CDLL(None).fallocate(f, 1, 0, 1 << 20) == 0: print('escaped')""",
}
# Ways that would harm this machine without a sandbox, or have no meaning.
_HARMFUL = {
  'fork bomb': """
import os
while True:
  try: os.fork()
  except OSError: pass""",
  'orphan of ctypes': """
import ctypes, os, time
if ctypes.pythonapi.fork() == 0:
  time.sleep(1)
  ctypes.pythonapi.system(b'touch {mark}')
  os._exit(0)""",
  'kill everything': "import os; os.kill(-1, 9); print('escaped')",
  'user namespace': """
import ctypes
if ctypes.CDLL(None).unshare(0x10000000) == 0: print('escaped')""",
  'mount': """
import ctypes
if ctypes.CDLL(None).mount(b'x', b'/scratch', b'tmpfs', 0, 0) == 0:
  print('escaped')""",
  'root': "import os; os.setuid(0); os.chroot('/'); print('escaped')",
  'root files': """
for name in ('{home}/x', '/usr/lib/x', '/files/x', '/x', '/dev/x', '/etc/x'):
  try: open(name, 'w')
  except OSError: pass
  else: print('escaped')""",
  'more memory': """
import resource
for name in ('AS', 'CPU', 'NOFILE', 'FSIZE', 'NPROC'):
  try: resource.setrlimit(getattr(resource, 'RLIMIT_' + name), (-1, -1))
  except (ValueError, OSError): pass
  else: print('escaped')""",
  'environment': """
import os
if any('secret' in v for v in os.environ.values()): print('escaped')""",
  'inherited descriptors': """
import os
for number in range(3, 70):
  try: os.fstat(number)
  except OSError: continue
  print('escaped', number)""",
  'verdict to descriptors': """
import os
for number in range(3, 70):
  try: os.write(number, b'rescaped')
  except OSError: pass
  else: print('escaped')""",
  'closed descriptors': """
import os, sys
os.closerange(0, 70)
os._exit(3)""",
  'huge file': """
with open('f', 'wb') as file:
  for i in range(64): file.write(bytes(1 << 20)); file.flush()
print('escaped')""",
  'full scratch': """
for i in range(64):
  with open(str(i), 'wb') as file: file.write(bytes(1 << 20))
print('escaped')""",
  'memory': "x = bytearray(8 << 30); print('escaped')",
  'memory by pieces': """
x = []
while True: x.append(bytes(1 << 20) + b'1')""",
  'memory of mmap': """
import mmap
x = [mmap.mmap(-1, 1 << 28) for i in range(64)]
print('escaped')""",
  'threads': """
import _thread, time
_thread.stack_size(1 << 15)
for i in range(1000): _thread.start_new_thread(time.sleep, (1,))
print('escaped')""",
  'listening': """
import socket
socket.socket().bind(('127.0.0.1', 0))
print('escaped')""",
  'key ring': """
import ctypes
for number in (248, 249, 250):
  if ctypes.CDLL(None).syscall(number, b'user', b'a', b'b', 1, -3) >= 0:
    print('escaped')""",
}
# How a command ends that only wastes.
_WASTE = {
  'output': ("while True: print('x' * 1000000)", 'output'),
  'errors': (
    'import os\nfor i in range(1000): os.write(2, bytes(1 << 20))\nprint(1)',
    ('ok', 'time'),
  ),
  'sleep': ('import time; time.sleep(60)', 'time'),
  'loop': ('while True: pass', 'time'),
  'ignored signals': (
    'import signal\nfor n in range(1, 64):\n  try: signal.signal(n, '
    'signal.SIG_IGN)\n  except Exception: pass\nwhile True: pass',
    'time',
  ),
  'sleeping threads': (
    'import threading, time\nfor i in range(30): threading.Thread('
    'target=time.sleep, args=(60,)).start()',
    'time',
  ),
  'closed and sleeping': (
    'import os, time\nos.closerange(0, 9)\ntime.sleep(60)',
    'time',
  ),
  'memory': ('x = bytearray(8 << 30)', 'memory'),
  'input unread': ('pass', 'ok'),
  'exit': ('raise SystemExit(7)', 'crash'),
  'abort': ('import os; os.abort()', 'crash'),
}


def _python(source, **options):
  return isolation.run(
    [isolation.PYTHON, '-I', '-S', '-c', source],
    limits=options.pop('limits', _LIMITS),
    **options,
  )


@pytest.fixture(params=isolation.MECHANISMS)
def using(request):
  if why := isolation.fault(request.param):
    pytest.skip(f'{request.param} does not work here: {why}')
  return request.param


@pytest.fixture
def names(tmp_path, monkeypatch):
  """What the ways out aim at."""
  monkeypatch.setenv('RLZERO_SECRET', 'secret')
  (tmp_path / 'secret').write_text('escaped')
  abstract = f'rlzero_{os.getpid()}_{time.monotonic_ns()}'
  with (
    socket.create_server(('127.0.0.1', 0)) as server,
    socket.socket(socket.AF_UNIX) as local,
  ):
    local.bind('\0' + abstract)
    local.listen()
    yield {
      'pid': os.getpid(),
      'mark': tmp_path / 'mark',
      'secret': tmp_path / 'secret',
      'home': os.path.expanduser('~'),
      'port': server.getsockname()[1],
      'abstract': abstract,
    }


def _escapes(source, names, **options):
  result = _python(source.format(**names), **options)
  assert result.status != 'refused', result
  if 'time.sleep(1)' in source:
    time.sleep(1.5)  # for what would run on
  return b'escaped' in result.output or os.path.lexists(names['mark'])


@pytest.mark.parametrize('way', [*_WAYS, *_HARMFUL])
def test_no_way_out(way, using, names):
  assert not _escapes({**_WAYS, **_HARMFUL}[way], names, using=using)


@pytest.mark.parametrize('way', _WAYS)
def test_the_way_is_one_without_a_sandbox(way, names, monkeypatch):
  if way == 'own kernel call' and platform.machine() != 'x86_64':
    pytest.skip('its number is that of x86-64')
  monkeypatch.setattr(isolation, 'mechanism', lambda: None)
  try:
    assert _escapes(_WAYS[way], names, allow_unsandboxed=True)
  finally:
    for folder in ('/tmp', '/dev/shm'):
      if os.path.exists(path := f'{folder}/{os.getpid()}.mark'):
        os.remove(path)


@pytest.mark.parametrize('way', _WASTE)
@pytest.mark.long
def test_waste_is_bounded(way, using):
  source, wanted = _WASTE[way]
  start = time.monotonic()
  limits = isolation.Limits(wall_s=1.5, memory=1 << 29, output=1 << 20)
  result = _python(source, using=using, stdin=b'x' * (1 << 22), limits=limits)
  assert result.status in wanted, result
  assert len(result.output) <= 1 << 20
  assert len(result.reason) <= 5000
  assert time.monotonic() - start < 12


def test_nothing_of_it_lives_on(using):
  source = (
    'import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n'
    'time.sleep(54321)'
  )
  limits = isolation.Limits(wall_s=0.5)
  assert _python(source, using=using, limits=limits).status == 'time'
  time.sleep(0.3)
  left = []
  for name in filter(str.isdigit, os.listdir('/proc')):
    try:
      with open(f'/proc/{name}/cmdline', 'rb') as file:
        left += [name] if b'sleep(54321)' in file.read() else []
    except OSError:
      pass
  assert not left


def test_files_standard_input_and_folders(using):
  source = (
    'import os, sys\nprint(open(sys.argv[1]).read(), sys.stdin.read(), '
    'os.listdir("."))'
  )
  result = isolation.run(
    [isolation.PYTHON, '-I', '-S', '-c', source, 'note'],
    b'given',
    files={'note': b'content'},
    using=using,
  )
  assert result == ('ok', b'content given []\n', '')


def test_threads_may_run_at_a_time(using):
  sources = [f'print({i})' for i in range(4)]
  found = [None] * 4

  def one(index):
    found[index] = _python(sources[index], using=using).output

  threads = [threading.Thread(target=one, args=(i,)) for i in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert found == [b'%d\n' % i for i in range(4)]


def test_refused_without_a_mechanism(monkeypatch):
  monkeypatch.setattr(isolation, 'mechanism', lambda: None)
  monkeypatch.setattr(isolation, 'fault', lambda name: f'no {name}')
  result = _python('print(1)')
  assert result.status == 'refused'
  assert 'no bubblewrap' in result.reason
  assert 'apt-get install bubblewrap' in result.reason
  with pytest.raises(RuntimeError, match='no sandbox works here'):
    isolation.describe()
  assert 'WITHOUT a sandbox' in isolation.describe(allow_unsandboxed=True)
  assert _python('print(1)', allow_unsandboxed=True).output == b'1\n'


def test_the_first_mechanism_that_works(monkeypatch):
  monkeypatch.setattr(
    isolation, 'fault', lambda name: 'none' if name == 'bubblewrap' else ''
  )
  assert isolation.mechanism() == 'landlock'
  assert 'landlock' in isolation.describe()


def test_a_trial_that_fails_is_repeated(monkeypatch):
  working = isolation.mechanism()
  if working is None:
    pytest.skip(isolation.refusal())
  failed = isolation.Result('refused', b'', 'too busy')
  isolation.fault.cache_clear()
  with monkeypatch.context() as patch:
    patch.setattr(isolation, 'run', lambda *args, **named: failed)
    assert isolation.mechanism() is None
  assert isolation.mechanism() == working


def test_folders_of_the_killed_are_removed(tmp_path, monkeypatch):
  monkeypatch.setattr(isolation.tempfile, 'tempdir', str(tmp_path))
  isolation._remove_stale.cache_clear()
  for name in ('rlzero_sandbox_files_old', 'rlzero_sandbox_files_new', 'other'):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'program.py').touch()
  for name in ('rlzero_sandbox_files_old', 'other'):
    os.utime(tmp_path / name, (0, 0))
  # However old it looks by a clock that has jumped, whoever lives keeps it.
  with isolation._folder('live') as live:
    os.utime(live, (0, 0))
    isolation._remove_stale.cache_clear()
    isolation.run(['/bin/true'], allow_unsandboxed=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
      'other',
      'rlzero_sandbox_files_new',
      os.path.basename(live),
    ]


def test_what_is_wrong_with_limits():
  with pytest.raises(ValueError, match='Limits.wall_s is 0'):
    isolation.Limits(wall_s=0)
  with pytest.raises(ValueError, match='choose one of bubblewrap'):
    isolation.run(['/bin/true'], using='wall')
