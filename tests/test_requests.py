"""Requests of OpenAI's protocol: what is taken, and what is refused how."""

import pytest

from rlzero.serving import requests, responses
from rlzero.serving.requests import ApiError, Limits
from rlzero.serving.streams import Token

LIMITS = Limits(model='m', context=100, max_choices=8)
CHAT = {'model': 'm', 'messages': [{'role': 'user', 'content': 'hi'}]}
TEXT = {'model': 'm', 'prompt': 'hi'}


def chat(**fields):
  return requests.parse_chat({**CHAT, **fields}, LIMITS)


def text(**fields):
  return requests.parse_completion({**TEXT, **fields}, LIMITS)


def test_a_request_is_read():
  asked = chat(
    n=2,
    seed=7,
    temperature=0,
    top_p=0.5,
    stop='x',
    max_completion_tokens=5,
    max_tokens=9,
    stream=True,
    stream_options={'include_usage': True},
    logprobs=True,
    user='me',
    frequency_penalty=0,
    tools=[],
    response_format={'type': 'text'},
    logit_bias=None,
  )
  assert asked.is_chat and asked.messages == (
    {'role': 'user', 'content': 'hi'},
  )
  assert (asked.n, asked.seed, asked.max_tokens) == (2, 7, 5)
  assert (asked.temperature, asked.top_p, asked.stops) == (0.0, 0.5, ('x',))
  assert asked.stream and asked.include_usage and asked.logprobs
  asked = chat()
  assert (asked.n, asked.temperature, asked.top_p) == (1, 1.0, 1.0)
  assert asked.max_tokens is None and not asked.stream
  asked = text(logprobs=0)
  assert asked.max_tokens == 16 and asked.logprobs and asked.prompts == ('hi',)
  assert not asked.is_chat and not text().logprobs
  assert (asked.num_top, text(logprobs=5).num_top) == (0, 5)
  assert chat(logprobs=True, top_logprobs=20).num_top == 20
  assert chat(top_logprobs=0).num_top == 0


def test_contents_and_roles_of_messages():
  asked = chat(
    messages=[
      {'role': 'developer', 'content': 'be kind'},
      {
        'role': 'user',
        'content': [
          {'type': 'text', 'text': 'a'},
          {'type': 'text', 'text': 'b'},
        ],
      },
      {'role': 'assistant', 'content': 'c', 'reasoning_content': 'hm'},
      {'role': 'user', 'content': 'd', 'name': 'me'},
    ]
  )
  assert [(m['role'], m['content']) for m in asked.messages] == [
    ('system', 'be kind'),
    ('user', 'ab'),
    ('assistant', 'c'),
    ('user', 'd'),
  ]


@pytest.mark.parametrize(
  'prompt, expected',
  [
    ('a', ('a',)),
    (['a', 'b'], ('a', 'b')),
    ([1, 2], ([1, 2],)),
    ([[1], [2, 3]], ([1], [2, 3])),
  ],
)
def test_prompts_are_texts_or_ids(prompt, expected):
  assert text(prompt=prompt).prompts == expected


def test_seeds_are_counters_and_fresh_ones_differ():
  assert chat(seed=0).seed == 0 and chat(seed=2**31 - 1).seed == 2**31 - 1
  large = {chat(seed=s).seed for s in (-1, 2**31, 2**63 - 1)}
  assert len(large) == 3 and all(0 <= s < 2**31 for s in large)
  assert chat(seed=-1).seed == chat(seed=-1).seed
  assert len({chat().seed for _ in range(20)}) > 1


