"""Tokens a second of the rollout alone, beside transformers' `generate`.

  python -m rlzero.benchmarks.generation_rate --model=DIR [--max_len=64]
    [--num_prompts=8] [--group_size=8] [--repeats=3] [--to_the_end]

DIR is a Hugging Face folder that both read. The same rows of the same prompts,
in turn, each once before it counts; the end of a text is drawn by chance, or,
with `--to_the_end`, left out, so that lengths are the same as well. The last
line is JSON: tokens a second and mean length of each, and the ratio.
"""

import argparse
import json
import statistics
import time

import jax
import numpy as np
import torch
import transformers

from rlzero import weights
from rlzero.rollout import encoding, programs, scheduler
from rlzero.rollout.sampling import Sampling
from rlzero.runtime import lifecycle
from rlzero.tasks import procedural
from rlzero.text.template import Template

_TASK = procedural.InOrder(
  dataset='chain_sum',
  options={'min_terms': 2, 'max_terms': 2, 'min_digits': 1, 'max_digits': 1},
  num_train=256,
)


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--model', required=True)
  parser.add_argument('--num_prompts', type=int, default=8)
  parser.add_argument('--group_size', type=int, default=8)
  parser.add_argument('--max_len', type=int, default=64)
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--to_the_end', action='store_true')
  args = parser.parse_args()
  loaded = weights.load(args.model)
  params = jax.device_put(loaded.params)
  examples = _TASK.examples('train')[: args.num_prompts]
  prompts = encoding.encode_examples(
    loaded.tokenizer, Template('chat'), list(enumerate(examples))
  )
  model = transformers.AutoModelForCausalLM.from_pretrained(
    args.model, dtype=torch.float32
  )
  eos_ids = loaded.tokenizer.eos_ids
  sampling = Sampling(
    max_len=args.max_len,
    num_slots=min(args.num_prompts * args.group_size, 64),
    decode_steps=4,
  )
  ends = () if args.to_the_end else eos_ids
  for program in programs.lower_all(
    loaded.config, params, prompts, args.group_size, sampling, ends
  ):
    program.compile()

  def ours(number):
    completions, _ = scheduler.generate(
      loaded.config,
      params,
      prompts,
      args.group_size,
      sampling,
      eos_ids=ends,
      seed=number,
    )
    return [len(c.tokens) for c in completions]

  def theirs(number):
    torch.manual_seed(number)
    widest = max(len(p.tokens) for p in prompts)
    ids = torch.full((len(prompts), widest), eos_ids[0])
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):  # padded on the left
      ids[i, widest - len(prompt.tokens) :] = torch.tensor(prompt.tokens)
      mask[i, widest - len(prompt.tokens) :] = 1
    with torch.no_grad():
      rows = model.generate(
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

  rates, lengths = {}, {}
  for number in range(args.repeats + 1):
    for name, generate in (('ours', ours), ('theirs', theirs)):
      start = time.perf_counter()
      drawn = generate(number)
      seconds = time.perf_counter() - start
      if number:
        rates.setdefault(name, []).append(sum(drawn) / seconds)
        lengths.setdefault(name, []).extend(drawn)
  metrics = {
    f'{n}_tokens_per_s': statistics.median(r) for n, r in rates.items()
  }
  metrics |= {f'{n}_mean_len': statistics.mean(x) for n, x in lengths.items()}
  metrics['ratio'] = (
    metrics['ours_tokens_per_s'] / metrics['theirs_tokens_per_s']
  )
  print(json.dumps(metrics))


if __name__ == '__main__':
  lifecycle.reexec_with_malloc_settings()  # as every program here; both gain
  main()
