"""The problems, the judge, and what the corpus says and does not say."""

import collections
import functools
import hashlib
import itertools
import re
import subprocess
import sys

import pytest

from rlzero.tasks import base, countdown
from rlzero.text import language

TASK = countdown.Countdown()
TARGET = '18 (9, 5, 3)'


def test_no_jax_comes_with_the_module():
  # In a process of its own, as the reward workers are.
  code = (
    'import sys, rlzero.tasks.countdown as c; c.Countdown().name; '
    'print([m for m in ("jax", "grain", "numpy") if m in sys.modules])'
  )
  out = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert out.stdout.strip() == '[]'


def test_solver_by_hand():
  # 3 2 1: three pairs and three operations; no result is outside 1 to 99.
  found = {(str(move), rest) for move, rest in countdown.openings((3, 2, 1))}
  assert found == {
    ('3 + 2 = 5', 1),
    ('3 - 2 = 1', 1),
    ('3 * 2 = 6', 1),
    ('3 + 1 = 4', 2),
    ('3 - 1 = 2', 2),
    ('3 * 1 = 3', 2),
    ('2 + 1 = 3', 3),
    ('2 - 1 = 1', 3),
    ('2 * 1 = 2', 3),
  }
  # Only (2 + 1) * 3 is 9, only 3 * 2 + 1 is 7 and only (3 + 1) * 2 is 8, but
  # 5 is 3 * 2 - 1, 3 * 1 + 2, 2 * 1 + 3 and (3 + 2) * 1.
  ways = {
    target: ways
    for numbers, target, ways in countdown._problems()
    if numbers == (3, 2, 1)
  }
  assert {t: ways[t] for t in (9, 7, 8, 5)} == {9: 1, 7: 1, 8: 1, 5: 4}
  assert sorted(ways) == list(range(1, 10))


def test_moves_stay_from_1_to_99():
  assert [str(m) for m in countdown.moves(4, 4)] == ['4 + 4 = 8', '4 * 4 = 16']
  assert [str(m) for m in countdown.moves(2, 90)] == [
    '90 + 2 = 92',
    '90 - 2 = 88',
  ]


def test_splits_are_disjoint_and_always_the_same():
  splits = {
    split: TASK.examples(split) for split in ('train', 'validation', 'test')
  }
  for split, examples in splits.items():
    assert examples == countdown.Countdown().examples(split)
    assert len({e.uid for e in examples}) == len(examples) > 50
  for first, second in itertools.combinations(splits.values(), 2):
    assert not {e.question for e in first} & {e.question for e in second}
  # Shares follow the hash: 75, 10 and 15 percent, to four deviations.
  total = sum(map(len, splits.values()))
  for split, share in (('train', 0.75), ('validation', 0.1), ('test', 0.15)):
    spread = 4 * (share * (1 - share) / total) ** 0.5
    assert abs(len(splits[split]) / total - share) < spread
  assert isinstance(TASK, base.Task)


def test_examples_can_be_solved_in_few_ways():
  for example in TASK.examples('validation')[::20]:
    numbers = tuple(map(int, example.question.split(' make ')[0].split()))
    target = int(example.question.split()[-1])
    solutions = {
      (str(opening[0]), str(ending))
      for opening in countdown.openings(numbers)
      for ending in countdown.endings(opening, target)
    }
    assert len({first for first, _ in solutions}) == 1


@pytest.mark.parametrize(
  'answer',
  [
    '( 5 - 3 ) * 9',
    '9 * ( 5 - 3 )',
    '9*(5-3)',
    '(9)*(5-3)',
    '  9 * ( 5 - 3 )\n',
  ],
)
def test_right_answers(answer):
  assert TASK.verify(answer, TARGET)


@pytest.mark.parametrize(
  'answer',
  [
    '',
    '18',
    '9 * 2',  # numbers missing
    '9 + 9',
    '9 * 5 - 9 * 3',  # used twice
    '9 * ( 5 - 3 ) * 1',  # one too many
    '9 + 5 + 3',  # another value
    '9 * ( 5 - 3',
    '9 / ( 5 - 3 )',
    '36 / 2',
    '9 ** ( 5 - 3 )',
    '-3 + 9 + 5',
    '9 * ( 5 - 3 ) = 18',
    '9 * (5 - 3.0)',
    '0x9 * (5 - 3)',
    "__import__('os').system('true')",
    '(lambda: 18)()',
    '9 * (5 - 3) if 1 else 2',
    '9 if 5 else 3',
    '[9, 5, 3]',
    '9' * 5000,
    '9*' * 5_000_000,
    '(' * 5_000_000,
    '\0',
    '９ * (５ - ３)',
    'é*(5-3)',
  ],
  ids=lambda answer: repr(answer[:20]),
)
def test_wrong_answers(answer):
  assert not TASK.verify(answer, TARGET)


