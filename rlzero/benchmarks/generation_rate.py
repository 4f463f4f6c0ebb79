"""Tokens a second of the rollout alone, beside transformers' `generate`.

  python -m rlzero.benchmarks.generation_rate --model=DIR [--max_len=64]
    [--num_prompts=8] [--group_size=8] [--repeats=3] [--to_the_end]

DIR is a Hugging Face folder that both read. The same rows of the same prompts,
in turn, each once before it counts; the end of a text is drawn by chance, or,
with `--to_the_end`, left out, so that lengths are the same as well. The last
line is JSON: tokens a second and mean length of each, and the ratio.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]

from rlzero import weights
from rlzero.rollout import encoding, programs, scheduler
from rlzero.rollout.sampling import Sampling, StopCriteria
from rlzero.runtime import files, lifecycle
from rlzero.tasks import procedural
from rlzero.text.template import Template

_TASK = procedural.InOrder(
  dataset='chain_sum',
  options={'min_terms': 2, 'max_terms': 2, 'min_digits': 1, 'max_digits': 1},
  num_train=256,
)


def _arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser()
  parser.add_argument('--model', required=True)
  parser.add_argument('--num_prompts', type=int, default=8)
  parser.add_argument('--group_size', type=int, default=8)
  parser.add_argument('--max_len', type=int, default=64)
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--to_the_end', action='store_true')
  return parser.parse_args()


def _ours(
  args: argparse.Namespace,
  loaded: weights.Loaded,
  prompts: Sequence[scheduler.Prompt],
) -> Callable[[int], list[int]]:
  """Compiles; returns a function of a seed, for the completions' lengths."""
  params = jax.device_put(loaded.params)
  sampling = Sampling(
    max_len=args.max_len,
    num_slots=min(args.num_prompts * args.group_size, 64),
    decode_steps=4,
  )
  ends = () if args.to_the_end else loaded.tokenizer.eos_ids
  for program in programs.lower_all(
    loaded.config, params, prompts, args.group_size, sampling, ends
  ):
    program.compile()

  def generate(seed: int) -> list[int]:
    completions, _ = scheduler.generate(
      loaded.config,
      params,
      prompts,
      args.group_size,
      sampling,
      stop=StopCriteria(ends),
      seed=seed,
    )
    return [len(c.tokens) for c in completions]

  return generate


def _theirs(
  args: argparse.Namespace,
  eos_ids: Sequence[int],
  prompts: Sequence[scheduler.Prompt],
) -> Callable[[int], list[int]]:
  """`_ours` with transformers."""
  model = transformers.AutoModelForCausalLM.from_pretrained(
    args.model, dtype=torch.float32
  )

  def generate(seed: int) -> list[int]:
    torch.manual_seed(seed)
    widest = max(len(p.tokens) for p in prompts)
    ids = torch.full((len(prompts), widest), eos_ids[0])
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):  # padded on the left
      ids[i, widest - len(prompt.tokens) :] = torch.tensor(prompt.tokens)
      mask[i, widest - len(prompt.tokens) :] = 1
    with torch.no_grad():
      # Its class is made by a decorator that hides the method's `self`.
      rows = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
        ids.repeat_interleave(args.group_size, 0),
        attention_mask=mask.repeat_interleave(args.group_size, 0),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=args.max_len,
        min_new_tokens=args.max_len if args.to_the_end else None,
        eos_token_id=list(eos_ids),
        pad_token_id=eos_ids[0],
      )
    drawn = rows[:, widest:].numpy()
    stops = np.isin(drawn, eos_ids)
    first = np.where(stops.any(1), stops.argmax(1) + 1, drawn.shape[1])
    return first.tolist()

  return generate


def main() -> None:
  args = _arguments()
  loaded = weights.load(args.model)
  examples = _TASK.examples('train')[: args.num_prompts]
  prompts = encoding.encode_examples(
    loaded.tokenizer, Template('chat'), list(enumerate(examples))
  )
  generators = {
    'ours': _ours(args, loaded, prompts),
    'theirs': _theirs(args, loaded.tokenizer.eos_ids, prompts),
  }
  rates: dict[str, list[float]] = {name: [] for name in generators}
  lengths: dict[str, list[int]] = {name: [] for name in generators}
  for number in range(args.repeats + 1):
    for name, generate in generators.items():
      start = time.perf_counter()
      drawn = generate(number)
      seconds = time.perf_counter() - start
      if number:
        rates[name].append(sum(drawn) / seconds)
        lengths[name].extend(drawn)
  metrics = {
    f'{n}_tokens_per_s': statistics.median(r) for n, r in rates.items()
  }
  metrics |= {f'{n}_mean_len': statistics.mean(x) for n, x in lengths.items()}
  metrics['ratio'] = (
    metrics['ours_tokens_per_s'] / metrics['theirs_tokens_per_s']
  )
  print(files.to_json(metrics))


if __name__ == '__main__':
  lifecycle.reexec_with_malloc_settings()  # as every program here; both gain
  main()
