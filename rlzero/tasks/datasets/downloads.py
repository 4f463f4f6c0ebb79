"""Files of data sets on the Hugging Face hub."""

import fnmatch
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import huggingface_hub
from huggingface_hub import errors

from rlzero.runtime import files, keys


class NotFetched(FileNotFoundError):
  """The files cannot be had; the message says why, without the name."""


def listed(repo: str, revision: str | None = None) -> list[str]:
  """Names of a data set's files; where the hub is away, those of last time.

  HF_TOKEN opens gated data sets, HF_HUB_OFFLINE=1 takes what is cached, and
  HF_HOME moves the cache: these are the hub library's own.

  Raises:
    NotFetched: no such data set, or no connection and nothing cached.
  """
  # Else half of a download might be taken for the whole.
  name = f'{repo}@{revision or "main"}'.replace('/', '--')
  kept = os.path.join(files.cache_folder('hub'), f'{name}.json')
  try:
    found = huggingface_hub.HfApi().list_repo_files(
      repo, repo_type='dataset', revision=revision, token=_token()
    )
  except Exception as error:  # a lost connection has many types
    if why := _lasting(error, revision):
      raise NotFetched(why) from None
  else:
    files.write_json(kept, sorted(found), files.own_suffix())
    return sorted(found)
  if os.path.exists(kept):
    with open(kept, encoding='utf-8') as file:
      return json.load(file)
  root = _download(repo, ['*'], revision, local_files_only=True)
  return sorted(
    str(p.relative_to(root)) for p in root.rglob('*') if p.is_file()
  )


def fetch(
  repo: str, patterns: Sequence[str], revision: str | None = None
) -> dict[str, pathlib.Path]:
  """The files of a data set that match, by their names there.

  What the hub's cache lacks is fetched.

  Args:
    repo: org/name.
    patterns: names of files; `*` stands for anything, `/` too.
    revision: branch, tag or commit.

  Raises:
    NotFetched: no such data set or file, or no connection.
  """
  root = _download(repo, list(patterns), revision)
  there = {p.relative_to(root).as_posix(): p for p in sorted(root.rglob('*'))}
  found = {
    name: path
    for name, path in there.items()
    if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
  }
  if not found:
    raise NotFetched(f'it has no file {" or ".join(patterns)}')
  return found


def _download(
  repo: str, patterns: list[str], revision: str | None, **options: Any
) -> pathlib.Path:
  if revision:
    options['revision'] = revision
  cause = None  # of what may pass: the command is to be repeated
  try:
    return pathlib.Path(
      huggingface_hub.snapshot_download(
        repo,
        repo_type='dataset',
        allow_patterns=patterns,
        token=_token(),
        **options,
      )
    )
  except (errors.LocalEntryNotFoundError, OSError) as error:
    why = _lasting(error, revision)
    if not why:
      cause = ConnectionError(str(error))
      why = 'the hub cannot be reached and the data is not in its cache'
  except errors.HFValidationError as error:
    why = _lasting(error, revision)
  raise NotFetched(why) from cause


def _lasting(error: Exception, revision: str | None) -> str:
  """Why it cannot be had, if the same command would not have it later."""
  match error:
    case errors.HFValidationError():
      return 'that is no name of a data set; write hf://org/name'
    case errors.GatedRepoError():
      return 'its owner asks you to accept terms first; do so and set HF_TOKEN'
    case errors.RevisionNotFoundError():
      return f'it has no revision {revision!r}'
    case errors.RepositoryNotFoundError():
      return 'there is no such data set; private ones need HF_TOKEN'
  return ''


def _token() -> bool | None:
  return keys.hub_token(huggingface_hub.constants.ENDPOINT)
