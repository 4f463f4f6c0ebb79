"""Fine-tuning: what is learned, packing, mixing, and going on."""

import collections
import os
import signal

import jax
import numpy as np
import optax
import pytest
from helpers import (
  SMALL,
  as_hosts,
  distance,
  letters,
  make_examples,
  noisy,
  packed,
  write_lines,
)
from jax import numpy as jnp

from rlzero import sft
from rlzero.models import parameters, transformer
from rlzero.runtime import config, lifecycle, metrics, saved_config, sharding
from rlzero.tasks.datasets import records
from rlzero.text.template import Template
from rlzero.train import (
  checkpoint,
  demonstrations,
  folders,
  supervised,
)
from rlzero.train.optim import Optimizer
from rlzero.types import Tokens

pytestmark = [
  pytest.mark.model,
  pytest.mark.usefixtures('quick_compilation'),
]

EOS = 1
CHAT = (
  "{% for m in messages %}{{ m['content'] }} {% endfor %}"
  '{% if add_generation_prompt %}k{% endif %}'
)


def make_config(base, workdir, data, **changes):
  settings = {
    'template': Template('plain'),
    'batch_size': 4,
    'max_len': 32,
    'micro_tokens': 128,
    'save_every': 2,
    'optimizer': Optimizer(learning_rate=3e-2, b2=0.95, schedule='cosine'),
    **changes,
  }
  return sft.Config(
    checkpoint=base, workdir=str(workdir), data=data, **settings
  )


def one_at_a_time(params, examples):
  """Sums of loss, tokens and gradient, from plain rows of one example."""

  def loss(params, ids, mask):
    places = jnp.arange(ids.size)[None]
    rows = Tokens(ids[None], places, jnp.ones_like(places))
    hidden, _, _ = transformer.forward(SMALL, params, rows)
    logits = hidden[0] @ transformer.head(SMALL, params)
    terms = optax.softmax_cross_entropy_with_integer_labels(
      logits[:-1], ids[1:]
    )
    return jnp.sum(terms * mask[1:])

  value_and_grad = jax.jit(jax.value_and_grad(loss))
  total, count, grads = 0.0, 0, jax.tree.map(np.zeros_like, params)
  for example in examples:
    ids = np.zeros(20, np.int32)  # padded on the right: no one looks there
    ids[: example.ids.size] = example.ids
    mask = np.zeros(20, np.float32)
    mask[example.prompt_len : example.ids.size] = 1
    value, new = value_and_grad(params, ids, mask)
    total, count = total + value, count + mask.sum()
    grads = jax.tree.map(np.add, grads, new)
  return grads, total, count


def _notes(seen):
  """An encoder that notes the places of what it encodes."""

  def encode(record):
    seen.append(record[0])
    return demonstrations.encode(letters(), Template('plain'), record)

  return encode


def _loading(cfg, seen):
  return lambda: supervised.load(
    cfg, _notes(seen), lambda _: None, demonstrations.Example._make
  )


def test_hosts_encode_a_share_each_and_have_all(monkeypatch, tmp_path):
  rows = [{'prompt': 'a', 'completion': 'b ' * n} for n in range(1, 8)]
  cfg = make_config('', tmp_path, write_lines(tmp_path / 'a.jsonl', rows))
  ((*whole,),) = _loading(cfg, everything := [])()
  monkeypatch.setattr(supervised, '_BLOCK', 4)
  seen = [], []
  for (found,) in as_hosts(monkeypatch, [_loading(cfg, some) for some in seen]):
    for example, same in zip(found, whole, strict=True):
      assert example.prompt_len == same.prompt_len
      assert example.ids.dtype == same.ids.dtype
      np.testing.assert_array_equal(example.ids, same.ids)
  # Each record once: of four and then of three, the first host takes two.
  assert [len(some) for some in seen] == [4, 3]
  assert sorted(seen[0] + seen[1]) == sorted(everything)


def test_a_record_that_one_host_cannot_use_ends_both(monkeypatch, tmp_path):
  rows = [{'prompt': 'a', 'completion': 'b'}] * 5 + [{'prompt': 'a'}]
  cfg = make_config('', tmp_path, write_lines(tmp_path / 'a.jsonl', rows))
  for error in as_hosts(monkeypatch, [_loading(cfg, [])] * 2):
    assert type(error) is ValueError
    assert "a.jsonl:6 has no 'completion'" in str(error)
  # Files that are not the same on both.
  short = make_config('', tmp_path, write_lines(tmp_path / 'b.jsonl', rows[:4]))
  for error in as_hosts(monkeypatch, [_loading(cfg, []), _loading(short, [])]):
    assert 'has fewer records on one host than on another' in str(error)


def the_loss(params, rows, frozen=()):
  return demonstrations.loss(SMALL, params, rows, frozen)


