"""GGUF files of ours in llama.cpp itself: greedy tokens, log-probs, token ids.

They need a build of llama.cpp, which no extra installs:

  pip install xllamacpp==2026.10.11549
  python -m pytest -q -s -m 'slow or not slow' tests/test_llama_cpp.py
"""

import dataclasses
import pathlib

import httpx
import jax
import numpy as np
import pytest
from helpers import (
  GGUF_CONFIGS,
  gguf_metadata,
  random_params,
  sentencepiece_metadata,
)
from jax import numpy as jnp

from rlzero import convert, weights
from rlzero.models import padding, transformer
from rlzero.weights import gguf_tokenizer

xllamacpp = pytest.importorskip(
  'xllamacpp', reason='llama.cpp is not installed'
)
pytestmark = [pytest.mark.model, pytest.mark.parity]

DATA = pathlib.Path(__file__).parents[1] / 'data'
NEW_TOKENS = 12
PROMPTS = (
  'The capital of France is',
  'def fibonacci(n):\n  ',
  'Once upon a time, there was',
  '12 + 30 = ',
  'Water boils at a temperature of',
)


class LlamaCpp:
  """A model in llama.cpp's server, on CPUs, keys and values in float32."""

  def __init__(self, path):
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = params.n_batch = params.n_ubatch = 256
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = (
      xllamacpp.ggml_type.GGML_TYPE_F32
    )
    params.flash_attn_type = (
      xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    params.warmup = False
    self._server = xllamacpp.Server(params)

  def _post(self, path, body):
    url = f'{self._server.listening_address}/{path}'
    return httpx.post(url, json=body, timeout=600).raise_for_status().json()

  def greedy(self, prompt, count, num_top, token=None):
    """Tokens that it writes after a prompt, and likely ones at each step.

    Args:
      token: that is written whatever the log-probs are, if one is named.

    Returns:
      tokens [T], and ids and log-probs of the most likely ones, [T, K].
    """
    reply = self._post(
      'completion',
      {
        'prompt': prompt,
        'n_predict': count,
        'temperature': 0,
        'n_probs': num_top,
        'return_tokens': True,
        'cache_prompt': False,
        'logit_bias': [] if token is None else [[token, 1000.0]],
      },
    )
    found = reply['completion_probabilities']
    # It leaves out tokens that end inside of a character.
    assert [step['id'] for step in found] == reply['tokens']
    tops = [step['top_logprobs'] for step in found]
    return (
      [step['id'] for step in found],
      np.array([[one['id'] for one in top] for top in tops]),
      np.array([[one['logprob'] for one in top] for top in tops]),
    )

  def encode(self, text, special):
    return self._post(
      'tokenize',
      {'content': text, 'add_special': special, 'parse_special': True},
    )['tokens']


def our_logprobs(config, params, rows):
  """Log-probs of what follows each token, [B, T, V]."""
  tokens = padding.pad(rows, len(rows), max(map(len, rows)))

  @jax.jit
  def forward(params, tokens):
    hidden, _, _ = transformer.forward(config, params, tokens)
    logits = hidden @ transformer.head(config, params)
    return jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)

  return np.asarray(forward(jax.tree.map(jnp.asarray, params), tokens))


def compare(config, params, theirs, prompts, *wanted):
  """How far the log-probs of likely tokens lie apart at most.

  Returns:
    that, and for each greedy token that is not ours by how much less likely
    it is to us than ours.
  """
  written = [theirs.greedy(prompt, *wanted) for prompt in prompts]
  rows = [p + tokens for p, (tokens, *_) in zip(prompts, written, strict=True)]
  ours = our_logprobs(config, params, rows)
  apart, others = 0.0, []
  for row, prompt, (tokens, ids, values) in zip(
    ours, prompts, written, strict=True
  ):
    expected = row[len(prompt) - 1 :][: len(tokens)]
    found = np.take_along_axis(expected, ids, axis=1)
    apart = max(apart, float(np.abs(found - values).max()))
    others += [
      float(step.max() - step[token])
      for token, step in zip(tokens, expected, strict=True)
      if token != step.argmax()
    ]
  return apart, others


