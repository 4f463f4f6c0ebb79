"""Claims are judged by their runs, and their configs are sound."""

import json
import pathlib

import pytest

from rlzero import lab
from rlzero.laboratory import claims
from rlzero.laboratory.claims import Claim
from rlzero.pipelines import execution
from rlzero.runtime import config

_ROOT = pathlib.Path(__file__).parent.parent
_FILES = sorted((_ROOT / 'configs' / 'lab').glob('*.gin'))


def _interval(low, high):
  return {'mean': (low + high) / 2, 'low': low, 'high': high}


@pytest.mark.parametrize(
  ('expected', 'low', 'high', 'verdict'),
  [
    ('higher', 0.01, 0.2, 'holds'),
    ('higher', -0.01, 0.2, 'cannot tell'),
    ('higher', -0.2, 0.09, 'does not hold'),
    ('higher', 0.01, 0.05, 'does not hold'),  # it is there, and too small
    ('lower', -0.2, -0.01, 'holds'),
    ('lower', -0.2, 0.01, 'cannot tell'),
    ('lower', 0.05, 0.2, 'does not hold'),
    ('same', -0.05, 0.05, 'holds'),
    ('same', 0.01, 0.09, 'holds'),
    ('same', -0.15, 0.05, 'cannot tell'),
    ('same', 0.1, 0.3, 'does not hold'),
    ('same', -0.3, -0.1, 'does not hold'),
  ],
)
def test_a_verdict_is_drawn_from_the_interval(expected, low, high, verdict):
  assert claims.judge(_interval(low, high), expected, 0.1) == verdict


def test_one_seed_tells_nothing():
  assert claims.judge({'mean': 5.0}, 'higher', 0.1) == 'cannot tell'


_SLOW = 'configs/lab/arms/grpo.gin'
_FAST = 'configs/lab/arms/kl.gin'


def _claim(**settings):
  return Claim(
    **{
      'name': 'speed',
      'statement': 'A larger rate is better.',
      'source': 'Nobody, 2026',
      'arm': _FAST,
      'control': _SLOW,
      'figure': 'pass@1_after',
      'expected': 'higher',
      'margin': 0.05,
      **settings,
    }
  )


def _config(tmp_path, **settings):
  return lab.Config(
    **{'workdir': str(tmp_path), 'claims': (_claim(),), **settings}
  )


@pytest.fixture
def runs(monkeypatch):
  """Runs that leave a folder at once; the names of those that were made."""
  made = []

  def make(plan, manifest, lock, again):
    del lock, again
    name, _, seed = plan.stage.name.rpartition('_')
    made.append(plan.stage.name)
    folder = pathlib.Path(plan.folder)
    folder.mkdir()
    after = {'grpo': 0.5, 'kl': 0.7}[name] + 0.01 * int(seed)
    summary = {'pass@1_before': 0.2, 'pass@1_after': after}
    (folder / 'summary.json').write_text(json.dumps(summary))
    rows = [
      {'step': step, 'policy/entropy': step / 10, 'reward/correct': 0.5}
      for step in range(20)
    ]
    # A step whose completions had no token has no entropy.
    rows[-1]['policy/entropy'] = None
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    (folder / 'metrics.jsonl').write_text(text)
    manifest.stages[plan.stage.name] = {'commit': 'c0ffee', 'wall_s': 2.0}

  monkeypatch.setattr(execution, 'make', make)
  return made


def test_a_laboratory_trains_each_arm_once_and_judges(tmp_path, runs, capsys):
  claims_ = (
    _claim(),
    _claim(name='worse', expected='lower'),
    _claim(
      name='learns', control='', control_figure='pass@1_before', arm=_SLOW
    ),
    _claim(
      name='unsure',
      statement='It has an entropy.',
      control='',
      figure='policy/entropy',
      arm=_SLOW,
      note='In nats.',
    ),
  )
  lab.run(_config(tmp_path, claims=claims_, seeds=(0, 3)))
  assert runs == ['grpo_0', 'kl_0', 'grpo_3', 'kl_3']
  found = json.loads((tmp_path / 'lab.json').read_text())
  assert found['commits'] == ['c0ffee']
  assert found['wall_s'] == 8.0
  judged = {name: one['verdict'] for name, one in found['claims'].items()}
  assert judged == {
    'speed': 'holds',
    'worse': 'does not hold',
    'learns': 'holds',
    'unsure': 'holds',
  }
  assert found['claims']['speed']['values'] == pytest.approx([0.7, 0.73])
  assert found['claims']['learns']['control'] == [0.2, 0.2]
  # Over the last ten steps, of which nine have the metric: 1.0 to 1.8.
  assert found['claims']['unsure']['values'] == pytest.approx([1.4, 1.4])
  assert found['claims']['unsure']['control'] == [0, 0]
  page = (tmp_path / 'lab.md').read_text()
  assert '| A larger rate is better. | +0.2 [+0.2, +0.2] | 0.05 | **hol' in page
  assert 'In nats.' in page
  for claim in claims_:
    assert (tmp_path / f'{claim.name}.png').read_bytes()[1:4] == b'PNG'
  # After the first seed nothing can be told.
  tables = capsys.readouterr().out.split('| claim |')[1:]
  assert [text.count('cannot tell') for text in tables] == [4, 0]


