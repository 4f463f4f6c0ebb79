"""Scores groups of completions while others are still being sampled."""

import concurrent.futures
from collections.abc import Callable, Sequence
from typing import Any

from rlzero.rollout import journal, scheduler
from rlzero.runtime import hosts

_SCORED = 256  # completions a host scores between two lines of the journal
_POLL_S = 1.0  # between two polls, while a group is scored


class GroupScoring:
  """Scores each group as it ends, in a thread, while others are decoded.

  A group's scores depend on its completions alone, and go into the journal in
  the order of the groups; so it makes no difference which group ends first.

  Args:
    score: (problem, prompt, completions) -> the records of a group; called by
      the thread alone.
    problems: each with its prompt.
    group_size: G.
    log: where completions and scores are written; what it has scored already
      is not scored again.
  """

  def __init__(
    self,
    score: Callable[..., list[dict[str, Any]]],
    problems: Sequence[tuple[Any, Any]],
    group_size: int,
    log: journal.Journal,
  ):
    self._score, self._problems, self._log = score, problems, log
    self._size = group_size
    self._thread = concurrent.futures.ThreadPoolExecutor(1)
    self._records: dict[int, concurrent.futures.Future] = {}
    # Groups that are written down together, and those of this host.
    chunk = max(_SCORED // group_size, 1) * hosts.count()
    first = len(log.scores) // group_size
    self._chunks = [
      range(start, min(start + chunk, len(problems)))
      for start in range(first, len(problems), chunk)
    ]
    self._own = {g for part in self._chunks for g in hosts.local_shard(part)}
    for group in sorted(self._own):
      self._begin(group)

  def __enter__(self) -> 'GroupScoring':
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    # After SIGTERM there are seconds to save, and a verifier may take minutes.
    self._thread.shutdown(wait=kind is None, cancel_futures=True)

  def add(self, index: int, completion: scheduler.Completion) -> None:
    """Writes a completion down; scores its group if it was the last one."""
    self._log.add_completion(index, completion)
    self._begin(index // self._size)

  def finish(self, poll: Callable[[], None] | None) -> None:
    """Writes down what has been scored, in its order, until all of it has.

    Args:
      poll: called now and then; what it raises ends the scoring.
    """
    for groups in self._chunks:
      if poll:
        poll()
      self._log.add_scores(
        hosts.map_over_hosts(
          groups, lambda own: sum((self._result(g, poll) for g in own), [])
        )
      )

  def _result(self, group, poll):
    """The records of a group, once they are there."""
    future = self._records[group]
    # Several hosts poll together, and not each as it waits.
    while poll and hosts.count() == 1 and not future.done():
      concurrent.futures.wait([future], _POLL_S)
      poll()
    return future.result()

  def _begin(self, group):
    first = group * self._size
    places = range(first, first + self._size)
    if group in self._own and all(p in self._log.completions for p in places):
      completions = [self._log.completions[p] for p in places]
      self._records[group] = self._thread.submit(
        self._score, *self._problems[group], completions
      )
