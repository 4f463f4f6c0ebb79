"""Reward models: the loss by hand, packing, a preference that is learned."""

import json

import jax
import numpy as np
import pytest
from helpers import EOS, SMALL, distance, letters, noisy, write_lines
from jax import numpy as jnp

from rlzero import reward_model
from rlzero.models import parameters, transformer
from rlzero.runtime import sharding
from rlzero.scoring import reward_model as scorer
from rlzero.scoring import reward_modeling
from rlzero.scoring.reward_modeling import Judgement
from rlzero.text.template import Template
from rlzero.text.tokenizer import Tokenizer
from rlzero.train import sequences, supervised
from rlzero.train.optim import Optimizer
from rlzero.types import Tokens

pytestmark = [
  pytest.mark.model,
  pytest.mark.usefixtures('quick_compilation'),
]


def make_config(base, workdir, data, **changes):
  settings = {
    'template': Template('plain'),
    'batch_size': 8,
    'max_len': 16,
    'micro_tokens': 256,
    'held_out': 0.25,
    'num_steps': 20,
    'optimizer': Optimizer(learning_rate=2e-2),
    **changes,
  }
  return reward_model.Config(
    checkpoint=base, workdir=str(workdir), data=data, **settings
  )


def params_with_score(seed=1):
  rng = np.random.default_rng(seed)
  weight = rng.normal(size=SMALL.width).astype(np.float32)
  score = {'weight': jnp.asarray(weight), 'bias': jnp.float32(0.3)}
  return {**noisy(SMALL), 'score': score}


def judgements(kind, count=7):
  rng = np.random.default_rng(2)

  def ids():
    return rng.integers(2, 13, rng.integers(2, 12)).astype(np.int32)

  if kind == 'pairwise':
    return [Judgement(str(i), (ids(), ids()), 1.0) for i in range(count)]
  return [Judgement(str(i), (ids(),), float(i % 2)) for i in range(count)]


def the_loss(params, rows, frozen=()):
  return reward_modeling.loss(SMALL, params, rows, frozen)


def packed(some, micro_tokens=64, multiple=1):
  items = [reward_modeling.pack_item(j) for j in some]
  return [m for _, m in sequences.pack(items, micro_tokens, 32, multiple)]


def test_marks_by_hand():
  # Better: 3 tokens, worse: 2. The better one's end is token 2, 2 before the
  # worse one's.
  pair = Judgement('p', (np.array([2, 3, EOS]), np.array([2, EOS])), 1.0)
  sign, other = reward_modeling.pack_item(pair).extras
  assert sign.tolist() == [0, 0, 1, 0, 0]
  assert other.tolist() == [0, 0, 2, 0, 0]
  bad = Judgement('p', (np.array([2, EOS]),), 0.0)
  sign, other = reward_modeling.pack_item(bad).extras
  assert sign.tolist() == [0, -1] and other.tolist() == [0, 0]


def one_at_a_time(params, some):
  """Loss and gradient from the score of each sequence in a row of its own."""

  def score(params, ids, size):
    places = jnp.arange(12)[None]
    hidden, _, _ = transformer.forward(
      SMALL, params, Tokens(ids[None], places, jnp.ones_like(places))
    )
    last = params['score']
    return hidden[0, size - 1] @ last['weight'] + last['bias']

  def loss(params, first, second, sizes, label):
    margin = score(params, first, sizes[0])
    margin -= jnp.where(sizes[1] > 0, score(params, second, sizes[1]), 0.0)
    margin = jnp.where(label > 0, margin, -margin)
    return jnp.log1p(jnp.exp(-margin)), margin > 0

  value_and_grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
  total, right, grads = 0.0, 0, jax.tree.map(np.zeros_like, params)
  for one in some:
    both = [*one.sequences, np.zeros(0, np.int32)][:2]
    padded = [np.pad(ids, (0, 12 - len(ids))) for ids in both]
    sizes = np.array([len(ids) for ids in both])
    (value, is_right), new = value_and_grad(params, *padded, sizes, one.label)
    total, right = total + value, right + is_right
    grads = jax.tree.map(np.add, grads, new)
  return (total, right), grads


@pytest.mark.parametrize('kind', ['pairwise', 'pointwise'])
def test_packed_and_sharded_equal_one_at_a_time(kind):
  params, some = jax.device_get(params_with_score()), judgements(kind)
  (total, right), expected = one_at_a_time(params, some)
  grads, totals = supervised.gradient(the_loss)(params, packed(some))
  assert totals['loss'].count == len(some)
  assert totals['accuracy'].total == right
  np.testing.assert_allclose(totals['loss'].total, total, rtol=1e-5)
  # Of a pair the bias has no gradient, and rounding may leave a little.
  assert distance(grads, expected) < 1e-5
  assert float(jnp.linalg.norm(grads['score']['weight'])) > 0
  with sharding.use(sharding.Mesh(data=2, fsdp=4)):
    placed = sharding.device_put_params(parameters.AXES, params)
    micros = [supervised.place(m) for m in packed(some, 512, 8)]
    grads, sums = supervised.gradient(the_loss)(placed, micros)
  assert distance(grads, expected) < 1e-5
  np.testing.assert_allclose(sums['loss'].total, total, rtol=1e-5)


