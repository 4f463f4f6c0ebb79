"""Models by name, hf://org/name[@revision], on the Hugging Face hub."""

import contextlib
import fnmatch
import pathlib
from collections.abc import Iterator

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
    why = f'the download failed ({error}); run it again to resume'
  else:
    return pathlib.Path(folder)
  raise ValueError(f'{url} cannot be loaded: {why}.') from cause


def files_of(output: pathlib.Path) -> dict[str, pathlib.Path | bytes]:
  """The files to upload of a folder, or a file: a model and nothing else."""
  if output.is_file():
    return {output.name: output}
  return {
    file.name: file
    for file in sorted(output.iterdir())
    if any(fnmatch.fnmatch(file.name, pattern) for pattern in _FILES)
  }


def check_upload(name: str, overwrite: bool) -> None:
  """Refuses a name that `upload` could not, or should not, write to.

  Args:
    name: org/name.
    overwrite: whether files that are there may be replaced.

  Raises:
    ValueError: no such name, no token, no access, or a repository that has
      files; one sentence.
  """
  api = _api()
  if api.token is not False and not huggingface_hub.get_token():
    raise ValueError(
      f'{name} cannot be written to: there is no token; make one with write '
      'access on the hub and set HF_TOKEN.'
    )
  with _explained(name):
    try:
      found = set(api.list_repo_files(name)) - {'.gitattributes'}
    except errors.RepositoryNotFoundError:
      return
  if found and not overwrite:
    raise ValueError(
      f'{name} has {len(found)} files already, such as {min(found)!r}; push to '
      'a new name, or replace them with --overwrite.'
    )


def upload(
  files: dict[str, pathlib.Path | bytes],
  name: str,
  public: bool,
  overwrite: bool,
) -> str:
  """Makes a repository, if there is none, and commits files to it at once.

  Args:
    files: name in the repository to path, or to what is in it.
    name: org/name.
    public: whether a repository that is made can be seen by everyone.
    overwrite: whether files that are there may be replaced; weights that are
      not among `files` go.

  Returns:
    the address of the repository.

  Raises:
    ValueError: as `check_upload`, or the upload failed.
  """
  check_upload(name, overwrite)
  api = _api()
  with _explained(name):
    made = api.create_repo(name, private=not public, exist_ok=True)
    there = set(api.list_repo_files(name)) if overwrite else set()
    stale = [
      old
      for old in there - files.keys()
      if any(fnmatch.fnmatch(old, p) for p in (*_FILES, '*.gguf'))
    ]
    api.create_commit(
      name,
      [
        *(
          huggingface_hub.CommitOperationAdd(
            path_in_repo=key, path_or_fileobj=file
          )
          for key, file in files.items()
        ),
        *(
          huggingface_hub.CommitOperationDelete(path_in_repo=key)
          for key in sorted(stale)
        ),
      ],
      commit_message='Upload a model with rlzero',
    )
  return str(made)


def _api() -> huggingface_hub.HfApi:
  endpoint = huggingface_hub.constants.ENDPOINT
  return huggingface_hub.HfApi(endpoint, keys.hub_token(endpoint))


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
  """Says in a sentence, without a token, why the hub refused."""
  cause = None
  try:
    yield
    return
  except errors.HFValidationError:
    why = 'that is no name of a model; write org/name'
  except errors.HfHubHTTPError as error:
    status = error.response.status_code
    why = f'the hub answered with status {status}'
    if status in (401, 403):
      why = 'the token may not write there; set HF_TOKEN to one that may'
    elif status >= 500 or status == 429:
      cause = ConnectionError(why)
      why += '; try again later'
  except Exception as error:  # of the library's HTTP client, and of the system
    cause = ConnectionError(type(error).__name__)
    why = f'the hub cannot be reached ({type(error).__name__})'
  raise ValueError(f'{name} cannot be written to: {why}.') from cause
