"""The endless, reproducible order in which problems are drawn."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import grain

from rlzero.tasks import base
from rlzero.tasks.datasets import curriculum

_NO_CURRICULUM = curriculum.Curriculum()


class PromptStream:
  """Shuffled epochs of problems, with a position that can be saved.

  Attributes:
    pass_rates: of a curriculum; None without one.
  """

  def __init__(
    self,
    sources: Sequence[Sequence[base.Example]],
    seed: int,
    shares: Sequence[float],
    pass_rates: curriculum.PassRates | None = None,
  ):
    """Starts at draw 0.

    Args:
      sources: the problems of one epoch of each task.
      seed: of the shuffling; each epoch has an order of its own.
      shares: of the draws that are of each task, to any scale.
      pass_rates: decide which problems are taken; by default all are.

    Raises:
      ValueError: no problems.
    """
    if not all(sources):
      raise ValueError(
        'The prompt stream got an empty list of problems; choose a split '
        'that has some, or ask its task for more than 0.'
      )
    content = [getattr(source, 'fingerprint', '') for source in sources]
    self._fixed: dict[str, Any] = {
      **({'content': content} if any(content) else {}),
      'num_examples': sum(map(len, sources)),
      'seed': seed,
    }
    epochs = [
      grain.MapDataset.source(source).seed(seed).shuffle().repeat()
      for source in sources
    ]
    dataset = epochs[0]
    if len(epochs) > 1:
      dataset = grain.MapDataset.mix(epochs, shares)
    self.pass_rates, self._sources = pass_rates, sources
    # Threads would only fetch ahead of a list that is in memory already.
    self._iterator = iter(
      dataset.to_iter_dataset(
        grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
      )
    )

  @property
  def position(self) -> int:
    """The number of the next draw; draws that are passed over count."""
    return self._iterator.get_state()['next_index']

  @property
  def num_examples(self) -> int:
    """Problems of one epoch, of all tasks."""
    return self._fixed['num_examples']

  def next(
    self,
    count: int,
    fits: Callable[[base.Example], bool] = lambda example: True,
    on_unfit: Callable[[base.Example], None] = lambda example: None,
  ) -> list[tuple[int, base.Example]]:
    """The next problems, each with its number among all that were drawn.

    Args:
      count: how many problems.
      fits: whether a problem can be used; others are drawn and passed over, as
        are those that a curriculum does not take.
      on_unfit: called with each problem that is drawn and does not fit.

    Raises:
      ValueError: no problem fits.
    """
    found = []
    passed_over = 0  # in a row
    while len(found) < count:
      draw = self.position
      example = next(self._iterator)
      rates = self.pass_rates
      if rates is not None and not rates.takes(example, draw):
        continue
      if fits(example):
        found.append((draw, example))
        passed_over = 0
        continue
      on_unfit(example)
      passed_over += 1
      # So many in a row may be the end of one epoch and the start of the next,
      # or of a task with a large share.
      if passed_over % self.num_examples == 0 and not any(
        map(fits, itertools.chain(*self._sources))
      ):
        raise ValueError(
          f'None of the {self.num_examples} training problems can be used; '
          'raise the limit that they are above, or choose other problems.'
        )
    return found

  def get_state(self) -> dict[str, Any]:
    """The position, and what a curriculum knows, as plain values."""
    state = {**self._iterator.get_state(), **self._fixed}
    if self.pass_rates is not None:
      state['pass_rates'] = self.pass_rates.get_state()
    return state

  def set_state(self, state: dict[str, Any]) -> None:
    """Resumes from a position.

    Raises:
      ValueError: the position belongs to another stream.
    """
    for name, value in self._fixed.items():
      if state[name] == value:
        continue
      if name == 'content':
        raise ValueError(
          'The rows of a table have changed since the run began, so its place '
          'among them is lost; bring the old table back, or choose another '
          'workdir.'
        )
      raise ValueError(
        f'The saved position is of a prompt stream with {name} '
        f'{state[name]}, and this one has {value}; continue with the '
        'settings of the saved run.'
      )
    self._iterator.set_state({'next_index': state['next_index']})
    if self.pass_rates is not None:
      self.pass_rates.set_state(state['pass_rates'])


def prompt_stream(examples: Sequence[base.Example], seed: int) -> PromptStream:
  """Draws from `examples` for ever; see `PromptStream`."""
  return PromptStream([examples], seed, [1.0])


def mixed(
  tasks: Sequence[base.Task],
  shares: Sequence[float],
  seed: int,
  settings: curriculum.Curriculum = _NO_CURRICULUM,
) -> PromptStream:
  """Draws from the training problems of several tasks, evenly by share.

  A curriculum passes over problems of every task, so that fewer are drawn of
  one that is too easy or too hard than its share.

  Raises:
    ValueError: a task without problems, or without what a curriculum needs.
  """
  pass_rates = None
  if settings.by != 'none':
    pass_rates = curriculum.PassRates(
      settings, curriculum.classes(settings.by, tasks), seed
    )

  def named(task: base.Task) -> base.View:
    return base.View(
      task.examples('train'), lambda e: dataclasses.replace(e, task=task.name)
    )

  return PromptStream([named(task) for task in tasks], seed, shares, pass_rates)
