"""Run states written and read back; every kind of model folder."""

import contextlib
import errno
import gc
import os
import shutil
import warnings

import jax
import numpy as np
import pytest
import safetensors.numpy
from jax import numpy as jnp

from rlzero import weights
from rlzero.models import transformer
from rlzero.runtime import failures, hosts, sharding
from rlzero.train import checkpoint, folders

pytestmark = pytest.mark.model


@pytest.fixture(scope='module')
def loaded():
  return weights.load(folders.embedded('tiny_base'))


def _state(loaded):
  params = jax.device_put(loaded.params)
  state = {'opt_state': (jnp.arange(3), {'mu': jnp.ones((2, 2)) / 3})}
  return params, state


def _restored(folder, *shapes):
  with contextlib.closing(checkpoint.Store(str(folder))) as store:
    return store.restore(*shapes)


def test_round_trip_keeps_every_bit(loaded, tmp_path):
  params, state = _state(loaded)
  store = checkpoint.Store(str(tmp_path))
  assert store.restore(params, state) is None
  store.save(7, params, state, {'stream': {'next_index': 42}})
  store.close()
  saved = _restored(tmp_path, *jax.tree.map(jnp.zeros_like, (params, state)))
  assert saved.step == 7
  jax.tree.map(np.testing.assert_array_equal, saved.params, params)
  jax.tree.map(np.testing.assert_array_equal, saved.state, state)
  assert saved.metadata == {'stream': {'next_index': 42}}


def test_an_earlier_checkpoint_is_a_model_once_it_is_copied(loaded, tmp_path):
  """As docs/howto/read_a_report.md goes back to one."""
  run, earlier = tmp_path / 'run', tmp_path / 'earlier'
  folders.write_description(str(run), loaded.config, loaded.tokenizer)
  params, state = _state(loaded)
  with contextlib.closing(checkpoint.Store(str(run))) as store:
    store.save(1, params, state)
    store.save(2, jax.tree.map(jnp.zeros_like, params), state)
  shutil.copytree(run / 'model', earlier / 'model')
  shutil.copytree(run / 'checkpoints' / '1', earlier / 'checkpoints' / '1')
  found = folders.load_model(str(earlier)).params
  jax.tree.map(np.testing.assert_array_equal, found, params)


def test_what_is_saved_may_be_donated_at_once(tmp_path):
  other = jax.jit(lambda x: 0 * x - 7, donate_argnums=0)
  x = jnp.arange(4_000_000, dtype=jnp.float32)
  store = checkpoint.Store(str(tmp_path))
  store.save(1, {'x': x}, {'y': jnp.zeros(1)})
  for _ in range(3):
    x = other(x)
  store.close()
  saved = _restored(tmp_path, {'x': x}, {'y': x[:1]})
  np.testing.assert_array_equal(saved.params['x'], np.arange(4_000_000))


def _largest(folder):
  files = [p for p in folder.rglob('*') if p.is_file()]
  return max(files, key=lambda path: path.stat().st_size)


def _remove(folder):
  _largest(folder).unlink()


def _truncate(folder):
  path = _largest(folder)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(folder):
  path = _largest(folder)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 64
  path.write_bytes(data)


def test_reading_a_run_prints_nothing(loaded, tmp_path, caplog):
  params, state = _state(loaded)
  with contextlib.closing(checkpoint.Store(str(tmp_path))) as store:
    store.save(1, params, state)
  caplog.clear()
  with contextlib.closing(
    checkpoint.Store(str(tmp_path), read_only=True)
  ) as reader:
    assert reader.latest() == 1
  assert not [r for r in caplog.records if r.levelname == 'WARNING']


def _spoil_facts(folder):
  (folder / 'facts' / 'metadata').write_text('{"facts"')


