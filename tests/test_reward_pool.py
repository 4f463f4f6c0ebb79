"""Reward workers: right verdicts, and nothing that a verifier can break."""

import ctypes
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from rlzero.scoring import reward_pool
from rlzero.tasks import verify


@dataclasses.dataclass(frozen=True)
class Honest:
  """Right if equal to the target."""

  name: str = 'honest'

  def examples(self, split):
    return []

  def extract(self, text):
    return verify.last_answer(text)

  def verify(self, answer, target):
    return verify.number(answer) == verify.number(target)

  def same(self, first, second):
    return self.verify(first, second)

  def count_tries(self, text):
    return verify.count_results(text)


def _loop():
  while True:
    pass


def _recurse():
  return _recurse()


def _memory():
  return len(bytearray(8 << 30))


def _print():
  # Whatever is still open, a frame's socket among it, gets junk.
  for fd in range(3, 64):
    try:
      os.write(fd, b'print print print ')
    except OSError:
      pass
  return True


def _child():
  subprocess.Popen(['sleep', '60'])
  while True:
    pass


ACTIONS = {
  'loop': _loop,
  'exit': lambda: os._exit(3),
  'sysexit': lambda: sys.exit(3),
  'segfault': lambda: ctypes.string_at(0),
  'raise': lambda: 1 / 0,
  'recurse': _recurse,
  'memory': _memory,
  'stdout': lambda: bool(print('x' * 10_000_000)) or True,
  'stdin': lambda: sys.stdin.read() == '',
  'frames': _print,
  'child': _child,
  'truthy': lambda: 'yes',
  'number': lambda: 0.1,
  'none': lambda: None,
  'one': lambda: 1,
  'word': lambda: 'True',
  'numpy': lambda: np.bool_(True),
  'slow': lambda: time.sleep(0.4) is None,
  'right': lambda: True,
}


@dataclasses.dataclass(frozen=True)
class Hostile(Honest):
  """Does what its target says."""

  name: str = 'hostile'

  def verify(self, answer, target):
    return ACTIONS[target]()

  def same(self, first, second):
    return ACTIONS[first]() if first in ACTIONS else first[0] == second[0]


@dataclasses.dataclass(frozen=True)
class Unready(Honest):
  """Cannot start."""

  def warm_up(self):
    raise ImportError('no verifier here')


TASKS = {'honest': Honest(), 'hostile': Hostile()}


def tagged(answer):
  return f'<think> 1 + 1 = {answer} wait </think> <answer>{answer}</answer>'


@pytest.fixture(scope='module')
def pool():
  with reward_pool.RewardPool(TASKS, 'r1_zero', deadline_s=1.0) as made:
    yield made


def test_verdicts_in_order(pool):
  requests = [
    reward_pool.Request('honest', tagged(i % 7), '3') for i in range(200)
  ]
  verdicts = pool.score(requests)
  assert [v.correct for v in verdicts] == [i % 7 == 3 for i in range(200)]
  words = {'en': 1, 'zh': 0, 'other': 0}
  assert verdicts[3] == reward_pool.Verdict(
    1.0, 1.0, True, '3', 1, 1, 'ok', words=words
  )
  assert verdicts[4] == reward_pool.Verdict(
    0.0, 1.0, False, '4', 1, 1, 'ok', words=words
  )
  assert pool.score([]) == []


@pytest.mark.parametrize(
  'completion',
  [
    '3',
    '<answer>3</answer>',
    f'{tagged(3)} and',
    f'and {tagged(3)}',
    tagged(3) * 2,
    f'<think>{tagged(3)}',
    '<think> <answer>3</answer> </think>',
    '<think> 3 </think> <answer></answer>',
    '<think> 3 </think> <answer>1</answer> <answer>3</answer>',
  ],
)
def test_hacks_have_no_reward(pool, completion):
  (verdict,) = pool.score([reward_pool.Request('honest', completion, '3')])
  assert (verdict.accuracy, verdict.format) == (0.0, 0.0)


