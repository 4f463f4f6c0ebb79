"""Figures of an evaluation against the generations they come from."""

import json

import numpy as np
import pytest

from rlzero import checkpoint, evaluate
from rlzero.rollout import scheduler
from rlzero.tasks import countdown, sandbox
from rlzero.tasks.template import Template

_TINY = checkpoint.embedded('tiny_base')


def _config(**changes):
  settings = {
    'checkpoint': _TINY,
    'num_problems': 3,
    'num_samples': 4,
    'sampling': scheduler.Sampling(
      max_len=48, num_slots=12, temperature=0.6, top_p=0.95
    ),
    'num_workers': 1,
    **changes,
  }
  return evaluate.Config(**settings)


def test_figures_follow_from_the_generations(tmp_path, capsys):
  evaluate.run(_config(workdir=str(tmp_path), json=True))
  printed = json.loads(capsys.readouterr().out)
  written = json.loads((tmp_path / 'evaluations/evaluation.json').read_text())
  assert printed == written
  lines = (tmp_path / 'evaluations/evaluation.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert len(records) == 12
  correct = np.array([r['correct'] for r in records])
  assert printed['pass@1'] == pytest.approx(correct.mean())
  assert printed['pass@k']['4'] == pytest.approx(
    correct.reshape(3, 4).any(axis=1).mean()
  )
  lengths = np.array([r['len'] for r in records])
  assert printed['completion_len'] == pytest.approx(lengths.mean())
  assert printed['truncated'] == pytest.approx((lengths >= 48).mean(), abs=0.1)
  assert printed['accuracy_by_len'][-1] == [48, pytest.approx(correct.mean())]
  # Each verdict again, by the task itself.
  task = countdown.Countdown()
  targets = {e.uid: e.target for e in task.examples('test')}
  for record in records:
    answer = task.extract(record['completion'])
    right = answer is not None and task.verify(answer, targets[record['uid']])
    assert right == record['correct']
    assert record['strict'] <= record['correct']


def test_progress_is_a_line_at_every_tenth(capsys):
  show = evaluate.progress('evaluate before')
  for done in range(1, 51):
    show(done, 50)
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 10
  assert lines[4].startswith('evaluate before 25/50 completions  0m00s left')


def test_same_seed_same_generations(tmp_path):
  for name, seed in (('a', 0), ('b', 0), ('c', 1)):
    evaluate.run(_config(workdir=str(tmp_path / name), seed=seed, json=True))
  a, b, c = (
    (tmp_path / name / 'evaluations/evaluation.jsonl').read_text()
    for name in 'abc'
  )
  assert a == b != c


def test_examples_are_a_fixed_sample_of_the_split():
  task = countdown.Countdown()
  few = evaluate.examples(task, 'test', 5)
  everything = evaluate.examples(task, 'test')
  assert few == everything[:5]
  assert {e.uid for e in everything} == {e.uid for e in task.examples('test')}
  assert [e.uid for e in few] != [e.uid for e in task.examples('test')[:5]]


def test_score_grades_lenient_and_strict_apart():
  loaded = checkpoint.load_model(_TINY)
  example = countdown.Countdown().examples('test')[0]
  task = countdown.Countdown()
  numbers, _, target = example.question.partition(' make ')
  first, second, third = numbers.split()
  right = next(
    text
    for a, b, c in (
      (first, second, third),
      (first, third, second),
      (second, third, first),
    )
    for x in '+-*'
    for y in '+-*'
    for text in (f'( {a} {x} {b} ) {y} {c}', f'{c} {y} ( {a} {x} {b} )')
    if task.verify(text, example.target)
  )
  texts = (
    f'<think> {numbers} ok </think> <answer> {right} </answer>',
    f'<answer> {right} </answer>',
    f'<think> no </think> <answer> {numbers.split()[0]} </answer>',
  )
  completions = [
    scheduler.Completion(
      np.array([*loaded.tokenizer.encode(text), 1]),
      np.zeros(1),
      scheduler.Finish.EOS,
    )
    for text in texts
  ]
  with sandbox.RewardPool({task.name: task}, 'short', 1) as pool:
    got = evaluate.score(pool, task, loaded.tokenizer, [example], completions)
  facts = [(g['correct'], g['strict'], g['format']) for g in got]
  assert facts == [(True, True, 1.0), (True, False, 0.0), (False, False, 1.0)]


def test_split_without_problems():
  with pytest.raises(ValueError, match="'train' split of task 'none' has no"):
    evaluate.examples(countdown.Countdown(max_ways=0, name='none'), 'train')


def test_template_of_a_chat_model_on_one_without():
  cfg = _config(template=Template('chat'))
  with pytest.raises(ValueError, match='no chat template'):
    evaluate.run(cfg)


def test_num_samples_out_of_range():
  with pytest.raises(ValueError, match='num_samples is 0'):
    _config(num_samples=0)
