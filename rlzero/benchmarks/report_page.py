"""How fast the live page opens on a long run, and how large the report is.

  python -m rlzero.benchmarks.report_page --folder=DIR [--steps=2000]
    [--completions=100000] [--out=FILE]

A made-up run is written to DIR, unless it is there: metrics of every step, and
as many completions at each, two prompts a step, of which some put themselves
right. A process of its own serves it. What is timed, in seconds, is what a
browser asks for: `start_s` until the address is printed, `open_s` everything
that the first view needs, `completions_s` a step and a prompt that nobody has
looked at, `poll_s` the question for news, `search_s` a word through all steps,
`gallery_s` until every completion has been looked at. Then the static report:
`report_s`, `report_mb`.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import time
import urllib.request
from typing import Any

from rlzero.benchmarks import series
from rlzero.reporting import metric_names, web_page
from rlzero.runtime import files

_PROMPTS = 2  # a step
_LATER = 1900 / 2000  # of the steps: one that is not shown at first


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  parser.add_argument('--steps', type=int, default=2000)
  parser.add_argument('--completions', type=int, default=100_000)
  parser.add_argument('--out', type=pathlib.Path)
  flags = parser.parse_args()
  run = flags.folder / f'run-{flags.steps}-{flags.completions}'
  if not (run / 'run.json').exists():
    _write(run, flags.steps, flags.completions)
  measured = {
    **series.origin('report_page'),
    'steps': flags.steps,
    'completions': flags.completions,
    'completions_mb': _megabytes(run / 'completions'),
    **_serve(run),
    **_report(run),
  }
  print(text := files.to_json(measured, indent=2))
  if flags.out:
    files.write_whole(flags.out, text + '\n')


def _write(run: pathlib.Path, steps: int, completions: int) -> None:
  """Writes the folder of a run; its last file is run.json."""
  rng = random.Random(0)
  files.write_jsonl(
    run / 'metrics.jsonl', (_metrics(rng, s, steps) for s in range(steps))
  )
  number = 0
  for step in range(steps):
    count = (step + 1) * completions // steps - number
    number += count
    rows = [_completion(rng, step, i * _PROMPTS // count) for i in range(count)]
    name = f'step_{step:06d}.jsonl'
    (run / 'completions').mkdir(exist_ok=True)
    text = ''.join(files.to_json(row) + '\n' for row in rows)
    # Not `files.write_jsonl`, which waits for the disk each time.
    (run / 'completions' / name).write_text(text, encoding='utf-8')
  files.write_json(run / 'config.json', {'num_steps': steps, 'seed': 0})
  files.write_json(run / 'run.json', {'stage': 'grpo', 'wall_s': 4.0 * steps})


def _metrics(rng: random.Random, step: int, steps: int) -> dict[str, Any]:
  """A line with every metric that has a fixed name, as a long run has."""
  part = step / steps
  row = {
    name: part + rng.gauss(0, 0.05)
    for name in metric_names.METRICS
    if '{' not in name and name not in ('step', 'alerts')
  }
  row |= {'completion/truncated': 0.01, 'groups/zero_variance': 0.3}
  row |= {'policy/entropy': 0.5, 'policy/kl': 0.01, 'completion/unscored': 0}
  row |= {name: 1e-6 for name in row if 'sampler_learner' in name}
  row |= {name: 0.01 for name in row if 'log_ratio' in name}
  row |= {'completion/language': 1.0, 'completion/repetition': 0.01}
  row |= {'time/tokens_per_s': 1000 + rng.gauss(0, 50)}
  return {'step': step, **row}


def _completion(rng: random.Random, step: int, prompt: int) -> dict[str, Any]:
  """A search of three to thirty tries, as the tiny model's are."""
  target, right = rng.randrange(10, 90), rng.random() < 0.5
  words = []
  for _ in range(rng.randrange(3, 30)):
    a, b, c = (rng.randrange(1, 10) for _ in range(3))
    words += f'{a} + {b} = {a + b} {a + b} * {c} = {(a + b) * c}'.split()
    words.append(rng.choice(('wait', 'but', 'hmm', 'no')))
  words += f'{target - 1} + 1 = {target} ok'.split()
  thought = ' '.join(words)
  return {
    'step': step,
    'task': 'countdown',
    'uid': f'{step} {prompt}',
    'question': f'{step % 9} {prompt} 7 make {target}',
    'completion': f'<think> {thought} </think> <answer> {target} </answer>',
    'answer': str(target),
    'accuracy': float(right),
    'correct': right,
    'strict': right,
    'format': 1.0,
    'truncated': False,
    'unparsable': False,
    'len': len(words) + 6,
    'tries': words.count('='),
    'reflections': words.count('wait') + words.count('but'),
    'words': {'en': 4, 'zh': 0, 'other': 0},
    'status': 'ok',
    'parts': {'steps_mean': 1.0, 'steps_sum': 3.0},
    'outcome': '',
    'reward': 1.0 + right,
  }


def _serve(run: pathlib.Path) -> dict[str, float]:
  """Times the requests of a browser to a process that serves the run."""
  begin = time.perf_counter()
  command = [sys.executable, '-m', 'rlzero.report', f'--workdir={run}']
  with subprocess.Popen(
    [*command, '--serve', '--port=0'], stdout=subprocess.PIPE, text=True
  ) as process:
    try:
      assert process.stdout is not None
      said = process.stdout.readline()
      start_s = time.perf_counter() - begin
      base = said.partition(' at ')[2].split(' ')[0]
      return {'start_s': start_s, **_times(base)}
    finally:
      process.terminate()


def _times(base: str) -> dict[str, float]:
  found: dict[str, float] = {}
  begin = time.perf_counter()
  page = _get(base).decode()
  for part in page.split('"'):
    if part.startswith('static/'):
      _get(base + part)
  for name in ('dom', 'charts', 'completions', 'gallery', 'tokens'):
    _get(f'{base}static/{name}.js')
  _get(f'{base}api/overview')
  text = _get(f'{base}api/runs/0/state')
  state = json.loads(text)
  _group(base, state['files'][-1])
  found['open_s'] = time.perf_counter() - begin
  found['state_mb'] = len(text) / 1e6

  def timed(name: str, path: str) -> Any:
    begin = time.perf_counter()
    answer = json.loads(_get(f'{base}api/runs/0/{path}'))
    found[name] = found.get(name, 0.0) + time.perf_counter() - begin
    return answer

  begin = time.perf_counter()
  _group(base, state['files'][int(len(state['files']) * _LATER)])
  found['completions_s'] = time.perf_counter() - begin
  news = f'version={state["version"]}&since={state["total"]}'
  timed('poll_s', f'state?{news}&listing={state["listing"]}')
  while not timed('gallery_s', 'gallery')['complete']:
    pass
  answer = timed('search_s', 'search?words=absent')
  while more := answer['more']:
    at = f'after_key={more["key"]}&after_place={more["place"]}'
    answer = timed('search_s', f'search?words=absent&{at}')
  return found


def _group(base: str, key: str) -> None:
  _get(f'{base}api/runs/0/step?key={key}')
  _get(f'{base}api/runs/0/group?key={key}&group=1')


def _get(address: str) -> bytes:
  with urllib.request.urlopen(address) as answer:
    return answer.read()


def _report(run: pathlib.Path) -> dict[str, float]:
  begin = time.perf_counter()
  web_page.write(str(run))
  seconds = time.perf_counter() - begin
  size = (run / 'report.html').stat().st_size
  return {'report_s': seconds, 'report_mb': size / 1e6}


def _megabytes(folder: pathlib.Path) -> float:
  return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


if __name__ == '__main__':
  main()