def test_right_answer_in_the_wrong_format_is_correct(pool):
  (verdict,) = pool.score([reward_pool.Request('honest', 'so 1+2 = 3', '3')])
  words = {'en': 1, 'zh': 0, 'other': 0}
  assert verdict == reward_pool.Verdict(
    0.0, 0.0, True, '3', 1, 0, 'ok', words=words
  )


def test_chat_has_accuracy_and_no_format():
  with reward_pool.RewardPool(TASKS, 'chat', num_workers=1) as chat:
    free, tags = chat.score(
      [
        reward_pool.Request('honest', 'so it is 3.', '3'),
        reward_pool.Request('honest', tagged(3), '3'),
      ]
    )
  assert (free.accuracy, free.format, free.correct) == (1.0, 0.0, True)
  assert (tags.accuracy, tags.format) == (1.0, 0.0)


@pytest.mark.parametrize(
  'action, status',
  [
    ('loop', 'timeout'),
    ('child', 'timeout'),
    ('exit', 'crash'),
    ('sysexit', 'crash'),
    ('segfault', 'crash'),
    ('raise', 'crash'),
    ('recurse', 'crash'),
    ('memory', 'crash'),
    ('truthy', 'crash'),
    ('number', 'crash'),
    ('none', 'crash'),
    ('one', 'crash'),
    ('word', 'crash'),
    ('numpy', 'ok'),
    ('frames', 'junk'),
    ('stdout', 'ok'),
    ('stdin', 'ok'),
  ],
)
def test_hostile_verifier_stops_nothing(pool, action, status):
  before = dict(pool.counts)
  hostile = reward_pool.Request('hostile', tagged(3), action)
  honest = reward_pool.Request('honest', tagged(3), '3')
  verdicts = pool.score([honest, hostile, honest, honest])
  assert [v.status for v in verdicts] == ['ok', status, 'ok', 'ok']
  assert [v.accuracy for v in verdicts] == [1, float(status == 'ok'), 1, 1]
  added = {s: pool.counts[s] - before[s] for s in pool.counts}
  assert sum(added.values()) == 4 and added[status] == 1 + 3 * (status == 'ok')


@pytest.mark.long
def test_each_job_of_a_batch_has_its_own_fate():
  actions = ['right', 'slow', 'exit', 'slow', 'loop', 'raise', 'right'] * 4
  with reward_pool.RewardPool(TASKS, 'short', 1, deadline_s=1.0) as pool:
    verdicts = pool.score(
      [reward_pool.Request('hostile', tagged(1), a) for a in actions]
    )
  expected = ['ok', 'ok', 'crash', 'ok', 'timeout', 'crash', 'ok'] * 4
  assert [v.status for v in verdicts] == expected


@dataclasses.dataclass(frozen=True)
class Killed(Honest):
  """Waits in its first verification, with its process id in `folder`."""

  folder: str = ''

  def verify(self, answer, target):
    place = pathlib.Path(self.folder, 'pid')
    if not place.exists():
      place.with_suffix('.tmp').write_text(str(os.getpid()))
      place.with_suffix('.tmp').rename(place)
      time.sleep(60)
    return super().verify(answer, target)


def _kill_when_there(place):
  while not place.exists():
    time.sleep(0.01)
  os.kill(int(place.read_text()), signal.SIGKILL)


def test_a_completion_whose_worker_is_killed_is_scored_again(tmp_path):
  requests = [reward_pool.Request('a', tagged(3), '3')] * 3
  task = Killed(folder=str(tmp_path))
  killer = threading.Thread(target=_kill_when_there, args=[tmp_path / 'pid'])
  with reward_pool.RewardPool({'a': task}, 'short', 1, deadline_s=60) as pool:
    killer.start()
    assert [v.accuracy for v in pool.score(requests)] == [1.0] * 3
    killer.join()
    # And between two rollouts, where it waits for jobs.
    os.kill(pool._workers[0]._process.pid, signal.SIGKILL)
    assert [v.accuracy for v in pool.score(requests)] == [1.0] * 3
  assert pool.counts == {'ok': 6, 'timeout': 0, 'crash': 0, 'junk': 0}


@dataclasses.dataclass(frozen=True)
class Patient(Hostile):
  """Names a deadline of its own."""

  deadline_s: float = 20.0


