"""Figures of single tokens, of sampler and learner, for a few completions.

With `grpo.Config.keep_tokens` their log-probs, entropies and texts go to
`tokens/step_N.jsonl`, where the live page finds them. A program of its own
computes them from the policy that sampled, after the rollout; nothing that is
learned from depends on it.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from rlzero.models import transformer, vocab_head
from rlzero.rl import learner, selection
from rlzero.rl.settings import Config
from rlzero.runtime import hosts
from rlzero.text.tokenizer import Tokenizer
from rlzero.train import packing
from rlzero.types import Params

FOLDER = 'tokens'  # in the workdir
KEPT_GROUPS = 2  # whose completions a run keeps, to be read by people


class TokenFigures:
  """Describes tokens; the program is compiled at its first use.

  Args:
    cfg: of the run.
    of: the learner, whose microbatches these are.
    tokenizer: of the model.
  """

  def __init__(self, cfg: Config, of: learner.Learner, tokenizer: Tokenizer):
    self._cfg, self._learner, self._tokenizer = cfg, of, tokenizer
    self._program = jax.jit(
      functools.partial(_figures, of.config, cfg.sampling.temperature)
    )

  def describe(
    self, params: Params, rounds: Sequence[selection.Round]
  ) -> list[dict[str, Any]]:
    """Describes the tokens of the first completions of a rollout.

    Args:
      params: of the policy that sampled.
      rounds: of the rollout, rewarded.

    Returns:
      a row a completion: its `place` in the rollout, and of its tokens `texts`,
      `logprob` of the sampler, `entropy`, `mismatch` (|sampler - learner|), all
      in nats, and `advantage`, 0 where a token is out of the loss.
    """
    batch = self._batch(rounds)
    records = [record for r in rounds for record in r.log.scores]
    rows = []
    for place, (logprobs, entropy) in enumerate(self._computed(params, batch)):
      mask = batch.masks[place] if batch.masks else None
      advantage = records[place].get('advantage', 0.0)
      sampled = batch.old_logprobs[place]
      rows.append(
        {
          'place': place,
          'texts': texts(self._tokenizer, batch.completions[place]),
          'logprob': _rounded(sampled, '.4f'),
          'entropy': _rounded(entropy, '.4f'),
          'mismatch': _rounded(np.abs(sampled - logprobs), '.3g'),
          'advantage': _rounded(
            np.full(len(sampled), advantage) * (1 if mask is None else mask),
            '.4g',
          ),
        }
      )
    return rows

  def _batch(self, rounds: Sequence[selection.Round]) -> packing.RolloutBatch:
    count = min(self._cfg.keep_tokens, KEPT_GROUPS * self._cfg.num_samples)
    sampled = [c for r in rounds for c in r.completions][:count]
    index = np.arange(len(sampled)) // self._cfg.num_samples
    prompts = [prompt.tokens for r in rounds for prompt in r.prompts]
    return packing.RolloutBatch(
      prompts=prompts[: index[-1] + 1],
      prompt_index=index,
      completions=[c.tokens for c in sampled],
      old_logprobs=[c.logprobs for c in sampled],
      ref_logprobs=None,
      advantages=np.zeros(len(sampled), np.float32),
      routes=[c.routes for c in sampled if c.routes is not None] or None,
      masks=[c.mask for c in sampled],
    )

  def _computed(
    self, params: Params, batch: packing.RolloutBatch
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """The learner's log-probs and entropies of each completion's tokens."""
    out: list[Any] = [None] * len(batch.completions)
    for placements, micro in self._learner.microbatches(
      batch, np.arange(len(out))
    ):
      found = self._program(params, learner.put(micro))
      logprobs, entropy = map(hosts.fetch, found)
      for i, row, start in placements:
        at = row, slice(start, start + len(batch.completions[i]))
        out[i] = logprobs[at], entropy[at]
    return out


def texts(
  tokenizer: Tokenizer, tokens: Sequence[int] | np.ndarray
) -> list[str]:
  """The text that each token adds to the one before it.

  A character that several tokens share is U+FFFD in each.
  """
  found = []
  before: list[int] = []
  for token in map(int, tokens):
    start = tokenizer.decode(before, skip_special=False)
    both = tokenizer.decode([*before, token], skip_special=False)
    if not both.startswith(start):
      start, both = '', tokenizer.decode([token], skip_special=False)
    found.append(both[len(start) :])
    before = [token]
  return found


def _figures(config, temperature, params, micro):
  """Log-prob and entropy of each completion token, [B, T]."""
  hidden, prompt_hidden, _, _ = transformer.routed(
    config, params, micro.tokens, micro.prompts, given=micro.routes
  )
  return vocab_head.logprobs_and_entropy(
    transformer.predictors(hidden, prompt_hidden, micro.tokens, micro.prompts),
    transformer.head(config, params),
    micro.tokens.ids,
    temperature,
  )


def _rounded(values: Any, style: str) -> list[float]:
  # Adding 0 turns -0.0 into 0.0.
  return [float(format(v, style)) + 0.0 for v in np.asarray(values).tolist()]
