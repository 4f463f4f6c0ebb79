"""One interface for any model: what is kept, and endpoints that fail."""

import http.server
import json
import threading

import pytest

from rlzero.evaluation import sampler
from rlzero.rollout import encoding
from rlzero.rollout.sampling import Sampling
from rlzero.runtime import keys
from rlzero.text.template import Template

_SETTINGS = {'seed': 0, 'model': 'abc'}
_SAMPLING = Sampling(max_len=8, temperature=0.6, top_p=0.95, num_slots=3)


class _Fake(http.server.BaseHTTPRequestHandler):
  """Answers with the prompt's last word, after the failures it is told of."""

  def do_POST(self):
    server = self.server
    body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
    with server.lock:
      server.asked.append((self.path, body))
      server.keys.append(self.headers['Authorization'])
      failure = server.failures.pop(0) if server.failures else None
    if failure == 'hang up':
      self.connection.close()
      return
    if failure:
      self.send_response(failure)
      if failure == 429:  # a digit, and no number
        self.send_header('Retry-After', '\u00b2')
      if server.moved:
        self.send_header('Location', server.moved)
      self.end_headers()
      return
    if 'messages' in body:
      prompt = body['messages'][-1]['content']
      choice = {'message': {'content': f'echo {prompt}'}}
    else:
      choice = {'text': f'echo {body["prompt"]}'}
    choice['finish_reason'] = 'length' if 'long' in str(body) else 'stop'
    reply = {'choices': [choice], 'usage': {'completion_tokens': 5}}
    self.send_response(200)
    self.end_headers()
    self.wfile.write(json.dumps(server.reply or reply).encode())

  def do_GET(self):  # what a redirected POST becomes
    self.server.keys.append(self.headers['Authorization'])
    self.send_response(200)
    self.end_headers()

  def log_message(self, *_):
    pass


@pytest.fixture
def server():
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Fake) as found:
    found.lock, found.asked, found.failures = threading.Lock(), [], []
    found.reply, found.moved, found.keys = None, None, []
    found.url = f'http://127.0.0.1:{found.server_port}/v1#some/model'
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()


def _ask(server, questions, template, finished=None, max_tries=3):
  kept = {}
  model = sampler.Endpoint(server.url, max_tries, first_wait_s=0.01)
  try:
    job = sampler.Job(questions, template, 2, _SAMPLING, 7)
    samples = model.sample(job, finished or {}, kept.__setitem__)
  except (OSError, ValueError) as error:
    return error, kept
  return samples, kept


def test_chat_and_plain_endpoints(server):
  chat = Template('chat', system='be kind')
  samples, kept = _ask(server, ['one', 'too long'], chat)
  assert (
    samples
    == [encoding.Sample('echo one', 5, False)] * 2
    + [encoding.Sample('echo too long', 5, True)] * 2
  )
  assert [kept[i] for i in range(4)] == samples
  path, body = server.asked[0]
  assert path == '/v1/chat/completions'
  assert body['model'] == 'some/model'
  assert body['messages'][0] == {'role': 'system', 'content': 'be kind'}
  settings = [body[k] for k in ('temperature', 'top_p', 'max_tokens')]
  assert settings == [0.6, 0.95, 8]
  assert len({body['seed'] for _, body in server.asked}) == 4
  samples, _ = _ask(server, ['x'], Template('short'))
  assert server.asked[-1][0] == '/v1/completions'
  assert samples[0].text == 'echo User: x Assistant:'


def test_refusals_and_deaths_are_asked_again(server):
  server.failures = [429, 503, 'hang up', 500]
  samples, kept = _ask(server, ['one', 'two'], Template('chat'), max_tries=5)
  texts = [sample.text for sample in samples]
  assert texts == ['echo one', 'echo one', 'echo two', 'echo two']
  assert len(kept) == 4 and len(server.asked) == 8


def test_an_endpoint_that_dies_loses_nothing(server):
  """Some are answered, then it is gone: they are kept and not asked again."""
  server.failures = [None, None, None] + [500] * 99
  error, kept = _ask(server, ['one', 'two'], Template('chat'))
  assert 'no answer in 3 tries (last: status 500)' in str(error)
  assert 'same command resumes' in str(error)
  assert len(kept) == 3
  server.failures, server.asked[:] = [], []
  samples, again = _ask(server, ['one', 'two'], Template('chat'), kept)
  assert len(server.asked) == 1 and len(again) == 1
  assert [s.text for s in samples[:2]] == ['echo one'] * 2


def test_what_asking_again_does_not_mend(server):
  server.failures = [401]
  error, _ = _ask(server, ['one'], Template('chat'))
  assert isinstance(error, ValueError)
  assert 'refuses the request (401' in str(error)
  server.reply = {'hello': 1}
  error, _ = _ask(server, ['one'], Template('chat'))
  assert 'what is not a completion' in str(error)
  with pytest.raises(ValueError, match='names no model'):
    sampler.load('http://127.0.0.1/v1')


