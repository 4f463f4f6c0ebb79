#!/usr/bin/env bash
# R1-Zero on TPU VMs of Google Cloud, one host or a pod (docs/howto/tpu.md):
#
#   bash launch/tpu_vm.sh COMMAND --name=NAME --zone=ZONE [OPTIONS] [-- FLAGS]
#
#   create   asks for the TPU as a queued resource and waits until it is there:
#            --type=v5p-128 and --spot, --reserved or --on-demand
#   setup    copies the checked-out commit to every worker, installs it, and
#            mounts the bucket: --bucket=BUCKET
#   run      starts the stage on every worker: --bucket=BUCKET --run=FOLDER
#            [--stage=grpo] -- --gin_file=FILE ...; the run goes on from what
#            is in the folder
#   keep     as `run`, and stays: a TPU that is taken away is asked for again,
#            set up, and the run goes on; takes the options of all three
#   logs     follows the log of worker 0
#   stop     lets the run save and end (SIGTERM)
#   delete   gives the TPU back
#
# --project=PROJECT and --version=RUNTIME where gcloud's own do not do;
# --dry-run prints the commands and does nothing.
set -euo pipefail
# shellcheck source=launch/stages.sh
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"

die() {
  echo "error: $*" >&2
  exit 2
}

usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }

command="${1:-}"
[[ -n "$command" && "$command" != --help ]] || {
  usage
  exit 0
}
shift
name='' zone='' type='' model='' bucket='' folder='' stage=grpo project=''
version='' dry_run=''
uv_version=0.13.9 # of the installer on the workers
scratch=''
trap '[[ -z "$scratch" ]] || rm -rf "$scratch"' EXIT
flags=()
while (($#)); do
  case "$1" in
    --name=*) name="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --type=*) type="${1#*=}" ;;
    --spot | --reserved | --on-demand) model="$1" ;;
    --bucket=*) bucket="${1#*=}" ;;
    --run=*) folder="${1#*=}" ;;
    --stage=*) stage="${1#*=}" ;;
    --project=*) project="${1#*=}" ;;
    --version=*) version="${1#*=}" ;;
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
[[ -n "$name" && -n "$zone" ]] || die "give --name=NAME and --zone=ZONE."
where=("--zone=$zone" ${project:+"--project=$project"})

needs() { # needs OPTION VALUE
  [[ -n "$2" ]] || die "$command needs $1."
}

act() {
  if [[ -n "$dry_run" ]]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

on_workers() { # on_workers WHICH COMMAND
  act gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" \
    "--worker=$1" "--command=$2"
}

runtime_version() {
  case "$type" in
    v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) die "type '$type' is not known; give its --version=RUNTIME." ;;
  esac
}

# The request's state, GONE if there is none; fails if gcloud cannot say.
state() {
  local said
  if said="$(gcloud compute tpus queued-resources describe "$name" \
    "${where[@]}" '--format=value(state.state)' 2>&1)"; then
    echo "$said"
  elif [[ "$said" == *NOT_FOUND* || "$said" == *'not found'* ]]; then
    echo GONE
  else
    echo "$name: gcloud cannot say how it is: $said" >&2
    return 1
  fi
}

# How the run on the workers ended: its exit code, 'running', or nothing where
# that cannot be known.
outcome() {
  gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=0 \
    '--command=cat ~/rlzero.status 2>/dev/null || echo running' \
    2>/dev/null || true
}

create() {
  needs --type=TYPE "$type"
  needs '--spot, --reserved or --on-demand' "$model"
  local chosen=()
  [[ "$model" == --on-demand ]] || chosen=("$model")
  version="${version:-$(runtime_version)}"
  act gcloud compute tpus queued-resources create "$name" "--node-id=$name" \
    "${where[@]}" "--accelerator-type=$type" "--runtime-version=$version" \
    "${chosen[@]+"${chosen[@]}"}"
  if [[ -n "$dry_run" ]]; then
    echo '# waits until its state is ACTIVE'
    return
  fi
  local now
  until now="$(state || true)" && [[ "$now" == ACTIVE ]]; do
    [[ "$now" != FAILED ]] || die "the request for $name has failed."
    echo "$name: ${now:-not known}"
    sleep 30
  done
}

