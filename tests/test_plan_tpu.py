"""All of DeepSeek-V3's programs compile for a slice of TPUs that it fits."""

import jax
import pytest

from rlzero import plan
from rlzero.costs import hardware
from rlzero.planner import planning
from rlzero.runtime import config, sharding

RUN = 'configs/runs/r1_zero_deepseek_v3.gin'


@pytest.fixture(scope='module')
def planned():
  pytest.importorskip('libtpu', reason='the extra `plan` brings it')
  cfg = config.build(
    plan, [*plan.DEFAULTS, f'--gin_file={RUN}', '--topology=v5p:8x8x16']
  )
  devices = planning._topology('v5p', '8x8x16')
  # Executables for devices that are not here cannot be kept.
  jax.config.update('jax_enable_compilation_cache', False)
  with sharding.use(cfg.run.mesh, devices):
    yield planning._Plan(
      cfg, hardware.CHIPS['v5p'], len(devices), compiled=True
    )
  jax.config.update('jax_enable_compilation_cache', True)


@pytest.mark.nightly
@pytest.mark.parametrize(
  'name',
  [
    *('prefill', 'insert', 'decode', 'read', 'resize', 'shrink'),
    *('reference', 'update', 'apply'),
  ],
)
def test_deepseek_v3_fits_a_slice_of_1024(name, planned):
  """`-s` shows what `python -m rlzero.plan` says of each."""
  # 1,024 slots and a row for each of the 256 shards of the rows.
  size = 1 if name in ('reference', 'update', 'apply') else 4
  planned._find([(name, size)])
  phase = planned._phase(name, size)
  print(f'\n{phase}')
  assert phase.fits
  assert phase.memory['temporaries'] >= 0
