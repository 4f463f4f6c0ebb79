"""The main job on the embedded base: runs, resumes, refuses bad input."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from helpers import GRPO_SETTINGS, grpo_config, mostly_slow

from rlzero import grpo
from rlzero.evaluation import measure
from rlzero.monitoring import history
from rlzero.reporting import metric_names
from rlzero.rl import collect, drawing, learner, selection, settings, update
from rlzero.rl.objective import Objective
from rlzero.rollout import journal, scheduler
from rlzero.runtime import config, lifecycle, metrics, sharding
from rlzero.tasks import base, countdown
from rlzero.tasks.datasets.curriculum import Curriculum
from rlzero.text.template import Template
from rlzero.train import checkpoint, folders

pytestmark = pytest.mark.model


def _params(workdir):
  return folders.load_model(str(workdir)).params


def _rows(workdir):
  """Metrics without what a clock says."""
  return history.without_times(metrics.read_metrics(str(workdir)))


def _assert_same_run(first, second):
  jax.tree.map(np.testing.assert_array_equal, _params(first), _params(second))
  assert _rows(first) == _rows(second)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run of six steps that nothing disturbed."""
  workdir = tmp_path_factory.mktemp('whole')
  grpo.run(grpo_config(workdir))
  return workdir


def test_run_leaves_what_it_promises(whole):
  rows = metrics.read_metrics(str(whole))
  assert [row['step'] for row in rows] == list(range(6))
  assert all(row['policy/kl'] >= 0 for row in rows)
  assert all(metric_names.find(name) for row in rows for name in row)
  # A CPU has no published rate to compare with.
  assert all(row['perf/flops_per_s'] > 0 for row in rows)
  assert not any('perf/mfu' in row for row in rows)
  summary = json.loads((whole / 'summary.json').read_text())
  assert summary['pass@1_before'] is not None
  assert summary['pass@1_after'] is not None
  assert (whole / 'report.html').stat().st_size > 10_000
  for name in ('config.gin', 'config.json', 'run.json', 'tensorboard'):
    assert (whole / name).exists()
  kept = (whole / 'completions' / 'step_000003.jsonl').read_text()
  assert len(kept.splitlines()) == 8
  # The exported folder and the checkpoint are the same model.
  exported = folders.load_model(str(whole / 'model')).params
  jax.tree.map(np.testing.assert_array_equal, exported, _params(whole))


def test_sampler_and_learner_agree(whole):
  for row in metrics.read_metrics(str(whole)):
    # Rounding alone: 1.9e-5 at the worst token on an AMD EPYC.
    assert row['policy/sampler_learner_max'] <= 3e-5


def test_first_step_has_no_kl_and_later_ones_do(whole):
  rows = metrics.read_metrics(str(whole))
  # The reference is the policy itself at step 0, and again at 2 and 4.
  for row in rows:
    if row['step'] % 2 == 0:
      assert row['policy/kl'] < 1e-9
    else:
      assert row['policy/kl'] > 1e-7


@pytest.mark.nightly
def test_killed_run_ends_with_the_bits_of_one_that_was_not(whole, tmp_path):
  flags = [f'--{name}={value}' for name, value in GRPO_SETTINGS.items()]
  gin = tmp_path / 'run.gin'
  gin.write_text(
    'from __gin__ import dynamic_registration\n'
    'from rlzero import grpo\n'
    'from rlzero.text import template\n'
    'grpo.Config.template = @template.Template()\n'
    "template.Template.kind = 'short'\n"
  )
  workdir = tmp_path / 'killed'
  with open(tmp_path / 'log', 'w') as log:
    process = subprocess.Popen(
      [
        sys.executable,
        '-m',
        'rlzero.grpo',
        f'--gin_file={gin}',
        f'--workdir={workdir}',
        *flags,
      ],
      stdout=log,
      stderr=subprocess.STDOUT,
    )
  path = workdir / 'metrics.jsonl'
  # Step 3 is saved, step 4 is written and lost again.
  while not path.exists() or path.read_text().count('\n') < 4:
    assert process.poll() is None, (tmp_path / 'log').read_text()
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not (workdir / 'evaluations' / 'after.json').exists()
  grpo.run(grpo_config(workdir))
  _assert_same_run(whole, workdir)


