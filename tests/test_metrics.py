import collections
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlzero.evaluation import statistics
from rlzero.runtime import metrics
from rlzero.runtime.metrics import Mean


def test_mean_of_parts_is_the_mean_of_the_whole():
  # (1 + 2) / 2 and 6 / 1: together 9 / 3, not the mean of 1.5 and 6.
  assert (Mean(3.0, 2) + Mean(6.0, 1)).value == 3.0


def test_mean_of_nothing_is_nan():
  zeros = (0, 0.0, np.float32(0), np.int64(0), np.zeros(()), jnp.zeros(()))
  for zero in zeros:
    assert math.isnan(Mean(0.0, zero).value)


def test_an_interval_that_is_not_known():
  assert metrics.interval_text([0.25, 0.5]) == '[0.250, 0.500]'
  assert metrics.interval_text([math.nan, None]) == '[–, –]'
  assert metrics.interval_text([0.1, 0.2], '.1%') == '[10.0%, 20.0%]'


def test_mean_is_a_pytree():
  @jax.jit
  def double(mean):
    return jax.tree.map(lambda x: 2 * x, mean) + mean

  result = double(Mean(jnp.float32(3), jnp.float32(2)))
  assert result == Mean(9, 6)


def test_pass_at_k_by_hand():
  # n = 4, c = 2: k = 2 fails with C(2, 2) / C(4, 2) = 1 / 6.
  np.testing.assert_allclose(statistics.pass_at_k(4, 2, 1), 0.5)
  np.testing.assert_allclose(
    statistics.pass_at_k(4, [0, 2, 3, 4], 2), [0, 5 / 6, 1, 1]
  )


def test_pass_at_k_is_the_mean_over_subsets():
  rng = np.random.default_rng(0)
  right = np.arange(10) < 3
  draws = [rng.choice(right, 4, replace=False).any() for _ in range(4000)]
  estimate = statistics.pass_at_k(10, 3, 4)
  assert abs(np.mean(draws) - estimate) < 0.03


@pytest.mark.parametrize('n, c, k', [(4, 2, 5), (4, 2, 0), (4, 5, 1)])
def test_pass_at_k_refuses(n, c, k):
  with pytest.raises(ValueError, match='pass@k'):
    statistics.pass_at_k(n, c, k)


def test_cons_at_k():
  # Two votes for the right class 7 against one; silent samples do not vote.
  assert statistics.cons_at_k([7, 7, 3, -1, -1, -1], [1, 1, 0, 0, 0, 0]) == 1
  assert statistics.cons_at_k([3, 3, 7], [0, 0, 1]) == 0
  # A tie of a right and two wrong answers.
  assert statistics.cons_at_k([1, 2, 5], [0, 1, 0]) == pytest.approx(1 / 3)
  assert statistics.cons_at_k([-1, -1], [0, 0]) == 0


def test_cons_at_k_is_the_vote_of_a_simulation():
  """A brute force over the ways that a tie may fall."""
  rng = np.random.default_rng(0)
  for _ in range(20):
    classes = rng.integers(-1, 3, 6)
    right = classes == 1
    wins = []
    for _ in range(2000):
      votes = collections.Counter(c for c in classes.tolist() if c >= 0)
      order = rng.permutation(3)  # the first of equals wins
      best = max(votes, key=lambda c: (votes[c], order[c]), default=None)
      wins.append(best == 1)
    assert abs(np.mean(wins) - statistics.cons_at_k(classes, right)) < 0.05
    tied = sorted(collections.Counter(classes[classes >= 0].tolist()).values())
    assert statistics.has_tie(classes) == (
      len(tied) > 1 and tied[-1] == tied[-2]
    )


def test_clustered_interval_by_hand():
  # Means 0, 1: p = 1/2, sum of squares 1/2 and half of 1/4: spread 5/8;
  # n = 2 (3/2) (1/4) / (5/8) = 6/5; t of one degree of freedom = 12.706.
  low, high = statistics.clustered_interval([0, 1])
  t2_n = 12.7062047**2 / (6 / 5)
  half = 12.7062047 * (0.25 / (6 / 5) + t2_n / (4 * 6 / 5)) ** 0.5
  assert high - 0.5 == pytest.approx(half / (1 + t2_n))
  assert low + high == pytest.approx(1)
  # All right of three: n = 3, t of two degrees = 4.3027: 1 / (1 + t^2 / n).
  low, high = statistics.clustered_interval([1, 1, 1])
  assert (low, high) == pytest.approx((1 / (1 + 4.30265273**2 / 3), 1))
  assert all(map(math.isnan, statistics.clustered_interval([1.0])))


def _coverage(interval, num_problems, accuracy, num_samples, alike):
  """Share of 2,000 benchmarks whose interval holds the accuracy.

  The problems' difficulty is drawn from a beta distribution; `alike` is the
  correlation of two samples of a problem.
  """
  rng = np.random.default_rng(0)
  size = 1 / alike - 1
  chance = rng.beta(
    accuracy * size, (1 - accuracy) * size, (2000, num_problems)
  )
  means = rng.binomial(num_samples, chance) / num_samples
  return np.mean(
    [low <= accuracy <= high for low, high in map(interval, means)]
  )


