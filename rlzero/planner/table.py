"""Plans as text for people."""

from typing import Any

from rlzero.planner import planning
from rlzero.planner.settings import Settings
from rlzero.runtime.memory import GIB


def describe(cfg: Settings, report: dict[str, Any]) -> str:
  """The report, for people."""
  r = report
  mesh = ' x '.join(f'{n} {axis}' for axis, n in r['mesh'].items())
  rows, width = r['microbatch']
  active = ''
  if r['active'] < r['parameters']:
    active = f', {r["active"] / 1e9:.2f}B of them for a token'
  if r['trained'] < r['parameters']:
    active += f', {r["trained"] / 1e6:.1f}M trained'
  lines = [
    f'{r["topology"]}: {r["devices"]} devices of '
    f'{r["hbm_bytes"] / GIB:.1f} GiB, {mesh} ({r["source"]})',
    f'{r["parameters"] / 1e9:.2f}B parameters{active}; completions of at most '
    f'{r["max_len"]} tokens, {r["mean_len"]:.0f} in the mean, prompts of '
    f'{r["prompt_len"]}',
    f'{r["slots"]} slots; microbatches of {rows} rows x {width} tokens',
    f'a rollout: {r["rollout"]["tokens"]} tokens in '
    f'{r["rollout"]["decode_calls"]} calls of decode; '
    f'{r["rollout"]["slot_use"]:.0%} of what slots compute is sampled',
    f'{r["rollout"]["cache_use"]:.0%} of the cache holds tokens of running '
    f'completions; decoding moves {r["rollout"]["decode_moved"]:.2f} times '
    'these, the weights and what it writes',
    '',
  ]
  terms = list(planning.ADVICE)
  heads = ['GiB a device', *terms, 'total', 'fits']
  table = [heads]
  for p in r['phases']:
    cells = [f'{p["memory"].get(t, 0) / GIB:.2f}' for t in terms]
    table.append(
      [
        p['name'],
        *cells,
        f'{p["total"] / GIB:.2f}',
        'no yes'.split()[p['fits']],
      ]
    )
  lines += [*_aligned(table), '']
  table = [
    ['a call, a device', 'TFLOP', 'GB moved', 'GB received', 'roofline s',
     'bound by', 'calls a step', 's a step'],
  ]  # fmt: skip
  for p in r['phases']:
    numbers = p['flops'] / 1e12, p['moved'] / 1e9, p['received'] / 1e9
    table.append(
      [
        p['name'],
        *(f'{n:.4g}' for n in (*numbers, p['roofline_s'])),
        p['bound'],
        f'{p["calls"]:.4g}',
        f'{p["step_s"]:.4g}',
      ]
    )
  lines += [*_aligned(table), '']
  lines.append(
    f'A step takes {r["step_roofline_s"]:.1f} s at the roofline, '
    f'{r["step_s"]:.1f} s at {r["efficiency"]:.0%} of it; {r["num_steps"]} '
    f'steps are {r["hours"]:.0f} hours, {r["chip_hours"]:.0f} chip-hours'
    + (f', {r["cost"]:,.0f} at {cfg.price:g} an hour.' if r['cost'] else '.')
  )
  for name, found in (r['largest'] or {}).items():
    lines.append(
      f'Largest {name} that fits: {found["size"]} '
      f'({found["memory"] / GIB:.1f} GiB).'
      if found['size']
      else f'No {name} fit, however few.'
    )
  return '\n'.join(lines + r['advice'])


def _aligned(table: list[list[str]]) -> list[str]:
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  return [
    '  '.join(
      cell.rjust(width) if i else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    for row in table
  ]