def test_all_settings_are_checked_before_anything_is_trained(tmp_path, runs):
  with pytest.raises(config.UserError, match="'grpo_0' cannot be configured"):
    lab.run(_config(tmp_path, flags=('--clip_low=-1',)))
  assert not runs


def test_dry_run_runs_nothing(tmp_path, runs, capsys):
  lab.run(_config(tmp_path / 'new', dry_run=True))
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 6
  assert lines[1] == (
    f'rlzero.grpo --gin_file={_FAST} --seed=0 --workdir={tmp_path}/new/kl_0'
  )
  assert not runs
  assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize(
  ('settings', 'said'),
  [
    ({'claims': ()}, 'give at least one'),
    ({'claims': (_claim(), _claim(statement='Again.'))}, 'a name of its own'),
    ({'seeds': (1, 1)}, 'none twice'),
    ({'seeds': ()}, 'at least one'),
    (
      {'claims': (_claim(arm='mine/grpo.gin'),)},
      "two gin files with the name 'grpo'",
    ),
  ],
)
def test_what_a_laboratory_refuses(tmp_path, settings, said):
  with pytest.raises(ValueError, match=said):
    _config(tmp_path, **settings)


@pytest.mark.parametrize(
  ('settings', 'said'),
  [
    ({'figure': 'pass@1'}, r'pass@1_before, pass@1_after'),
    ({'figure': 'policy/entropie'}, r"did you mean 'policy/entropy'"),
    ({'control_figure': 'pass@1'}, r'lab.Claim.control_figure'),
    ({'picture': 'pass@1_after'}, r'lab.Claim.picture'),
    ({'margin': 0.0}, r'margin'),
  ],
)
def test_what_a_claim_refuses(settings, said):
  with pytest.raises(ValueError, match=said):
    _claim(**settings)


def test_a_run_without_the_figure_decides_nothing(tmp_path, runs):
  claim = _claim(figure='completion/tries')
  lab.run(_config(tmp_path, claims=(claim, _claim(name='other'))))
  found = json.loads((tmp_path / 'lab.json').read_text())['claims']
  assert found['speed']['verdict'] == 'cannot tell'
  assert found['speed']['values'] == [None] * 3
  assert found['other']['verdict'] == 'holds'


@pytest.mark.parametrize('path', _FILES, ids=lambda path: path.stem)
def test_every_claim_can_be_run(path, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(_ROOT)
  flags = [f'--gin_file={path}', f'--workdir={tmp_path / "new"}', '--dry_run']
  cfg = config.build(lab, flags)
  if path.stem == 'all':
    assert sorted(c.name for c in cfg.claims) == sorted(
      path.stem for path in _FILES if path.stem != 'all'
    )
    return  # its runs are those of the others
  assert [claim.name for claim in cfg.claims] == [path.stem]
  lab.run(cfg)
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 3 * len(cfg.arms)


@pytest.mark.model
@pytest.mark.slow
def test_a_claim_about_real_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(_ROOT)
  shorter = (
    '--num_steps=2',
    '--num_prompts=2',
    '--save_every=2',
    '--final_problems=2',
    '--final_samples=2',
  )
  flags = [
    '--gin_file=configs/lab/no_std.gin',
    f'--workdir={tmp_path}',
    f'--flags={shorter}',
    '--seeds=(0,)',
  ]
  config.main(lab, flags)
  found = json.loads((tmp_path / 'lab.json').read_text())
  (claim,) = found['claims'].values()
  assert claim['verdict'] == 'cannot tell'  # of one seed
  began = (tmp_path / 'no_std_0' / 'metrics.jsonl').stat().st_mtime_ns
  config.main(lab, flags)  # both runs are there
  again = (tmp_path / 'no_std_0' / 'metrics.jsonl').stat().st_mtime_ns
  assert again == began
