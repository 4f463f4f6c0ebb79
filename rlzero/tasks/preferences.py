"""Helpfulness by rule, for the tiny reward model: pairs of answers.

  python -m rlzero.tasks.preferences --workdir=DIR

Both answers of a pair are right; the better one puts its bracket first, where
it is read first: `( 5 - 3 ) * 9`, not `9 * ( 5 - 3 )`. A model that learns
from them knows nothing of what is right, and not every solution can be put
that way: `9 - ( 5 - 3 )` cannot. So it can be gamed, and how far it is can be
measured, since the task has a rule.

`WORKDIR/pairs.jsonl` is what `rlzero.reward_model` reads.
"""

import ast
import dataclasses
import os

from rlzero.runtime import config, files, saved_config
from rlzero.runtime.fields import mutable_on_resume
from rlzero.tasks import countdown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Whose problems the answers are of."""

  workdir: str = mutable_on_resume()
  task: countdown.Countdown = countdown.Countdown()


def run(cfg: Config) -> None:
  """Writes the pairs of all training problems that have any."""
  saved_config.check_resume_compatible(cfg, cfg.workdir)
  saved_config.save(cfg, cfg.workdir)
  pairs = [
    {'prompt': example.question, 'chosen': first, 'rejected': last}
    for example in cfg.task.examples('train')
    for first, last in answers(example.target)
  ]
  path = os.path.join(cfg.workdir, 'pairs.jsonl')
  files.write_jsonl(path, pairs, ensure_ascii=False)
  print(f'{len(pairs)} pairs')


def answers(target: str) -> list[tuple[str, str]]:
  """Right answers with the bracket first and last, for each way to do both."""
  value, _, numbers = target.partition(' ')
  found = []
  for opening in countdown.openings(ast.literal_eval(numbers)):
    move, rest = opening
    inner = f'( {move.left} {move.operation} {move.right} )'
    for last in countdown.endings(opening, int(value)):
      if last.operation in '+*':
        found.append(
          tuple(
            f'<answer> {text} </answer>'
            for text in (
              f'{inner} {last.operation} {rest}',
              f'{rest} {last.operation} {inner}',
            )
          )
        )
  return found


if __name__ == '__main__':
  from rlzero.tasks import preferences

  config.main(preferences)
