"""Pre-training: packing, learning, and going on where it was."""

import dataclasses
import os
import signal

import jax
import numpy as np
import optax
import pytest

from rlzero import pretrain
from rlzero.models import transformer
from rlzero.models.config import ModelConfig
from rlzero.runtime import lifecycle, metrics
from rlzero.tasks import countdown
from rlzero.text.tokenizer import Tokenizer
from rlzero.train import folders, pretraining
from rlzero.train.optim import Optimizer

pytestmark = pytest.mark.model

_MODEL = ModelConfig(
  vocab_size=123,
  num_layers=2,
  width=32,
  mlp_width=64,
  num_heads=2,
  num_kv_heads=2,
  head_dim=16,
  max_position=256,
)


def _config(workdir, **changes):
  settings = {
    'model': _MODEL,
    'optimizer': Optimizer(kind='muon', learning_rate=1e-2),
    'num_steps': 6,
    'num_rows': 4,
    'save_every': 3,
    **changes,
  }
  return pretrain.Config(workdir=str(workdir), **settings)


def test_batch_is_made_of_whole_documents(tmp_path):
  cfg = _config(tmp_path)
  tokenizer = Tokenizer.word_level(countdown.WORDS, '<eos>', '<pad>')
  rows = pretraining.batch(cfg, tokenizer, 5)
  documents = cfg.corpus.documents(5)
  count = rows.segments.max()
  found = {}
  for ids, positions, segments in zip(*rows, strict=True):
    for number in set(segments.tolist()) - {0}:
      chosen = segments == number
      assert positions[chosen].tolist() == list(range(chosen.sum()))
      found[number] = ids[chosen]
  assert sorted(found) == list(range(1, count + 1))
  for number in range(1, count + 1):
    *body, last = found[number].tolist()
    assert last == tokenizer.eos_ids[0]
    assert tokenizer.decode(body) == next(documents)
  assert (rows.segments > 0).mean() > 0.7
  again = pretraining.batch(cfg, tokenizer, 5)
  assert (again.ids == rows.ids).all()


@pytest.mark.slow
def test_learns_and_goes_on_with_the_same_bits(tmp_path, monkeypatch):
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  pretrain.run(_config(whole))
  losses = [row['loss/mean'] for row in metrics.read_metrics(str(whole))]
  assert losses[-1] < losses[0] - 0.5
  batch = pretraining.batch

  def killed(cfg, tokenizer, step):
    if step == 4:
      raise KeyboardInterrupt
    return batch(cfg, tokenizer, step)

  monkeypatch.setattr(pretraining, 'batch', killed)
  with pytest.raises(KeyboardInterrupt):
    pretrain.run(_config(cut))
  monkeypatch.undo()
  pretrain.run(_config(cut))
  first, second = (
    folders.load_model(str(d / 'model')).params for d in (whole, cut)
  )
  jax.tree.map(np.testing.assert_array_equal, first, second)
  again = [row['loss/mean'] for row in metrics.read_metrics(str(cut))]
  assert again == losses


def test_vocabulary_larger_than_the_embedding(tmp_path):
  small = ModelConfig(
    vocab_size=100,
    num_layers=1,
    width=8,
    mlp_width=8,
    num_heads=1,
    num_kv_heads=1,
    head_dim=8,
  )
  with pytest.raises(ValueError, match='123 words.*vocab_size is 100'):
    pretrain.run(_config(tmp_path, model=small))


def test_document_longer_than_a_row(tmp_path):
  with pytest.raises(ValueError, match='make the rows longer'):
    pretrain.run(_config(tmp_path, row_len=8))


def test_a_vocabulary_grows_from_translations(tmp_path):
  english = Tokenizer.word_level(countdown.WORDS, '<eos>', '<pad>')
  params = transformer.init(_MODEL, jax.random.key(1))
  old = folders.write_model(str(tmp_path), _MODEL, params, english)
  corpus = countdown.Corpus(languages=('en', 'zh'))
  cfg = _config(
    tmp_path / 'new',
    model=dataclasses.replace(_MODEL, vocab_size=131),
    corpus=corpus,
    checkpoint=old,
  )
  tokenizer = Tokenizer.word_level(corpus.words, '<eos>', '<pad>')
  grown, _ = pretraining.initial(cfg, tokenizer, optax.identity())
  for name in params['layers']:
    jax.tree.map(
      np.testing.assert_array_equal,
      grown['layers'][name],
      params['layers'][name],
    )
  before, after = (p['embed']['embedding'] for p in (params, grown))
  np.testing.assert_array_equal(after[:123], before)
  places = [
    [tokenizer.encode(word)[0] for word in pair]
    for pair in corpus.translations.items()
  ]
  assert sorted(new for new, _ in places) == list(range(123, 131))
  away = np.stack([after[new] - after[near] for new, near in places])
  np.testing.assert_allclose(away, away[:1].repeat(8, 0), atol=1e-6)
  assert 0.5 < np.std(away[0]) / np.std(before) < 2
  with pytest.raises(ValueError, match='same up to vocab_size'):
    pretraining.initial(
      _config(
        tmp_path, checkpoint=old, model=dataclasses.replace(_MODEL, width=64)
      ),
      tokenizer,
      optax.identity(),
    )
  with pytest.raises(ValueError, match='not the first of the corpus'):
    pretraining.initial(
      cfg,
      Tokenizer.word_level(corpus.words[1:], '<eos>', '<pad>'),
      optax.identity(),
    )


@pytest.mark.slow
def test_sigterm_saves_and_ends_with_a_code_of_its_own(tmp_path, monkeypatch):
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  pretrain.run(_config(whole, num_steps=3, save_every=3))
  batch = pretraining.batch

  def told(cfg, tokenizer, step):
    if step == 1:
      os.kill(os.getpid(), signal.SIGTERM)
    return batch(cfg, tokenizer, step)

  monkeypatch.setattr(pretraining, 'batch', told)
  with pytest.raises(SystemExit) as ended:
    pretrain.run(_config(cut, num_steps=3, save_every=3))
  assert ended.value.code == lifecycle.PREEMPTED == 75
  assert len(metrics.read_metrics(str(cut))) == 2
  monkeypatch.undo()
  pretrain.run(_config(cut, num_steps=3, save_every=3))
  first, second = (
    folders.load_model(str(d / 'model')).params for d in (whole, cut)
  )
  jax.tree.map(np.testing.assert_array_equal, first, second)
