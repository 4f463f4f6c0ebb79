"""malloc's settings after one restart; compilations found again."""

import json
import os
import subprocess
import sys

import jax
import pytest

from rlzero.runtime import provenance, sharding
from rlzero.train import folders

_PROGRAM = """
import json, os, sys
from rlzero.runtime import lifecycle
lifecycle._SETTING = sys.argv[1]
lifecycle.reexec_with_malloc_settings()
print(json.dumps([os.getpid(), os.environ.get('GLIBC_TUNABLES'), sys.argv]))
"""


def _run(tmp_path, setting, **environment):
  path = tmp_path / 'enabled'
  path.write_text(setting)
  environment = {
    **{k: v for k, v in os.environ.items() if k != 'GLIBC_TUNABLES'},
    **environment,
  }
  command = [sys.executable, '-c', _PROGRAM, str(path), 'a flag', '']
  with subprocess.Popen(
    command, env=environment, stdout=subprocess.PIPE, text=True
  ) as process:
    pid, tunables, argv = json.loads(process.communicate(timeout=60)[0])
  assert process.returncode == 0
  assert pid == process.pid
  assert argv[2:] == ['a flag', '']
  return tunables


_KEPT = (
  'glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0'
  ':glibc.malloc.trim_threshold=1099511627776'
)


@pytest.mark.parametrize(
  ('setting', 'environment', 'expected'),
  [
    ('always [madvise] never', {}, f'glibc.malloc.hugetlb=1:{_KEPT}'),
    ('[always] madvise never', {}, _KEPT),
    ('always madvise [never]', {}, _KEPT),
    (
      'always [madvise] never',
      {'GLIBC_TUNABLES': 'glibc.malloc.perturb=0'},
      f'glibc.malloc.perturb=0:glibc.malloc.hugetlb=1:{_KEPT}',
    ),
    (
      'always [madvise] never',
      {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=0:glibc.malloc.mmap_max=9'},
      'glibc.malloc.hugetlb=0:glibc.malloc.mmap_max=9'
      ':glibc.malloc.arena_max=1:glibc.malloc.trim_threshold=1099511627776',
    ),
  ],
)
def test_restarts_where_it_helps(tmp_path, setting, environment, expected):
  if sys.platform != 'linux':
    pytest.skip('glibc is asked on Linux alone')
  assert _run(tmp_path, setting, **environment) == expected


_COMPILES = """
import jax
from rlzero.runtime import lifecycle
lifecycle.enable_compilation_cache()
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
hits = []
jax.monitoring.register_event_listener(
  lambda event, **_: hits.append(event.endswith('cache_hits'))
)
print(jax.jit(lambda x: x * 3 + 1)(2.0), sum(hits))
"""


def test_compilations_are_kept(tmp_path):
  environment = {**os.environ, 'XDG_CACHE_HOME': str(tmp_path)}
  environment.pop('JAX_COMPILATION_CACHE_DIR', None)
  first, second = (
    subprocess.run(
      [sys.executable, '-c', _COMPILES],
      env=environment,
      capture_output=True,
      text=True,
      check=True,
    ).stdout.split()
    for _ in range(2)
  )
  assert first == ['7.0', '0']
  assert second[0] == '7.0' and int(second[1]) > 0
  assert any((tmp_path / 'rlzero' / 'xla').iterdir())


@pytest.mark.parametrize(
  ('switch', 'value'),
  [
    ('jax_enable_x64', True),
    ('jax_default_prng_impl', 'rbg'),
    ('jax_threefry_partitionable', False),
  ],
)
def test_switches_of_jax_that_change_numbers_are_refused(switch, value):
  before = getattr(jax.config, switch)
  jax.config.update(switch, value)
  try:
    with pytest.raises(ValueError, match=f'{switch.upper()} is .*unset it'):
      folders.load_model(folders.embedded('tiny_base'))
  finally:
    jax.config.update(switch, before)


def test_a_machine_without_the_device_is_told_so(monkeypatch):
  def none():
    raise RuntimeError("Unable to initialize backend 'tpu': none.\nMore.")

  monkeypatch.setattr(jax, 'devices', none)
  with pytest.raises(ValueError, match=r"\(Unable .* 'tpu': none\); set JAX_"):
    with sharding.use(sharding.Mesh()):
      pass


def test_closed_streams_do_not_become_files(tmp_path):
  code = (
    'import sys; from rlzero.runtime import lifecycle; '
    'lifecycle.open_closed_streams(); '
    f'file = open({str(tmp_path / "file")!r}, "w"); '
    'print("said"); sys.stdout.flush(); '
    'assert sys.stdout is not None and file.fileno() > 2'
  )
  done = subprocess.run(
    ['bash', '-c', '"$0" -c "$1" >&- 2>&-', sys.executable, code],
    env={**os.environ, 'PYTHONPATH': os.getcwd()},
    check=False,
  )
  assert done.returncode == 0
  assert (tmp_path / 'file').read_text() == ''


def test_without_git_there_is_no_commit(monkeypatch):
  monkeypatch.setenv('PATH', '/nowhere')
  assert provenance.commit() is None
