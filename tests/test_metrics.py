import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlzero import metrics
from rlzero.metrics import Mean


def test_mean_of_parts_is_the_mean_of_the_whole():
  # (1 + 2) / 2 and 6 / 1: together 9 / 3, not the mean of 1.5 and 6.
  assert sum([Mean(3.0, 2), Mean(6.0, 1)]).value == 3.0


def test_mean_of_nothing_is_nan():
  for zero in (0, 0.0, np.float32(0), np.int64(0), jnp.zeros(())):
    assert math.isnan(Mean(0.0, zero).value)


def test_mean_is_a_pytree():
  @jax.jit
  def double(mean):
    return jax.tree.map(lambda x: 2 * x, mean) + mean

  result = double(Mean(jnp.float32(3), jnp.float32(2)))
  assert result == Mean(9, 6)


def test_pass_at_k_by_hand():
  # n = 4, c = 2: k = 2 fails with C(2, 2) / C(4, 2) = 1 / 6.
  np.testing.assert_allclose(metrics.pass_at_k(4, 2, 1), 0.5)
  np.testing.assert_allclose(
    metrics.pass_at_k(4, [0, 2, 3, 4], 2), [0, 5 / 6, 1, 1]
  )


def test_pass_at_k_is_the_mean_over_subsets():
  rng = np.random.default_rng(0)
  right = np.arange(10) < 3
  draws = [rng.choice(right, 4, replace=False).any() for _ in range(4000)]
  estimate = metrics.pass_at_k(10, 3, 4)
  assert abs(np.mean(draws) - estimate) < 0.03


@pytest.mark.parametrize('n, c, k', [(4, 2, 5), (4, 2, 0), (4, 5, 1)])
def test_pass_at_k_refuses(n, c, k):
  with pytest.raises(ValueError, match='pass@k'):
    metrics.pass_at_k(n, c, k)


def test_cons_at_k():
  # Two votes for the right class 7 against one; silent samples do not vote.
  assert metrics.cons_at_k([7, 7, 3, -1, -1, -1], [1, 1, 0, 0, 0, 0]) == 1
  assert metrics.cons_at_k([3, 3, 7], [0, 0, 1]) == 0
  # A tie of a right and two wrong answers.
  assert metrics.cons_at_k([1, 2, 5], [0, 1, 0]) == pytest.approx(1 / 3)
  assert metrics.cons_at_k([-1, -1], [0, 0]) == 0


def test_clustered_interval_by_hand():
  # Means 0, 1: variance 1/2, standard error sqrt(1/2 / 2) = 1/2.
  low, high = metrics.clustered_interval([0, 1])
  assert (low, high) == pytest.approx((0.5 - 0.98, 0.5 + 0.98))
  assert all(map(math.isnan, metrics.clustered_interval([1.0])))


def test_a_resumed_run_has_each_step_once(tmp_path):
  with metrics.MetricsWriter(str(tmp_path)) as writer:
    for step in range(4):
      writer.write(step, {'reward/mean': Mean(step, 2)})
  with open(tmp_path / metrics.JSONL, 'a') as file:
    file.write('{"step": 4, "rewa')  # killed here
  with metrics.MetricsWriter(str(tmp_path), start_step=2) as writer:
    writer.write(2, {'reward/mean': jnp.float32(9)})
  rows = metrics.read_metrics(str(tmp_path))
  assert [(r['step'], r['reward/mean']) for r in rows] == [
    (0, 0.0),
    (1, 0.5),
    (2, 9.0),
  ]
  assert list((tmp_path / 'tensorboard').iterdir())


def test_a_step_is_on_disk_at_once_and_valid_json(tmp_path):
  with metrics.MetricsWriter(str(tmp_path)) as writer:
    writer.write(0, {'loss': math.nan, 'ratio': math.inf})
    text = (tmp_path / metrics.JSONL).read_text()
  assert json.loads(text, parse_constant=pytest.fail) == {
    'step': 0,
    'loss': None,
    'ratio': None,
  }


def test_a_broken_line_in_the_middle_is_named(tmp_path):
  (tmp_path / metrics.JSONL).write_text('{"step": 0}\n{"st\n{"step": 2}\n')
  with pytest.raises(ValueError, match='metrics.jsonl:2 is not JSON'):
    metrics.read_metrics(str(tmp_path))


def test_progress_prints_a_line_a_step(capsys, monkeypatch):
  clock = iter([100.0, 110.0])
  monkeypatch.setattr(metrics.time, 'monotonic', lambda: next(clock))
  with metrics.Progress(8, 'grpo') as progress:
    progress.show(1, reward=0.25, length=80)
    progress.show(2, reward=0.5, length=120)
  assert capsys.readouterr().out.splitlines() == [
    'grpo 1/8  reward 0.25  length 80',
    'grpo 2/8  reward 0.5  length 120  1m00s left',
  ]


def test_progress_on_a_terminal_is_one_bar(capsys, monkeypatch):
  monkeypatch.setattr(metrics.sys.stdout, 'isatty', lambda: True)
  with metrics.Progress(8, 'grpo', start_step=3) as progress:
    progress.show(4, reward=0.5)
  out = capsys.readouterr().out
  assert '4/8' in out and 'reward 0.5' in out