@pytest.mark.parametrize('name', GGUF_CONFIGS)
def test_small_models_have_equal_logprobs(name, tmp_path):
  config = dataclasses.replace(GGUF_CONFIGS[name], dtype='float32')
  params = jax.tree.map(lambda x: x / 2, random_params(config))
  tokenizer = gguf_tokenizer.read(gguf_metadata())
  weights.write_gguf(tmp_path / 'm.gguf', config, params, tokenizer)
  ids = np.random.default_rng(0).integers(0, config.vocab_size, 30).tolist()
  # Of bytes that are no text it does not tell the log-probs.
  token = gguf_metadata()['tokenizer.ggml.tokens'].index('a')
  apart, _ = compare(
    config, params, LlamaCpp(tmp_path / 'm.gguf'), [ids], 8, 100, token
  )
  print(f'{name}: log-probs differ by {apart:.2g} at most')
  # Its table of GELU is in float16.
  assert apart < (1e-2 if config.activation == 'gelu_tanh' else 1e-4)


@pytest.mark.parametrize(
  'metadata',
  [
    gguf_metadata(),
    gguf_metadata(pre='smollm', add_bos_token=True),
    gguf_metadata(pre='qwen2'),
    gguf_metadata(pre='llama-bpe'),
    sentencepiece_metadata(),
    sentencepiece_metadata(add_space_prefix=False),
  ],
  ids=['gpt-2', 'smollm', 'qwen2', 'llama-bpe', 'prefixed', 'sentencepiece'],
)
def test_texts_have_equal_ids(metadata, tmp_path):
  tokenizer = gguf_tokenizer.read(metadata)
  config = dataclasses.replace(
    GGUF_CONFIGS['llama'], vocab_size=len(metadata['tokenizer.ggml.tokens'])
  )
  weights.write_gguf(
    tmp_path / 'm.gguf', config, random_params(config), tokenizer
  )
  theirs = LlamaCpp(tmp_path / 'm.gguf')
  texts = [
    *PROMPTS,
    'ab 12  a\n\n\tb\r\n ',
    'Größe, naïve café: 日本語 and',
    'as us user <end> é ½ 🙂 ١٢٣',
    "'re 'RE  don't a1b2c3",
  ]
  if metadata.get('tokenizer.ggml.pre') != 'qwen2':
    texts.append('e\u0301')  # Qwen2 composes the two, llama.cpp does not
  for text in texts:
    for special in (True, False):
      ids = tokenizer.encode(text, special)
      assert theirs.encode(text, special) == ids, text


@pytest.mark.slow
@pytest.mark.parametrize(
  'dtype, bound',
  [('float32', 2e-3), ('float16', 5e-2), ('bfloat16', 0.3), ('q8_0', 1.5)],
)
def test_smollm2_writes_the_same_tokens(dtype, bound, tmp_path):
  """Of the same file: llama.cpp rounds activations to the type of matrices."""
  folder = DATA / 'smollm2'
  if not folder.is_dir():
    pytest.skip(f'{folder} is missing (bash launch/get_smollm2.sh)')
  file = tmp_path / 'm.gguf'
  settings = {'kind': 'gguf', 'dtype': dtype, 'compare_logprobs': False}
  convert.run(
    convert.Config(checkpoint=str(folder), output=str(file), **settings)
  )
  loaded, theirs = weights.load(file), LlamaCpp(file)
  prompts = [loaded.tokenizer.encode(text, True) for text in PROMPTS]
  assert prompts == [theirs.encode(text, True) for text in PROMPTS]
  config = dataclasses.replace(loaded.config, dtype='float32')
  apart, others = compare(
    config, loaded.params, theirs, prompts, NEW_TOKENS, 50
  )
  print(
    f'{dtype}: log-probs differ by {apart:.2g} at most; '
    f'{len(others)} of {NEW_TOKENS * len(prompts)} greedy tokens differ'
    + (f', by {max(others):.2g} at most' if others else '')
  )
  assert apart < bound
  # Only where two tokens are as likely to within the rounding.
  assert max(others, default=0) < 2 * apart
  if dtype == 'float32':
    assert not others
