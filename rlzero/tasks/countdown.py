"""Countdown with three numbers, and the corpus of the tiny base model.

The problem: combine three numbers from 1 to 10 with +, - and * into a target
up to 99, each number once. Every number from 0 to 99 is one word, so that a
model of a million parameters can do the arithmetic, and a search can be
written down a try at a time:

  9 * 5 = 45 45 - 3 = 42 wait 5 - 3 = 2 2 * 9 = 18 ok

What the corpus holds is what reinforcement learning can amplify, so it is
said in full at `Corpus`.
"""

import ast
import dataclasses
import functools
import itertools
import random
import re
from collections.abc import Callable, Iterator

from rlzero.tasks import arithmetic, base
from rlzero.text import language

_LARGEST = 99
_NUMBERS = range(1, 11)
_OPERATIONS = {
  '+': lambda a, b: a + b,
  '-': lambda a, b: a - b,
  '*': lambda a, b: a * b,
}
_OPERATORS = ''.join(_OPERATIONS)
REFLECTIVE = ('wait', 'wrong', 'but')
NEUTRAL = ('no', 'hmm', 'next')
WORDS = (  # after padding and end of sequence
  'User:',
  'Assistant:',
  'Search:',
  'make',
  '<think>',
  '</think>',
  '<answer>',
  '</answer>',
  *'+-*=()',
  'ok',
  *REFLECTIVE,
  *NEUTRAL,
  *map(str, range(_LARGEST + 1)),
)

# The words that a thought and a question also have in Chinese, one character
# each, so that a word of either language counts once.
CHINESE = {
  'make': '得',
  'ok': '对',
  'wait': '等',
  'wrong': '错',
  'but': '但',
  'no': '不',
  'hmm': '嗯',
  'next': '再',
}

_STEP = r'(\d+) ([-+*]) (\d+) = (\d+)'
_TRY = re.compile(f'{_STEP} {_STEP}')
_WORDS = re.compile(r'[^\W\d_]|=')
_EXPRESSION = re.compile(r'[\d(][\d\s()+*-]*')


@dataclasses.dataclass(frozen=True)
class Move:
  """left op right = result, the larger number first."""

  left: int
  operation: str
  right: int
  result: int

  def __str__(self):
    return f'{self.left} {self.operation} {self.right} = {self.result}'


def moves(first: int, second: int) -> list[Move]:
  """The moves on two numbers whose result is from 1 to 99."""
  high, low = max(first, second), min(first, second)
  found = []
  for operation, apply in _OPERATIONS.items():
    result = apply(high, low)
    if 1 <= result <= _LARGEST:
      found.append(Move(high, operation, low, result))
  return found


@functools.cache
def openings(numbers: tuple[int, ...]) -> tuple[tuple[Move, int], ...]:
  """Every distinct first move with the number it leaves over."""
  found = {}
  for i, j in itertools.combinations(range(3), 2):
    rest = numbers[3 - i - j]
    for move in moves(numbers[i], numbers[j]):
      found[move, rest] = None
  return tuple(found)


def endings(opening: tuple[Move, int], target: int) -> list[Move]:
  """The second moves that reach the target."""
  move, rest = opening
  return [m for m in moves(move.result, rest) if m.result == target]


@functools.cache
def _problems() -> tuple[tuple[tuple[int, ...], int, int], ...]:
  """(numbers, target, number of first moves that can still succeed)."""
  found = []
  for numbers in itertools.combinations_with_replacement(
    sorted(_NUMBERS, reverse=True), 3
  ):
    reach = {}
    for opening in openings(numbers):
      move, rest = opening
      for target in {m.result for m in moves(move.result, rest)}:
        reach[target] = reach.get(target, 0) + 1
    found += [(numbers, target, ways) for target, ways in reach.items()]
  return tuple(found)


def question(numbers: tuple[int, ...], target: int) -> str:
  """The problem in words of the tiny vocabulary."""
  return f'{" ".join(map(str, numbers))} make {target}'


def split_of(text: str) -> str:
  """10% validation, 15% test, the rest train, by hash of the question."""
  place = base.bucket(text)
  return 'validation' if place < 10 else 'test' if place < 25 else 'train'


def translate(text: str, choose: Callable[[str], language.Language]) -> str:
  """The text with each of its words in the language chosen for that word."""
  return ' '.join(
    CHINESE[w] if w in CHINESE and choose(w) == 'zh' else w
    for w in text.split(' ')
  )


