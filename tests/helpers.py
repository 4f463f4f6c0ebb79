"""Models, settings, data and files that several tests use."""

import contextlib
import dataclasses
import functools
import hashlib
import http.server
import json
import os
import pathlib
import random
import socket
import subprocess
import threading
import time

import gguf
import jax
import numpy as np
import pytest
import uvicorn
from jax import numpy as jnp
from tokenizers import pre_tokenizers

from rlzero import grpo
from rlzero.models import rope, transformer
from rlzero.models.config import (
  Experts,
  Latent,
  LinearScaling,
  ModelConfig,
  RopeScaling,
  Yarn,
)
from rlzero.rl.objective import Objective
from rlzero.rl.objectives import advantages
from rlzero.runtime import fields, files, hosts
from rlzero.text.template import Template
from rlzero.text.tokenizer import Tokenizer
from rlzero.train import demonstrations, packing, sequences
from rlzero.weights import mapping

MHA = ModelConfig(
  vocab_size=37,
  num_layers=2,
  width=16,
  mlp_width=24,
  num_heads=4,
  num_kv_heads=4,
  head_dim=4,
)

MQA = dataclasses.replace(
  MHA, num_kv_heads=1, qk_norm=True, tied_embedding=False
)

# Local and global layers, scores of another scale, a window below the lengths
# of prompts and completions.
GEMMA = dataclasses.replace(
  MQA,
  num_layers=3,
  activation='gelu_tanh',
  scaled_embedding=True,
  unit_offset_norm=True,
  post_norms=True,
  query_scalar=9,
  window=3,
  global_every=2,
  local_rope_theta=50.0,
  rope_scaling=LinearScaling(factor=2.0),
)

# Everything at once: a dense layer first, groups, a bias, shared experts.
V3 = dataclasses.replace(
  MHA,
  tied_embedding=False,
  head_dim=10,
  rope_scaling=Yarn(
    factor=4.0, original_max_position=16, mscale=0.7, mscale_all_dim=1.0
  ),
  latent=Latent(kv_rank=8, rope_dim=4, value_dim=5, query_rank=6),
  experts=Experts(
    num_experts=8,
    num_chosen=3,
    width=8,
    shared_width=12,
    num_dense_layers=1,
    scores='sigmoid',
    num_groups=4,
    num_chosen_groups=2,
    normalize=True,
    scale=2.5,
  ),
)


def noisy(config, scale=0.3):
  """Parameters far from the initial ones, so that attention is not flat."""
  rng = np.random.default_rng(0)

  def draw(path, shape):
    centre = path[-1].key.endswith(('scale', '_norm'))
    return np.float32(centre + rng.normal(0, scale, shape.shape))

  shapes = jax.eval_shape(
    functools.partial(transformer.init, config), jax.random.key(0)
  )
  return jax.tree_util.tree_map_with_path(draw, shapes)


SMALL = ModelConfig(
  vocab_size=13,
  num_layers=2,
  width=16,
  mlp_width=24,
  num_heads=4,
  num_kv_heads=2,
  head_dim=4,
  tied_embedding=False,
)

EOS = 1
NUM_PROMPTS, GROUP = 3, 4


NUM_ROWS = NUM_PROMPTS * GROUP
GRPO = Objective(kl_coef=0.1)


NO_KL = Objective(kl_coef=0.0)
SHARED_PREFIX = 7, 3


def make_rows(objective, seed=0, shortest=1, longest=9, shared_prefix=()):
  """Groups of random completions; all rewards of the second are equal.

  They begin with the prefix, which is shared under `short_shared_prefixes`.
  """
  rng = np.random.default_rng(seed)
  completions = [
    np.append(rng.integers(2, 13, n), EOS)
    for n in rng.integers(shortest - 1, longest, NUM_ROWS)
  ]
  rewards = rng.integers(0, 2, (NUM_PROMPTS, GROUP)).astype(np.float32)
  rewards[:, 0], rewards[:, 1] = 0, 1
  rewards[1] = 1
  old, ref = (
    [np.float32(rng.normal(-2.5, 0.7, len(c))) for c in completions]
    for _ in range(2)
  )
  return packing.RolloutBatch(
    prompts=[
      [*shared_prefix, *rng.integers(2, 13, n).tolist()] for n in (2, 5, 3)
    ],
    prompt_index=np.repeat(np.arange(NUM_PROMPTS), GROUP),
    completions=completions,
    old_logprobs=old,
    ref_logprobs=ref if objective.kl_coef else None,
    advantages=np.asarray(
      advantages.of_rewards(
        jnp.asarray(rewards), objective.baseline, objective.scale
      )
    ).reshape(-1),
  )


