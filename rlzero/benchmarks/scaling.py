"""How the cost of a step grows, one setting at a time, as JSON.

  python -m rlzero.benchmarks.scaling [--out=FILE]

Runs `rlzero.bench` on configs/runs/bench_scaling.gin in a process for each
point: the group, the length of the completions, the number of prompts, and the
width and depth of the model. `per_base` is the time beside that of the file as
it is, `work_per_base` the same of completion tokens times the parameters that
are multiplied with: where they are equal, cost grows as the work does.
"""

import argparse
import json
import pathlib
import subprocess
import sys

from rlzero import bench
from rlzero.costs import flops
from rlzero.runtime import config, files, provenance

POINTS = {
  'group_size': (16, 32),
  'max_len': (128, 256),
  'num_prompts': (16, 32),
  'gin.config.ModelConfig.width': (512, 768),
  'gin.config.ModelConfig.num_layers': (16, 32),
}
_KEPT = ('step_s', 'rollout_s', 'reference_s', 'update_s', 'tokens')


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--out', type=pathlib.Path)
  args = parser.parse_args()
  points = [('', None)]  # the file as it is
  points += [(flag, value) for flag in POINTS for value in POINTS[flag]]
  result = {**provenance.metadata(), 'points': []}
  for flag, value in points:
    flags = ['--gin_file=configs/runs/bench_scaling.gin', '--json']
    flags += [f'--{flag}={value}'] if flag else []
    ran = subprocess.run(
      [sys.executable, '-m', 'rlzero.bench', *flags],
      check=True,
      text=True,
      stdout=subprocess.PIPE,
    )
    metrics = json.loads(ran.stdout.splitlines()[-1])
    weights = sum(flops.matmul_weights(config.build(bench, flags).model))
    varied = flag.rpartition('.')[-1]
    point = {'varied': varied, 'value': value, 'matmul_weights': weights}
    point |= {key: round(metrics[key], 3) for key in _KEPT}
    result['points'].append(point)
    base = result['points'][0]
    point['per_base'] = round(point['step_s'] / base['step_s'], 2)
    work, of_base = (p['tokens'] * p['matmul_weights'] for p in (point, base))
    point['work_per_base'] = round(work / of_base, 2)
    print(files.to_json(point), flush=True)
    if args.out:
      files.write_json(args.out, result, indent=1)


if __name__ == '__main__':
  main()
