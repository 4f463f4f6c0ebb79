"""The server, asked by the official client of OpenAI."""

import asyncio
import concurrent.futures
import contextlib
import http.client
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import openai
import pytest

from rlzero import evaluate, serve
from rlzero.evaluation import measure
from rlzero.rollout import encoding, scheduler
from rlzero.rollout.sampling import Sampling
from rlzero.runtime import sharding
from rlzero.serving import app, engine, server, settings
from rlzero.tasks import countdown
from rlzero.text.template import Template
from rlzero.train import folders

pytestmark = pytest.mark.model

TINY = folders.embedded('tiny_base')
SLOTS, QUEUE = 8, 56
PROMPT = 'User: 3 5 7 make 26 Assistant:'
CHAT = [{'role': 'user', 'content': '3 5 7 make 26'}]


@pytest.fixture(scope='module')
def served():
  """The tiny base and its engine, as the server has them."""
  found = settings.load(
    settings.Settings(checkpoint=TINY), slots=SLOTS, max_queue=QUEUE
  )
  found.engine.start(compile_ahead=False)
  yield found
  found.engine.close()
  assert found.engine.failure is None


@contextlib.contextmanager
def listen(served, **changes):
  application = app.make_app(
    served.engine, served.tokenizer, served.encoder, 'tiny', **changes
  )
  with server.Server(application, server.bind('127.0.0.1', 0)) as running:
    yield running.url


@pytest.fixture(scope='module')
def url(served):
  with listen(served) as found:
    yield found


def connect(url, **changes):
  return openai.OpenAI(
    base_url=f'{url}/v1',
    **{'api_key': 'none', 'max_retries': 0, 'timeout': 60, **changes},
  )


@pytest.fixture(scope='module')
def client(url):
  with connect(url) as found:
    yield found


def complete(client, **changes):
  settings = {'model': 'tiny', 'prompt': PROMPT, 'max_tokens': 48, 'seed': 1}
  return client.completions.create(**settings | changes)


def chat(client, **changes):
  settings = {'model': 'tiny', 'messages': CHAT, 'seed': 1}
  return client.chat.completions.create(**settings | changes)


def status(url):
  return httpx.get(f'{url}/health').json()


def is_idle(url):
  found = status(url)
  return found['running'] == found['waiting'] == 0


def wait_for(condition, seconds=20):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, 'it did not come in time'
    time.sleep(0.01)


def test_an_answer_is_the_schedulers(client, served):
  """A seed is the draw of the keys, and the index of a choice its sample."""
  loaded = folders.load_model(TINY)
  prompt = encoding.encode_prompt(
    loaded.tokenizer, Template('short'), '3 5 7 make 26'
  )
  expected, _ = scheduler.generate(
    loaded.config,
    loaded.params,
    [scheduler.Prompt(5, prompt)],
    3,
    Sampling(max_len=24),  # one size of cache, so little to compile
    stop=encoding.stop_criteria(loaded.tokenizer),
    seed=0,
  )
  reply = complete(client, n=3, seed=5, max_tokens=24)
  assert [choice.index for choice in reply.choices] == [0, 1, 2]
  for choice, completion in zip(reply.choices, expected, strict=True):
    text = loaded.tokenizer.decode(completion.tokens.tolist())
    assert choice.text == text
    assert choice.finish_reason == (
      'length' if completion.finish.value == 'length' else 'stop'
    )
  assert reply.usage.prompt_tokens == len(prompt)
  assert reply.usage.completion_tokens == sum(len(c.tokens) for c in expected)
  assert reply.usage.total_tokens == (
    reply.usage.prompt_tokens + reply.usage.completion_tokens
  )
  ids = complete(client, n=3, seed=5, max_tokens=24, prompt=prompt)
  assert [c.text for c in ids.choices] == [c.text for c in reply.choices]