def test_prompt_is_read_and_completion_learned():
  # 'a b' asks, 'c' answers: what is learned is c = 4 and EOS = 1.
  record = 'here', {'prompt': 'a b', 'completion': 'c'}
  example = demonstrations.encode(letters(), Template('plain'), record)
  assert example.ids.tolist() == [2, 3, 4, EOS]
  assert example.completion.tolist() == [4, EOS]
  assert demonstrations.pack_item(example).extras.tolist() == [0, 0, 1, 1]
  # A completion that brings its EOS along gets no second one.
  record = 'here', {'prompt': 'a b', 'completion': 'c <eos>'}
  again = demonstrations.encode(letters(), Template('plain'), record)
  assert again.ids.tolist() == example.ids.tolist()


def test_chat_template_is_applied_to_prompts_and_messages():
  words = letters(CHAT)
  turns = [
    {'role': 'system', 'content': 'a'},
    {'role': 'user', 'content': 'b'},
    {'role': 'assistant', 'content': 'c d'},
  ]
  example = demonstrations.encode(
    words, Template('chat'), ('here', {'messages': turns})
  )
  assert words.decode(example.ids[: example.prompt_len].tolist()) == 'a b k'
  assert example.completion.tolist() == [4, 5, EOS]
  record = 'here', {'prompt': 'b', 'completion': 'c'}
  example = demonstrations.encode(words, Template('chat', system='a'), record)
  assert words.decode(example.ids[: example.prompt_len].tolist()) == 'a b k'


def test_uniform_model_by_hand():
  # Embedding of zeros: every token has probability 1 / 13, whatever it is.
  params = jax.tree.map(jnp.zeros_like, noisy(SMALL))
  example = demonstrations.Example(np.array([2, 3, 4, EOS], np.int32), 2)
  (micro,) = packed([example])
  value, totals = jax.jit(the_loss)(params, micro)
  np.testing.assert_allclose(value, 2 * np.log(13), rtol=1e-6)
  assert totals['loss'].count == 2


@pytest.mark.parametrize('micro_tokens', [144, 128, 64])
def test_packed_equals_one_at_a_time(micro_tokens):
  params, examples = noisy(SMALL), make_examples()
  expected, total, count = one_at_a_time(params, examples)
  micros = packed(examples, micro_tokens)
  assert len(micros) == {144: 1, 128: 2, 64: 3}[micro_tokens]
  grads, totals = supervised.gradient(the_loss)(params, micros)
  assert totals['loss'].count == count
  np.testing.assert_allclose(totals['loss'].total, total, rtol=1e-5)
  for one, other in zip(
    jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True
  ):
    assert distance(one, other) < 1e-5


def test_sharded_equals_unsharded():
  params, examples = jax.device_get(noisy(SMALL)), make_examples()
  expected, totals = supervised.gradient(the_loss)(params, packed(examples))
  with sharding.use(sharding.Mesh(data=2, fsdp=4)):
    placed = sharding.device_put_params(parameters.AXES, params)
    micros = [
      jax.tree.map(lambda x: sharding.device_put(x, 'BT'), m)
      for m in packed(examples, 512, 8)
    ]
    grads, sums = supervised.gradient(the_loss)(placed, micros)
  assert distance(grads, expected) < 1e-5
  np.testing.assert_allclose(sums['loss'].value, totals['loss'].value, 1e-5)


def test_an_epoch_has_each_source_in_its_share():
  # Of 4 all, of 5 the next 3: after 5 epochs each of the 5 three times.
  order = supervised.Order([4, 5], [0, 3], seed=3, batch_size=7)
  assert order.epoch_size == 7
  assert order.num_steps(2.0) == 2
  epochs = [order.batch(step) for step in range(5)]
  for epoch in epochs:
    assert sorted(epoch)[:4] == [0, 1, 2, 3]
  counts = collections.Counter(i for epoch in epochs for i in epoch)
  assert counts == dict.fromkeys(range(4), 5) | dict.fromkeys(range(4, 9), 3)
  assert epochs[0] != epochs[1]
  # The batch size cuts the same order elsewhere; another seed changes it.
  small = supervised.Order([4, 5], [0, 3], seed=3, batch_size=2)
  flat = [i for epoch in epochs for i in epoch]
  assert [i for s in range(17) for i in small.batch(s)] == flat[:34]
  other = supervised.Order([4, 5], [0, 3], seed=4, batch_size=7)
  assert other.batch(0) != epochs[0]


def test_small_source_is_repeated_to_fill_its_share():
  order = supervised.Order([2], [5], seed=0, batch_size=5)
  assert sorted(collections.Counter(order.batch(0)).values()) == [2, 3]


