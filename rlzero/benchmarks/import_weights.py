"""Times the import of a checkpoint, and the memory it takes beside the model.

  python -m rlzero.benchmarks.import_weights [--gb=2] [--checkpoint=PATH]
    [--fsdp=8]

Without a checkpoint it writes one of random weights, a Llama in bfloat16, into
a temporary folder. It is read by a process of its own, whose memory starts
small; JSON on stdout. Linux alone: it looks into /proc.
"""

import dataclasses
import math
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from typing import Literal

import jax
import numpy as np
from jax import numpy as jnp

from rlzero import weights
from rlzero.models.config import ModelConfig
from rlzero.runtime import fields, files, sharding
from rlzero.runtime.fields import above
from rlzero.text.tokenizer import Tokenizer
from rlzero.train import folders
from rlzero.weights import mapping

_SHARD_BYTES = 400_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of the measurement."""

  checkpoint: str = ''  # what to read; '' writes one
  gb: float = 2.0  # about how large that one is, in GB
  dtype: Literal['float32', 'bfloat16'] = 'float32'  # of the parameters
  fsdp: int = 1  # shards of each parameter

  def __post_init__(self):
    fields.check(self, gb=above(0.4).because('the embedding alone takes 0.4'))


def run(cfg: Config) -> None:
  """Reads, or writes and has another process read; prints JSON."""
  if cfg.checkpoint:
    with sharding.use(sharding.Mesh(fsdp=cfg.fsdp)):
      print(files.to_json(measure(cfg.checkpoint, cfg.dtype)))
    return
  with tempfile.TemporaryDirectory(prefix='rlzero-import-') as folder:
    write(folder, cfg.gb)
    subprocess.run(
      [
        *(sys.executable, '-m', 'rlzero.benchmarks.import_weights'),
        *(f'--checkpoint={folder}', f'--dtype={cfg.dtype}'),
        f'--fsdp={cfg.fsdp}',
      ],
      check=True,
    )


def write(folder: str, gb: float) -> None:
  """A Llama of random bfloat16 weights, in shards, a file at a time."""
  width, mlp, vocab = 2048, 5632, 50_000
  layer = 4 * width**2 + 3 * width * mlp
  config = ModelConfig(
    vocab_size=vocab,
    num_layers=max(1, round((gb * 5e8 - 2 * vocab * width) / layer)),
    width=width,
    mlp_width=mlp,
    num_heads=16,
    num_kv_heads=16,
    head_dim=128,
    tied_embedding=False,
  )
  rng = np.random.default_rng(0)

  class Random:
    """Stands for a parameter; each part that is asked for is drawn."""

    def __init__(self, shape):
      self.shape = shape

    def __getitem__(self, place):
      numbers = [isinstance(i, int) for i in place]
      shape = [
        n for n, drop in zip(self.shape, numbers, strict=True) if not drop
      ]
      return rng.random(shape, np.float32)

  params = jax.tree.map(lambda x: Random(x.shape), mapping.shapes(config))
  weights.write_folder(
    folder,
    config,
    params,
    Tokenizer.word_level(['word'], '<eos>', '<pad>'),
    'bfloat16',
    _SHARD_BYTES,
  )


def measure(path: str, dtype: str) -> dict[str, float | str]:
  """MB/s of the files, and MB of memory at its highest."""
  jnp.zeros(()).block_until_ready()  # what JAX itself takes is there
  stored = sum(f.stat().st_size for f in _files(pathlib.Path(path)))
  before = peak = _resident('RssAnon')
  mapped_before = mapped = _resident('RssFile')
  done, watching = threading.Event(), 0.0

  def watch():
    nonlocal peak, mapped, watching
    while not done.wait(0.005):
      peak = max(peak, _resident('RssAnon'))
      mapped = max(mapped, _resident('RssFile'))
    watching = time.thread_time()

  watcher = threading.Thread(target=watch)
  watcher.start()
  began, cpu = time.monotonic(), time.process_time()
  loaded = folders.load_model(path, dtype)
  jax.block_until_ready(loaded.params)
  seconds = time.monotonic() - began
  done.set()
  watcher.join()
  cpu = time.process_time() - cpu - watching
  leaves = jax.tree.leaves(loaded.params)
  tensors = mapping.tensors_from_params(loaded.config, loaded.params)
  largest = max(math.prod(t.shape) for t in tensors) * np.dtype(dtype).itemsize
  held = sum(x.nbytes for x in leaves)
  # A CPU device's memory is the host's.
  on_host = held if jax.default_backend() == 'cpu' else 0
  return {
    'checkpoint_mb': round(stored / 1e6),
    'parameters_mb': round(held / 1e6),
    'dtype': dtype,
    'devices': f'{len(leaves[0].devices())} {jax.devices()[0].device_kind}',
    'seconds': round(seconds, 2),
    'cpu_seconds': round(cpu, 2),
    'mb_per_s': round(stored / 1e6 / seconds),
    'mb_per_cpu_s': round(stored / 1e6 / cpu),  # whatever else runs
    'peak_mb': round((peak - before) / 1e6),
    'beside_parameters_mb': round((peak - before - on_host) / 1e6),
    'largest_tensor_mb': round(largest / 1e6),
    # Pages of the files, which the kernel takes back when it needs memory.
    'mapped_peak_mb': round((mapped - mapped_before) / 1e6),
  }


def _files(path: pathlib.Path) -> list[pathlib.Path]:
  """The files of weights of a model."""
  if path.is_file():
    return [path]
  return [*path.glob('*.safetensors'), *path.glob('*.gguf')]


def _resident(kind: str) -> int:
  """Bytes: RssAnon is the process's own, RssFile pages of files."""
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith(f'{kind}:'):
      return int(line.split()[1]) * 1024
  raise RuntimeError(f'/proc/self/status has no {kind}.')


if __name__ == '__main__':
  from rlzero.benchmarks import import_weights
  from rlzero.runtime import config

  config.main(import_weights)
