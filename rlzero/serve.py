"""Serves a model by OpenAI's protocol, to many clients at once.

  python -m rlzero.serve --checkpoint=DIR
  RLZERO_API_KEY=secret python -m rlzero.serve --checkpoint=DIR --host=0.0.0.0

Routes: /v1/chat/completions, /v1/completions, /v1/models and /health. The
thought of a chat model comes as `reasoning_content`, as DeepSeek's API has it.
Requests that come while others run join them (continuous batching); a request
with a seed gets the same tokens whatever runs beside it.

SIGTERM and Ctrl-C end the server: new requests get 503, running ones have
`grace_s` seconds. A second signal ends it at once.
"""

import contextlib
import dataclasses
import os
import threading

from rlzero.runtime import fields, keys, lifecycle
from rlzero.runtime.fields import at_least
from rlzero.serving import app, server, settings

_KEY = 'RLZERO_API_KEY'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(settings.Settings):
  """Settings of a server.

  Raises:
    ValueError: a setting out of range, or a server to other machines without a
      key.
  """

  host: str = '127.0.0.1'  # another one than loopback needs a key
  port: int = 8000  # 0 takes any that is free
  # That clients must send; better in RLZERO_API_KEY, where no list of processes
  # shows it.
  api_key: str = ''
  model_name: str = ''  # what clients call it; by default its folder's name
  slots: int = 16  # requests that run at a time
  max_queue: int = 128  # requests that wait; more are refused with 429
  grace_s: float = 30.0  # seconds for running requests when the server ends

  def __post_init__(self):
    super().__post_init__()
    fields.check(
      self,
      port=at_least(0).at_most(65535),
      slots=at_least(1),
      max_queue=at_least(0),
      grace_s=at_least(0),
    )
    if not self.is_local and not self.key:
      raise ValueError(
        f'Config.host is {self.host!r}, where other machines can ask, but '
        f'there is no API key; set {_KEY}, or serve 127.0.0.1.'
      )

  @property
  def is_local(self) -> bool:
    """Whether this machine alone can ask."""
    return keys.is_loopback_host(self.host)

  @property
  def key(self) -> str:
    """The key that clients must send, or ''."""
    return self.api_key or os.environ.get(_KEY, '')


def run(cfg: Config) -> None:
  """Serves until a signal comes."""
  ended = threading.Event()
  with contextlib.ExitStack() as stack:
    listener = stack.enter_context(server.bind(cfg.host, cfg.port))
    served = settings.load(
      cfg, slots=cfg.slots, max_queue=cfg.max_queue, on_failure=ended.set
    )
    engine = served.engine
    stack.callback(engine.close)
    engine.start(cfg.compile_ahead)
    name = cfg.model_name or settings.name_of(cfg.checkpoint)
    application = app.make_app(
      engine,
      served.tokenizer,
      served.encoder,
      name,
      cfg.key,
      local=cfg.is_local,
    )
    stack.enter_context(server.on_signals(ended.set))
    running = stack.enter_context(server.Server(application, listener))
    _say(
      f'serving {running.url}/v1#{name} ({cfg.slots} slots, context '
      f'{engine.context}, template {served.template})'
    )
    ended.wait()
    if not engine.failure:
      _say(f'ending; running requests have {cfg.grace_s:g} s')
      engine.drain(cfg.grace_s)
    engine.close()
  if engine.failure:
    raise engine.failure


def _say(sentence: str) -> None:
  """Prints a sentence; a reader that has gone ends no server."""
  try:
    print(sentence, flush=True)
  except OSError:
    lifecycle.drop_lost_output()


if __name__ == '__main__':
  from rlzero import serve
  from rlzero.runtime import config

  config.main(serve)
