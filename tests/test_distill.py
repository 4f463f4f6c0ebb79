"""Distillation: traces as in SFT, and KL to a teacher."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import (
  SMALL,
  distance,
  letters,
  make_examples,
  mostly_slow,
  noisy,
  packed,
  write_lines,
)
from jax import numpy as jnp

from rlzero import distill, sft
from rlzero.models import parameters, transformer
from rlzero.rollout.sampling import Sampling
from rlzero.runtime import metrics, sharding
from rlzero.text.template import Template
from rlzero.text.tokenizer import Tokenizer
from rlzero.train import distillation, folders, supervised
from rlzero.train.optim import Optimizer
from rlzero.types import Tokens
from rlzero.weights import hf

pytestmark = [
  pytest.mark.model,
  pytest.mark.usefixtures('quick_compilation'),
]

# As wide again, and with an embedding that is padded further.
TEACHER = dataclasses.replace(SMALL, width=32, mlp_width=48, vocab_size=16)


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp('teacher'))
  hf.write_folder(folder, TEACHER, teacher_params(), letters())
  return folder


def teacher_params():
  params = transformer.init(TEACHER, jax.random.key(5))
  # Louder than at the start, so that it has something to say.
  return jax.device_get(jax.tree.map(lambda x: 3 * x, params))


def make_config(base, workdir, data, **changes):
  settings = {
    'template': Template('plain'),
    'batch_size': 4,
    'max_len': 32,
    'micro_tokens': 128,
    'optimizer': Optimizer(learning_rate=1e-2, schedule='cosine'),
    **changes,
  }
  return distill.Config(
    checkpoint=base, workdir=str(workdir), data=data, **settings
  )


def one_at_a_time(params, other, examples, direction):
  """Sums of KL and gradient from plain rows of one example."""

  def loss(params, other, ids, mask):
    places = jnp.arange(ids.size)[None]
    rows = Tokens(ids[None], places, jnp.ones_like(places))

    def logprobs(config, params):
      hidden, _, _ = transformer.forward(config, params, rows)
      logits = hidden[0] @ transformer.head(config, params)
      return jax.nn.log_softmax(logits[:-1, :13])

    q, p = logprobs(SMALL, params), logprobs(TEACHER, other)
    a, b = (p, q) if direction == 'forward' else (q, p)
    return jnp.sum(jnp.sum(jnp.exp(a) * (a - b), axis=-1) * mask[1:])

  value_and_grad = jax.jit(jax.value_and_grad(loss))
  total, grads = 0.0, jax.tree.map(np.zeros_like, params)
  for example in examples:
    ids, mask = np.zeros(20, np.int32), np.zeros(20, np.float32)
    ids[: example.size] = example.ids
    mask[example.prompt_len : example.size] = 1
    value, new = value_and_grad(params, other, ids, mask)
    total, grads = total + value, jax.tree.map(np.add, grads, new)
  return total, grads


@pytest.mark.slow
def test_packed_and_sharded_equal_one_at_a_time():
  direction = 'reverse'  # both are in test_losses
  params, other = jax.device_get(noisy(SMALL)), teacher_params()
  examples = make_examples()
  total, expected = one_at_a_time(params, other, examples, direction)

  def loss(params, rows, frozen):
    return distillation.loss(SMALL, TEACHER, direction, params, rows, frozen)

  grads, totals = supervised.gradient(loss)(params, packed(examples), other)
  assert distance(grads, expected) < 1e-5
  np.testing.assert_allclose(totals['loss'].total, total, rtol=1e-5)
  with sharding.use(sharding.Mesh(data=2, fsdp=4)):
    placed, frozen = (
      sharding.device_put_params(parameters.AXES, p) for p in (params, other)
    )
    micros = [supervised.place(m) for m in packed(examples, 512, 8)]
    grads, sums = supervised.gradient(loss)(placed, micros, frozen)
  assert distance(grads, expected) < 1e-5
  np.testing.assert_allclose(sums['loss'].total, total, rtol=1e-5)


ROWS = [
  {'prompt': x, 'completion': f'{y} {z}'}
  for x, y, z in zip('abcdef', 'bcdefg', 'cdefgh', strict=True)
]


def test_traces_are_learned_as_by_sft(base, tmp_path):
  data = write_lines(tmp_path / 'data.jsonl', ROWS)
  distill.run(make_config(base, tmp_path / 'distill', data, num_steps=2))
  cfg = make_config(base, tmp_path / 'sft', data, num_steps=2)
  names = [f.name for f in dataclasses.fields(sft.Config)]
  sft.run(sft.Config(**{name: getattr(cfg, name) for name in names}))
  first, second = (
    folders.load_model(str(tmp_path / name / 'model')).params
    for name in ('distill', 'sft')
  )
  jax.tree.map(np.testing.assert_array_equal, first, second)


@mostly_slow(
  ('loss', 'on_policy'),
  {'teacher': ('forward_kl', False), 'on-policy': ('reverse_kl', True)},
  quick=('teacher',),
)
def test_student_comes_close_and_goes_on(
  base,
  teacher,
  tmp_path,
  monkeypatch,
  loss,
  on_policy,
):
  data = write_lines(tmp_path / 'data.jsonl', ROWS)

  def cfg(name):
    return make_config(
      base,
      tmp_path / name,
      data,
      loss=loss,
      teacher=teacher,
      on_policy=on_policy,
      sampling=Sampling(max_len=8, max_prompt_len=8, num_slots=8),
      num_steps=24,
      save_every=8,
    )

  distill.run(cfg('whole'))
  losses = [
    r['loss/mean'] for r in metrics.read_metrics(str(tmp_path / 'whole'))
  ]
  # What a student says itself differs from step to step.
  share = 0.8 if on_policy else 0.5
  assert np.mean(losses[-4:]) < share * np.mean(losses[:4])
  if not on_policy:  # the loop is that of test_sft
    return
  batch = supervised.Order.batch

  def killed(self, step):
    if step == 12:
      raise KeyboardInterrupt
    return batch(self, step)

  monkeypatch.setattr(supervised.Order, 'batch', killed)
  with pytest.raises(KeyboardInterrupt):
    distill.run(cfg('cut'))
  monkeypatch.undo()
  distill.run(cfg('cut'))
  again = [r['loss/mean'] for r in metrics.read_metrics(str(tmp_path / 'cut'))]
  assert again == losses


def test_teacher_with_another_tokenizer(base, tmp_path):
  words = Tokenizer.word_level(tuple('abcdefghikj'), '<eos>', '<pad>')
  hf.write_folder(str(tmp_path / 't'), TEACHER, teacher_params(), words)
  cfg = make_config(
    base, tmp_path, 'x', loss='forward_kl', teacher=str(tmp_path / 't')
  )
  with pytest.raises(ValueError, match="give 'j' different ids"):
    distillation.load_teacher(cfg, letters())


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'loss': 'forward_kl'}, "teacher is '' with loss 'forward_kl'"),
    ({'teacher': 'x'}, "teacher is 'x' with loss 'traces'"),
    ({'on_policy': True}, 'teach the student its own completions'),
    (
      {'on_policy': True, 'loss': 'reverse_kl', 'teacher': 'x'},
      'allows 1280 tokens .* but max_len is 32',
    ),
  ],
)
def test_bad_settings(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    make_config('x', tmp_path, 'x', **changes)
