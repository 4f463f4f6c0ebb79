"""Talks with a model in the terminal.

  python -m rlzero.chat --checkpoint=DIR
  python -m rlzero.chat --checkpoint=DIR --thoughts=fold --temperature=0.6
  python -m rlzero.chat --checkpoint=DIR --json < prompts.txt

The thought is dimmed, the answer is not. Ctrl-C ends an answer, Ctrl-D the
program; /reset forgets what was said. With --json a line of input is a prompt,
and a line of output the turn as an object. Answers come from the engine that
`rlzero.serve` has.
"""

import contextlib
import dataclasses
import sys
from typing import Literal

from rlzero.runtime import fields
from rlzero.runtime.fields import above, at_least
from rlzero.serving import conversation, settings, terminal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(settings.Settings):
  """Settings of a conversation.

  Raises:
    ValueError: a setting out of range.
  """

  # Of R1's evaluations; 1 is the distribution that was trained.
  temperature: float = 0.6
  top_p: float = 0.95
  max_tokens: int = 0  # of a turn; 0 takes what the context has room for
  seed: int | None = None  # the same seed and prompts give the same answers
  system: str = ''  # a system message
  # Thoughts in the terminal: fold says how long they are.
  thoughts: Literal['show', 'fold', 'hide'] = 'show'
  json: bool = False  # lines of JSON, for scripts

  def __post_init__(self):
    super().__post_init__()
    fields.check(
      self,
      temperature=at_least(0).because('0 is greedy'),
      top_p=above(0).at_most(1),
      max_tokens=at_least(0).because('0 takes what there is room for'),
      seed=at_least(0).below(1 << 31),
    )


def run(cfg: Config) -> None:
  """Talks until the input ends."""
  served = settings.load(cfg, slots=1, max_queue=0)
  with contextlib.ExitStack() as stack:
    stack.callback(served.engine.close)
    if sys.stdin.isatty():
      print('getting ready', file=sys.stderr, flush=True)
    served.engine.start(cfg.compile_ahead)
    talk = conversation.Conversation(
      served,
      system=cfg.system,
      temperature=cfg.temperature,
      top_p=cfg.top_p,
      max_tokens=cfg.max_tokens,
      seed=cfg.seed,
    )
    if cfg.json:
      terminal.converse_in_json(talk)
    else:
      terminal.converse(talk, cfg.thoughts)


if __name__ == '__main__':
  from rlzero import chat
  from rlzero.runtime import config

  config.main(chat)
