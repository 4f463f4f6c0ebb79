"""A laboratory: published claims about training, tested on a small model.

  python -m rlzero.lab --gin_file=configs/lab/all.gin --workdir=DIR
  ... --gin_file=configs/lab/clip_higher.gin    one claim
  ... --dry-run                                 one line a run; nothing is run

A claim compares two runs of `rlzero.grpo` over several seeds. Runs that claims
share are made once. Every run is a process of its own, in a folder of
`workdir`; stopped anywhere, the same command resumes. `lab.json` has the
figures of each seed and a verdict for each claim, `lab.md` the same as a page,
and `NAME.png` a picture of each.
"""

import dataclasses
import os
import sys

from rlzero.laboratory import claims, page
from rlzero.laboratory.claims import Claim
from rlzero.pipelines import command, execution
from rlzero.pipelines.command import Stage
from rlzero.pipelines.manifest import Manifest
from rlzero.runtime import config, files, provenance, workdir
from rlzero.runtime.fields import mutable_on_resume


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """The claims, and what all their runs share."""

  workdir: str = mutable_on_resume()
  claims: tuple[Claim, ...]
  flags: tuple[str, ...] = ()  # of rlzero.grpo, for all runs
  seeds: tuple[int, ...] = (0, 1, 2)
  dry_run: bool = False  # show what would be run

  def __post_init__(self):
    names = [claim.name for claim in self.claims]
    if not names or len(set(names)) < len(names):
      raise ValueError(
        f'lab.Config.claims are {names}; give at least one, each with a name '
        'of its own.'
      )
    if not self.seeds or len(set(self.seeds)) < len(self.seeds):
      raise ValueError(
        f'lab.Config.seeds is {self.seeds}; give at least one, and none twice.'
      )
    names = [claims.name_of(arm) for arm in self.arms]
    if twice := [name for name in names if names.count(name) > 1]:
      raise ValueError(
        f'lab.Config.claims compare two gin files with the name {twice[0]!r}, '
        'which would share a folder; rename one.'
      )

  @property
  def arms(self) -> list[str]:
    """The gin files of all claims, each once."""
    return [*dict.fromkeys(arm for c in self.claims for arm in c.arms)]


def run(cfg: Config) -> None:
  """Trains what is not there yet, seed by seed, and judges the claims.

  Raises:
    ValueError: a setting of a run is wrong, or a finished run has changed.
    SystemExit: a run that failed or was preempted, with its status.
  """
  plans = {
    seed: [
      command.Command(cfg.workdir, _stage(cfg, arm, seed)) for arm in cfg.arms
    ]
    for seed in cfg.seeds
  }
  if cfg.dry_run:
    for plan in (plan for of_seed in plans.values() for plan in of_seed):
      print(plan.line)
    return
  with workdir.locked(cfg.workdir) as lock:
    manifest = Manifest(cfg.workdir)
    for number, of_seed in enumerate(plans.values(), 1):
      for plan in of_seed:
        execution.make(plan, manifest, lock, again=False)
      _judge(cfg, manifest, cfg.seeds[:number])


def _stage(cfg: Config, arm: str, seed: int) -> Stage:
  return Stage(
    name=claims.folder_of(arm, seed),
    module='rlzero.grpo',
    gin_files=(arm,),
    flags=(*cfg.flags, f'--seed={seed}'),
  )


def _judge(cfg: Config, manifest: Manifest, seeds: tuple[int, ...]) -> None:
  """Writes the verdicts by the seeds that are finished."""
  found = {
    claim.name: claims.find(claim, cfg.workdir, seeds) for claim in cfg.claims
  }
  trained = [
    manifest.stages[claims.folder_of(arm, seed)]
    for seed in seeds
    for arm in cfg.arms
  ]
  files.write_json(
    os.path.join(cfg.workdir, 'lab.json'),
    {
      'seeds': seeds,
      'flags': cfg.flags,
      'claims': {
        claim.name: dataclasses.asdict(claim) | found[claim.name]._asdict()
        for claim in cfg.claims
      },
      'commits': sorted({str(stage['commit']) for stage in trained}),
      'wall_s': sum(stage['wall_s'] for stage in trained),
      'processor': provenance.processor(),
    },
    indent=1,
  )
  text = page.text(cfg.claims, found, seeds)
  files.write_whole(os.path.join(cfg.workdir, 'lab.md'), text)
  page.draw(cfg.claims, cfg.workdir, seeds)
  print(page.table(cfg.claims, found), flush=True)


def flags(argv: list[str]) -> list[str]:
  """The flags as `Config` names them; `dry-run` is no name in Python."""
  return ['--dry_run' if flag == '--dry-run' else flag for flag in argv]


if __name__ == '__main__':
  from rlzero import lab

  config.main(lab, flags(sys.argv[1:]))
