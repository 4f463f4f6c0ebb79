"""Template and parser, which promise and check the same thing."""

import pytest

from rlzero.text import template

GOOD = '<think> 1 + 1 = 2 </think> <answer> 2 </answer>'


def test_r1_zero_is_table_1():
  text = template.Template('r1_zero').render('What is {x}?')
  assert text.startswith('A conversation between User and Assistant. The user')
  assert text.endswith(
    'i.e., <think> reasoning process here </think> <answer> answer here '
    '</answer>. User: What is {x}?. Assistant:'
  )
  assert template.Template('short').render('1 2') == 'User: 1 2 Assistant:'


def test_what_the_template_shows_the_parser_accepts():
  shown = template.R1_ZERO.split('i.e., ')[1].split('. User')[0]
  assert template.parse(shown) == template.Parsed(
    'reasoning process here', 'answer here', True
  )


def test_plain_is_the_question_alone():
  ask = template.Template('plain')
  assert ask.render('What is 1 + 1?') == 'What is 1 + 1?'
  assert not ask.has_format
  with pytest.raises(ValueError, match="set kind to 'chat'"):
    template.Template('plain', suffix='!')


def test_chat_passes_system_and_suffix():
  ask = template.Template('chat', system='Be brief.', suffix=' Box it.')
  assert not ask.has_format
  assert ask.render('1+1?', chat=lambda messages: repr(messages)) == repr(
    [
      {'role': 'system', 'content': 'Be brief.'},
      {'role': 'user', 'content': '1+1? Box it.'},
    ]
  )
  with pytest.raises(ValueError, match='no chat template; use'):
    ask.render('1+1?')


def test_bad_fields():
  with pytest.raises(ValueError, match="'r2'; choose one of r1_zero, short"):
    template.Template('r2')
  with pytest.raises(ValueError, match="no use to 'short'"):
    template.Template('short', suffix='!')


@pytest.mark.parametrize(
  'text',
  [GOOD, f'\n {GOOD}\n', '<think></think><answer>2</answer>'],
)
def test_well_formed(text):
  parsed = template.parse(text)
  assert parsed.well_formed and parsed.answer == '2'


@pytest.mark.parametrize(
  'text',
  [
    '',
    '2',
    '<answer>2</answer>',
    '<think>2</think>',
    '<think>2</think><answer>2',
    '<think>2<answer>2</answer>',
    '<think>2</think>2</answer>',
    '<think>2</think><answer></answer>',
    '<think>2</think><answer> \n </answer>',
    f'so {GOOD}',
    f'{GOOD} so',
    '<think>2</think> so <answer>2</answer>',
    f'{GOOD}{GOOD}',
    f'{GOOD}<answer>2</answer>',
    f'<think>{GOOD}',
    f'<think>{GOOD}</think>',
    '<think><think>2</think></think><answer>2</answer>',
    '<think><answer>2</answer></think>',
    '<think><answer>2</answer></think><answer>2</answer>',
    '<think>2</think><answer><answer>2</answer></answer>',
    '<think>2</think><answer><think>2</think>2</answer>',
    '<answer>2</answer><think>2</think>',
    '</think><think><answer>2</answer>',
    '<THINK>2</THINK><ANSWER>2</ANSWER>',
    '<think>2</think><Answer>3</Answer><answer>2</answer>',
    '<think>2< / think></think><answer>2</answer>',
  ],
)
def test_faults_are_not_well_formed(text):
  assert not template.parse(text).well_formed


@pytest.mark.parametrize(
  'text, answer',
  [
    ('<answer>2</answer>', '2'),
    (f'{GOOD} so', '2'),
    (f'{GOOD}<answer>3</answer>', None),
    ('<think><answer>2</answer></think>', None),
    ('<think>2<answer>2</answer>', None),
  ],
)
def test_answer_of_a_malformed_completion(text, answer):
  assert template.parse(text).answer == answer


def test_reflective_words():
  text = 'Wait, that is wrong. But checks awaited: CHECK, re-evaluate; error'
  assert template.reflective_words(text) == 6  # not 'checks', not 'awaited'
  assert template.reflective_words('等等，错了。但是再检查一下：wait') == 5


@pytest.mark.parametrize(
  ('completion', 'expected'),
  [
    ('<think> a </think> <answer> b </answer>', '<answer> b </answer>'),
    ('a </think>\n\nb\n', 'b'),  # the prompt may have opened the thought
    ('<think> a </think> b </think> c', 'c'),
    ('no thought', 'no thought'),
    ('<think> for ever', ''),
  ],
)
def test_summary_is_what_follows_the_thought(completion, expected):
  assert template.summary(completion) == expected


def test_a_thought_that_the_prompt_began_is_no_summary():
  began = 'User: 1 + 1? Assistant: <think>\n'
  assert template.summary('for ever', template.begins_thought(began)) == ''
  assert template.summary('a </think> b', template.begins_thought(began)) == 'b'
  # R1-Zero's prompt speaks of the tag and begins no thought.
  assert not template.begins_thought(template.R1_ZERO)
