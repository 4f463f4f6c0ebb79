#!/usr/bin/env bash
# A run on GPU nodes under Slurm:
#
#   bash launch/slurm.sh --nodes=4 --gpus=8 [--time=24:00:00] [--stage=grpo]
#     [--partition=P] [--account=A] [--image=IMAGE --mount=DIR] [--dry-run]
#     -- --gin_file=FILE --workdir=DIR
#
# With --image the processes run in an image of Dockerfile, as Slurm's plugin
# pyxis starts it, and see the folder of --mount; FILE is one of the image, or
# in that folder. Without it they run here, in .venv.
#
# One process a node, with all its GPUs; jax.distributed takes the rest from
# Slurm. DIR is on a file system that all nodes see. Five minutes before the
# time is up, and when Slurm preempts the job, the run saves and exits with 75;
# the job is then queued again and goes on, as it does where a node fails. With
# any other status it ends. --dry-run prints the job.
set -euo pipefail
# shellcheck source=launch/stages.sh
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"

die() {
  echo "error: $*" >&2
  exit 2
}

nodes='' gpus='' time=24:00:00 stage=grpo partition='' account='' dry_run=''
image='' mount=''
flags=()
while (($#)); do
  case "$1" in
    --nodes=*) nodes="${1#*=}" ;;
    --gpus=*) gpus="${1#*=}" ;;
    --time=*) time="${1#*=}" ;;
    --stage=*) stage="${1#*=}" ;;
    --partition=*) partition="${1#*=}" ;;
    --account=*) account="${1#*=}" ;;
    --image=*) image="${1#*=}" ;;
    --mount=*) mount="${1#*=}" ;;
    --dry-run) dry_run=1 ;;
    --)
      shift
      flags=("$@")
      break
      ;;
    *) die "'$1' is not an option; flags of the stage come after --." ;;
  esac
  shift
done
[[ -n "$nodes" && -n "$gpus" ]] || die "give --nodes=N and --gpus=N (a node)."
check_stage "$stage"
((${#flags[@]})) || die "give -- --gin_file=FILE --workdir=DIR."
[[ -z "$image" || -n "$mount" ]] || die "--image needs --mount=DIR, where" \
  "--workdir is."
[[ -n "$image" || -z "$mount" ]] || die "--mount is for --image=IMAGE alone."
container=()
if [[ -n "$image" ]]; then
  container=("--container-image=$image" "--container-mounts=$mount:$mount"
    --container-workdir=/rlzero)
fi
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

job() {
  cat <<EOF
#!/usr/bin/env bash
#SBATCH --job-name=rlzero-$stage
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=$gpus
#SBATCH --exclusive
#SBATCH --time=$time
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
${partition:+#SBATCH --partition=$partition
}${account:+#SBATCH --account=$account
}cd $(printf '%q' "$root")
status=0
srun --kill-on-bad-exit=0 $(printf '%q ' "${container[@]+"${container[@]}"}" \
    .venv/bin/python -m "rlzero.$stage" --distributed "${flags[@]}")|| status=\$?
if [[ "\$status" == 75 ]]; then
  scontrol requeue "\$SLURM_JOB_ID"
else
  exit "\$status"
fi
EOF
}

if [[ -n "$dry_run" ]]; then
  job
else
  job | sbatch
fi
