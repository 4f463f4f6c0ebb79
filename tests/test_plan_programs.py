"""Plans are of the programs that a run executes, and of its calls."""

import collections
import dataclasses
import functools
import hashlib

import jax
import pytest
from helpers import grpo_config, mostly_slow

from rlzero.models import transformer
from rlzero.planner import programs
from rlzero.rl import collect, settings, update
from rlzero.rl.learner import Programs
from rlzero.rollout import device, encoding, engine
from rlzero.rollout.sampling import StopCriteria
from rlzero.runtime import sharding

pytestmark = [
  pytest.mark.model,
  pytest.mark.usefixtures('quick_compilation'),
]

MESH = sharding.Mesh(fsdp=4, tensor=2)
# Of the learner, in the order of their fields, as the planner calls them.
UPDATE = 'reference', 'update', 'apply'


def fingerprint(lowered):
  """Of the program, without the places in files that it comes from."""
  return hashlib.sha256(lowered.as_text().encode()).hexdigest()


class Recording:
  """A compiled function that keeps the fingerprint of each program it runs."""

  def __init__(self, function, seen):
    self._function, self._seen = function, seen

  def __call__(self, *args, **kwargs):
    self._seen.add(fingerprint(self._function.lower(*args, **kwargs)))
    return self._function(*args, **kwargs)


def execute(cfg, monkeypatch):
  """Two steps of a run in which no completion ends before its limit.

  Returns:
    fingerprints of the executed programs by name, and the run's shapes.
  """
  executed = collections.defaultdict(set)
  of_rollout = {
    engine: ('prefill', 'insert', 'decode'),
    device: ('resize_part', 'choose_rows', 'read_pages', 'empty_slots'),
  }
  for module, names in of_rollout.items():
    for name in names:
      monkeypatch.setattr(
        module, name, Recording(getattr(module, name), executed[name])
      )
  loaded = settings.load_start(cfg)
  # The mesh divides this vocabulary, and no token of it ends a completion.
  model = dataclasses.replace(loaded.config, vocab_size=128, num_layers=2)
  nothing = (model.vocab_size,)
  with sharding.use(cfg.mesh), settings.make_reward_pool(cfg) as pool:
    monkeypatch.setattr(
      encoding, 'stop_criteria', lambda _: StopCriteria(nothing)
    )
    fresh = transformer.initialise(model, jax.random.key(0))
    trainer = update.Trainer(
      cfg, dataclasses.replace(loaded, config=model, params=fresh)
    )
    trainer.learner.programs = Programs(
      *(
        Recording(function, executed[name])
        for name, function in zip(UPDATE, trainer.learner.programs, strict=True)
      )
    )
    collector = collect.Collector(cfg, trainer.learner, loaded.tokenizer, pool)
    examples = cfg.task.examples('train')
    longest = 0
    for step in range(2):
      chosen = examples[step * cfg.num_prompts : (step + 1) * cfg.num_prompts]
      drawn = list(enumerate(chosen))
      prompts = encoding.encode_examples(loaded.tokenizer, cfg.template, drawn)
      longest = max(longest, *(len(prompt.tokens) for prompt in prompts))
      trainer.update(collector.collect(trainer.policy, drawn))
  monkeypatch.undo()
  layout = {}
  if cfg.rollout_mesh:
    layout['rollout_mesh'] = functools.partial(sharding.use, cfg.rollout_mesh)
  run = programs.Run(cfg, trainer.model, longest, eos_ids=nothing, **layout)
  return executed, run


@mostly_slow(
  'rollout_mesh',
  {'one-mesh': None, 'two': sharding.Mesh(data=4, tensor=2)},
  quick=(),
)
def test_plan_is_of_the_programs_that_a_run_executes(
  rollout_mesh, tmp_path, monkeypatch
):
  cfg = grpo_config(
    tmp_path,
    mesh=MESH,
    rollout_mesh=rollout_mesh,
    dtype='bfloat16',
    max_len=72,
    max_prompt_len=64,
    num_slots=8,
  )
  executed, run = execute(cfg, monkeypatch)
  with sharding.use(cfg.mesh):
    planned = run.rollout(cfg.sampling.num_slots)
    planned |= run.update(cfg.micro_tokens)
  assert list(planned) == [
    *('prefill', 'insert', 'decode', 'read', 'resize', 'shrink'),
    *UPDATE,
  ]
  for name, lowered in planned.items():
    for call in lowered.calls:
      assert fingerprint(call.lowered) in executed[call.name], (name, call.name)
  names = {call.name for lowered in planned.values() for call in lowered.calls}
  assert names == {name for name in executed if name != 'empty_slots'}
