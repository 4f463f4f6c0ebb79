"""Functions of a user as rewards: both forms, and all that can be wrong."""

import json
import pathlib
import pickle
import re
import shutil
import sys
import textwrap

import pytest
from helpers import grpo_config

from rlzero import grpo
from rlzero.reporting import metric_names
from rlzero.runtime import config, functions, metrics, saved_config
from rlzero.scoring import reward_pool, rewards
from rlzero.tasks import base, reward_functions, table, verifiers
from rlzero.text import warn

SOURCE = """
import asyncio
import dataclasses

import numpy

import beside

@dataclasses.dataclass
class Held:
  value: float = 0.5

def half(completion, target):
  return Held().value

def one(completion, target, **columns):
  if completion == 'raise':
    raise KeyError('no such thing')
  if completion == 'hang':
    while True:
      pass
  if completion == 'exit':
    raise SystemExit(3)
  return {
    'nan': float('nan'), 'inf': numpy.inf, 'text': '1', 'none': None,
    'list': [1.0], 'true': True, 'numpy': numpy.float32(0.25),
    'dict': {'score': 1, 'style': False, 'tone': None},
    'bare': {'style': 1.0}, 'taken': {'score': 1.0, 'accuracy': 1.0},
    'huge': 10 ** 400,
  }.get(completion, float(completion == target))

def by_name(text, *, prompt, level, target, tag='x', **rest):
  return float(f'{text} {prompt} {level} {target} {tag}' in rest['wanted'])

def centred(prompts, completions, **kwargs):
  lengths = numpy.array([len(c) for c in completions])
  return lengths - lengths.mean()

def columns(completions, answer, level, log_extra=None, log_metric=None):
  log_extra('seen', [f'{a} {l}' for a, l in zip(answer, level)])
  log_metric('share/seen', len(completions))
  return [float(c == a) for c, a in zip(completions, answer)]

def messages(completions, prompts, **kwargs):
  assert prompts[0][-1]['role'] == 'user'
  return [float(c[0]['content'] == 'yes') for c in completions]

async def waits(completions, **kwargs):
  await asyncio.sleep(0)
  return [float(c == 'yes') for c in completions]

def tokens(completion_ids, **kwargs):
  return [float(len(ids)) for ids in completion_ids]

def some(completions, **kwargs):
  return [None if c == 'none' else 1.0 if c == 'yes' else float(c)
          for c in completions]

def short(completions, **kwargs):
  return [1.0]

def number(completions, **kwargs):
  return 1.0

def state(completions, trainer_state, **kwargs):
  return [0.0]

def hidden_state(completions, **kwargs):
  return [kwargs['environments'][0]]

def dropped(completions, trainer_state=None, **kwargs):
  return [kwargs.get('level')[0] + kwargs['weight'][0]]

def last(completion, /, target): return 0.0

def fixed(completion, other, /): return 0.0

made = beside.make()
constant = 3
"""
BESIDE = """
def make():
  def inner(completions, **kwargs):
    return [float(len(kwargs)) for _ in completions]
  return inner
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  warn.once.cache_clear()


@pytest.fixture
def mine(tmp_path, monkeypatch):
  monkeypatch.delitem(sys.modules, 'beside', raising=False)
  (tmp_path / 'my_rewards.py').write_text(SOURCE)
  (tmp_path / 'beside.py').write_text(BESIDE)
  return f'{tmp_path}/my_rewards.py'


def _load(mine, name):
  spec = f'{mine}:{name}'
  return reward_functions.load(spec, functions.digest(spec))


def _judge(mine, name, *texts, prompt='q', target='yes', ids=None, **columns):
  responses = [base.Response(t, ids) for t in texts]
  problem = base.Problem(prompt, target, columns)
  return _load(mine, name).judge(responses, problem)


def _scores(*args, **kwargs):
  found = _judge(*args, **kwargs)
  assert not any(one.error for one in found), found
  return [one.score for one in found]


def test_one_completion(mine):
  assert _scores(mine, 'half', 'x') == [0.5]
  assert _scores(mine, 'one', 'yes', 'no') == [1.0, 0.0]
  assert _scores(mine, 'one', 'none', 'true', 'numpy') == [None, 1.0, 0.25]
  (found,) = _judge(mine, 'one', 'dict')
  assert found.score == 1.0 and found.parts == {'style': 0.0, 'tone': None}
  wanted = ['a q 3 yes x', 'b q 3 yes y']
  columns = {'level': 3, 'wanted': wanted}
  assert _scores(mine, 'by_name', 'a', **columns) == [1.0]
  assert _scores(mine, 'by_name', 'b', tag='y', **columns) == [1.0]


def test_completions_of_a_problem(mine):
  assert _scores(mine, 'centred', 'a', 'abc') == [-1.0, 1.0]
  assert _scores(mine, 'waits', 'yes', 'no') == [1.0, 0.0]
  assert _scores(mine, 'tokens', 'a', ids=[4, 5, 6]) == [3.0]
  assert _scores(mine, 'some', 'none', '0.5') == [None, 0.5]
  chat = [{'role': 'user', 'content': 'q'}]
  assert _scores(mine, 'messages', 'yes', 'no', prompt=chat) == [1.0, 0.0]
  # The target, the prompts, the completions and two loggers without a column.
  assert _scores(mine, 'made', 'a', 'b') == [4.0, 4.0]
  found = _judge(mine, 'columns', 'yes', 'no', answer='yes', level=2)
  assert [f.score for f in found] == [1.0, 0.0]
  assert [dict(f.notes) for f in found] == [{'seen': 'yes 2'}] * 2
  assert found[1].logged == {'logged/share/seen': 2.0}


@pytest.mark.parametrize(
  ('name', 'text', 'message'),
  [
    ('one', 'nan', 'it gave nan; it must give a finite'),
    ('one', 'inf', 'it gave inf; it must give a finite'),
    ('one', 'huge', 'it gave inf; it must give a finite'),
    ('one', 'text', 'of type str; it must give a number'),
    ('one', 'list', 'of type list; it must give a number'),
    ('one', 'bare', "it gave a dict without 'score'"),
    ('one', 'taken', "the name 'accuracy', which every run logs as"),
    ('one', 'raise', 'no such thing'),
    ('short', '1', 'it gave 1 values for 2 completions'),
    ('number', '1', 'it gave 1.0; it must give a list'),
    ('some', 'x', 'could not convert string'),
    ('tokens', 'x', "missing 1 required .* 'completion_ids'"),
  ],
)
def test_no_silent_score(mine, name, text, message):
  found = _judge(mine, name, text, text)
  for one in found:
    assert one.score is None and one.parts == {}
    line, _, trace = one.error.partition('\n')
    assert re.search(message, line), line
    assert line.partition(': ')[0].endswith(f' in {mine}:{name}')
    assert bool(trace) != ('it gave' in line)


def test_a_traceback_begins_in_the_users_file(mine):
  (found,) = _judge(mine, 'one', 'raise')
  lines = found.error.splitlines()
  assert lines[0] == f"KeyError in {mine}:one: 'no such thing'"
  assert lines[1].startswith('Traceback') and 'my_rewards.py' in lines[2]
  assert "raise KeyError('no such thing')" in lines[3]


def test_one_bad_value_of_a_list_is_that_completions(mine):
  found = _judge(mine, 'some', '1', 'nan', 'none', '0.5')
  assert [bool(one.error) for one in found] == [False, True, False, False]
  assert [one.score for one in found] == [1.0, None, None, 0.5]


def test_a_file_is_given_the_module_that_lies_beside_it(mine, tmp_path):
  _load(mine, 'made')
  other = tmp_path / 'other'
  other.mkdir()
  for name in ('my_rewards.py', 'beside.py'):
    shutil.copy(tmp_path / name, other)
  sentence = r"other/my_rewards.py imports 'beside', which is .*other/beside.py"
  with pytest.raises(ValueError, match=sentence):
    _load(f'{other}/my_rewards.py', 'made')
  _load(mine, 'half')


def test_what_a_function_needs_is_found_without_running_it(mine, tmp_path):
  def plan(name):
    return reward_functions.plan(f'{mine}:{name}')

  (tmp_path / 'beside.py').write_text('raise RuntimeError')
  assert plan('half') == reward_functions.Plan()
  found = plan('by_name')
  assert found.needed == {'level', 'wanted'} and found.wanted == {'tag'}
  assert not found.is_list
  found = plan('columns')
  assert found.is_list and found.needed == {'answer', 'level'}
  assert found.wanted == set()
  found = plan('dropped')
  assert found.needed == {'weight'} and found.wanted == {'level'}
  assert plan('tokens').needs_token_ids
  assert not plan('columns').takes_token_ids
  assert plan('made') == reward_functions.Plan(True, takes_token_ids=True)
  assert plan('last') == reward_functions.Plan()


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('away', "has no function 'away'; define it there"),
    ('state', "asks for 'trainer_state', and a reward here is a function of"),
    ('hidden_state', "asks for 'environments', and there are no environments"),
    ('fixed', "takes 'other' by position alone"),
  ],
)
def test_refused_functions(mine, name, message):
  with pytest.raises(ValueError, match=message):
    verifiers.Function(function=f'{mine}:{name}')


def test_a_file_that_is_not_python_is_said(tmp_path):
  path = tmp_path / 'a.py'
  path.write_text('def f(completion):\n  return (1\n')
  with pytest.raises(ValueError, match=r'a.py:2 is not Python .*never closed'):
    verifiers.Function(function=f'{path}:f')
  with pytest.raises(ValueError, match='cannot be read .No such file'):
    verifiers.Function(function=f'{tmp_path}/b.py:f')


def test_what_cannot_run_is_said_as_workers_start(tmp_path):
  path = tmp_path / 'a.py'
  path.write_text('import nowhere\ndef f(completion): return 1\n')
  task = table.Table(
    path='x', verifier=verifiers.Function(function=f'{path}:f')
  )
  with reward_pool.RewardPool({'t': task}, 'chat', 1) as pool:
    with pytest.raises(RuntimeError, match='ModuleNotFoundError: No module'):
      pool.score([reward_pool.Request('t', 'a', '{"target": 1}')])
  with reward_pool.RewardPool({'t': task}, 'chat', 2) as pool:
    with pytest.raises(ValueError, match=r'start: .* can be imported\.$'):
      pool.wait()


# Tables.

_ROWS = [
  {'question': f'{i} + 1 make', 'answer': f'so\n#### {i + 1}', 'level': i}
  for i in range(6)
]


def _table(tmp_path, **settings):
  path = tmp_path / 'train.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in _ROWS))
  return table.Table(
    path=str(path), validation_percent=0, test_percent=0, **settings
  )


def _score(task, example, *texts, **settings):
  task = pickle.loads(pickle.dumps(task))
  requests = [
    reward_pool.Request('t', text, example.target, uid=example.uid)
    for text in texts
  ]
  with reward_pool.RewardPool({'t': task}, 'chat', 1, **settings) as pool:
    return pool.score(requests)


def test_a_function_is_a_verifier(tmp_path, mine):
  task = _table(
    tmp_path, verifier=verifiers.Function(function=f'{mine}:columns')
  )
  example = task.examples('train')[2]
  assert json.loads(example.target) == {
    'target': 'so\n#### 3',
    'columns': {'level': 2},
    'prompt': '2 + 1 make',
  }
  right, wrong = _score(task, example, 'so\n#### 3', '3')
  assert (right.accuracy, right.correct, right.answer) == (1.0, True, '3')
  assert (wrong.accuracy, wrong.correct, wrong.status) == (0.0, False, 'ok')
  assert wrong.logged == {'logged/share/seen': 2.0}
  assert wrong.notes == {'seen': 'so\n#### 3 2'}
  assert task.verify('so\n#### 3', example.target)
  assert not task.verify('3', example.target)


def test_two_scores_of_one_name_are_an_error_and_none_is_lost(tmp_path, mine):
  task = _table(
    tmp_path,
    verifier=verifiers.Function(function=f'{mine}:one'),
    rewards={'style': f'{mine}:centred'},
  )
  example = task.examples('train')[0]
  responses = [base.Response('dict'), base.Response('none')]
  clash, fine = task.judge(responses, example.target)
  assert "reward 'style': the verifier gives a score of that" in clash.error
  assert not fine.error and fine.parts == {'style': 0.0}


def test_functions_beside_a_verifier_see_the_column_as_it_is(tmp_path, mine):
  task = _table(
    tmp_path,
    verifier=verifiers.Numbers(),
    rewards={'copy': f'{mine}:columns', 'centred': f'{mine}:centred'},
  )
  example = task.examples('train')[2]
  first, second = _score(task, example, '3', 'so\n#### 3')
  assert first.correct and second.correct
  assert first.parts == {'copy': 0.0, 'centred': -4.0}
  assert second.parts == {'copy': 1.0, 'centred': 4.0}


def test_rewards_need_no_target(tmp_path, mine):
  task = _table(
    tmp_path,
    target='',
    verifier=verifiers.Function(function=f'{mine}:by_name'),
    columns=('answer',),
  )
  # A row without a column that is needed cannot be used.
  with pytest.raises(ValueError, match="'wanted' is missing: 6"):
    task.examples('train')
  task = _table(
    tmp_path,
    target='',
    verifier=verifiers.Function(function=f'{mine}:half'),
    columns=('answer',),
  )
  example = task.examples('train')[0]
  assert json.loads(example.target) == {
    'target': None,
    'columns': {'answer': 'so\n#### 1'},
    'prompt': '0 + 1 make',
  }
  (verdict,) = _score(task, example, 'x')
  assert (verdict.accuracy, verdict.correct) == (0.5, False)


def test_a_broken_function_costs_its_completion(tmp_path, mine, capfd):
  task = _table(tmp_path, verifier=verifiers.Function(function=f'{mine}:one'))
  example = task.examples('train')[0]
  texts = ['raise', 'true', 'nan', 'exit', 'hang', 'raise', 'none', 'numpy']
  found = _score(task, example, *texts, deadline_s=0.5)
  statuses = ['crash', 'ok', 'crash', 'crash', 'timeout', 'crash', 'ok', 'ok']
  assert [v.status for v in found] == statuses
  assert [v.accuracy for v in found] == [0, 1, 0, 0, 0, 0, 0, 0.25]
  assert [v.applies for v in found] == [True] * 6 + [False, True]
  said = capfd.readouterr().err
  assert said.count('KeyError in ') == 1 and said.count('Traceback') == 1
  assert said.count("raise KeyError('no such thing')") == 1
  assert said.count('InvalidScore in ') == 1 and 'it gave nan' in said
  assert said.count("of task 't' took more than 0.5 s for 1 completion.") == 1


def test_a_table_of_prompts_alone_is_left_to_reward_models(tmp_path):
  path = tmp_path / 'requests.jsonl'
  rows = [{'prompt': f'Write a letter to {n}.'} for n in 'abcdefghijklmnop']
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  task = table.Table(
    path=str(path),
    question='prompt',
    target='',
    verifier=verifiers.Unjudged(),
  )
  example = task.examples('train')[0]
  assert example.question.startswith('Write a letter to ')
  (verdict,) = _score(task, example, '<answer> Dear a, </answer>')
  assert (verdict.status, verdict.applies) == ('ok', False)
  assert (verdict.accuracy, verdict.correct) == (0.0, False)
  scenario = rewards.Scenario(task=task, accuracy_reward=0, format_reward=0)
  record = {'status': 'ok', 'applies': False, 'parts': {}}
  # Nothing is paid for by rules, so only a reward model can judge it.
  assert rewards.is_unjudged(scenario, record)
  assert not rewards.is_unjudged(scenario, record | {'preference': 0.5})


def test_a_broken_reward_costs_all_of_the_completion(tmp_path, mine):
  task = _table(
    tmp_path, verifier=verifiers.Numbers(), rewards={'own': f'{mine}:one'}
  )
  example = task.examples('train')[0]
  found = _score(task, example, '1', 'nan', 'dict')
  assert [v.status for v in found] == ['ok', 'crash', 'crash']
  assert [v.accuracy for v in found] == [1.0, 0.0, 0.0]


def test_groups_are_judged_apart(tmp_path, mine):
  task = _table(
    tmp_path, verifier=verifiers.Function(function=f'{mine}:centred')
  )
  first, second = task.examples('train')[:2]
  requests = [
    reward_pool.Request('t', text, e.target, uid=e.uid)
    for e, texts in ((first, ['a', 'abc']), (second, ['', 'x' * 9, 'abc']))
    for text in texts
  ]
  with reward_pool.RewardPool({'t': task}, 'chat', 2, max_chars=8) as pool:
    found = pool.score(requests)
  # Too long is not read at all, and no one is compared with it.
  assert [v.accuracy for v in found] == [-1.0, 1.0, -1.5, 0.0, 1.5]
  assert [v.status for v in found] == ['ok', 'ok', 'ok', 'junk', 'ok']


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'rewards': {'mean': 'f.py:f'}}, "Table.rewards has .* name 'mean'"),
    ({'rewards': {'a b': 'f.py:f'}}, "Table.rewards has .* name 'a b'"),
    ({'rewards': {'a': 'f'}}, "'f' names no function"),
    ({'columns': ('x.answer',)}, 'these must differ'),
  ],
)
def test_refused_tables(tmp_path, settings, message):
  with pytest.raises(ValueError, match=message):
    _table(tmp_path, **settings)


def test_a_weight_of_nothing_is_refused(tmp_path, mine):
  task = _table(
    tmp_path, verifier=verifiers.Numbers(), rewards={'own': f'{mine}:one'}
  )
  rewards.Scenario(task=task, part_rewards={'own': 1.0})
  with pytest.raises(
    ValueError, match="weighs 'won', .* 'table' are own; name"
  ):
    rewards.Scenario(task=task, part_rewards={'won': 1.0})
  with pytest.raises(ValueError, match="weighs 'won'"):
    grpo.Config(workdir='', task=task, part_rewards={'won': 1.0})
  # A function's dict may have any name.
  task = _table(tmp_path, verifier=verifiers.Function(function=f'{mine}:one'))
  rewards.Scenario(task=task, part_rewards={'tone': 1.0})


def test_reserved_names_are_those_of_all_runs():
  names = {n.removeprefix('reward/') for n in metric_names.METRICS}
  names = {n for n in names if f'reward/{n}' in metric_names.METRICS}
  assert names - {'{score}'} == reward_functions.RESERVED


# Several functions with weights, as a user of TRL has them.

_GIN = """
from __gin__ import dynamic_registration
from rlzero import grpo
from rlzero.tasks import table
from rlzero.tasks import verifiers

