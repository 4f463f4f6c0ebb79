"""The page of a model on the hub: what it says, and what it keeps to itself."""

import json

import pytest

from rlzero.reporting import model_card

_HOSTILE = (
  'x | y <script>alert(1)</script>\n# title `code` [a](http://b) \u202e'
)


@pytest.fixture
def run(tmp_path):
  """A run as one leaves it, in a folder that nobody else is to know of."""
  folder = tmp_path / 'secret_home' / 'run'
  (folder / 'evaluations').mkdir(parents=True)

  def write(name, value):
    (folder / name).write_text(json.dumps(value))

  about = {
    'num_problems': 233,
    'num_samples': 8,
    'temperature': 1.0,
    'top_p': 1.0,
    'max_len': 144,
    'split': 'test',
  }
  for name, right in (('before', 0.16), ('after', 0.84)):
    scores = {
      'pass@1': right,
      'pass@1_interval': [right - 0.02, right + 0.03],
      'completion_len': 70.4,
    }
    write(f'evaluations/{name}.json', {**about, **scores})
  rows = [
    {'correct': False, 'question': 'q', 'completion': 'wrong'},
    {
      'correct': True,
      'question': '1 2 make 3',
      'completion': f'```\n</details>{_HOSTILE}\n````\nend',
    },
  ]
  (folder / 'evaluations' / 'after.jsonl').write_text(
    ''.join(json.dumps(row) + '\n' for row in rows)
  )
  write(
    'run.json',
    {
      'stage': 'grpo',
      'wall_s': 530.2,
      'seed': 3,
      'hardware': '1 x cpu',
      'version': '0.2.0',
      'commit': 'c' * 40,
    },
  )
  write(
    'config.json',
    {
      'checkpoint': 'hf://org/base@main',
      'task': {
        'name': _HOSTILE,
        'data_dir': str(folder),
        'path': str(folder / 'train.jsonl'),
        'terms': 3,
      },
      'objective': {'kl_coef': 0.0, 'clip_high': 0.28},
      'optimizer': {'learning_rate': 6e-5},
      'num_prompts': 24,
      'group_size': 16,
    },
  )
  (folder / 'config.gin').write_text(
    f"rlzero.grpo.Config.workdir = '{folder}'\n"
    'rlzero.grpo.Config.num_prompts = 24\n'
  )
  (folder / 'metrics.jsonl').write_text('{"step": 0}\n{"step": 79}\n')
  return folder


def card(source, kind='folder', name='me/tiny'):
  return model_card.text(
    model_card.Model(name, 'qwen2', 494_032_768, kind, 'float32', str(source))
  )


def test_what_a_card_says_of_a_run(run):
  text = card(run)
  _, yaml, body = text.split('---\n', 2)
  fields = dict(line.split(': ', 1) for line in yaml.splitlines())
  assert {k: json.loads(v) for k, v in fields.items()} == {
    'library_name': 'transformers',
    'pipeline_tag': 'text-generation',
    'tags': ['rlzero', 'grpo'],
    'base_model': 'org/base',
  }
  for part in (
    '# tiny\n',
    '494,032,768 parameters',
    '233 held-out problems of split test, 8 samples each',
    '| right answers (pass@1) | 0.160 [0.140, 0.190] | 0.840 [0.820, 0.870] |',
    '| mean length in tokens | 70 | 70 |',
    '| prompts and completions a step | 24 x 16 |',
    '| steps | 80 |',
    '| seed | 3 |',
    '| seconds | 530 |',
    'c' * 40,
    'rlzero.grpo.Config.num_prompts = 24',
    'python -m rlzero.grpo --gin_file=config.gin --workdir=DIR',
    'AutoModelForCausalLM.from_pretrained(name)',
  ):
    assert part in body, part
  assert r'terms = 3, kl\_coef' not in body
  assert r'kl\_coef = 0\.0, clip\_high = 0\.28' in body
  assert 'wrong' not in body and 'end' in body


def test_a_card_tells_nothing_of_folders(run):
  assert 'secret_home' not in card(run)
  assert r'path = train\.jsonl' in card(run)


def test_text_from_outside_is_no_markup(run):
  text = card(run)
  assert '\u202e' not in text
  (row,) = (line for line in text.splitlines() if line.startswith('| data |'))
  assert row.count(' | ') == 1 and r'\<script\>' in row and r'x \| y' in row
  # Four backticks in it, so five around it.
  _, said, _ = text.split('`````', 2)
  assert said.startswith('text\n```\n</details>x | y <script>')
  assert '\n# title' not in text.replace(said, '')


@pytest.mark.parametrize(
  'source, said',
  [
    ('hf://org/name@main', r'from org\/name'),
    ('/secret_home/m.gguf', r'from a local folder \(m\.gguf\)'),
  ],
)
def test_a_card_of_what_is_no_run(source, said):
  text = card(source, 'gguf')
  assert f'Converted with rlzero {said}' in text.replace('\n', ' ')
  assert 'secret_home' not in text and '## Training' not in text
  assert 'library_name: "gguf"' in text and 'llama.cpp' in text


def test_a_run_that_measured_nothing(run):
  for file in (run / 'evaluations').iterdir():
    file.unlink()
  (run / 'run.json').write_text('{}')
  text = card(run)
  assert 'Nothing was measured.' in text and '## A completion' not in text
  assert 'A commit was not recorded.' in text
  (run / 'run.json').write_text('[')
  with pytest.raises(ValueError, match='run.json is not a JSON object'):
    card(run)