def test_true_is_no_number():
  assert TASK.verify('( 2 + 1 ) * 3', '9 (3, 2, 1)')
  assert not TASK.verify('( 2 + True ) * 3', '9 (3, 2, 1)')


@pytest.mark.parametrize(
  'text, answer',
  [
    ('<think> x </think> <answer> 1 + 2 </answer>', '1 + 2'),
    ('<answer> 1 </answer> <answer> 2 * ( 3 )', '2 * ( 3 )'),
    ('<answer> </answer>', None),
    ('<answer>', None),
    ('9 * 5 = 45 45 - 3 = 42 ok ( 5 - 3 ) * 9 </answer>', '( 5 - 3 ) * 9'),
    ('nothing', None),
    ('', None),
  ],
)
def test_extract(text, answer):
  assert TASK.extract(text) == answer


def test_same():
  assert TASK.same('9 * ( 5 - 3 )', '(5-3)*9')
  assert not TASK.same('9 * ( 5 - 3 )', '9 + 9')  # other numbers
  assert not TASK.same('1 + 2', '1 + 3')
  assert TASK.same('junk', 'junk')
  assert not TASK.same('junk', 'other') and not TASK.same('1 + 2', 'junk')


def test_count_tries():
  text = '9 * 5 = 45 45 - 3 = 42 wait 5 - 3 = 2 2 * 9 = 18 ok'
  assert TASK.count_tries(text) == 2
  assert TASK.count_tries('9 * 5 = 45 wait') == 0
  assert TASK.count_tries('') == 0


CORPUS = countdown.Corpus()
NUM_DOCUMENTS = 2000
APPLY = {
  '+': lambda a, b: a + b,
  '-': lambda a, b: a - b,
  '*': lambda a, b: a * b,
}
TRY = re.compile(r'(\d+) ([-+*]) (\d+) = (\d+) (\d+) ([-+*]) (\d+) = (\d+)')
WHOLE = re.compile(
  r'User: .* Assistant: <think>( .*)? </think> <answer> .* </answer>'
)


@pytest.fixture(scope='module')
def documents():
  return list(itertools.islice(CORPUS.documents(0), NUM_DOCUMENTS))


def test_documents_are_seeded(documents):
  again = itertools.islice(CORPUS.documents(0), 50)
  assert list(again) == documents[:50]
  assert list(itertools.islice(CORPUS.documents(1), 50)) != documents[:50]


def test_every_document_is_in_the_vocabulary_and_short(documents):
  for document in documents:
    words = document.split()
    assert set(words) <= set(countdown.WORDS)
    assert len(words) < 128  # with the end-of-sequence token at most 128
  assert len(set(countdown.WORDS)) == len(countdown.WORDS)


def test_no_held_out_problem_occurs(documents):
  held_out = {
    e.question
    for split in ('validation', 'test')
    for e in countdown.Countdown(max_ways=99).examples(split)
  }
  for document in documents:
    question = re.search(r'([\d ]+ make \d+)', document)[1].strip()
    assert question not in held_out
    assert document.count('make') == 1


def test_arithmetic_and_checks_are_right(documents):
  reached = failed = 0
  for document in documents:
    numbers, target = re.search(r'([\d ]+) make (\d+)', document).groups()
    tries = list(TRY.finditer(document))
    assert document.count('=') == 2 * len(tries)
    ended = [document[t.end() :].split()[0] for t in tries]
    for found, link in zip(tries, ended, strict=True):
      a, first, b, c, d, second, e, f = found.groups()
      assert APPLY[first](int(a), int(b)) == int(c)
      assert APPLY[second](int(d), int(e)) == int(f)
      # The second move takes the first one's result and the number left.
      left = collections.Counter(numbers.split())
      left[a] -= 1
      left[b] -= 1
      assert min(left.values()) >= 0
      rest = next(iter(+left))
      assert sorted((d, e)) == sorted((c, rest))
      # `ok` if and only if the target is reached.
      assert (link == 'ok') == (f == target), document
      reached += f == target
      failed += f != target
    assert document.count('ok') == ended.count('ok')
    # No try is made twice.
    openings = [t[0].split(' = ')[0] + t[0].split()[4] for t in tries]
    assert len(openings) == len(set(openings))
  assert reached > 300 and failed > 300


