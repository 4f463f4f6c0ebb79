"""Tree search at inference: the second of the paper's unsuccessful attempts.

  python -m rlzero.search --checkpoint=DIR --workdir=DIR [--method=samples]

Countdown only. A node is a thought so far and an edge one more try. Monte Carlo
tree search: a leaf is picked by its value and the policy's prior (PUCT, Nature
550:354, with the policy's probability of a child as its prior), the policy
writes children, they are valued and the values are handed up. Nothing outside
the policy judges: a try is taken for right if the policy says `ok`. For all
problems at once, a leaf of each at a time.

`samples` spends its tokens on whole completions instead, one after the other
until one says `ok`: what a search has to beat.

Differences from the paper: its search has a value model, which this one does
without: a value is whether the policy has said `ok`, or how many of a few
rollouts come to say so.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from rlzero import checkpoint, evaluate, metrics, provenance, sampler, weights
from rlzero.rollout import scheduler
from rlzero.tasks import base, countdown, sandbox
from rlzero.tasks.template import Template

_STEP_LEN = 16  # tokens a try may take, the word after it included
_ANSWER_LEN = 40  # tokens for the end of a completion


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of a search."""

  checkpoint: str = ''  # '' is the tiny base
  workdir: str = ''  # where figures and generations go; none if empty
  method: Literal['tree', 'samples'] = 'tree'
  split: str = 'test'
  num_problems: int = 0  # 0 takes all of the split
  budget: int = 8  # leaves expanded a problem, or completions
  num_children: int = 4  # of a leaf
  num_rollouts: int = 0  # that value a child; 0 waits for its `ok`
  exploration: float = 1.0  # c of PUCT
  max_len: int = 144  # tokens a completion
  num_slots: int = 128  # completions decoded at a time
  seed: int = 0
  json: bool = False  # print figures as JSON alone

  def __post_init__(self):
    least = {'budget': 1, 'num_children': 1, 'num_rollouts': 0}
    for name, value in least.items():
      if getattr(self, name) < value:
        raise ValueError(
          f'search.Config.{name} is {getattr(self, name)}; it must be at '
          f'least {value}.'
        )


class Node:
  """A thought so far."""

  def __init__(
    self, tokens: Sequence[int], prior: float, parent: 'Node | None'
  ):
    self.tokens, self.prior, self.parent = list(tokens), prior, parent
    self.children: list[Node] = []
    self.visits, self.total = 0, 0.0
    self.is_open = True  # whether a try may follow, here or below

  @property
  def value(self) -> float:
    return self.total / self.visits if self.visits else 0.0

  def leaf(self, exploration: float) -> 'Node':
    """The open leaf that PUCT leads to."""
    node = self
    while node.children:
      reach = exploration * math.sqrt(node.visits)
      node = max(
        (child for child in node.children if child.is_open),
        key=lambda c: c.value + reach * c.prior / (1 + c.visits),
      )
    return node

  def add(self, children: Sequence['Node'], values: Sequence[float]) -> None:
    """Hangs valued children below and hands their values up."""
    self.children = list(children)
    for child, value in zip(children, values, strict=True):
      node: Node | None = child
      while node:
        node.visits += 1
        node.total += value
        node = node.parent
    node = self
    while node and not any(child.is_open for child in node.children):
      node.is_open = False
      node = node.parent

  def best(self) -> 'Node':
    """The node of the highest value, the likeliest of equals."""
    found = max(self.children, key=lambda c: (c.value, c.prior), default=None)
    return found.best() if found else self


def run(cfg: Config) -> None:
  """Searches, and says how often it is right and what it costs."""
  loaded = checkpoint.load_model(
    cfg.checkpoint or checkpoint.embedded('tiny_base')
  )
  task = countdown.Countdown()
  chosen = evaluate.examples(task, cfg.split, cfg.num_problems)
  search = Search(cfg, loaded, chosen)
  samples = search.tree() if cfg.method == 'tree' else search.samples()
  with sandbox.RewardPool({task.name: task}, 'short') as pool:
    records = evaluate.grade(pool, task, chosen, samples)
  right = [float(record['correct']) for record in records]
  figures = {
    'pass@1': float(np.mean(right)),
    'pass@1_interval': list(metrics.clustered_interval(right)),
    'pass@1_by_problem': {e.uid: r for e, r in zip(chosen, right, strict=True)},
    'says_ok': float(np.mean([' ok' in s.text for s in samples])),
    'tokens_a_problem': search.num_tokens / len(chosen),
    'prompt_tokens_a_problem': search.num_prompt_tokens / len(chosen),
    'num_problems': len(chosen),
    'settings': dataclasses.asdict(cfg),
    **provenance.facts(),
  }
  if cfg.workdir:
    evaluate.write(cfg.workdir, 'search', figures, records)
  low, high = figures['pass@1_interval']
  print(
    json.dumps(figures)
    if cfg.json
    else f'{cfg.method}: pass@1 {figures["pass@1"]:.3f} [{low:.3f}, '
    f'{high:.3f}], {figures["tokens_a_problem"]:.0f} tokens a problem '
    f'(prompts read again: {figures["prompt_tokens_a_problem"]:.0f}), '
    f'says ok {figures["says_ok"]:.3f}'
  )


