#!/usr/bin/env bash
# Runs a command, and again each time it exits with 75: saved after a SIGTERM
# that was not for this script (a preemption). One that was killed or crashed is
# started again too, MAX_CRASHES (10) times in all; one that cannot go on by
# itself (2, such as a wrong flag or a loss that is not finite) is not. A SIGTERM
# to this script is handed on, and ends it.
# The last exit code is written to STATUS_FILE, if that is set.
# Usage: bash launch/restart.sh COMMAND...
set -uo pipefail

stopping=
child=
crashes=0
trap 'stopping=1; [[ -z "$child" ]] || kill -TERM "$child"' TERM INT

while [[ -z "$stopping" ]]; do
  "$@" &
  child=$!
  # A trapped signal ends `wait` while the command is still saving.
  while :; do
    status=0
    wait "$child" || status=$?
    kill -0 "$child" 2>/dev/null || break
  done
  case "$status" in
    0 | 2 | 126 | 127 | 130) break ;; # 126, 127: there is no such program
    75) echo "$1 was preempted and has saved." >&2 ;;
    *)
      ((crashes++ < ${MAX_CRASHES:-10})) || break
      echo "$1 ended with $status." >&2
      ;;
  esac
  # In the background, so that a signal need not wait for its end.
  sleep "${RESTART_DELAY_S:-10}" &
  child=$!
  [[ -n "$stopping" ]] || wait "$child"
done
[[ -z "${STATUS_FILE:-}" ]] || echo "${status:-0}" >"$STATUS_FILE"
exit "${status:-0}"
