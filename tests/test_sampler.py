"""One interface for any model: what is kept, and endpoints that fail."""

import http.server
import json
import threading

import pytest

from rlzero.evaluation import sampler
from rlzero.rollout import encoding
from rlzero.rollout.sampling import Sampling
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
      failure = server.failures.pop(0) if server.failures else None
    if failure == 'hang up':
      self.connection.close()
      return
    if failure:
      self.send_response(failure)
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

  def log_message(self, *_):
    pass


@pytest.fixture
def server():
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Fake) as found:
    found.lock, found.asked, found.failures = threading.Lock(), [], []
    found.reply = None
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
  with sampler.Kept(path, _SETTINGS) as kept:
    kept.keep('u1', 0, one)
  with open(path, 'a') as file:
    file.write(tail)  # killed here, or without power
  with sampler.Kept(path, _SETTINGS) as kept:
    assert kept.samples == {('u1', 0): one}
    kept.keep('u1', 1, two)
  with sampler.Kept(path, _SETTINGS) as kept:
    assert kept.samples == {('u1', 0): one, ('u1', 1): two}
  with pytest.raises(ValueError, match='seed 0, and now it is 1; set it back'):
    sampler.Kept(path, _SETTINGS | {'seed': 1})