def test_a_task_may_have_a_longer_deadline():
  tasks = {'hostile': Hostile(), 'patient': Patient()}
  with reward_pool.RewardPool(tasks, 'short', 1, deadline_s=0.1) as pool:
    verdicts = pool.score(
      [reward_pool.Request(name, tagged(1), 'slow') for name in tasks]
    )
  assert [v.status for v in verdicts] == ['timeout', 'ok']


@dataclasses.dataclass(frozen=True)
class Poisoned(Honest):
  """Ends the worker in the job that follows one with target 'poison'."""

  def verify(self, answer, target):
    if os.environ.get('POISON'):
      os._exit(1)
    if target == 'poison':
      os.environ['POISON'] = '1'
    return super().verify(answer, '3')


@pytest.mark.long
def test_a_ruined_worker_costs_no_later_completion():
  targets = ['x', 'poison', 'x', 'x'] * 8
  with reward_pool.RewardPool({'a': Poisoned()}, 'short', 1) as pool:
    verdicts = pool.score(
      [reward_pool.Request('a', tagged(3), t) for t in targets]
    )
  assert [v.accuracy for v in verdicts] == [1.0] * len(targets)


def test_what_a_verifier_raises_is_said_once(capfd):
  with reward_pool.RewardPool(TASKS, 'short', 1) as pool:
    ask = [reward_pool.Request('hostile', tagged(1), 'raise')] * 10
    pool.score(ask)
    pool.score(ask)
    pool.score([reward_pool.Request('hostile', tagged(1), 'one')])
  said = capfd.readouterr().err
  assert said.count("verifier of task 'hostile' raised ZeroDivisionError") == 1
  assert said.count('None of 10 completions could be scored (10 crash)') == 1
  assert said.count('verify gave 1, of type int; it must give True') == 1


@dataclasses.dataclass(frozen=True)
class Judged(Honest):
  """Its part is what the target says."""

  def parts(self, text, target):
    return {'quality': float(target)}


@pytest.mark.parametrize('value', ['nan', 'inf', '-inf'])
def test_a_part_that_is_no_number_is_an_error(value, capfd):
  with reward_pool.RewardPool({'a': Judged()}, 'short', 1) as pool:
    (verdict,) = pool.score([reward_pool.Request('a', tagged(3), value)])
  assert verdict.status == 'crash' and verdict.parts == {}
  assert f"part 'quality' is {value}" in capfd.readouterr().err


@pytest.mark.parametrize(
  'completion, stated',
  [
    ('<think> 3 </think> so it is 4', '4'),
    ('<think> 3', None),
    ('3 <think> hmm', None),
    ('3 <think> hmm </think>', None),
    ('<THINK> 3 </ think > 4', '4'),
    ('I add: 3 </think> 4', '4'),
    ('<think> a </think> 3 <think> b </think> 4', '4'),
    ('<think> <answer> 3 </answer>', None),
    ('so 3', '3'),
  ],
)
@pytest.mark.parametrize('kind', ['chat', 'r1_zero'])
def test_an_answer_in_the_thought_is_none(completion, stated, kind):
  with reward_pool.RewardPool(TASKS, kind, 1) as pool:
    (verdict,) = pool.score([reward_pool.Request('honest', completion, '3')])
  assert verdict.answer == stated
  assert verdict.correct == (stated == '3')
  assert verdict.accuracy == float(verdict.correct and kind == 'chat')


@pytest.mark.parametrize(
  'completion, stated, words',
  [
    ('I add, so it is 3', None, 4),
    ('maybe 3 <think> hmm', None, 2),
    ('I add: 3 </think> so 4', '4', 1),
    ('hm hm <think> hm </think> so 3', '3', 3),
  ],
)
def test_the_prompt_may_begin_the_thought(completion, stated, words):
  with reward_pool.RewardPool(TASKS, 'chat', 1) as pool:
    (verdict,) = pool.score(
      [reward_pool.Request('honest', completion, '3', in_thought=True)]
    )
  assert verdict.answer == stated
  assert verdict.accuracy == float(stated == '3')
  assert verdict.words['en'] == words


