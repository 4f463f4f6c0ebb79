"""What a killed rollout leaves behind, and what of it is used."""

import contextlib

import numpy as np
import pytest

from rlzero.rollout import journal
from rlzero.rollout.sampling import Finish
from rlzero.rollout.scheduler import Completion

_HEADER = {'step': 16, 'config': 'a', 'policy': 7, 'prompts': 'b'}


def _completion(size):
  rng = np.random.default_rng(size)
  routes = None
  if size % 2:  # experts of 3 layers, 2 a token; none of the last token
    routes = rng.integers(0, 300, (3, size, 2)).astype(np.int16)
    routes[:, -1] = -1
  return Completion(
    rng.integers(0, 9, size).astype(np.int32),
    rng.normal(size=size).astype(np.float32),
    Finish.EOS,
    routes,
    rng.integers(0, 2, size) > 0 if size % 3 else None,
  )


@pytest.fixture
def path(tmp_path):
  path = journal.path_of(str(tmp_path), 16)
  with contextlib.closing(journal.Journal(path, _HEADER)) as log:
    for i in (2, 0, 1):
      log.add_completion(i, _completion(5 + i))
    log.add_scores([{'reward': 1 / 3}, {'reward': 0.0}])
  return path


def _read(path, header=_HEADER):
  with contextlib.closing(journal.Journal(path, header)) as log:
    return log


def test_everything_comes_back_with_its_bits(path):
  log = _read(path)
  assert sorted(log.completions) == [0, 1, 2]
  for i, found in log.completions.items():
    for back, written in zip(found, _completion(5 + i), strict=True):
      np.testing.assert_array_equal(back, written)
    assert found.tokens.dtype == np.int32
    assert found.logprobs.dtype == np.float32
    assert found.finish is Finish.EOS
  assert log.completions[0].routes.dtype == np.int16
  assert log.completions[1].routes is None
  assert log.completions[0].mask.dtype == bool
  assert log.completions[1].mask is None
  assert log.scores == [{'reward': 1 / 3}, {'reward': 0.0}]
  assert journal.is_complete(path, _HEADER, 2)
  assert not journal.is_complete(path, _HEADER, 3)


def test_a_torn_line_is_passed_over_and_written_again(path):
  with open(path, 'rb') as file:
    whole = file.read()
  ends = [i + 1 for i, c in enumerate(whole) if c == ord('\n')]
  for cut in (ends[-1] - 1, ends[-1] - 20, ends[-2] + 3, ends[-2]):
    with open(path, 'wb') as file:
      file.write(whole[:cut])
    with contextlib.closing(journal.Journal(path, _HEADER)) as log:
      assert len(log.completions) == 3
      assert not log.scores  # all of what came together, or none
      log.add_scores([{'reward': 1 / 3}, {'reward': 0.0}])
    with open(path, 'rb') as file:
      assert file.read() == whole


def test_a_line_that_is_not_what_was_written_ends_the_journal(path):
  with open(path, 'rb') as file:
    lines = file.readlines()
  lines[2] = lines[2].replace(b'"index": 0', b'"index": 1')
  with open(path, 'wb') as file:
    file.writelines(lines)
  log = _read(path)
  assert sorted(log.completions) == [2] and not log.scores


@pytest.mark.parametrize('name', _HEADER)
def test_a_journal_of_something_else_is_begun_anew(path, name):
  other = _HEADER | {name: 'other'}
  log = _read(path, other)
  assert not log.completions and not log.scores
  assert not _read(path).completions  # nor is it there for later


def test_journals_that_no_checkpoint_needs_are_removed(path, tmp_path):
  later = journal.path_of(str(tmp_path), 32)
  _read(later)
  journal.prune(str(tmp_path), 16)
  assert journal.is_complete(path, _HEADER, 2)
  journal.prune(str(tmp_path), 32)
  assert not journal.is_complete(path, _HEADER, 2)
  assert journal.is_complete(later, _HEADER, 0)


def test_what_another_host_has_lost_is_made_again_by_all(path, monkeypatch):
  # Its copy of the file ends two lines earlier: a completion and the scores.
  monkeypatch.setattr(journal.hosts, 'all_min', lambda lines: lines - 2)
  log = _read(path)
  assert sorted(log.completions) == [0, 2] and not log.scores
  monkeypatch.undo()
  assert sorted(_read(path).completions) == [0, 2]  # nor is it there for later
