"""Tasks from the generators of the reasoning-gym library, by their names.

Problems are made in a process of its own with a fixed hash seed: some of the
generators walk over sets, and would make other problems in each run.
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from rlzero.runtime import fields, files
from rlzero.runtime.fields import at_least
from rlzero.tasks import base, constants, generators, verify

_CHUNK = 500  # problems a generator is asked for at once
_MARK = 'reasoning-gym problems: '


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReasoningGym:
  """A reasoning-gym dataset; problems are distinct, splits disjoint.

  The split of a problem is a hash of its question: 10% validation, 15% test,
  the rest train. So no setting can move a problem from one to another.

  Raises:
    ValueError: a negative number, or options that are not plain values.
  """

  dataset: str  # name in reasoning-gym, such as 'chain_sum'
  num_train: int  # problems
  num_validation: int
  num_test: int
  seed: int = 0
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    fields.check(
      self,
      num_train=at_least(0),
      num_validation=at_least(0),
      num_test=at_least(0),
      seed=fields.SEED,
    )
    try:
      json.dumps(dict(self.options), allow_nan=False)
    except (TypeError, ValueError) as error:
      raise ValueError(
        f'ReasoningGym.options is {self.options!r}; use finite numbers, '
        'strings, lists and dicts only.'
      ) from error

  @property
  def name(self) -> str:
    return self.dataset

  def examples(self, split: str) -> list[base.Example]:
    """The problems of a split, in the order of generation.

    Raises:
      ValueError: no such split or dataset, options it refuses, or fewer
        distinct problems than asked for.
    """
    sizes = {
      'train': self.num_train,
      'validation': self.num_validation,
      'test': self.num_test,
    }
    if split not in sizes:
      raise ValueError(
        f'{self.dataset} has no split {split!r}; choose one of '
        f'{", ".join(sizes)}.'
      )
    order = files.to_json(
      [self.dataset, dict(self.options), self.seed, sizes], sort_keys=True
    )
    return [base.Example(*fields) for fields in _generate(order)[split]]

  def extract(self, text: str) -> str | None:
    return verify.last_answer(text, _is_numeric(*self._key))

  def verify(self, answer: str, target: str) -> bool:
    entry = json.loads(target)
    if 'metadata' not in entry:
      return verify.equal(answer, entry['answer'])
    generator = _scorer(*self._key)
    return generators.is_right(self.dataset, generator, answer, entry)

  def same(self, first: str, second: str) -> bool:
    return verify.equal(first, second)

  def count_tries(self, text: str) -> int:
    return verify.count_results(text)

  def level(self, target: str) -> str:
    """The counts that the generator says make a problem hard, such as terms.

    '' for all problems of a generator that says none.
    """
    facts = json.loads(target).get('metadata') or {}
    found = {}
    for name in sorted(facts.get('difficulty') or ()):
      value = facts.get(name)
      if isinstance(value, list):
        found[name] = len(value)
      elif isinstance(value, int) and name.startswith('num_'):
        found[name] = value
    return ' '.join(f'{name}={value}' for name, value in found.items())

  def warm_up(self) -> None:
    """Loads the generators, which takes seconds, and what `same` needs."""
    _is_numeric(*self._key)
    verify.warm_up()

  @property
  def _key(self) -> tuple[str, str, int]:
    return self.dataset, files.to_json(dict(self.options)), self.seed


@dataclasses.dataclass(frozen=True, kw_only=True)
class InOrder(ReasoningGym):
  """The generator's problems 0, 1, 2, ... with repetitions and no splits.

  For timing against other programs on the same problems, not for training.
  """

  num_validation: int = 0
  num_test: int = 0

  def examples(self, split: str) -> list[base.Example]:
    """The first `num_train` problems, as split 'train'."""
    if split != 'train':
      raise ValueError(f'InOrder has the split train alone, not {split!r}.')
    order = files.to_json(
      [self.dataset, dict(self.options), self.seed, self.num_train]
    )
    return [base.Example(*fields) for fields in _generate(order)]


def split_of(question: str) -> str:
  """The split that a question belongs to, whatever the seed and sizes."""
  place = base.bucket(question)
  return 'validation' if place < 10 else 'test' if place < 25 else 'train'


@functools.lru_cache(maxsize=8)
def _generate(order: str) -> Any:
  """Runs `_main` on the order; raises what it reports."""
  name = json.loads(order)[0]
  if note := constants.MOSTLY.get(name):
    print(
      f'reasoning-gym {name!r}: always answering {note[0]!r} is right for '
      f'{note[1]:.0%} of the problems; a policy may learn no more than that.',
      file=sys.stderr,
      flush=True,
    )
  done = subprocess.run(
    [sys.executable, '-m', 'rlzero.tasks.procedural'],
    input=order,
    capture_output=True,
    text=True,
    env={
      **os.environ,
      'PYTHONPATH': os.pathsep.join(sys.path),
      'PYTHONHASHSEED': '0',
    },
  )
  # The mark tells the reply from whatever a generator may print.
  _, mark, reply = done.stdout.rpartition(_MARK)
  if not mark:
    raise ValueError(
      f'reasoning-gym failed to make the problems of {order}: '
      f'{(done.stderr.strip().splitlines() or ["no message"])[-1]}'
    )
  reply = json.loads(reply)
  if isinstance(reply, str):
    raise ValueError(reply)
  return reply


def _main() -> None:
  name, options, seed, sizes = json.load(sys.stdin)
  try:
    if isinstance(sizes, int):
      reply = _first(name, options, seed, sizes)
    else:
      reply = _fill(name, options, seed, sizes)
  except ValueError as error:
    reply = str(error)
  print(_MARK + files.to_json(reply))


def _fill(
  name: str, options: dict, seed: int, sizes: dict[str, int]
) -> dict[str, list[list[str]]]:
  """Draws problems until each split has its size."""
  found: dict[str, list] = {split: [] for split in sizes}
  seen = set()
  num_drawn = last_new = 0

  def is_full():
    return all(len(found[split]) == sizes[split] for split in sizes)

  while not is_full():
    # Generators seed problem i with seed + i, so chunks continue each other.
    generator = make_generator(name, options, seed + num_drawn)
    for index in range(_CHUNK):
      if is_full():
        break
      try:
        entry = generator[index]
      except IndexError:  # it holds fewer than a chunk
        break
      question = entry['question']
      split = split_of(question)
      if question not in seen and len(found[split]) < sizes[split]:
        last_new = num_drawn + index
        found[split].append(_fields(name, generator, entry))
      seen.add(question)
    num_drawn += _CHUNK
    # Many draws in vain: a space this small has been seen nearly whole.
    if num_drawn - last_new > 2 * (_CHUNK + len(seen)):
      break
  for split, size in sizes.items():
    if len(found[split]) < size:
      raise ValueError(
        f'{name} with options {options} has {len(found[split])} distinct '
        f'{split} problems among {num_drawn} drawn, but num_{split} is '
        f'{size}; ask for fewer or widen the options.'
      )
  uids = [uid for problems in found.values() for uid, _, _ in problems]
  assert len(set(uids)) == len(uids), 'splits overlap'
  return found


def _first(name: str, options: dict, seed: int, count: int) -> list[list[str]]:
  """The first problems of a generator, in their order."""
  generator = make_generator(name, options, seed, count)
  return [_fields(name, generator, generator[i]) for i in range(count)]


def _fields(name: str, generator: Any, entry: dict) -> list[str]:
  """The fields of an example."""
  question = entry['question']
  digest = hashlib.sha256(question.encode()).hexdigest()
  return [f'{name}-{digest[:16]}', question, _target(name, generator, entry)]


def _target(name: str, generator: Any, entry: dict) -> str:
  """Writes the facts of a problem that the verifier needs, as JSON.

  A few generators score by what JSON cannot keep, such as tuples; theirs
  holds the answer alone.

  Raises:
    ValueError: there is no answer either.
  """
  fields = ('question', 'answer', 'metadata')
  answer = entry['answer']
  try:
    target = json.dumps({f: entry[f] for f in fields}, allow_nan=False)
  except (TypeError, ValueError):
    if answer is None:
      raise ValueError(
        f'reasoning-gym {name!r} has a problem without an answer, whose facts '
        'JSON cannot keep; choose another dataset.'
      ) from None
  else:
    if answer is None or (
      generator.score_answer(answer, json.loads(target)) >= generators.RIGHT
    ):
      return target
  return files.to_json({'answer': answer})


def make_generator(
  name: str, options: dict, seed: int, size: int = _CHUNK, check: bool = True
) -> Any:
  """A generator of reasoning-gym.

  Args:
    name: in reasoning-gym.
    options: of the generator.
    seed: of problem 0; problem i has seed + i.
    size: problems.
    check: whether one that takes anything for an answer is refused.

  Raises:
    ValueError: no such name or option, or a value that it refuses.
  """
  from reasoning_gym.factory import DATASETS

  if name not in DATASETS:
    near = difflib.get_close_matches(name, DATASETS) or sorted(DATASETS)
    raise ValueError(
      f'reasoning-gym has no dataset {name!r}; did you mean '
      f'{" or ".join(near)}?'
    )
  make, config = DATASETS[name]
  _check_safe(name, make)
  if check and (why := constants.REFUSED.get(name)):
    raise ValueError(
      f'reasoning-gym {name!r} cannot be a task: {why}; choose another dataset.'
    )
  known = {field.name for field in dataclasses.fields(config)}
  known -= {'seed', 'size'}  # fields of the task, and ours to set
  if unknown := sorted(set(options) - known):
    raise ValueError(
      f'{name} has no option {unknown[0]!r}; it has {", ".join(sorted(known))}.'
    )
  try:
    return make(config=config(seed=seed, size=size, **options))
  except (AssertionError, TypeError, ValueError) as error:
    raise ValueError(f'{name} refuses its options {options}: {error}') from None


def _check_safe(name: str, make: type) -> None:
  if name == 'composite':
    raise ValueError(
      "reasoning-gym's 'composite' hands answers to other generators, unseen "
      'by the checks; name each of its datasets as a task of its own.'
    )
  if name in generators.GUARDS or name in generators.RUNS_PROBLEM:
    if make.__module__.startswith('reasoning_gym.'):
      return
  if found := generators.executes(make):
    raise ValueError(
      f'reasoning-gym {name!r} may run the answer as a program ({found}), so '
      'a completion could set its own reward; choose another dataset.'
    )


@functools.lru_cache(maxsize=8)
def _scorer(name: str, options: str, seed: int) -> Any:
  generator = make_generator(name, json.loads(options), seed)
  # Loads what its scorer imports: no text may run while it scores answers.
  generator.score_answer('0', generator[0])
  return generator


@functools.lru_cache(maxsize=8)
def _is_numeric(name: str, options: str, seed: int) -> bool:
  """Whether the answers are numbers; then the last number is the answer."""
  generator = _scorer(name, options, seed)
  answers = [generator[index]['answer'] for index in range(4)]
  return all(a is not None and verify.number(a) is not None for a in answers)


if __name__ == '__main__':
  _main()
