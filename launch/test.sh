#!/usr/bin/env bash
# Checks the style and the types, and runs the tests.
#
#   bash launch/test.sh [--quick | --parity | --all | --floor] [pytest arguments]
#
#   (none)    style, types, and all tests but parity, slow and nightly ones:
#             under 10 minutes on two cores
#   --quick   style, and the tests that take no model and no seconds: under 2
#             minutes on two cores
#   --parity  adds the comparisons with transformers. They need CPU torch,
#             SmolLM2, Gemma 3 270M and Qwen2.5-Coder-0.5B. On Linux, an extra
#             index of CPU builds of torch (see pip's PIP_EXTRA_INDEX_URL)
#             spares the download of its CUDA libraries.
#   --all     adds parity, without Qwen2.5-Coder, and the slow tests
#   --floor   the quick tests with the lowest versions that setup.py admits
#             (launch/constraints/floor.txt), in an environment of its own
#
# The nightly tests: bash launch/test.sh -m nightly. Markers are in
# pyproject.toml.
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

mode="${1:-}"
quick='not model and not long and not slow and not nightly and not parity'
selection=()
case "$mode" in
  --quick)
    shift
    selection=(-m "$quick")
    ;;
  --floor)
    shift
    VENV=.venv-floor CONSTRAINTS=launch/constraints/floor.txt
    selection=(-m "$quick")
    ;;
  --parity)
    shift
    selection=(-m 'not slow and not nightly')
    ;;
  --all)
    shift
    selection=(-m 'not nightly')
    ;;
  -h | --help)
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit
    ;;
esac

install_into_venv test
if [[ "$mode" == --parity || "$mode" == --all ]]; then
  install_into_venv parity
  bash launch/get_smollm2.sh
  bash launch/get_gemma3.sh
fi
if [[ "$mode" == --parity ]]; then
  bash launch/get_qwen2p5_coder.sh 0p5b
fi
python="$VENV/bin/python"
# Tools say other things in other versions: those of the floor are not asked.
if [[ "$mode" != --floor ]]; then
  "$python" -m ruff check rlzero tests
  "$python" -m ruff format --check rlzero tests
fi
# A minute of work, which --quick has no time for.
if [[ "$mode" != --floor && "$mode" != --quick ]]; then
  "$VENV/bin/basedpyright" --pythonpath "$python"
fi
# Two processes, since most tests keep less than a core busy.
exec "$python" -m pytest -n 2 --dist loadfile \
  "${selection[@]+"${selection[@]}"}" "$@"
