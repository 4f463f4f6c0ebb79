"""Tree search over tries, beside whole samples of the same cost."""

import ast
import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import numpy as np

from rlzero import weights
from rlzero.evaluation import statistics
from rlzero.models import transformer
from rlzero.rollout import encoding, sampling, scheduler
from rlzero.rollout.sampling import Sampling, StopCriteria
from rlzero.runtime import fields
from rlzero.runtime.fields import at_least
from rlzero.runtime.metrics import interval_text
from rlzero.tasks import base, countdown
from rlzero.text.template import Template
from rlzero.types import Tokens

_STEP_LEN = 16  # tokens a try may take, the word after it included
_ANSWER_LEN = 40  # tokens for the end of a completion
_ROLLOUT_LEN = 64  # tokens of a rollout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Settings of a search."""

  SHORT_FLAGS: ClassVar[dict[str, str]] = sampling.SHORT_FLAGS

  checkpoint: str = ''  # '' is the tiny base
  workdir: str = ''  # where metrics and generations go; none if empty
  method: Literal['tree', 'samples'] = 'tree'
  split: str = 'test'
  num_problems: int = 0  # 0 takes all of the split
  budgets: tuple[int, ...] = (8,)  # leaves expanded a problem, or completions
  num_children: int = 4  # of a leaf
  num_rollouts: int = 0  # that value a child; 0 waits for its `ok`
  exploration: float = 1.0  # c of PUCT
  # Of whole completions; answers end by the likeliest tokens.
  sampling: Sampling = Sampling(max_len=144, num_slots=128, decode_steps=8)
  seed: int = 0
  compare_with: str = ''  # metrics of another search
  json: bool = False  # print metrics as JSON alone

  def __post_init__(self):
    if not self.budgets:
      raise ValueError(
        'search.Config.budgets is (); give one or more numbers of at least 1.'
      )
    fields.check(
      self,
      num_problems=at_least(0),
      budgets=at_least(1),
      num_children=at_least(1),
      num_rollouts=at_least(0),
      exploration=at_least(0),
      seed=fields.SEED,
    )
    if self.sampling.temperature == 0:
      raise ValueError(
        'search.Config.sampling.temperature is 0; it must be above 0, or all '
        'attempts at a move are the same.'
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


class Cost(NamedTuple):
  """Counts the tokens computed for all problems together."""

  tokens: int = 0  # sampled
  prompt_tokens: int = 0  # read: prompts, and thoughts so far
  duplicates: int = 0  # children that a sibling is already


def first_moves(
  loaded: weights.Loaded, chosen: Sequence[base.Example]
) -> dict[str, Any]:
  """Measures the prior: the policy's opinion of the first moves.

  Returns:
    `right`: share of the policy's probability of all legal first moves that
    those have from which the target can be reached, the mean over problems;
    `chance`: the share if all were as likely; `gain`: 95% interval of the
    difference; `likeliest`: how often the likeliest move is right; `legal`:
    the probability of all legal moves together, once a thought is opened.
  """
  encode, rows, owners, ways = loaded.tokenizer.encode, [], [], []
  for i, example in enumerate(chosen):
    prompt = encoding.encode_prompt(
      loaded.tokenizer, Template('short'), example.question
    )
    target, _, numbers = example.target.partition(' ')
    for opening in countdown.openings(ast.literal_eval(numbers)):
      rows.append([*prompt, *encode(f'<think> {opening[0]}')])
      owners.append(i)
      ways.append(bool(countdown.endings(opening, int(target))))
  # A word is a token, so all are as long.
  ids = np.array(rows, np.int32)
  places = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)

  @jax.jit
  def logprobs(params, tokens):
    hidden, _, _ = transformer.forward(loaded.config, params, tokens)
    logits = hidden @ transformer.head(loaded.config, params)
    return jax.nn.log_softmax(logits[:, :-1], axis=-1)

  size = len(encode('1 + 1 = 2'))
  said = logprobs(loaded.params, Tokens(ids, places, np.ones_like(ids)))
  said = np.take_along_axis(np.asarray(said), ids[:, 1:, None], axis=-1)
  chances = np.exp(said[:, -size:, 0].sum(axis=1))
  owners, ways = np.array(owners), np.array(ways)
  of = [(chances[owners == i], ways[owners == i]) for i in range(len(chosen))]
  right = [float(c[w].sum() / c.sum()) for c, w in of]
  alike = [float(w.mean()) for _, w in of]
  return {
    'right': float(np.mean(right)),
    'chance': float(np.mean(alike)),
    'gain': list(statistics.paired_difference(alike, right).interval)
    if len(chosen) > 1
    else None,
    'likeliest': float(np.mean([w[c.argmax()] for c, w in of])),
    'legal': float(np.mean([c.sum() for c, _ in of])),
  }