@pytest.mark.parametrize(
  'parse, fields, status, message, param',
  [
    (chat, {'model': 'x'}, 404, "'x' is not served here; ask 'm'", 'model'),
    (chat, {'model': None}, 400, "Name the model: 'm'", 'model'),
    (chat, {'temperature': 2.5}, 400, 'between 0 and 2', 'temperature'),
    (chat, {'temperature': float('nan')}, 400, 'between', 'temperature'),
    (chat, {'temperature': '1'}, 400, 'must be a number', 'temperature'),
    (chat, {'temperature': True}, 400, 'must be a number', 'temperature'),
    (chat, {'top_p': 0}, 400, 'top_p is 0; it must be above', 'top_p'),
    (chat, {'n': 9}, 400, '9 completions, but this server takes 8', 'n'),
    (chat, {'n': 0}, 400, 'at least 1', 'n'),
    (chat, {'n': 1.0}, 400, 'a whole number', 'n'),
    (text, {'prompt': ['a'] * 5, 'n': 2}, 400, '10 completions', 'prompt'),
    (chat, {'max_tokens': 0}, 400, 'at least 1', 'max_tokens'),
    (chat, {'seed': 'x'}, 400, 'a whole number', 'seed'),
    (chat, {'stop': ''}, 400, 'a string, or a list', 'stop'),
    (chat, {'stop': ['a'] * 5}, 400, '4 strings of at most', 'stop'),
    (chat, {'stop': 'a' * 257}, 400, 'at most 256', 'stop'),
    (chat, {'stream': 1}, 400, 'true or false', 'stream'),
    (chat, {'stream_options': {}}, 400, 'for streams', 'stream_options'),
    (
      chat,
      {'stream': True, 'stream_options': {'x': 1}},
      400,
      "an object with 'include_usage'",
      'stream_options',
    ),
    (chat, {'top_logprobs': 3}, 400, 'set logprobs to true', 'top_logprobs'),
    (
      chat,
      {'logprobs': True, 'top_logprobs': 21},
      400,
      'top_logprobs is 21; it must be between 0 and 20',
      'top_logprobs',
    ),
    (chat, {'logprobs': 3}, 400, 'true or false', 'logprobs'),
    (text, {'logprobs': 6}, 400, 'between 0 and 5', 'logprobs'),
    (text, {'logprobs': -1}, 400, 'at least 0', 'logprobs'),
    (text, {'logprobs': True}, 400, 'a whole number', 'logprobs'),
    (
      text,
      {'top_logprobs': 1},
      400,
      "the field 'top_logprobs'",
      'top_logprobs',
    ),
    (chat, {'tools': [{}]}, 400, 'cannot do', 'tools'),
    (chat, {'presence_penalty': 0.1}, 400, 'cannot do', 'presence_penalty'),
    (text, {'echo': True}, 400, 'echo is True', 'echo'),
    (chat, {'teperature': 1}, 400, "know the field 'teperature'", 'teperature'),
    (chat, {'prompt': 'a'}, 400, "know the field 'prompt'", 'prompt'),
    (chat, {'a\ud800': 1}, 400, r"know the field 'a\ud800'", 'a?'),
    (chat, {'messages': []}, 400, 'at least one message', 'messages'),
    (chat, {'messages': 'hi'}, 400, 'at least one message', 'messages'),
    (chat, {'messages': ['hi']}, 400, "'role' and 'content'", 'messages[0]'),
    (
      chat,
      {'messages': [{'role': 'tool', 'content': 'x'}]},
      400,
      'one of system, developer, user, assistant',
      'messages[0].role',
    ),
    (
      chat,
      {'messages': [{'role': 'user', 'content': [{'type': 'image_url'}]}]},
      400,
      'parts of type text',
      'messages[0].content',
    ),
    (
      chat,
      {'messages': [{'role': 'user'}]},
      400,
      'must be a text',
      'messages[0].content',
    ),
    (
      chat,
      {'messages': [CHAT['messages'][0]] * 1001},
      400,
      'send fewer',
      'messages',
    ),
    (text, {'prompt': None}, 400, 'a text, token ids', 'prompt'),
    (text, {'prompt': [1, 'a']}, 400, 'a text, token ids', 'prompt'),
    (text, {'prompt': [[]]}, 400, 'a text, token ids', 'prompt'),
    (text, {'prompt': [-1]}, 400, 'a text, token ids', 'prompt'),
    (text, {'prompt': []}, 400, 'empty list', 'prompt'),
  ],
)
def test_what_is_refused_is_said_in_a_sentence(
  parse, fields, status, message, param
):
  with pytest.raises(ApiError) as caught:
    parse(**fields)
  error = caught.value
  assert message in str(error) and error.status == status
  assert error.param == param
  body = error.body()['error']
  assert body['type'] == 'invalid_request_error'
  assert len(body['message']) < 300


def test_what_is_no_object_is_refused():
  for body in ([], 'x', 3, None):
    with pytest.raises(ApiError, match='no JSON object'):
      requests.parse_chat(body, LIMITS)


def test_answers_have_the_shape_of_the_protocol():
  writer = responses.Writer(
    asked=chat(logprobs=True), model='m', id='i', created=1, token_text=str
  )
  choice = responses.Choice(
    thought='t', text='a', tokens=[Token(5, -0.5)], num_tokens=1, finish='stop'
  )
  whole = writer.whole([choice], 3)
  assert whole['usage']['total_tokens'] == 4
  (found,) = whole['choices']
  assert found['message'] == {
    'role': 'assistant',
    'content': 'a',
    'reasoning_content': 't',
  }
  (token,) = found['logprobs']['content']
  assert token == {
    'token': '5',
    'logprob': -0.5,
    'bytes': [53],
    'top_logprobs': [],
  }
  chunk = writer.chunk(0, choice, True)
  assert chunk['object'] == 'chat.completion.chunk'
  assert chunk['choices'][0]['delta']['role'] == 'assistant'
  assert 'usage' not in chunk


def test_likely_tokens_have_the_shape_of_the_protocol():
  texts = {5: 'a', 6: 'b', 7: 'a', 8: '\ufffd'}
  tokens = [
    Token(5, -2.0, ((6, -0.5), (8, -1.0))),
    Token(6, -0.5, ((6, -0.5), (5, -1.5), (7, -3.0))),
  ]

  def logprobs(asked):
    writer = responses.Writer(
      asked=asked, model='m', id='i', created=1, token_text=texts.__getitem__
    )
    choice = responses.Choice(tokens=tokens, num_tokens=2, finish='stop')
    return writer.whole([choice], 3)['choices'][0]['logprobs']

  first, second = logprobs(chat(logprobs=True, top_logprobs=3))['content']
  assert (first['token'], first['logprob'], first['bytes']) == ('a', -2.0, [97])
  assert first['top_logprobs'] == [
    {'token': 'b', 'logprob': -0.5, 'bytes': [98]},
    # Half a character: its text does not tell its bytes.
    {'token': '\ufffd', 'logprob': -1.0, 'bytes': None},
  ]
  assert [t['token'] for t in second['top_logprobs']] == ['b', 'a', 'a']
  found = logprobs(text(logprobs=3))
  assert found['tokens'] == ['a', 'b']
  # The sampled token is there too; of two with one text, the more likely one.
  assert found['top_logprobs'] == [
    {'b': -0.5, '\ufffd': -1.0, 'a': -2.0},
    {'b': -0.5, 'a': -1.5},
  ]
  assert logprobs(text(logprobs=0))['top_logprobs'] is None
