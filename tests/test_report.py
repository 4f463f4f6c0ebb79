import html.parser
import json
import os
import pathlib
import re

import matplotlib.image
import numpy as np
import pytest

from rlzero import report
from rlzero.reporting import charts, recorded, samples, web_page
from rlzero.runtime import config


def evaluation(step, score, length, **changes):
  return {
    'step': step,
    'split': 'test',
    'num_problems': 200,
    'num_samples': 16,
    'temperature': 1.0,
    'top_p': 1.0,
    'max_len': 192,
    'pass@1': score,
    'pass@1_interval': [score - 0.03, score + 0.03],
    'pass@k': {'1': score, '4': score + 0.05, '16': score + 0.08},
    'cons@k': {'16': score + 0.02},
    'strict': score - 0.01,
    'format': 0.4 if step == 0 else 0.98,
    'truncated': 0.02,
    'completion_len': length,
    'completion_len_correct': length - 5,
    'completion_len_wrong': length + 9,
    'tries': length / 20,
    'reflection_per_1k': length / 2,
    'accuracy_by_len': [[48, score / 2], [96, score * 0.9], [192, score]],
    'seed': 0,
    **changes,
  }


def generation(uid, correct, completion, **changes):
  return {
    'uid': uid,
    'question': f'Question {uid} <b>?',
    'completion': completion,
    'answer': '1+2',
    'correct': correct,
    'strict': correct,
    'format': True,
    'truncated': False,
    'len': len(completion.split()),
    'tries': 2,
    'reflections': completion.count('wait'),
    **changes,
  }


BEFORE = [
  generation('a', False, '<think> 2+2=4 </think> <answer> OLD-A </answer>'),
  generation('a', False, '<think> give up </think>'),
  generation('b', True, '<think> 1+2=3 ok </think> <answer> OLD-B </answer>'),
]
AFTER = [
  generation('a', True, '<think> 2+2 wait 1+2 ok </think> NEW-A'),
  generation('a', True, '<think> 2+2 wait 3+1 wait 1+2 ok </think> LONGEST'),
  generation('b', False, '<think> cut ' + 9 * 'no ', truncated=True),
  generation('b', False, '<think> no, no </think> HONEST'),
]


def row(step, num_steps):
  part, noise = step / num_steps, np.random.default_rng(step).normal()
  result = {
    'step': step,
    'reward/correct': 0.2 + 0.7 * part + 0.02 * noise,
    'reward/format': 0.4 + 0.58 * min(1, 5 * part),
    'completion/len_mean': 30 + 50 * part + 0.4 * noise,
    'completion/len_correct': 28 + 45 * part + noise,
    'completion/len_wrong': 34 + 70 * part + 2 * noise,
    'completion/truncated': 0.04 * part,
    'completion/tries': 1.5 + 4 * part + 0.1 * noise,
    'completion/reflection_per_1k': 8 + 30 * part + noise,
    'policy/entropy': 0.9 - 0.5 * part,
    'policy/kl': 0.01 + 0.03 * part,
    'policy/sampler_learner_max': 3e-6 + 1e-6 * abs(noise),
    'policy/sampler_learner_mean': 2e-7,
    'groups/zero_variance': 0.1 + 0.3 * part,
    'time/rollout_s': 2.0,
    'time/score_s': 0.3,
    'time/update_s': 4.0,
    'time/step_s': 6.5,
  }
  if step % 10 == 0:
    result['eval/pass@1'] = 0.2 + 0.68 * part
    result['eval/cons@16'] = 0.25 + 0.7 * part
  return result


def write_lines(folder, name, rows):
  folder.mkdir(parents=True, exist_ok=True)
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (folder / name).write_text(text, encoding='utf-8')


def make_run(folder, num_steps=60, seed=0, after=True):
  steps = range(num_steps)
  write_lines(folder, 'metrics.jsonl', [row(s, num_steps) for s in steps])
  evaluations = folder / 'evaluations'
  for name, rows, numbers in (
    ('before', BEFORE, evaluation(0, 0.2, 30.0)),
    ('after', AFTER, evaluation(num_steps, 0.9 + seed / 100, 80.0)),
  ):
    if name == 'before' or after:
      write_lines(evaluations, f'{name}.jsonl', rows)
      write_lines(evaluations, f'{name}.json', [numbers])
  write_lines(
    folder / 'completions',
    'step_000020.jsonl',
    [
      {'step': 20, 'question': 'Q', 'completion': 'none', 'len': 1},
      {'step': 20, 'question': 'Q', 'completion': 'FIRST wait', 'len': 2},
    ],
  )
  write_lines(folder, 'config.json', [{'num_steps': num_steps}])
  info = {'wall_s': 512.5, 'seed': seed, 'stage': 'grpo', 'hardware': 'a <CPU>'}
  write_lines(folder, 'run.json', [info])
  return str(folder)