@pytest.mark.parametrize('num_problems', [30, 198])
@pytest.mark.parametrize('accuracy', [0.15, 0.5, 0.9])
@pytest.mark.parametrize('num_samples, alike', [(64, 0.6), (16, 0.5), (4, 0.3)])
def test_interval_covers_in_95_of_100_benchmarks(
  num_problems, accuracy, num_samples, alike
):
  covered = _coverage(
    statistics.clustered_interval, num_problems, accuracy, num_samples, alike
  )
  assert 0.93 <= covered <= 0.97


def test_corners_where_intervals_fail():
  """The intervals of docs/results/evaluation.md, of hardly solved problems."""

  def normal(means):
    half = 1.96 * means.std(ddof=1) / len(means) ** 0.5
    return means.mean() - half, means.mean() + half

  ours = statistics.clustered_interval
  assert _coverage(normal, 10, 0.01, 1, 0.5) == pytest.approx(0.10, abs=0.01)
  assert _coverage(ours, 10, 0.01, 1, 0.5) == pytest.approx(0.90, abs=0.01)
  assert _coverage(normal, 30, 0.05, 64, 0.6) == pytest.approx(0.80, abs=0.01)
  assert _coverage(ours, 30, 0.05, 64, 0.6) == pytest.approx(0.86, abs=0.01)
  assert _coverage(ours, 30, 0.01, 64, 0.5) == pytest.approx(0.83, abs=0.01)


def test_paired_difference_by_hand():
  # Gains 1, 0, 1: mean 2/3, deviation 1/sqrt(3), error 1/3, t of 2 = 4.3027;
  # of the eight signs, two pairs of extremes reach 2/3, whatever the zero has.
  found = statistics.paired_difference([0, 1, 0], [1, 1, 1])
  assert found.mean == pytest.approx(2 / 3)
  half = 4.30265273 / 3
  assert found.interval == pytest.approx((2 / 3 - half, 2 / 3 + half))
  assert found.p_value == 0.5 and found.is_noise
  assert statistics.paired_difference([0.5] * 9, [0.5] * 9).p_value == 1


@pytest.mark.long
def test_paired_difference_finds_what_is_there_and_no_more():
  rng = np.random.default_rng(0)
  chance = rng.beta(1, 1, (200, 60))

  def means(p):
    return rng.binomial(16, p) / 16

  false = [
    not statistics.paired_difference(a, b).is_noise
    for a, b in zip(means(chance), means(chance), strict=True)
  ]
  assert np.mean(false) < 0.09  # 5% within what 200 trials allow
  better = chance + 0.3 * (1 - chance)
  found = [
    not statistics.paired_difference(a, b).is_noise
    for a, b in zip(means(chance)[:20], means(better)[:20], strict=True)
  ]
  assert all(found)


def test_paired_difference_of_one_problem():
  with pytest.raises(ValueError, match='has 1 problems in common'):
    statistics.paired_difference([0.5], [0.7])


def test_elo_rating_by_hand():
  # One problem solved half of the time: equals. Ten times as often as not:
  # 400 above. Of two at 1000 and 1800, one solved: right between them.
  assert statistics.elo_rating([1500], [0.5])[0] == pytest.approx(1500)
  assert statistics.elo_rating([1500], [10 / 11])[0] == pytest.approx(1900)
  rating, (low, high) = statistics.elo_rating([1000, 1800], [1, 0])
  assert rating == pytest.approx(1400)
  # Chances 10/11 and 1/11; residuals 1/11 twice: sqrt(2)/11; slope
  # 2 (10/121) ln(10)/400.
  error = 2**0.5 / 11 / (20 / 121 * math.log(10) / 400)
  assert high - rating == pytest.approx(1.96 * error)
  assert rating - low == pytest.approx(1.96 * error)
  assert statistics.elo_rating([1200, 1500], [1, 1])[0] == math.inf
  assert statistics.elo_rating([1200, 1500], [0, 0])[0] == -math.inf


def test_elo_rating_finds_a_known_contestant():
  rng = np.random.default_rng(0)
  ratings = rng.uniform(800, 3000, 200)
  solved = rng.binomial(16, 1 / (1 + 10 ** ((ratings - 2029) / 400))) / 16
  rating, (low, high) = statistics.elo_rating(ratings, solved)
  assert low < 2029 < high and high - low < 60
  assert abs(rating - 2029) < 30


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


def test_a_line_names_the_alerts_that_ring(tmp_path, monkeypatch):
  board = []
  with metrics.MetricsWriter(str(tmp_path)) as writer:
    monkeypatch.setattr(
      writer._board, 'add_scalar', lambda *args: board.append(args)
    )
    writer.write(0, {'loss': 1.0}, {'kl': False, 'no_eos': True})
    writer.write(1, {'loss': 1.0}, {'kl': False, 'no_eos': False})
  assert metrics.read_metrics(str(tmp_path)) == [
    {'step': 0, 'loss': 1.0, 'alerts': ['no_eos']},
    {'step': 1, 'loss': 1.0},
  ]
  assert [b for b in board if b[0] == 'alert/no_eos'] == [
    ('alert/no_eos', 1.0, 0),
    ('alert/no_eos', 0.0, 1),
  ]
  assert ('alert/kl', 0.0, 0) in board


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


def test_what_is_not_finite_raises_no_warning(tmp_path, caplog, capsys):
  with metrics.MetricsWriter(str(tmp_path)) as writer:
    writer.write(0, {'completion/len_correct': float('nan'), 'loss': 1.0})
  assert caplog.records == [] and capsys.readouterr().err == ''
  assert metrics.read_metrics(str(tmp_path)) == [
    {'step': 0, 'completion/len_correct': None, 'loss': 1.0}
  ]