def distance(first, second):
  """Relative distance of two gradients."""
  flat = [
    np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    for tree in (first, second)
  ]
  return np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1])


TEMPLATE = (
  '{% for m in messages %}\n'
  '  {% if m.role == "nobody" %}{{ raise_exception("who?") }}{% endif %}\n'
  '<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}'
  '{% if add_generation_prompt %}<assistant>{% endif %}'
)


def gguf_metadata(**changes):
  """A byte-level vocabulary that can merge digits, 'ab' and ' a'."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  merges = ['1 2', '12 3', 'a b', 'Ġ a', 'Ġ 1']
  words = [m.replace(' ', '') for m in merges]
  tokens = ['<end>', '<begin>', '<think>', *alphabet, *words]
  values = {
    'model': 'gpt2',
    'pre': 'gpt-2',
    'tokens': tokens,
    'token_type': [3, 3, 4] + [1] * (len(tokens) - 3),
    'merges': merges,
    'eos_token_id': 0,
    'bos_token_id': 1,
    **changes,
  }
  return {
    f'tokenizer.ggml.{k}': v for k, v in values.items() if v is not None
  } | {'tokenizer.chat_template': TEMPLATE}


LLAMA = ModelConfig(
  vocab_size=11,
  num_layers=2,
  width=32,
  mlp_width=64,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  rope_theta=5e4,
  rms_norm_eps=1e-6,
  max_position=77,
)

GEMMA3 = dataclasses.replace(
  LLAMA,
  family='gemma3_text',
  num_layers=3,
  num_kv_heads=1,
  head_dim=16,
  rope_theta=7e5,
  rope_scaling=LinearScaling(factor=8.0),
  qk_norm=True,
  activation='gelu_tanh',
  scaled_embedding=True,
  unit_offset_norm=True,
  post_norms=True,
  query_scalar=20,
  window=5,
  global_every=2,
  local_rope_theta=300.0,
)

EXPERTS = Experts(num_experts=6, num_chosen=2, width=8)
DEEPSEEK = dataclasses.replace(
  LLAMA,
  num_kv_heads=4,
  head_dim=10,
  tied_embedding=False,
  latent=Latent(kv_rank=12, rope_dim=4, value_dim=7),
)

CONFIGS = {
  'llama': LLAMA,
  'llama_untied': dataclasses.replace(LLAMA, tied_embedding=False),
  'llama3': dataclasses.replace(
    LLAMA,
    rope_scaling=RopeScaling(
      factor=4.0, high_freq_factor=3.0, original_max_position=40
    ),
  ),
  'qwen2': dataclasses.replace(LLAMA, qkv_bias=True, family='qwen2'),
  'qwen2_untied': dataclasses.replace(
    LLAMA, qkv_bias=True, family='qwen2', num_kv_heads=1, tied_embedding=False
  ),
  'qwen3': dataclasses.replace(
    LLAMA, qk_norm=True, head_dim=16, family='qwen3'
  ),
  'qwen3_untied': dataclasses.replace(
    LLAMA, qk_norm=True, family='qwen3', num_kv_heads=4, tied_embedding=False
  ),
  'gemma3': GEMMA3,
  'gemma3_global': dataclasses.replace(
    GEMMA3,
    num_kv_heads=2,
    head_dim=8,
    query_scalar=8,
    global_every=1,
    rope_scaling=None,
  ),
  'qwen3_moe': dataclasses.replace(
    LLAMA, qk_norm=True, family='qwen3_moe', experts=EXPERTS
  ),
  'qwen3_moe_dense_first': dataclasses.replace(
    LLAMA,
    qk_norm=True,
    head_dim=16,
    family='qwen3_moe',
    tied_embedding=False,
    experts=dataclasses.replace(EXPERTS, normalize=True, num_dense_layers=1),
  ),
  # Without a rank of queries, without groups.
  'deepseek_v2': dataclasses.replace(
    DEEPSEEK,
    family='deepseek_v2',
    experts=dataclasses.replace(EXPERTS, shared_width=16, scale=1.5),
  ),
  'deepseek_v2_groups': dataclasses.replace(
    DEEPSEEK,
    family='deepseek_v2',
    latent=dataclasses.replace(DEEPSEEK.latent, query_rank=9),
    experts=dataclasses.replace(
      EXPERTS,
      shared_width=8,
      num_groups=3,
      num_chosen_groups=2,
      num_dense_layers=1,
    ),
    rope_scaling=Yarn(
      factor=4.0, original_max_position=16, mscale=0.7, mscale_all_dim=0.7
    ),
  ),
  'deepseek_v3': dataclasses.replace(
    DEEPSEEK,
    family='deepseek_v3',
    latent=dataclasses.replace(DEEPSEEK.latent, query_rank=9),
    experts=dataclasses.replace(
      EXPERTS,
      scores='sigmoid',
      shared_width=8,
      num_groups=3,
      num_chosen_groups=2,
      num_dense_layers=1,
      normalize=True,
      scale=2.5,
    ),
    rope_scaling=Yarn(
      factor=40.0, original_max_position=16, mscale=0.8, mscale_all_dim=1.0
    ),
  ),
  'deepseek_v3_plain': dataclasses.replace(
    DEEPSEEK,
    family='deepseek_v3',
    experts=dataclasses.replace(EXPERTS, scores='sigmoid', shared_width=16),
  ),
}


def mostly_slow(names, cases, quick, others='slow'):
  """Parametrizes a test by cases of which all but the quick ones are slow.

  Args:
    names: of the parameters.
    cases: their values by the name of the case.
    quick: names of the cases that the default suite runs.
    others: the mark of the rest; 'nightly' where they take many minutes.
  """
  assert set(quick) <= set(cases)
  return pytest.mark.parametrize(
    names,
    [
      pytest.param(
        *(value if isinstance(value, tuple) else (value,)),
        marks=() if name in quick else getattr(pytest.mark, others),
        id=name,
      )
      for name, value in cases.items()
    ],
  )


each_config = pytest.mark.parametrize(
  'config', CONFIGS.values(), ids=CONFIGS.keys()
)


def random_params(config):
  """Random numbers in the tree that the model itself declares."""
  rng = np.random.default_rng(0)
  tree = jax.eval_shape(lambda: transformer.init(config, jax.random.key(0)))
  return jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), dict(tree)
  )


def words():
  return Tokenizer.word_level(['a', 'b'], '<eos>', '<pad>')


def as_dict(written):
  return {tensor.name: tensor.read() for tensor in written}


def permute(weight, num_heads):
  """llama.cpp's converter, from its description: pairs side by side."""
  halves = weight.reshape(num_heads, 2, -1, weight.shape[1])
  return np.concatenate(
    [
      np.stack(list(head), axis=1).reshape(-1, weight.shape[1])
      for head in halves
    ]
  )


