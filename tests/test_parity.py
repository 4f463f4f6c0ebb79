"""The same numbers and tokens as transformers, on CPU torch.

Needs torch and transformers, and the models of `MODELS`; a case whose model was
not fetched is skipped.
"""

import dataclasses
import datetime
import functools
import pathlib
import unicodedata
import warnings

import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers import (
  CHATS,
  CONFIGS,
  GGUF_CONFIGS,
  TEXTS,
  as_dict,
  each_config,
  gguf_metadata,
  random_params,
  random_texts,
  words,
)
from jax import numpy as jnp
from tokenizers import normalizers, pre_tokenizers

from rlzero import weights
from rlzero.models import transformer
from rlzero.models.lora import Adapter
from rlzero.rollout import encoding, scheduler
from rlzero.rollout.sampling import Sampling
from rlzero.text.tokenizer import Tokenizer
from rlzero.train import adapters
from rlzero.types import Tokens
from rlzero.weights import gguf_head, gguf_tokenizer, hf, mapping, peft

pytestmark = pytest.mark.parity

DATA = pathlib.Path(__file__).parents[1] / 'data'
# Folders of `data`, and what fetches each.
MODELS = {
  'smollm2': 'get_smollm2.sh',
  'gemma3': 'get_gemma3.sh',
  'qwen2p5_coder_0p5b': 'get_qwen2p5_coder.sh 0p5b',
}
NUM_NEW = 16  # greedy tokens after each prompt


