"""Shared n-grams between training text and evaluation problems."""

import dataclasses
import pickle
import random
import subprocess
import sys
import time

import pytest

from rlzero.evaluation import contamination
from rlzero.tasks import base, countdown
from rlzero.tasks.datasets import code

_QUESTION = (
  'Every morning Aya walks 9 kilometers and stops at a coffee shop, then she '
  'goes home. How long does it take?'
)
_PROBLEMS = [
  base.Example('aime-1', _QUESTION, '204'),
  base.Example('short', 'What is 2 + 3?', '5'),
]


def test_ten_words_in_a_row():
  index = contamination.Index(_PROBLEMS)
  # Punctuation, case and line breaks are not words.
  near = 'every MORNING, aya walks 9\nkilometers; and stops at -- '
  shared = 'Every morning Aya walks 9 kilometers and stops at a'
  assert index.has(f'Once more: {shared} bar.')
  assert not index.has(near.replace('--', '') + 'the bar')  # nine in a row
  (found,) = index.overlaps('t7', f'So. {shared} coffee house')
  assert found == ('t7', 'aime-1', shared.lower())
  # A long training text counts as much as a short one.
  filler = 'word ' * 500
  assert index.has(f'{filler} {_QUESTION} {filler}')


def test_a_question_shorter_than_the_ngram_is_one_as_it_is():
  index = contamination.Index(_PROBLEMS)
  assert index.has('<think> what is 2 + 3 ? it is 5 </think>')
  assert not index.has('what is 2 * 3?')  # the operator counts
  assert not index.has('what is 2 + 4?')


def test_scripts_without_spaces_count_characters():
  problem = base.Example('zh', '小明有三个苹果和五个梨子一共', '8')
  index = contamination.Index([problem])
  assert index.has('题:小明有三个苹果和五个')
  assert not index.has('小明有三个苹果和五')


def test_report_names_item_problem_and_words():
  training = [('t0', 'nothing here'), ('t1', f'{_QUESTION} 42')]
  got = contamination.report(
    training, {'aime': _PROBLEMS[:1], 'sums': _PROBLEMS[1:]}
  )
  assert got['num_train'] == 2 and got['num_train_overlapping'] == 1
  assert got['sets']['aime'] == {
    'num_problems': 1,
    'num_overlapping': 1,
    'overlaps': [
      {
        'train': 't1',
        'evaluation': 'aime-1',
        'ngram': 'every morning aya walks 9 kilometers and stops at a',
      }
    ],
  }
  assert got['sets']['sums']['overlaps'] == []


def test_a_gram_of_two_problems_names_both():
  twins = [base.Example(uid, _QUESTION, '1') for uid in ('a', 'b')]
  found = contamination.Index(twins).overlaps('t', _QUESTION)
  assert [o.evaluation for o in found] == ['a', 'b']


@dataclasses.dataclass(frozen=True)
class Leaky(countdown.Countdown):
  """Countdown whose training problems hold five of the test's."""

  def examples(self, split):
    found = super().examples(split)
    return found + super().examples('test')[:5] if split == 'train' else found


def test_any_task_can_be_filtered():
  clean = countdown.Countdown()
  task = contamination.Decontaminated(Leaky(), (clean,))
  task = pickle.loads(pickle.dumps(task))
  assert isinstance(task, base.Task)
  assert list(task.examples('train')) == clean.examples('train')
  assert task.examples('test') == clean.examples('test')
  assert task.name == clean.name


def test_a_filtered_task_judges_as_before():
  """What only some tasks have too: parts, a rating, something to load."""
  task = contamination.Decontaminated(countdown.Countdown(), ())
  task = pickle.loads(pickle.dumps(task))
  assert task.parts('2 + 3 = 5 5 * 4 = 20', '20 (4, 3, 2)')['steps_sum'] == 1
  assert not hasattr(task, 'rating') and not hasattr(task, 'warm_up')
  task = contamination.Decontaminated(code.Codeforces(), ())
  assert task.rating('{"rating": 1500}') == 1500


def test_ngrams_are_at_least_one_word():
  with pytest.raises(ValueError, match='num_words 0; it must be at least 1'):
    contamination.Index(_PROBLEMS, 0)


def test_a_million_words_in_seconds():
  rng = random.Random(0)
  words = [str(rng.randrange(5000)) for _ in range(1_000_000)]
  problems = [
    base.Example(str(i), ' '.join(rng.choices(words, k=60)), '')
    for i in range(500)
  ]
  text = ' '.join(words)
  index = contamination.Index(problems)
  start = time.process_time()
  assert not index.has(text)
  assert time.process_time() - start < 10  # about 1 s; a loop takes 500


def test_neither_jax_nor_grain_is_loaded():
  code = (
    'import sys, rlzero.evaluation.contamination\n'
    'print({"jax", "grain"} & set(sys.modules))'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True
  )
  assert done.stdout.strip() == 'set()', done.stderr
