"""Names, units and meanings of the metrics in `metrics.jsonl`.

The one list of them: the reference in the docs is made from it, and a test
holds the code to it. Add a metric here when you log a new one.
"""

import re
from typing import NamedTuple


class Metric(NamedTuple):
  """A metric that a stage logs."""

  stages: str  # 'grpo', or several with commas
  unit: str
  meaning: str


_FIT = 'sft, distill, reward_model'

# A name in braces stands for any name of that kind.
METRICS = {
  'step': Metric(
    f'grpo, pretrain, {_FIT}', 'updates', 'Updates before this one, from 0.'
  ),
  'alerts': Metric(
    'grpo',
    'names',
    'Alerts that ring, where any does; `alert/NAME` is 0 or 1 in TensorBoard.',
  ),
  # Rewards
  'reward/mean': Metric('grpo', 'reward', 'Mean reward of a completion.'),
  'reward/accuracy': Metric(
    'grpo',
    '0 to 1',
    'Share of completions that are right and in the format; the mean score of '
    'one that a function judges.',
  ),
  'reward/correct': Metric(
    'grpo',
    '0 to 1',
    'Share that is right, whatever the format, of those that a rule judges.',
  ),
  'reward/format': Metric('grpo', '0 to 1', 'Share that is well-formed.'),
  'reward/language': Metric(
    'grpo',
    '0 to 1',
    "Mean share of the thought's words that are in the question's language.",
  ),
  'reward/{score}': Metric(
    'grpo',
    "the score's",
    "Mean of one of the task's own scores, as `part_rewards` names them, over "
    'the completions that it applies to.',
  ),
  'reward/model': Metric(
    'grpo', '0 to 1', 'Mean score of the reward models, after the sigmoid.'
  ),
  'reward/rule': Metric(
    'grpo',
    '0 to 1',
    'Share that is right, of those that a rule judges as well.',
  ),
  'reward/length_penalty': Metric(
    'grpo',
    '-1 to 0',
    'Mean penalty of long completions, before its weight; with '
    '`overlong_buffer`.',
  ),
  'reward/kl_penalty': Metric(
    'grpo', 'reward', "Mean KL that was taken off, with `kl_in='reward'`."
  ),
  'reward/gap': Metric(
    'grpo',
    '-1 to 1',
    '`reward/model` of the same completions minus `reward/rule`; rises if '
    'gamed.',
  ),
  '{task}/reward': Metric(
    'grpo', 'reward', 'Mean reward in one of several tasks.'
  ),
  '{task}/correct': Metric('grpo', '0 to 1', 'Share right in that task.'),
  '{task}/len_mean': Metric('grpo', 'tokens', 'Mean length in that task.'),
  'program/{verdict}': Metric(
    'grpo', '0 to 1', 'Share of the programs with this verdict.'
  ),
  # Completions
  'completion/len_mean': Metric('grpo', 'tokens', 'Mean length.'),
  'completion/len_max': Metric('grpo', 'tokens', 'Length of the longest.'),
  'completion/len_correct': Metric(
    'grpo', 'tokens', 'Mean length of right ones; null without any.'
  ),
  'completion/len_wrong': Metric(
    'grpo', 'tokens', 'Mean length of wrong ones; null without any.'
  ),
  'completion/truncated': Metric('grpo', '0 to 1', 'Share cut at `max_len`.'),
  'completion/tries': Metric(
    'grpo', 'attempts', 'Mean number of attempts at a solution.'
  ),
  'completion/reflection_per_1k': Metric(
    'grpo', 'words per 1,000 tokens', 'Reflective words, such as "wait".'
  ),
  'completion/unscored': Metric(
    'grpo', '0 to 1', 'Share without a verdict: the sum of `scoring/*`.'
  ),
  'completion/left_out': Metric(
    'grpo',
    '0 to 1',
    'Share that the function of the verifier says nothing of (None); only '
    'where there are some.',
  ),
  'logged/{metric}': Metric(
    'grpo', "the metric's", 'Mean of what reward functions log (`log_metric`).'
  ),
  'judge/prompt_tokens': Metric(
    'grpo', 'tokens', 'Mean that a judge read for a completion; 0 if cached.'
  ),
  'judge/completion_tokens': Metric(
    'grpo', 'tokens', 'Mean that a judge wrote for a completion; 0 if cached.'
  ),
  'judge/cached': Metric(
    'grpo', '0 to 1', 'Share of the completions that a judge was not asked.'
  ),
  'completion/repetition': Metric(
    'grpo', '0 to 1', 'Mean share of the 8-grams that are repeats.'
  ),
  'completion/language': Metric(
    'grpo',
    '0 to 1',
    "Mean share of the thought's words that are in its language; 1 without "
    'words, unlike `reward/language`.',
  ),
  'scoring/{status}': Metric(
    'grpo',
    '0 to 1',
    'Share whose verification ended in a timeout, a crash or as junk.',
  ),
  'prompts/too_long': Metric(
    'grpo',
    'prompts per rollout',
    'Drawn and left out, since they are longer than `max_prompt_len`.',
  ),
  'curriculum/passed_over': Metric(
    'grpo',
    'prompts per rollout',
    'Not drawn when their turn came, since the curriculum drew others.',
  ),
  'curriculum/pass_rate': Metric(
    'grpo',
    '0 to 1',
    'Mean estimated pass rate of the problems drawn, before they were asked.',
  ),
  'curriculum/classes': Metric(
    'grpo',
    'classes',
    'Classes of problems whose pass rate the curriculum has an estimate of.',
  ),
  'groups/zero_variance': Metric(
    'grpo', '0 to 1', 'Share of groups whose rewards are all equal.'
  ),
  'groups/rounds': Metric(
    'grpo', 'rounds per rollout', 'Rounds of prompts; with `max_rounds`.'
  ),
  'groups/sampled': Metric(
    'grpo',
    'groups per rollout',
    'Prompts that were sampled; with `max_rounds`.',
  ),
  'groups/kept': Metric(
    'grpo',
    'groups per rollout',
    'Learned from, with verified outcomes that differ; with `max_rounds`.',
  ),
  'groups/filled_up': Metric(
    'grpo',
    'groups per rollout',
    'Learned from with equal outcomes, since too few differ; with '
    '`max_rounds`.',
  ),
  'groups/dropped': Metric(
    'grpo',
    'groups per rollout',
    'Sampled and not learned from; with `max_rounds`.',
  ),
  # Policy
  'policy/loss': Metric(
    'grpo', 'loss', 'Minus the objective, KL term included.'
  ),
  'policy/grad_norm': Metric(
    'grpo', 'norm', "The gradient's norm before clipping."
  ),
  'policy/kl': Metric(
    'grpo',
    'nats per token',
    'KL to the reference by `kl_estimator`; without a KL term, to pi_old.',
  ),
  'policy/entropy': Metric(
    'grpo',
    'nats per token',
    'Mean entropy of the next token; null where no row had an advantage.',
  ),
  'policy/clip_fraction': Metric(
    'grpo', '0 to 1', 'Share of tokens whose gradient the gate limits.'
  ),
  'policy/log_ratio_mean': Metric(
    'grpo', 'nats', 'Mean absolute log of the ratio of pi to pi_old.'
  ),
  'policy/log_ratio_max': Metric(
    'grpo', 'nats', 'The same, at the worst token.'
  ),
  'policy/sampler_learner_mean': Metric(
    'grpo',
    'nats',
    'Mean absolute difference of log-probs between sampler and learner: in '
    'the first update of a rollout, or of recomputed ones.',
  ),
  'policy/sampler_learner_max': Metric(
    'grpo', 'nats', 'The same, at the worst token.'
  ),
  'policy/sampler_learner_kl': Metric(
    'grpo', 'nats per token', 'Estimated KL from the sampler to the learner.'
  ),
  'policy/behaviour_limited': Metric(
    'grpo',
    '0 to 1',
    'Share of tokens whose weight between sampler and learner is cut or 0.',
  ),
  'experts/load_max_over_mean': Metric(
    'grpo',
    'ratio',
    'Load of the busiest expert over the mean, averaged over layers; 1 is '
    'balanced.',
  ),
  'experts/load_entropy': Metric(
    'grpo', '0 to 1', 'Entropy of the load, normalised; 1 is balanced.'
  ),
  # Evaluations during the run, on the validation split
  'eval/pass@1': Metric('grpo', '0 to 1', 'Share right, whatever the format.'),
  'eval/strict': Metric('grpo', '0 to 1', 'Share right and in the format.'),
  'eval/format': Metric('grpo', '0 to 1', 'Share well-formed.'),
  'eval/truncated': Metric('grpo', '0 to 1', 'Share cut at `max_len`.'),
  'eval/tries': Metric('grpo', 'attempts', 'Mean number of attempts.'),
  'eval/len_mean': Metric('grpo', 'tokens', 'Mean length.'),
  'eval/cons@{k}': Metric(
    'grpo', '0 to 1', 'Accuracy of a majority vote over k samples.'
  ),
  # Supervised stages
  'loss/mean': Metric(
    f'pretrain, {_FIT}', 'nats', 'Mean loss per token, or per judgement.'
  ),
  'accuracy/mean': Metric(
    'reward_model', '0 to 1', 'Share of judgements that the model agrees with.'
  ),
  'update/grad_norm': Metric(
    _FIT, 'norm', "The gradient's norm before clipping."
  ),
  'update/learning_rate': Metric(_FIT, 'per update', 'Learning rate used.'),
  # Efficiency
  'update/useful_over_computed': Metric(
    f'grpo, {_FIT}', '0 to 1', 'Tokens that are not padding, of all computed.'
  ),
  'rollout/tokens': Metric(
    'grpo', 'tokens per rollout', 'Sampled, learned from or not.'
  ),
  'rollout/tokens_unused': Metric(
    'grpo',
    'tokens per rollout',
    'Sampled and not learned from: of groups that were dropped, and with '
    '`samples_per_prompt` of completions.',
  ),
  'rollout/slot_use': Metric(
    'grpo', '0 to 1', 'Sampled tokens, of all that slots computed.'
  ),
  'perf/flops_per_s': Metric(
    'grpo',
    'FLOP/s',
    'Model FLOPs of a step (its update, its share of the rollout) over its '
    'time: nothing for padding and recomputation. Like all of `perf/`, of all '
    'devices; not of a rollout that was resumed.',
  ),
  'perf/mfu': Metric(
    'grpo',
    '0 to 1',
    "The same over the devices' bf16 rate, where it is known or given "
    '(`device_flops`).',
  ),
  'perf/update_flops_per_s': Metric(
    'grpo', 'FLOP/s', 'Model FLOPs of the update over its time.'
  ),
  'perf/update_mfu': Metric(
    'grpo', '0 to 1', "The same over the devices' bf16 rate."
  ),
  'perf/rollout_flops_per_s': Metric(
    'grpo', 'FLOP/s', 'Model FLOPs of sampling over its time.'
  ),
  'perf/decode_bytes_per_s': Metric(
    'grpo',
    'bytes/s',
    'Weights, keys and values that sampling has to read, over its time.',
  ),
  'perf/decode_bandwidth_share': Metric(
    'grpo',
    '0 to 1',
    "The same over the devices' memory bandwidth, where it is known or given "
    '(`device_bandwidth`).',
  ),
  'reshard/bytes': Metric(
    'grpo', 'bytes', 'Sent to devices for `rollout_mesh`, per rollout.'
  ),
  'time/reshard_s': Metric('grpo', 's per rollout', 'Resharding the policy.'),
  'time/rollout_s': Metric('grpo', 's per rollout', 'Sampling completions.'),
  'time/score_s': Metric(
    'grpo', 's per rollout', 'Waiting for scores after the last sample.'
  ),
  'time/reference_s': Metric(
    'grpo', 's per rollout', "The reference's log-probs, and recomputed ones."
  ),
  'time/update_s': Metric('grpo', 's', 'The update.'),
  'time/step_s': Metric(
    'grpo', 's', "The update and the step's share of its rollout."
  ),
  'time/tokens_per_s': Metric(
    f'grpo, pretrain, {_FIT}', 'tokens/s', 'Tokens of a step over its time.'
  ),
}

_KINDS = {
  'score': r'\w+',
  'status': r'\w+',
  'task': r'[^/]+',
  'metric': r'.+',
  'verdict': r'\w+',
  'k': r'\d+',
}


def find(name: str) -> str | None:
  """Returns the key of METRICS that a logged name belongs to, or None."""
  if name in METRICS:
    return name
  return next((key for key in METRICS if _pattern(key).fullmatch(name)), None)


def _pattern(key: str) -> re.Pattern[str]:
  parts = re.split(r'\{(\w+)\}', key)
  return re.compile(
    ''.join(
      _KINDS[part] if place % 2 else re.escape(part)
      for place, part in enumerate(parts)
    )
  )
