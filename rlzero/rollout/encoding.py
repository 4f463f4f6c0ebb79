"""Text in, tokens out, and back: prompts under a template, samples as text."""

from collections.abc import Sequence
from typing import NamedTuple

from rlzero.rollout import scheduler
from rlzero.rollout.sampling import Finish
from rlzero.tasks import base
from rlzero.text import template as templates
from rlzero.text.template import Template
from rlzero.text.tokenizer import Tokenizer

_END = 16  # tokens of a prompt: enough for <think> and new lines behind it


def encode_examples(
  tokenizer: Tokenizer,
  template: Template,
  sampled: Sequence[tuple[int, base.Example]],
) -> list[scheduler.Prompt]:
  """Token ids of the questions under the template."""
  return encode_prompts(
    tokenizer, template, [(draw, e.question) for draw, e in sampled]
  )


class Sample(NamedTuple):
  """What a model wrote."""

  text: str
  num_tokens: int
  truncated: bool  # cut at the longest length
  in_thought: bool = False  # its prompt had begun the thought


def encode_prompts(
  tokenizer: Tokenizer, template: Template, sampled: Sequence[tuple[int, str]]
) -> list[scheduler.Prompt]:
  """Token ids of the questions under the template."""
  return [
    scheduler.Prompt(draw, encode_prompt(tokenizer, template, question))
    for draw, question in sampled
  ]


def encode_prompt(
  tokenizer: Tokenizer, template: Template, question: str
) -> list[int]:
  """Token ids of a question under the template.

  A text starts as the model expects it to; a chat template does so itself.
  """
  return tokenizer.encode(
    template.render(tokenizer.as_text(question), tokenizer.apply_chat_template),
    add_special=template.kind != 'chat',
  )


def begins_thought(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
  """Whether a prompt's last tokens are <think>, and the completion goes on."""
  end = tokenizer.decode(prompt[-_END:], skip_special=False)
  return templates.begins_thought(end)


def to_sample(
  tokenizer: Tokenizer,
  completion: scheduler.Completion,
  prompt: Sequence[int],
) -> Sample:
  """A completion of a prompt, as text."""
  return Sample(
    tokenizer.decode(completion.tokens.tolist()),
    len(completion.tokens),
    completion.finish is Finish.LENGTH,
    begins_thought(tokenizer, prompt),
  )