def test_seed_temperature_and_nucleus(client):
  texts = [complete(client, seed=s).choices[0].text for s in (1, 1, 2, 3)]
  assert texts[0] == texts[1] and len(set(texts)) == 3
  greedy = {
    complete(client, seed=s, temperature=0).choices[0].text for s in (1, 2)
  }
  narrow = {
    complete(client, seed=s, top_p=1e-6).choices[0].text for s in (1, 2)
  }
  assert len(greedy) == 1 and narrow == greedy
  assert len({complete(client, seed=None).choices[0].text for _ in '123'}) > 1


def test_a_thought_comes_apart_and_streams_are_the_same(client):
  for seed in range(6):
    whole = chat(client, seed=seed, max_tokens=60)
    raw = complete(client, seed=seed, max_tokens=60).choices[0].text
    (choice,) = whole.choices
    thought = getattr(choice.message, 'reasoning_content', None) or ''
    if '<think>' in raw:
      inside, _, after = raw.partition('<think>')[2].partition('</think>')
      assert thought == inside.strip()
      assert choice.message.content == after.strip()
    else:
      assert (thought, choice.message.content) == ('', raw)
    stream = chat(
      client,
      seed=seed,
      max_tokens=60,
      stream=True,
      stream_options={'include_usage': True},
    )
    parts, finish, usage = {'reasoning_content': '', 'content': ''}, [], None
    for chunk in stream:
      usage = chunk.usage or usage
      for piece in chunk.choices:
        finish += [piece.finish_reason] * bool(piece.finish_reason)
        for name in parts:
          parts[name] += getattr(piece.delta, name, None) or ''
    assert parts == {
      'reasoning_content': thought,
      'content': choice.message.content,
    }
    assert finish == [choice.finish_reason]
    assert usage == whole.usage
    if thought:
      details = usage.completion_tokens_details
      assert 0 < details.reasoning_tokens <= usage.completion_tokens


def test_streamed_choices_are_those_of_the_whole(client):
  whole = complete(client, n=4)
  texts = dict.fromkeys(range(4), '')
  for chunk in complete(client, n=4, stream=True):
    assert chunk.usage is None
    for piece in chunk.choices:
      texts[piece.index] += piece.text
  assert [*texts.values()] == [choice.text for choice in whole.choices]


def test_stop_strings_over_the_borders_of_tokens(client):
  full = complete(client, temperature=0)
  text = full.choices[0].text
  words = text.split(' ')
  stops = [
    words[6],  # a token
    f'{words[6]} {words[7]}',  # two
    f'{words[6][-1]} {words[7][0]}',  # the end of one, the start of another
  ]
  for stop in stops:
    expected = text[: text.index(stop)]
    found = complete(client, temperature=0, stop=[stop, 'never'])
    assert found.choices[0].text == expected
    assert found.choices[0].finish_reason == 'stop'
    assert found.usage.completion_tokens < full.usage.completion_tokens
    shown = ''
    for chunk in complete(client, temperature=0, stop=stop, stream=True):
      shown += chunk.choices[0].text
      assert expected.startswith(shown)
    assert shown == expected


def test_logprobs_are_of_the_tokens(client, served):
  reply = complete(client, logprobs=0)
  found = reply.choices[0].logprobs
  assert len(found.tokens) == reply.usage.completion_tokens
  assert all(-30 < value <= 0 for value in found.token_logprobs)
  text = ' '.join(t for t in found.tokens if t != '<eos>')
  assert text == reply.choices[0].text
  reply = chat(client, logprobs=True, max_tokens=20)
  content = reply.choices[0].logprobs.content
  assert len(content) == reply.usage.completion_tokens
  assert bytes(content[0].bytes).decode() == content[0].token
  streamed = []
  for chunk in chat(client, logprobs=True, max_tokens=20, stream=True):
    for piece in chunk.choices:
      if piece.logprobs:
        streamed += piece.logprobs.content
  assert streamed == content