# What every worker runs. The bucket is a folder there, so that a run's files
# outlive the TPU; a mount that is there already stays.
install_command() {
  cat <<EOF
set -e
rm -rf ~/rlzero && mkdir -p ~/rlzero ~/bucket
tar -xzf ~/rlzero.tar.gz -C ~/rlzero
command -v gcsfuse >/dev/null || {
  echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-\$(lsb_release -c -s) main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list
  curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
  sudo apt-get update -qq && sudo apt-get install -qq -y gcsfuse
}
mountpoint -q ~/bucket || gcsfuse --implicit-dirs $bucket ~/bucket
[ -x ~/.local/bin/uv ] || python3 -m pip install --quiet --user "uv==$uv_version"
cd ~/rlzero
~/.local/bin/uv venv --quiet --python 3.12 .venv
~/.local/bin/uv pip install --quiet --python .venv/bin/python -e '.[tpu]' -c launch/constraints/python3.12.txt
EOF
}

setup() {
  needs --bucket=BUCKET "$bucket"
  local archive
  # In a folder of its own: what another user of this machine could put in its
  # place would be installed on every worker.
  scratch="$(mktemp -d)"
  archive="$scratch/rlzero.tar.gz"
  act git -C "$(dirname "${BASH_SOURCE[0]}")/.." archive --format=tar.gz \
    "--output=$archive" HEAD
  act gcloud compute tpus tpu-vm scp "$archive" "$name:rlzero.tar.gz" \
    "${where[@]}" --worker=all
  on_workers all "$(install_command)"
}

start() {
  needs --bucket=BUCKET "$bucket"
  needs --run=FOLDER "$folder"
  check_stage "$stage"
  ((${#flags[@]})) || die "$command needs -- --gin_file=FILE ..."
  local stage_command
  stage_command="$(printf '%q ' .venv/bin/python -m "rlzero.$stage" \
    --distributed "${flags[@]}")"
  # restart.sh leaves the exit code behind, for `keep`.
  on_workers all "cd ~/rlzero && rm -f ~/rlzero.status && \
STATUS_FILE=~/rlzero.status nohup setsid bash launch/restart.sh \
$stage_command--workdir=\$HOME/bucket/$(printf '%q' "$folder") \
>> ~/rlzero.log 2>&1 < /dev/null & echo \$! > ~/rlzero.pid"
}

keep() {
  while :; do
    if [[ -z "$dry_run" ]]; then
      case "$(state || echo unknown)" in
        # A TPU is given up only where Google says that it is lost.
        GONE | SUSPENDED | SUSPENDING | FAILED) ;;
        ACTIVE)
          case "$(outcome)" in
            0)
              echo "$name: the run has ended; giving the TPU back."
              delete
              return
              ;;
            2)
              echo "$name: the run cannot resume by itself; the end of its" \
                "log follows, and the TPU is given back." >&2
              on_workers 0 'tail -n 30 ~/rlzero.log' >&2 || true
              delete
              return 2
              ;;
          esac
          sleep 60
          continue
          ;;
        *)
          sleep 60
          continue
          ;;
      esac
    fi
    # A request that is lost stands in the way of the next one.
    delete || true
    create
    setup
    start
    [[ -z "$dry_run" ]] || break
  done
}

delete() {
  act gcloud compute tpus queued-resources delete "$name" "${where[@]}" \
    --force --quiet
}

# shellcheck disable=SC2016 # the worker expands what stop sends
case "$command" in
  create | setup | keep | delete) "$command" ;;
  run) start ;;
  logs) on_workers 0 'tail -n 100 -f ~/rlzero.log' ;;
  stop) on_workers all 'kill -TERM "$(cat ~/rlzero.pid)"' ;;
  *) die "'$command' is not a command; --help lists them." ;;
esac