def test_finished_run_is_left_as_it_is(whole, capsys):
  before = (whole / 'metrics.jsonl').read_bytes()
  grpo.run(grpo_config(whole))
  assert (whole / 'metrics.jsonl').read_bytes() == before
  assert 'step 6' in capsys.readouterr().out


@pytest.mark.slow
def test_several_minibatches_a_rollout(tmp_path):
  cfg = grpo_config(
    tmp_path,
    steps_per_rollout=2,
    num_prompts=2,
    num_steps=4,
    save_every=2,
    final_problems=1,
  )
  grpo.run(cfg)
  rows = metrics.read_metrics(str(tmp_path))
  assert [row['step'] for row in rows] == [0, 1, 2, 3]
  # Two steps of a rollout share its metrics; the next rollout has its own.
  lengths = [row['completion/len_mean'] for row in rows]
  assert lengths[0] == lengths[1] != lengths[2] == lengths[3]


def test_parts_of_the_verdict_can_be_rewarded(tmp_path):
  cfg = grpo_config(
    tmp_path, part_rewards={'steps_sum': 0.5, 'steps_mean': 2.0}
  )
  drawn = list(enumerate(cfg.task.examples('train')[:3]))
  with settings.make_reward_pool(cfg) as pool:
    loaded = settings.load_start(cfg)
    trainer = update.Trainer(cfg, loaded)

    def collected(cfg):
      collector = collect.Collector(
        cfg, trainer.learner, loaded.tokenizer, pool
      )
      return collector.collect(trainer.policy, drawn)

    experience = collected(cfg)
    row, records = trainer.update(experience), experience.records
    unknown = {'part_rewards': {'steps': 1.0}}
    with pytest.raises(
      ValueError, match="'steps', but the parts .* steps_mean"
    ):
      collected(dataclasses.replace(cfg, **unknown))
  parts = [r['parts'] for r in records]
  assert any(p['steps_sum'] for p in parts)
  for record, part in zip(records, parts, strict=True):
    outcome = record['accuracy'] + record['format']
    extra = 0.5 * part['steps_sum'] + 2 * part['steps_mean']
    assert record['reward'] == pytest.approx(outcome + extra)
  assert row['reward/steps_sum'] == pytest.approx(
    np.mean([p['steps_sum'] for p in parts])
  )


@pytest.mark.slow
def test_dr_grpo_runs(tmp_path):
  cfg = grpo_config(
    tmp_path,
    scale='none',
    aggregation='constant',
    num_steps=1,
    save_every=1,
    reference_every=1,
    final_problems=1,
  )
  assert cfg.objective.scale == 'none'
  assert cfg.objective.aggregation == 'constant'
  grpo.run(cfg)
  assert len(metrics.read_metrics(str(tmp_path))) == 1


def test_nan_stops_the_run_at_the_last_good_checkpoint(tmp_path, monkeypatch):
  update = learner.Learner.update
  calls = []

  def poisoned(self, state, rows):
    calls.append(1)
    if len(calls) == 5:
      rows = rows._replace(advantages=np.full_like(rows.advantages, np.nan))
    return update(self, state, rows)

  monkeypatch.setattr(learner.Learner, 'update', poisoned)
  with pytest.raises(ValueError, match=r'At step 4 the loss is nan.*step 3'):
    grpo.run(grpo_config(tmp_path))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(_params(tmp_path)))
  assert len(metrics.read_metrics(str(tmp_path))) == 4


@pytest.mark.parametrize(
  ('changes', 'sentence'),
  [
    ({'group_size': 1}, 'group_size is 1; it must be at least 2'),
    ({'num_steps': 10, 'steps_per_rollout': 4}, 'num_steps is 10, which'),
    (
      {'num_steps': 6, 'steps_per_rollout': 2, 'epochs_per_rollout': 2},
      'steps_per_rollout = 2, epochs_per_rollout = 2 times, does not divide',
    ),
    ({'temperature': 0.0}, 'temperature is 0; it must be above 0'),
    ({'template': Template('chat')}, "template 'chat' has no format"),
    ({'learning_rate': -1.0}, 'learning_rate is -1.0'),
    (
      {'update': 'pmap', 'mesh': sharding.Mesh(fsdp=2)},
      "update is 'pmap' with mesh .*shard by `data` alone",
    ),
  ],
)
def test_settings_that_make_no_sense(tmp_path, changes, sentence):
  with pytest.raises(ValueError, match=sentence):
    grpo_config(tmp_path, **changes)


