"""What is kept of a model's completions, and that a kill changes nothing."""

import dataclasses
import json

import pytest
from helpers import letters

from rlzero import reject, sft
from rlzero.evaluation import contamination, measure, rejection
from rlzero.rollout import encoding
from rlzero.rollout.sampling import Sampling
from rlzero.runtime import metrics
from rlzero.scoring import grade
from rlzero.tasks import base, countdown
from rlzero.text import readability
from rlzero.text.template import Chat, Template
from rlzero.train import demonstrations, folders

pytestmark = pytest.mark.model

_TINY = folders.embedded('tiny_base')


def _config(workdir, **changes):
  settings = {
    'checkpoint': _TINY,
    'num_problems': 8,
    'num_samples': 6,
    'num_kept': 2,
    'sampling': Sampling(max_len=48, num_slots=24),
    'part_size': 4,
    'num_workers': 1,
    **changes,
  }
  return reject.Config(workdir=str(workdir), **settings)


def _files(folder):
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in folder.rglob('*')
    if p.is_file() and p.name not in ('config.gin', 'config.json')
  }


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp('reject')
  reject.run(_config(folder))
  return folder


def test_kept_are_right_and_say_where_they_come_from(finished):
  task = countdown.Countdown()
  examples = {e.uid: e for e in measure.examples(task, 'train', 8)}
  lines = metrics.read_lines(str(finished / 'samples.jsonl'))
  assert lines
  drawn = [
    record
    for part in sorted((finished / 'parts').iterdir())
    for record in metrics.read_lines(str(part))
  ]
  assert len(drawn) == 48
  by_place = {(r['draw'], r['sample']): r for r in drawn}
  for line in lines:
    example = examples[line['uid']]
    assert line['prompt'] == example.question
    assert task.verify(task.extract(line['completion']), example.target)
    assert line['scores']['accuracy'] == 1
    source = line['source']
    assert (
      source['checkpoint'] == 'tiny_base' and len(source['fingerprint']) == 8
    )
    record = by_place[source['draw'], source['sample']]
    assert record['completion'] == line['completion']
    assert list(examples)[source['draw']] == line['uid']
  uids = [line['uid'] for line in lines]
  assert max(map(uids.count, uids)) <= 2
  texts = [(line['prompt'], line['completion']) for line in lines]
  assert len(set(texts)) == len(texts)


def test_statistics_add_up(finished):
  s = json.loads((finished / 'statistics.json').read_text())
  done = s['completions']
  assert sum(s['not_kept'].values()) + done['kept'] == done['drawn'] == 48
  assert s['not_kept']['wrong'] > 0
  assert s['kept_means']['accuracy'] == 1
  assert s['problems']['drawn'] == 8
  page = (finished / 'statistics.md').read_text()
  assert f'| kept | {done["kept"]} |' in page


def test_a_kill_changes_no_byte(finished, tmp_path, monkeypatch):
  score = grade.score
  calls = []

  def killed(*args):
    calls.append(1)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return score(*args)

  monkeypatch.setattr(grade, 'score', killed)
  with pytest.raises(KeyboardInterrupt):
    reject.run(_config(tmp_path))
  assert len(list((tmp_path / 'parts').iterdir())) == 1
  monkeypatch.chdir(tmp_path.parent)  # as people write it, from where they are
  reject.run(_config(tmp_path.name))
  assert _files(tmp_path) == _files(finished)


def test_sft_reads_the_samples(finished):
  cfg = sft.Config(
    workdir='unused',
    checkpoint=_TINY,
    data=str(finished / 'samples.jsonl'),
    template=Template('short'),
    max_len=128,
  )
  tokenizer = folders.load_model(_TINY).tokenizer
  examples, _ = demonstrations.load(cfg, tokenizer)
  lines = metrics.read_lines(str(finished / 'samples.jsonl'))
  assert len(examples) == len(lines)
  assert (
    tokenizer.decode(examples[0].completion.tolist())
    == (lines[0]['completion'])
  )


def _record(**changes):
  return {
    'uid': 'a',
    'question': 'what is it',
    'completion': 'it is good',
    'accuracy': 1.0,
    'correct': True,
    'truncated': False,
    'words': {'en': 3, 'zh': 0, 'other': 0},
    **changes,
  }


