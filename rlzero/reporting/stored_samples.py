"""Stored completions as the live page shows them.

Texts are cut into pieces here, plain ones and marked ones in turn, so that the
page puts each into an element by `textContent` and parses none of them.
"""

import collections
from collections.abc import Sequence
from typing import Any

from rlzero.reporting import aha, recorded
from rlzero.reporting.completion_index import (
  CompletionIndex,
  Query,
  Stored,
)
from rlzero.text import template

# Of a completion: what the page shows as numbers, if they are there.
_NUMBERS = (
  'reward',
  'accuracy',
  'format',
  'length_penalty',
  'preference',
  'advantage',
  'len',
  'tries',
  'reflections',
)
_EXCERPT = 160  # characters of a completion in a list


def step(index: CompletionIndex, key: str) -> dict[str, Any]:
  """The prompts of a file, and what its completions earned.

  Raises:
    KeyError: the run has no such file.
  """
  indexed = index.index_of(key)
  return {
    'key': key,
    'groups': [
      {
        'uid': group.uid,
        'question': group.question,
        'right': sum(indexed.entries[i].correct for i in group.members),
        'count': len(group.members),
      }
      for group in indexed.groups
    ],
  }


def group(index: CompletionIndex, key: str, number: int) -> dict[str, Any]:
  """The completions of a prompt, side by side.

  Raises:
    KeyError: the run has no such file, or the file no such prompt.
  """
  groups = index.index_of(key).groups
  if not 0 <= number < len(groups):
    raise KeyError(f'prompt {number} in {key}')
  places = groups[number].members
  tokens = index.tokens(key)
  records = index.records(key, places)
  return {
    'key': key,
    'number': number,
    'uid': groups[number].uid,
    'question': groups[number].question,
    'completions': [
      shown(record) | {'place': place, 'tokens': _tokens(tokens.get(place))}
      for place, record in zip(places, records, strict=True)
    ],
  }


def search(
  index: CompletionIndex,
  query: Query,
  after: tuple[str, int] | None,
  limit: int,
) -> dict[str, Any]:
  """Completions of training that pass a query, and where to continue."""
  found, more = index.search(query, after, limit)
  return {
    'matches': [_listed(index, stored, place) for stored, place in found],
    'more': more and {'key': more[0], 'place': more[1]},
    'read': index.num_indexed,
    'files': index.num_files,
  }


def gallery(
  index: CompletionIndex, kind: str, skip: int, limit: int, seconds: float
) -> dict[str, Any]:
  """The self-corrections that have been found so far.

  Args:
    index: of the run; some more of it is read.
    kind: one of `aha.KINDS`, or '' for all.
    skip: how many to leave out, by step.
    limit: most to be shown.
    seconds: to read for.
  """
  complete = index.extend(seconds)
  kinds: dict[str, dict[str, Any]] = {}
  words: collections.Counter[str] = collections.Counter()
  wanted: list[tuple[Stored, int, str]] = []
  for stored, place, found, word in index.corrections():
    first = {'count': 0, 'first': stored.step}
    kinds.setdefault(found, first)['count'] += 1
    words[word] += 1
    if kind in ('', found):
      wanted.append((stored, place, found))
  return {
    'complete': complete,
    'read': index.num_looked_at,
    'files': index.num_files,
    'kinds': kinds,
    'words': dict(words.most_common(12)),
    'total': len(wanted),
    'shown': [
      _correction(index, *found) for found in wanted[skip : skip + limit]
    ],
  }


def shown(record: dict[str, Any]) -> dict[str, Any]:
  """A completion: numbers, thought and answer, reflective words marked."""
  text = str(record.get('completion', ''))
  cut = _end_of_thought(text)
  spans = [(*span, 'word') for span in template.reflective_spans(text)]
  parts = record.get('parts')
  return {
    'numbers': {
      name: value
      for name in _NUMBERS
      if (value := recorded.number(record.get(name))) is not None
    },
    'parts': {
      str(name): recorded.number(value)
      for name, value in (parts if isinstance(parts, dict) else {}).items()
    },
    'right': bool(record.get('correct', record.get('accuracy'))),
    'truncated': bool(record.get('truncated')),
    'status': str(record.get('status', 'ok')),
    'outcome': str(record.get('outcome') or ''),
    'answer': None if record.get('answer') is None else str(record['answer']),
    'thought': pieces(text, 0, cut, spans),
    'rest': pieces(text, cut, len(text), spans),
    'words': len(text[:cut].split()),
  }


def pieces(
  text: str, begin: int, end: int, spans: Sequence[tuple[int, int, str]]
) -> list[list[str]]:
  """Cuts a part of a text at spans.

  Args:
    text: the whole.
    begin: of the part.
    end: of the part.
    spans: start, end and mark, in order; where two overlap the first counts.

  Returns:
    pairs of mark ('' for none) and text, which joined are the part.
  """
  found: list[list[str]] = []
  place = begin
  for start, stop, mark in spans:
    if start < place or stop > end:
      continue
    if start > place:
      found.append(['', text[place:start]])
    found.append([mark, text[start:stop]])
    place = stop
  if place < end:
    found.append(['', text[place:end]])
  return found


def _end_of_thought(text: str) -> int:
  """Where the last </think> ends; 0 without one."""
  ends = [end for name, _, end in template.tags(text) if name == '</think>']
  return ends[-1] if ends else 0


def _listed(index: CompletionIndex, stored: Stored, place: int) -> dict:
  entry = index.index_of(stored.key).entries[place]
  (record,) = index.records(stored.key, [place])
  text = ' '.join(str(record.get('completion', '')).split())
  return {
    'key': stored.key,
    'step': stored.step,
    'group': entry.group,
    'place': place,
    'reward': entry.reward,
    'right': entry.correct,
    'length': entry.length,
    'excerpt': text[:_EXCERPT],
  }


def _correction(
  index: CompletionIndex, stored: Stored, place: int, kind: str
) -> dict:
  entry = index.index_of(stored.key).entries[place]
  (record,) = index.records(stored.key, [place])
  text = str(record.get('completion', ''))
  found = aha.find(record)
  spans = []
  if found:
    spans = [
      (*found.wrong, 'wrong'),
      (*found.turn, 'word'),
      (*found.right, 'right'),
    ]
  return {
    'key': stored.key,
    'step': stored.step,
    'group': entry.group,
    'place': place,
    'kind': kind,
    'question': str(record.get('question', '')),
    'pieces': pieces(text, 0, len(text), sorted(spans)),
  }


def _tokens(row: dict[str, Any] | None) -> dict[str, Any] | None:
  """Texts and figures of a completion's tokens, if all are there."""
  texts = row.get('texts') if row else None
  if row is None or not isinstance(texts, list):
    return None
  figures = {
    name: [recorded.number(value) for value in row[name]]
    for name in ('logprob', 'entropy', 'mismatch', 'advantage')
    if isinstance(row.get(name), list) and len(row[name]) == len(texts)
  }
  return {'texts': [str(text) for text in texts], 'figures': figures}
