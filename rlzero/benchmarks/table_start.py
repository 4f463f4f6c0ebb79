"""Measures how a large table starts, as JSON.

  python -m rlzero.benchmarks.table_start --folder=DIR [--rows=1000000]
    [--form=jsonl] [--out=FILE]

A table of made-up word problems is written to DIR. Then three processes import
the training stage, open a task and draw 512 problems: with Countdown in place
of a table, with the table for the first time (it is read and goes into the
cache, in DIR too), and with it again. `seconds` are by the clock from the start
of the process; `beyond_mb` is the peak of its memory, less that with Countdown.
"""

import argparse
import json
import os
import pathlib
import random
import resource
import subprocess
import sys
import time

import pyarrow
from pyarrow import parquet

from rlzero import grpo
from rlzero.benchmarks import series
from rlzero.runtime import files
from rlzero.tasks import base, countdown, table, verifiers
from rlzero.tasks.datasets import stream

_DRAWN = 512
_SHARD = 100_000  # rows that are made and written together


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  parser.add_argument('--rows', type=int, default=1_000_000)
  parser.add_argument('--form', choices=('jsonl', 'parquet'), default='jsonl')
  parser.add_argument('--out', type=pathlib.Path)
  parser.add_argument(
    '--child', help='task to open, and when the process began'
  )
  flags = parser.parse_args()
  path = flags.folder / f'table-{flags.rows}.{flags.form}'
  if flags.child:
    name, began = flags.child.split('@')
    print(files.to_json(_start(name, path, float(began))))
    return
  flags.folder.mkdir(parents=True, exist_ok=True)
  if not path.exists():
    _write(path, flags.rows)
  cache = flags.folder / 'cache'
  for old in cache.rglob('*.arrow*'):
    old.unlink()
  starts = {
    name: _child(name.partition(' ')[0], flags.folder, flags.rows, flags.form)
    for name in ('countdown', 'table read', 'table again')
  }
  without = starts['countdown']['peak_mb']
  measured = {
    **series.origin('table_start'),
    'rows': flags.rows,
    'form': flags.form,
    'table_mb': round(path.stat().st_size / 1e6, 1),
    'starts': {
      name: {**start, 'beyond_mb': round(start['peak_mb'] - without, 1)}
      for name, start in starts.items()
    },
  }
  text = files.to_json(measured, indent=2)
  print(text)
  if flags.out:
    flags.out.write_text(text + '\n')


def _start(name: str, path: pathlib.Path, began: float) -> dict[str, float]:
  """Opens a task and draws, as a run does before its first rollout."""
  imported = time.monotonic()
  task: base.Task = countdown.Countdown()
  if name == 'table':
    task = table.Table(
      path=str(path), question='problem', verifier=verifiers.Numbers()
    )
  cfg = grpo.Config(workdir='unused', task=task)
  opened = time.monotonic()
  problems = stream.mixed([cfg.task], [1.0], cfg.seed)
  problems.next(_DRAWN)
  done = time.monotonic()
  peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {
    'problems': problems.num_examples,
    'seconds': round(done - began, 2),
    'import_s': round(imported - began, 2),
    'open_and_draw_s': round(done - opened, 2),
    'cpu_s': round(time.process_time(), 2),
    'peak_mb': round(peak_kb / 1e3, 1),
  }


def _child(
  name: str, folder: pathlib.Path, rows: int, form: str
) -> dict[str, float]:
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'rlzero.benchmarks.table_start'),
      *(f'--folder={folder}', f'--rows={rows}', f'--form={form}'),
      f'--child={name}@{time.monotonic()}',
    ],
    stdout=subprocess.PIPE,
    check=True,
    env={**os.environ, 'XDG_CACHE_HOME': str(folder.absolute() / 'cache')},
  )
  return json.loads(done.stdout)


def _write(path: pathlib.Path, rows: int) -> None:
  """Word problems of about 300 characters, with worked solutions."""
  rng = random.Random(0)
  words = [
    ''.join(rng.choices('abcdefghijklmnop', k=rng.randint(2, 9)))
    for _ in range(2000)
  ]
  writer = None
  with open(path, 'wb') as file:
    for first in range(0, rows, _SHARD):
      made = [
        {
          'problem': ' '.join(rng.choices(words, k=35)) + f' {i}?',
          'answer': ' '.join(rng.choices(words, k=30)) + f'\n#### {i}',
        }
        for i in range(first, min(first + _SHARD, rows))
      ]
      if path.suffix == '.jsonl':
        file.writelines(f'{files.to_json(row)}\n'.encode() for row in made)
        continue
      shard = pyarrow.Table.from_pylist(made)
      writer = writer or parquet.ParquetWriter(file, shard.schema)
      writer.write_table(shard)
    if writer:
      writer.close()


if __name__ == '__main__':
  main()
