#!/usr/bin/env bash
# Writes the versions that the launchers install, one file per Python version:
#
#   bash launch/constraints/make.sh
#
# Needs uv. `floor.txt` has the lowest versions that setup.py admits; the tests
# run on them too (bash launch/test.sh --floor).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

compile() { # compile PYTHON FILE OPTIONS...
  uv pip compile --quiet setup.py --universal "--python-version=$1" \
    --no-header --no-annotate "${@:3}" "--output-file=launch/constraints/$2"
}

for version in 3.11 3.12 3.13; do
  compile "$version" "python$version.txt" --extra=test --extra=tpu --extra=cuda
done
compile 3.11 floor.txt --extra=test --resolution=lowest-direct
