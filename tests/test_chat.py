"""A conversation: turns, interruptions, and what a terminal is shown."""

import contextlib
import io
import json
import sys

import pytest
import rich.console

from rlzero import chat
from rlzero.serving import conversation, prompts, settings, terminal
from rlzero.text import template
from rlzero.train import folders

pytestmark = pytest.mark.model

TINY = folders.embedded('tiny_base')
ASKED = '3 5 7 make 26'


@pytest.fixture(scope='module')
def served():
  found = settings.load(
    settings.Settings(checkpoint=TINY), slots=1, max_queue=0
  )
  found.engine.start(compile_ahead=False)
  yield found
  found.engine.close()


@pytest.fixture
def talk(served):
  return conversation.Conversation(served, seed=3)


def test_a_turn_is_its_events_and_can_be_repeated(talk, served):
  events = list(talk.ask(ASKED))
  (turn,) = talk.turns
  assert turn.thought == ''.join(e.delta.thought for e in events)
  assert turn.answer == ''.join(e.delta.text for e in events)
  assert turn.tokens == events[-1].num_tokens > 0 and turn.seconds > 0
  assert turn.finish == events[-1].finish == 'stop'
  again = conversation.answer(conversation.Conversation(served, seed=3), ASKED)
  assert (again.thought, again.answer) == (turn.thought, turn.answer)
  talk.reset()
  assert conversation.answer(talk, ASKED).answer == turn.answer


def test_a_tiny_model_is_asked_one_question_at_a_time(talk):
  first = conversation.answer(talk, ASKED)
  second = conversation.answer(talk, ASKED)
  assert second.prompt_tokens == first.prompt_tokens
  assert len(talk.turns) == 2


def test_the_next_turn_remembers_the_last(served):
  encoder = prompts.PromptEncoder(served.tokenizer, 'plain')
  other = served._replace(template='plain', encoder=encoder)
  talk = conversation.Conversation(other, seed=3, max_tokens=4)
  first = conversation.answer(talk, ASKED)
  second = conversation.answer(talk, '1 2 3 make 6')
  said = template.summary(first.answer).split()
  # The first question, its answer, and the second question of five words.
  assert second.prompt_tokens == first.prompt_tokens + len(said) + 5


def test_an_answer_that_is_left_stays_as_far_as_it_came(talk):
  with contextlib.closing(talk.ask(ASKED)) as events:
    first = next(events)
  (turn,) = talk.turns
  assert turn.finish == 'interrupted'
  assert turn.thought + turn.answer == first.delta.thought + first.delta.text
  # The slot, of which there is one, is free at once.
  assert conversation.answer(talk, ASKED).finish == 'stop'


def test_a_conversation_longer_than_the_context_is_refused(talk):
  with pytest.raises(ValueError, match='has 402 tokens, and the context has r'):
    conversation.answer(talk, '3 ' * 400)
  assert talk.turns == []  # and not remembered


class _Interrupting(io.StringIO):
  """A terminal whose user presses Ctrl-C at the third piece of text."""

  left = 3

  def write(self, text):
    self.left -= 1
    if self.left == 0:
      raise KeyboardInterrupt
    return super().write(text)


def test_ctrl_c_ends_the_answer_and_not_the_program(talk):
  file = _Interrupting()
  console = rich.console.Console(file=file, force_terminal=True)
  terminal.Display(console, 'show').write(talk, ASKED)
  assert 'interrupted' in file.getvalue()
  assert talk.turns[0].finish == 'interrupted'
  file = io.StringIO()
  console = rich.console.Console(file=file, force_terminal=True)
  terminal.Display(console, 'show').write(talk, ASKED)
  assert talk.turns[1].answer in file.getvalue()


@pytest.mark.parametrize('thoughts', ['show', 'fold', 'hide'])
@pytest.mark.parametrize('is_terminal', [True, False])
def test_thoughts_are_dimmed_folded_or_hidden(talk, thoughts, is_terminal):
  file = io.StringIO()
  console = rich.console.Console(
    file=file,
    force_terminal=is_terminal,
    color_system='standard' if is_terminal else 'auto',
    width=200,
  )
  display = terminal.Display(console, thoughts)
  display.write(talk, ASKED)
  (turn,) = talk.turns
  shown = file.getvalue()
  assert turn.thought and turn.answer
  assert turn.answer in shown.replace('\x1b[0m', '')
  plain = ''.join(
    piece.partition('m')[2] if i else piece
    for i, piece in enumerate(shown.split('\x1b['))
  )
  assert (turn.thought in plain) == (thoughts == 'show')
  assert ('/thought shows it' in plain) == (thoughts == 'fold')
  assert ('\x1b[2m' in shown) == (is_terminal and thoughts != 'hide')
  if not is_terminal:
    assert '\x1b' not in shown
  display.show_thought(turn)
  assert turn.thought.split()[-1] in file.getvalue()


@pytest.mark.parametrize(
  'text, shown',
  [
    ('plain, é 漢 😀\n\tx', 'plain, é 漢 😀\n\tx'),
    ('\x1b[31mred\x1b]0;title\x07', '␛[31mred␛]0;title␇'),
    ('over\rwritten\b', 'over␍written␈'),
    ('\x9b31m\x7f\x00', '\ufffd31m␡␀'),
    ('left\u202eright\u2066', 'left\ufffdright\ufffd'),
    ('half \ud800', 'half \ufffd'),
  ],
)
def test_control_characters_are_shown_and_not_obeyed(text, shown):
  assert terminal.printable(text) == shown
  file = io.StringIO()
  console = rich.console.Console(file=file, force_terminal=True)
  terminal.Display(console, 'show')._put(text)
  assert file.getvalue().expandtabs() == shown.expandtabs()


def run(monkeypatch, capsys, lines, **changes):
  monkeypatch.setattr(sys, 'stdin', io.StringIO('\n'.join(lines) + '\n'))
  cfg = chat.Config(checkpoint=TINY, compile_ahead=False, seed=3, **changes)
  chat.run(cfg)
  return capsys.readouterr().out


def test_lines_of_json_for_scripts(monkeypatch, capsys):
  lines = [ASKED, '', 'hello', '/reset', ASKED, '/exit', 'never']
  out = run(monkeypatch, capsys, lines, json=True)
  first, refused, again = map(json.loads, out.splitlines())
  assert first['prompt'] == ASKED and first['finish'] == 'stop'
  assert first['tokens'] > 0 and first['answer']
  assert "no id for 'hello'" in refused['error']
  del first['seconds'], again['seconds']
  assert again == first


def test_pipes_get_plain_text(monkeypatch, capsys):
  lines = [ASKED, '/nonsense', 'hello', '/thought']
  out = run(monkeypatch, capsys, lines, max_tokens=5)
  assert '\x1b' not in out and '> ' not in out
  assert '[cut: no room for more]' in out
  assert '/reset forgets' in out and 'error: ' in out


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'temperature': -1}, 'temperature is -1; it must be at least 0'),
    ({'top_p': 0.0}, 'top_p is 0.0'),
    ({'seed': -1}, 'seed is -1'),
    ({'template': 'x'}, "template is 'x'; choose one of"),
    ({'context': 1}, 'context is 1; it must be at least 2'),
  ],
)
def test_refused_settings(changes, message):
  with pytest.raises(ValueError, match=message):
    chat.Config(checkpoint='none', **changes)