def test_the_most_likely_tokens_come_with_each(client, monkeypatch):
  plain = chat(client, max_tokens=20, logprobs=True).choices[0]
  settings = {'max_tokens': 20, 'logprobs': True, 'top_logprobs': 20}
  reply = chat(client, **settings).choices[0]
  assert reply.message == plain.message
  for token, alone in zip(
    reply.logprobs.content, plain.logprobs.content, strict=True
  ):
    assert token.logprob == alone.logprob and not alone.top_logprobs
    values = [one.logprob for one in token.top_logprobs]
    assert len(values) == 20 and values == sorted(values, reverse=True)
    assert 0.9 < sum(map(math.exp, values)) < 1 + 1e-5
    same = {t.token: t.logprob for t in token.top_logprobs}
    assert same[token.token] == pytest.approx(token.logprob, abs=1e-6)
  streamed = []
  for chunk in chat(client, stream=True, **settings):
    for piece in chunk.choices:
      streamed += piece.logprobs.content if piece.logprobs else []
  assert streamed == reply.logprobs.content
  found = complete(client, temperature=0, logprobs=2).choices[0].logprobs
  greedy = zip(found.tokens, found.top_logprobs, strict=True)
  assert all(token == max(top, key=top.get) for token, top in greedy)
  assert {len(top) for top in found.top_logprobs} == {2}
  monkeypatch.setattr(app, '_MAX_TOP', 479)
  with pytest.raises(openai.BadRequestError, match='have 480 likely tokens'):
    complete(client, n=2, logprobs=5)


def test_models_are_listed(client):
  assert [model.id for model in client.models.list()] == ['tiny']
  assert client.models.retrieve('tiny').id == 'tiny'
  with pytest.raises(openai.NotFoundError, match="'other' is not served here"):
    client.models.retrieve('other')


@pytest.mark.parametrize(
  'changes, error, message, code',
  [
    (
      {'model': 'gpt'},
      openai.NotFoundError,
      "'gpt' is not served here; ask 'tiny'",
      'model_not_found',
    ),
    (
      {'max_tokens': 250},
      openai.BadRequestError,
      'has 7 tokens and max_tokens is 250, but the context has room for 256',
      'context_length_exceeded',
    ),
    (
      {'prompt': '3 ' * 300},
      openai.BadRequestError,
      'has 300 tokens',
      'context_length_exceeded',
    ),
    ({'n': 65}, openai.BadRequestError, 'takes 64 at a time', None),
    (
      {'prompt': 'hello'},
      openai.BadRequestError,
      "400 - 'tiny' has no id for 'hello'",  # and not its path
      None,
    ),
    ({'prompt': ''}, openai.BadRequestError, 'has no tokens', None),
    ({'prompt': [999]}, openai.BadRequestError, 'token id 999', None),
    (
      {'extra_body': {'beams': 4}},
      openai.BadRequestError,
      "the field 'beams'",
      None,
    ),
  ],
)
def test_wrong_requests_are_refused(client, changes, error, message, code):
  with pytest.raises(error, match=message) as caught:
    complete(client, **changes)
  assert caught.value.body['code'] == code
  assert caught.value.body['type'] == 'invalid_request_error'


def post(url, body, path='/v1/completions', **headers):
  headers = {'Content-Type': 'application/json', **headers}
  return httpx.post(f'{url}{path}', content=body, headers=headers, timeout=30)


@pytest.mark.parametrize(
  'body, headers, status, message',
  [
    (b'{', {}, 400, 'not JSON'),
    (b'[' * 100_000, {}, 400, 'not JSON'),
    (b'\xff', {}, 400, 'not JSON'),
    (b'[]', {}, 400, 'no JSON object'),
    (b'"' + b'a' * (5 << 20) + b'"', {}, 413, 'larger than 4194304 bytes'),
    (b'{}', {'Content-Type': 'text/plain'}, 415, 'must be JSON'),
    (b'{}', {'Host': 'evil.example'}, 403, "not to 'evil.example'"),
    (
      b'{"model": "tiny", "prompt": "\\ud800"}',
      {},
      400,
      'surrogate pair',
    ),
  ],
)
def test_bodies_that_are_no_requests(url, body, headers, status, message):
  reply = post(url, body, **headers)
  assert reply.status_code == status
  assert message in reply.json()['error']['message']


DEEP = '[' * 900 + ']' * 900
HUGE = '9' * 4000
IMAGE = '[{"type": "image_url", "image_url": {"url": "data:,"}}]'
MESSAGE = '{"role": "user", "content": "3 5 7 make 26"}'


