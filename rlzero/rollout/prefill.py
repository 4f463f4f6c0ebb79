"""Prompts that are prefilled together, and the prefix that all share."""

from collections.abc import Sequence

from rlzero.models import padding
from rlzero.models.config import ModelConfig
from rlzero.rollout.device import Device


class PrefillBlock:
  """Neighbouring prompts, prefilled together when the first is needed.

  Prompts go by their numbers, in the order in which they were submitted.

  Args:
    device: prefills them.
    size: prompts of a block, padding included.

  Attributes:
    start: number of the first prompt.
    width: tokens that the prompts were padded to.
  """

  def __init__(self, device: Device, size: int):
    self._device, self.size = device, size
    self.start, self._suffixes, self._done = 0, [], False
    self.width = 0

  def contains(self, prompt: int) -> bool:
    """Whether a prompt is in the block."""
    return self.start <= prompt < self.start + len(self._suffixes)

  def seek(self, start: int, suffixes: Sequence[Sequence[int]]) -> None:
    """Makes this the block of other prompts.

    Args:
      start: number of the first prompt.
      suffixes: at most `size` prompts from there on, each without the shared
        prefix.
    """
    self.start, self._suffixes, self._done = start, suffixes, False

  def prefill(self) -> None:
    """Computes the block's keys and values, unless that has been done."""
    if not self._done:
      self.width = self._device.prefill(self._suffixes)
      self._done = True


def check(
  config: ModelConfig,
  draw: int,
  tokens: Sequence[int],
  shared_prefix: Sequence[int],
  max_prompt_len: int,
  max_len: int,
) -> None:
  """Checks a prompt before it is queued.

  Args:
    config: of the model.
    draw: what messages call the prompt.
    tokens: of the prompt.
    shared_prefix: what all prompts begin with.
    max_prompt_len: tokens of the longest prompt.
    max_len: tokens that the completion may have.

  Raises:
    ValueError: it is empty, too long, or lacks the shared prefix.
  """
  length, shared_len = len(tokens), len(shared_prefix)
  if not length:
    raise ValueError(
      f'Prompt {draw} is empty; a prompt needs at least one token.'
    )
  if length > max_prompt_len:
    raise ValueError(
      f'Prompt {draw} has {length} tokens, but Sampling.max_prompt_len is '
      f'{max_prompt_len}; raise the limit or leave the prompt out.'
    )
  if length + max_len > config.max_position:
    raise ValueError(
      f'Prompt {draw} and Sampling.max_len = {max_len} make '
      f'{length + max_len} tokens, but the model takes '
      f'{config.max_position} (ModelConfig.max_position); lower '
      f'Sampling.max_len, to --max_len={config.max_position - length} or less.'
    )
  same = list(tokens[:shared_len]) == list(shared_prefix)
  if length <= shared_len or not same:
    raise ValueError(
      f'Prompt {draw} does not begin with the {shared_len} tokens that the '
      'scheduler was told all prompts share, and one of its own; make the '
      'scheduler with a shorter shared_prefix.'
    )


def shared_prefix_len(config: ModelConfig, prompts: Sequence[list[int]]) -> int:
  """Tokens that all prompts begin with, to be prefilled once.

  Latent attention has none here: over a cache it is absorbed, which costs the
  many queries of a prompt more than a shared prefix would save.
  """
  # An empty prompt is refused when it is submitted.
  if config.latent or not all(map(len, prompts)):
    return 0
  return padding.shared_prefix_len(prompts)
