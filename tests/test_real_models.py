"""Qwen2.5-Coder, of the family that the paper distils into, end to end.

Each stage is a process of its own, so that its memory is its own too. Token by
token, tests/test_parity.py compares the 0.5B with transformers.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import warnings

import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers import CHATS, TEXTS, random_texts
from tokenizers import normalizers

from rlzero import weights
from rlzero.weights import mapping, peft

pytestmark = pytest.mark.parity

_DATA = pathlib.Path(__file__).parents[1] / 'data'
_MOST_BYTES = 9 * 2**30


@pytest.fixture(scope='module')
def coder():
  return _folder('0p5b')


def _folder(size):
  folder = _DATA / f'qwen2p5_coder_{size}'
  if not list(folder.glob('*.gguf')):
    pytest.skip(f'no {folder}; run bash launch/get_qwen2p5_coder.sh {size}')
  return folder


def _stage(name, *flags):
  """Runs `python -m rlzero.NAME` and returns what it prints."""
  with tempfile.TemporaryFile('w+') as out, tempfile.TemporaryFile('w+') as err:
    process = subprocess.Popen(
      [sys.executable, '-m', f'rlzero.{name}', *map(str, flags)],
      stdout=out,
      stderr=err,
    )
    # The memory of this process: RUSAGE_CHILDREN has that of earlier tests too.
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    out.seek(0), err.seek(0)
    assert process.returncode == 0, err.read()[-3000:]
    assert used.ru_maxrss * 1024 < _MOST_BYTES, name
    return out.read()


@pytest.mark.parametrize(
  'size, dtype', [('0p5b', 'float32'), ('1p5b', 'bfloat16')]
)
def test_an_import_holds_the_parameters_and_a_tensor(size, dtype):
  found = json.loads(
    _stage(
      'benchmarks.import_weights',
      f'--checkpoint={_folder(size)}',
      f'--dtype={dtype}',
    )
  )
  print(found)
  assert found['beside_parameters_mb'] < found['largest_tensor_mb']


@pytest.mark.parametrize('size', ['1p5b'])
def test_token_ids_and_chats_are_equal(size):
  folder = _folder(size)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    transformers = pytest.importorskip('transformers')
    theirs = transformers.AutoTokenizer.from_pretrained(
      folder, gguf_file=next(folder.glob('*.gguf')).name
    )
  # Of the published tokenizer.json; the reader of GGUF files leaves it out.
  theirs.backend_tokenizer.normalizer = normalizers.NFC()
  ours = weights.open_model(folder).tokenizer
  for text in (*TEXTS, *random_texts()):
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
  for messages in CHATS:
    assert ours.apply_chat_template(messages) == theirs.apply_chat_template(
      messages, tokenize=False, add_generation_prompt=True
    )


def test_export_to_a_folder_and_back(coder, tmp_path):
  said = _stage(
    'convert',
    f'--checkpoint={coder}',
    f'--output={tmp_path / "out"}',
    '--shard_gb=1',
    '--compare_logprobs=False',
  )
  assert 'weights equal after rounding to float32' in said
  before, after = (weights.open_model(p) for p in (coder, tmp_path / 'out'))
  assert after.config == before.config
  for text in (*TEXTS, *random_texts()):
    assert after.tokenizer.encode(text) == before.tokenizer.encode(text)
  assert after.tokenizer.eos_ids == before.tokenizer.eos_ids
  assert after.tokenizer.chat_template == before.tokenizer.chat_template


def test_export_to_a_file_and_back(coder, tmp_path):
  file = tmp_path / 'out.gguf'
  said = _stage(
    'convert',
    f'--checkpoint={coder}',
    '--kind=gguf',
    '--dtype=q8_0',
    f'--output={file}',
    '--compare_logprobs=False',
  )
  assert 'weights equal after rounding to q8_0' in said
  assert 600e6 < file.stat().st_size < 700e6
  before, after = (weights.open_model(p) for p in (coder, file))
  assert after.config == before.config
  for text in (*TEXTS, *random_texts()):
    assert after.tokenizer.encode(text) == before.tokenizer.encode(text)


_SETTINGS = """
from __gin__ import dynamic_registration

from rlzero import grpo
from rlzero.models import lora
from rlzero.rl import objective
from rlzero.rollout import sampling
from rlzero.tasks import table
from rlzero.tasks import verifiers
from rlzero.text import template
from rlzero.train import optim

grpo.Config.task = @table.Table()
table.Table.path = '{folder}/questions.jsonl'
table.Table.validation_path = '{folder}/questions.jsonl'
table.Table.test_path = '{folder}/questions.jsonl'
table.Table.target = ''
table.Table.verifier = @verifiers.Function()
verifiers.Function.function = '{folder}/score.py:score'
grpo.Config.template = @template.Template()
template.Template.kind = 'chat'
grpo.Config.adapter = @lora.Adapter()
lora.Adapter.rank = 8
grpo.Config.format_reward = 0.0
grpo.Config.dtype = 'bfloat16'
grpo.Config.num_prompts = 2
grpo.Config.group_size = 4
grpo.Config.steps_per_rollout = 1
grpo.Config.num_steps = 1
grpo.Config.save_every = 1
grpo.Config.eval_every = 0
grpo.Config.final_problems = 1
grpo.Config.final_samples = 1
grpo.Config.micro_tokens = 256
grpo.Config.num_workers = 1
sampling.Sampling.max_len = 12
sampling.Sampling.max_prompt_len = 64
sampling.Sampling.num_slots = 8
objective.Objective.kl_coef = 0.0
optim.Optimizer.learning_rate = 1e-4
"""
# Completions differ, so their rewards do.
_SCORE = """
def score(completion):
  return sum(map(ord, completion)) % 10 / 10
"""


def test_a_step_of_grpo(coder, tmp_path):
  questions = ['Name a colour.', 'Name an animal.']
  (tmp_path / 'questions.jsonl').write_text(
    ''.join(json.dumps({'question': q}) + '\n' for q in questions)
  )
  (tmp_path / 'score.py').write_text(_SCORE)
  (tmp_path / 'run.gin').write_text(_SETTINGS.format(folder=tmp_path))
  run = tmp_path / 'run'
  _stage(
    'grpo',
    f'--gin_file={tmp_path / "run.gin"}',
    f'--checkpoint={coder}',
    f'--workdir={run}',
  )
  rows = [
    json.loads(row) for row in (run / 'metrics.jsonl').read_text().splitlines()
  ]
  (norm,) = (
    row['policy/grad_norm'] for row in rows if 'policy/grad_norm' in row
  )
  assert 0 < norm < 1e3
  # B began as zeros, so what it is now the step has made.
  config = weights.open_model(coder).config
  _, leaves = peft.open_folder(run / 'adapter', config)
  sizes = [
    np.abs(x).max() for x in jax.tree.leaves(mapping.place(leaves, 'float32'))
  ]
  assert np.isfinite(sizes).all() and min(sizes) > 0
  names = safetensors.numpy.load_file(
    run / 'adapter' / 'adapter_model.safetensors'
  )
  assert len(names) == 2 * 7 * config.num_layers
