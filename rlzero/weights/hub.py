"""Models by name, hf://org/name[@revision], from the Hugging Face hub."""

import pathlib

import huggingface_hub
from huggingface_hub import errors

from rlzero.runtime import keys

SCHEME = 'hf://'
# What a folder is read from; the same model in other formats stays there.
_FILES = (
  'config.json',
  'generation_config.json',
  'model*.safetensors',
  'model.safetensors.index.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'chat_template.jinja',
)


def download(url: str) -> pathlib.Path:
  """Fetches what is not in the hub's own cache yet; returns the folder.

  HF_TOKEN opens gated models, HF_HUB_OFFLINE=1 takes what is cached, and
  HF_HOME moves the cache: these are the hub library's own. The token goes to
  https://huggingface.co alone, not to another HF_ENDPOINT.

  Args:
    url: hf://org/name, or hf://org/name@revision for a branch, tag or commit.

  Raises:
    ValueError: a name that is none, a model that is not there or not open,
      or no connection; one sentence.
  """
  name, _, revision = url.removeprefix(SCHEME).partition('@')
  cause = None  # of what may pass: the command is to be repeated
  try:
    folder = huggingface_hub.snapshot_download(
      name,
      revision=revision or None,
      allow_patterns=list(_FILES),
      token=keys.hub_token(huggingface_hub.constants.ENDPOINT),
    )
  except errors.HFValidationError:
    why = 'that is no name of a model; write hf://org/name'
  except errors.GatedRepoError:
    why = 'its owner asks you to accept terms first; do so and set HF_TOKEN'
  except errors.RevisionNotFoundError:
    why = f'it has no revision {revision!r}'
  except errors.RepositoryNotFoundError:
    why = 'there is no such model; private ones need HF_TOKEN'
  except errors.LocalEntryNotFoundError as error:
    cause = ConnectionError(str(error))
    why = 'the hub cannot be reached and the model is not in the cache'
  except OSError as error:
    cause = error
    why = f'the download failed ({error}); run it again to go on'
  else:
    return pathlib.Path(folder)
  raise ValueError(f'{url} cannot be loaded: {why}.') from cause
