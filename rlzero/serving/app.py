"""The routes of the server, from HTTP to the engine and back."""

import asyncio
import contextlib
import functools
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from starlette import concurrency
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rlzero.rollout.scheduler import Prompt
from rlzero.runtime import files
from rlzero.serving import guard, requests
from rlzero.serving.engine import Busy, Closing, Engine, Event, Ticket
from rlzero.serving.engine import Request as Wanted
from rlzero.serving.prompts import PromptEncoder
from rlzero.serving.requests import ApiError, Asked, Limits
from rlzero.serving.responses import Choice, Writer
from rlzero.text.tokenizer import Tokenizer

_MAX_TOP = 500_000  # likely tokens of a request: they are kept until its end
_TEXTS = 1 << 16  # of tokens, kept


def make_app(
  engine: Engine,
  tokenizer: Tokenizer,
  encoder: PromptEncoder,
  model: str,
  api_key: str = '',
  local: bool = True,
) -> ASGIApp:
  """The server as an ASGI application.

  Args:
    engine: that completes the requests.
    tokenizer: of the model.
    encoder: makes the prompts.
    model: its name.
    api_key: that clients must send; '' asks for none.
    local: whether it is served to this machine alone.
  """
  limits = Limits(
    model=model, context=engine.context, max_choices=engine.max_requests
  )
  routes = _Routes(engine, tokenizer, encoder, limits)
  app = Starlette(
    routes=[
      Route('/health', routes.health),
      Route('/v1/models', routes.models),
      Route('/v1/models/{name:path}', routes.model),
      Route('/v1/chat/completions', routes.chat, methods=['POST']),
      Route('/v1/completions', routes.completions, methods=['POST']),
    ],
    exception_handlers={
      ApiError: _on_api_error,
      HTTPException: _on_http_error,
      Exception: _on_error,
    },
  )
  return guard.Guard(app, api_key, local and not api_key)


