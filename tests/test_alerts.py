"""Alerts ring when training goes wrong, and are silent when it goes well.

The windows of `_FAILING` are made by hand, but for `tried_at_0.5b`: it is as a
run of a 0.5B model was noted down (14 steps; 47 tokens a completion fell to 15
and ended at 19; two of 128 right in the first step, none from the third on).
What real runs with bad settings gave is in `test_a_run_that_fails_says_so`,
and in docs/results/alerts.md for those that take minutes.
"""

import dataclasses
import pathlib
import re

import pytest

from rlzero import grpo, report
from rlzero.monitoring import alerts, history
from rlzero.monitoring.alerts import Thresholds
from rlzero.runtime import config, fields, metrics
from rlzero.tasks import countdown
from rlzero.text.template import Template

_RISE = [0.2 + 0.02 * i for i in range(40)]


def _window(**values):
  """Steps with the metrics that are named, `__` for `/`."""
  lengths = {len(v) for v in values.values()}
  return [
    {'step': i} | {k.replace('__', '/'): v[i] for k, v in values.items()}
    for i in range(*lengths)
  ]


def _names(rows, **options):
  return {alert.name for alert, _ in history.replay(rows, **options)}


_FAILING = {
  'zero_variance': (
    _window(groups__zero_variance=[0.1] * 20 + [0.9] * 10),
    '82% of the groups .* equal rewards and taught nothing; choose easier',
  ),
  'truncation': (
    _window(completion__truncated=[0.0] * 15 + [0.3] * 15),
    '12% of the completions .* cut off; raise sampling.max_len',
  ),
  'no_eos': (
    _window(completion__truncated=[1.0] * 10 + [0.0] * 20),
    'EOS was never emitted at step 0: .* check the eos_token_id',
  ),
  'format_only': (
    _window(reward__format=_RISE, reward__correct=[0.2] * 40),
    r'Only the format was learned \(0.24 to 0.89\) .* lower format_reward',
  ),
  'length_collapse': (
    _window(
      completion__len_mean=[47] * 5 + [20] * 5,
      reward__correct=[0.2] * 5 + [0.1] * 5,
    ),
    r'length fell from 47 to 20 tokens .*\(-0.06\); lower learning_rate',
  ),
  'length_explosion': (
    _window(
      completion__len_mean=[40] * 5 + [200] * 5,
      reward__correct=[0.2] * 5 + [0.1] * 5,
    ),
    'length rose from 40 to 200 tokens .* lower learning_rate',
  ),
  'entropy_collapse': (
    _window(policy__entropy=[0.5] * 20 + [0.01] * 10),
    'entropy was 0.010 nats .* raise clip_high',
  ),
  'kl': (
    _window(policy__kl=[0.01] * 25 + [2.0] * 5),
    'jumped to 2 at step 25, from about 0.01; lower learning_rate',
  ),
  'ratio': (
    _window(
      policy__log_ratio_max=[0.5] * 3 + [7.0],
      policy__log_ratio_mean=[0.01] * 3 + [0.3],
      policy__clip_fraction=[0.01] * 3 + [0.4],
    ),
    'one token by a factor of 1.1e.03 and tokens by 0.3 nats in the mean and '
    '40% of the tokens out of the clip range; lower learning_rate',
  ),
  'sampler_learner': (
    _window(
      policy__sampler_learner_mean=[3e-7] * 3 + [2e-6],
      policy__sampler_learner_max=[6e-6] * 3 + [2e-3],
    ),
    '2e-06 nats in the mean and 0.002 at most, more than the rounding of '
    'float32',
  ),
  'reward_model_gap': (
    _window(
      reward__model=[0.2] * 5 + [0.8] * 5,
      reward__rule=[0.6] * 5 + [0.3] * 5,
      reward__gap=[-0.4] * 5 + [0.5] * 5,
    ),
    '0.600 more .* 0.300 less .* lower the weight of the preferences',
  ),
  'language_drift': (
    _window(completion__language=[0.98] * 10 + [0.5] * 10),
    '7.% of the words .* 98% in the first; raise language_reward',
  ),
  'repetition': (
    _window(completion__repetition=[0.0] * 10 + [0.6] * 10),
    '24% of the 8-grams .* lower learning_rate',
  ),
  'worker_failures': (
    _window(
      completion__unscored=[0.0] * 3 + [0.25],
      scoring__timeout=[0.0] * 3 + [0.05],
      scoring__crash=[0.0] * 3 + [0.2],
    ),
    r'25% .* step 3 .* earned 0 \(5% timeout, 20% crash\); check the verifier',
  ),
  'throughput': (
    _window(time__tokens_per_s=[100.0] + [1000.0] * 20 + [200.0] * 10),
    'Throughput fell from 1000 to 200 tokens per second; look for',
  ),
}