@pytest.mark.parametrize(
  'fields, message, param',
  [
    ('"temperature": NaN', 'temperature is nan; it must be', 'temperature'),
    ('"temperature": 1e999', 'temperature is inf; it must be', 'temperature'),
    ('"top_p": -Infinity', 'top_p is -inf; it must be', 'top_p'),
    ('"n": 1000', '1000 completions, but this server takes 64', 'n'),
    (f'"n": {HUGE}', 'it must be a number of at most 64 bits', 'n'),
    ('"max_tokens": -5', 'max_tokens is -5; it must be at least', 'max_tokens'),
    (f'"max_tokens": {HUGE}', 'at most 64 bits', 'max_tokens'),
    (f'"seed": -{HUGE}', 'at most 64 bits', 'seed'),
    (f'"seed": {HUGE * 2}', 'not JSON', None),
    (r'"stop": "\ud800"', 'half a surrogate pair', 'stop'),
    ('"logit_bias": {"5": 10}', 'logit_bias is {', 'logit_bias'),
    (r'"\ud800": 1', r"does not know the field '\ud800'", '?'),
    (f'"{"a" * 10**6}": 1', 'does not know the field', 'a' * 64),
    (f'"model": "{"a" * 10**6}"', 'is not served here', 'model'),
    (f'"tools": {DEEP}', 'cannot do', 'tools'),
    (f'"stream_options": {DEEP}', 'for streams', 'stream_options'),
    (f'"stop": {DEEP}', 'must be a string', 'stop'),
    (f'"messages": {DEEP}', "'role' and 'content'", 'messages[0]'),
    (f'"messages": [{",".join([MESSAGE] * 10_000)}]', '10000 m', 'messages'),
    (
      f'"messages": [{{"role": "user", "content": {DEEP}}}]',
      'a text, or a list of parts of type text',
      'messages[0].content',
    ),
    (
      f'"messages": [{{"role": "user", "content": {IMAGE}}}]',
      'a text, or a list of parts of type text',
      'messages[0].content',
    ),
    (
      r'"messages": [{"role": "\ud800", "content": "3"}]',
      'one of system, developer, user, assistant',
      'messages[0].role',
    ),
    (
      r'"messages": [{"role": "user", "content": "\ud800"}]',
      'half a surrogate pair',
      'messages',
    ),
    (
      f'"messages": [{{"role": "user", "content": "{"qq " * 10**5}"}}]',
      "no id for 'qq', 'qq'",
      'messages',
    ),
  ],
  ids=lambda value: None if isinstance(value, str) else '',
)
def test_hostile_fields_get_one_short_sentence(url, fields, message, param):
  start = f'{{"model": "tiny", "messages": [{MESSAGE}], '  # the last one counts
  reply = post(url, f'{start}{fields}}}'.encode(), '/v1/chat/completions')
  assert reply.status_code == (404 if param == 'model' else 400)
  error = reply.json()['error']
  assert message in error['message'] and len(error['message']) < 610
  assert error['param'] == param


def test_what_is_no_http_is_refused(url):
  host, port = url.removeprefix('http://').split(':')
  for sent in (
    b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03' * 9 + b'\r\n\r\n',
    b'POST /v1/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n',
    b'GET /' + b'a' * (1 << 20) + b' HTTP/1.1\r\n\r\n',
  ):
    with socket.create_connection((host, int(port)), timeout=20) as connection:
      with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(sent)
        assert connection.recv(64).startswith(b'HTTP/1.1 400')
  assert is_idle(url)


def test_equal_seeds_get_equal_answers_side_by_side(client, url):
  """While another client sends what is refused, and one leaves its stream."""
  alone = complete(client, n=2).choices

  def hostile(body):
    return post(url, body).status_code

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    refused = pool.map(hostile, [b'{', b'"' + b'a' * (5 << 20) + b'"'] * 4)
    left = complete(client, n=8, max_tokens=200, stream=True)
    next(iter(left))
    replies = [pool.submit(complete, client, n=2) for _ in range(4)]
    left.close()
    assert [reply.result().choices for reply in replies] == [alone] * 4
    assert [*refused] == [400, 413] * 4


