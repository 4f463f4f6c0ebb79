r"""Tree search at inference: the second of the paper's unsuccessful attempts.

  python -m rlzero.search --checkpoint=DIR --workdir=A --method=samples
  python -m rlzero.search --checkpoint=DIR --workdir=B \
    --compare_with=A/evaluations/search.json

Countdown only. A node is a thought so far and an edge one more try. Monte Carlo
tree search: a leaf is picked by its value and the policy's prior (PUCT, Nature
550:354, with the policy's probability of a child as its prior), the policy
writes children, they are valued and the values are handed up. Nothing outside
the policy judges: a try is taken for right if the policy says `ok`. For all
problems at once, a leaf of each at a time.

`samples` spends its tokens on whole completions instead, one after the other
until one says `ok`: what a search has to beat at as many tokens a problem.

Differences from the paper: its search has a value model, which this one does
without: a value is whether the policy has said `ok`, or how many of a few
rollouts come to say so.
"""

import dataclasses
import os
from typing import Any

import numpy as np

from rlzero.evaluation import measure, statistics, tree_search
from rlzero.runtime import files, provenance, workdir
from rlzero.scoring import grade, reward_pool
from rlzero.tasks import countdown
from rlzero.train import folders


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(tree_search.Settings):
  """Settings of a tree search."""


def run(cfg: Config) -> None:
  """Searches, and says how often it is right and what it costs."""
  loaded = folders.load_model(cfg.checkpoint or folders.embedded('tiny_base'))
  task = countdown.Countdown()
  chosen = measure.examples(task, cfg.split, cfg.num_problems)
  other = {}
  if cfg.compare_with:
    other = tree_search.read_results(cfg.compare_with, chosen)
  if cfg.workdir:
    workdir.claim(os.path.dirname(measure.file_of(cfg.workdir, '')))
  found: dict[str, dict[str, Any]] = {}
  with reward_pool.RewardPool({task.name: task}, 'short') as pool:
    for budget, samples, cost in tree_search.Search(cfg, loaded, chosen).run():
      records = grade.grade(pool, task, chosen, samples)
      right = {r['uid']: float(r['correct']) for r in records}
      one = {
        'pass@1': float(np.mean([*right.values()])),
        'pass@1_interval': list(
          statistics.clustered_interval([*right.values()])
        ),
        'pass@1_by_problem': right,
        'says_ok': float(np.mean([' ok' in s.text for s in samples])),
        'tokens_a_problem': cost.tokens / len(chosen),
        'prompt_tokens_a_problem': cost.prompt_tokens / len(chosen),
        'duplicates_a_problem': cost.duplicates / len(chosen),
      }
      found[str(budget)] = one | (
        tree_search.compare(one, other) if other else {}
      )
  metrics = {
    'budgets': found,
    'num_problems': len(chosen),
    'first_moves': tree_search.first_moves(loaded, chosen),
    'settings': dataclasses.asdict(cfg),
    **provenance.metadata(),
  }
  if cfg.workdir:  # the generations are those of the largest budget
    measure.write(cfg.workdir, 'search', metrics, records)
  print(
    files.to_json(metrics)
    if cfg.json
    else tree_search.describe(cfg.method, metrics)
  )


if __name__ == '__main__':
  from rlzero import search
  from rlzero.runtime import config

  config.main(search)