def test_workdir_of_another_run(whole):
  with pytest.raises(config.UserError, match='group_size is 5 now and 4'):
    grpo.run(grpo_config(whole, group_size=5))
  # What may change does.
  grpo.run(grpo_config(whole, save_every=6))


def test_unwritable_workdir(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(config.UserError, match='cannot be written to'):
    grpo.run(grpo_config(tmp_path / 'file' / 'run'))


def test_prompt_longer_than_the_limit(tmp_path):
  with pytest.raises(ValueError, match='tokens, but Sampling.max_prompt_len'):
    grpo.run(grpo_config(tmp_path, max_prompt_len=4))


@dataclasses.dataclass(frozen=True)
class _SomeLong(base.Wrapper):
  """Eight training problems, of which `long` have 40 words more."""

  task: base.Task = countdown.Countdown()
  long: int = 1

  def examples(self, split):
    found = list(self.task.examples(split))[:8]
    if split != 'train':
      return found
    return [
      dataclasses.replace(e, question='9 ' * 40 * (i < self.long) + e.question)
      for i, e in enumerate(found)
    ]


@pytest.mark.slow
def test_a_training_prompt_above_the_limit_is_left_out(tmp_path, capsys):
  cfg = grpo_config(tmp_path, task=_SomeLong(), num_steps=4, max_prompt_len=16)
  grpo.run(cfg)
  left_out = [row['prompts/too_long'] for row in _rows(tmp_path)]
  assert len(left_out) == 4 and sum(left_out) > 0
  assert capsys.readouterr().out.count('it is left out') == 1
  with pytest.raises(ValueError, match='No training prompt is short enough'):
    grpo.run(
      grpo_config(tmp_path / 'b', task=_SomeLong(long=8), max_prompt_len=16)
    )


@pytest.mark.slow
def test_the_limit_of_prompts_may_be_raised(tmp_path, monkeypatch):
  settings = dict(task=_SomeLong(), save_every=1, steps_per_rollout=2)
  settings |= dict(num_prompts=4, num_steps=4, reference_every=4, kl_coef=0.0)
  step = update.Trainer.update

  def stop_after_one(self, experience):
    if self.step:
      raise KeyboardInterrupt
    return step(self, experience)

  monkeypatch.setattr(update.Trainer, 'update', stop_after_one)
  with pytest.raises(KeyboardInterrupt):
    grpo.run(grpo_config(tmp_path, max_prompt_len=16, **settings))
  monkeypatch.undo()
  # The rollout that has begun keeps its problems; the next one has all.
  grpo.run(grpo_config(tmp_path, max_prompt_len=128, **settings))
  left_out = [row['prompts/too_long'] for row in _rows(tmp_path)]
  assert len(left_out) == 4 and left_out[0] == left_out[1] > 0
  assert left_out[2:] == [0, 0]
  with pytest.raises(config.UserError, match='max_prompt_len is 16 now'):
    grpo.run(grpo_config(tmp_path, max_prompt_len=16, **settings))


def test_completion_longer_than_the_model(tmp_path):
  with pytest.raises(ValueError, match='the model takes 256'):
    grpo.run(grpo_config(tmp_path, max_len=1000))


def test_missing_checkpoint(tmp_path):
  with pytest.raises(FileNotFoundError, match='nowhere does not exist'):
    grpo.run(grpo_config(tmp_path, checkpoint=str(tmp_path / 'nowhere')))
  # Nothing was begun in the workdir.
  assert not (tmp_path / 'config.gin').exists()


@dataclasses.dataclass(frozen=True)
class _Nothing(countdown.Countdown):
  def examples(self, split):
    return []


def test_empty_task(tmp_path):
  with pytest.raises(ValueError, match='empty list of problems'):
    grpo.run(grpo_config(tmp_path, task=_Nothing()))


def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'rlzero.grpo',
      f'--workdir={tmp_path}',
      '--checkpoint=nowhere',
    ],
    capture_output=True,
    text=True,
    check=False,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
  )
  assert done.returncode == 2
  assert done.stderr.count('\n') == 1
  assert 'nowhere does not exist' in done.stderr


