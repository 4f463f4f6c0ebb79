# shellcheck shell=bash
# Sourced by the launchers of several hosts: checks the stage that they start.

# check_stage NAME: ends the script, with code 2, if it runs on one host alone.
check_stage() {
  case "$1" in
    distill | evaluate | grpo | pipeline | pretrain | reject | reward_model | sft) ;;
    *)
      echo "error: --stage=$1 is none that runs on several hosts; choose" \
        "distill, evaluate, grpo, pipeline, pretrain, reject, reward_model or sft." >&2
      exit 2
      ;;
  esac
}