grpo.Config.task = @table.Table()
grpo.Config.format_reward = 0.0
grpo.Config.part_rewards = {{'brevity': 0.5, 'style': -2.0}}
table.Table.path = 'x'
table.Table.verifier = @verifiers.Function()
table.Table.rewards = {{'brevity': '{0}:centred', 'style': '{0}:some'}}
verifiers.Function.function = '{0}:one'
"""


def _config(tmp_path, mine):
  gin = tmp_path / 'run.gin'
  gin.write_text(textwrap.dedent(_GIN.format(mine)))
  workdir = tmp_path / 'run'
  return config.build(grpo, [f'--gin_file={gin}', f'--workdir={workdir}'])


def test_weights_are_those_of_gin(tmp_path, mine):
  cfg = _config(tmp_path, mine)
  records = [
    {
      'task': 'table',
      'accuracy': accuracy,
      'format': 0.0,
      'question': '',
      'words': {},
      'status': status,
      'truncated': False,
      'parts': parts,
    }
    for accuracy, status, parts in [
      (1.0, 'ok', {'brevity': -1.0, 'style': None}),
      (0.0, 'ok', {'brevity': 1.0, 'style': 0.25}),
      (0.0, 'crash', {}),
    ]
  ]
  rewards.assign(cfg, records)
  assert [r['reward'] for r in records] == [0.5, 0.0, 0.0]


@pytest.mark.parametrize('file', ['my_rewards.py', 'beside.py'])
def test_a_changed_file_is_refused_on_resume(tmp_path, mine, file):
  cfg = _config(tmp_path, mine)
  saved_config.save(cfg, cfg.workdir)
  saved_config.check_resume_compatible(_config(tmp_path, mine), cfg.workdir)
  text = (tmp_path / 'run' / 'config.gin').read_text()
  again = config.build(grpo, [f'--gin_file={tmp_path}/run/config.gin'])
  assert again == cfg and text.count('# sha256 ') == 2
  (tmp_path / file).write_text((tmp_path / file).read_text() + '\n')
  with pytest.raises(
    ValueError, match=r'Function.function is .* sha256 .* now'
  ):
    saved_config.check_resume_compatible(_config(tmp_path, mine), cfg.workdir)


def test_no_worker_judges_by_a_changed_file(tmp_path, mine):
  spec = f'{mine}:one'
  task = table.Table(
    path='x',
    verifier=verifiers.Function(function=spec),
    rewards={'own': spec},
  )
  task = pickle.loads(pickle.dumps(task))
  task.warm_up()
  with open(mine, 'a') as file:
    file.write('\n')
  with reward_pool.RewardPool({'t': task}, 'chat', 1) as pool:
    with pytest.raises(RuntimeError, match='has changed since the run began'):
      pool.score([reward_pool.Request('t', 'a', '{"target": 1}')])


def test_a_single_function_of_numpy_values(tmp_path):
  path = tmp_path / 'f.py'
  path.write_text('import numpy\ndef f(completions): return numpy.arange(2)\n')
  function = reward_functions.load(f'{path}:f', functions.digest(f'{path}:f'))
  problem = base.Problem('q', None, {})
  found = function.judge([base.Response('a'), base.Response('b')], problem)
  assert [one.score for one in found] == [0.0, 1.0]
  assert all(type(one.score) is float for one in found)


def test_the_functions_of_the_guide(monkeypatch):
  monkeypatch.chdir(pathlib.Path(__file__).parents[1])

  def scores(name, *texts, level=2):
    spec = f'docs/howto/my_rewards.py:{name}'
    function = reward_functions.load(spec, functions.digest(spec))
    problem = base.Problem('q', '5', {'level': level})
    found = function.judge([base.Response(text) for text in texts], problem)
    return [one.score for one in found]

  told = ['Answer: 5', '2 + 3 = 5. Answer: it is 5', 'Answer: 15']
  assert scores('score', *told) == [1.0, 0.5, 0.0]
  assert scores('shows_work', *told) == [0.0, 1.0, 0.0]
  assert scores('shows_work', *told, level=1) == [None] * 3
  assert scores('brevity', 'ab', 'abcd', 'abcdef') == [0.5, 0.0, -1 / 3]
  assert scores('brevity', '') == [0.0]


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.usefixtures('quick_compilation')
def test_a_step_is_rewarded_by_functions(tmp_path, mine):
  names = {'long': 'tokens', 'brevity': 'centred', 'style': 'columns'}
  task = table.Table(
    path=_table(tmp_path).path,
    verifier=verifiers.Function(function=f'{mine}:half'),
    rewards={name: f'{mine}:{spec}' for name, spec in names.items()},
    test_percent=20,
    validation_percent=20,
  )
  changes = {
    **{'num_prompts': 2, 'group_size': 2, 'steps_per_rollout': 1},
    **{'max_len': 4, 'num_steps': 1, 'kl_coef': 0.0, 'format_reward': 0.0},
    **{'final_problems': 1, 'final_samples': 1, 'keep_completions_every': 1},
  }
  cfg = grpo_config(
    tmp_path / 'run', task=task, part_rewards={'long': 1.0}, **changes
  )
  grpo.run(cfg)
  (row,) = metrics.read_metrics(cfg.workdir)
  assert row['reward/accuracy'] == 0.5 and row['completion/unscored'] == 0
  assert row['reward/long'] == row['completion/len_mean']
  assert row['reward/mean'] == pytest.approx(0.5 + row['reward/long'])
  assert row['reward/brevity'] == pytest.approx(0.0, abs=1e-6)
  assert row['logged/share/seen'] == 2.0
  assert all(metric_names.find(name) for name in row)
  (path,) = (tmp_path / 'run' / 'completions').iterdir()
  kept = [json.loads(line) for line in path.read_text().splitlines()]
  assert all(set(record['notes']) == {'seen'} for record in kept)
