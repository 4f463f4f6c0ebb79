"""Writes a model as a GGUF file, for llama.cpp and the programs built on it."""

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import gguf
import numpy as np

from rlzero.models.config import ModelConfig
from rlzero.runtime import files
from rlzero.text.tokenizer import Tokenizer
from rlzero.types import Params
from rlzero.weights import gguf_vocabulary, mapping
from rlzero.weights.families import FAMILIES, GGUF_ARCHITECTURES, llama
from rlzero.weights.metadata import WeightsError

_Kind = gguf.GGMLQuantizationType
# By the name of the setting: the type of matrices, and of the whole file.
_TYPES = {
  'float32': (_Kind.F32, gguf.LlamaFileType.ALL_F32),
  'float16': (_Kind.F16, gguf.LlamaFileType.MOSTLY_F16),
  'bfloat16': (_Kind.BF16, gguf.LlamaFileType.MOSTLY_BF16),
  'q8_0': (_Kind.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
# The largest number that each holds; a block of Q8_0 is 127 times a float16.
_LARGEST = {_Kind.F16: 65504.0, _Kind.Q8_0: 127 * 65504.0}


def write_file(
  path: str | os.PathLike[str],
  config: ModelConfig,
  params: Params,
  tokenizer: Tokenizer,
  dtype: str = 'float32',
  on_progress: Callable[[int, int], None] | None = None,
) -> None:
  """Writes a file that `open_gguf`, transformers and llama.cpp load.

  It appears whole or not at all. The host holds one tensor at a time.

  Args:
    path: of the file; its folder is made if it is missing.
    config: the model.
    params: its parameters, arrays or `Lazy`, of any floating type.
    tokenizer: goes into the file.
    dtype: of the matrices: 'float32', 'float16', 'bfloat16' or 'q8_0'; norms
      and biases are float32, and matrices whose rows are no multiple of 32
      numbers float16 instead of q8_0.
    on_progress: told bytes written and bytes in all, after each tensor.

  Raises:
    WeightsError: a family, an option or a tokenizer that GGUF files do not
      have, parameters that do not match the config, or a number that is too
      large for the type.
  """
  source = f'family {config.family!r}'
  metadata = describe(config)
  stretch = metadata.pop(llama.GGUF_STRETCH, None)
  metadata |= gguf_vocabulary.describe(tokenizer, config.vocab_size, source)
  metadata['general.file_type'] = int(_TYPES[dtype][1])
  metadata['general.quantization_version'] = gguf.GGML_QUANT_VERSION
  tensors = list(mapping.tensors_from_params(config, params, 'gguf'))
  if stretch is not None:
    tensors.append(
      mapping.Written(llama.GGUF_STRETCH, stretch.shape, lambda: stretch)
    )
  sizes = [_num_bytes(tensor.shape, dtype) for tensor in tensors]
  with files.open_whole(path, files.own_suffix()) as draft:
    # The library opens the file by its name, beside this handle on it.
    writer = gguf.GGUFWriter(draft.name, GGUF_ARCHITECTURES[config.family])
    for key, value in metadata.items():
      _add(writer, key, value)
    for tensor, num_bytes in zip(tensors, sizes, strict=True):
      writer.add_tensor_info(
        tensor.name,
        tensor.shape,
        np.dtype(np.float32),
        num_bytes,
        _kind(tensor.shape, dtype),
      )
    try:
      writer.write_header_to_file()
      writer.write_kv_data_to_file()
      writer.write_ti_data_to_file()
      done = 0
      for tensor, num_bytes in zip(tensors, sizes, strict=True):
        writer.write_tensor_data(_packed(tensor, dtype))
        done += num_bytes
        if on_progress is not None:
          on_progress(done, sum(sizes))
    finally:
      writer.close()


def describe(config: ModelConfig) -> dict[str, Any]:
  """The keys and values of a GGUF file that describe a model.

  Raises:
    WeightsError: a family or an option that GGUF files do not have.
  """
  architecture = GGUF_ARCHITECTURES.get(config.family)
  if architecture is None:
    raise WeightsError(
      f'Models of family {config.family!r} are not written as GGUF, but those '
      f'of {", ".join(GGUF_ARCHITECTURES)} are; write a Hugging Face folder '
      "(--kind=folder), which llama.cpp's converter reads."
    )
  values = FAMILIES[config.family].gguf_from_config(config)
  metadata = {
    key if key == llama.GGUF_STRETCH else f'{architecture}.{key}': value
    for key, value in values.items()
  }
  # As a file has them, in 32 bits.
  read = {
    key: float(np.float32(value)) if isinstance(value, float) else value
    for key, value in metadata.items()
  }
  back = mapping.model_config_from_gguf(
    {'general.architecture': architecture, **read},
    config.tied_embedding,
    f'family {config.family!r}',
  )
  if lost := mapping.differing(stored(config), back):
    raise WeightsError(
      f'ModelConfig has {", ".join(lost)}, which a GGUF file of family '
      f'{config.family!r} does not say; write a Hugging Face folder '
      '(--kind=folder).'
    )
  return metadata


def stored(config: ModelConfig) -> ModelConfig:
  """The model as a reader finds it: a file holds numbers of 32 bits."""
  return dataclasses.replace(
    config,
    rms_norm_eps=llama.shortest(config.rms_norm_eps),
    rope_theta=llama.shortest(config.rope_theta),
  )


def rounded(tensor: mapping.Written, dtype: str) -> np.ndarray:
  """The numbers that a reader finds of a tensor, float32, of its shape.

  Args:
    tensor: to be written.
    dtype: of the file, see `write_file`.
  """
  kind = _kind(tensor.shape, dtype)
  return gguf.dequantize(_packed(tensor, dtype), kind).reshape(tensor.shape)


def _packed(tensor: mapping.Written, dtype: str) -> np.ndarray:
  """A tensor's bytes as they stand in a file."""
  kind, array = (
    _kind(tensor.shape, dtype),
    np.asarray(tensor.read(), np.float32),
  )
  largest = _LARGEST.get(kind)
  if largest is not None and not (np.abs(array) <= largest).all():
    raise WeightsError(
      f'{tensor.name} has a number beyond {largest:,.0f} or none at all, which '
      f'{kind.name} cannot hold; write --dtype=bfloat16 or float32.'
    )
  return gguf.quantize(array, kind)


def _kind(shape: tuple[int, ...], dtype: str) -> gguf.GGMLQuantizationType:
  """The type of a tensor; llama.cpp wants norms and biases in float32."""
  kind = _TYPES[dtype][0] if len(shape) > 1 else _Kind.F32
  if shape and shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
    return _Kind.F16
  return kind


def _num_bytes(shape: tuple[int, ...], dtype: str) -> int:
  block, num_bytes = gguf.GGML_QUANT_SIZES[_kind(shape, dtype)]
  return math.prod(shape) // block * num_bytes


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
  match value:
    case bool():
      writer.add_bool(key, value)
    case int():
      writer.add_uint32(key, value)
    case float():
      writer.add_float32(key, value)
    case str():
      writer.add_string(key, value)
    case list():
      writer.add_array(key, value)
    case _:
      raise TypeError(f'{key} is a {type(value).__name__}.')