@pytest.mark.parametrize(
  'tail', ['{"uid": "u1", "sam', '{', '\0' * 40, '{"uid": "u1"}\0\0']
)
def test_kept_samples_outlive_the_process(tmp_path, tail):
  path = str(tmp_path / 'samples' / 'task.jsonl')
  one, two = encoding.Sample('a', 3, False), encoding.Sample('b', 4, True)
  with sampler.SampleLog(path, _SETTINGS) as log:
    log.append('u1', 0, one)
  with open(path, 'a') as file:
    file.write(tail)  # killed here, or without power
  with sampler.SampleLog(path, _SETTINGS) as log:
    assert log.samples == {('u1', 0): one}
    log.append('u1', 1, two)
  with sampler.SampleLog(path, _SETTINGS) as log:
    assert log.samples == {('u1', 0): one, ('u1', 1): two}
  with pytest.raises(ValueError, match='seed 0, and now it is 1; set it back'):
    sampler.SampleLog(path, _SETTINGS | {'seed': 1})


@pytest.mark.parametrize('status', [301, 302, 303, 307, 308])
def test_the_key_follows_no_redirect(server, monkeypatch, status):
  monkeypatch.setenv('OPENAI_API_KEY', 'secret')
  # Another name of this machine: another host to whoever holds the key.
  server.moved = f'http://localhost:{server.server_port}/elsewhere'
  server.failures = [status] * 99
  error, _ = _ask(server, ['one'], Template('chat'))
  assert isinstance(error, ValueError)
  assert f"redirects to '{server.moved}', where the key is not" in str(error)
  assert set(server.keys) == {'Bearer secret'}
  assert {path for path, _ in server.asked} == {'/v1/chat/completions'}
  assert len(server.keys) == len(server.asked)  # nobody went elsewhere


def test_the_key_goes_over_http_to_this_machine_alone(monkeypatch):
  for name in ('127.0.0.1', '[::1]', 'localhost', 'a.example'):
    sampler.load(f'http://{name}:8000/v1#m')  # there is no key
  monkeypatch.setenv('OPENAI_API_KEY', 'secret')
  for name in ('127.0.0.1', '[::1]', 'localhost'):
    sampler.load(f'http://{name}:8000/v1#m')
  sampler.load('https://a.example/v1#m')
  for name in ('a.example', '10.0.0.1', 'localhost.a.example'):
    with pytest.raises(ValueError, match='OPENAI_API_KEY is set, and http://'):
      sampler.load(f'http://{name}/v1#m')
  monkeypatch.setenv('RLZERO_ALLOW_HTTP_KEY', '1')
  sampler.load('http://a.example/v1#m')
  with pytest.raises(
    ValueError, match='address of a.example holds a user'
  ) as e:
    sampler.load('https://me:word@a.example/v1#m')
  assert 'word@' not in str(e.value)
  with pytest.raises(ValueError, match='names no host'):
    sampler.load('https:///v1#m')


def test_this_machine_is_asked_without_a_proxy(server, monkeypatch):
  monkeypatch.setenv('http_proxy', 'http://127.0.0.1:9')
  monkeypatch.setenv('OPENAI_API_KEY', 'secret')
  samples, _ = _ask(server, ['one'], Template('chat'))
  assert samples[0].text == 'echo one' and 'Bearer secret' in server.keys


@pytest.mark.parametrize(
  ('endpoint', 'sent'),
  [
    ('https://huggingface.co', True),
    ('http://huggingface.co', False),
    ('https://huggingface.co.a.example', False),
    ('https://mirror.example', False),
    ('https://huggingface.co:8443', False),
  ],
)
def test_the_hubs_token_goes_to_the_hub_alone(endpoint, sent):
  assert keys.hub_token(endpoint) is (None if sent else False)


def test_answers_to_another_prompt_are_not_mixed(tmp_path):
  path = str(tmp_path / 'task.jsonl')
  with sampler.SampleLog(path, _SETTINGS, {'u1': 'a', 'u2': 'b'}) as log:
    log.append('u1', 0, encoding.Sample('a', 3, False))
  with sampler.SampleLog(path, _SETTINGS, {'u2': 'b', 'u3': 'c'}):
    pass  # other problems of the same set
  with sampler.SampleLog(path, {'seed': 0}):
    pass  # scored without a model
  for prompts in ({'u1': 'x'}, {'u3': 'x', 'u1': 'a'}):
    with pytest.raises(ValueError, match='answers to another prompt of prob'):
      sampler.SampleLog(path, _SETTINGS, prompts)
  with sampler.SampleLog(path, _SETTINGS, {'u1': 'a'}) as log:
    assert len(log.samples) == 1


def test_what_a_model_is_given_has_a_fingerprint(server):
  model = sampler.Endpoint(server.url)
  plain, chat = Template('plain'), Template('chat')
  asked = [(plain, 'a'), (plain, 'b'), (chat, 'a')]
  found = [model.fingerprint(*one) for one in asked]
  assert len(set(found)) == 3
  assert found == [model.fingerprint(*one) for one in asked]
