"""Reward functions in TRL's form give the same numbers here and under TRL.

Needs torch and trl; the model is a tiny one of random weights.
"""

import importlib.util
import json
import math
import warnings

import pytest

from rlzero.scoring import reward_pool, rewards
from rlzero.tasks import table, verifiers

pytestmark = pytest.mark.parity

# As a user of TRL has them; two are TRL's own, one is for conversations only.
SOURCE = r"""
import asyncio
import re

from trl.rewards import accuracy_reward, get_soft_overlong_punishment

too_long = get_soft_overlong_punishment(
  max_completion_len=6, soft_punish_cache=4)

def text_of(completion):
  return completion if isinstance(completion, str) else completion[0]['content']

def boxed(completions, solution, **kwargs):
  found = [re.search(r'\\boxed\{(.*?)\}', text_of(c)) for c in completions]
  stated = [match.group(1) if match else '' for match in found]
  return [float(f'${s}$' == x) for s, x in zip(stated, solution)]

def tagged(completions, **kwargs):
  shape = r'^<think>.*?</think>\s*<answer>.*?</answer>$'
  return [1.0 if re.match(shape, text_of(c), re.DOTALL) else -0.5
          for c in completions]

def sums_alone(prompts, completions, kind, **kwargs):
  return [len(text_of(c)) / 10 if k == 'sum' else None
          for c, k in zip(completions, kind)]

async def polite(completions, log_metric, log_extra, **kwargs):
  await asyncio.sleep(0.001)
  log_metric('polite', 0.5)
  log_extra('solution', kwargs['solution'])
  return ['please' in text_of(c) for c in completions]

def asked(prompts, completion_ids, level=3, trainer_state=None, **kwargs):
  told = [p if isinstance(p, str) else p[-1]['content'] for p in prompts]
  return [len(t) / 7 + len(ids) + x
          for t, ids, x in zip(told, completion_ids, level)]
"""
_WEIGHTS = {
  **{'boxed': 1.0, 'tagged': 0.5, 'sums_alone': -0.25, 'polite': 2.0},
  **{'asked': 0.01, 'too_long': 0.3},
}
_QUESTIONS = (('1 + 2?', '$3$', 'sum', 1), ('2 * 2?', '$4$', 'product', 2))
_COMPLETIONS = (
  ('<think> a </think> <answer>\\boxed{3}</answer>', '\\boxed{4}', 'please'),
  ('<think>\n</think>\n<answer>\\boxed{4}</answer>', '', '$4$ or \\boxed{x}'),
)
_LENGTHS = ((2, 4, 9), (3, 1, 6))  # tokens


def _rows(form):
  return [
    {
      'prompt': [{'role': 'user', 'content': question}]
      if form == 'messages'
      else question,
      'solution': solution,
      'kind': kind,
      'level': level,
    }
    for question, solution, kind, level in _QUESTIONS
  ]


def _under_trl(folder, path, rows, weights, form):
  """Rewards by function, [B, F] as lists, and their weighted sums, [B]."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    torch = pytest.importorskip('torch')
    trl = pytest.importorskip('trl')
    transformers = pytest.importorskip('transformers')
    datasets = pytest.importorskip('datasets')
    tokenizers = pytest.importorskip('tokenizers')
    spec = importlib.util.spec_from_file_location('of_a_user', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    words = tokenizers.models.WordLevel({'<pad>': 0, '<end>': 1, 'a': 2}, 'a')
    tokenizer = transformers.PreTrainedTokenizerFast(
      tokenizer_object=tokenizers.Tokenizer(words),
      pad_token='<pad>',
      eos_token='<end>',
    )
    tokenizer.chat_template = '{{ messages }}'
    size = {'hidden_size': 8, 'intermediate_size': 8, 'num_hidden_layers': 1}
    config = transformers.LlamaConfig(
      vocab_size=3, num_attention_heads=1, num_key_value_heads=1, **size
    )
    trainer = trl.GRPOTrainer(
      model=transformers.LlamaForCausalLM(config),
      reward_funcs=[getattr(module, name) for name in weights],
      args=trl.GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to='none',
        reward_weights=list(weights.values()),
        per_device_train_batch_size=3,
        num_generations=3,
      ),
      train_dataset=datasets.Dataset.from_list(rows),
      processing_class=tokenizer,
    )
    inputs = [row for row in rows for _ in range(3)]
    texts = [text for group in _COMPLETIONS for text in group]
    if form == 'messages':
      texts = [[{'role': 'assistant', 'content': text}] for text in texts]
    found = trainer._calculate_rewards(
      inputs,
      [row['prompt'] for row in inputs],
      texts,
      [[2] * length for group in _LENGTHS for length in group],
    )
    sums = torch.nansum(found * trainer.reward_weights, dim=1)
  return found.tolist(), sums.tolist()


@pytest.mark.parametrize('form', ['texts', 'messages'])
def test_functions_written_for_trl(tmp_path, monkeypatch, form):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  path = tmp_path / 'my_rewards.py'
  path.write_text(SOURCE)
  weights = dict(_WEIGHTS)
  if form == 'messages':
    weights['accuracy_reward'] = 0.7
  rows = _rows(form)
  wanted, sums = _under_trl(tmp_path, path, rows, weights, form)
  data = tmp_path / 'train.jsonl'
  data.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  first, *others = weights
  task = table.Table(
    path=str(data),
    question='prompt',
    target='solution',
    verifier=verifiers.Function(function=f'{path}:{first}'),
    rewards={name: f'{path}:{name}' for name in others},
    validation_percent=0,
    test_percent=0,
  )
  requests = [
    reward_pool.Request(
      'table', text, example.target, uid=example.uid, token_ids=[2] * length
    )
    for example, texts, lengths in zip(
      task.examples('train'), _COMPLETIONS, _LENGTHS, strict=True
    )
    for text, length in zip(texts, lengths, strict=True)
  ]
  with reward_pool.RewardPool({'table': task}, 'chat', 1, 20.0) as pool:
    verdicts = pool.score(requests)
  assert [v.status for v in verdicts] == ['ok'] * 6
  found = [[v.accuracy, *(v.parts[name] for name in others)] for v in verdicts]
  found = [[math.nan if x is None else x for x in row] for row in found]
  assert found == [pytest.approx(row, nan_ok=True, rel=1e-6) for row in wanted]
  assert {math.isnan(x) for row in found for x in row} == {True, False}
  scenario = rewards.Scenario(
    task=task,
    format_reward=0.0,
    part_rewards={name: weights[name] for name in others},
  )
  totals = [
    rewards.total(
      scenario,
      {
        **{'accuracy': v.accuracy, 'format': v.format, 'status': v.status},
        **{'parts': v.parts, 'words': v.words, 'question': ''},
      },
    )
    for v in verdicts
  ]
  assert totals == pytest.approx(sums, rel=1e-6)
  assert verdicts[0].notes['solution'] == '$3$'
  assert verdicts[0].logged == {'logged/polite': 0.5}
