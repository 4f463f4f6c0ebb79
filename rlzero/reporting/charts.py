"""The charts of a run: titles, notes and metrics, for both pages."""

from typing import Literal, NamedTuple


class Chart(NamedTuple):
  """A chart over the steps of a run, unless its kind says otherwise.

  A kind other than 'lines' adds to the metrics what is not one: evaluations
  before and after, slopes, or accuracy against allowed length.
  """

  title: str
  note: str
  names: tuple[str, ...]  # metrics; {k} stands for any number
  kind: Literal['lines', 'accuracy', 'length', 'allowed'] = 'lines'
  share: bool = False  # values lie between 0 and 1
  log: bool = False


# The paper's figures and the signs of trouble: on the static page, too.
CHARTS = (
  Chart(
    'Accuracy over training',
    'The paper’s Figure 2. Squares: before and after, 95% intervals.',
    ('reward/correct', 'eval/pass@1', 'eval/cons@{k}'),
    kind='accuracy',
    share=True,
  ),
  Chart(
    'Mean completion length, tokens',
    'The paper’s Figure 3, with the slope of each sixth of the run.',
    ('completion/len_mean',),
    kind='length',
  ),
  Chart(
    'Reflective words per thousand tokens',
    'Wait, mistake, however, but, retry, error, verify, wrong, …',
    ('completion/reflection_per_1k',),
  ),
  Chart(
    'Tries in a completion',
    'Attempts at a solution that a completion goes through.',
    ('completion/tries',),
  ),
  Chart(
    'Format and truncation',
    'Shares of completions.',
    ('reward/format', 'completion/truncated'),
    share=True,
  ),
  Chart(
    'Length of right and wrong answers, tokens',
    'Where only wrong answers grow, the length is not thought.',
    ('completion/len_correct', 'completion/len_wrong'),
  ),
  Chart(
    'Accuracy against allowed length',
    'What is right within so many tokens.',
    (),
    kind='allowed',
    share=True,
  ),
  Chart(
    'Groups without a signal',
    'Share of groups whose completions were all rewarded alike.',
    ('groups/zero_variance',),
    share=True,
  ),
  Chart(
    'KL from the reference',
    'It falls where the reference is replaced.',
    ('policy/kl',),
  ),
  Chart('Entropy of the policy', 'Nats a token.', ('policy/entropy',)),
  Chart(
    '|sampler − learner| log-prob',
    'How far the two are apart on the tokens that were sampled.',
    ('policy/sampler_learner_max', 'policy/sampler_learner_mean'),
    log=True,
  ),
)

# The live page shows these as well.
LIVE_CHARTS = (
  Chart('Mean reward', 'Of a completion, all its parts.', ('reward/mean',)),
  Chart('Loss', 'Nats a token, in the stages that fit.', ('loss/mean',)),
  Chart('Norm of the gradient', 'Before clipping.', ('policy/grad_norm',)),
  Chart('Tokens a second', 'Of a step, over its time.', ('time/tokens_per_s',)),
  Chart(
    'Model FLOPs utilization (MFU)',
    'Of what the devices could compute, where their peak is known.',
    ('perf/mfu', 'perf/update_mfu'),
  ),
  Chart(
    'Time of a step, seconds',
    'The update and the step’s share of its rollout.',
    ('time/step_s', 'time/update_s'),
  ),
)
