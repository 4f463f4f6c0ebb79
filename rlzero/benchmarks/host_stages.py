"""Runs stages one after another on several hosts: for test_host_stages.py.

  bash launch/local_cluster.sh 2 rlzero.benchmarks.host_stages FILE

FILE is JSON: for each stage its module and its flags. The processes start once,
which takes longer than a small stage.
"""

import importlib
import json
import sys

from rlzero.runtime import config, lifecycle


def main(path: str) -> None:
  """Runs the stages that the file names, in its order."""
  with open(path, encoding='utf-8') as file:
    commands = json.load(file)
  for module, *flags in commands:
    config.main(importlib.import_module(module), flags)


if __name__ == '__main__':
  main(*lifecycle.join_hosts(sys.argv[1:]))
