"""Figures that others have published, to set ours beside.

Sources: DeepSeek-R1, arXiv 2501.12948v1: Table 2 (R1-Zero, o1-mini and
o1-0912), Table 4 (R1, o1-mini and o1-1217) and Table 5 (the distilled models).
R1, o1-mini, o1-1217 and the distilled models are in the authors' README too
(github.com/deepseek-ai/DeepSeek-R1 at 0cf7856), against which they were read
one by one. Accuracies in percent; Codeforces is a rating.
"""

from html import escape
from typing import Any

from rlzero.runtime.metrics import interval_text

# A column: heading, benchmark, figure of ours.
_COLUMNS = {
  'AIME 2024 pass@1': ('aime2024', 'pass@1'),
  'AIME 2024 cons@64': ('aime2024', 'cons@k'),
  'MATH-500 pass@1': ('math500', 'pass@1'),
  'GPQA-Diamond pass@1': ('gpqa_diamond', 'pass@1'),
  'LiveCodeBench pass@1': ('livecodebench', 'pass@1'),
  'Codeforces rating': ('codeforces', 'rating'),
}
SOURCE = 'Published: arXiv 2501.12948v1, Tables 2, 4 and 5; not measured here.'
PUBLISHED: dict[str, tuple[float | None, ...]] = {
  'OpenAI o1-mini': (63.6, 80.0, 90.0, 60.0, 53.8, 1820),
  'OpenAI o1-0912': (74.4, 83.3, 94.8, 77.3, 63.4, 1843),
  'OpenAI o1-1217': (79.2, None, 96.4, 75.7, 63.4, 2061),
  'DeepSeek-R1-Zero': (71.0, 86.7, 95.9, 73.3, 50.0, 1444),
  'DeepSeek-R1': (79.8, None, 97.3, 71.5, 65.9, 2029),
  'R1-Distill-Qwen-1.5B': (28.9, 52.7, 83.9, 33.8, 16.9, 954),
  'R1-Distill-Qwen-7B': (55.5, 83.3, 92.8, 49.1, 37.6, 1189),
  'R1-Distill-Qwen-14B': (69.7, 80.0, 93.9, 59.1, 53.1, 1481),
  'R1-Distill-Qwen-32B': (72.6, 83.3, 94.3, 62.1, 57.2, 1691),
  'R1-Distill-Llama-8B': (50.4, 80.0, 89.1, 49.0, 39.6, 1205),
  'R1-Distill-Llama-70B': (70.0, 86.7, 94.5, 65.2, 57.5, 1633),
}


def rows(result: dict[str, Any]) -> list[list[str]]:
  """A table of a suite's metrics: a heading, our rows, the published ones.

  The published rows stand there if the suite has a benchmark of theirs.
  """
  benchmarks = result['benchmarks']
  found = [['measured here', 'pass@1 [95%]', 'cons@k (ties)', 'truncated']]
  found[0] += ['unparsable', 'problems x k', 'rating']
  for name, metrics in benchmarks.items():
    interval = interval_text(metrics['pass@1_interval'], '.1%')
    ((k, cons),) = metrics['cons@k'].items()
    rating = metrics.get('rating')
    found.append(
      [
        name,
        f'{metrics["pass@1"]:.1%} {interval}',
        f'@{k} {cons:.1%} ({metrics["cons@k_ties"]:.0%})',
        f'{metrics["truncated"]:.1%}',
        f'{metrics["unparsable"]:.1%}',
        f'{metrics["num_problems"]} x {metrics["num_samples"]}',
        '' if rating is None else f'{rating:.0f}',
      ]
    )
  return found


def published_rows(result: dict[str, Any]) -> list[list[str]]:
  """The paper's table with a row of ours first; empty for other benchmarks."""
  benchmarks = result['benchmarks']
  if not any(name in benchmarks for name, _ in _COLUMNS.values()):
    return []
  ours = []
  for name, figure in _COLUMNS.values():
    value = benchmarks.get(name, {}).get(figure)
    if figure == 'cons@k' and value:  # k is 64, or the column says otherwise
      value = value.get('64')
    ours.append(value if value is None or figure == 'rating' else 100 * value)
  table = [['', *_COLUMNS], ['measured here', *map(_show, ours)]]
  for name, values in PUBLISHED.items():
    table.append([f'{name} (published)', *map(_show, values)])
  return table


def table(result: dict[str, Any]) -> str:
  """Our metrics and the published ones, as Markdown."""
  parts = [_markdown(rows(result))]
  if others := published_rows(result):
    parts += [SOURCE, _markdown(others)]
  return '\n\n'.join(parts)


def html(result: dict[str, Any]) -> str:
  """The same for a page; nothing where no suite was measured."""
  if not result:
    return ''
  parts = ['<h2>Benchmarks</h2>', _html(rows(result))]
  if others := published_rows(result):
    parts += [f'<p class="small">{SOURCE}</p>', _html(others)]
  return ''.join(parts)


def _html(cells: list[list[str]]) -> str:
  lines = (''.join(f'<td>{escape(cell)}</td>' for cell in row) for row in cells)
  return '<table>' + ''.join(f'<tr>{line}</tr>' for line in lines) + '</table>'


def _show(value: float | None) -> str:
  if value is None:
    return '–'
  return f'{value:.0f}' if value > 100 else f'{value:.1f}'


def _markdown(cells: list[list[str]]) -> str:
  lines = [f'| {" | ".join(row)} |' for row in cells]
  return '\n'.join([lines[0], '|---' * len(cells[0]) + '|', *lines[1:]])
