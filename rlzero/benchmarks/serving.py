"""Many clients at once against a server of a model, and what each gets.

  python -m rlzero.benchmarks.serving --checkpoint=DIR [--clients=64]
    [--seconds=300] [--slots=16] [--distinct=64] [--max_tokens=64]
    [--top_logprobs=5]

Starts `rlzero.serve`, asks some distinct requests one after the other, and then
lets the clients ask them in random order, streaming, each as soon as its last
one has ended. The clients are OpenAI's own (extra `test`). The last line is
JSON: requests, those lost (without a whole answer) and mixed (another answer
than alone with the same seed), tokens a second, and seconds to the first token,
among the others and alone.
"""

import argparse
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from typing import Any, NamedTuple

import httpx
import openai

from rlzero.runtime import files, provenance

_TIMEOUT_S = 600


class _Reply(NamedTuple):
  """An answer, and how long its first token took."""

  text: str
  tokens: int
  first_s: float


class _Client:
  """Asks a server, as OpenAI's own client does.

  Args:
    url: http://host:port/v1#model.
  """

  def __init__(self, url: str):
    base, _, self._model = url.partition('#')
    self._client = openai.OpenAI(
      base_url=base, api_key='none', timeout=_TIMEOUT_S, max_retries=0
    )

  def ask(self, request: dict[str, Any]) -> _Reply | float:
    """The answer, or the seconds to wait where the queue is full.

    Raises:
      openai.OpenAIError, httpx.HTTPError, ValueError: no whole answer.
    """
    began, first_s = time.monotonic(), None
    text, tokens, finish = '', 0, None
    try:
      stream = self._client.chat.completions.create(
        model=self._model,
        stream=True,
        stream_options={'include_usage': True},
        **request,
      )
    except openai.RateLimitError as error:
      return float(error.response.headers['retry-after'])
    with stream:
      for chunk in stream:
        for choice in chunk.choices:
          thought = getattr(choice.delta, 'reasoning_content', None) or ''
          if piece := thought + (choice.delta.content or ''):
            first_s = first_s or time.monotonic() - began
            text += piece
          finish = choice.finish_reason or finish
        if chunk.usage:
          tokens = chunk.usage.completion_tokens
    if finish is None:
      raise ValueError('the stream has no end')
    return _Reply(text, tokens, first_s or time.monotonic() - began)


class _Storm:
  """Clients that ask at once, and what became of their requests."""

  def __init__(
    self,
    client: _Client,
    requests: list[dict[str, Any]],
    alone: list[_Reply],
    seconds: float,
  ):
    self._client, self._requests, self._alone = client, requests, alone
    self._end = time.monotonic() + seconds
    self._lock = threading.Lock()
    self.replies: list[_Reply] = []
    self.lost: list[str] = []
    self.mixed = self.refused = 0

  def run(self, num_clients: int) -> None:
    """Returns when all clients have got their last answer."""
    threads = [
      threading.Thread(target=self._ask, args=(number,))
      for number in range(num_clients)
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()

  def _ask(self, number: int) -> None:
    chance = random.Random(number)
    while time.monotonic() < self._end:
      which = chance.randrange(len(self._requests))
      try:
        reply = self._client.ask(self._requests[which])
      except (openai.OpenAIError, httpx.HTTPError, ValueError) as error:
        with self._lock:
          self.lost.append(str(error))
        continue
      with self._lock:
        if isinstance(reply, _Reply):
          self.replies.append(reply)
          self.mixed += reply.text != self._alone[which].text
        else:
          self.refused += 1
      if not isinstance(reply, _Reply):
        time.sleep(reply)


def _make_requests(
  count: int, max_tokens: int, top_logprobs: int
) -> list[dict[str, Any]]:
  """Requests of many kinds, in words that the tiny base knows too."""
  chance = random.Random(0)
  likely = {'logprobs': True, 'top_logprobs': top_logprobs}
  found = []
  for number in range(count):
    numbers = [chance.randint(1, 20) for _ in range(chance.randint(3, 4))]
    asked = f'{" ".join(map(str, numbers))} make {chance.randint(10, 99)}'
    found.append(
      {
        'messages': [{'role': 'user', 'content': asked}],
        'seed': number,
        'temperature': chance.choice([0, 0.6, 1]),
        'top_p': chance.choice([0.95, 1]),
        'max_tokens': chance.randint(max_tokens // 4, max_tokens),
        **(likely if top_logprobs else {}),
      }
    )
  return found


def _spread(seconds: list[float]) -> dict[str, float]:
  ordered = sorted(seconds)
  return {
    'median': round(statistics.median(ordered), 4),
    'p95': round(ordered[int(0.95 * (len(ordered) - 1))], 4),
  }


def _arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser()
  parser.add_argument('--checkpoint', required=True)
  parser.add_argument('--clients', type=int, default=64)
  parser.add_argument('--seconds', type=float, default=300)
  parser.add_argument('--slots', type=int, default=16)
  parser.add_argument('--distinct', type=int, default=64)
  parser.add_argument('--max_tokens', type=int, default=64)
  parser.add_argument('--top_logprobs', type=int, default=0)
  return parser.parse_args()


def main() -> None:
  args = _arguments()
  command = [sys.executable, '-m', 'rlzero.serve']
  command += [f'--checkpoint={args.checkpoint}', '--port=0']
  command += [f'--slots={args.slots}', '--context=512']
  began = time.monotonic()
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
    try:
      assert server.stdout is not None
      line = next((s for s in server.stdout if s.startswith('serving ')), '')
      if not line:
        raise SystemExit('The server did not start; it has said why.')
      start_s = time.monotonic() - began
      client = _Client(line.split()[1])
      requests = _make_requests(
        args.distinct, args.max_tokens, args.top_logprobs
      )
      alone = []
      for request in requests:
        reply = client.ask(request)
        assert isinstance(reply, _Reply), 'an idle server is never full'
        alone.append(reply)
      storm = _Storm(client, requests, alone, args.seconds)
      began = time.monotonic()
      storm.run(args.clients)
      taken_s = time.monotonic() - began
    finally:
      server.send_signal(signal.SIGTERM)
      server.communicate()
  tokens = sum(reply.tokens for reply in storm.replies)
  for sentence in sorted(set(storm.lost))[:5]:
    print(f'lost: {sentence}', file=sys.stderr)
  result = {
    'clients': args.clients,
    'slots': args.slots,
    'top_logprobs': args.top_logprobs,
    'seconds': round(taken_s, 1),
    'requests': len(storm.replies) + len(storm.lost),
    'lost': len(storm.lost),
    'mixed': storm.mixed,
    'refused': storm.refused,
    'tokens': tokens,
    'tokens_per_s': round(tokens / taken_s, 1),
    'first_token_s': _spread([r.first_s for r in storm.replies]),
    'idle_first_token_s': _spread([r.first_s for r in alone]),
    'start_s': round(start_s, 1),
    'exit_code': server.returncode,
    **provenance.metadata(),
  }
  print(files.to_json(result))


if __name__ == '__main__':
  main()
