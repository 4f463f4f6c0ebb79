"""What every test runs under; set before anything imports JAX."""

import os
import re
import tempfile

import beartype  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

# Eight devices on one machine, so that sharding is tested everywhere.
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)
os.environ['JAX_PLATFORMS'] = 'cpu'
# Runs in one session, subprocesses too, share what they compile; a folder that
# is named already is shared by sessions.
_CACHE = tempfile.TemporaryDirectory(prefix='rlzero-compiled-')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', _CACHE.name)
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.3'

jax.config.update('jax_numpy_rank_promotion', 'raise')

checked = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def _is_quick(config):
  return 'not model' in config.option.markexpr


def pytest_configure(config):
  """Checks every annotated rlzero function at each call, shapes included.

  An int will do for a float, as for any type checker. Annotating the modules
  takes 12 seconds, which --quick has not.
  """
  if not _is_quick(config):
    jaxtyping.install_import_hook('rlzero', f'{__name__}.checked')


def pytest_ignore_collect(collection_path, config):
  """Spares `--quick` the imports of files of which every test has the mark."""
  if not _is_quick(config) or not collection_path.is_file():
    return None
  marked = re.search(
    r'^pytestmark = (\[\n  )?pytest\.mark\.(model|long)\b',
    collection_path.read_text(),
    re.MULTILINE,
  )
  return True if marked else None


@pytest.fixture
def short_shared_prefixes(monkeypatch):
  """Two prompts have a shared prefix from two tokens on."""
  monkeypatch.setattr('rlzero.models.padding._PREFIX_PROMPTS', 2)
  monkeypatch.setattr('rlzero.models.padding._PREFIX_STEP', 2)


@pytest.fixture(scope='module')
def quick_compilation():
  """For modules whose time goes into optimising programs that run once."""
  jax.config.update('jax_disable_most_optimizations', True)
  jax.clear_caches()
  yield
  jax.config.update('jax_disable_most_optimizations', False)
  # Or later modules would take these programs, whose rounding is another, for
  # some shapes and their own for others: a resumed run would have other bits.
  jax.clear_caches()


@pytest.fixture
def tpu_devices(monkeypatch):
  """Four TPUs that are not here, to compile for."""
  pytest.importorskip('libtpu', reason='the extra `plan` brings it')
  from jax.experimental import topologies
  from jax.experimental.compilation_cache import compilation_cache

  monkeypatch.setenv('TPU_SKIP_MDS_QUERY', '1')
  # Another process may be planning.
  monkeypatch.setenv('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  # What is compiled for other devices cannot be read back here.
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()  # it has read the setting before
  yield topologies.get_topology_desc(
    platform='tpu', topology_name='v5e:2x2'
  ).devices
  jax.config.update('jax_enable_compilation_cache', True)
  compilation_cache.reset_cache()


@pytest.fixture(scope='session')
def base(tmp_path_factory):
  """Folder of a small random model."""
  import helpers  # not before `pytest_configure`

  from rlzero.models import transformer
  from rlzero.weights import hf

  folder = str(tmp_path_factory.mktemp('base'))
  params = jax.device_get(transformer.init(helpers.SMALL, jax.random.key(0)))
  hf.write_folder(folder, helpers.SMALL, params, helpers.letters())
  return folder
