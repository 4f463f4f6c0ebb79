"""The tutorial trains as it is written, and its numbers are the library's."""

import importlib.util
import pathlib
import re

import pytest

pytestmark = pytest.mark.model

_PATH = pathlib.Path(__file__).parents[1] / 'docs/tutorials/grpo_by_hand.py'


def test_three_steps_by_hand(monkeypatch, capsys):
  spec = importlib.util.spec_from_file_location('grpo_by_hand', _PATH)
  tutorial = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(tutorial)
  monkeypatch.setattr(tutorial, 'MAX_LEN', 24)
  tutorial.main(3, num_prompts=2, group_size=4)
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 3
  for step, line in enumerate(lines):
    found = re.fullmatch(
      rf'step {step}  reward (\S+)  length (\S+)  \|.*\| (\S+)', line
    )
    reward, length, mismatch = map(float, found.groups())
    assert 0 <= reward <= 2 and 1 <= length <= 24
    assert mismatch < 1e-4  # sampler and learner are one policy, at every step


def test_the_tutorial_fits_one_screen():
  assert len(_PATH.read_text().splitlines()) <= 75