def test_shares_are_as_configured(documents):
  def check(count, total, share):
    spread = 4 * (share * (1 - share) / total) ** 0.5
    assert abs(count / total - share) < spread

  drills = [d for d in documents if d.startswith('Search: ')]
  talks = [d for d in documents if d.startswith('User: ')]
  assert len(drills) + len(talks) == NUM_DOCUMENTS
  check(len(drills), NUM_DOCUMENTS, CORPUS.drill_share)
  assert all(re.fullmatch(r'Search: .* <think> .* </think>', d) for d in drills)
  sound = [
    d
    for d in talks
    if WHOLE.fullmatch(d) and len(re.findall('<[^>]*>', d)) == 4
  ]
  check(len(talks) - len(sound), len(talks), CORPUS.fault_share)
  direct = [d for d in talks if '=' not in d]
  check(len(direct), len(talks), CORPUS.direct_share)


@pytest.mark.long
def test_conversations_answer_with_their_last_try(documents):
  right = wrong = 0
  for document in documents:
    if not document.startswith('User: ') or '<answer>' not in document:
      continue
    numbers, target = re.search(r'([\d ]+) make (\d+)', document).groups()
    answer = TASK.extract(document)
    good = TASK.verify(answer, f'{target} {tuple(map(int, numbers.split()))}')
    right, wrong = right + good, wrong + (not good)
    if '=' in document:
      assert good == (' ok ' in document)
  assert right > 100 and wrong > 100


def test_a_process_reward_judges_every_try():
  task = countdown.Countdown()
  judge = functools.partial(task.parts, target='42 (9, 5, 3)')
  right, miss = '9 * 5 = 45 45 - 3 = 42', '9 + 5 = 14 14 * 3 = 42'
  assert judge(f'<think> {right} ok </think>') == {
    'steps_mean': 1.0,
    'steps_sum': 1.0,
  }
  # A sound try need not reach the target; these are no sound ones: wrong
  # sums, a number twice, a result that is not used, a number of no problem.
  for bad in (
    '9 * 5 = 44 44 - 3 = 41',
    '9 * 5 = 45 45 - 3 = 43',
    '9 * 9 = 81 81 - 3 = 78',
    '9 * 5 = 45 9 - 3 = 6',
    '9 * 5 = 45 45 - 2 = 43',
  ):
    thought = f'<think> {miss} wait {bad} no {right} ok </think>'
    assert judge(thought)['steps_sum'] == 2.0, bad
    assert judge(thought)['steps_mean'] == pytest.approx(2 / 3)
  assert judge('<answer> 1 </answer>')['steps_mean'] == 0.0
  # What stands after the thought is no step of it.
  assert judge(f'<think> </think> {right}')['steps_sum'] == 0.0


def test_a_corpus_in_two_languages():
  corpus = countdown.Corpus(languages=('en', 'zh'))
  assert corpus.words == (*countdown.WORDS, *countdown.CHINESE.values())
  assert corpus.translations['等'] == 'wait'
  texts = list(itertools.islice(corpus.documents(0), 2000))
  assert {w for t in texts for w in t.split(' ')} <= set(corpus.words)
  mixed, chinese, pure = [], [], []
  for text in texts:
    asked = re.match(r'\w+: [\d ]+(make|得) \d+', text)[1]
    counts = language.count_words(text.split('<think>')[-1])
    # With six words or more, one language by chance is rare.
    if sum(counts.values()) >= 6 and '<think>' in text:
      asked = 'zh' if asked == '得' else 'en'
      mixed.append(0 < counts['en'] < sum(counts.values()))
      pure += [counts[asked] > 0] * (not mixed[-1])
      chinese.append(asked == 'zh')
  assert abs(sum(mixed) / len(mixed) - corpus.mixed_share) < 0.1
  assert abs(sum(chinese) / len(chinese) - 0.5) < 0.1
  assert sum(pure) / len(pure) > 0.9


def test_the_corpus_in_one_language_is_what_the_base_has_seen():
  texts = itertools.islice(countdown.Corpus().documents(0), 1000)
  digest = hashlib.sha256('\n'.join(texts).encode()).hexdigest()
  assert digest.startswith('8a1c5a3e11335063')


def test_a_problem_is_asked_in_one_language_and_split_by_its_english():
  both = countdown.Countdown(languages=('en', 'zh'))
  for split in ('train', 'validation', 'test'):
    examples = both.examples(split)
    assert [e.uid for e in examples] == [e.uid for e in TASK.examples(split)]
    chinese = [e for e in examples if '得' in e.question]
    assert abs(len(chinese) / len(examples) - 0.5) < 0.1
    for example in examples:
      assert example.question.replace('得', 'make') == example.uid