class Tags(html.parser.HTMLParser):
  """Finds tags that are not closed, and what they refer to."""

  def __init__(self, page):
    super().__init__()
    self.open, self.links = [], []
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self.links += [v for k, v in attrs if k in ('src', 'href', 'xlink:href')]
    if tag not in ('meta', 'li', 'td', 'tr'):
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.links += [v for k, v in attrs if k in ('src', 'href', 'xlink:href')]

  def handle_endtag(self, tag):
    if tag not in ('li', 'td', 'tr'):
      assert self.open.pop() == tag


def read(workdir, name='report.html'):
  with open(os.path.join(workdir, name), encoding='utf-8') as file:
    return file.read()


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  workdir = make_run(tmp_path_factory.mktemp('run'))
  return workdir, web_page.write(workdir)


@pytest.mark.long
def test_summary_has_exactly_the_numbers_of_the_evaluations(whole):
  workdir, summary = whole
  assert json.loads(read(workdir, 'summary.json')) == summary
  pairs = {
    'pass@1': (0.2, 0.9),
    'strict': (0.19, 0.89),
    'completion_len': (30, 80),
    'tries': (1.5, 4),
    'reflection_per_1k': (15, 40),
    'format': (0.4, 0.98),
    'pass@16': (0.28, 0.98),
    'cons@16': (0.22, 0.92),
    'truncated': (0.02, 0.02),
  }
  expected = {'wall_s': 512.5, 'seed': 0, 'length_rising_segments': 6}
  for name, (before, after) in pairs.items():
    expected |= {f'{name}_before': before, f'{name}_after': after}
  assert summary == pytest.approx(expected)


def test_page_is_well_formed_and_refers_to_nothing_outside(whole):
  page = read(whole[0])
  tags = Tags(page)
  assert tags.open == []
  assert tags.links and all(link.startswith('#') for link in tags.links)
  assert 'http' not in page and 'url(' not in page.replace('url(#', '')
  assert 'a &lt;CPU&gt;' in page
  assert 'pass@1 rose from 0.20 to 0.90' in page


def test_page_has_every_figure_and_the_paper_s_own(whole):
  page = read(whole[0])
  assert page.count('<svg') == 11
  figures = re.findall('<figure><h3>(.*?)</h3>(.*?)</figure>', page, re.DOTALL)
  text = dict(figures)['Accuracy over training']
  assert all(label in text for label in ('pass@1', 'cons@16', 'Figure 2'))
  assert 'Figure 3' in dict(figures)['Mean completion length, tokens']


def test_the_telling_completions_are_chosen_and_escaped(whole):
  page = read(whole[0])
  samples = page[page.index('In its own words') :]
  # Question a went from 0 of 2 to 2 of 2; b the other way.
  assert '&lt;answer&gt; OLD-A' in samples and 'OLD-B' not in samples
  assert 'LONGEST' in samples
  assert 'HONEST' in samples and 'cut no' not in samples
  assert 'FIRST <mark>wait</mark>' in samples and 'step 20' in samples
  assert 'Question a &lt;b&gt;?' in samples


def test_no_field_of_a_record_is_markup(tmp_path):
  path = tmp_path / 'completions' / 'step_000001.jsonl'
  path.parent.mkdir()
  hostile = '<script>alert(1)</script>'
  row = generation(hostile, True, f'wait {hostile}', tries=hostile)
  path.write_text(json.dumps({**row, 'step': hostile}))
  loaded = recorded.Run(str(tmp_path), [], {}, {}, {}, {}, {})
  page = samples.html(loaded)
  assert page.count('alert') == 4 and '<script>' not in page


@pytest.mark.long
def test_in_the_middle_of_a_run(tmp_path):
  workdir = make_run(tmp_path, num_steps=30, after=False)
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 30, "rewa')
  with open(tmp_path / 'completions' / 'step_000020.jsonl', 'a') as file:
    file.write('{"step": 20, "comp')
  summary = web_page.write(workdir)
  assert summary['pass@1_before'] == 0.2
  assert all(v is None for k, v in summary.items() if k.endswith('_after'))
  page = read(workdir)
  assert 'As of step 29' in page and 'no final evaluation;' in page
  assert page.count('<svg') == 11


def test_with_nothing_but_a_first_evaluation(tmp_path):
  write_lines(
    tmp_path / 'evaluations', 'before.json', [evaluation(0, 0.2, 30.0)]
  )
  summary = web_page.write(str(tmp_path))
  assert summary['wall_s'] is summary['seed'] is None
  assert summary['length_rising_segments'] is None
  assert 'too few steps' in read(tmp_path)