def test_table_says_what_the_settings_amount_to(tmp_path):
  text = settings.table(
    grpo_config(tmp_path, steps_per_rollout=2, num_steps=8, save_every=2), 12
  )
  assert '3 x 4 = 12 rows' in text
  assert '4 x 24' in text
  assert '24 (2.00 epochs of 12)' in text
  text = settings.table(
    grpo_config(
      tmp_path,
      steps_per_rollout=2,
      epochs_per_rollout=2,
      num_steps=8,
      save_every=4,
      reference_every=4,
    ),
    12,
  )
  assert '2 x 2 = 4' in text
  assert '12 (1.00 epochs of 12)' in text


@pytest.fixture(scope='module')
def whole_of_two(tmp_path_factory):
  """A run of rollouts of two updates each."""
  workdir = tmp_path_factory.mktemp('whole_of_two')
  grpo.run(grpo_config(workdir, **_TWO))
  return workdir


_TWO = {
  'steps_per_rollout': 2,
  'num_prompts': 2,
  'num_steps': 4,
  'save_every': 1,
  'eval_every': 2,
  'eval_problems': 2,
  'eval_samples': 2,
  'final_problems': 1,
  'keep_completions_every': 1,
}


def _assert_same_folder(first, second):
  _assert_same_run(first, second)
  for folder in ('completions', 'evaluations'):
    texts = [
      {path.name: path.read_text() for path in (workdir / folder).iterdir()}
      for workdir in (first, second)
    ]
    assert texts[0] == texts[1]


class _Killed(BaseException):
  pass


def _killed_at(monkeypatch, owner, name, call):
  """The call-th call of a function does its work and is the last thing."""
  function, calls = getattr(owner, name), []

  def killing(*args, **kwargs):
    calls.append(1)
    if len(calls) > call:
      raise _Killed
    found = function(*args, **kwargs)
    if len(calls) == call:
      raise _Killed
    return found

  monkeypatch.setattr(owner, name, killing)
  return calls


# In a rollout, or between two.
@mostly_slow('inside', {'in': True, 'between': False}, quick=('between',))
def test_a_run_that_would_ask_otherwise_does_not_resume(
  tmp_path, monkeypatch, inside
):
  base = tmp_path / 'base'
  shutil.copytree(folders.embedded('tiny_base'), base)
  path = base / 'tokenizer_config.json'
  facts = json.loads(path.read_text())

  def run(chat_template):
    path.write_text(json.dumps(facts | {'chat_template': chat_template}))
    grpo.run(
      grpo_config(
        tmp_path / 'run',
        checkpoint=str(base),
        template=Template('chat'),
        format_reward=0.0,
        steps_per_rollout=1 + inside,
        num_prompts=1,
        num_steps=2,
        save_every=1,
        max_prompt_len=32,
      )
    )

  _killed_at(monkeypatch, checkpoint.Store, 'save', 1)
  with pytest.raises(_Killed):
    run('User: {{ messages[0].content }} Assistant:')
  if inside:  # then the tokens of the rollout are known, all of them
    monkeypatch.setattr(drawing.Drawing, '_check_asked', lambda *_: None)
  with pytest.raises(ValueError, match="has asked '.*' with another prompt"):
    run('User: 2 {{ messages[0].content }} Assistant:')


@pytest.mark.slow
def test_killed_in_every_part_of_a_step(whole_of_two, tmp_path, monkeypatch):
  cfg = grpo_config(tmp_path, **_TWO)
  written = []
  for owner, name, call in (
    (journal.Journal, 'add_completion', 11),  # of the first 16
    (journal.Journal, 'add_scores', 1),
    (learner.Learner, 'update', 1),
    (update.Trainer, 'update', 1),  # the second minibatch of the first rollout
    (journal.Journal, 'add_completion', 7),
    (checkpoint.Store, 'save', 1),  # between minibatches
    (measure, 'write', 1),  # before the metrics that it is part of
  ):
    calls = _killed_at(monkeypatch, owner, name, call)
    with pytest.raises(_Killed):
      grpo.run(cfg)
    assert len(calls) >= call
    monkeypatch.undo()
    written.append(len(_rows(tmp_path)))
  assert written == sorted(written)
  drawn = []
  add = journal.Journal.add_completion
  monkeypatch.setattr(
    journal.Journal,
    'add_completion',
    lambda *args: drawn.append(1) or add(*args),
  )
  grpo.run(cfg)
  assert not drawn  # the last rollout was whole, and none of it is lost
  _assert_same_folder(whole_of_two, tmp_path)


