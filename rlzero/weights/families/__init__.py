"""The model families: one file each, and who reads what.

A family says, for its `model_type`s,

  config_from_hf(metadata)    the ModelConfig of a config.json,
  hf_from_config(config)      and back,
  config_from_gguf(metadata)  the ModelConfig of a GGUF file, where it has any,
  gguf_from_config(config)    and back,
  table(config)               its parameters, a `Row` each,
  SKIPPED                     tensors that are passed over: pattern -> what it
                              is; {after} is the number of layers,
  RENAMES                     other beginnings of names in files -> those of
                              the table,
  EXTRA_TOKENS                of the tokenizer, which the model does not have.

That is all there is to a family besides its parts of the one model
(`rlzero/models`).
"""

from rlzero.weights.families import deepseek, gemma3, llama, qwen

# model_type of a config.json, which is ModelConfig.family too.
FAMILIES = {
  'llama': llama,
  'qwen2': qwen,
  'qwen3': qwen,
  'qwen3_moe': qwen,
  'deepseek_v2': deepseek,
  'deepseek_v3': deepseek,
  'gemma3_text': gemma3,
  'gemma3': gemma3,  # with images; its text model is a gemma3_text here
}
# general.architecture of a GGUF file.
GGUF_FAMILIES = {
  'gemma3': gemma3,
  'llama': llama,
  'qwen2': qwen,
  'qwen3': qwen,
}
# And the architecture that a family is written as.
GGUF_ARCHITECTURES = {
  'gemma3_text': 'gemma3',
  'llama': 'llama',
  'qwen2': 'qwen2',
  'qwen3': 'qwen3',
}
