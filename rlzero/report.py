"""Shows a run: one self-contained HTML page, a live page, or JSON.

  python -m rlzero.report --workdir=DIR
  python -m rlzero.report --workdir=DIR --serve [--compare=DIR2,DIR3]
  python -m rlzero.report --workdir=OUT --compare=DIR1,DIR2,DIR3

The first writes `DIR/report.html` and `DIR/summary.json` and prints the run's
alerts, at any time, in the middle of a run too. The second serves a page that
follows the run while it trains, other runs drawn over it, with its
completions; nothing is written. The third compares runs that differ in their
seed, and writes `OUT/curves.png` and `OUT/table.json`.
"""

import dataclasses
import os

from rlzero.reporting import figures, live_page, live_run, recorded, web_page
from rlzero.runtime import fields, files, workdir
from rlzero.runtime.fields import at_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of a report."""

  workdir: str  # folder of the run, or for what --compare writes
  compare: str = ''  # folders of runs, separated by commas
  json: bool = False  # print the numbers instead of a sentence
  serve: bool = False  # a live page, of the workdir and of runs to compare
  host: str = 'localhost'  # that the page is served at; '0.0.0.0' for all
  port: int = 6008  # 0 takes a free one
  # Whoever opens the page needs it; one is made for a host that is not local.
  token: str = ''
  price: float = 0.0  # of an hour of a device; 0 leaves the cost out

  def __post_init__(self):
    fields.check(self, port=at_least(0).at_most(65535), price=at_least(0))


def run(cfg: Config) -> None:
  """Writes or serves what `cfg` asks for, and says where it is.

  Raises:
    ValueError: a folder without a run, or settings that do not go together.
  """
  workdirs = [name for name in cfg.compare.split(',') if name]
  if cfg.serve:
    token = live_page.make_token(cfg.host, cfg.token)
    runs = live_run.open_runs([cfg.workdir, *workdirs], cfg.price)
    live_page.serve(runs, cfg.host, cfg.port, token)
    return
  if cfg.compare:
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
