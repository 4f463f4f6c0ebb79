"""Shares of words, worked out by hand."""

import subprocess
import sys
import time

import pytest

from rlzero.text import language

QUESTION = '别人夸我中文说得好，我回答「哪里，哪里」，这是什么意思？'
CHINESE = (
  '用户问的是「哪里，哪里」的意思。字面上是问地点，但在回应夸奖时，它是一种'
  '谦虚的说法，意思是「过奖了」。等等，要不要检查一下语境？夸奖之后，对，就是'
  '谦虚。'
)
ENGLISH = (
  'Taken literally it asks for a place. In reply to a compliment it is a '
  'modest phrase that means "you flatter me". Wait, should we check the '
  'context? It follows a compliment, so yes: modesty, nothing else, and the '
  'speaker would be thanked for it in just this way by most people there, '
  'whatever the compliment was about.'
)


def test_no_jax_comes_with_the_module():
  code = (
    'import sys, rlzero.text.language; '
    'print([m for m in ("jax", "grain", "numpy") if m in sys.modules])'
  )
  out = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert out.stdout.strip() == '[]'


def test_reply_to_a_compliment():
  target = language.detect(QUESTION)
  assert target == 'zh'
  assert language.consistency(CHINESE, target) == 1
  assert language.consistency(CHINESE, 'en') == 0
  mixed = CHINESE + ENGLISH
  assert 0.4 < language.consistency(mixed, target) < 0.6
  assert language.consistency(ENGLISH, target) == 0


@pytest.mark.parametrize(
  'text, english, chinese, other',
  [
    ('wait, that is wrong', 4, 0, 0),
    ("it isn't well-known", 3, 0, 0),
    ('等等，不对', 0, 4, 0),
    ('等wait等', 1, 2, 0),  # no space between scripts
    ('9 * 5 = 45 45 - 3 = 42 wait 对', 1, 1, 0),
    ('所以 $x^2 + \\text{two} = 4$ 对', 0, 3, 0),
    ('令 \\(f\\) 与 \\[ \\frac{\\mathrm{area}}{2} \\]', 0, 2, 0),
    ('it costs $5 today', 3, 0, 0),
    ('所以 \\boxed{x} \\alpha', 0, 2, 0),
    ('设 x = 2, n_1 = foo(y), a1', 0, 1, 0),
    ('那么 sin x + log n', 0, 2, 0),
    ('函数 `return value` 对\n```python\nreturn other\n```\n完', 0, 4, 0),
    ('还没写完\n```python\nreturn other', 0, 4, 0),
    ('<think> 对 </think> <answer> 1 </answer>', 0, 1, 0),
    ('看 https://example.org/some/page 吧', 0, 2, 0),
    ('打开 main.py', 0, 2, 0),
    ('It ends. Then more', 4, 0, 0),
    ('It ends.Then more', 4, 0, 0),
    ('café naïve', 2, 0, 0),
    ('привет мир', 0, 0, 2),
    ('です', 0, 0, 2),
    ('1234 + 5678 = ，。！', 0, 0, 0),
    ('', 0, 0, 0),
  ],
)
def test_words_by_hand(text, english, chinese, other):
  expected = {'en': english, 'zh': chinese, 'other': other}
  assert language.count_words(text) == expected


@pytest.mark.parametrize(
  'text',
  [
    'so we add them $我们先把这些数字加起来$ then',
    'so we add them `我们先把这些数字加起来` then',
    'so we add them ```\n我们先把这些数字加起来\n``` then',
    'so we add $\\text{我们先把这些数字加起来}$ then',
    'so we add \\(我们先把这些数字加起来\\) then',
    'so we add <我们先把这些数字加起来> then',
    'so we add https://example.org/我们先把这些数字加起来 then',
    'so we add them `これはかなです` then',
  ],
)
def test_other_scripts_are_not_hidden_in_neutral_places(text):
  assert language.consistency(text, 'en') < 0.5


@pytest.mark.parametrize(
  'text',
  [
    '先加 `first we add all of the numbers` 对',
    '先加 $\\text{first we add all of the numbers}$ 对',
    '先加 $first~we~add all of the numbers$ 对',
    '先加 <first we add all of the numbers> 对',
    '先加 ```first we add, all of the numbers``` 对',
    '先加对' + ' `first we add` `all of them` `then go on`' * 3,
    '先加对 first_we_add_ all_of_the_ numbers_then_we_ go_on_to_see',
    '先加对 \\first \\we \\add \\all \\of \\the \\many \\numbers \\now',
  ],
)
def test_english_is_not_hidden_in_neutral_places(text):
  assert language.consistency(text, 'zh') < 0.7


@pytest.mark.parametrize('mark', ['`{}`', '${}$', '```{}```', '\\text{{{}}}'])
def test_a_thought_that_is_nearly_all_neutral_earns_nothing(mark):
  for words in ('first we add the numbers', '先把数字加起来', 'aa_1 foo(b)'):
    text = '对 yes ' + ' '.join([mark.format(words)] * 30)
    assert language.consistency(text, 'en') == 0
    assert language.consistency(text, 'zh') == 0


def test_code_of_a_question_is_in_no_language():
  question = '写一个函数\n```python\n' + 'return other value here\n' * 9 + '```'
  assert language.detect(question) == 'zh'


def test_silence_earns_nothing():
  assert language.consistency('9 * 5 = 45', 'en') == 0


def test_other_scripts_lower_the_share():
  assert language.consistency('好 привет', 'zh') == 0.5


def test_an_even_question_has_the_default_language():
  assert language.detect('1 + 1', 'zh') == 'zh'
  assert language.detect('hello 好') == 'en'
  assert (
    language.detect('What does 「哪里，哪里」 mean as a reply here?') == 'en'
  )


def test_thought_is_what_its_tags_enclose():
  whole = '<think> 对 </think> <answer> wait </answer>'
  assert language.thought(whole) == '对'
  assert language.thought('<think> 对 wait') == '<think> 对 wait'
  # The prompt may have begun the thought.
  assert language.thought('I add </think> 答') == 'I add'
  assert language.thought('<think> a </think> b </think> c') == ('a </think> b')


@pytest.mark.long
def test_time_is_linear_in_hostile_text():
  began = time.process_time()
  for part in (
    '$',
    '$$a',
    '`',
    '\\(',
    '\\[ a',
    '<',
    'a',
    'a.',
    'a_',
    '\\text{',
  ):
    language.count_words(part * 100_000)
  assert time.process_time() - began < 10  # quadratic: minutes