class Search:
  """A search for all problems, and what it has cost."""

  def __init__(
    self,
    cfg: Config,
    loaded: weights.Loaded,
    chosen: Sequence[base.Example],
  ):
    self.cfg = cfg
    self.num_tokens = self.num_prompt_tokens = 0
    self._loaded = loaded
    self._prompts = [
      prompt.tokens
      for prompt in evaluate.prompts(
        loaded.tokenizer, Template('short'), list(enumerate(chosen))
      )
    ]
    self._num_calls = 0
    self._ok = self._id('ok')
    self._links = {
      self._id(word) for word in countdown.REFLECTIVE + countdown.NEUTRAL
    }

  def tree(self) -> list[sampler.Sample]:
    """Tree search; the completion that it settles on for each problem."""
    cfg, size = self.cfg, self.cfg.num_children
    roots = [Node([], 1.0, None) for _ in self._prompts]
    solved: dict[int, Node] = {}
    for _ in range(cfg.budget):
      asked = [i for i, r in enumerate(roots) if i not in solved and r.is_open]
      if not asked:
        break
      leaves = [roots[i].leaf(cfg.exploration) for i in asked]
      written = self._write(
        asked, leaves, size, _STEP_LEN, {self._ok, *self._links}
      )
      children = [
        self._children(leaf, written[k * size : (k + 1) * size])
        for k, leaf in enumerate(leaves)
      ]
      values = self._values(asked, children)
      for i, leaf, new in zip(asked, leaves, children, strict=True):
        leaf.add(new, [values[id(child)] for child in new])
        for child in new:
          if child.tokens[-1] == self._ok:
            solved.setdefault(i, child)
    ends = [solved.get(i, root.best()) for i, root in enumerate(roots)]
    everyone = range(len(roots))
    last = self._write(everyone, ends, 1, _ANSWER_LEN, set(), temperature=0.0)
    return [
      self._sample([*end.tokens, *completion.tokens.tolist()])
      for end, completion in zip(ends, last, strict=True)
    ]

  def samples(self) -> list[sampler.Sample]:
    """Completions until one says `ok`; that one, or else the first."""
    root = Node([], 1.0, None)
    found: dict[int, sampler.Sample] = {}
    first: dict[int, sampler.Sample] = {}
    for _ in range(self.cfg.budget):
      asked = [i for i in range(len(self._prompts)) if i not in found]
      if not asked:
        break
      written = self._write(
        asked, [root] * len(asked), 1, self.cfg.max_len, set()
      )
      for i, completion in zip(asked, written, strict=True):
        sample = self._sample(completion.tokens.tolist())
        first.setdefault(i, sample)
        if self._ok in completion.tokens:
          found[i] = sample
    return [found.get(i, first[i]) for i in range(len(self._prompts))]

  def _children(self, leaf: Node, written) -> list[Node]:
    """Distinct continuations, with the policy's probability of each."""
    room = self.cfg.max_len - _STEP_LEN - _ANSWER_LEN
    children: dict[tuple, Node] = {}
    for completion in written:
      tokens = (*leaf.tokens, *completion.tokens.tolist())
      prior = float(np.exp(completion.logprobs.sum()))
      child = children.setdefault(tokens, Node(tokens, prior, leaf))
      child.is_open = tokens[-1] in self._links and len(tokens) <= room
    return list(children.values())

  def _values(self, asked, children) -> dict[int, float]:
    """Of each child: 1 if it says `ok`, else what rollouts make of it."""
    values = {
      id(child): float(child.tokens[-1] == self._ok)
      for new in children
      for child in new
    }
    if size := self.cfg.num_rollouts:
      pairs = [
        (i, child)
        for i, new in zip(asked, children, strict=True)
        for child in new
        if child.is_open
      ]
      if pairs:
        written = self._write(*zip(*pairs, strict=True), size, 64, {self._ok})
        for k, (_, child) in enumerate(pairs):
          ends = [c.tokens[-1] for c in written[k * size : (k + 1) * size]]
          values[id(child)] = float(np.mean([e == self._ok for e in ends]))
    return values

  def _write(
    self, asked, nodes, size: int, max_len: int, stops: set, temperature=1.0
  ) -> list[scheduler.Completion]:
    """Goes on from the nodes, `size` times each, up to a stop."""
    prompts = [
      # No draw twice, so that no noise is.
      scheduler.Prompt(
        self._num_calls * len(self._prompts) + i,
        [*self._prompts[i], *node.tokens],
      )
      for i, node in zip(asked, nodes, strict=True)
    ]
    self._num_calls += 1
    written, usage = scheduler.generate(
      self._loaded.config,
      self._loaded.params,
      prompts,
      size,
      scheduler.Sampling(
        max_len=max_len,
        temperature=temperature,
        num_slots=self.cfg.num_slots,
        decode_steps=8,
      ),
      eos_ids=(*self._loaded.tokenizer.eos_ids, *sorted(stops)),
      seed=self.cfg.seed,
    )
    self.num_tokens += usage.tokens
    self.num_prompt_tokens += sum(len(p.tokens) for p in prompts)
    return written

  def _sample(self, tokens: list[int]) -> sampler.Sample:
    ended = tokens[-1] in self._loaded.tokenizer.eos_ids
    text = self._loaded.tokenizer.decode(tokens)
    return sampler.Sample(text, len(tokens), not ended)

  def _id(self, word: str) -> int:
    (token,) = self._loaded.tokenizer.encode(word)
    return token


if __name__ == '__main__':
  from rlzero import config, search

  config.main(search)
