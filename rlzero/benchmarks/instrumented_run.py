"""rlzero.grpo, which notes in a file what it is doing: for crash_test.py.

python -m rlzero.benchmarks.instrumented_run FILE [flags of rlzero.grpo]
"""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator

from rlzero import grpo
from rlzero.rl import collect, learner, loop, update
from rlzero.rollout import journal, scheduler
from rlzero.runtime import config
from rlzero.scoring import grade
from rlzero.train import checkpoint


class Notes:
  """Notes which part runs and how much work this process has done."""

  def __init__(self, path: str):
    self._file = os.open(path, os.O_WRONLY | os.O_CREAT)
    self._parts: list[str] = []
    self.between = 'start'  # where no part is going on
    self.work = 0  # completions drawn and updates made

  def write(self) -> None:
    """Into the page cache, which outlives the process."""
    during = '/'.join(self._parts) or self.between
    os.pwrite(self._file, f'{self.work:8} {during:40}'.encode(), 0)

  @contextlib.contextmanager
  def during(self, part: str) -> Iterator[None]:
    self._parts.append(part)
    self.write()
    try:
      yield
    finally:
      self._parts.remove(part)
      self.write()

  def follow(self, owner: type, name: str, part: str) -> None:
    """Notes the part whenever this function of the owner runs."""
    function = getattr(owner, name)

    def noted(*args, **kwargs):
      with self.during(part):
        return function(*args, **kwargs)

    setattr(owner, name, noted)


def read(path: os.PathLike) -> tuple[int, str]:
  """The work done and the part that is going on."""
  with open(path, encoding='ascii') as file:
    work, during = file.read().strip().split(' ', 1)
  return int(work), during


def main() -> None:
  # Dies with who started it, or the next one would find a run under way.
  ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
  notes = Notes(sys.argv.pop(1))
  notes.write()
  notes.follow(collect.Collector, 'sample', 'rollout')
  notes.follow(collect.Collector, 'choose', 'rollout')
  notes.follow(grade, 'score', 'scoring')
  notes.follow(learner.Learner, 'logprobs', 'reference')
  notes.follow(loop.TrainingLoop, 'evaluate', 'evaluation')
  notes.follow(checkpoint.Store, 'save', 'saving')
  add = journal.Journal.add_completion
  make_update = update.Trainer.update

  def noted_add(
    self: journal.Journal, index: int, completion: scheduler.Completion
  ) -> None:
    add(self, index, completion)
    notes.work += 1

  def noted_update(
    self: update.Trainer, experience: collect.Experience
  ) -> dict[str, float]:
    with notes.during('update'):
      step_metrics = make_update(self, experience)
      notes.work += 1
      left = experience.minibatches
      notes.between = f'between {"minibatches" if left else "rollouts"}'
    return step_metrics

  journal.Journal.add_completion = noted_add
  update.Trainer.update = noted_update
  config.main(grpo)


if __name__ == '__main__':
  main()