def test_other_paths_and_methods_are_errors_of_the_same_shape(url):
  assert 'nothing at /v2' in httpx.get(f'{url}/v2').json()['error']['message']
  reply = httpx.get(f'{url}/v1/completions')
  assert reply.status_code == 405 and 'GET' in reply.json()['error']['message']


def test_a_full_queue_says_when_to_come_again(client, url):
  with complete(client, n=64, max_tokens=200, stream=True) as stream:
    next(iter(stream))
    with pytest.raises(openai.RateLimitError, match='queue is full') as caught:
      complete(client)
    assert 1 <= int(caught.value.response.headers['Retry-After']) <= 60
    assert caught.value.body['type'] == 'rate_limit_error'
  wait_for(lambda: is_idle(url))
  assert complete(client).choices[0].text


@pytest.mark.parametrize('stream', [True, False])
def test_a_client_that_leaves_frees_its_slots(url, served, stream, monkeypatch):
  tickets, cancel = [], engine.Engine.cancel

  def noting(self, ticket):
    tickets.append(ticket)
    cancel(self, ticket)

  monkeypatch.setattr(engine.Engine, 'cancel', noting)
  host = url.removeprefix('http://')
  connection = http.client.HTTPConnection(host, timeout=30)
  body = {'model': 'tiny', 'prompt': PROMPT, 'n': 64, 'max_tokens': 200}
  connection.request(
    'POST',
    '/v1/completions',
    json.dumps(body | {'stream': stream}),
    {'Content-Type': 'application/json'},
  )
  if stream:
    connection.getresponse().read(10)
  else:
    wait_for(lambda: status(url)['running'] > 0)
  connection.sock.close()
  connection.close()
  wait_for(lambda: tickets and is_idle(url))
  (ticket,) = tickets
  # Most of them had not even begun.
  assert sum(job.stream.num_tokens == 0 for job in ticket.jobs) > 32


def test_many_at_once_get_what_each_gets_alone(client, url):
  """64 of all kinds; none is lost, and none gets another's answer."""
  kinds = [
    dict(temperature=t, top_p=p, stream=s)
    for t in (0.0, 0.6, 1.0, 1.5)
    for p in (0.7, 1.0)
    for s in (True, False)
  ]
  asked = [
    {
      'model': 'tiny',
      'prompt': f'User: {3 + i % 5} {5 + i % 7} {i + 1} make 26 Assistant:',
      'seed': i,
      'max_tokens': 8 + i % 32,
      **kinds[i % len(kinds)],
    }
    for i in range(64)
  ]

  async def one(asynchronous, request):
    reply = await asynchronous.completions.create(**request)
    if not request['stream']:
      return reply.choices[0].text
    text = ''
    async for chunk in reply:
      text += chunk.choices[0].text
    return text

  async def together():
    async with openai.AsyncOpenAI(
      base_url=f'{url}/v1', api_key='none', max_retries=0
    ) as asynchronous:
      return await asyncio.gather(*(one(asynchronous, r) for r in asked))

  found = asyncio.run(together())
  alone = [
    client.completions.create(**request | {'stream': False}).choices[0].text
    for request in asked
  ]
  assert found == alone
  assert len(set(found)) > 50