def write_gguf(path, config, kind, quantised=None, drop=(), **changes):
  writer = gguf.GGUFWriter(path, kind)
  settings = {
    'block_count': config.num_layers,
    'context_length': config.max_position,
    'embedding_length': config.width,
    'feed_forward_length': config.mlp_width,
    'attention.head_count': config.num_heads,
    'attention.head_count_kv': config.num_kv_heads,
    'attention.key_length': config.head_dim,
    **changes,
  }
  for key, value in settings.items():
    add = writer.add_string if isinstance(value, str) else writer.add_uint32
    add(f'{kind}.{key}', value)
  writer.add_float32(f'{kind}.rope.freq_base', config.rope_theta)
  if config.window:
    writer.add_uint32(f'{kind}.attention.sliding_window', config.window)
  if isinstance(config.rope_scaling, RopeScaling):
    plain, scaled = (
      rope.frequencies(config.head_dim, config.rope_theta, scaling)
      for scaling in (None, config.rope_scaling)
    )
    writer.add_tensor('rope_freqs.weight', plain / scaled)
  elif config.rope_scaling:
    writer.add_string(f'{kind}.rope.scaling.type', 'linear')
    writer.add_float32(
      f'{kind}.rope.scaling.factor', config.rope_scaling.factor
    )
  writer.add_float32(
    f'{kind}.attention.layer_norm_rms_epsilon', config.rms_norm_eps
  )
  for key, value in gguf_metadata(add_bos_token=False).items():
    if isinstance(value, list):
      writer.add_array(key, value)
    elif isinstance(value, bool):
      writer.add_bool(key, value)
    elif isinstance(value, int):
      writer.add_uint32(key, value)
    else:
      writer.add_string(key, value)
  params = random_params(config)
  # Their names, and the numbers as Hugging Face has them.
  for named, tensor in zip(
    mapping.tensors_from_params(config, params, 'gguf'),
    mapping.tensors_from_params(config, params, 'hf'),
    strict=True,
  ):
    name, array = named.name, tensor.read()
    if kind == 'llama' and name.endswith(('attn_q.weight', 'attn_k.weight')):
      heads = config.num_heads if 'attn_q' in name else config.num_kv_heads
      array = permute(array, heads)
    if config.unit_offset_norm and name.endswith('norm.weight'):
      array = array + 1
    if name in drop:
      continue
    if quantised is not None and array.ndim == 2:
      writer.add_tensor(
        name, gguf.quantize(array, quantised), raw_dtype=quantised
      )
    else:
      writer.add_tensor(name, array)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


