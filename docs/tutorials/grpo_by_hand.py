"""Trains R1-Zero on Countdown by hand: GRPO out of the library's parts.

python docs/tutorials/grpo_by_hand.py [STEPS]
"""

import sys

import numpy as np

from rlzero.rl import learner, objective
from rlzero.rl.objectives import advantages
from rlzero.rollout import encoding, sampling, scheduler
from rlzero.scoring import grade, reward_pool
from rlzero.tasks import countdown
from rlzero.tasks.datasets import stream
from rlzero.text.template import Template
from rlzero.train import folders, optim, packing

MAX_LEN, SEED = 144, 0  # tokens of a completion


def main(num_steps: int, num_prompts: int = 8, group_size: int = 8) -> None:
  """Prints reward and length after each of the steps."""
  task, template = countdown.Countdown(), Template('short')
  base = folders.load_model(folders.embedded('tiny_base'))
  tokenizer, model = base.tokenizer, base.config
  optimizer = optim.Optimizer(learning_rate=6e-5, b2=0.99)
  update = learner.Learner(
    model,
    objective.Objective(kl_coef=0.0),
    optimizer.transform(num_steps),
    micro_tokens=4096,
  )
  state = update.init(base.params)
  settings = sampling.Sampling(max_len=MAX_LEN, max_prompt_len=16)
  problems = stream.prompt_stream(task.examples('train'), SEED)
  with reward_pool.RewardPool({task.name: task}, template.kind) as pool:
    for step in range(num_steps):
      # 1. Complete each prompt `group_size` times.
      sampled = problems.next(num_prompts)
      prompts = encoding.encode_examples(tokenizer, template, sampled)
      completions, _ = scheduler.generate(
        model, state.params, prompts, group_size, settings,
        stop=encoding.stop_criteria(tokenizer), seed=SEED,
      )  # fmt: skip
      # 2. Reward a right answer, and the format.
      examples = [example for _, example in sampled]
      graded = grade.score(
        pool, task, tokenizer, examples, prompts, completions
      )
      rewards = np.float32([g['accuracy'] + g['format'] for g in graded])
      # 3. Compare each completion with the others of its group.
      advantage = advantages.of_rewards(rewards.reshape(-1, group_size))
      # 4. Update the policy once.
      batch = packing.RolloutBatch(
        prompts=[p.tokens for p in prompts],
        prompt_index=np.repeat(np.arange(num_prompts), group_size),
        completions=[c.tokens for c in completions],
        old_logprobs=[c.logprobs for c in completions],
        ref_logprobs=None,
        advantages=np.asarray(advantage).reshape(-1),
      )
      state, metrics = update.update(state, batch)
      print(
        f'step {step}  reward {rewards.mean():.2f}  '
        f'length {np.mean([g["len"] for g in graded]):.0f}  '
        f'|sampler - learner| {metrics["policy/old_mismatch_max"]:.1e}'
      )


if __name__ == '__main__':
  main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