async def _on_api_error(_: Request, error: Exception) -> Response:
  assert isinstance(error, ApiError)
  return guard.error_response(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
  assert isinstance(error, HTTPException)
  sentence = {
    404: f'There is nothing at {request.url.path[:200]}.',
    405: f'{request.url.path[:200]} does not take {request.method}.',
  }.get(error.status_code, str(error.detail))
  return guard.error_response(ApiError(error.status_code, sentence))


async def _on_error(_: Request, error: Exception) -> Response:
  return guard.error_response(
    ApiError(500, 'The server failed; its log says why.')
  )


class _Routes:
  """The functions behind the paths."""

  def __init__(
    self,
    engine: Engine,
    tokenizer: Tokenizer,
    encoder: PromptEncoder,
    limits: Limits,
  ):
    self._engine, self._tokenizer, self._encoder = engine, tokenizer, encoder
    self._limits, self._started = limits, int(time.time())
    self._token_text = functools.lru_cache(_TEXTS)(
      lambda token: tokenizer.decode([token], skip_special=False)
    )

  async def health(self, _: Request) -> Response:
    status = self._engine.status()
    is_open = status.pop('open')
    return JSONResponse(
      {'status': 'ok' if is_open else 'closing', **status},
      200 if is_open else 503,
    )

  async def models(self, _: Request) -> Response:
    return JSONResponse({'object': 'list', 'data': [self._about()]})

  async def model(self, request: Request) -> Response:
    name = request.path_params['name']
    if name != self._limits.model:
      raise ApiError(
        404,
        f'The model {name[:200]!r} is not served here; ask '
        f'{self._limits.model!r}.',
        'model',
        'model_not_found',
      )
    return JSONResponse(self._about())

  async def chat(self, request: Request) -> Response:
    return await self._answer(request, requests.parse_chat)

  async def completions(self, request: Request) -> Response:
    return await self._answer(request, requests.parse_completion)

  def _about(self):
    return {
      'id': self._limits.model,
      'object': 'model',
      'created': self._started,
      'owned_by': 'rlzero',
      'max_model_len': self._limits.context,
    }

  async def _answer(
    self, request: Request, parse: Callable[[Any, Limits], Asked]
  ) -> Any:
    asked = parse(await guard.read_json(request), self._limits)
    # A template may take seconds; others are answered meanwhile.
    prompts = await concurrency.run_in_threadpool(self._encode, asked)
    wanted = self._requests(asked, prompts)
    writer = Writer(
      asked=asked,
      model=self._limits.model,
      id=f'{"chatcmpl" if asked.is_chat else "cmpl"}-{secrets.token_hex(12)}',
      created=int(time.time()),
      token_text=self._token_text,
    )
    answer = _Answer(self._engine, wanted, request.receive)
    length = sum(map(len, prompts))
    if asked.stream:
      return _EventStream(answer, _chunks(answer, writer, length))
    try:
      async with answer:
        async for _ in answer:  # `answer.choices` adds them up
          pass
    except ClientDisconnect:
      return Response(status_code=499)  # nobody reads it
    # So may the text of many log-probabilities.
    return await concurrency.run_in_threadpool(
      lambda: JSONResponse(writer.whole(answer.choices, length))
    )

  def _encode(self, asked: Asked) -> list[list[int]]:
    """Prompts as token ids."""
    param = 'messages' if asked.is_chat else 'prompt'
    try:
      if asked.is_chat:
        prompts = [self._encoder.encode_chat(asked.messages)]
      else:
        prompts = [self._ids(prompt) for prompt in asked.prompts]
    except ValueError as error:
      # Clients need not know where the model lies.
      model = repr(self._limits.model)
      sentence = str(error).replace(self._tokenizer.source, model)
      raise ApiError(400, sentence, param) from error
    context = self._limits.context
    for prompt in prompts:
      wanted = asked.max_tokens or 1
      if not prompt:
        raise ApiError(400, 'The prompt has no tokens; write something.', param)
      if len(prompt) + wanted > context:
        asks = f' and max_tokens is {wanted}' if asked.max_tokens else ''
        raise ApiError(
          400,
          f'The prompt has {len(prompt)} tokens{asks}, but the context has '
          f'room for {context} in all; send less, or ask for fewer.',
          param,
          'context_length_exceeded',
        )
    return prompts

  def _ids(self, prompt: str | list[int]) -> list[int]:
    if isinstance(prompt, str):
      return self._encoder.encode_text(prompt)
    size = self._tokenizer.vocab_size
    if beyond := [token for token in prompt if token >= size]:
      raise ValueError(
        f'The prompt has the token id {beyond[0]}, but the vocabulary has '
        f'{size}; send ids of this model.'
      )
    return prompt

  def _requests(
    self, asked: Asked, prompts: Sequence[list[int]]
  ) -> list[Wanted]:
    found = []
    for number, tokens in enumerate(prompts):
      # Prompts of one request differ in their draw, as if each came alone with
      # the next seed.
      prompt = Prompt((asked.seed + number) % (1 << 31), tokens)
      found += [
        Wanted(
          prompt=prompt,
          sample=sample,
          max_tokens=asked.max_tokens or self._limits.context - len(tokens),
          temperature=asked.temperature,
          top_p=asked.top_p,
          num_top=asked.num_top,
          stops=asked.stops,
          splits_thought=asked.is_chat,
          in_thought=asked.is_chat and self._encoder.begins_thought(tokens),
        )
        for sample in range(asked.n)
      ]
    num_top = asked.num_top * sum(request.max_tokens for request in found)
    if num_top > _MAX_TOP:
      raise ApiError(
        400,
        f'The completions may have {num_top:,} likely tokens in all, and '
        f'{_MAX_TOP:,} are taken; lower n, max_tokens or the log-probabilities '
        'of each token.',
        'top_logprobs' if asked.is_chat else 'logprobs',
      )
    return found


class _Answer:
  """The events of the requests of one client, in the order they come.

  Ends early, and gives the slots back, if the client has gone.

  Attributes:
    choices: what each has so far.
  """

  def __init__(self, engine: Engine, wanted: list[Wanted], receive: Receive):
    self._engine, self._receive = engine, receive
    self._queue: asyncio.Queue[Event | None] = asyncio.Queue()
    self.choices = [Choice() for _ in wanted]
    loop = asyncio.get_running_loop()

    def deliver(event: Event) -> None:
      loop.call_soon_threadsafe(self._queue.put_nowait, event)

    try:
      self._ticket: Ticket = engine.submit(wanted, deliver)
    except Busy as error:
      wait = {'Retry-After': str(error.retry_after_s)}
      raise ApiError(429, str(error), headers=wait) from error
    except Closing as error:
      wait = {'Retry-After': '5'}
      raise ApiError(503, str(error), headers=wait) from error

  async def __aenter__(self) -> '_Answer':
    self._watcher = asyncio.ensure_future(self._watch())
    return self

  async def __aexit__(self, *_: Any) -> None:
    self._engine.cancel(self._ticket)
    self._watcher.cancel()
    with contextlib.suppress(asyncio.CancelledError):
      await self._watcher

  async def _watch(self):
    """Waits until the client goes."""
    while (await self._receive())['type'] != 'http.disconnect':
      pass
    self._queue.put_nowait(None)

  async def __aiter__(self) -> AsyncIterator[tuple[int, Choice]]:
    """The index of a choice, and what is new of it.

    Raises:
      ApiError: there will be no more of it.
      ClientDisconnect: the client has gone.
    """
    num_open = len(self.choices)
    while num_open:
      event = await self._queue.get()
      if event is None:
        raise ClientDisconnect
      if event.finish == 'error':
        raise ApiError(503, event.error)
      new = Choice(
        thought=event.delta.thought,
        text=event.delta.text,
        tokens=event.tokens,
        num_tokens=event.num_tokens,
        num_thought_tokens=event.num_thought_tokens,
        finish=event.finish or None,
      )
      self.choices[event.choice].add(new)
      num_open -= bool(event.finish)
      yield event.choice, new


async def _chunks(
  answer: _Answer, writer: Writer, prompt_tokens: int
) -> AsyncIterator[dict[str, Any]]:
  """The pieces of a stream."""
  first = set(range(len(answer.choices)))
  if writer.asked.is_chat:
    for index in sorted(first):
      yield writer.chunk(index, Choice(), True)
  async for index, new in answer:
    if new.text or new.thought or new.finish or writer.asked.logprobs:
      yield writer.chunk(index, new, False)
  if writer.asked.include_usage:
    yield writer.last_chunk(answer.choices, prompt_tokens)


class _EventStream:
  """A response of server-sent events; its end frees the slots."""

  def __init__(self, answer: _Answer, chunks: AsyncIterator[dict[str, Any]]):
    self._answer, self._chunks = answer, chunks

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    async def write(text: str, more: bool = True) -> None:
      body = {'type': 'http.response.body', 'body': text.encode()}
      await send({**body, 'more_body': more})

    async with self._answer:
      await send(
        {
          'type': 'http.response.start',
          'status': 200,
          'headers': [
            (b'content-type', b'text/event-stream; charset=utf-8'),
            (b'cache-control', b'no-store'),
          ],
        }
      )
      with contextlib.suppress(ClientDisconnect):
        try:
          async for chunk in self._chunks:
            await write(f'data: {files.to_json(chunk)}\n\n')
          await write('data: [DONE]\n\n')
        except ApiError as error:
          await write(f'data: {files.to_json(error.body())}\n\n')
        await write('', more=False)