@dataclasses.dataclass(frozen=True)
class Countdown:
  """Three-number Countdown; hard problems only: few first moves succeed.

  Attributes:
    max_ways: most first moves from which the target can still be reached.
    min_ways: fewest such moves.
    languages: each problem is asked in one of these.
  """

  max_ways: int = 1
  min_ways: int = 1
  languages: tuple[language.Language, ...] = ('en',)
  name: str = 'countdown'

  def examples(self, split: str) -> list[base.Example]:
    """All distinct problems of the split, in a fixed order."""
    return [
      base.Example(
        uid=text, question=self._asked(text), target=f'{target} {numbers}'
      )
      for numbers, target, ways in _problems()
      if self.min_ways <= ways <= self.max_ways
      and split_of(text := question(numbers, target)) == split
    ]

  def _asked(self, text: str) -> str:
    place = base.bucket(f'language {text}', len(self.languages))
    return translate(text, lambda _: self.languages[place])

  def extract(self, text: str) -> str | None:
    """Finds what follows the last <answer>, else the last expression.

    A text without words is one expression, right or wrong.
    """
    if '<answer>' in text:
      stated = text.rsplit('<answer>', 1)[1].split('<')[0]
    elif not _WORDS.search(text):
      stated = text
    else:
      stated = (_EXPRESSION.findall(text) or [''])[-1]
    return stated.strip() or None

  def verify(self, answer: str, target: str) -> bool:
    """Whether the expression uses each number once and has the value."""
    value, _, numbers = target.partition(' ')
    return arithmetic.evaluate(answer, _OPERATORS) == (
      int(value),
      sorted(ast.literal_eval(numbers)),
    )

  def same(self, first: str, second: str) -> bool:
    """Answers are the same if their values and numbers are."""
    parsed = arithmetic.evaluate(first, _OPERATORS)
    if parsed is None:
      return first == second
    return parsed == arithmetic.evaluate(second, _OPERATORS)

  def count_tries(self, text: str) -> int:
    """Number of two-move attempts written down."""
    return len(_TRY.findall(text))

  def level(self, target: str) -> str:
    """How many first moves there are, and from how many it can be reached."""
    value, _, numbers = target.partition(' ')
    first = openings(ast.literal_eval(numbers))
    ways = sum(bool(endings(opening, int(value))) for opening in first)
    return f'{ways} of {len(first)}'

  def parts(self, text: str, target: str) -> dict[str, float]:
    """A process reward: what a step-wise verifier says of the thought.

    A try is sound if its arithmetic is right and it uses each number once,
    whether or not it reaches the target. `steps_mean` is the share of sound
    tries, 0 without any; `steps_sum` their number.
    """
    numbers = sorted(ast.literal_eval(target.partition(' ')[2]))
    thought = text.partition('</think>')[0]
    sound = [_is_sound(found, numbers) for found in _TRY.findall(thought)]
    return {
      'steps_mean': sum(sound) / max(len(sound), 1),
      'steps_sum': float(sum(sound)),
    }