GGUF_CONFIGS = {
  name: dataclasses.replace(
    config, vocab_size=len(gguf_metadata()['tokenizer.ggml.tokens'])
  )
  for name, config in CONFIGS.items()
  if not config.experts
}

# Only the stretches of the published models are known there.
GGUF_CONFIGS['llama3'] = dataclasses.replace(
  GGUF_CONFIGS['llama3'], rope_scaling=RopeScaling(factor=32.0)
)

# What llama.cpp knows by heart.
for name, config in GGUF_CONFIGS.items():
  if config.family == 'gemma3_text':
    GGUF_CONFIGS[name] = dataclasses.replace(
      config,
      query_scalar=config.head_dim,
      global_every=6,
      local_rope_theta=1e4,
    )


WORDS = tuple('abcdefghijk')  # 13 ids with padding and EOS: SMALL's


def letters(chat_template=None):
  words = Tokenizer.word_level(WORDS, '<eos>', '<pad>')
  words.chat_template = chat_template
  return words


def write_lines(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def make_examples(count=12, seed=0):
  rng = np.random.default_rng(seed)
  return [
    demonstrations.Example(
      rng.integers(2, 13, n).astype(np.int32), int(rng.integers(1, n))
    )
    for n in rng.integers(2, 20, count)
  ]


def packed(examples, micro_tokens=128, multiple=1):
  items = [demonstrations.pack_item(e) for e in examples]
  return [m for _, m in sequences.pack(items, micro_tokens, 24, multiple)]


GRPO_SETTINGS = {
  'num_prompts': 3,
  'group_size': 4,
  'steps_per_rollout': 1,
  'max_len': 24,
  'max_prompt_len': 16,
  'num_slots': 8,
  'decode_steps': 8,
  'kl_coef': 0.01,
  'reference_every': 2,
  'learning_rate': 1e-3,
  'micro_tokens': 256,
  'num_steps': 6,
  'save_every': 3,
  'eval_every': 0,
  'final_problems': 2,
  'final_samples': 2,
  'keep_completions_every': 3,
  'num_workers': 1,
}


def grpo_config(workdir, **changes):
  settings = {**GRPO_SETTINGS, 'template': Template('short'), **changes}
  return fields.make(grpo.Config, workdir=str(workdir), **settings)


class Hub(http.server.BaseHTTPRequestHandler):
  """The calls of the hub's protocol that a listing and a download make.

  A test derives a class of its own. `org/gated` asks to accept terms, and any
  other repository is not found; nor is the revision `nowhere`.
  """

  repo: str
  commit: str  # 40 hexadecimal digits
  files: dict[str, bytes]
  served: list[str]  # names of the files whose content was sent

  def do_HEAD(self):
    self._answer(body=False)

  def do_GET(self):
    self._answer(body=True)

  def log_message(self, *_):
    pass

  def _answer(self, body):
    path = self.path.partition('?')[0]
    if 'org/gated' in path:
      self._send(403, b'', {'X-Error-Code': 'GatedRepo'}, body)
    elif self.repo not in path:
      self._send(404, b'', {'X-Error-Code': 'RepoNotFound'}, body)
    elif 'nowhere' in path:
      self._send(404, b'', {'X-Error-Code': 'RevisionNotFound'}, body)
    elif path.startswith('/api/'):
      tree = [
        {'type': 'file', 'path': n, 'size': len(d), 'oid': _etag(d)}
        for n, d in self.files.items()
      ]
      names = [{'rfilename': name} for name in self.files]
      info = {'id': self.repo, 'sha': self.commit, 'siblings': names}
      found = tree if '/tree/' in path else info
      self._send(200, json.dumps(found).encode(), {}, body)
    else:
      name = path.rpartition(f'/{self.commit}/')[2]
      data = self.files[name]
      if body:
        self.served.append(name)
      headers = {'X-Repo-Commit': self.commit, 'ETag': f'"{_etag(data)}"'}
      self._send(200, data, headers, body)

  def _send(self, status, data, headers, body):
    self.send_response(status)
    for key, value in headers.items():
      self.send_header(key, value)
    self.send_header('Content-Length', str(len(data)))
    self.end_headers()
    if body:
      with contextlib.suppress(BrokenPipeError):
        self.wfile.write(data)


@contextlib.contextmanager
def serve(hub):
  """Runs a hub in a thread; yields the server and its address."""
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), hub) as server:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server, f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    thread.join()


