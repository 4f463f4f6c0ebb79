#!/usr/bin/env bash
# Runs the test suite: bash launch/test.sh [--parity] [pytest arguments]
# --parity adds the checks against transformers, which need CPU torch, SmolLM2
# and Gemma 3 270M. On Linux, an extra index of CPU builds of torch (see pip's
# PIP_EXTRA_INDEX_URL) spares the download of its CUDA libraries.
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

install_into_venv test
selection=()
if [[ "${1:-}" == --parity ]]; then
  shift
  install_into_venv parity
  bash launch/get_smollm2.sh
  bash launch/get_gemma3.sh
  selection=(-m 'not slow')
fi
.venv/bin/python -m ruff check rlzero tests
# Two processes, since most tests keep less than a core busy.
exec .venv/bin/python -m pytest -n 2 --dist loadfile \
  "${selection[@]+"${selection[@]}"}" "$@"
