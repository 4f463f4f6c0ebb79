"""Verdicts as a page: a table, and a paragraph and a picture for each claim."""

import os
from collections.abc import Mapping, Sequence

from rlzero.laboratory import claims
from rlzero.laboratory.claims import Claim, Finding
from rlzero.reporting import figures, recorded

_EXPECTED = {
  'higher': 'higher by {} or more',
  'lower': 'lower by {} or more',
  'same': 'the same within {}',
}


def table(all_claims: Sequence[Claim], found: Mapping[str, Finding]) -> str:
  """A row of Markdown for each claim: its difference and its verdict."""
  lines = ['| claim | difference [95%] | matters from | verdict |', '|---' * 4]
  lines[1] += '|'
  for claim in all_claims:
    finding = found[claim.name]
    lines.append(
      f'| {claim.statement} | {_difference(finding)} | {claim.margin:g} | '
      f'**{finding.verdict}** |'
    )
  return '\n'.join(lines)


def text(
  all_claims: Sequence[Claim],
  found: Mapping[str, Finding],
  seeds: Sequence[int],
) -> str:
  """The page in Markdown; pictures stand beside it as `draw` writes them."""
  parts = [f'Seeds: {", ".join(map(str, seeds))}.', table(all_claims, found)]
  for claim in all_claims:
    parts.append(_paragraph(claim, found[claim.name]))
  return '\n\n'.join(parts) + '\n'


def draw(
  all_claims: Sequence[Claim], workdir: str, seeds: Sequence[int]
) -> None:
  """Draws the runs of each claim over training, as `NAME.png`."""
  for claim in all_claims:
    runs = {
      claims.name_of(arm): [
        recorded.load(os.path.join(workdir, claims.folder_of(arm, seed)))
        for seed in seeds
      ]
      for arm in claim.arms
    }
    path = os.path.join(workdir, f'{claim.name}.png')
    figures.compare(runs, claim.picture, path)


def _paragraph(claim: Claim, finding: Finding) -> str:
  """The section of a claim: source, values of each seed, note, picture."""
  arm, control = claims.name_of(claim.arm), '0 |'
  if claim.control or claim.control_figure:
    name = claims.name_of(claim.control or claim.arm)
    control = f'`{name}` | `{claim.control_figure or claim.figure}`'
  expected = _EXPECTED[claim.expected].format(f'{claim.margin:g}')
  lines = [
    f'## {claim.statement}',
    '',
    f'{claim.source}. Verdict: **{finding.verdict}**.',
    '',
    '| | figure | each seed |',
    '|---|---|---|',
    f'| `{arm}` | `{claim.figure}` | {_values(finding.values)} |',
    f'| {control} | {_values(finding.control)} |',
    f'| difference, claimed {expected} | | {_difference(finding)} |',
    '',
  ]
  if claim.note:
    lines += [claim.note, '']
  return '\n'.join([*lines, f'![{claim.picture}]({claim.name}.png)'])


def _values(values: Sequence[float]) -> str:
  return ', '.join(f'{value:.4g}' for value in values)


def _difference(finding: Finding) -> str:
  found = finding.difference
  said = f'{found["mean"]:+.3g}'
  if 'low' in found:
    said += f' [{found["low"]:+.3g}, {found["high"]:+.3g}]'
  return said