@pytest.mark.parametrize('name', alerts.NAMES)
def test_each_alert_rings_alone_and_says_what_to_do(name):
  rows, sentence = _FAILING[name]
  ((found, _),) = history.replay(rows, Thresholds())
  assert found.name == name
  assert re.search(sentence, found.sentence)
  assert found.sentence.endswith('.') and '. ' not in found.sentence


def _page(name):
  return (pathlib.Path(__file__).parent.parent / 'docs' / name).read_text()


def test_the_guide_quotes_what_each_alert_says():
  quotes = dict(
    re.findall(
      r'^### (\w+)\n\n```text\n(.*?)```',
      _page('howto/read_a_report.md'),
      re.MULTILINE | re.DOTALL,
    )
  )
  assert {*quotes} == {*alerts.NAMES}
  for name, quoted in quotes.items():
    ((found, _),) = history.replay(_FAILING[name][0], Thresholds())
    assert any(
      re.match('.*'.join(map(re.escape, line.split('…'))), found.sentence)
      for line in quoted.splitlines()
    ), (name, found.sentence)


def test_the_table_of_thresholds_has_every_alert_and_field():
  rows = re.findall(
    r'^\| (\w+) \|[^|]*\| ?([^|]*)\|$',
    _page('results/alerts.md').partition('## ')[0],
    re.MULTILINE,
  )
  assert {name for name, _ in rows if name != 'alert'} == {*alerts.NAMES}
  known = {field.name for field in dataclasses.fields(Thresholds)}
  for name, told in rows:
    for field in re.findall(r'\w+\*?', told) if name != 'alert' else ():
      start = field.removesuffix('*')
      assert field in known or (
        field.endswith('*') and any(k.startswith(start) for k in known)
      ), (name, field)


def _healthy(step, num_steps=80):
  """As the three seeds of r1_zero_tiny.gin went from start to end."""
  part = step / num_steps
  wave = (-1) ** step
  return {
    'step': step,
    'reward/correct': 0.16 + 0.68 * part + 0.03 * wave,
    'reward/format': 0.4 + 0.59 * min(1, 5 * part),
    'completion/len_mean': 26 + 44 * part + wave,
    'completion/truncated': 0.02 * part,
    'completion/repetition': 0.01,
    'completion/language': 0.98 + 0.02 * wave,
    'completion/unscored': 0.0,
    'groups/zero_variance': 0.5 * part,
    'policy/entropy': 0.4 - 0.25 * part,
    'policy/kl': 0.05 * part,
    'policy/log_ratio_mean': 1e-3,
    'policy/log_ratio_max': 0.5,
    'policy/clip_fraction': 0.01,
    'policy/sampler_learner_mean': 3e-7,
    'policy/sampler_learner_max': 8e-6,
    'time/tokens_per_s': 100.0 if step == 0 else 1000.0 + 300 * wave,
  }


def test_silent_on_a_healthy_run():
  rows = [_healthy(step) for step in range(80)]
  assert history.replay(rows, Thresholds()) == []


def test_silent_without_metrics():
  rows = [{'step': step} for step in range(40)]
  assert history.replay(rows, Thresholds()) == []
  unknown = [
    dict.fromkeys(_healthy(0), None) | {'step': step} for step in range(40)
  ]
  assert history.replay(unknown, Thresholds()) == []


