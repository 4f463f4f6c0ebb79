"""What is kept of tokens, against the plain forward pass."""

import functools

import jax
import numpy as np
import pytest
from helpers import SMALL, grpo_config, noisy, words
from jax import numpy as jnp

from rlzero.models import transformer
from rlzero.rl import selection, token_figures
from rlzero.rollout import journal, scheduler
from rlzero.rollout.sampling import Finish
from rlzero.types import Tokens

pytestmark = [
  pytest.mark.model,
  pytest.mark.usefixtures('quick_compilation'),
]

_PROMPTS = [[3, 5, 7], [4, 6]]
_LENGTHS = 4, 7, 2, 5


@functools.cache
def _round():
  rng = np.random.default_rng(0)
  completions = [
    scheduler.Completion(
      rng.integers(2, 13, n).astype(np.int32),
      rng.normal(-2, 0.5, n).astype(np.float32),
      Finish.EOS,
    )
    for n in _LENGTHS
  ]
  mask = np.array([True, False, True, True, True])  # of the last
  completions[-1] = completions[-1]._replace(mask=mask)
  log = journal.Journal(None, {})
  log.scores = [{'advantage': 0.5 - i} for i in range(3)] + [{}]
  prompts = [scheduler.Prompt(i, p) for i, p in enumerate(_PROMPTS)]
  usage = scheduler.Usage(0, 0, 0)
  return selection.Round([], prompts, log, {}, completions, usage, None, None)


def _plain(params, prompt, tokens, temperature):
  """Log-probs and entropies of one completion, from one whole row."""
  ids = jnp.array([[*prompt, *tokens]])
  places = jnp.arange(ids.shape[1])[None]
  rows = Tokens(ids, places, jnp.ones_like(places))
  hidden, _, _ = transformer.forward(SMALL, params, rows)
  logits = hidden[0] @ transformer.head(SMALL, params) / temperature
  logprobs = jax.nn.log_softmax(logits)[len(prompt) - 1 : -1]
  entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
  return logprobs[np.arange(len(tokens)), tokens], entropy


@pytest.mark.parametrize('temperature', [1.0, 0.7])
def test_figures_are_those_of_the_plain_forward(tmp_path, temperature):
  params = jax.tree.map(jnp.asarray, noisy(SMALL))
  cfg = grpo_config(
    tmp_path, group_size=2, keep_tokens=9, temperature=temperature
  )
  made = token_figures.TokenFigures(cfg, cfg.make_learner(SMALL), words())
  rows = made.describe(params, [_round()])
  assert [row['place'] for row in rows] == list(range(4))
  for i, row in enumerate(rows):
    completion = _round().completions[i]
    logprobs, entropy = _plain(
      params, _PROMPTS[i // 2], completion.tokens, temperature
    )
    np.testing.assert_allclose(row['entropy'], entropy, atol=1e-4)
    np.testing.assert_allclose(row['logprob'], completion.logprobs, atol=1e-4)
    np.testing.assert_allclose(
      row['mismatch'], np.abs(completion.logprobs - logprobs), rtol=1e-2
    )
    assert len(row['texts']) == _LENGTHS[i]
  assert rows[1]['advantage'] == [-0.5] * 7
  assert rows[3]['advantage'] == [0.0] * 5  # its group was not learned from


def test_a_setting_of_few_describes_few(tmp_path):
  cfg = grpo_config(tmp_path, group_size=2, keep_tokens=1)
  made = token_figures.TokenFigures(cfg, cfg.make_learner(SMALL), words())
  (row,) = made.describe(jax.tree.map(jnp.asarray, noisy(SMALL)), [_round()])
  assert len(row['texts']) == _LENGTHS[0]


def test_texts_of_tokens_join_to_the_text():
  tokenizer = words()
  ids = tokenizer.encode('a b b a', add_special=False)
  assert token_figures.texts(tokenizer, ids) == ['a', ' b', ' b', ' a']