@contextlib.contextmanager
def serve_app(app):
  """Serves an ASGI application meanwhile; yields its port."""
  opened = socket.create_server(('127.0.0.1', 0))
  server = uvicorn.Server(uvicorn.Config(app, log_level='warning'))
  thread = threading.Thread(target=server.run, args=([opened],))
  thread.start()
  try:
    while not server.started:
      assert thread.is_alive()
      time.sleep(0.01)
    yield opened.getsockname()[1]
  finally:
    server.should_exit = True
    thread.join()
    opened.close()


def write_watched_run(folder, num_steps=30, hostile=''):
  """A made-up run for the live page: metrics, completions, evaluations."""
  rows = [
    {
      'step': step,
      'reward/mean': 0.5 + step / num_steps,
      'reward/correct': 0.2 + 0.6 * step / num_steps,
      'completion/len_mean': 30 + step,
      'policy/entropy': 0.4,
      'time/rollout_s': 2.0,
      'time/update_s': 1.0,
      'time/step_s': 3.0,
      'time/tokens_per_s': 900.0,
      **({'eval/pass@1': 0.3 + step / 60} if step % 10 == 0 else {}),
    }
    for step in range(num_steps)
  ]
  files.write_jsonl(folder / 'metrics.jsonl', rows)
  for step in range(0, num_steps, 10):
    files.write_jsonl(
      folder / 'completions' / f'step_{step:06d}.jsonl',
      [
        _watched_completion(step, uid, number, hostile)
        for uid in ('3 4 5 make 17', f'7 8 9 make 65 {hostile}'.strip())
        for number in range(4)
      ],
    )
  files.write_json(folder / 'config.json', {'num_steps': 40, 'seed': 0})
  info = {'stage': 'grpo', 'wall_s': 100.0, 'hardware': '2 x TPU (1 core)'}
  files.write_json(folder / 'run.json', info)
  for name, step in (('before', 0), ('after', 40)):
    files.write_json(
      folder / 'evaluations' / f'{name}.json',
      {
        'step': step,
        'pass@1': 0.3 + step / 100,
        'pass@1_interval': [0.2 + step / 100, 0.4 + step / 100],
        'accuracy_by_len': [[32, 0.2], [64, 0.3 + step / 100]],
      },
    )
  return folder


def _watched_completion(step, uid, number, hostile):
  thought = '3 + 4 = 7 7 + 5 = 12 wait 3 * 4 = 12 12 + 5 = 17 ok'
  return {
    'step': step,
    'uid': uid,
    'question': uid,
    'completion': f'<think> {thought} {hostile} </think> '
    f'<answer> ( 3 * 4 ) + 5 </answer> {number}',
    'answer': '( 3 * 4 ) + 5',
    'accuracy': float(number % 2 == 0),
    'correct': number % 2 == 0,
    'format': 1.0,
    'reward': 1.0 + (number % 2 == 0),
    'len': 20 + number,
    'tries': 2,
    'reflections': 1,
    'truncated': False,
    'status': 'ok',
    'parts': {'steps_mean': 1.0},
  }


def _etag(data):
  return hashlib.sha1(data).hexdigest()


# What tokenizers differ on.
TEXTS = (
  'Hello, world!',
  "What's 12 + 345? It's 357, isn't it?",
  '  two  spaces\n\n\tand a tab \r\n end ',
  'def f(x):\n  return x**2 - 3.14e-10  # π ≈ 3.14159',
  'Größe, naïve, 日本語, Здравствуй, عربي, 🙂🏳️‍🌈 e\u0301',
  '<|im_start|>user\nhi<|im_end|>\n<|endoftext|> <|im_start |>',
  '1 22 333 4444 55555 ½ ² Ⅳ ١٢٣ a1b2c3',
  '',
)
CHATS = (
  [{'role': 'user', 'content': 'What is 7 + 8?'}],
  [
    {'role': 'system', 'content': 'Answer <briefly> & "well".'},
    {'role': 'user', 'content': 'Hi\n'},
    {'role': 'assistant', 'content': 'Hello.'},
    {'role': 'user', 'content': '2 - 3 = ?'},
  ],
)