def test_learns_a_preference_and_scores_it(base, tmp_path, capsys):
  # Better is what ends in 'a'; what is thought before does not matter.
  rng = np.random.default_rng(0)
  letters = list('bcdefghij')

  def text(last):
    return ' '.join([*rng.choice(letters, 2), last])

  rows = [
    {
      'prompt': ' '.join(rng.choice(letters, 3)),
      'chosen': text('a'),
      'rejected': text(rng.choice(letters)),
    }
    for _ in range(60)
  ]
  data = write_lines(tmp_path / 'pairs.jsonl', rows)
  workdir = tmp_path / 'run'
  reward_model.run(make_config(base, workdir, data))
  metrics = json.loads((workdir / 'held_out.json').read_text())
  assert metrics['num'] > 5
  assert metrics['accuracy'] > 0.9
  model = scorer.load(str(workdir))
  scores = model.score(
    [{'question': 'b c', 'completion': text(last)} for last in 'abadaeaf']
  )
  assert scores.shape == (8,)
  assert scores[::2].min() > scores[1::2].max()
  # Alone or among others, the score is the same.
  record = {'question': 'b c', 'completion': 'd e a'}
  alone = model.score([record])
  among = model.score([{'question': 'b', 'completion': 'c'}, record] * 9)
  np.testing.assert_allclose(among[1::2], np.repeat(alone, 9), rtol=1e-5)
  # From the state of the last step again: the same bytes.
  first = (workdir / 'model' / 'score.json').read_bytes()
  reward_model.run(make_config(base, workdir, data))
  assert 'resuming from the checkpoint of step 20' in capsys.readouterr().out
  assert (workdir / 'model' / 'score.json').read_bytes() == first


def test_reads_the_summary_or_everything():
  words = ('what', '<think>', 'x', '</think>', 'yes')
  tokens = Tokenizer.word_level(words, '<eos>', '<pad>')  # from 2 on

  def ids(reads):
    return scorer.sequence(
      tokens, Template('plain'), reads, 'what', '<think> x </think> yes'
    ).tolist()

  assert ids('summary') == [2, 6, EOS]
  assert ids('everything') == [2, 3, 4, 5, 6, EOS]


@pytest.mark.parametrize(
  ('kind', 'row', 'message'),
  [
    ('pairwise', {'prompt': 'a', 'chosen': 'b'}, "has no 'rejected'"),
    (
      'pairwise',
      {'prompt': 'a', 'chosen': 'b', 'rejected': 'b'},
      "same 'summary' as chosen and as rejected",
    ),
    ('pointwise', {'prompt': 'a', 'completion': 'b'}, "None as its 'label'"),
    (
      'pointwise',
      {'prompt': 'a', 'completion': 'b', 'label': 2},
      "2 as its 'label'",
    ),
  ],
)
def test_bad_records(tmp_path, kind, row, message):
  cfg = make_config('x', tmp_path, 'x', kind=kind)
  with pytest.raises(ValueError, match=message):
    reward_modeling.encode(cfg, letters(), ('here', row))


def test_completions_that_differ_where_nobody_reads(tmp_path):
  words = ('a', 'b', 'c', 'd', '</think>')
  tokens = Tokenizer.word_level(words, '<eos>', '<pad>')
  row = {'prompt': 'a', 'chosen': 'b </think> d', 'rejected': 'c </think> d'}
  cfg = make_config('x', tmp_path, 'x', reads='everything')
  assert reward_modeling.encode(cfg, tokens, ('here', row)).size == 5
  cfg = make_config('x', tmp_path, 'x', reads='summary')
  with pytest.raises(ValueError, match="same 'summary' as chosen"):
    reward_modeling.encode(cfg, tokens, ('here', row))


def test_bad_settings_and_folders(tmp_path):
  with pytest.raises(ValueError, match=r'reward_model\.Config\.held_out is 1'):
    make_config('x', tmp_path, 'x', held_out=1.0)
  with pytest.raises(ValueError, match="must be 'drop'"):
    make_config('x', tmp_path, 'x', too_long='truncate')
  with pytest.raises(FileNotFoundError, match='holds no reward model'):
    scorer.load(str(tmp_path))