def test_counts_the_rising_segments(tmp_path):
  # Up in the first, third and sixth of six; twos and nulls between.
  lengths = [1, 2, 5, 4, 6, 7, 9, 8, 8, 8, 3, 4]
  rows = [
    {'step': 2 * i, 'completion/len_mean': value}
    for i, value in enumerate(lengths)
  ]
  rows += [{'step': 24, 'completion/len_mean': None}]
  write_lines(tmp_path, 'metrics.jsonl', rows)
  assert web_page.write(str(tmp_path))['length_rising_segments'] == 3


def test_no_alert_on_a_healthy_run_of_before_there_were_any(whole):
  assert 'What needs a look' not in read(whole[0])


def test_compares_seeds(tmp_path, capsys):
  runs = [make_run(tmp_path / f'run{s}', 20, seed=s) for s in (0, 2)]
  flags = [f'--workdir={tmp_path / "out"}', f'--compare={",".join(runs)}']
  config.main(report, flags)
  assert 'curves.png' in capsys.readouterr().out
  table = json.loads(read(tmp_path / 'out', 'table.json'))
  assert table['seed'] == [0, 2]
  # 0.90 and 0.92: mean 0.91, deviation 0.02 / sqrt(2).
  assert table['pass@1_after'] == {
    'mean': pytest.approx(0.91),
    'std': pytest.approx(0.0141421, abs=1e-6),
    'values': pytest.approx([0.9, 0.92]),
  }
  picture = matplotlib.image.imread(tmp_path / 'out' / 'curves.png')
  assert picture.shape[0] > 400 and picture[..., :3].std() > 0.01


@pytest.mark.long
def test_prints_the_summary_as_json(tmp_path, capsys):
  workdir = make_run(tmp_path, 20)
  config.main(report, [f'--workdir={workdir}', '--json'])
  printed = json.loads(capsys.readouterr().out)
  assert printed == json.loads(read(workdir, 'summary.json'))


@pytest.mark.parametrize(
  'name, text, sentence',
  [
    (None, '', 'does not exist; give the folder of a run'),
    ('notes.txt', '', 'holds neither metrics.jsonl nor evaluations/'),
    ('metrics.jsonl', '{"st\n{"step": 1}\n', 'metrics.jsonl:1 is not JSON'),
    ('evaluations/before.json', '{"step"', 'is not a JSON object'),
    ('evaluations/before.json', '[1]', 'is not a JSON object'),
    ('evaluations/after.jsonl', '{\n{}\n', 'after.jsonl:1 is not JSON'),
  ],
)
def test_bad_workdir_gives_one_sentence(tmp_path, capsys, name, text, sentence):
  workdir = tmp_path / 'run'
  if name and 'after' in name:
    make_run(workdir, 20)
  if name:
    (workdir / name).parent.mkdir(parents=True, exist_ok=True)
    (workdir / name).write_text(text)
  with pytest.raises(SystemExit) as stopped:
    config.main(report, [f'--workdir={workdir}'])
  assert stopped.value.code == 2
  told = capsys.readouterr().err
  assert sentence in told and told.count('\n') == 1


def test_numbers_that_are_missing_or_not_finite(tmp_path):
  """One problem has no interval; on one forward the difference may be 0."""
  nan = evaluation(0, 0.2, 30.0, tries=float('nan'))
  nan['pass@1_interval'] = [float('nan'), None]
  del nan['split'], nan['pass@k'], nan['completion_len_wrong']
  write_lines(tmp_path / 'evaluations', 'before.json', [nan])
  names = 'policy/sampler_learner_max', 'policy/sampler_learner_mean'
  zeros = [{'step': i} | dict.fromkeys(names, 0.0) for i in range(30)]
  write_lines(tmp_path, 'metrics.jsonl', zeros)
  summary = web_page.write(str(tmp_path))
  assert summary['tries_before'] is summary['pass@16_before'] is None
  page = read(tmp_path)
  assert '|sampler − learner|' in page and 'nan' not in page.lower()


def test_the_guide_explains_each_part_and_figure():
  root = pathlib.Path(__file__).parent.parent
  guide = (root / 'docs' / 'howto' / 'read_a_report.md').read_text()
  first_cells = re.findall(r'^\| (.+?) (?<!\\)\|', guide, re.MULTILINE)
  told = {cell.replace('\\|', '|') for cell in first_cells}
  code = (root / 'rlzero' / 'reporting' / 'web_page.py').read_text()
  parts = re.findall(r"_box\(\s*'(.+?)'|<h2>(\w.+?)</h2>", code)
  wanted = {''.join(found) for found in parts} | {
    chart.title for chart in (*charts.CHARTS, *charts.LIVE_CHARTS)
  }
  assert len(wanted) >= 20 and wanted <= told, wanted - told
