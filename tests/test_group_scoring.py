"""Groups that are scored in a thread while others are sampled."""

import threading

import numpy as np
import pytest

from rlzero.rollout import journal
from rlzero.rollout.sampling import Finish
from rlzero.rollout.scheduler import Completion
from rlzero.scoring.group_scoring import GroupScoring

_COMPLETION = Completion(
  np.zeros(1, np.int32), np.zeros(1, np.float32), Finish.EOS
)


def test_scores_are_written_in_the_order_of_the_groups():
  log = journal.Journal(None, {})

  def score(problem, prompt, completions):
    return [{'problem': problem} for _ in completions]

  with GroupScoring(score, [('a', 0), ('b', 1)], 2, log) as scoring:
    for index in (3, 2, 1, 0):
      scoring.add(index, _COMPLETION)
    scoring.finish(None)
  assert [one['problem'] for one in log.scores] == ['a', 'a', 'b', 'b']


@pytest.mark.parametrize('when', ['sampling', 'at the end'])
def test_what_ends_a_rollout_waits_for_no_verifier(when):
  """As SIGTERM does, after which there are seconds to save."""
  began, goes_on, ended = threading.Event(), threading.Event(), []
  log = journal.Journal(None, {})

  def score(problem, prompt, completions):
    began.set()
    goes_on.wait(30)
    ended.append(problem)
    return [{}]

  def poll():
    if began.is_set():
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    with GroupScoring(score, [('a', 0), ('b', 1)], 1, log) as scoring:
      scoring.add(0, _COMPLETION)
      scoring.add(1, _COMPLETION)
      if when == 'sampling':
        began.wait(30)
        poll()
      scoring.finish(poll)
  assert not ended  # it is still under way
  goes_on.set()
  assert not log.scores
