"""Text in, tokens out, and back: prompts under a template, samples as text."""

from collections.abc import Sequence
from typing import NamedTuple

from rlzero.rollout import scheduler
from rlzero.rollout.sampling import Finish, StopCriteria
from rlzero.tasks import base
from rlzero.tasks.datasets import stream
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
  """A completion as text."""

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
  if isinstance(question, templates.Chat):
    question = question.map(tokenizer.as_text)
  else:
    question = tokenizer.as_text(question)
  return tokenizer.encode(
    template.render(question, tokenizer.apply_chat_template),
    add_special=template.kind != 'chat',
  )


def stop_criteria(tokenizer: Tokenizer) -> StopCriteria:
  """Returns the tokens that end the completions of a tokenizer's model."""
  return StopCriteria(tokenizer.eos_ids)


def begins_thought(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
  """Whether a prompt ends in <think>, which the completion then continues."""
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


def draw_fitting(
  prompts: stream.PromptStream,
  count: int,
  tokenizer: Tokenizer,
  template: Template,
  max_prompt_len: int,
) -> tuple[list[tuple[int, base.Example]], list[tuple[str, int]]]:
  """Draws problems that are short enough as prompts.

  Returns:
    what `PromptStream.next` returns; uid and tokens of each that was drawn and
    left out.

  Raises:
    ValueError: no problem is short enough.
  """
  left_out = []

  def length(example: base.Example) -> int:
    return len(encode_prompt(tokenizer, template, example.question))

  try:
    sampled = prompts.next(
      count,
      lambda example: length(example) <= max_prompt_len,
      lambda example: left_out.append((example.uid, length(example))),
    )
  except ValueError as error:
    raise ValueError(
      f'No training prompt is short enough: the last has {left_out[-1][1]} '
      f'tokens, but Sampling.max_prompt_len is {max_prompt_len}; raise the '
      'limit or choose other problems.'
    ) from error
  return sampled, left_out


def check_lengths(
  tokenizer: Tokenizer,
  template: Template,
  examples: Sequence[base.Example],
  max_prompt_len: int,
) -> None:
  """Checks problems before any of them is asked.

  Raises:
    ValueError: some are too long as prompts; names the longest.
  """
  lengths = [
    len(encode_prompt(tokenizer, template, e.question)) for e in examples
  ]
  too_long = [n for n in lengths if n > max_prompt_len]
  if too_long:
    longest = examples[lengths.index(max(too_long))]
    raise ValueError(
      f'{len(too_long)} of {len(examples)} problems to evaluate on are '
      'too long; '
      f'{longest.uid!r} has {max(too_long)} tokens, but '
      f'Sampling.max_prompt_len is {max_prompt_len}; raise the limit or '
      'choose other problems.'
    )