@pytest.fixture(scope='module')
def theirs():
  """torch and transformers, whose own warnings are none of ours."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
  return torch, transformers


@pytest.fixture(scope='module', params=MODELS)
def real(request):
  """A model with real weights, and its folder."""
  folder = DATA / request.param
  if not list(folder.glob('*.gguf')):
    pytest.skip(f'no {folder}; run bash launch/{MODELS[request.param]}')
  return weights.load(folder), folder


@pytest.fixture(scope='module')
def their_real(theirs, real):
  torch, transformers = theirs
  _, folder = real
  (file,) = folder.glob('*.gguf')
  model, tokenizer = _from_gguf(torch, transformers, file)
  if folder.name.startswith('qwen2'):
    # Of the published tokenizer.json; the reader of GGUF files leaves it out.
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
  if folder.name != 'smollm2':
    return model, tokenizer
  # The published tokenizer.json also cuts digits off one by one; the reader
  # of GGUF files leaves that out, which shows on numerals such as ½ and ².
  tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  return model, tokenizer


def logprobs(config, params, ids):
  """Log-probs of all next tokens, [B, T, V]."""
  params = jax.tree.map(jnp.asarray, params)
  ids = jnp.asarray(ids)
  positions = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
  rows = Tokens(ids, positions, jnp.ones_like(ids))
  hidden, _, _ = transformer.forward(config, params, rows)
  logits = hidden @ transformer.head(config, params)
  return jax.nn.log_softmax(logits, axis=-1)


def their_logprobs(torch, model, ids, num_last=0):
  """Of the last tokens, or of all."""
  with torch.no_grad():
    ids = torch.tensor(np.asarray(ids))
    logits = model(ids, logits_to_keep=num_last).logits
    return torch.log_softmax(logits, dim=-1).numpy()


def state_of(model):
  state = {name: t.float().numpy() for name, t in model.state_dict().items()}
  if model.config.tie_word_embeddings:
    del state['lm_head.weight']
  return state


# What chat templates of these families use, in one.
TEMPLATE = """{%- set ns = namespace(system='', first=true) -%}
{%- for m in messages if m.role == 'system' -%}
  {%- set ns.system = m.content -%}
{%- endfor -%}
{{ bos_token }}{{ ns.system | trim }}
{% for m in messages %}
  {%- if m['role'] == 'system' %}{% continue %}{% endif -%}
  {%- if m['role'] == 'assistant' -%}
    {% generation %}{% set said = m.content.split('</think>')[-1] %}
{{ said.lstrip('\n') }}{{ eos_token }}{% endgeneration %}
  {% else %}
    {{ '<' + m.role + '>' + (m.content | trim) + '\n' }}
    {{- {'ü': [m.content, 1.5]} | tojson }}{{ m | tojson(indent=2) }}
    {%- if loop.index > 9 %}{% break %}{% endif %}
  {% endif %}
{% endfor %}
{{ strftime_now('%Y') }}
{% if tools is none and documents is none %} no {% endif %}
{% if add_generation_prompt %}{{ '<assistant>\n' }}{% endif %}"""


@pytest.mark.parametrize('messages', CHATS)
def test_templates_are_rendered_alike(messages, theirs, tmp_path, monkeypatch):
  # Ours is always the same day, so that prompts stay the same.
  monkeypatch.setattr('rlzero.text.tokenizer.TODAY', datetime.datetime.now())
  _, transformers = theirs
  ours = words()
  ours.chat_template = TEMPLATE
  ours.save(tmp_path)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
  for prompting in (True, False):
    expected = tokenizer.apply_chat_template(
      messages, tokenize=False, add_generation_prompt=prompting
    )
    assert ours.apply_chat_template(messages, prompting) == expected


@each_config
def test_our_folder_in_transformers(config, tmp_path, theirs):
  torch, transformers = theirs
  # Halved: weights of size 1 sharpen attention until rounding alone moves
  # transformers' own log-probs by 1e-4, float32 against float64.
  params = jax.tree.map(lambda x: x / 2, random_params(config))
  hf.write_folder(tmp_path, config, params, words())
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
      tmp_path, output_loading_info=True
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert not any(report.values()), report
  ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 30))
  np.testing.assert_allclose(
    logprobs(config, params, ids),
    their_logprobs(torch, model.eval(), ids),
    atol=5e-5,
    rtol=1e-5,
  )
  assert tokenizer.encode('b a <eos>') == words().encode('b a <eos>')
  assert tokenizer.eos_token_id == 1
  assert model.generation_config.eos_token_id == [1]


def random_model(config, theirs):
  """A model of transformers, random in all its parameters."""
  torch, transformers = theirs
  torch.manual_seed(0)
  settings = mapping.hf_config(config, [1])
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    model = transformers.AutoModelForCausalLM.from_config(
      transformers.AutoConfig.for_model(**settings)
    ).eval()
  # Norms and biases start as ones and zeros, which would hide a mix-up.
  for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.5)
  return model


@each_config
def test_their_folder_here(config, tmp_path, theirs):
  torch, _ = theirs
  model = random_model(config, theirs)
  model.save_pretrained(tmp_path, max_shard_size='20KB')
  assert len(list(tmp_path.glob('model-*.safetensors'))) > 1
  loaded_config, params, _ = hf.read_folder(tmp_path)
  assert loaded_config == config
  # No 0: where that is the padding, torch drops its gradient as an input.
  ids = np.random.default_rng(0).integers(1, config.vocab_size, (2, 30))

  @jax.jit
  def loss(params):
    found = logprobs(config, params, ids)
    drawn = jnp.take_along_axis(found[:, :-1], ids[:, 1:, None], axis=-1)
    return -drawn.mean(), found

  grads, ours = jax.jit(jax.grad(loss, has_aux=True))(params)
  expected = torch.log_softmax(model(torch.tensor(ids)).logits, dim=-1)
  np.testing.assert_allclose(
    ours, expected.detach().numpy(), atol=1e-4, rtol=1e-5
  )
  drawn = expected[:, :-1].gather(-1, torch.tensor(ids[:, 1:, None]))
  (-drawn.mean()).backward()
  # With its gradients as its weights, so that they get the names of files.
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.copy_(parameter.grad)
    for buffer in model.buffers():
      buffer.zero_()
  model.save_pretrained(tmp_path / 'gradients')
  theirs_by_name = safetensors.numpy.load_file(
    tmp_path / 'gradients' / 'model.safetensors'
  )
  ours_by_name = as_dict(mapping.tensors_from_params(config, grads))
  assert ours_by_name.keys() == theirs_by_name.keys()
  for name, grad in theirs_by_name.items():
    distance = np.linalg.norm(ours_by_name[name] - grad)
    assert distance <= 1e-3 * np.linalg.norm(grad), name


@pytest.fixture(scope='module')
def their_peft(theirs):
  del theirs
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    return pytest.importorskip('peft')


def _adapted(config, scale=0.75):
  """The model with that scale, random parameters and a random adapter.

  Where PEFT fuses experts it drops an adapter of other MLPs, whose matrices
  have the same names, so these have none there.
  """
  base = jax.tree.map(lambda x: x / 2, random_params(config))
  adapter = Adapter(rank=3)
  if config.experts:
    experts = 'expert_gate', 'expert_up', 'expert_down'
    adapter = Adapter(rank=3, targets=('attention', *experts))
  leaves = adapters.init(adapter, base, jax.random.key(0))
  rng = np.random.default_rng(1)
  leaves = jax.tree.map(
    lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), leaves
  )
  return dataclasses.replace(config, adapter_scale=scale), base, leaves


@each_config
def test_our_adapter_in_peft(config, tmp_path, theirs, their_peft):
  torch, transformers = theirs
  config, base, leaves = _adapted(config)
  hf.write_folder(tmp_path / 'base', config, base, words())
  peft.write_folder(tmp_path / 'adapter', config, leaves, 'base')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'base')
    model = their_peft.PeftModel.from_pretrained(model, tmp_path / 'adapter')
  ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 30))
  found = logprobs(config, adapters.join(leaves, base), ids)
  np.testing.assert_allclose(
    found, their_logprobs(torch, model.eval(), ids), atol=5e-5, rtol=1e-5
  )
  assert np.abs(found - logprobs(config, base, ids)).max() > 0.1


@pytest.mark.parametrize('stabilised', [False, True])
@pytest.mark.parametrize('name', ['qwen2', 'gemma3', 'deepseek_v3'])
def test_their_adapter_here(name, stabilised, tmp_path, theirs, their_peft):
  torch, _ = theirs
  config = CONFIGS[name]
  model = random_model(config, theirs)
  for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.3)
  model.save_pretrained(tmp_path / 'base')
  settings = their_peft.LoraConfig(
    r=4,
    lora_alpha=6,
    use_rslora=stabilised,
    target_modules=['o_proj', 'kv_b_proj', 'q_b_proj', 'q_proj'],
  )
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    model = their_peft.get_peft_model(model, settings).eval()
    for key, parameter in model.named_parameters():
      if 'lora_' in key:
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / 'adapter')
  _, base, _ = hf.read_folder(tmp_path / 'base')
  scale, leaves = peft.open_folder(tmp_path / 'adapter', config)
  assert scale == (3.0 if stabilised else 1.5)
  config = dataclasses.replace(config, adapter_scale=scale)
  params = adapters.join(mapping.place(leaves, 'float32'), base)
  ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 30))
  expected = their_logprobs(torch, model, ids)
  for one in (params, adapters.merge(scale, params)):
    np.testing.assert_allclose(
      logprobs(config, one, ids), expected, atol=1e-4, rtol=1e-5
    )


@each_config
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_their_folder_byte_for_byte(config, dtype, tmp_path, theirs):
  torch, _ = theirs
  model = random_model(config, theirs).to(getattr(torch, dtype))
  model.save_pretrained(tmp_path / 'theirs')
  read = hf.read_folder(tmp_path / 'theirs')
  hf.write_folder(tmp_path / 'ours', config, read.params, words(), dtype)
  theirs_by_name, ours_by_name = (
    safetensors.numpy.load_file(tmp_path / name / 'model.safetensors')
    for name in ('theirs', 'ours')
  )
  assert ours_by_name.keys() == theirs_by_name.keys()
  for name, array in theirs_by_name.items():
    assert ours_by_name[name].dtype.name == array.dtype.name == dtype
    assert ours_by_name[name].tobytes() == array.tobytes(), name


def test_dequantised_weights_are_equal(real, their_real):
  model, _ = their_real
  loaded, _ = real
  state = state_of(model)
  # One tensor at a time: beside both models there is little room.
  for ours in mapping.tensors_from_params(loaded.config, loaded.params):
    assert np.array_equal(ours.read(), state.pop(ours.name)), ours.name
  assert not state


def test_config_is_equal(real, their_real):
  model, _ = their_real
  settings = {**model.config.to_dict(), 'quantization_config': None}
  described = mapping.model_config_from_hf(settings)
  rounded = round(described.rms_norm_eps, 12)  # a float32 on their side
  described = dataclasses.replace(described, rms_norm_eps=rounded)
  assert described == real[0].config


def test_token_ids_are_equal(real, their_real, tmp_path):
  _, tokenizer = their_real
  composes = real[0].config.family == 'qwen2'  # its normaliser does
  ours = real[0].tokenizer
  ours.save(tmp_path)
  saved = Tokenizer.load(tmp_path)
  for text in (*TEXTS, *random_texts()):
    ids = ours.encode(text)
    assert ids == tokenizer.encode(text, add_special_tokens=False), text
    assert saved.encode(text) == ids
    if '▁' not in text or composes:  # how SentencePiece spells a space
      kept = unicodedata.normalize('NFC', text) if composes else text
      assert ours.decode(ids, skip_special=False) == kept
  assert ours.eos_ids == (tokenizer.eos_token_id,)
  beginning = tokenizer.encode('a')
  assert saved.encode('a', add_special=True) == beginning


@pytest.mark.parametrize('messages', CHATS)
@pytest.mark.parametrize(
  'real', ['smollm2', 'qwen2p5_coder_0p5b'], indirect=True
)
def test_chat_prompt_is_equal(messages, real, their_real):
  _, tokenizer = their_real
  for prompting in (True, False):
    expected = tokenizer.apply_chat_template(
      messages, tokenize=False, add_generation_prompt=prompting
    )
    ours = real[0].tokenizer.apply_chat_template(messages, prompting)
    assert ours == expected


# Qwen3 and Gemma 3 with what transformers takes for granted of them.
@pytest.mark.parametrize(
  'config',
  [
    *(GGUF_CONFIGS[k] for k in ('llama', 'llama_untied', 'qwen2_untied')),
    *(
      dataclasses.replace(GGUF_CONFIGS[k], head_dim=128)
      for k in ('qwen3', 'qwen3_untied')
    ),
    dataclasses.replace(
      GGUF_CONFIGS['gemma3'], head_dim=256, query_scalar=256, rope_scaling=None
    ),
  ],
  ids=lambda config: f'{config.family}-{config.tied_embedding}',
)
def test_our_gguf_in_transformers(config, tmp_path, theirs):
  torch, transformers = theirs
  params = jax.tree.map(lambda x: x / 2, random_params(config))
  ours = gguf_tokenizer.read(gguf_metadata())
  weights.write_gguf(tmp_path / 'm.gguf', config, params, ours)
  model, tokenizer = _from_gguf(torch, transformers, tmp_path / 'm.gguf')
  ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 30))
  np.testing.assert_allclose(
    logprobs(config, params, ids),
    their_logprobs(torch, model, ids),
    atol=5e-5,
    rtol=1e-5,
  )
  # Their reader cuts text as the family does, whatever the file says.
  tokens = gguf_metadata()['tokenizer.ggml.tokens']
  assert tokenizer.convert_tokens_to_ids(tokens) == [*range(len(tokens))]
  assert tokenizer.eos_token_id == ours.eos_ids[0]
  assert tokenizer.chat_template == ours.chat_template


def _from_gguf(torch, transformers, file):
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    model = transformers.AutoModelForCausalLM.from_pretrained(
      file.parent,
      gguf_file=file.name,
      dtype=torch.float32,
      quantization_config=transformers.GgufConfig(dequantize=True),
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(
      file.parent, gguf_file=file.name
    )
  return model.eval(), tokenizer


@pytest.mark.parametrize('real', ['smollm2', 'gemma3'], indirect=True)
@pytest.mark.parametrize('dtype', ['float32', 'q8_0'])
def test_our_gguf_of_real_weights(dtype, real, their_real, theirs, tmp_path):
  torch, transformers = theirs
  loaded, folder = real
  file = tmp_path / 'm.gguf'
  weights.write_gguf(
    file, loaded.config, loaded.params, loaded.tokenizer, dtype
  )
  metadata = gguf_head.read(next(folder.glob('*.gguf'))).metadata
  ours = gguf_head.read(file).metadata
  # Gemma's runs of spaces are spelled as merges make them.
  for head in (ours, metadata):
    tokens = head['tokenizer.ggml.tokens']
    head['tokenizer.ggml.tokens'] = [
      t if t.strip(' ') else '▁' * len(t) for t in tokens
    ]
  keys = ['tokens', 'eos_token_id', 'bos_token_id', 'add_bos_token']
  if folder.name == 'smollm2':
    keys += ['token_type', 'merges']
  for key in keys:
    key = f'tokenizer.ggml.{key}'
    assert ours.get(key) == metadata.get(key), key
  model, _ = _from_gguf(torch, transformers, file)
  ids = [loaded.tokenizer.encode('The old clock maker counted', True)]
  found, expected = (
    their_logprobs(torch, one, ids) for one in (model, their_real[0])
  )
  difference = np.abs(found - expected).max()
  assert difference < 1e-5 if dtype == 'float32' else 1e-3 < difference < 1


@pytest.mark.parametrize('real', ['smollm2'], indirect=True)
def test_our_folder_of_real_weights(real, their_real, theirs, tmp_path):
  torch, transformers = theirs
  loaded, _ = real
  hf.write_folder(tmp_path, loaded.config, loaded.params, loaded.tokenizer)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
  for text in (*TEXTS, *random_texts()):
    ids = loaded.tokenizer.encode(text)
    assert tokenizer.encode(text, add_special_tokens=False) == ids
  expected = loaded.tokenizer.apply_chat_template(CHATS[0])
  assert expected == tokenizer.apply_chat_template(
    CHATS[0], tokenize=False, add_generation_prompt=True
  )
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
  ids = loaded.tokenizer.encode('The old clock maker counted', True)
  np.testing.assert_allclose(
    their_logprobs(torch, model.eval(), [ids]),
    their_logprobs(torch, their_real[0], [ids]),
    atol=1e-6,  # the same weights, and eps read from a float32 or as written
    rtol=1e-5,
  )


def prompts(tokenizer):
  """Twenty prompts of as many lengths, chats and plain text."""
  story = 'The old clock maker counted: one, two, three, 17 + 25 = 42. ' * 9
  ids = tokenizer.encode(story, add_special=True)
  found = [ids[: 3 + 6 * i] for i in range(12)]
  if tokenizer.chat_template is None:  # a base model
    question = tokenizer.encode('Question: what is 3 + 4? Answer:', True)
    found += [question + ids[1 : 2 * n] for n in range(1, 9)]
  else:
    found += [
      tokenizer.encode(
        tokenizer.apply_chat_template(
          [{'role': 'user', 'content': ' '.join(['What is 3 + 4?'] * n)}]
        )
      )
      for n in range(1, 9)
    ]
  assert len({tuple(p) for p in found}) == 20
  return found


def test_greedy_tokens_and_logprobs_are_equal(real, theirs, their_real):
  torch, _ = theirs
  model, _ = their_real
  loaded, _ = real
  questions = prompts(loaded.tokenizer)
  completions, _ = scheduler.generate(
    loaded.config,
    loaded.params,
    [scheduler.Prompt(i, ids) for i, ids in enumerate(questions)],
    1,
    Sampling(temperature=0.0, max_len=NUM_NEW, num_slots=8),
    stop=encoding.stop_criteria(loaded.tokenizer),
    seed=0,
  )
  forward = jax.jit(functools.partial(logprobs, loaded.config))
  for i, (prompt, completion) in enumerate(
    zip(questions, completions, strict=True)
  ):
    row = np.array([*prompt, *completion.tokens])
    written = len(completion.tokens)
    expected = their_logprobs(torch, model, row[None], written + 1)[0]
    # Each token is their greedy choice after those before it, so the whole
    # is what they would write; t predicts t + 1.
    assert expected[:-1].argmax(axis=-1).tolist() == row[-written:].tolist()
    drawn = expected[np.arange(written), row[-written:]]
    np.testing.assert_allclose(completion.logprobs, drawn, atol=1e-3, rtol=0)
    if i % 5 == 0:  # the whole vocabulary, too
      # One compiled shape for all; causal, so what follows does not matter.
      padded = np.pad(row, (0, 128 - len(row)))[None]
      ours = np.asarray(forward(loaded.params, padded))[0]
      np.testing.assert_allclose(
        ours[len(prompt) - 1 : len(row)], expected, atol=1e-3, rtol=0
      )
