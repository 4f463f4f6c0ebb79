"""Draws the problems of rollouts, and knows again what was asked before.

A rollout draws its problems in one or several rounds. Where the first begins
in the stream is saved; a resumed run draws them again, and the verdicts in its
journals decide as before how many rounds there are and how far the stream
moves. So neither is saved.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlzero.rl import selection
from rlzero.rl.settings import Config
from rlzero.rollout import encoding, journal
from rlzero.runtime import hosts
from rlzero.tasks import base
from rlzero.tasks.datasets import curriculum, stream
from rlzero.text.template import Chat
from rlzero.text.tokenizer import Tokenizer

Sampled = list[tuple[int, base.Example]]


class Drawing:
  """Draws problems that fit, and names the journals of their rounds.

  Attributes:
    headers: of the journals of the current rollout, a round each.

  Args:
    cfg: of the run.
    tokenizer: of the model.
    problems: the stream that they are drawn from.
  """

  def __init__(
    self, cfg: Config, tokenizer: Tokenizer, problems: stream.PromptStream
  ):
    self._cfg, self._tokenizer, self._stream = cfg, tokenizer, problems
    self._told_too_long = False
    # Of the current rollout.
    self.headers: list[dict[str, Any]] = []
    self._cursor = problems.get_state()  # where its problems begin
    self._limit = cfg.sampling.max_prompt_len  # when it began
    self._asked: dict[str, Any] | None = None  # a question and its prompt
    self._begin_counts()

  def get_state(self, inside: bool) -> dict[str, Any]:
    """The current rollout, as plain values.

    Args:
      inside: whether it has updates to come.
    """
    return {
      'stream': self._cursor,
      'journal': self.headers if inside else None,
      'asked': self._asked,
      'max_prompt_len': self._limit,
    }

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes back to where a rollout began.

    Raises:
      ValueError: a question has another prompt now, or the stream is another.
    """
    self._check_asked(state['asked'])
    self._asked, self._limit = state['asked'], state['max_prompt_len']
    self.headers = state['journal'] or []
    self._cursor = state['stream']
    self._stream.set_state(self._cursor)

  def begin(self, resumed: bool) -> None:
    """Begins a rollout, or an interrupted one again from its first round."""
    self._begin_counts()
    if not resumed:
      self.headers = []
      self._limit = self._cfg.sampling.max_prompt_len

  def draw(self, count: int, number: int, rollout: dict[str, Any]) -> Sampled:
    """Draws the problems of a round that fit.

    Args:
      count: how many.
      number: of the round, from 0.
      rollout: names the rollout, in the header of the round's journal.

    Raises:
      ValueError: none fits, or a round that was drawn before has other prompts.
    """
    sampled = self._fitting(count)
    self._taken += count
    if (rates := self._stream.pass_rates) is not None:
      self._expected += [rates.estimate(example) for _, example in sampled]
    prompts = encoding.encode_examples(
      self._tokenizer, self._cfg.template, sampled
    )
    tokens = journal.digest([prompt.tokens for prompt in prompts])
    if not number:
      self._asked = {
        'question': Chat.pack(sampled[0][1].question),
        'tokens': journal.digest(prompts[0].tokens),
      }
    if number < len(self.headers):
      if self.headers[number]['tokens'] != tokens:
        raise self._other_prompts(sampled[0][1].question)
      return sampled
    self.headers.append(
      {
        **rollout,
        'prompts': journal.digest(
          [(draw, example.uid, example.question) for draw, example in sampled]
        ),
        'tokens': tokens,
        'completions': count * self._cfg.num_samples,
      }
    )
    return sampled

  def end(self) -> None:
    """Ends a rollout: the next one begins where the stream is now."""
    self._cursor = self._stream.get_state()

  def learn(self, rounds: Sequence[selection.Round]) -> None:
    """Tells a curriculum the verified outcomes of the rollout."""
    if (rates := self._stream.pass_rates) is None:
      return
    observations = []
    for sampled in rounds:
      found = selection.outcomes(self._cfg, sampled.log.scores)
      for example, group in zip(sampled.examples, found, strict=True):
        known = np.clip(group[~np.isnan(group)], 0, 1)
        if known.size:
          observations.append(
            curriculum.Observation(example, float(known.sum()), known.size)
          )
    rates.observe(observations)

  def describe(self) -> dict[str, float]:
    """Metrics of what was drawn for the current rollout."""
    found: dict[str, float] = {'prompts/too_long': self._too_long}
    if (rates := self._stream.pass_rates) is not None:
      looked_at = self._stream.position - self._first
      found |= {
        'curriculum/passed_over': looked_at - self._taken - self._too_long,
        'curriculum/pass_rate': float(np.mean(self._expected)),
        'curriculum/classes': rates.num_classes,
      }
    return found

  def _begin_counts(self) -> None:
    self._first = self._stream.position
    self._too_long = self._taken = 0
    self._expected: list[float] = []  # pass rates of the problems drawn

  def _fitting(self, count: int) -> Sampled:
    sampled, left_out = encoding.draw_fitting(
      self._stream, count, self._tokenizer, self._cfg.template, self._limit
    )
    self._too_long += len(left_out)
    if left_out and not self._told_too_long:
      self._told_too_long = True
      uid, length = left_out[0]
      hosts.print_once(
        f'warning: training prompt {uid!r} has {length} tokens and '
        f'Sampling.max_prompt_len is {self._limit}, so it is left out; '
        'prompts/too_long counts all such draws.'
      )
    return sampled

  def _check_asked(self, asked: dict[str, Any] | None) -> None:
    """A question must be the prompt that it was, or samples do not fit it."""
    if asked is None:
      return
    question = Chat.unpack(asked['question'])
    tokens = encoding.encode_prompt(
      self._tokenizer, self._cfg.template, question
    )
    if journal.digest(tokens) != asked['tokens']:
      raise self._other_prompts(question)

  def _other_prompts(self, question: str) -> ValueError:
    return ValueError(
      f'{self._cfg.workdir} has asked {question[:60]!r} with another prompt '
      'than the one of now: the tokenizer or its chat template has changed. '
      'Set it back or choose another workdir.'
    )
