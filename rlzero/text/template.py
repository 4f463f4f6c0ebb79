"""Templates: a question becomes a prompt, a completion is parsed.

The template and the parser live together because the one promises what the
other checks; they are tested as a pair.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

# DeepSeek-R1, arXiv 2501.12948, Table 1, word for word.
R1_ZERO = (
  'A conversation between User and Assistant. The user asks a question, and '
  'the Assistant solves it. The assistant first thinks about the reasoning '
  'process in the mind and then provides the user with the answer. The '
  'reasoning process and answer are enclosed within <think> </think> and '
  '<answer> </answer> tags, respectively, i.e., <think> reasoning process '
  'here </think> <answer> answer here </answer>. User: {prompt}. Assistant:'
)
# For a model whose whole vocabulary is smaller than the text above.
SHORT = 'User: {prompt} Assistant:'

_TAGGED = {'r1_zero': R1_ZERO, 'short': SHORT}
KINDS = (*_TAGGED, 'chat', 'plain')

# Any spelling of a tag, so that a near miss counts as a fault.
_TAG = re.compile(r'<\s*(?:/\s*)?(?:think|answer)\s*(?:/\s*)?>', re.IGNORECASE)
_SHAPE = ['<think>', '</think>', '<answer>', '</answer>']
_FORM = re.compile(r'\s*<think>.*</think>\s*<answer>.*</answer>\s*', re.DOTALL)
# The paper's ten words and, as it counts none, what they are in Chinese.
_REFLECTIVE = re.compile(
  r'\b(?:wait|mistake|however|but|retry|error|verify|wrong|evaluate|check)\b'
  r'|等等?|错误?|但是?|然而|不过|重试|验证|核实|评估|检查',
  re.IGNORECASE,
)


class Chat(str):
  """A question of several messages; as text, a blank line between them.

  The `chat` template asks the messages. The others, which know no roles, ask
  the text.

  Attributes:
    messages: of the conversation, each with its `role` and `content`.
  """

  messages: tuple[dict[str, str], ...]

  def __new__(cls, messages: Iterable[Mapping[str, str]]) -> 'Chat':
    kept = tuple({k: m[k] for k in ('role', 'content')} for m in messages)
    chat = super().__new__(cls, '\n\n'.join(m['content'] for m in kept))
    chat.messages = kept
    return chat

  def __reduce__(self) -> tuple[type, tuple[tuple[dict[str, str], ...]]]:
    return Chat, (self.messages,)

  @staticmethod
  def pack(question: str) -> str | list[dict[str, str]]:
    """A question of either kind, as JSON can hold it."""
    return list(question.messages) if isinstance(question, Chat) else question

  @staticmethod
  def unpack(packed: str | list[dict[str, str]]) -> str:
    """The question that `pack` was given."""
    return packed if isinstance(packed, str) else Chat(packed)

  def map(self, change: Callable[[str], str]) -> 'Chat':
    """The conversation with each content changed."""
    return Chat(
      {'role': m['role'], 'content': change(m['content'])}
      for m in self.messages
    )


@dataclasses.dataclass(frozen=True)
class Template:
  """How a question becomes a prompt.

  `chat` asks through the model's own chat template; `plain` is the question
  alone, for the model to continue. Both have no tags: the answer is whatever
  is stated last, and there is no format to reward.

  Raises:
    ValueError: an unknown kind, or a field that the kind does not use.
  """

  kind: str = 'r1_zero'  # one of KINDS
  # System message, in place of the question's own; 'chat' only.
  system: str | None = None
  suffix: str = ''  # put after the question; 'chat' only

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(
        f'Template.kind is {self.kind!r}; choose one of {", ".join(KINDS)}.'
      )
    if self.kind != 'chat' and (self.system is not None or self.suffix):
      raise ValueError(
        f'Template.system and Template.suffix are of no use to {self.kind!r}, '
        "whose text is fixed; leave them out or set kind to 'chat'."
      )

  @property
  def has_format(self) -> bool:
    """Whether completions have a format that can be rewarded."""
    return self.kind in _TAGGED

  def render(
    self, question: str, chat: Callable[[list[dict]], str] | None = None
  ) -> str:
    """The prompt, as text.

    Args:
      question: text of the problem, or a `Chat`.
      chat: the tokenizer's chat template, from messages to text.

    Raises:
      ValueError: 'chat' without a chat template.
    """
    if self.has_format:
      return _TAGGED[self.kind].replace('{prompt}', question)
    if self.kind == 'plain':
      return question
    if chat is None:
      raise ValueError(
        "Template.kind is 'chat', but the tokenizer has no chat template; use "
        "a chat model or set kind to 'r1_zero'."
      )
    messages = [{'role': 'user', 'content': question}]
    if isinstance(question, Chat):
      messages = [dict(message) for message in question.messages]
    messages[-1]['content'] += self.suffix
    if self.system is not None:
      messages = [m for m in messages if m['role'] != 'system']
      messages.insert(0, {'role': 'system', 'content': self.system})
    return chat(messages)


@dataclasses.dataclass(frozen=True)
class Parsed:
  """The contents of a completion's tags."""

  think: str | None  # of the thought that comes first
  answer: str | None  # of the only answer, if it stands outside a thought
  well_formed: bool  # the format reward


def parse(completion: str) -> Parsed:
  """Reads `<think> ... </think> <answer> ... </answer>`.

  Well formed means exactly this, once, with a non-empty answer and nothing
  but white space before, between and after. A tag that is repeated, nested
  or misspelt is a fault.
  """
  tags = list(_TAG.finditer(completion))
  names = [tag.group() for tag in tags]
  think = answer = None
  if names[:2] == _SHAPE[:2]:
    think = completion[tags[0].end() : tags[1].start()].strip()
  if names in (_SHAPE, _SHAPE[2:]):
    answer = completion[tags[-2].end() : tags[-1].start()].strip() or None
  well_formed = (
    names == _SHAPE
    and answer is not None
    and _FORM.fullmatch(completion) is not None
  )
  return Parsed(think, answer, well_formed)


def tags(completion: str) -> list[tuple[str, int, int]]:
  """Name, start and end of each tag in any spelling, such as '</think>'."""
  return [
    (''.join(tag.group().split()).casefold(), *tag.span())
    for tag in _TAG.finditer(completion)
  ]


def begins_thought(prompt: str) -> bool:
  """Whether a prompt ends in <think>, as that of some chat templates does."""
  return prompt.rstrip().endswith('<think>')


def summary(completion: str, in_thought: bool = False) -> str:
  """Cuts the thought off: the rest is what a user reads.

  All of a completion that does not think; nothing of one whose last thought
  never ends.

  Args:
    completion: what the model wrote.
    in_thought: whether its prompt has begun the thought.
  """
  begin, thinks = 0, in_thought
  for name, _, end in tags(completion):
    if name in ('<think>', '</think>'):
      begin, thinks = end, name == '<think>'
  return '' if thinks else completion[begin:].strip()


def reflective_spans(text: str) -> list[tuple[int, int]]:
  """Start and end of each reflective word in a text."""
  return [found.span() for found in _REFLECTIVE.finditer(text)]


def reflective_words(text: str) -> int:
  """Number of the paper's reflective words, such as 'wait', in a text."""
  return len(_REFLECTIVE.findall(text))
