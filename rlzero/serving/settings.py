"""The model that is served: its settings, and how it is loaded."""

import dataclasses
import os
from collections.abc import Callable
from typing import Literal, NamedTuple

from rlzero import weights
from rlzero.runtime import fields, sharding
from rlzero.runtime.fields import at_least
from rlzero.serving import prompts
from rlzero.serving.engine import Engine
from rlzero.text import template as templates
from rlzero.text.tokenizer import Tokenizer
from rlzero.train import folders


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Settings of what answers, be it in a server or a terminal.

  Raises:
    ValueError: a setting out of range.
  """

  checkpoint: str  # run or Hugging Face folder, hf://org/name or GGUF file
  # How a conversation becomes a prompt: chat, r1_zero, short or plain. By
  # default as the run was asked, or by the model's chat template.
  template: str = ''
  context: int = 2048  # tokens of prompt and answer; at most the model's
  decode_steps: int = 4  # tokens of an answer that come together
  dtype: Literal['float32', 'bfloat16'] = (
    'float32'  # of weights and activations
  )
  compile_ahead: bool = True  # before the first question, not at it
  mesh: sharding.Mesh = sharding.Mesh()  # one device by default

  def __post_init__(self):
    fields.check(self, context=at_least(2), decode_steps=at_least(1))
    if self.template and self.template not in templates.KINDS:
      raise ValueError(
        f'Config.template is {self.template!r}; choose one of '
        f'{", ".join(templates.KINDS)}, or leave it out.'
      )


class Served(NamedTuple):
  """A model, ready to be asked."""

  engine: Engine
  tokenizer: Tokenizer
  encoder: prompts.PromptEncoder
  template: str  # the kind that is used


def load(
  settings: Settings,
  *,
  slots: int,
  max_queue: int,
  on_failure: Callable[[], None] | None = None,
) -> Served:
  """Loads a model; its engine has not been started yet.

  Args:
    settings: of the model.
    slots: see `Engine`.
    max_queue: see `Engine`.
    on_failure: see `Engine`.

  Raises:
    FileNotFoundError, ValueError: nothing usable there, or a template that the
      model does not have; one sentence.
  """
  tokenizer = folders.load_tokenizer(settings.checkpoint)
  kind = settings.template or prompts.template_kind(
    settings.checkpoint, tokenizer
  )
  encoder = prompts.PromptEncoder(tokenizer, kind)
  with sharding.use(settings.mesh):
    loaded = folders.load_model(settings.checkpoint, settings.dtype)
  config = dataclasses.replace(loaded.config, dtype=settings.dtype)
  engine = Engine(
    weights.Loaded(config, loaded.params, tokenizer),
    slots=slots,
    max_queue=max_queue,
    context=min(settings.context, config.max_position),
    decode_steps=settings.decode_steps,
    mesh=settings.mesh,
    on_failure=on_failure,
  )
  return Served(engine, tokenizer, encoder, kind)


def name_of(checkpoint: str) -> str:
  """The name of a model by default: that of its folder or file."""
  name = os.path.basename(os.path.normpath(checkpoint))
  return name.removesuffix('.gguf') or 'model'