def random_texts():
  """Strings that mix scripts, digits, white space and special tokens."""
  rng = random.Random(0)
  parts = [*' \n\t0123456789abcXYZ.,!?\'"-+=<>|éß日本🙂▁', "'re"]
  parts += ['<|im_end|>', '<end_of_turn>', '<b>']
  return [''.join(rng.choices(parts, k=40)) for _ in range(200)]


TURNS = (
  '{{ bos_token }}{% for m in messages %}<turn>{{ m.role }}: '
  '{{ m.content | trim }}<end>{% endfor %}'
  '{% if add_generation_prompt %}<turn>assistant:{% endif %}'
)


def sentencepiece_metadata(**changes):
  """Llama 2's kind: scores for merges, bytes for what no piece covers."""
  letters = 'aersutinbdo:|<>123,'
  words = ['▁a', 'us', 'er', 'user', '▁user', 'as', 'end', '▁|', '|>']
  tokens = [
    '<unk>',
    '<s>',
    '<end>',
    '<turn>',
    *(f'<0x{i:02X}>' for i in range(256)),
  ]
  types = [2, 3, 3, 4, *[6] * 256]
  pieces = ['▁', *letters, *words]
  values = {
    'model': 'llama',
    'tokens': tokens + pieces,
    'token_type': types + [1] * len(pieces),
    'scores': [0.0] * len(tokens) + [-float(i) for i in range(len(pieces))],
    'unknown_token_id': 0,
    'bos_token_id': 1,
    'eos_token_id': 2,
    **changes,
  }
  return {f'tokenizer.ggml.{k}': v for k, v in values.items()} | {
    'tokenizer.chat_template': TURNS
  }


def byte_level_metadata():
  tokens = gguf_metadata()['tokenizer.ggml.tokens']
  with_turn = ['<end>', '<begin>', '<turn>', *tokens[3:]]
  return gguf_metadata(tokens=with_turn) | {'tokenizer.chat_template': TURNS}


_ROOT = pathlib.Path(__file__).parent.parent
_PATIENCE_S = 900.0  # hosts that wait for each other would wait for ever


def start_cluster(number, *command, devices=8, **env):
  """So many processes, with so many devices in all."""
  return subprocess.Popen(
    ['bash', 'launch/local_cluster.sh', str(number), *command],
    cwd=_ROOT,
    env={
      **os.environ,
      'DEVICES': str(devices // number),
      'XLA_FLAGS': '',
      **env,
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def cluster_ended(processes, code=0):
  """What they say on stderr, when they have ended."""
  try:
    _, said = processes.communicate(timeout=_PATIENCE_S)
  finally:
    processes.terminate()  # some that hang
  assert processes.returncode == code, said
  return said


def cluster_process(processes, flag):
  """The one of the processes that was started with the flag."""
  of_it = pathlib.Path(f'/proc/{processes.pid}/task/{processes.pid}/children')
  (number,) = (
    int(child)
    for child in of_it.read_text().split()
    if flag in pathlib.Path(f'/proc/{child}/cmdline').read_text()
  )
  return number


def as_hosts(monkeypatch, works):
  """Calls each of the functions on a host of its own, which is a thread.

  The hosts exchange what they exchange; devices they have none.

  Returns:
    what each function returned, or raised.
  """
  own, barrier = threading.local(), threading.Barrier(len(works), timeout=20)
  slots, results = [None] * len(works), [None] * len(works)

  def allgather(array):
    slots[own.number] = array
    barrier.wait()
    every = np.stack(slots)
    barrier.wait()
    return every

  def run(number, work):
    own.number = number
    try:
      results[number] = work()
    except Exception as error:
      results[number] = error

  with monkeypatch.context() as patched:
    patched.setattr(jax.distributed, 'is_initialized', lambda: True)
    patched.setattr(jax, 'process_count', lambda: len(works))
    patched.setattr(jax, 'process_index', lambda: own.number)
    patched.setattr(hosts.multihost_utils, 'process_allgather', allgather)
    threads = [
      threading.Thread(target=run, args=each) for each in enumerate(works)
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
  return results