@pytest.mark.parametrize('damage', [_remove, _truncate, _flip, _spoil_facts])
def test_damaged_newest_gives_way_to_the_one_before(tmp_path, damage, capsys):
  noise = jax.random.normal(jax.random.key(0), (500, 100))
  states = {step: ({'x': step * noise}, {'y': step * noise}) for step in (1, 2)}
  store = checkpoint.Store(str(tmp_path))
  for step, state in states.items():
    store.save(step, *state)
  store.close()
  damage(tmp_path / 'checkpoints' / '2')
  # Who only reads leaves everything in its place.
  reader = checkpoint.Store(str(tmp_path), read_only=True)
  reader.restore(*states[1])
  assert reader.latest() == 2
  reader.close()
  saved = _restored(tmp_path, *states[1])
  assert saved.step == 1
  jax.tree.map(np.testing.assert_array_equal, saved.params, states[1][0])
  said = capsys.readouterr().err
  assert 'The checkpoint of step 2' in said and 'the one of step 1' in said
  # Nothing is deleted, and the run saves at step 2 again.
  assert (tmp_path / 'checkpoints' / 'damaged-2').is_dir()
  store = checkpoint.Store(str(tmp_path))
  store.save(2, *states[2])
  store.close()
  assert _restored(tmp_path, *states[1]).step == 2


def test_reads_that_orbax_abandons_are_no_warning(tmp_path, monkeypatch):
  state = {'x': jnp.ones(3)}, {'y': jnp.ones(3)}
  store = checkpoint.Store(str(tmp_path))
  for step in (1, 2):
    store.save(step, *state)
  store.close()
  read = checkpoint.Store._read

  async def read_file():
    pass

  def abandoning(self, step, trees):
    if step == 2:
      begun = [read_file()]
      begun.append(begun)  # held by a circle, as by a loop that was closed
      raise FileNotFoundError('no such file')
    return read(self, step, trees)

  monkeypatch.setattr(checkpoint.Store, '_read', abandoning)
  with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter('always')
    assert _restored(tmp_path, *state).step == 1
    gc.collect()
  assert not [one for one in warned if 'never awaited' in str(one.message)]


def test_what_another_host_cannot_read_is_passed_over(
  tmp_path, monkeypatch, capsys
):
  state = {'x': jnp.ones(3)}, {'y': jnp.ones(3)}
  store = checkpoint.Store(str(tmp_path))
  for step in (1, 2):
    store.save(step, *state)
  store.close()
  others = iter([[True, 'no such file'], None])
  monkeypatch.setattr(
    hosts, 'first_true_of_all', lambda own: own or next(others)
  )
  assert _restored(tmp_path, *state).step == 1
  assert 'step 2' in (said := capsys.readouterr().err)
  assert '(no such file)' in said


def _fail(store, monkeypatch, errors):
  """The store's reads raise these errors first; time does not pass."""
  read, left = store._read, iter(errors)

  def failing(step, trees):
    for error in left:
      raise error
    return read(step, trees)

  monkeypatch.setattr(store, '_read', failing)
  monkeypatch.setattr(checkpoint, '_WAITS_S', (0, 0, 0))


def _wrapped(error):
  """As Orbax wraps what TensorStore says of a disk that fails."""
  outer = Exception('Encountered error while reading array index: 0')
  outer.__cause__ = error
  return outer


_PASSING = [
  OSError(errno.ESTALE, 'Stale file handle'),
  OSError(errno.EIO, 'Input/output error', 'file'),
  TimeoutError('timed out'),
  MemoryError(),
  RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.'),
  _wrapped(
    ValueError(
      'FAILED_PRECONDITION: Error reading "x": Transport endpoint is not '
      "connected [os_error_code='107']"
    )
  ),
]


@pytest.mark.parametrize('error', _PASSING, ids=repr)
def test_what_cannot_be_read_now_is_tried_again(
  tmp_path, monkeypatch, capsys, error
):
  state = {'x': jnp.ones(3)}, {'y': jnp.ones(3)}
  with contextlib.closing(checkpoint.Store(str(tmp_path))) as store:
    for step in (1, 2):
      store.save(step, *state)
    store.wait()
    _fail(store, monkeypatch, [error] * 3)
    assert store.restore(*state).step == 2
    assert capsys.readouterr().err.count('cannot be read now') == 3
    _fail(store, monkeypatch, [error] * 4)
    with pytest.raises(failures.Unavailable, match='step 2 .* left as it is'):
      store.restore(*state)
    assert store.steps() == [1, 2]
  names = sorted(p.name for p in (tmp_path / 'checkpoints').iterdir())
  assert names == ['1', '2']