@pytest.mark.slow
def test_epochs_with_recomputed_logprobs_resume_to_the_bit(
  tmp_path, monkeypatch
):
  changes = {
    'steps_per_rollout': 2,
    'epochs_per_rollout': 2,
    'num_prompts': 1,
    'num_steps': 4,
    'reference_every': 4,
    'save_every': 1,
    'final_problems': 1,
    'keep_completions_every': 4,
    'objective': Objective(
      old_logprobs='recomputed',
      behaviour='truncated',
      kl_coef=0.01,
      kl_estimator='k1',
      kl_in='reward',
    ),
  }
  seen = []
  follow = learner.Learner.update

  def noted(self, state, rows):
    seen.append(rows)
    return follow(self, state, rows)

  monkeypatch.setattr(learner.Learner, 'update', noted)
  grpo.run(grpo_config(tmp_path / 'whole', **changes))
  monkeypatch.undo()
  # Two minibatches of a group each, twice; every update learns something.
  groups = [tuple(rows.prompts[0]) for rows in seen]
  assert len({*groups[:2]}) == 2 and {*groups[:2]} == {*groups[2:]}
  rows = _rows(tmp_path / 'whole')
  assert all(row['policy/sampler_learner_max'] <= 3e-5 for row in rows)
  assert all(0 <= row['policy/sampler_learner_kl'] < 1e-8 for row in rows)
  assert all(row['policy/behaviour_limited'] == 0 for row in rows)
  assert (
    rows[0]['policy/log_ratio_max'] < 1e-4 < rows[3]['policy/log_ratio_max']
  )
  cfg = grpo_config(tmp_path / 'killed', **changes)
  for owner, name, call in (
    (journal.Journal, 'add_logprobs', 3),  # of 8
    (update.Trainer, 'update', 3),  # after which the policy is another
  ):
    _killed_at(monkeypatch, owner, name, call)
    with pytest.raises(_Killed):
      grpo.run(cfg)
    monkeypatch.undo()
  _killed_at(monkeypatch, journal.Journal, 'add_logprobs', 0)
  grpo.run(cfg)  # and they are not made again
  _assert_same_folder(tmp_path / 'whole', tmp_path / 'killed')