def test_the_longest_completion_follows_max_len():
  text = '<think>' + ' wait' * 100_000 + '</think> <answer> 3 </answer>'
  limit = reward_pool.chars_of(100_000)
  with reward_pool.RewardPool(TASKS, 'r1_zero', 1, max_chars=limit) as pool:
    (verdict,) = pool.score([reward_pool.Request('honest', text, '3')])
  assert (verdict.accuracy, verdict.status) == (1.0, 'ok')


def test_ten_megabytes_score_nothing(pool):
  right = tagged(3)
  long = '<think>' + 'junk ' * 2_000_000 + right.removeprefix('<think>')
  (verdict,) = pool.score([reward_pool.Request('honest', long, '3')])
  assert verdict.status == 'junk' and not verdict.correct
  assert (verdict.accuracy, verdict.format) == (0.0, 0.0)


def test_odd_characters_pass(pool):
  text = '\ud800\x00\u2028 ' + tagged(3)
  (verdict,) = pool.score([reward_pool.Request('honest', text, '3')])
  assert verdict.correct


def test_classes(pool):
  answers = ['1', None, '2', '1.0', '0.5', '1', '2/4', 'x', 'x']
  assert pool.classes('honest', answers) == [0, -1, 1, 0, 2, 0, 2, 3, 3]


@pytest.mark.long
def test_classes_fall_back_on_text(pool):
  answers = ['loop', 'lo', 'loop', 'lo', 'la']
  # Every comparison with 'loop' fails: it is at fault, and no other answer.
  assert pool.classes('hostile', answers) == [0, 1, 0, 1, 1]


def test_thousands_a_second(pool):
  requests = [
    reward_pool.Request('honest', tagged(i), '3') for i in range(2000)
  ]
  started = time.monotonic()
  pool.score(requests)
  assert time.monotonic() - started < 10  # 0.3 on two idle cores


def test_bad_input(pool):
  with pytest.raises(ValueError, match="no task 'gsm'; it has honest, hostile"):
    pool.score([reward_pool.Request('gsm', '', '')])
  with pytest.raises(ValueError, match='num_workers 0'):
    reward_pool.RewardPool(TASKS, 'short', num_workers=0)


def test_worker_that_cannot_start_says_why():
  with reward_pool.RewardPool({'a': Unready()}, 'short', 1) as unready:
    with pytest.raises(RuntimeError, match='ImportError: no verifier here'):
      unready.score([reward_pool.Request('a', '', '')])


def _is_running(process):
  try:
    state = pathlib.Path(f'/proc/{process}/stat').read_text()
  except FileNotFoundError:
    return False
  return state.rsplit(')', 1)[1].split()[0] != 'Z'


@pytest.mark.skipif(not os.path.isdir('/proc'), reason='needs /proc')
@pytest.mark.parametrize('action', ['right', 'loop'])
def test_workers_die_with_the_parent(action):
  code = (
    'import sys, time\n'
    f'sys.path.insert(0, {os.path.dirname(__file__)!r})\n'
    'import test_reward_pool as t\n'
    'pool = t.reward_pool.RewardPool(t.TASKS, "short", 1, deadline_s=2.0)\n'
    'ask = lambda a: pool.score('
    '[t.reward_pool.Request("hostile", t.tagged(1), a)])\n'
    'ask("right")\n'
    'print(pool._workers[0]._process.pid, flush=True)\n'
    f'ask({action!r})\n'
    'time.sleep(60)\n'
  )
  parent = subprocess.Popen(
    [sys.executable, '-c', code], stdout=subprocess.PIPE, text=True
  )
  with parent:
    worker = int(parent.stdout.readline())
    time.sleep(0.3)
    assert _is_running(worker)
    parent.kill()
  patience = time.monotonic() + 20
  while _is_running(worker):
    assert time.monotonic() < patience, 'the worker outlived its parent'
    time.sleep(0.1)


def test_rewards_do_not_load_jax():
  code = (
    'import sys\n'
    'from rlzero.scoring import reward_pool, worker\n'
    'from rlzero.tasks import base, procedural, verify\n'
    'from rlzero.text import template\n'
    'names = {"jax", "grain", "tensorflow_datasets", "tensorflow", "torch"}\n'
    'print(sorted(names & set(sys.modules)))'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == '[]'
