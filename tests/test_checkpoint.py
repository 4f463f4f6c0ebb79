"""Run states written and read back; every kind of model folder."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from rlzero import checkpoint, weights
from rlzero.models import transformer


@pytest.fixture(scope='module')
def loaded():
  return weights.load(checkpoint.embedded('tiny_base'))


def _state(loaded):
  params = jax.device_put(loaded.params)
  rest = {'opt_state': (jnp.arange(3), {'mu': jnp.ones((2, 2)) / 3})}
  return params, rest


def test_round_trip_keeps_every_bit(loaded, tmp_path):
  params, rest = _state(loaded)
  store = checkpoint.Store(str(tmp_path))
  assert store.latest() is None
  store.save(7, params, rest, {'stream': {'next_index': 42}})
  store.close()
  store = checkpoint.Store(str(tmp_path))
  assert store.latest() == 7
  shapes = jax.tree.map(jnp.zeros_like, (params, rest))
  got_params, got_rest, facts = store.restore(7, *shapes)
  jax.tree.map(np.testing.assert_array_equal, got_params, params)
  jax.tree.map(np.testing.assert_array_equal, got_rest, rest)
  assert facts == {'stream': {'next_index': 42}}
  store.close()


def test_only_the_newest_are_kept(loaded, tmp_path):
  params, rest = _state(loaded)
  store = checkpoint.Store(str(tmp_path), keep=2)
  for step in (1, 2, 3):
    store.save(step, params, rest)
  store.close()
  kept = sorted(p.name for p in (tmp_path / 'checkpoints').glob('[0-9]*'))
  assert kept == ['2', '3']


def test_run_folder_loads_as_a_model(loaded, tmp_path):
  params, rest = _state(loaded)
  checkpoint.write_description(str(tmp_path), loaded.config, loaded.tokenizer)
  store = checkpoint.Store(str(tmp_path))
  store.save(1, jax.tree.map(lambda x: x + 1, params), rest)
  store.close()
  again = checkpoint.load_model(str(tmp_path))
  assert again.config == loaded.config
  text = 'User: 4 3 2 make 10 Assistant:'
  assert again.tokenizer.encode(text) == loaded.tokenizer.encode(text)
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a, b + 1), again.params, params
  )


def test_written_model_is_a_hugging_face_folder(loaded, tmp_path):
  folder = checkpoint.write_model(
    str(tmp_path),
    loaded.config,
    jax.device_put(loaded.params),
    loaded.tokenizer,
  )
  again = weights.load(folder)
  jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)


def test_run_without_a_finished_checkpoint(tmp_path):
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(FileNotFoundError, match='no finished checkpoint'):
    checkpoint.load_model(str(tmp_path))


def test_embedded_base_fits_its_config(loaded):
  shapes = jax.eval_shape(
    lambda key: transformer.init(loaded.config, key), jax.random.key(0)
  )
  assert jax.tree.map(lambda x: x.shape, loaded.params) == jax.tree.map(
    lambda x: x.shape, shapes
  )
