"""Writes a model for others: a Hugging Face folder, or a GGUF file.

  python -m rlzero.convert --checkpoint=PATH --output=DIR [--dtype=bfloat16]
  python -m rlzero.convert --checkpoint=PATH --kind=gguf --output=NAME.gguf
    [--dtype=q8_0]
  python -m rlzero.convert --checkpoint=PATH --adapter=PEFT_DIR --output=DIR
  python -m rlzero.convert --checkpoint=RUN --output=DIR --push=org/name

PATH is a run's folder, a Hugging Face folder, hf://org/name or a GGUF file. A
file of weights is made at a time: of the model the host holds no more, unless
PATH is a run's folder. With --kind=run it becomes an Orbax checkpoint, as runs
save them, which holds the model whole. With --adapter a PEFT folder is merged
into the model, which is then held whole: W + s B A, in float32. What was
written is read back: its weights must be the rounded ones bit for bit, tensor
by tensor, and the difference that the rounding makes to the log-probs is shown.
"""

import dataclasses
import os
import pathlib

import jax
import numpy as np

from rlzero import weights
from rlzero.reporting import model_card
from rlzero.runtime import workdir
from rlzero.train import conversion, folders
from rlzero.weights import hub


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(conversion.Settings):
  """Settings of a conversion."""


def run(cfg: Config) -> None:
  """Converts, reads back and compares.

  Raises:
    ValueError: the output is the input, or what was written reads back
      otherwise, or the hub refuses it.
  """
  if (
    pathlib.Path(cfg.output).resolve() == pathlib.Path(cfg.checkpoint).resolve()
  ):
    raise ValueError(
      f'The output {cfg.output!r} is the checkpoint itself; name another '
      'folder with --output=DIR.'
    )
  if cfg.kind == 'run' and os.path.exists(f'{cfg.output}/checkpoints'):
    raise ValueError(
      f'The output {cfg.output!r} is the folder of a run that has checkpoints; '
      'name another with --output=DIR.'
    )
  if cfg.push:
    hub.check_upload(cfg.push, cfg.overwrite)
  before = conversion.read(cfg)
  sizes = [x.shape for x in jax.tree.leaves(before.params)]
  num_parameters = int(sum(np.prod(s, dtype=np.int64) for s in sizes))
  print(
    f'{cfg.checkpoint} is a {before.config.family} of {num_parameters:,} '
    'parameters',
    flush=True,
  )
  if cfg.kind != 'gguf':  # a file, which is written whole
    workdir.claim(cfg.output)
  if cfg.kind == 'run':
    conversion.write_run(cfg, before)
  else:
    conversion.write_files(cfg, before)
  output = pathlib.Path(cfg.output)
  written = sum(
    file.stat().st_size
    for file in (output, *output.rglob('*'))
    if file.is_file()
  )
  print(f'wrote {written / 1e6:,.1f} MB to {cfg.output}', flush=True)
  if cfg.kind == 'gguf':
    after = conversion.check_gguf(cfg, before)
  else:
    back = folders.open_model if cfg.kind == 'run' else weights.open_folder
    after = back(cfg.output)
    conversion.check(cfg, before, after)
  said = f'read back: weights equal after rounding to {cfg.dtype}'
  if cfg.compare_logprobs:
    difference = np.abs(
      conversion.some_logprobs(before.config, before.params)
      - conversion.some_logprobs(after.config, after.params)
    )
    said += f'; log-probs differ by {difference.max():.2g} at most'
  workdir.hand_on(cfg.output)
  print(said)
  if cfg.push:
    card = model_card.text(
      model_card.Model(
        cfg.push,
        before.config.family,
        num_parameters,
        cfg.kind,
        cfg.dtype,
        cfg.checkpoint,
      )
    )
    files = hub.files_of(output) | {'README.md': card.encode()}
    address = hub.upload(files, cfg.push, cfg.public, cfg.overwrite)
    print(f'pushed {len(files)} files to {address}')


if __name__ == '__main__':
  from rlzero import convert
  from rlzero.runtime import config

  config.main(convert)
