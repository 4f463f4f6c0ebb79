"""An import holds little beside the parameters that it makes."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.model


@pytest.mark.nightly
@pytest.mark.parametrize('num_devices', [1, 8])
def test_memory_of_an_import_of_2_gb(num_devices):
  flag = f'--xla_force_host_platform_device_count={num_devices}'
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'rlzero.benchmarks.import_weights',
      f'--fsdp={num_devices}',
    ],
    env={**os.environ, 'XLA_FLAGS': flag},
    capture_output=True,
    text=True,
    check=True,
  )
  print(done.stdout)
  found = json.loads(done.stdout)
  assert 1900 < found['checkpoint_mb'] < 2000
  # The largest tensor, and pieces of it that are on their way.
  assert found['beside_parameters_mb'] < found['largest_tensor_mb'] + 150