def _is_sound(found: tuple[str, ...], numbers: list[int]) -> bool:
  """Whether a try (a op b = c, d op e = f) is right and plays by the rules.

  Args:
    found: the groups of `_TRY`.
    numbers: of the problem, sorted.
  """
  first, second = found[1], found[5]
  a, b, c, d, e, f = (int(found[i]) for i in (0, 2, 3, 4, 6, 7))
  left = [d, e]
  if c not in left:
    return False
  left.remove(c)
  return (
    sorted([a, b, *left]) == numbers
    and _OPERATIONS[first](a, b) == c
    and _OPERATIONS[second](d, e) == f
  )


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Documents that the tiny base is pre-trained on; the whole recipe.

  No document shows a held-out problem. First moves are drawn uniformly among
  those not tried yet, so nothing in the corpus says which one is right; the
  second move reaches the target, where one can, with probability
  `skilled_ending`. Every check is right: `ok` follows a try if and only if it
  reached the target. Kinds of documents:

  - drills (`drill_share`): headed `Search:`, a search that continues until it
    succeeds or has tried everything. They teach arithmetic, checking, and
    searching without repeats, under a heading that is never prompted.
  - conversations, headed as prompts are. `direct_share` of them answer with
    the first thing that comes to mind, thinking nothing. The others think,
    but give up after a failed try: most with probability `careless_stop`,
    linking tries mostly by neutral words; `careful_share` of them with
    `careful_stop`, linking them mostly by reflective ones. Who gives up
    answers with the last try although it failed. `fault_share` of the
    conversations have a fault in their tags.

  With two languages the question of each document is in one of them, and so
  are the words of its thought, except that `mixed_share` of the documents
  draw the language of every word of their thought anew.
  """

  drill_share: float = 0.4
  direct_share: float = 0.3
  careful_share: float = 0.35
  careless_stop: float = 0.6
  careful_stop: float = 0.35
  skilled_ending: float = 0.9
  fault_share: float = 0.62
  languages: tuple[language.Language, ...] = ('en',)
  mixed_share: float = 0.5

  @property
  def words(self) -> tuple[str, ...]:
    """The vocabulary, without padding and end of sequence."""
    return WORDS + (tuple(CHINESE.values()) if 'zh' in self.languages else ())

  @property
  def translations(self) -> dict[str, str]:
    """A word of `WORDS` with the meaning of each that is not one of them."""
    return {new: old for old, new in CHINESE.items() if new in self.words}

  def documents(self, seed: int) -> Iterator[str]:
    """An endless stream of documents."""
    rng = random.Random(seed)
    for text in self._documents(rng):
      yield text if self.languages == ('en',) else self._spoken(rng, text)

  def _spoken(self, rng: random.Random, text: str) -> str:
    asked = rng.choice(self.languages)
    mixed = rng.random() < self.mixed_share

    def choose(word: str) -> language.Language:
      is_asked = word == 'make' or not mixed
      return asked if is_asked else rng.choice(self.languages)

    return translate(text, choose)

  def _documents(self, rng: random.Random) -> Iterator[str]:
    seen = [
      (numbers, target)
      for numbers, target, _ in _problems()
      if split_of(question(numbers, target)) == 'train'
    ]
    while True:
      numbers, target = rng.choice(seen)
      if rng.random() < self.drill_share:
        words, _ = self._search(rng, numbers, target, 0.0, 0.5)
        yield f'Search: {question(numbers, target)} <think> {words} </think>'
      else:
        yield self._conversation(rng, numbers, target)

  def _conversation(
    self, rng: random.Random, numbers: tuple[int, ...], target: int
  ) -> str:
    if rng.random() < self.direct_share:
      left = list(openings(numbers))
      thought, answer = '', self._attempt(rng, left, target)
    else:
      careful = rng.random() < self.careful_share
      stop = self.careful_stop if careful else self.careless_stop
      thought, answer = self._search(
        rng, numbers, target, stop, 0.75 if careful else 0.15
      )
    first, last = answer
    # The result of the first move goes where the second one uses it.
    inner = f'( {first.left} {first.operation} {first.right} )'
    if last.left == first.result:
      stated = f'{inner} {last.operation} {last.right}'
    else:
      stated = f'{last.left} {last.operation} {inner}'
    parts = ['<think>', thought, '</think>', '<answer>', stated, '</answer>']
    if rng.random() < self.fault_share:
      parts = _with_fault(rng, parts)
    body = ' '.join(part for part in parts if part)
    return f'User: {question(numbers, target)} Assistant: {body}'

  def _attempt(
    self, rng: random.Random, left: list[tuple[Move, int]], target: int
  ) -> tuple[Move, Move]:
    """A first move, which is taken from those left, and a second one."""
    opening = rng.choice(left)
    left.remove(opening)
    found = endings(opening, target)
    if not found or rng.random() > self.skilled_ending:
      found = moves(opening[0].result, opening[1])
    return opening[0], rng.choice(found)

  def _search(
    self,
    rng: random.Random,
    numbers: tuple[int, ...],
    target: int,
    stop: float,
    reflective: float,
  ) -> tuple[str, tuple[Move, Move]]:
    """Tries until success or giving up: the words, and the last try."""
    left, words = list(openings(numbers)), []
    answer = self._attempt(rng, left, target)
    while True:
      words += map(str, answer)
      if answer[1].result == target:
        return ' '.join([*words, 'ok']), answer
      if rng.random() < stop or not left:
        return ' '.join([*words, rng.choice(NEUTRAL)]), answer
      answer = self._attempt(rng, left, target)
      links = REFLECTIVE if rng.random() < reflective else NEUTRAL
      words.append(rng.choice(links))


def _with_fault(rng: random.Random, parts: list[str]) -> list[str]:
  """The document's parts with one of its tags lost or said twice."""
  tags = [i for i, part in enumerate(parts) if part.startswith('<')]
  place = rng.choice(tags)
  if rng.random() < 0.7:
    return parts[:place] + parts[place + 1 :]
  return parts[: place + 1] + parts[place:]