def test_the_key_is_asked_for(served):
  with listen(served, api_key='säcret') as url:
    for key in ('wrong', 'säcre', 'säcret'):
      headers = {'Authorization': f'Bearer {key}'.encode()}
      right = key == 'säcret'
      reply = httpx.get(f'{url}/v1/models', headers=headers)
      assert reply.status_code == (200 if right else 401)
    reply = httpx.get(f'{url}/v1/models')
    assert reply.status_code == 401
    assert reply.json()['error']['code'] == 'invalid_api_key'
    assert httpx.get(f'{url}/health').status_code == 200
    # With a key, any name of the server will do.
    assert httpx.get(f'{url}/health', headers={'Host': 'a'}).is_success
  with listen(served, api_key='plain') as url, connect(url) as client:
    with pytest.raises(openai.AuthenticationError, match='missing or wrong'):
      client.models.list()
    assert client.with_options(api_key='plain').models.list().data


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_when_running_requests_have(number, served, capsys):
  seen = {}

  def ask():
    wait_for(lambda: 'serving' in seen.setdefault('out', '') or read())
    url = seen['out'].split()[1].partition('/v1#')[0]
    with connect(url) as client:
      stream = complete(
        client, model='tiny_base', n=16, max_tokens=200, stream=True
      )
      finishes = []
      for first, chunk in enumerate(stream):
        if not first:
          os.kill(os.getpid(), number)
          wait_for(lambda: httpx.get(f'{url}/health').status_code == 503)
          with pytest.raises(openai.InternalServerError, match='shutting'):
            complete(client, model='tiny_base')
          seen['refused'] = True
        finishes += [c.finish_reason for c in chunk.choices if c.finish_reason]
      seen['finishes'] = finishes

  def read():
    seen['out'] += capsys.readouterr().out

  thread = threading.Thread(target=ask)
  thread.start()
  serve.run(
    serve.Config(
      checkpoint=TINY,
      port=0,
      slots=SLOTS,
      max_queue=QUEUE,
      compile_ahead=False,
    )
  )
  thread.join()
  assert seen['refused'] and len(seen['finishes']) == 16


def test_requests_that_the_grace_does_not_suffice_for_end_by_an_error(served):
  found = settings.load(
    settings.Settings(checkpoint=TINY), slots=SLOTS, max_queue=QUEUE
  )
  found.engine.start(compile_ahead=False)
  with listen(found) as url, connect(url) as client:
    stream = complete(client, n=64, max_tokens=200, stream=True)
    next(stream)
    assert not found.engine.drain(0.01)
    found.engine.close()
    with pytest.raises(openai.APIError, match='shut down before'):
      for _ in stream:
        pass


def test_a_failing_engine_says_so_and_takes_no_more(served, monkeypatch):
  failed = threading.Event()
  found = settings.load(
    settings.Settings(checkpoint=TINY),
    slots=SLOTS,
    max_queue=QUEUE,
    on_failure=failed.set,
  )
  found.engine.start(compile_ahead=False)

  def broken(*_):
    raise MemoryError('no more')

  monkeypatch.setattr(engine.ContinuousScheduler, 'advance', broken)
  with listen(found) as url, connect(url) as client:
    with pytest.raises(openai.InternalServerError, match='has failed'):
      complete(client)
    assert failed.wait(10) and isinstance(found.engine.failure, MemoryError)
    with pytest.raises(openai.InternalServerError, match='has failed'):
      complete(client)
    assert httpx.get(f'{url}/health').status_code == 503
  found.engine.close()


def evaluation(tmp_path, capsys, checkpoint, name, **changes):
  """Metrics and samples of an evaluation."""
  sampled = {'max_len': 24, 'num_slots': 4, 'temperature': 0.6, 'top_p': 0.95}
  evaluate.run(
    evaluate.Config(
      checkpoint=checkpoint,
      num_problems=4,
      num_samples=2,
      sampling=Sampling(**sampled | changes),
      num_workers=1,
      workdir=str(tmp_path / name),
      json=True,
    )
  )
  lines = (tmp_path / name / 'samples/countdown.jsonl').read_text()
  samples = [json.loads(line) for line in lines.splitlines()[1:]]
  samples.sort(key=lambda s: (s['uid'], s['sample']))
  return json.loads(capsys.readouterr().out), samples


def test_an_evaluation_through_the_server_is_the_checkpoints(
  url, tmp_path, capsys
):
  """Greedily, since an endpoint is sent a seed of its own for each sample."""
  here, texts = evaluation(tmp_path, capsys, TINY, 'here', temperature=0.0)
  there, same = evaluation(
    tmp_path, capsys, f'{url}/v1#tiny', 'there', temperature=0.0
  )
  assert texts == same
  for of_model in ('checkpoint', 'sha256', 'endpoint', 'model'):
    here.pop(of_model, None), there.pop(of_model, None)
  assert here == there and here['completion_len'] > 10