def compare(
  one: dict[str, Any], other: dict[str, dict[str, Any]]
) -> dict[str, Any]:
  """One search less the other at as many tokens, paired by problem.

  The other's score there is that of whoever draws lots between its budgets
  on either side so that the tokens are, in expectation, as many.

  Returns:
    `comparison`: {'pass@1', 'difference', 'interval', 'p_value'}, or None where
    the other has no budget on one of the sides, or there is one problem.
  """
  if len(one['pass@1_by_problem']) < 2:
    return {'comparison': None}
  tokens = one['tokens_a_problem']
  rows = sorted(other.values(), key=lambda row: row['tokens_a_problem'])
  for low, high in itertools.pairwise(rows):
    start, end = low['tokens_a_problem'], high['tokens_a_problem']
    if start <= tokens <= end and start < end:
      share = (tokens - start) / (end - start)
      uids = list(one['pass@1_by_problem'])
      mixed = [
        (1 - share) * low['pass@1_by_problem'][uid]
        + share * high['pass@1_by_problem'][uid]
        for uid in uids
      ]
      found = statistics.paired_difference(
        mixed, [one['pass@1_by_problem'][uid] for uid in uids]
      )
      return {
        'comparison': {
          'pass@1': float(np.mean(mixed)),
          'difference': found.mean,
          'interval': list(found.interval),
          'p_value': found.p_value,
        }
      }
  return {'comparison': None}


def read_results(
  path: str, chosen: Sequence[base.Example]
) -> dict[str, dict[str, Any]]:
  """Metrics of each budget, from the file that a search left.

  Raises:
    ValueError: it is of other problems.
  """
  with open(path, encoding='utf-8') as file:
    found = json.load(file).get('budgets', {})
  if not found or any(
    row['pass@1_by_problem'].keys() != {e.uid for e in chosen}
    for row in found.values()
  ):
    raise ValueError(
      f'{path} has no search of these {len(chosen)} problems; give the '
      'search.json of one with the same split and num_problems.'
    )
  return found


def describe(method: str, metrics: dict[str, Any]) -> str:
  """A line for each budget: accuracy, interval and cost."""
  lines = []
  for budget, one in metrics['budgets'].items():
    interval = interval_text(one['pass@1_interval'])
    lines.append(
      f'{method} {budget}: pass@1 {one["pass@1"]:.3f} {interval}, '
      f'{one["tokens_a_problem"]:.0f} tokens a problem (prompts read: '
      f'{one["prompt_tokens_a_problem"]:.0f}), says ok {one["says_ok"]:.3f}'
    )
    if beside := one.get('comparison'):
      interval = interval_text(beside['interval'], '+.3f')
      lines.append(
        f'  the other at as many tokens: {beside["pass@1"]:.3f}, difference '
        f'{beside["difference"]:+.3f} {interval}'
      )
  moves = metrics['first_moves']
  lines.append(
    f'right first moves have {moves["right"]:.3f} of the probability, '
    f'{moves["chance"]:.3f} if all were as likely'
  )
  return '\n'.join(lines)


