"""Accelerators as their makers describe them; no JAX here."""

from typing import NamedTuple

from rlzero.runtime.memory import GIB


class Chip(NamedTuple):
  """One device of JAX: a TPU chip or a GPU."""

  kind: str  # `device_kind` in JAX; GPUs have their name in it
  flops: float  # dense bf16 FLOP/s, no sparsity
  memory: float  # bytes of HBM that programs may use
  bandwidth: float  # bytes/s of HBM
  link: float  # bytes/s that a chip can receive from its neighbours
  is_tpu: bool = True


# TPUs: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}; `link` is half of what the
# tables call bidirectional. Of v5e's 16 GB the compiler leaves 15.75 GiB to a
# program, of v6e's 32 GB 31.25; the others have all.
# GPUs: nvidia.com/en-us/data-center/{a100,h100,h200} (SXM); `link` is half of
# NVLink's figure, and a twentieth of the memory stays with the driver and XLA.
CHIPS: dict[str, Chip] = {
  'v4': Chip('TPU v4', 275e12, 32e9, 1.228e12, 150e9),
  'v5e': Chip('TPU v5 lite', 197e12, 15.75 * GIB, 819e9, 200e9),
  'v5p': Chip('TPU v5', 459e12, 95 * GIB, 2.765e12, 600e9),
  'v6e': Chip('TPU v6 lite', 918e12, 31.25 * GIB, 1.64e12, 400e9),
  'a100': Chip('A100-SXM4-80GB', 312e12, 76e9, 2.039e12, 300e9, False),
  'h100': Chip('H100', 989e12, 76e9, 3.35e12, 450e9, False),
  'h200': Chip('H200', 989e12, 134e9, 4.8e12, 450e9, False),
}
# A machine without accelerators, nominally: to try plans on. A plan takes the
# memory of the machine that it is made on.
CPU = Chip('cpu', 200e9, 16e9, 20e9, 10e9, False)


def find(kind: str) -> Chip | None:
  """The chip with this `device_kind` in JAX; None for one that is not listed.

  GPUs have more in the name than that of the chip.
  """
  for chip in CHIPS.values():
    if kind == chip.kind or (not chip.is_tpu and chip.kind in kind):
      return chip
  return None