def test_the_run_of_a_0_5b_model_that_nobody_was_told_about():
  lengths = [47, 44, 38, 30, 22, 17, 15, 15, 16, 17, 18, 18, 19, 19]
  right = [2 / 128, 1 / 128] + [0.0] * 12
  equal = [14 / 16, 15 / 16] + [1.0] * 12
  rows = _window(
    completion__len_mean=lengths,
    reward__correct=right,
    groups__zero_variance=equal,
  )
  found = history.replay(rows, Thresholds())
  assert {a.name: a.step for a, _ in found} == {
    'length_collapse': 6,  # 22, 17 and 15 are below 47 / 2
    'zero_variance': 9,
  }


def test_the_reward_of_the_format_alone():
  both = _window(reward__format=_RISE, reward__correct=_RISE)
  assert not _names(both, limits=Thresholds())
  early = _window(reward__format=_RISE[:39], reward__correct=[0.2] * 39)
  assert not _names(early, limits=Thresholds())


def test_accuracy_may_follow_the_format():
  """As seed 2 of r1_zero_tiny.gin went: nothing until step 25, then all."""
  form = [min(0.4 + 0.02 * i, 0.95) for i in range(60)]
  right = [0.16] * 25 + [0.17 + 0.01 * i for i in range(35)]
  assert not _names(
    _window(reward__format=form, reward__correct=right), limits=Thresholds()
  )


@pytest.mark.parametrize('lengths', [[47] * 5 + [20] * 5, [40] * 5 + [200] * 5])
def test_a_length_may_change_while_accuracy_rises(lengths):
  rows = _window(
    completion__len_mean=lengths, reward__correct=[0.2] * 5 + [0.4] * 5
  )
  assert not _names(rows, limits=Thresholds())


def test_gaming_is_a_model_that_rises_while_the_rule_falls():
  def rings(model, rule):
    rows = [{'step': 0, 'reward/gap': None}] + [
      {'step': 1, 'reward/model': m, 'reward/rule': r, 'reward/gap': m - r}
      for m, r in zip(model, rule, strict=True)
    ]
    return alerts.reward_model_gap(rows, Thresholds())

  up, level, down = [0.2] * 5 + [0.8] * 5, [0.5] * 10, [0.6] * 5 + [0.3] * 5
  assert '0.600 more' in rings(up, down)
  assert '0.300 less' in rings(up, down)
  assert not rings(up, up)
  assert not rings(up, level)
  # A fall within the noise is none; a larger one is.
  slightly, clearly = [0.6] * 5 + [0.57] * 5, [0.6] * 5 + [0.54] * 5
  assert not rings(up, slightly)
  assert '0.060 less' in rings(up, clearly)
  assert not rings(down, down)
  assert not rings(up[:9], down[:9])  # too early to tell


def test_steps_without_an_entropy_do_not_hide_its_collapse():
  known = [0.5] * 20 + [0.01] * 10
  gaps = [0.01, None] * 5  # None: the rewards of each group are equal
  rows = _window(policy__entropy=known + gaps)
  assert all(
    'entropy_collapse' in _names(rows[: 30 + n], limits=Thresholds())
    for n in range(11)
  )
  assert not _names(
    _window(policy__entropy=[0.01, None] * 9), limits=Thresholds()
  )


def test_bfloat16_has_more_rounding():
  rows = _window(
    policy__sampler_learner_mean=[8e-4], policy__sampler_learner_max=[4e-2]
  )
  assert _names(rows, limits=Thresholds()) == {'sampler_learner'}
  assert not _names(rows, limits=Thresholds(), dtype='bfloat16')
  wrong = _window(
    policy__sampler_learner_mean=[2e-2], policy__sampler_learner_max=[4e-2]
  )
  assert 'sampler_learner' in _names(
    wrong, limits=Thresholds(), dtype='bfloat16'
  )


