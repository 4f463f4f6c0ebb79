#!/usr/bin/env bash
# R1-Zero on a tiny model:
#   bash launch/quickstart.sh [WORKDIR] [--from-scratch | --install]
# Run again with the same WORKDIR (default: runs/quickstart) it goes on from
# where it was. --from-scratch makes the base model first, in place of the
# embedded one; that takes up to an hour on two cores. --install installs rlzero
# and stops.
set -euo pipefail
start_dir="$PWD"
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

workdir=
from_scratch=
install_only=
for argument in "$@"; do
  case "$argument" in
    --from-scratch) from_scratch=1 ;;
    --install) install_only=1 ;;
    -*) die "'$argument' is not an option; usage:" \
      "bash launch/quickstart.sh [WORKDIR] [--from-scratch | --install]" ;;
    *)
      [[ -z "$workdir" ]] || die "two workdirs, '$workdir' and '$argument'."
      workdir="$argument"
      ;;
  esac
done
case "$workdir" in
  '') workdir=runs/quickstart ;;
  /*) ;;
  *) workdir="$start_dir/$workdir" ;;
esac

install_into_venv ''
[[ -z "$install_only" ]] || exit 0
flags=("--workdir=$workdir")
if [[ -n "$from_scratch" ]]; then
  .venv/bin/python -m rlzero.pretrain \
    --gin_file=configs/runs/tiny_base.gin "--workdir=$workdir/base"
  flags+=("--checkpoint=$workdir/base/model")
fi
.venv/bin/python -m rlzero.grpo \
  --gin_file=configs/runs/r1_zero_tiny.gin "${flags[@]}"
.venv/bin/python -m rlzero.report "--workdir=$workdir"
echo "Report:  $workdir/report.html"
echo "Summary: $workdir/summary.json"