def test_nothing_but_damaged_checkpoints(tmp_path):
  state = {'x': jnp.ones(3)}, {'y': jnp.ones(3)}
  store = checkpoint.Store(str(tmp_path))
  store.save(1, *state)
  store.close()
  _spoil_facts(tmp_path / 'checkpoints' / '1')
  with pytest.raises(ValueError, match='no checkpoint that can be read'):
    _restored(tmp_path, *state)


def test_fingerprint_knows_values_places_and_no_layout():
  x = np.arange(64, dtype=np.float32).reshape(8, 8)
  number = checkpoint.fingerprint({'x': x})
  assert checkpoint.fingerprint({'x': x.T}) != number
  assert checkpoint.fingerprint({'x': np.nextafter(x, 9)}) != number
  with sharding.use(sharding.Mesh(data=2, fsdp=4)):
    cut = sharding.device_put(x, 'BT')
    assert checkpoint.fingerprint({'x': cut}) == number


def test_only_the_newest_are_kept(loaded, tmp_path):
  params, state = _state(loaded)
  store = checkpoint.Store(str(tmp_path), keep=2)
  for step in (1, 2, 3):
    store.save(step, params, state)
  store.close()
  kept = sorted(p.name for p in (tmp_path / 'checkpoints').glob('[0-9]*'))
  assert kept == ['2', '3']


def test_run_folder_loads_as_a_model(loaded, tmp_path):
  params, state = _state(loaded)
  folders.write_description(str(tmp_path), loaded.config, loaded.tokenizer)
  store = checkpoint.Store(str(tmp_path))
  store.save(1, jax.tree.map(lambda x: x + 1, params), state)
  store.close()
  again = folders.load_model(str(tmp_path))
  assert again.config == loaded.config
  text = 'User: 4 3 2 make 10 Assistant:'
  assert again.tokenizer.encode(text) == loaded.tokenizer.encode(text)
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a, b + 1), again.params, params
  )


def test_written_model_is_a_hugging_face_folder(loaded, tmp_path):
  folder = folders.write_model(
    str(tmp_path),
    loaded.config,
    jax.device_put(loaded.params),
    loaded.tokenizer,
  )
  again = weights.load(folder)
  jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(loaded, tmp_path, value):
  params = jax.device_put(loaded.params)
  folder = folders.write_model(
    str(tmp_path), loaded.config, params, loaded.tokenizer
  )
  file = os.path.join(folder, 'model.safetensors')
  tensors = safetensors.numpy.load_file(file)
  tensors[min(n for n in tensors if 'up_proj' in n)][0, 0] = value
  safetensors.numpy.save_file(tensors, file, metadata={'format': 'pt'})
  with pytest.raises(ValueError, match='a NaN or an infinity in .*up') as told:
    folders.load_model(folder)
  assert folder in str(told.value)
  # Nor are they handed on.
  bad = weights.load(folder)
  with pytest.raises(ValueError, match='The policy of .* has a NaN'):
    folders.write_model(
      str(tmp_path / 'out'), bad.config, bad.params, bad.tokenizer
    )
  assert not (tmp_path / 'out').exists()


def test_run_without_a_finished_checkpoint(tmp_path):
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(FileNotFoundError, match='no finished checkpoint'):
    folders.load_model(str(tmp_path))


def test_embedded_base_fits_its_config(loaded):
  shapes = jax.eval_shape(
    lambda key: transformer.init(loaded.config, key), jax.random.key(0)
  )
  assert jax.tree.map(lambda x: x.shape, loaded.params) == jax.tree.map(
    lambda x: x.shape, shapes
  )