def test_new_once_and_again_after_it_was_silent():
  limits = Thresholds(window=2)
  unscored = [0.5, 0.5, 0, 0.5, 0, 0, 0.5, 0.5]
  rows = _window(completion__unscored=unscored)
  monitor = history.Monitor(limits)
  added = [monitor.add(row) for row in rows]
  assert [len(found) for found, _ in added] == [1, 1, 0, 1, 0, 0, 1, 1]
  assert [len(new) for _, new in added] == [1, 0, 0, 0, 0, 0, 1, 0]
  assert [
    (alert.step, last) for alert, last in history.replay(rows, limits)
  ] == [(0, 3), (6, 7)]
  for cut in range(8):  # a run that resumes says what it would have said
    resumed = history.Monitor(limits, rows=rows[:cut])
    assert [resumed.add(row) for row in rows[cut:]] == added[cut:]


def test_what_depends_on_a_clock_is_left_out():
  rows = [
    {'step': 0, 'time/step_s': 1.0, 'loss': 2.0, 'alerts': ['throughput']},
    {'step': 1, 'alerts': ['kl', 'throughput']},
    {'step': 2},
  ]
  assert history.without_times(rows) == [
    {'step': 0, 'loss': 2.0},
    {'step': 1, 'alerts': ['kl']},
    {'step': 2},
  ]


@pytest.mark.parametrize(
  'field', [f.name for f in dataclasses.fields(Thresholds)]
)
def test_thresholds_out_of_range_are_refused(field):
  with pytest.raises(ValueError, match=f'Thresholds.{field} is -1'):
    Thresholds(**{field: -1})


@dataclasses.dataclass(frozen=True)
class Crashing(countdown.Countdown):
  """Cannot be judged."""

  def count_tries(self, text):
    raise OSError('the grader has moved')


def _config(workdir, **changes):
  settings = {
    'num_prompts': 3,
    'group_size': 4,
    'steps_per_rollout': 1,
    'max_len': 8,  # the base takes 26 in the mean
    'max_prompt_len': 16,
    'num_slots': 8,
    'decode_steps': 8,
    'kl_coef': 0.0,
    'micro_tokens': 256,
    'num_steps': 3,
    'save_every': 1,
    'eval_every': 0,
    'final_problems': 2,
    'final_samples': 2,
    'num_workers': 1,
    'template': Template('short'),
    'task': Crashing(),
    'alerts': Thresholds(window=2),
    **changes,
  }
  return fields.make(grpo.Config, workdir=str(workdir), **settings)


@pytest.mark.slow
@pytest.mark.model
def test_a_run_that_fails_says_so(tmp_path, capsys, monkeypatch):
  """Real: a verifier that raises, and completions of 8 tokens."""
  write = history.Recorder.write

  def killed(self, step_metrics):
    if step_metrics['step'] == 2:
      raise KeyboardInterrupt
    return write(self, step_metrics)

  with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
    patched.setattr(history.Recorder, 'write', killed)
    grpo.run(_config(tmp_path))
  grpo.run(_config(tmp_path))  # resumes: what rings still is not new
  told = [
    line
    for line in capsys.readouterr().out.splitlines()
    if line.startswith('alert ')
  ]
  assert [line.split(':')[0] for line in told] == [
    'alert no_eos',
    'alert worker_failures',
    'alert zero_variance',  # from the second step on
  ]
  assert '100% crash' in told[1]
  rows = metrics.read_metrics(str(tmp_path))
  assert rows[0]['policy/entropy'] is None  # of nothing
  assert [row['alerts'] for row in rows] == [
    ['no_eos', 'worker_failures'],
    ['zero_variance', 'no_eos', 'worker_failures'],
    ['zero_variance', 'no_eos', 'worker_failures'],
  ]
  page = (tmp_path / 'report.html').read_text()
  assert 'What needs a look' in page
  assert 'Steps 0–2, no_eos: EOS was never emitted at step 0' in page
  assert 'Steps 1–2, zero_variance: 100% of the groups' in page
  config.main(report, [f'--workdir={tmp_path}'])
  assert 'Steps 0–2, worker_failures: 100%' in capsys.readouterr().out