class Search:
  """A search for all problems."""

  def __init__(
    self,
    cfg: Settings,
    loaded: weights.Loaded,
    chosen: Sequence[base.Example],
  ):
    self.cfg = cfg
    self._cost = Cost()
    self._loaded = loaded
    self._prompts = [
      prompt.tokens
      for prompt in encoding.encode_examples(
        loaded.tokenizer, Template('short'), list(enumerate(chosen))
      )
    ]
    self._num_calls = 0
    self._ok = self._id('ok')
    self._links = {
      self._id(word) for word in countdown.REFLECTIVE + countdown.NEUTRAL
    }

  def run(self) -> Iterator[tuple[int, list[encoding.Sample], Cost]]:
    """At each budget: it, a completion of each problem, and the cost."""
    rounds = self._tree() if self.cfg.method == 'tree' else self._samples()
    budgets = sorted(set(self.cfg.budgets))
    for budget, ends in zip(range(1, budgets[-1] + 1), rounds, strict=False):
      if budget in budgets:
        spent = self._cost
        samples = ends()
        yield budget, samples, self._cost
        self._cost = spent  # a larger budget does without these ends

  def _tree(self):
    """Tree search: after each leaf, what writes the completions."""
    cfg, size = self.cfg, self.cfg.num_children
    roots = [Node([], 1.0, None) for _ in self._prompts]
    solved: dict[int, Node] = {}
    while True:
      asked = [i for i, r in enumerate(roots) if i not in solved and r.is_open]
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
      yield lambda: self._ended(
        [solved.get(i, root.best()) for i, root in enumerate(roots)]
      )

  def _ended(self, ends: Sequence[Node]) -> list[encoding.Sample]:
    """The completions of thoughts, by the likeliest tokens."""
    last = self._write(range(len(ends)), ends, 1, _ANSWER_LEN, set(), True)
    return [
      self._sample([*end.tokens, *completion.tokens.tolist()])
      for end, completion in zip(ends, last, strict=True)
    ]

  def _samples(self):
    """Completions until one says `ok`; that one, or else the first."""
    root = Node([], 1.0, None)
    found: dict[int, encoding.Sample] = {}
    first: dict[int, encoding.Sample] = {}
    everyone = range(len(self._prompts))
    while True:
      asked = [i for i in everyone if i not in found]
      written = self._write(
        asked, [root] * len(asked), 1, self.cfg.sampling.max_len, set()
      )
      for i, completion in zip(asked, written, strict=True):
        sample = self._sample(completion.tokens.tolist())
        first.setdefault(i, sample)
        if self._ok in completion.tokens:
          found[i] = sample
      yield lambda: [found.get(i, first[i]) for i in everyone]

  def _children(self, leaf: Node, written) -> list[Node]:
    """Distinct continuations, with the policy's probability of each."""
    room = self.cfg.sampling.max_len - _STEP_LEN - _ANSWER_LEN
    children: dict[tuple, Node] = {}
    for completion in written:
      tokens = (*leaf.tokens, *completion.tokens.tolist())
      prior = float(np.exp(completion.logprobs.sum()))
      child = children.setdefault(tokens, Node(tokens, prior, leaf))
      child.is_open = tokens[-1] in self._links and len(tokens) <= room
    duplicates = self._cost.duplicates + len(written) - len(children)
    self._cost = self._cost._replace(duplicates=duplicates)
    return list(children.values())

  def _values(self, asked, children) -> dict[int, float]:
    """Values each child: 1 if it says `ok`, else by rollouts from it."""
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
      asked, open_ = [i for i, _ in pairs], [child for _, child in pairs]
      written = self._write(asked, open_, size, _ROLLOUT_LEN, {self._ok})
      for k, child in enumerate(open_):
        ends = [c.tokens[-1] for c in written[k * size : (k + 1) * size]]
        values[id(child)] = float(np.mean([e == self._ok for e in ends]))
    return values

  def _write(
    self,
    asked: Sequence[int],
    nodes: Sequence[Node],
    size: int,
    max_len: int,
    stops: set[int],
    likeliest: bool = False,
  ) -> list[scheduler.Completion]:
    """Continues the nodes, `size` times each, up to a stop."""
    if not asked:
      return []
    settings = self.cfg.sampling
    prompts = [
      # No draw twice, so that no noise is.
      scheduler.Prompt(
        self._num_calls * len(self._prompts) + i,
        [*self._prompts[i], *node.tokens],
      )
      for i, node in zip(asked, nodes, strict=True)
    ]
    # The likeliest tokens need no noise, so that what is found at a budget does
    # not depend on the smaller ones that are looked at.
    self._num_calls += not likeliest
    written, usage = scheduler.generate(
      self._loaded.config,
      self._loaded.params,
      prompts,
      size,
      dataclasses.replace(
        settings,
        max_len=max_len,
        temperature=0.0 if likeliest else settings.temperature,
      ),
      stop=StopCriteria((*self._loaded.tokenizer.eos_ids, *sorted(stops))),
      seed=self.cfg.seed,
    )
    self._cost = self._cost._replace(
      tokens=self._cost.tokens + usage.tokens,
      prompt_tokens=self._cost.prompt_tokens
      + sum(len(p.tokens) for p in prompts),
    )
    return written

  def _sample(self, tokens: list[int]) -> encoding.Sample:
    ended = tokens[-1] in self._loaded.tokenizer.eos_ids
    text = self._loaded.tokenizer.decode(tokens)
    return encoding.Sample(text, len(tokens), not ended)

  def _id(self, word: str) -> int:
    (token,) = self._loaded.tokenizer.encode(word)
    return token
