"""The model families: one file each, and who reads what.

A family says, for its `model_type`s,

  config_from_hf(facts)    the ModelConfig of a config.json,
  hf_from_config(config)   and back,
  config_from_gguf(facts)  the ModelConfig of a GGUF file, where it has any,
  table(config)            its parameters, a `Row` each,
  LEFT_OUT                 tensors that are passed over: pattern -> what it is.

That is all there is to a family besides its parts of the one model
(`rlzero/models`).
"""

from rlzero.weights.families import llama, qwen

# model_type of a config.json, which is ModelConfig.family too.
FAMILIES = {
  'llama': llama,
  'qwen2': qwen,
  'qwen3': qwen,
}
# general.architecture of a GGUF file.
GGUF_FAMILIES = {
  'llama': llama,
  'qwen2': qwen,
  'qwen3': qwen,
}