def test_learns_and_goes_on_with_the_same_bits(base, tmp_path, monkeypatch):
  # The next two letters of the alphabet.
  rows = [
    {'prompt': x, 'completion': f'{y} {z}'}
    for x, y, z in zip('abcdef', 'bcdefg', 'cdefgh', strict=True)
  ]
  data = write_lines(tmp_path / 'data.jsonl', rows)
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  sft.run(make_config(base, whole, data, num_steps=30, save_every=4))
  rows = metrics.read_metrics(str(whole))
  losses = [row['loss/mean'] for row in rows]
  assert losses[-1] < 0.1 * losses[0]
  # The first update divides by its learned tokens, once.
  cfg = make_config(base, cut, data, num_steps=30, save_every=4)
  examples, order = demonstrations.load(cfg, letters())
  micros = packed([examples[i] for i in order.batch(0)])
  params = folders.load_model(base).params
  grads, totals = supervised.gradient(the_loss)(params, micros)
  norm = optax.tree.norm(grads) / totals['loss'].count
  np.testing.assert_allclose(rows[0]['update/grad_norm'], norm, rtol=1e-4)
  batch = supervised.Order.batch

  def stopped(self, step):
    if step == 6:  # saves and ends
      os.kill(os.getpid(), signal.SIGTERM)
    if step == 11:  # loses what came after the last checkpoint
      raise KeyboardInterrupt
    return batch(self, step)

  monkeypatch.setattr(supervised.Order, 'batch', stopped)
  with pytest.raises(SystemExit, match=str(lifecycle.PREEMPTED)):
    sft.run(cfg)
  assert checkpoint.Store(str(cut), read_only=True).latest() == 7
  with pytest.raises(KeyboardInterrupt):
    sft.run(cfg)
  monkeypatch.undo()
  sft.run(make_config(base, cut, data, num_steps=30, save_every=4))
  first, second = (
    folders.load_model(str(d / 'model')).params for d in (whole, cut)
  )
  jax.tree.map(np.testing.assert_array_equal, first, second)
  again = [row['loss/mean'] for row in metrics.read_metrics(str(cut))]
  assert again == losses


def test_longer_examples_are_dropped_or_cut(base, tmp_path, capsys):
  rows = [
    {'prompt': 'a', 'completion': 'b c'},
    {'prompt': 'a', 'completion': 'b c d e f'},
    {'prompt': 'a b c d e f', 'completion': 'a'},
  ]
  data = write_lines(tmp_path / 'data.jsonl', rows)

  def load(too_long):
    cfg = make_config(base, tmp_path, data, max_len=5, too_long=too_long)
    return [e.ids.tolist() for e in demonstrations.load(cfg, letters())[0]]

  assert load('drop') == [[2, 3, 4, EOS]]
  said = '1 examples, 4 tokens; 2 were longer than 5 and left out'
  assert said in capsys.readouterr().out
  # What is cut does not end; a prompt that leaves no room has no completion.
  assert load('truncate') == [[2, 3, 4, EOS], [2, 3, 4, 5, 6]]
  cfg = make_config(base, tmp_path, data, max_len=3)
  with pytest.raises(ValueError, match='All 3 examples.*max_len = 3'):
    demonstrations.load(cfg, letters())


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    ({'question': 'a'}, r"data\.jsonl:1 has no 'prompt' but 'question'"),
    ({'prompt': 'a'}, "has no 'completion' but 'prompt'"),
    ({'prompt': 'a', 'completion': ''}, "has '' as its 'completion'"),
    ({'messages': [{'role': 'user', 'content': 'a'}]}, 'do not end with'),
    (
      {
        'messages': [
          {'role': 'user', 'content': 'a'},
          {'role': 'assistant', 'content': ''},
        ]
      },
      'empty last message',
    ),
    ({'prompt': 'a', 'completion': 'z'}, "no id for 'z'"),
  ],
)
def test_bad_records(base, tmp_path, row, message):
  data = write_lines(tmp_path / 'data.jsonl', [row])
  with pytest.raises(ValueError, match=message):
    demonstrations.load(make_config(base, tmp_path, data), letters(CHAT))


def test_bad_settings(base, tmp_path):
  with pytest.raises(ValueError, match=r'sft\.Config\.batch_size is 0'):
    make_config(base, tmp_path, 'x', batch_size=0)
  with pytest.raises(ValueError, match='data is empty'):
    make_config(base, tmp_path, ())
  with pytest.raises(ValueError, match='takes 2048 tokens'):
    make_config(base, tmp_path, 'x', max_len=4096).model(SMALL)


def test_sources_come_from_gin(base, tmp_path):
  data = write_lines(tmp_path / 'data.jsonl', [{'q': 'a', 'completion': 'b'}])
  gin = tmp_path / 'run.gin'
  gin.write_text(f"""
from __gin__ import dynamic_registration
from rlzero import sft
from rlzero.tasks.datasets import records
sft.Config.data = [@one/records.Source(), @two/records.Source()]
one/records.Source.path = '{data}'
two/records.Source.path = '{data}'
two/records.Source.num_examples = 3
records.Source.rename = {{'q': 'prompt'}}
""")
  cfg = config.build(
    sft,
    [f'--gin_file={gin}', f'--checkpoint={base}', f'--workdir={tmp_path}/run'],
  )
  assert [s.num_examples for s in cfg.data] == [0, 3]
  saved_config.save(cfg, cfg.workdir)
  saved_config.check_resume_compatible(cfg, cfg.workdir)
  plain = config.build(
    sft, [f'--checkpoint={base}', f'--workdir={tmp_path}', f'--data={data}']
  )
  assert records.sources(plain.data) == (records.Source(path=data),)
