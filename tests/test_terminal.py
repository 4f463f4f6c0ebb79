"""The display on a terminal, and what of a model's text reaches it."""

import io
import re
import unicodedata

import pytest
import rich.console

from rlzero.monitoring import telling
from rlzero.runtime import metrics, terminal

HOSTILE = (
  '\x1b]0;owned\x07 \x1b[2J\x9b31m [red]markup[/red] \u202egnp.exe '
  '\x08\x08 a\rb \ud800 \x1b]8;;http://x\x1b\\link'
)


def drawn(sample=('right · question', 'text'), alerts=(), width=80):
  file = io.StringIO()
  console = rich.console.Console(
    file=file, force_terminal=True, width=width, color_system='truecolor'
  )
  display = terminal.Display('grpo', 80, 3, console)
  display.show(12, {'reward': 0.5, 'length': 65.25}, '2m10s left')
  display.describe({'accuracy': 0.25, 'format': 0.75}, alerts, sample)
  display.close()
  return file.getvalue()


def plain(text):
  """The last frame, without what the display itself writes."""
  return re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', text)


def test_shows_stage_step_rewards_time_alerts_and_a_completion():
  text = plain(drawn(alerts=['kl', 'ratio']))
  for part in (
    *('grpo', '12/80', '2m10s left', 'reward 0.5', 'length 65.25'),
    *('accuracy 0.25', 'format 0.75', 'kl, ratio', 'right · question', 'text'),
  ):
    assert part in text
  assert 'alerts' in text and 'none' in plain(drawn())


@pytest.mark.parametrize('width', [40, 80, 200])
def test_no_escape_sequence_of_a_model_reaches_the_terminal(width):
  text = drawn((f'right · {HOSTILE}', HOSTILE * 50), width=width)
  left = plain(text)
  controls = {c for c in left if unicodedata.category(c)[0] == 'C'}
  assert controls <= {'\n', '\r'}
  assert '\x1b]' not in text and '\x9b' not in text and '\u202e' not in text
  assert '[red]' in left  # no markup either


def test_the_display_keeps_its_height():
  heights = {
    plain(drawn(('title', 'word ' * n))).rstrip('\n').count('\n')
    for n in (1, 20, 5000)
  }
  assert len(heights) == 1


def test_printable():
  assert terminal.printable('a\n\tb  c') == 'a b c'
  assert terminal.printable('\x1b[1m\u200bé中😀') == '\ufffd[1m\ufffdé中😀'
  assert len(terminal.printable('x' * 10**6)) < 10**4


def test_plain_lines_where_there_is_no_terminal(capsys):
  with metrics.Progress(8, 'grpo') as progress:
    progress.show(1, reward=0.5)
    progress.describe({'reward/format': 1.0}, ['kl'], ('title', HOSTILE))
  assert capsys.readouterr().out == 'grpo 1/8  reward 0.5\n'


def test_a_terminal_gets_the_display(monkeypatch, capsys):
  monkeypatch.setattr(metrics.sys.stdout, 'isatty', lambda: True)
  with metrics.Progress(8, 'grpo') as progress:
    progress.show(2, reward=0.5)
    step_metrics = {'reward/format': 1.0, 'time/step_s': 9.0}
    progress.describe(step_metrics, [], ('title', HOSTILE))
  out = capsys.readouterr().out
  assert 'format 1' in out and 'step_s' not in out and '\x1b]' not in out


def test_the_completion_that_tells_most():
  records = [
    {'completion': 'wrong', 'correct': False, 'reflections': 9, 'len': 9},
    {'completion': 'plain', 'correct': True, 'reflections': 0, 'len': 90},
    {
      'completion': 'wait',
      'correct': True,
      'reward': 1.5,
      'reflections': 2,
      'len': 5,
    },
    {'completion': 'cut', 'correct': True, 'reflections': 3, 'truncated': True},
  ]
  said, text = telling.choose(records)
  assert text == 'wait' and said.startswith('right · reward 1.5 · 5 tokens')
  assert telling.choose(records[:1])[1] == 'wrong'
  (unjudged, _) = telling.choose([{'completion': 'a', 'reward': None}])
  assert unjudged.startswith('wrong · no reward')
  assert telling.choose([]) is None
