"""Conversations and texts from outside become prompts.

What people write never becomes a control token, such as the end of a turn:
`Tokenizer.as_text` marks it, and it is spelt like other words. A text for
/completions is a prompt as it stands, control tokens included, since there is
no template that could put them there.
"""

import pathlib
import re
from collections.abc import Mapping, Sequence

from rlzero.rollout import encoding
from rlzero.text import files as text_files
from rlzero.text import template as templates
from rlzero.text.tokenizer import Tokenizer

Message = Mapping[str, str]  # `role` and `content`

_TEXTS = {'r1_zero': templates.R1_ZERO, 'short': templates.SHORT}
# Thoughts of earlier turns, which chat templates look for and leave out.
_THINK_TAG = re.compile(r'(</?think>)')


def template_kind(checkpoint: str, tokenizer: Tokenizer) -> str:
  """How a model is asked, one of `template.KINDS`.

  As its run asked it; else by its chat template; a base model that has none by
  the template of R1-Zero, or by a short one, if its vocabulary is too small.

  Args:
    checkpoint: its path.
    tokenizer: of the model.
  """
  if kind := _kind_of_run(checkpoint):
    return kind
  if tokenizer.chat_template is not None:
    return 'chat'
  for kind, text in _TEXTS.items():
    try:
      tokenizer.encode(text.replace('{prompt}', ''))
    except ValueError:  # a word that the vocabulary lacks
      continue
    return kind
  return 'plain'


def _kind_of_run(checkpoint: str) -> str | None:
  folder = pathlib.Path(checkpoint)
  for run in (folder, folder.parent):
    settings = run / 'config.json'
    if (run / 'checkpoints').is_dir() and settings.is_file():
      found = text_files.read_json(settings).get('template')
      kind = found.get('kind') if isinstance(found, dict) else None
      return kind if kind in templates.KINDS else None
  return None


class PromptEncoder:
  """Makes token ids of what clients send.

  Args:
    tokenizer: of the model.
    kind: of the template for conversations, one of `template.KINDS`.

  Raises:
    ValueError: 'chat' without a chat template, or an unknown kind.
  """

  def __init__(self, tokenizer: Tokenizer, kind: str):
    templates.Template(kind)  # refuses an unknown one
    if kind == 'chat' and tokenizer.chat_template is None:
      raise ValueError(
        "The template is 'chat', but the tokenizer has no chat template; use "
        "a chat model or choose 'r1_zero'."
      )
    self._tokenizer, self._kind = tokenizer, kind

  def encode_chat(self, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation, up to where the model speaks.

    Raises:
      ValueError: messages that the template does not accept, or a text that
        the tokenizer cannot encode; one sentence.
    """
    if self._kind == 'chat':
      marked = [self._marked(message) for message in messages]
      text = self._tokenizer.apply_chat_template(marked)
      return self._tokenizer.encode(text)
    if messages[-1]['role'] == 'assistant':
      raise ValueError(
        "The last message is the assistant's, so there is nothing to answer; "
        'end with a message of the user.'
      )
    text = self._without_roles(messages)
    return self._tokenizer.encode(text, add_special=True)

  def encode_text(self, text: str) -> list[int]:
    """Token ids of a prompt that is given as it stands.

    Raises:
      ValueError: a text that the tokenizer cannot encode.
    """
    return self._tokenizer.encode(text, add_special=True)

  def begins_thought(self, prompt: Sequence[int]) -> bool:
    """Whether a prompt ends in <think>, so that the answer starts inside."""
    return encoding.begins_thought(self._tokenizer, prompt)

  def _marked(self, message: Message) -> Message:
    """A message whose control tokens are text, but for tags of thoughts."""
    parts = [message['content']]
    if message['role'] == 'assistant':
      parts = _THINK_TAG.split(message['content'])
    content = ''.join(
      part
      if _THINK_TAG.fullmatch(part) and len(parts) > 1
      else self._tokenizer.as_text(part)
      for part in parts
    )
    return {'role': message['role'], 'content': content}

  def _without_roles(self, messages: Sequence[Message]) -> str:
    """A conversation under a template that knows one question alone.

    Its last part, from 'User:' on, is repeated for later turns; thoughts of
    earlier turns are left out.
    """
    text = _TEXTS.get(self._kind, '{prompt}')
    later = ' ' + text[max(text.rfind('User:'), 0) :]
    if self._kind == 'plain':
      later = '\n\n{prompt}'
    prompt, asked = '', []
    for message in messages:
      content = self._tokenizer.as_text(message['content'])
      if message['role'] != 'assistant':
        asked.append(content)
        continue
      if asked or not prompt:
        prompt += (later if prompt else text).replace(
          '{prompt}', '\n\n'.join(asked)
        )
      said = self._tokenizer.as_text(templates.summary(message['content']))
      prompt, asked = f'{prompt} {said}', []
    return prompt + (later if prompt else text).replace(
      '{prompt}', '\n\n'.join(asked)
    )