@pytest.mark.parametrize(
  'template', [Template('chat'), Template('chat', system='d', suffix=' e')]
)
def test_a_conversation_is_learned_as_it_was_asked(template):
  words = letters(
    '{% for m in messages %}{{ m.content }} '
    "{% if m.role == 'system' %}f {% endif %}{% endfor %}k"
  )
  question = Chat(
    [{'role': 'system', 'content': 'a'}, {'role': 'user', 'content': 'b'}]
  )
  scores = dict.fromkeys(('format', 'language', 'len', 'tries', 'draw'), 1)
  record = _record(
    question=question, completion='c', reflections=0, sample=0, task='t'
  )
  record |= scores | rejection.conversation(template, question)
  line = json.loads(rejection.to_json(rejection.line(record, {})))
  example = demonstrations.encode(words, template, ('here', line))
  asked = encoding.encode_prompt(words, template, question)
  assert example.ids.tolist() == [*asked, 4, 1]
  # Other templates know no roles, and ask the text.
  assert not rejection.conversation(Template('plain'), question)
  assert not rejection.conversation(template, 'b')


@pytest.mark.parametrize(
  ('changes', 'reason'),
  [
    ({}, None),
    ({'accuracy': 0.0}, 'wrong'),
    ({'accuracy': 0.5, 'correct': False}, 'wrong'),
    ({'accuracy': -1.0}, 'wrong'),
    ({'truncated': True}, 'truncated'),
    ({'words': {'en': 1, 'zh': 1, 'other': 0}}, 'language'),
    ({'words': {'en': 0, 'zh': 0, 'other': 0}}, None),
    ({'completion': 'a b c d e f'}, 'paragraph'),
    ({'completion': 'what is 7 times 6'}, 'contaminated'),
    ({'uid': 'b', 'completion': 'it  is\ngood'}, 'duplicate'),
    ({'completion': 'so it is'}, 'over_quota'),
    ({'uid': 'b', 'completion': 'so it is'}, None),
  ],
)
def test_reasons(tmp_path, changes, reason):
  cfg = _config(
    tmp_path, num_kept=1, limits=readability.Limits(max_paragraph=5)
  )
  evaluation = [countdown.base.Example('e', 'What is 7 times 6?', '42')]
  index = contamination.Index(evaluation, 5)
  first = [] if reason is None and 'uid' not in changes else [_record()]
  kept, reasons = rejection.choose(cfg, [*first, _record(**changes)], index)
  assert len(kept) == len(first) + (reason is None)
  assert reasons == dict.fromkeys(rejection.REASONS, 0) | (
    {reason: 1} if reason else {}
  )


def test_problems_of_evaluation_sets_are_not_drawn(tmp_path):
  # 'test' problems against themselves: nothing is left.
  task = countdown.Countdown()
  cfg = _config(
    tmp_path, split='test', num_problems=2, decontaminate_with=(task,)
  )
  with pytest.raises(ValueError, match='All 2 problems'):
    reject.run(cfg)


@dataclasses.dataclass(frozen=True)
class _SomeLong(base.Wrapper):
  """Four problems, of which `long` have 40 words more."""

  task: base.Task = countdown.Countdown()
  long: int = 1

  def examples(self, split):
    return [
      dataclasses.replace(e, question='9 ' * 40 * (i < self.long) + e.question)
      for i, e in enumerate(list(self.task.examples(split))[:4])
    ]


def test_a_prompt_above_the_limit_is_left_out(tmp_path, capsys):
  short = Sampling(max_len=48, max_prompt_len=16, num_slots=24)
  cfg = _config(tmp_path, task=_SomeLong(), sampling=short)
  chosen = rejection.leave_out_long(cfg, cfg.task.examples('train'))
  assert len(chosen) == 3
  assert '1 of 4 problems are too long' in capsys.readouterr().out
  with pytest.raises(ValueError, match='4 of 4 problems are too long'):
    reject.run(_config(tmp_path, task=_SomeLong(long=4), sampling=short))
  assert not list(tmp_path.iterdir())


def test_nothing_to_keep(finished, tmp_path):
  drawn = [
    r
    for p in (finished / 'parts').iterdir()
    for r in metrics.read_lines(str(p))
  ]
  cfg = _config(tmp_path, limits=readability.Limits(max_paragraph=0))
  kept, reasons = rejection.choose(cfg, drawn, contamination.Index([]))
  assert not kept and reasons['paragraph'] > 0


def test_bad_settings(tmp_path):
  with pytest.raises(ValueError, match=r'reject\.Config\.num_kept is 0'):
    _config(tmp_path, num_kept=0)