@pytest.mark.slow
def test_the_seeds_of_an_evaluation_are_counted_keys(url, tmp_path, capsys):
  metrics, samples = evaluation(tmp_path, capsys, f'{url}/v1#tiny', 'first')
  again, same = evaluation(tmp_path, capsys, f'{url}/v1#tiny', 'second')
  assert samples == same and metrics == again
  # Sample i of the evaluation is the one of the key (0, its seed, 0).
  loaded = folders.load_model(TINY)
  problems = measure.examples(countdown.Countdown(), 'test', 4)
  prompts = encoding.encode_prompts(
    loaded.tokenizer,
    Template('short'),
    [(i, problems[i // 2].question) for i in range(8)],
  )
  expected, _ = scheduler.generate(
    loaded.config,
    loaded.params,
    prompts,
    1,
    Sampling(max_len=24, temperature=0.6, top_p=0.95),
    stop=encoding.stop_criteria(loaded.tokenizer),
    seed=0,
  )
  texts = {
    (problems[i // 2].uid, i % 2): loaded.tokenizer.decode(c.tokens.tolist())
    for i, c in enumerate(expected)
  }
  assert {(s['uid'], s['sample']): s['text'] for s in samples} == texts


@pytest.mark.slow
def test_a_server_over_a_mesh_answers_the_same(client):
  found = settings.load(
    settings.Settings(checkpoint=TINY, mesh=sharding.Mesh(data=2, fsdp=4)),
    slots=SLOTS,
    max_queue=QUEUE,
  )
  asked = [
    {'prompt': f'User: {i} 5 {i + 7} make 26 Assistant:', 'seed': i, 'n': 2}
    for i in range(1, 5)
  ]
  expected = [complete(client, **one).choices for one in asked]
  with contextlib.closing(found.engine):
    found.engine.start(compile_ahead=False)
    with listen(found) as url, connect(url) as over_mesh:
      with concurrent.futures.ThreadPoolExecutor(4) as pool:
        replies = pool.map(lambda one: complete(over_mesh, **one), asked)
        assert [reply.choices for reply in replies] == expected
      one, other = (
        complete(c, n=4, logprobs=3).choices for c in (client, over_mesh)
      )
      for alone, sharded in zip(one, other, strict=True):
        for top, same in zip(
          alone.logprobs.top_logprobs,
          sharded.logprobs.top_logprobs,
          strict=True,
        ):
          assert same == pytest.approx(top, abs=1e-4)


@pytest.mark.slow
def test_a_server_of_its_own_loses_and_mixes_nothing():
  done = subprocess.run(
    [sys.executable, '-m', 'rlzero.benchmarks.serving']
    + [f'--checkpoint={TINY}', '--clients=24', '--seconds=3', '--distinct=8'],
    capture_output=True,
    text=True,
    check=True,
  )
  found = json.loads(done.stdout)
  assert found['lost'] == found['mixed'] == found['exit_code'] == 0
  assert found['requests'] >= 24 and found['tokens_per_s'] > 0


@pytest.mark.parametrize('host', ['0.0.0.0', '::', '192.168.0.7', 'a.example'])
def test_other_machines_need_a_key(host, monkeypatch):
  monkeypatch.delenv('RLZERO_API_KEY', raising=False)
  with pytest.raises(ValueError, match='there is no API key; set RLZERO_API'):
    serve.Config(checkpoint='none', host=host)
  assert serve.Config(checkpoint='none', host=host, api_key='x').key == 'x'
  monkeypatch.setenv('RLZERO_API_KEY', 'y')
  assert serve.Config(checkpoint='none', host=host).key == 'y'


def test_an_address_in_use_is_said_before_a_model_is_loaded():
  with server.bind('127.0.0.1', 0) as taken:
    taken.listen()
    port = taken.getsockname()[1]
    with pytest.raises(ValueError, match=f'cannot listen at 127.0.0.1:{port}'):
      serve.run(serve.Config(checkpoint='none', port=port))