def test_rounds_that_teach_enough_give_the_bits_of_one(
  whole_of_two, tmp_path, monkeypatch
):
  monkeypatch.setattr(
    selection,
    'teaches',
    lambda cfg, records: np.ones(len(records) // cfg.num_samples, bool),
  )
  # Nor do the figures of tokens change a bit.
  grpo.run(grpo_config(tmp_path, **_TWO, max_rounds=3, keep_tokens=2))
  kept = (tmp_path / 'tokens' / 'step_000002.jsonl').read_text().splitlines()
  for place, row in enumerate(map(json.loads, kept)):
    assert row['place'] == place
    assert max(row['mismatch']) < 1e-4 < max(row['entropy'])
    assert len(row['texts']) == len(row['logprob']) == len(row['advantage'])
  assert len(kept) == 2
  jax.tree.map(
    np.testing.assert_array_equal, _params(whole_of_two), _params(tmp_path)
  )
  rows = _rows(tmp_path)
  assert all(row['groups/rounds'] == 1 for row in rows)
  assert not any(row['rollout/tokens_unused'] for row in rows)
  for row, plain in zip(rows, _rows(whole_of_two), strict=True):
    assert plain == {name: row[name] for name in plain}


_SELECTIVE = _TWO | {
  'num_prompts': 3,
  'samples_per_prompt': 6,
  'max_rounds': 3,
  'curriculum': Curriculum(by='level', half_life=2.0),
  'truncated': 'masked',
}


@pytest.mark.slow
def test_rounds_and_a_curriculum_resume_to_the_bit(
  tmp_path, monkeypatch, capsys
):
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  grpo.run(grpo_config(whole, **_SELECTIVE))
  rows = _rows(whole)
  assert all(metric_names.find(name) for row in rows for name in row)
  assert all(1 < row['groups/rounds'] <= 3 for row in rows)
  for row in rows:
    assert row['groups/kept'] + row['groups/filled_up'] == 6
    assert row['groups/dropped'] == row['groups/sampled'] - 6
    assert 0 < row['rollout/tokens_unused'] < row['rollout/tokens']
  assert (
    rows[0]['curriculum/pass_rate'] == 0.5 > rows[2]['curriculum/pass_rate']
  )
  assert rows[2]['curriculum/passed_over'] > 0
  cfg = grpo_config(killed, **_SELECTIVE)
  for owner, name, call in (
    (journal.Journal, 'add_completion', 50),  # 36 are of the first round
    (journal.Journal, 'add_scores', 1),  # of the second round
    (update.Trainer, 'update', 1),
    (checkpoint.Store, 'save', 1),  # between minibatches
    (update.Trainer, 'update', 3),  # the last
  ):
    calls = _killed_at(monkeypatch, owner, name, call)
    with pytest.raises(_Killed):
      grpo.run(cfg)
    assert len(calls) >= call
    monkeypatch.undo()
  # The newest checkpoint needs the journals of all rounds.
  (killed / 'journal' / 'step_000002_1.jsonl').unlink()
  grpo.run(cfg)
  assert 'step_000002_1.jsonl is missing' in capsys.readouterr().err
  _assert_same_folder(whole, killed)


@mostly_slow('call', {'first': 5, 'second': 21}, quick=())
def test_sigterm_in_a_rollout(whole_of_two, tmp_path, monkeypatch, call):
  cfg = grpo_config(tmp_path, **_TWO | {'save_every': 4})
  add, calls = journal.Journal.add_completion, []

  def told(*args):
    calls.append(1)
    if len(calls) == call:
      os.kill(os.getpid(), signal.SIGTERM)
    return add(*args)

  monkeypatch.setattr(journal.Journal, 'add_completion', told)
  with pytest.raises(SystemExit) as ended:
    grpo.run(cfg)
  assert ended.value.code == lifecycle.PREEMPTED
  assert len(calls) < 32
  grpo.run(cfg)
  assert len(calls) == 32  # nothing was drawn a second time but what ran then
  _assert_same_folder(whole_of_two, tmp_path)


@pytest.mark.slow
def test_a_finished_run_goes_back_to_the_checkpoint_before(
  whole_of_two, tmp_path, capsys
):
  # Which lies between minibatches, and needs its journal.
  shutil.copytree(whole_of_two, tmp_path, dirs_exist_ok=True)
  (tmp_path / 'checkpoints' / '4' / 'facts' / 'metadata').unlink()
  grpo.run(grpo_config(tmp_path, **_TWO))
  assert 'trying the one of step 3' in capsys.readouterr().err
  _assert_same_folder(whole_of_two, tmp_path)


@pytest.mark.slow
def test_lost_journal_gives_way_to_the_checkpoint_before(
  whole_of_two, tmp_path, monkeypatch, capsys
):
  cfg = grpo_config(tmp_path, **_TWO)
  _killed_at(monkeypatch, update.Trainer, 'update', 4)
  with pytest.raises(_Killed):
    grpo.run(cfg)
  monkeypatch.undo()
  (tmp_path / 'journal' / 'step_000002.jsonl').unlink()
  grpo.run(cfg)
  said = capsys.readouterr().err
  assert 'step_000002.jsonl is missing or damaged' in said
  _assert_same_folder(whole_of_two, tmp_path)


def test_groups_are_scored_as_they_end_and_it_makes_no_difference(
  tmp_path, monkeypatch
):
  cfg = grpo_config(tmp_path)
  examples = cfg.task.examples('train')
  drawn = list(enumerate(examples[:3]))
  begun, order = threading.Event(), []
  generate = scheduler.generate

  def generated(*args, **kwargs):
    out = generate(*args, **kwargs)
    assert begun.wait(20)  # nobody has asked for scores yet
    return out

  with settings.make_reward_pool(cfg) as pool:
    loaded = settings.load_start(cfg)
    trainer = update.Trainer(cfg, loaded)
    collector = collect.Collector(cfg, trainer.learner, loaded.tokenizer, pool)
    plain = journal.Journal(str(tmp_path / 'plain'), {})
    collector.collect(trainer.policy, drawn, plain)
    score = pool.score

    def slow(requests):
      begun.set()
      order.append(requests)
      time.sleep(0.3 / len(order))
      return score(requests)

    monkeypatch.setattr(pool, 'score', slow)
    monkeypatch.setattr(scheduler, 'generate', generated)
    late = journal.Journal(str(tmp_path / 'late'), {})
    collector.collect(trainer.policy, drawn, late)
  assert len(order) == 3  # a group each
  plain.close()
  late.close()
  assert (tmp_path / 'plain').read_bytes() == (tmp_path / 'late').read_bytes()
