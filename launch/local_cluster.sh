#!/usr/bin/env bash
# Runs a stage as several processes on this machine, with CPU devices that are
# made up and collectives (gloo) that are real:
#   bash launch/local_cluster.sh NUM_PROCESSES MODULE [flags]
#   bash launch/local_cluster.sh 2 rlzero.grpo --gin_file=... --workdir=DIR
# DEVICES is the number of devices a process, 4 by default. The first process
# speaks here; what the others say is shown if one of them fails. The exit code
# is 75 if every process was preempted (docs/howto/resume.md).
set -euo pipefail

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: $0 NUM_PROCESSES MODULE [flags]" >&2
  exit 2
fi
number=$1 module=$2
shift 2
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-$root/.venv/bin/python}"
export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${DEVICES:-4}"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
port="$("$python" -c 'import socket
with socket.socket() as s:
  s.bind(("127.0.0.1", 0))
  print(s.getsockname()[1])')"
logs="$(mktemp -d)"
processes=()

# shellcheck disable=SC2329 # the traps call it
end() { for process in "${processes[@]}"; do kill "$1" "$process" 2>/dev/null || true; done; }
trap 'end -KILL; rm -rf "$logs"' EXIT
trap 'end -TERM' TERM
trap 'end -INT' INT

for ((i = number - 1; i >= 0; i--)); do
  flags=("--coordinator=127.0.0.1:$port" "--num_processes=$number" "--process_id=$i")
  if ((i)); then
    "$python" -m "$module" "${flags[@]}" "$@" >"$logs/$i" 2>&1 &
  else
    "$python" -m "$module" "${flags[@]}" "$@" &
  fi
  processes+=($!)
done

code=0
for ((i = 0; i < number; i++)); do
  process=${processes[i]} one=0
  wait "$process" || one=$?
  # A signal of ours ends the wait, not the process.
  while kill -0 "$process" 2>/dev/null; do
    one=0
    wait "$process" || one=$?
  done
  if ((one && one != 75)); then
    number_of=$((number - 1 - i))
    echo "process $number_of ended with $one" >&2
    [[ -f $logs/$number_of ]] && tail -n 20 "$logs/$number_of" >&2
  fi
  if ((one && (code == 0 || code == 75))); then code=$one; fi
done
exit "$code"
