"""Which language a text is in, and how consistently.

The language-consistency reward of R1 (arXiv 2501.12948, section 2.3.2) is the
share of words in the chain of thought that are of the target language. What
counts as a word is decided by script alone, without a dictionary:

- Chinese (`zh`): each Han character is one word. Segmenting it would take a
  dictionary; by this count a Chinese passage weighs about as much as half
  again its English translation.
- English (`en`): each run of Latin letters, apostrophes and hyphens inside it
  included. French would count as English.
- Other scripts (`other`): a run of letters, or a single kana. No target; they
  lower the share of both.

Neutral: code, mathematics, numbers, tags, links, file names, single letters
(they are variables more often than words), function names, punctuation. But
words are not hidden there: see `count_words`.
"""

import re
from typing import Literal

from rlzero.text import template

Language = Literal['en', 'zh']
LANGUAGES = ('en', 'zh')

_HAN = '\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af'
_KANA = '\u3040-\u30ff'
_LATIN = 'A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f'
_START = r'(?<![A-Za-z0-9_])'  # keeps the search linear in long runs
_NEUTRAL = re.compile(
  r'```.*?(?:```|\Z)|`[^`\n]*`'  # code
  # Mathematics, displayed and inline; a lone dollar is an amount of money.
  r'|\$\$[^$]*\$\$|\$[^$\n]+\$'
  r'|\\\[(?:(?!\\[\[\]]).)*\\\]|\\\((?:(?!\\[()]).)*\\\)'
  r'|\\(?:begin|end|text|mathrm|mbox|operatorname)\{[^{}]*\}|\\[A-Za-z]+'
  r'|<[^<>\n]{0,40}>'  # tags
  r'|https?://[^\s<>]+'
  # Identifiers: a call, letters with digits or underscores, a file's name.
  rf'|{_START}(?:[A-Za-z_][A-Za-z0-9_]*\(|[A-Za-z_]*[0-9_][A-Za-z0-9_]*'
  r'|[A-Za-z]+\.[a-z]{1,5}\b(?!\s*[A-Z])'
  r'|(?:sin|cos|tan|log|ln|exp|max|min|mod|gcd|lcm)(?![A-Za-z]))',
  re.DOTALL,
)
_WORD = re.compile(
  rf'(?P<zh>[{_HAN}])|(?P<en>[{_LATIN}]+(?:[\'’-][{_LATIN}]+)*)'
  rf'|(?P<other>[{_KANA}]|[^\W\d_{_HAN}{_KANA}{_LATIN}]+)'
)

# Latin words with nothing but spaces and commas between them: language, even
# where it is written as code or as the text of a formula.
_PROSE = 4
_PROSE_RUN = re.compile(
  rf'(?<![{_LATIN}\\])[{_LATIN}]{{2,}}(?:,?[ ~]+[{_LATIN}]{{2,}})'
  rf'{{{_PROSE - 1},}}'
)
# What no one can write a thought in: our own tags, and the host of a link.
_NAMELESS = re.compile(r'</?\s*(?:think|answer)\s*>|https?://[\w.-]*', re.I)
_FREE = 2  # Latin words in neutral places, for each word outside
_LEAST_OUTSIDE = 0.1  # share of the words


def count_words(text: str) -> dict[str, int]:
  """Number of words by language: 'en', 'zh' and 'other'.

  Words in neutral places count too where they are language rather than code:
  those of any script but Latin, and runs of `_PROSE` Latin words. Of the rest,
  twice as many as stand outside are free. A text of which nearly all is
  neutral is in no language: its words count as 'other'.
  """
  counts = _count(_NEUTRAL.sub(' ', text))
  outside = sum(counts.values())
  free = hidden = 0
  for match in _NEUTRAL.finditer(text):
    inside = _NAMELESS.sub(' ', match.group())
    hidden += sum((found := _count(inside)).values())
    prose = sum(len(run.split()) for run in _PROSE_RUN.findall(inside))
    counts['zh'] += found['zh']
    counts['other'] += found['other']
    counts['en'] += prose
    free += found['en'] - prose
  counts['en'] += max(free - _FREE * outside, 0)
  if outside < _LEAST_OUTSIDE * (outside + hidden):
    return {'en': 0, 'zh': 0, 'other': sum(counts.values())}
  return counts


def _count(text: str) -> dict[str, int]:
  counts = {'en': 0, 'zh': 0, 'other': 0}
  for match in _WORD.finditer(text):
    language = match.lastgroup or 'other'  # every branch has a name
    if language != 'en' or len(match.group()) > 1:
      counts[language] += 1
  return counts


def share(counts: dict[str, int], language: Language) -> float:
  """Share of the words that are of the language, a number in [0, 1].

  0 where there are no words: a reward for silence would be earned by it.
  """
  return counts[language] / max(sum(counts.values()), 1)


def consistency(text: str, language: Language) -> float:
  """Share of words of the target language in a text, a number in [0, 1]."""
  return share(count_words(text), language)


def detect(text: str, default: Language = 'en') -> Language:
  """The language that most words of a text are of; the target of a prompt.

  Args:
    text: a question.
    default: where there are no words, or as many of both.
  """
  counts = _count(_NEUTRAL.sub(' ', text))  # code is in no language
  if counts['en'] == counts['zh']:
    return default
  return max(LANGUAGES, key=counts.__getitem__)


def thought(completion: str, in_thought: bool = False) -> str:
  """The chain of thought; all of a completion that does not end one.

  Where the prompt has begun the thought, it is what stands before </think>.

  Args:
    completion: what the model wrote.
    in_thought: whether its prompt has begun the thought; otherwise that is
      known only of a completion with no <think> before its </think>.
  """
  begin, finish = 0, None
  for name, start, end in template.tags(completion):
    if name == '</think>':
      finish = start
    elif name == '<think>' and not (begin or in_thought) and finish is None:
      begin = end
  return completion if finish is None else completion[begin:finish].strip()
