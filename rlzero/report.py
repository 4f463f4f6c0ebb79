"""Shows a run: one self-contained HTML page, and its numbers as JSON.

  python -m rlzero.report --workdir=DIR
  python -m rlzero.report --workdir=OUT --compare=DIR1,DIR2,DIR3

The first writes `DIR/report.html` and `DIR/summary.json` and prints the run's
alerts, at any time, in the middle of a run too. The second compares runs that
differ in their seed, and writes `OUT/curves.png` and `OUT/table.json`.
"""

import dataclasses
import os

from rlzero.reporting import figures, recorded, web_page
from rlzero.runtime import files, workdir


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of a report."""

  workdir: str  # folder of the run, or for what --compare writes
  compare: str = ''  # folders of runs, separated by commas
  json: bool = False  # print the numbers instead of a sentence


def run(cfg: Config) -> None:
  """Writes what `cfg` asks for, and says where it is."""
  if cfg.compare:
    workdirs = [name for name in cfg.compare.split(',') if name]
    result, names = web_page.table(workdirs), 'curves.png and table.json'
    workdir.claim(cfg.workdir)
    os.makedirs(cfg.workdir, exist_ok=True)
    files.write_json(os.path.join(cfg.workdir, 'table.json'), result, indent=2)
    runs = map(recorded.load, workdirs)
    figures.png(runs, os.path.join(cfg.workdir, 'curves.png'))
  else:
    result, names = web_page.write(cfg.workdir), 'report.html and summary.json'
    if not cfg.json:
      for alert in web_page.alerts(recorded.load(cfg.workdir)):
        print(alert)
  print(
    files.to_json(result, indent=2)
    if cfg.json
    else f'{cfg.workdir}: {names} written.'
  )


if __name__ == '__main__':
  from rlzero import report
  from rlzero.runtime import config

  config.main(report)
