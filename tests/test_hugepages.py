"""The program restarts itself once to get large pages."""

import json
import os
import subprocess
import sys

import pytest

_PROGRAM = """
import json, os, sys
from rlzero import hugepages
hugepages._SETTING = sys.argv[1]
hugepages.restart_with()
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


@pytest.mark.parametrize(
  ('setting', 'environment', 'expected'),
  [
    ('always [madvise] never', {}, 'glibc.malloc.hugetlb=1'),
    ('[always] madvise never', {}, None),
    ('always madvise [never]', {}, None),
    (
      'always [madvise] never',
      {'GLIBC_TUNABLES': 'glibc.malloc.perturb=0'},
      'glibc.malloc.perturb=0:glibc.malloc.hugetlb=1',
    ),
    (
      'always [madvise] never',
      {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=0'},
      'glibc.malloc.hugetlb=0',
    ),
  ],
)
def test_restarts_where_it_helps(tmp_path, setting, environment, expected):
  if sys.platform != 'linux':
    pytest.skip('large pages are asked for on Linux alone')
  assert _run(tmp_path, setting, **environment) == expected
